"""Files that are written completely or not at all, on local disks and in buckets (`gs://...`, by etils.epath)."""

import hashlib
import json
import os
from collections.abc import Mapping

from etils import epath

from lae_jax.runtime import foreign
from lae_jax.runtime.errors import InputError


def is_remote(path: os.PathLike | str) -> bool:
    """Whether a path is in a bucket, where files can be replaced but not appended to or locked."""
    return "://" in os.fspath(path)


def write_text(path: os.PathLike, text: str) -> None:
    """Replaces a file at once, with UTF-8; on a disk the text first goes to a temporary file.

    Names of files that are not UTF-8 get escapes.
    """
    path = epath.Path(path)
    text = foreign.utf8(text)
    if is_remote(path):
        path.write_text(text)
        return
    temporary = path.with_name(path.name + ".incomplete")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        # A file that was reported as written must survive a power cut.
        os.fsync(file.fileno())
    temporary.replace(path)


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
