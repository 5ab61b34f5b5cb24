"""Files that are written whole or not at all, on local disks and in buckets (`gs://...`, by etils.epath)."""

import hashlib
import json
import os
from collections.abc import Mapping

from etils import epath


def is_remote(path: os.PathLike | str) -> bool:
    """Whether a path lies in a bucket, where files can be replaced but neither appended to nor locked."""
    return "://" in os.fspath(path)


def write_json(path: os.PathLike, content: Mapping) -> None:
    """Writes strict JSON (no NaN), sorted by key, under a temporary name first."""
    path = epath.Path(path)
    temporary = path.with_name(path.name + ".incomplete")
    temporary.write_text(json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n")
    temporary.replace(path)


def sha256_of(path: os.PathLike) -> str:
    with epath.Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
