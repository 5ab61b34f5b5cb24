"""What every reader gives: a `Source`, its rows collected in bounded memory, and access to files that stays inside."""

import dataclasses
import functools
import math
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa

from lae_jax.data.rejected import Rejected
from lae_jax.faces.images import BadImage
from lae_jax.runtime.errors import InputError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".pgm", ".ppm")
MAX_FILE_BYTES = 64_000_000
MAX_COLUMNS = 64
MAX_FIELD = 1 << 16  # characters of one field
MAX_NAME = 4096  # characters of an image's name: the longest path that Linux opens
MAX_PIXEL = 1e6  # of a landmark
_BATCH_ROWS = 1 << 13
_BATCH_CHARACTERS = 1 << 26
_UNFIT = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # control characters, and bytes that were no UTF-8
# Columns that the prepared data set makes itself; a source's column of that name is kept with 'source_' before it.
RESERVED = ("name", "source_row", "sha256", "width", "height", "box", "cut_by", "scale", "phash", "faces")
KNOWN = {"age": pa.float64(), "identity": pa.string(), "split": pa.string(), "landmarks": pa.list_(pa.float32())}


class Picture(NamedTuple):
    """Encoded bytes of a photograph, and its five landmarks as x, y, x, y ... in pixels where the reader knows them."""

    encoded: bytes
    landmarks: list[float] | None = None


@dataclasses.dataclass(frozen=True)
class Source:
    """`table`: name, and age, identity, split, landmarks (null where unknown), and every further column as text.

    `read` maps one row (a dict) to its picture and can be sent to another process; it raises `images.BadImage`.
    `rejected`: (name, reason) of what was refused before any image was read. `recipe`: what the images depend on beside
    the table.
    """

    table: pa.Table
    read: Callable[[dict], Picture]
    rejected: Rejected
    recipe: dict


@dataclasses.dataclass(frozen=True)
class Options:
    """What a reader may need beside its sources: the folder of the images; and, for drawn faces, their side in pixels,
    JPEG quality and seed."""

    images: str | None = None
    size: int = 256
    quality: int = 95
    seed: int = 0


def shown(text: str, length: int = 300) -> str:
    """Foreign text as it can stand in a message or a CSV: on one line, in Unicode, cut."""
    text = text if len(text) <= length else text[:length] + "..."
    return _UNFIT.sub(lambda found: ascii(found[0])[1:-1], text)


def parse_age(text: str) -> float:
    """A finite number from 0 to 100, fractions kept. Raises BadImage with the reason."""
    try:
        if "_" in text:  # Python reads 1_0 as 10
            raise ValueError
        age = float(text)
    except ValueError:
        raise BadImage(f"age {text[:40]!r} is no number") from None
    if not math.isfinite(age) or not 0 <= age <= 100:
        raise BadImage(f"age {text[:40]!r} is outside 0 to 100")
    return age


def parse_landmarks(text: str) -> list[float]:
    """Ten numbers with spaces between: x and y of the five landmarks in pixels. Raises BadImage with the reason."""
    try:
        numbers = [float(word) for word in text.split()]
    except ValueError:
        numbers = []
    if len(numbers) != 10 or not all(abs(number) <= MAX_PIXEL for number in numbers):
        raise BadImage(f"landmarks {text[:40]!r} are not ten numbers (x y of five points)")
    return numbers


class Rows:
    """Collects a source's rows into Arrow columns, batch by batch, so that no row stays a Python object.

    `further`: names of the columns beside name and `KNOWN`, of text.
    """

    def __init__(self, further: Sequence[str] = ()):
        taken = [*KNOWN, *further]
        for name in further:
            if taken.count(name) > 1 or name in RESERVED:
                raise InputError(f"the source has more than one column for {shown(name)!r}: rename one")
        if len(further) > MAX_COLUMNS:
            raise InputError(f"the source has {len(further)} further columns: {MAX_COLUMNS} at most")
        fields = [("name", pa.string()), *KNOWN.items(), *((name, pa.string()) for name in further)]
        self._schema = pa.schema(fields)
        self._batches: list[pa.RecordBatch] = []
        self._pending: list[tuple] = []
        self._characters = 0
        self.rejected = Rejected()

    def add(
        self,
        name: str,
        age: float | None = None,
        identity: str | None = None,
        split: str | None = None,
        landmarks: list[float] | None = None,
        further: Sequence[str | None] = (),
    ) -> None:
        """One row; text may be '' where unknown. Raises BadImage where a field is not fit to be kept."""
        if not name:
            raise BadImage("no image path")
        if len(name) > MAX_NAME:
            raise BadImage(f"path of more than {MAX_NAME:,} characters")
        if _UNFIT.search(name):
            raise BadImage("path holds a control character, or bytes that are no UTF-8")
        for text in (identity, split, *further):
            if text and len(text) > MAX_FIELD:
                raise BadImage(f"a field of more than {MAX_FIELD:,} characters")
            self._characters += len(text or "")
        self._pending.append(
            (name, age, identity or None, split or None, landmarks, *(text or None for text in further))
        )
        if len(self._pending) == _BATCH_ROWS or self._characters > _BATCH_CHARACTERS:
            self._flush()

    def reject(self, name: str, reason: BadImage | str) -> None:
        self.rejected.append((shown(name), str(reason)))

    def _flush(self) -> None:
        columns = zip(*self._pending, strict=True)
        arrays = [pa.array(values, field.type) for values, field in zip(columns, self._schema, strict=True)]
        self._batches.append(pa.record_batch(arrays, schema=self._schema))
        self._pending, self._characters = [], 0

    def source(self, read: Callable[[dict], Picture], recipe: dict) -> Source:
        if self._pending:
            self._flush()
        return Source(pa.Table.from_batches(self._batches, self._schema), read, self.rejected, recipe)


