"""Files that are written completely or not at all, on local disks and in buckets (`gs://...`, by etils.epath)."""

import contextlib
import fcntl
import hashlib
import importlib.util
import itertools
import json
import logging
import math
import os
import pathlib
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from typing import BinaryIO

from etils import epath

from lae_jax.runtime import foreign, typed
from lae_jax.runtime.errors import InputError, missing_extra, of_a_bucket

logger = logging.getLogger("lae_jax")

LIMIT = 1 << 28  # bytes of a file that is read at once: the rejected rows of the largest shard fit
LINES_LIMIT = 1 << 31  # bytes of a file with a line for each image or step
DEEPEST = 64  # levels of JSON


def is_remote(path: os.PathLike | str) -> bool:
    """Whether a path is in a bucket, where files can be replaced but not appended to or locked."""
    return "://" in os.fspath(path)


def require_bucket(path: os.PathLike | str) -> None:
    """Checks that a run can be in a bucket, if the path names one.

    Args:
      path: The folder of the run.

    Raises:
      InputError: It is not on Cloud Storage, there is no such bucket, or a package of the extra gcs is missing.
    """
    if not is_remote(path):
        return
    scheme, _, rest = os.fspath(path).partition("://")
    if scheme != "gs":
        raise InputError(
            f"{os.fspath(path)}: a run is on a local disk, on a mount or in a bucket of Cloud Storage (gs://): mount"
            " this bucket, and name the folder in the mount"
        )
    try:
        found = importlib.util.find_spec("google.cloud.storage")
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise InputError(missing_extra("gcs", "google-cloud-storage", f"a run in a bucket ({os.fspath(path)})"))
    bucket = epath.Path(f"gs://{rest.partition('/')[0]}")
    try:
        exists = bucket.exists()
    except Exception as error:  # of TensorFlow
        raise of_a_bucket(error, bucket, refused=InputError) or error from error
    # TensorFlow would try without end to create a folder in a bucket that does not exist.
    if not exists:
        raise InputError(f"{os.fspath(path)}: there is no bucket {bucket}: create it, or name another")


def is_foreign_bucket(path: os.PathLike | str, folder: os.PathLike | str) -> bool:
    """Whether a path in a bucket is named by a file in `folder`, on a disk: a stranger may have written its name."""
    return is_remote(path) and not is_remote(folder)


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
    with _temporary(above or folder) as temporary:
        place = epath.Path(temporary) / folder.name
        place.mkdir()
        yield place
        names = sorted(os.path.relpath(path, place) for path in pathlib.Path(place).rglob("*") if path.is_file())
        for parent in {(folder / name).parent for name in names}:
            parent.mkdir(parents=True, exist_ok=True)
        (folder / last).unlink(missing_ok=True)
        for name in sorted(names, key=lambda name: name == last):
            (place / name).replace(folder / name)


_TEMPORARY = ".lae_jax-"


@contextlib.contextmanager
def _temporary(above: os.PathLike) -> Iterator[str]:
    """Yields a new folder and removes it; removes those of programs that were killed, too.

    A program holds a lock on its folder, which ends with it.
    """
    for left in pathlib.Path(above).glob(f"{_TEMPORARY}*"):
        with _locked(left) as is_free:
            if is_free:
                shutil.rmtree(left, ignore_errors=True)
    while True:
        with tempfile.TemporaryDirectory(prefix=_TEMPORARY, dir=above, ignore_cleanup_errors=True) as temporary:
            with _locked(temporary, wait=True) as is_held:
                # Another program may have removed it before it was locked; or the file system has no locks.
                if is_held or os.path.exists(temporary):
                    yield temporary
                    return


