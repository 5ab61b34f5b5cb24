"""Raw sources. A reader turns what a user has into a `Source`: a table, one row an image, and how to get the bytes."""

import csv
import dataclasses
import itertools
import math
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pyarrow as pa
from PIL import Image

from lae_jax.data import images, synthetic
from lae_jax.errors import InputError

PATH_NAMES = ("path", "file", "filename", "image", "name")  # of several the first one is the path
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".pgm", ".ppm")
MAX_FILE_BYTES = 64_000_000
# Columns that the prepared data set makes itself; a source's column of that name is kept with 'source_' before it.
_RESERVED = ("name", "source_row", "sha256", "width", "height")
_KNOWN = {"age": pa.float64(), "identity": pa.string(), "split": pa.string(), "landmarks": pa.list_(pa.float32())}


@dataclasses.dataclass(frozen=True)
class Source:
    """`table`: name, and age, identity, split, landmarks (null where unknown), and every further column as text.

    `read` maps one row (a dict) to its picture and can be sent to another process; it raises `images.BadImage`.
    `rejected`: (name, reason) of what was refused before any image was read. `recipe`: what the images depend on beside
    the table.
    """

    table: pa.Table
    read: Callable[[dict], "Picture"]
    rejected: list[tuple[str, str]]
    recipe: dict


@dataclasses.dataclass(frozen=True)
class Options:
    """What a reader may need beside its sources: the folder of the images; and, for drawn faces, their side in pixels,
    JPEG quality and seed."""

    images: str | None = None
    size: int = 256
    quality: int = 95
    seed: int = 0


class Picture(NamedTuple):
    """Encoded bytes of a photograph, and its five landmarks as x, y, x, y ... in pixels where the reader knows them."""

    encoded: bytes
    landmarks: list[float] | None = None


@dataclasses.dataclass(frozen=True)
class _FileReader:
    root: str

    def __call__(self, row: dict) -> Picture:
        if "\0" in row["name"]:
            raise images.BadImage("path holds a zero byte")
        root = os.path.realpath(self.root)
        path = os.path.realpath(os.path.join(root, row["name"]))
        if os.path.commonpath([root, path]) != root:
            raise images.BadImage(f"path leads out of the image folder {self.root} (--images names another)")
        try:
            if os.path.getsize(path) > MAX_FILE_BYTES:
                raise images.BadImage(f"file larger than {MAX_FILE_BYTES:,} bytes")
            return Picture(pathlib.Path(path).read_bytes())
        except FileNotFoundError as error:
            raise images.BadImage("file not found") from error
        except OSError as error:
            raise images.BadImage(f"cannot be read ({error.strerror})") from error


def parse_age(text: str) -> float:
    """A finite number from 0 to 100, fractions kept. Raises BadImage with the reason."""
    try:
        age = float(text)
    except ValueError:
        raise images.BadImage(f"age {text[:40]!r} is no number") from None
    if not math.isfinite(age) or not 0 <= age <= 100:
        raise images.BadImage(f"age {text[:40]!r} is outside 0 to 100")
    return age


def parse_landmarks(text: str) -> list[float]:
    """Ten numbers with spaces between: x and y of the five landmarks in pixels. Raises BadImage with the reason."""
    try:
        numbers = [float(word) for word in text.split()]
    except ValueError:
        numbers = []
    if len(numbers) != 10 or not all(map(math.isfinite, numbers)):
        raise images.BadImage(f"landmarks {text[:40]!r} are not ten numbers (x y of five points)")
    return numbers


def _table(columns: dict[str, list]) -> pa.Table:
    """Columns in a fixed order and type, those of `_KNOWN` always there."""
    count = len(columns["name"])
    arrays = {"name": pa.array(columns["name"], pa.string())}
    for name, kind in _KNOWN.items():
        arrays[name] = pa.array(columns.get(name) or [None] * count, kind)
    for name, values in columns.items():
        if name not in arrays:
            arrays[name] = pa.array(values, pa.string())
    return pa.table(arrays)


def _csv_rows(path: pathlib.Path) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, {column: text}) of a CSV; without a header the columns are path and age."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(file)
            first = next(rows, None)
            if first is None:
                raise InputError(f"{path} is empty: one line an image is needed, `path,age` and further columns")
            names = [cell.strip().lower() for cell in first]
            if any(name in PATH_NAMES for name in names):
                header, body = names, rows
            elif len(first) == 2 and _is_number(first[1]):
                header, body = ["path", "age"], itertools.chain([first], rows)
            else:
                raise InputError(
                    f"{path}: the first line {','.join(first)[:80]!r} names no column {'|'.join(PATH_NAMES)},"
                    " and is no `path,age` without a header either"
                )
            for name in header:
                if header.count(name) > 1:
                    raise InputError(f"{path}: the column {name!r} stands twice in the first line")
            header = ["path" if name in PATH_NAMES and name == _path_column(header) else name for name in header]
            if "age" not in header and "identity" not in header:
                raise InputError(f"{path}: no column `age` (nor `identity`); it has {', '.join(header)}")
            for row in body:
                if row:
                    yield rows.line_num, dict(zip(header, row, strict=False))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is no CSV in UTF-8: {error}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _path_column(header: list[str]) -> str:
    return next(name for name in PATH_NAMES if name in header)


