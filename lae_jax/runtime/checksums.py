"""Checksums of a folder: the size and SHA-256 of each file in it, written when the folder is complete.

A flipped bit in a checkpoint would restore wrong values silently, so a checkpoint is valid only with its checksums.
"""

import os

from etils import epath

from lae_jax.runtime import files, layout, typed
from lae_jax.runtime.errors import InputError
from lae_jax.runtime.typed import declared

NAME = "sha256.json"
FORM = typed.named(typed.fields(declared.BYTES))


def require_no_link(path: epath.Path) -> None:
    """Checks that a file or folder in a checkpoint or an export is not a link.

    A link may lead to a file of somebody else, or to the folder that it is in: reading that would never end.

    Raises:
      InputError: It is one.
    """
    if os.path.islink(path):
        raise InputError(f"{path} is a link: put what it leads to in its place")


def contents(folder: epath.Path, but: str = "", below: str = "") -> list[str]:
    """Returns the names of the files in a folder and its subfolders, without what systems create (`layout.is_system`).

    Raises:
      InputError: One is a link.
    """
    names = []
    for name in layout.contents(folder):
        require_no_link(folder / name)
        if (folder / name).is_dir():
            names += contents(folder / name, but, below + name + "/")
        elif below + name != but:
            names.append(below + name)
    return names


def entries(folder: epath.Path, but: str = NAME) -> dict[str, dict]:
    """Returns {name: {'bytes', 'sha256'}} of the files in a folder.

    Args:
      folder: The folder.
      but: The file that will hold the result; it is omitted.
    """
    return {
        name: {"bytes": (folder / name).stat().length, "sha256": files.sha256_of(folder / name)}
        for name in contents(folder, but)
    }


def size(folder: epath.Path) -> int:
    """Returns the bytes of all files in a folder."""
    return sum((folder / name).stat().length for name in contents(folder, NAME))


def write(folder: epath.Path) -> None:
    """Writes the checksums of the files in a folder."""
    files.write_json(folder / NAME, entries(folder))


def has(folder: epath.Path) -> bool:
    """Whether a folder has checksums."""
    return (folder / NAME).exists()


def damage(folder: epath.Path) -> str | None:
    """Returns what is wrong with a folder and with which file; None if all files match their checksums."""
    if not has(folder):
        return f"it has no {NAME}: it was not saved completely, or the file was lost"
    try:
        written = files.read_json(folder / NAME, FORM)
    except InputError as error:
        return f"{NAME} cannot be read: {error}"
    return difference(folder, written)


def difference(folder: epath.Path, written: dict[str, dict], but: str = NAME) -> str | None:
    """Compares a folder with checksums that were taken of it.

    Args:
      folder: The folder.
      written: Result of `entries`, of the form `FORM`.
      but: The file to omit.

    Returns:
      The first difference, with the name of the file; None if there is none.
    """
    expected = {name: (entry["bytes"], entry["sha256"]) for name, entry in written.items()}
    try:
        found = contents(folder, but)
    except InputError as error:
        return str(error)
    for name in sorted({*expected, *found}):
        if name not in expected:
            return f"{name} does not belong there"
        if name not in found:
            return f"{name} is missing"
        try:
            size = (folder / name).stat().length
            if size != expected[name][0]:
                return f"{name} has {size} bytes, not {expected[name][0]}"
            if files.sha256_of(folder / name) != expected[name][1]:
                return f"{name} was changed: its SHA-256 differs"
        except (InputError, OSError) as error:
            return f"{name} cannot be read: {error}"
    return None