@dataclasses.dataclass(frozen=True)
class FileReader:
    """Reads `root`/name: a regular file whose path, with all links followed, stays inside `root`."""

    root: str

    def __call__(self, row: dict) -> Picture:
        return Picture(read_inside(self.root, row["name"]))


# The user's own word, the same for every image: asking the disk again costs as much as reading one.
_real = functools.lru_cache(maxsize=8)(os.path.realpath)


def read_inside(root: str, name: str) -> bytes:
    """The bytes of a file under `root`. Raises BadImage with the reason."""
    if "\0" in name:
        raise BadImage("path holds a zero byte")
    top = _real(root)
    path = os.path.realpath(os.path.join(top, name))
    if not os.path.join(path, "").startswith(os.path.join(top, "")):
        raise BadImage(f"path leads out of the image folder {root} (--images names another)")
    try:
        # A pipe in the place of a file would be waited for; devices have no end.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise BadImage("file not found") from error
    except OSError as error:
        raise BadImage(_told(error)) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise BadImage("no regular file")
        if status.st_size > MAX_FILE_BYTES:
            raise BadImage(f"file larger than {MAX_FILE_BYTES:,} bytes")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(status.st_size)
    except OSError as error:
        raise BadImage(_told(error)) from error
    finally:
        os.close(descriptor)


def _told(error: OSError) -> str:
    return f"cannot be read ({error.strerror})"


def image_files(top: str) -> Iterator[tuple[str, str | None]]:
    """(name below `top`, None) of every image file at any depth, sorted by the parts of the path; or (name, reason).

    Links to folders are not followed, so nothing is read twice and no loop is walked; they come with a reason, as does
    a folder that cannot be read. Whether a linked file leads out is checked where it is read.
    """
    stack = [iter(_entries(top, ""))]
    while stack:
        for name, kind in stack[-1]:
            if kind == "folder":
                stack.append(iter(_entries(top, name)))
                break
            yield name, None if kind == "image" else kind
        else:
            stack.pop()


def _entries(top: str, folder: str) -> list[tuple[str, str]]:
    """(name below `top`, 'folder' | 'image' | reason) of what stands in a folder, sorted."""
    found = []
    try:
        with os.scandir(os.path.join(top, folder)) as entries:
            for entry in entries:
                name = f"{folder}/{entry.name}" if folder else entry.name
                if entry.is_dir(follow_symlinks=False):
                    found.append((name, "folder"))
                elif entry.is_symlink() and entry.is_dir():
                    found.append((name, "a link to a folder: links are not followed"))
                elif entry.name.lower().endswith(IMAGE_SUFFIXES):
                    found.append((name, "image"))
    except OSError as error:
        found.append((folder or top, f"folder {_told(error)}"))
    return sorted(found)


def refuse_images(options: Options, reader: str) -> None:
    """Raises InputError where `--images` is given to a reader that knows where its images are."""
    if options.images is not None:
        raise InputError(
            f"--images {options.images}: --reader {reader} knows where its images are; leave --images away"
        )


def folder_of(sources: Sequence[str], options: Options, reader: str, what: str) -> str:
    """The one --source of a reader that takes a folder. Raises InputError where it is none."""
    refuse_images(options, reader)
    if len(sources) != 1 or not os.path.isdir(sources[0]):
        raise InputError(f"--reader {reader} needs one --source FOLDER that holds {what}")
    return sources[0]
