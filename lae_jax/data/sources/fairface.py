"""Reader of FairFace (https://github.com/joojs/fairface; CC BY 4.0), whose ages are ranges."""

import dataclasses
import functools
import itertools
import os
import pathlib
import tarfile
from collections.abc import Iterator

from lae_jax.data.sources.age_text import parse_age_or_range
from lae_jax.data.sources.csv_file import csv_rows
from lae_jax.data.sources.interface import MAX_FILE_BYTES, FileReader, Options, Picture, Rows, Source, folder_of
from lae_jax.faces.images import BadImage
from lae_jax.runtime.errors import InputError
from lae_jax.runtime.files import open_regular

_TABLES = ("fairface_label_train.csv", "fairface_label_val.csv", "labels.csv")
_ARCHIVE = "images.tar"
_FURTHER = ("gender", "race", "service_test")
_SPLITS = {"train": "train", "val": "validation"}
_WITHOUT_DATA = (
    *(tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE),
    *(tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE),
)
MAX_MEMBERS = 1_000_000  # of the archive


def read_fairface(sources: list[str], options: Options) -> Source:
    """Reads unpacked FairFace: its tables beside the folders `train` and `val`, or beside `images.tar` that holds them.

    The tables are `fairface_label_train.csv` and `fairface_label_val.csv` as published (`file,age,gender,race,...`), or
    one `labels.csv` of both. The published split `val` is the validation split. `gender`, `race` and `service_test` are
    further columns. Ages are ranges, the spreadsheet's damage in some copies included.

    Raises:
      InputError: `sources` is not one folder that holds one of the tables, a table lacks a column, the archive cannot
        be read, or `options.images` is set.
    """
    top = folder_of(sources, options, "fairface", " or ".join(_TABLES))
    tables = [pathlib.Path(top) / name for name in _TABLES]
    if not (tables := [path for path in tables if path.is_file()]):
        raise InputError(f"{top} holds none of {', '.join(_TABLES)}: name the folder of the tables")
    if len(tables) > 1 and tables[-1].name == _TABLES[-1]:
        told = " and ".join(path.name for path in tables)
        raise InputError(f"{top} holds {told}, which list the same images: move one away")
    rows = Rows(_FURTHER)
    for path in tables:
        for name, fields in _lines(path):
            try:
                rows.add(
                    name,
                    parse_age_or_range(fields["age"]),
                    split=_SPLITS.get(name.partition("/")[0]),
                    further=[fields.get(column) for column in _FURTHER],
                )
            except BadImage as reason:
                rows.reject(name or fields["line"], reason)
    archive = os.path.join(top, _ARCHIVE)
    read = _ArchiveReader(archive) if os.path.exists(archive) and not os.path.isdir(f"{top}/train") else FileReader(top)
    return rows.source(read, {"images": os.path.realpath(top)})


def _lines(path: pathlib.Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields the name of the image and the fields by name of each line of a table."""
    lines = csv_rows(path)
    header = [cell.strip() for cell in next(lines, (0, []))[1]]
    image = "path" if "path" in header else "file"
    if missing := [name for name in (image, "age") if header.count(name) != 1]:
        raise InputError(f"{path}: the first line must have the column {missing[0]} once: use the table of FairFace")
    for line, row in lines:
        fields = dict(itertools.zip_longest(header, (field.strip() for field in row[: len(header)]), fillvalue=""))
        yield fields[image], fields | {"line": f"{path.name} line {line}"}


@dataclasses.dataclass(frozen=True)
class _ArchiveReader:
    """Reads images of an uncompressed tar archive by name."""

    path: str

    def __call__(self, row: dict) -> Picture:
        first, size = _members(self.path).get(row["name"], (0, None))
        if size is None:
            raise BadImage("file not found in the archive")
        if size > MAX_FILE_BYTES:
            raise BadImage(f"file larger than {MAX_FILE_BYTES:,} bytes: save it as JPEG")
        with open_regular(self.path) as file:
            file.seek(first)
            encoded = file.read(size)
        if len(encoded) < size:
            raise BadImage("the archive ends within the file")
        return Picture(encoded)


@functools.lru_cache(maxsize=1)
def _members(path: str) -> dict[str, tuple[int, int]]:
    """Returns the place and size in bytes of the regular files of an archive by their names.

    `tarfile` itself would follow a size below 0 in a circle and read descriptions of sparse files, so that only its
    reader of single headers is used.
    """
    found, place = {}, 0
    try:
        with open_regular(path) as file:
            length = os.fstat(file.fileno()).st_size
            while any(block := file.read(tarfile.BLOCKSIZE)):
                member = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
                place += tarfile.BLOCKSIZE
                if not 0 <= member.size <= length - place:
                    raise tarfile.TarError(f"a file of {member.size} bytes at {place} of {length}")
                if member.isreg():
                    found[member.name.removeprefix("./")] = (place, member.size)
                if member.type not in _WITHOUT_DATA:
                    place += -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                file.seek(place)
                if len(found) > MAX_MEMBERS:
                    raise InputError(f"{path} holds more than {MAX_MEMBERS:,} files: unpack it, and move it away")
            if not block:
                raise tarfile.TarError("it ends without an end mark")
    except (tarfile.TarError, OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}): unpack it, and move it away") from error
    return found
