"""Files that are written completely or not at all, on local disks and in buckets (`gs://...`, by etils.epath)."""

import contextlib
import hashlib
import itertools
import json
import logging
import os
import pathlib
import tempfile
from collections.abc import Iterator, Mapping

from etils import epath

from lae_jax.runtime import foreign
from lae_jax.runtime.errors import InputError

logger = logging.getLogger("lae_jax")


def is_remote(path: os.PathLike | str) -> bool:
    """Whether a path is in a bucket, where files can be replaced but not appended to or locked."""
    return "://" in os.fspath(path)


@contextlib.contextmanager
def replacing(path: os.PathLike) -> Iterator[epath.Path]:
    """Yields a place beside a file on a disk. What is written there replaces the file when the block ends.

    If the block fails, the place is removed and the file stays as it was. An error that names no file gets the name of
    this one.
    """
    path = epath.Path(path)
    temporary = path.with_name(path.name + ".incomplete")
    try:
        # What was left there may be a link or a pipe, which must not be written through.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
    except IsADirectoryError as error:
        raise InputError(f"{temporary} is a folder, in the place of a file: move it away") from error
    try:
        yield temporary
        # A file that was reported as written must survive a power cut.
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.filename is None and error.errno is not None:
            error.filename = os.fspath(path)
        raise


@contextlib.contextmanager
def together(folder: os.PathLike, last: str, above: os.PathLike | None = None) -> Iterator[epath.Path]:
    """Yields a folder of the same name whose files move into `folder` when the block ends, so that none is half new.

    If the block fails, the files in `folder` stay as they were. In a bucket, where files cannot be moved, the folder is
    `folder` itself.

    Args:
      folder: The folder.
      last: Name of the file without which the folder does not count as complete: it is removed first and comes last.
      above: Existing folder on the same disk for the files until then (default: `folder`).
    """
    folder = epath.Path(folder)
    if is_remote(folder):
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    if above is None:
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".lae_jax-", dir=above or folder, ignore_cleanup_errors=True) as temporary:
        place = epath.Path(temporary) / folder.name
        place.mkdir()
        yield place
        names = sorted(os.path.relpath(path, place) for path in pathlib.Path(place).rglob("*") if path.is_file())
        for parent in {(folder / name).parent for name in names}:
            parent.mkdir(parents=True, exist_ok=True)
        (folder / last).unlink(missing_ok=True)
        for name in sorted(names, key=lambda name: name == last):
            (place / name).replace(folder / name)


@contextlib.contextmanager
def growing(path: os.PathLike | str) -> Iterator[str]:
    """Yields a new file beside a file on a disk, for rows that come over a long time. It replaces the file at the end.

    If the block fails, the new file stays with the rows so far, and the log names it.
    """
    path = pathlib.Path(os.path.realpath(path))
    for number in itertools.count(1):
        place = path.with_name(f"{path.stem}.incomplete{f'-{number}' * (number > 1)}{path.suffix}")
        with contextlib.suppress(FileExistsError):
            open(place, "x").close()
            break
    try:
        yield os.fspath(place)
        os.replace(place, path)
    except BaseException:
        with contextlib.suppress(OSError):
            if place.stat().st_size:
                logger.warning("%s is not complete: the rows so far are in %s", path, place)
            else:
                place.unlink()
        raise


def write_text(path: os.PathLike, text: str) -> None:
    """Replaces a file at once, with UTF-8. Names of files that are not UTF-8 get escapes."""
    write_bytes(path, foreign.utf8(text).encode())


def write_bytes(path: os.PathLike, content: bytes) -> None:
    """Replaces a file at once."""
    if is_remote(path):
        epath.Path(path).write_bytes(content)
        return
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(content)


def write_json(path: os.PathLike, content: Mapping) -> None:
    """Writes strict JSON (without NaN), sorted by key."""
    write_text(path, json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: os.PathLike) -> dict:
    """Reads a JSON file that holds an object.

    Raises:
      InputError: The file is not JSON, or holds something else; the message names it.
    """
    try:
        content = json.loads(epath.Path(path).read_text())
        if not isinstance(content, dict):
            raise ValueError(f"a {type(content).__name__} in place of an object")
    except ValueError as error:  # also of text that is not UTF-8 or not JSON
        raise InputError(f"{path} is damaged ({error}): restore it, or choose another folder") from error
    return content


def sha256_of(path: os.PathLike) -> str:
    """Returns the SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with epath.Path(path).open("rb") as file:
        # Files in a bucket lack methods that hashlib.file_digest needs.
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
