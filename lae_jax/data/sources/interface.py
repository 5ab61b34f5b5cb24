"""The form of every raw source: a `Source`, its rows in bounded memory, and file access that stays in one folder."""

import collections
import dataclasses
import functools
import logging
import os
import re
import stat
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from lae_jax.data import parquet, people, split_names
from lae_jax.data.rejected import Rejected
from lae_jax.data.sources import age_text, foreign_paths
from lae_jax.faces.images import BadImage
from lae_jax.runtime.console import counted
from lae_jax.runtime.errors import InputError
from lae_jax.runtime.foreign import quoted, shown

logger = logging.getLogger("lae_jax")

MAX_FILE_BYTES = 128_000_000
MAX_COLUMNS = 64
MAX_FIELD = 1 << 16  # characters in one field
MAX_NAME = 4096  # characters in the name of an image: the longest path that Linux opens
MAX_PIXEL = 1e6  # largest coordinate of a landmark
_BATCH_ROWS = 1 << 13
_BATCH_CHARACTERS = 1 << 26
_MANY = 0.05  # smallest share of rows with one kind of rejected age that gives a warning
_UNFIT = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # control characters, and bytes that were not UTF-8
# Columns of the prepared data set. A column of the source with such a name gets the prefix 'source_'.
RESERVED = (
    "name",
    *parquet.RANGE,
    parquet.SPREAD,
    "source_row",
    "sha256",
    "width",
    "height",
    "box",
    "cut_by",
    "scale",
    "phash",
    "faces",
)
KNOWN = {"age": pa.float64(), "identity": pa.string(), "split": pa.string(), "landmarks": pa.list_(pa.float32())}
# First and last age of each image, equal where the age is exact. A table without a range has no such columns.
RANGE = dict.fromkeys(parquet.RANGE, pa.float64())


class Picture(NamedTuple):
    """A photograph.

    Attributes:
      encoded: The bytes of the image file.
      landmarks: The five landmarks as x, y, x, y ... in pixels, where the reader knows them.
    """

    encoded: bytes
    landmarks: list[float] | None = None