@contextlib.contextmanager
def _locked(folder: os.PathLike | str, wait: bool = False) -> Iterator[bool]:
    """Locks a folder; yields whether that was possible. With `wait` it waits for the program that has it."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        yield False
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            held = os.path.samestat(os.fstat(handle), os.stat(folder))
        except OSError:  # another program has it, or it is gone
            held = False
        yield held
    finally:
        os.close(handle)


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


def open_regular(path: os.PathLike | str) -> BinaryIO:
    """Opens a file to read it. A pipe or a device in its place would block the program, or never end.

    Raises:
      InputError: It is missing, or no regular file, or cannot be read; the message names it.
    """
    path = epath.Path(path)
    try:
        if is_remote(path):
            return _open_remote(path)
        # A pipe without a writer would block when it is opened.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise InputError(f"{path} is not a file: restore it, or choose another folder")
        return os.fdopen(handle, "rb")
    except FileNotFoundError:
        raise InputError(f"{path} is missing: restore it, or choose another folder") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): restore it, or choose another folder") from error


@contextlib.contextmanager
def _open_remote(path: epath.Path) -> Iterator[BinaryIO]:
    """Opens a file in a bucket, which is missing only when it is read."""
    try:
        with path.open("rb") as file:
            yield file
    except FileNotFoundError:
        raise InputError(f"{path} is missing: restore it, or choose another folder") from None


def read_text(path: os.PathLike | str, again: str = typed.RESTORE, limit: int = LIMIT) -> str:
    """Reads a text file in UTF-8.

    Args:
      path: The file.
      again: What to do if it is damaged, for messages.
      limit: The largest size that is read, in bytes.

    Raises:
      InputError: It cannot be read, is larger, or not UTF-8; the message names it.
    """
    with open_regular(path) as file:
        try:
            content = file.read(limit + 1)
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror}): {again}") from error
    if len(content) > limit:
        raise InputError(f"{path} is damaged (more than {limit >> 20} MiB): {again}")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is damaged ({error}): {again}") from error


def read_json(path: os.PathLike | str, form: typed.Form | None = None, again: str = typed.RESTORE) -> dict:
    """Reads a JSON file that holds an object.

    Args:
      path: The file.
      form: The form of its content (`typed`).
      again: What to do if it is damaged, for messages.

    Raises:
      InputError: The file is not strict JSON (a field twice, NaN and infinity, numbers beyond 64 bits and more than
        DEEPEST levels are refused), or has another form; the message names the file and the field.
    """
    return parse_json(read_text(path, again), path, form, again)


def read_lines(path: os.PathLike | str, form: typed.Form | None = None, again: str = typed.RESTORE) -> list[dict]:
    """Reads a file of JSON lines; [] if there is none. The last line has no end if a kill interrupted it: it is left.

    Raises:
      InputError: As `read_json`; the message has the number of the line.
    """
    if not epath.Path(path).exists():
        return []
    *lines, _ = read_text(path, again, LINES_LIMIT).split("\n")
    return [parse_json(line, f"{path} line {number}", form, again) for number, line in enumerate(lines, 1)]


def parse_json(text: str, where: os.PathLike | str, form: typed.Form | None = None, again: str = typed.RESTORE) -> dict:
    """Returns the object that a text holds as JSON.

    Args:
      text: The text.
      where: Where it is from, for messages.
      form: As in `read_json`.
      again: As in `read_json`.

    Raises:
      InputError: As `read_json`.
    """
    try:
        content = json.loads(
            text, object_pairs_hook=_object, parse_constant=_number, parse_float=_number, parse_int=_integer
        )
        if not isinstance(content, dict):
            raise ValueError(f"a {type(content).__name__} in place of an object")
        _require_shallow(content)
    except RecursionError as error:
        raise InputError(f"{where} is damaged (nested more than {DEEPEST} deep): {again}") from error
    except ValueError as error:
        raise InputError(f"{where} is damaged ({error}): {again}") from error
    if form is not None:
        typed.require(content, form, where, again)
    return content


def _object(pairs: list[tuple[str, object]]) -> dict:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} twice in one object")
    return content


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:40]}")
    return value


def _integer(text: str) -> int:
    if len(text) > 20 or not -(1 << 63) <= int(text) < 1 << 64:
        raise ValueError(f"the number {text[:40]}")
    return int(text)


def _require_shallow(content: object) -> None:
    level = [content]
    for _ in range(DEEPEST):
        level = [
            one
            for each in level
            for one in (each.values() if isinstance(each, dict) else each)
            if isinstance(one, (dict, list))
        ]
        if not level:
            return
    raise ValueError(f"nested more than {DEEPEST} deep")


def sha256_of(path: os.PathLike) -> str:
    """Returns the SHA-256 of a file, in hexadecimal digits.

    Raises:
      InputError: It cannot be opened.
    """
    digest = hashlib.sha256()
    with open_regular(path) as file:
        # Files in a bucket lack methods that hashlib.file_digest needs.
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
