"""A bucket for tests: a file system of Beam, `bucket://NAME/...`, kept in a folder. A file appears when closed."""

import io
import os
import pathlib

from apache_beam.io.filesystem import FileMetadata
from apache_beam.io.localfilesystem import LocalFileSystem

ROOT = "TEST_BUCKETS"  # environment variable: the folder that holds the buckets


def local(path: str) -> pathlib.Path:
    assert path.startswith("bucket://"), path
    return pathlib.Path(os.environ[ROOT], path.removeprefix("bucket://"))


class _Written(io.BytesIO):
    def __init__(self, path: str):
        super().__init__()
        self._path = local(path)

    def close(self) -> None:
        if not self.closed:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_bytes(self.getvalue())
        super().close()


class Bucket(LocalFileSystem):
    @classmethod
    def scheme(cls):
        return "bucket"

    def has_dirs(self):
        return False

    def _list(self, dir_or_prefix):
        for path in pathlib.Path(os.environ[ROOT]).rglob("*"):
            name = f"bucket://{path.relative_to(os.environ[ROOT])}"
            if path.is_file() and name.startswith(dir_or_prefix):
                yield FileMetadata(name, path.stat().st_size)

    def exists(self, path):
        return local(path).is_file()

    def create(self, path, mime_type=None, compression_type=None):
        return _Written(path)

    def open(self, path, mime_type=None, compression_type=None):
        return local(path).open("rb")

    def rename(self, source_file_names, destination_file_names):
        for source, target in zip(source_file_names, destination_file_names, strict=True):
            local(source).replace(local(target))

    def delete(self, paths):
        for path in paths:
            local(path).unlink()