@dataclasses.dataclass(frozen=True)
class Source:
    """A table of images, and access to the images.

    Attributes:
      table: Columns name, age, identity, split, landmarks (null where unknown), if an age is a range also those of
        RANGE, and every further column as text.
      read: Maps one row (a dict) to its picture; raises `images.BadImage`. It can be sent to another process.
      rejected: (name, reason) of each row that was refused before any image was read.
      recipe: The values besides the table that the images depend on.
    """

    table: pa.Table
    read: Callable[[dict], Picture]
    rejected: Rejected
    recipe: dict


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of a reader.

    Attributes:
      images: Folder of the images.
      size: Side of drawn faces in pixels.
      quality: JPEG quality of drawn faces.
      seed: Seed of drawn faces.
    """

    images: str | None = None
    size: int = 256
    quality: int = 95
    seed: int = 0


def parse_landmarks(text: str) -> list[float]:
    """Reads ten numbers separated by spaces: x and y of the five landmarks in pixels.

    Raises:
      BadImage: The text is not ten numbers of at most MAX_PIXEL.
    """
    try:
        numbers = [float(word) for word in text.split()]
    except ValueError:
        numbers = []
    if len(numbers) != 10 or not all(abs(number) <= MAX_PIXEL for number in numbers):
        raise BadImage(f"landmarks {text[:40]!r} are not ten numbers (x y of five points)")
    return numbers


class Rows:
    """Collects the rows of a source in Arrow columns, batch by batch, so that no row stays a Python object.

    Args:
      further: Names of the text columns besides name and `KNOWN`.

    Attributes:
      rejected: (name, reason) of each refused row.

    Raises:
      InputError: A name in `further` occurs twice or is reserved, or there are more than MAX_COLUMNS.
    """

    def __init__(self, further: Sequence[str] = ()):
        taken = [*KNOWN, *further]
        for name in further:
            if taken.count(name) > 1 or name in RESERVED:
                raise InputError(f"the source has more than one column for {quoted(name)}: rename one")
        if len(further) > MAX_COLUMNS:
            raise InputError(f"the source has {len(further)} further columns; at most {MAX_COLUMNS} are allowed")
        fields = [("name", pa.string()), *KNOWN.items(), *RANGE.items(), *((name, pa.string()) for name in further)]
        self._schema = pa.schema(fields)
        self._batches: list[pa.RecordBatch] = []
        self._pending: list[tuple] = []
        self._characters = 0
        self.rejected = Rejected()
        self._bad_ages: collections.Counter[str] = collections.Counter()
        self._damaged: collections.Counter[str] = collections.Counter()  # ranges that a spreadsheet made dates of
        self._any_range = False

    def add(
        self,
        name: str,
        age: float | age_text.AgeRange | None = None,
        identity: str | None = None,
        split: str | None = None,
        landmarks: list[float] | None = None,
        further: Sequence[str | None] = (),
    ) -> None:
        """Adds one row; unknown text may be ''.

        Raises:
          BadImage: The name is empty, too long or contains control characters, or a field is too long.
        """
        if not name:
            raise BadImage("no image path")
        if len(name) > MAX_NAME:
            raise BadImage(f"path has more than {MAX_NAME:,} characters")
        if _UNFIT.search(name):
            raise BadImage("path contains a control character or bytes that are not UTF-8")
        for text in (identity, split, *further):
            if text and len(text) > MAX_FIELD:
                raise BadImage(f"a field has more than {MAX_FIELD:,} characters")
            self._characters += len(text or "")
        low, high = age, age
        if isinstance(age, age_text.AgeRange):
            low, high, read_as = age
            age = low if low == high else None
            self._any_range |= low < high
            if read_as:
                self._damaged[read_as] += 1
        self._pending.append(
            (name, age, identity or None, split or None, landmarks, low, high, *(text or None for text in further))
        )
        if len(self._pending) == _BATCH_ROWS or self._characters > _BATCH_CHARACTERS:
            self._flush()

    def reject(self, name: str, reason: BadImage | str) -> None:
        """Adds a refused row and its reason."""
        self.rejected.append((shown(name, 300), shown(str(reason))))
        if isinstance(reason, age_text.BadAge) and reason.kind:
            self._bad_ages[reason.kind] += 1

    def _flush(self) -> None:
        columns = zip(*self._pending, strict=True)
        arrays = [pa.array(values, field.type) for values, field in zip(columns, self._schema, strict=True)]
        self._batches.append(pa.record_batch(arrays, schema=self._schema))
        self._pending, self._characters = [], 0

    def source(self, read: Callable[[dict], Picture], recipe: dict) -> Source:
        """Returns the source of these rows, in which each person and each split has one name."""
        if self._pending:
            self._flush()
        table = pa.Table.from_batches(self._batches, self._schema)
        for column, one in (("identity", _one_person), ("split", _one_split)):
            table = table.set_column(table.column_names.index(column), self._schema.field(column), one(table[column]))
        if not self._any_range:
            table = table.drop_columns([*RANGE])
        if self._damaged:
            told = ", ".join(f"{read_as} ({rows:,})" for read_as, rows in self._damaged.most_common(8))
            logger.warning(
                "age: %s a date that a spreadsheet made of a range, such as 03-Sep of 3-9. Read as %s",
                counted(self._damaged.total(), "row has", "rows have"),
                told,
            )
        count = table.num_rows + len(self.rejected)
        for kind, rows in self._bad_ages.items():
            if rows >= _MANY * count:
                logger.warning("age: %d of %d rows were rejected because their age looks like %s", rows, count, kind)
        return Source(table, read, self.rejected, recipe)


def _quoted(texts: Sequence[str]) -> str:
    """Returns a few texts for a message."""
    return ", ".join(quoted(text, 60) for text in texts[:4]) + ", ..." * (len(texts) > 4)


def _one_person(names: pa.ChunkedArray) -> pa.ChunkedArray:
    """Returns the names with one spelling for each person, and tells what was changed."""
    found = people.spelled(names)
    if found.several:
        logger.info(
            "identity: different spellings of a name count as one person (%d people; an example: %s)",
            found.several,
            _quoted(found.example),
        )
    if found.unknown:
        logger.info(
            "identity: %s means that the person is unknown (%d images)",
            _quoted(found.unknown),
            found.names.null_count - names.null_count,
        )
    return found.names


def _one_split(names: pa.ChunkedArray) -> pa.ChunkedArray:
    """Returns the names of splits with one name for each split, and tells what was changed."""
    values = pc.unique(names).drop_null()
    new = split_names.one_name(values.to_pylist())
    if changed := [name for name in new if new[name] != name]:
        logger.info("split: %s", "; ".join(f"{quoted(name, 60)} is {quoted(new[name], 60)}" for name in changed[:8]))
    return pa.array(new.values(), pa.string()).take(pc.index_in(names, values)) if changed else names


@dataclasses.dataclass(frozen=True)
class FileReader:
    """Reads image files below `root`."""

    root: str

    def __call__(self, row: dict) -> Picture:
        """Reads the file `name` of a row, as `read_inside` does."""
        return Picture(read_inside(self.root, row["name"]))


# The root is the same for every image, and following its links costs as much as reading an image.
_real = functools.lru_cache(maxsize=8)(os.path.realpath)


def read_inside(root: str, name: str, most: int | None = None) -> bytes:
    r"""Reads a regular file whose path, with all links followed, stays inside `root`.

    A path as another system writes it (`sub\0.png`, another Unicode form of the letters) is found too.

    Args:
      root: The folder.
      name: Path of the file below it.
      most: Read only its first bytes, whatever its size.

    Raises:
      BadImage: The path leads out of `root`, or the file does not exist, is not regular, is larger than MAX_FILE_BYTES
        or cannot be read.
    """
    if "\0" in name:
        raise BadImage("path contains a zero byte")
    try:
        os.fsencode(name)
    except UnicodeEncodeError as error:
        raise BadImage("path contains half of a surrogate pair, which no file name has") from error
    top = _real(os.path.abspath(root))
    try:
        descriptor = _open(root, top, name)
    except FileNotFoundError as error:
        try:
            descriptor = _open(root, top, foreign_paths.as_on_disk(top, name))
        except FileNotFoundError:
            raise BadImage(f"file not found{foreign_paths.hint(top, name)}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise BadImage("not a regular file")
        if most is None and status.st_size > MAX_FILE_BYTES:
            raise BadImage(f"file larger than {MAX_FILE_BYTES:,} bytes: save it as JPEG")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(status.st_size if most is None else most)
    except OSError as error:
        raise BadImage(_told(error)) from error
    finally:
        os.close(descriptor)


def _open(root: str, top: str, name: str) -> int:
    """Opens a file inside `top`, the real path of `root`; raises BadImage or FileNotFoundError."""
    path = os.path.realpath(os.path.join(top, name))
    if not os.path.join(path, "").startswith(os.path.join(top, "")):
        raise BadImage(f"path leads out of the image folder {root} (set another with --images)")
    try:
        # O_NONBLOCK: opening a pipe would wait for a writer.
        return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise BadImage(_told(error)) from error


def _told(error: OSError) -> str:
    return f"cannot be read ({error.strerror})"


def refuse_images(options: Options, reader: str) -> None:
    """Checks that `--images` is not set, for a reader that finds its images itself.

    Raises:
      InputError: It is set.
    """
    if options.images is not None:
        raise InputError(f"--images {options.images}: --reader {reader} finds its images itself; omit --images")


def folder_of(sources: Sequence[str], options: Options, reader: str, what: str) -> str:
    """Returns the one --source of a reader that reads a folder.

    Raises:
      InputError: `sources` is not one folder, or `options.images` is set.
    """
    refuse_images(options, reader)
    if len(sources) != 1 or not os.path.isdir(sources[0]):
        raise InputError(f"--reader {reader} needs one --source FOLDER that holds {what}")
    return sources[0]