def _split_and_path(source: str) -> tuple[str | None, pathlib.Path]:
    """'validation=val.csv' -> ('validation', Path('val.csv')); a plain path belongs to no split."""
    split, separator, path = source.partition("=")
    if separator and "/" not in split and not os.path.exists(source):
        return split, pathlib.Path(path)
    return None, pathlib.Path(source)


def read_csv(sources: list[str], options: Options) -> Source:
    """CSVs of `path,age` and any further columns (`identity`, `split`, ...), with or without a header.

    A source is a path, or `split=path`, which puts its rows into that split. The image paths start from
    `options.images` (default: the folder of the CSVs, which must then be the same for all).
    """
    parsed = [_split_and_path(source) for source in sources]
    for _, path in parsed:
        if not path.is_file():
            raise InputError(f"--source {path}: no such file")
    folders = {str(path.parent) for _, path in parsed}
    if options.images is None and len(folders) > 1:
        raise InputError(f"the CSVs lie in several folders ({', '.join(sorted(folders))}): name --images FOLDER")
    records, rejected = [], []
    for split, path in parsed:
        for line, row in _csv_rows(path):
            name = (row.pop("path", None) or "").strip()
            try:
                if not name:
                    raise images.BadImage("no image path")
                record = {"source_" * (key in _RESERVED) + key: value.strip() for key, value in row.items()}
                record["name"] = name
                age = record.pop("age", "")
                if "landmarks" in record:
                    record["landmarks"] = parse_landmarks(record["landmarks"]) if record["landmarks"] else None
                if age or not record.get("identity"):
                    record["age"] = parse_age(age)
                if split is not None:
                    record["split"] = split
                records.append(record)
            except images.BadImage as reason:
                rejected.append((name or f"{path.name} line {line}", str(reason)))
    if not records and not rejected:
        raise InputError(f"{', '.join(sources)}: a header and no line below it")
    names = dict.fromkeys(key for record in records for key in record)
    columns = {
        key: [record.get(key) or None if key != "age" else record.get(key) for record in records]
        for key in dict.fromkeys(["name", *names])
    }
    root = options.images or folders.pop()
    return Source(_table(columns), _FileReader(root), rejected, {"images": os.path.realpath(root)})


def read_folders(sources: list[str], options: Options) -> Source:
    """A folder a person: `FOLDER/<identity>/*.jpg` (or .png, ...), any depth below the person; sorted by name."""
    if len(sources) != 1 or not os.path.isdir(sources[0]):
        raise InputError("--reader folders needs one --source FOLDER that holds a folder a person")
    top = pathlib.Path(sources[0])
    columns: dict[str, list] = {"name": [], "identity": []}
    for person in sorted(p for p in top.iterdir() if p.is_dir()):
        for file in sorted(person.rglob("*")):
            if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file():
                columns["name"].append(file.relative_to(top).as_posix())
                columns["identity"].append(person.name)
    if not columns["name"]:
        raise InputError(f"{top} holds no folder with images ({', '.join(IMAGE_SUFFIXES)})")
    return Source(_table(columns), _FileReader(str(top)), [], {"images": os.path.realpath(top)})


def read_synthetic(sources: list[str], options: Options) -> Source:
    """Drawn faces: each source is `split=number` (train, validation, test)."""
    counts = {"train": 0, "validation": 0, "test": 0}
    for source in sources:
        split, _, number = source.partition("=")
        if split not in counts or not number.isdigit():
            raise InputError(f"--source {source}: drawn faces take train=N, validation=N and test=N")
        counts[split] = int(number)
    faces = synthetic.plan(*counts.values(), seed=options.seed)
    columns = {
        "name": faces.name.tolist(),
        "age": faces.age.tolist(),
        "identity": [f"{number:05d}" for number in faces.identity],
        "split": faces.split.tolist(),
    }
    recipe = {"seed": options.seed, "drawing": synthetic.VERSION}
    return Source(_table(columns), _Drawer(options), [], recipe)


@dataclasses.dataclass(frozen=True)
class _Drawer:
    options: Options

    def __call__(self, row: dict) -> Picture:
        options, index = self.options, int(pathlib.PurePosixPath(row["name"]).stem)
        image, landmarks = synthetic.draw_face(int(row["identity"]), row["age"], options.seed, options.size, index)
        return Picture(images.encode(Image.fromarray(image), options.quality), landmarks.ravel().tolist())


READERS = {"csv": read_csv, "folders": read_folders, "synthetic": read_synthetic}
