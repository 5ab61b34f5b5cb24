"""A seal on a folder: the size and SHA-256 of each file in it, written when the folder is complete.

A flipped bit in a checkpoint restores wrong values without a word, so a checkpoint counts only with its seal.
"""

import json

from etils import epath

from lae_jax.runtime import files

NAME = "sha256.json"


def _contents(folder: epath.Path, but: str, below: str = "") -> list[str]:
    """Names of the files in a folder and its folders but hidden ones, which file systems make by themselves."""
    names = []
    for path in sorted(folder.iterdir()):
        name = below + path.name
        if path.is_dir():
            names += _contents(path, but, name + "/")
        elif name != but and not path.name.startswith("."):
            names.append(name)
    return names


def entries(folder: epath.Path, but: str = NAME) -> dict[str, dict]:
    """{name: {'bytes', 'sha256'}} of the files in a folder; but: the file that will hold them."""
    return {
        name: {"bytes": (folder / name).stat().length, "sha256": files.sha256_of(folder / name)}
        for name in _contents(folder, but)
    }


def seal(folder: epath.Path) -> None:
    """Writes the seal over the files that are there."""
    files.write_json(folder / NAME, entries(folder))


def is_sealed(folder: epath.Path) -> bool:
    return (folder / NAME).exists()


def damage(folder: epath.Path) -> str | None:
    """What is wrong with a sealed folder, naming the file; None if every file is as it was sealed."""
    if not is_sealed(folder):
        return f"it has no {NAME}: it was not acknowledged yet, or the file was lost"
    try:
        sealed = json.loads((folder / NAME).read_text())
    except (OSError, ValueError):
        return f"{NAME} cannot be read"
    try:
        return difference(folder, sealed)
    except ValueError:
        return f"{NAME} cannot be read"


def difference(folder: epath.Path, sealed: dict[str, dict], but: str = NAME) -> str | None:
    """What differs from `entries` that were taken of a folder, naming the file; None if nothing does.

    Raises ValueError where they are no such entries.
    """
    try:
        expected = {name: (entry["bytes"], entry["sha256"]) for name, entry in sealed.items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no entries of files: {error!r}") from error
    found = _contents(folder, but)
    for name in sorted({*expected, *found}):
        if name not in expected:
            return f"{name} does not belong there"
        if name not in found:
            return f"{name} is missing"
        size = (folder / name).stat().length
        if size != expected[name][0]:
            return f"{name} has {size} bytes, not {expected[name][0]}"
        if files.sha256_of(folder / name) != expected[name][1]:
            return f"{name} was changed: its SHA-256 is another"
    return None
