"""Tables of images as CSV: any (`csv`), MIVIA's (`mivia`), APPA-REAL's (`appa_real`)."""

import csv
import itertools
import math
import os
import pathlib
import re
from collections.abc import Callable, Iterator

from lae_jax.data.sources.interface import (
    KNOWN,
    MAX_COLUMNS,
    MAX_FIELD,
    RESERVED,
    FileReader,
    Options,
    Rows,
    Source,
    folder_of,
    parse_age,
    parse_landmarks,
    shown,
)
from lae_jax.faces.images import BadImage
from lae_jax.runtime.errors import InputError

PATH_NAMES = ("path", "file", "filename", "image", "name")  # of several the first one is the path
MAX_ROW = MAX_COLUMNS * MAX_FIELD  # characters, over all lines that a quoted field may span
_VGGFACE2 = re.compile(r"(?:.*/)?(n\d{6})/[^/]+")
_APPA_REAL_COLUMNS = ("file_name", "num_ratings", "apparent_age_avg", "apparent_age_std", "real_age")


class _Lines:
    """Lines of a file for csv.reader, which alone would take a line of any length, and a row of any number of lines."""

    def __init__(self, file, path: pathlib.Path):
        self._file, self._path, self._taken = file, path, 0

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self._file.readline(MAX_ROW)
        self._taken += len(line)
        if self._taken >= MAX_ROW:
            raise InputError(f"{self._path} holds a line of more than {MAX_ROW:,} characters: is it a CSV?")
        if not line:
            raise StopIteration
        return line

    def row_ended(self) -> None:
        self._taken = 0


def csv_rows(path: pathlib.Path) -> Iterator[tuple[int, list[str]]]:
    """(line number, fields) of every line of a CSV that is not empty, in bounded memory. Raises InputError."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            lines = _Lines(file, path)
            rows = csv.reader(lines)
            for row in rows:
                lines.row_ended()
                if row:
                    yield rows.line_num, row
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is no CSV in UTF-8 (save it as such): {error}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def _table_rows(path: pathlib.Path) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """(column names, rows below): the names stand in the first line, or are path and age where it is `path,age`."""
    rows = csv_rows(path)
    line, first = next(rows, (0, None))
    if first is None:
        raise InputError(f"{path} is empty: one line an image is needed, `path,age` and further columns")
    header = [cell.strip().lower() for cell in first]
    if not any(name in PATH_NAMES for name in header):
        if len(first) == 2 and _is_number(first[1]):
            return ["path", "age"], itertools.chain([(line, first)], rows)
        raise InputError(
            f"{path}: the first line {shown(','.join(first), 80)!r} names no column {'|'.join(PATH_NAMES)},"
            " and is no `path,age` without a header either"
            + " (fields are separated by commas, not semicolons)"
            * (";" in first[0])
        )
    if len(header) > MAX_COLUMNS:
        raise InputError(f"{path}: {len(header)} columns; {MAX_COLUMNS} at most")
    path_column = next(name for name in PATH_NAMES if name in header)
    kept = ["path" if name == path_column else "source_" * (name in RESERVED) + name for name in header]
    for name, new in zip(header, kept, strict=True):
        if header.count(name) > 1 or kept.count(new) > 1:
            raise InputError(f"{path}: the column {shown(name)!r} stands twice in the first line")
    if "age" not in kept and "identity" not in kept:
        raise InputError(f"{path}: no column `age` (nor `identity`); it has {shown(', '.join(header))}")
    return kept, rows


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


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
    return _read(sources, options, lambda name: None)


def read_mivia(sources: list[str], options: Options) -> Source:
    """The MIVIA Age Dataset (Guess The Age): CSVs of `name,age` without a header, names below `options.images`.

    The images come from VGGFace2: where a name still has that set's folder, as `n000123/0001_01.jpg`, it is the
    identity; otherwise nobody knows who it is.
    """
    return _read(sources, options, vggface2_identity)


def vggface2_identity(name: str) -> str | None:
    """'n000123/0001_01.jpg' -> 'n000123'."""
    found = _VGGFACE2.fullmatch(name)
    return found[1] if found else None


def _read(sources: list[str], options: Options, identity_of: Callable[[str], str | None]) -> Source:
    parsed = [_split_and_path(source) for source in sources]
    for _, path in parsed:
        if path.is_dir():
            raise InputError(f"--source {path} is a folder: name its CSV, or take --reader folders")
        if not path.is_file():
            raise InputError(f"--source {path}: no such file")
    folders = {str(path.parent) for _, path in parsed}
    if options.images is None and len(folders) > 1:
        raise InputError(f"the CSVs lie in several folders ({', '.join(sorted(folders))}): name --images FOLDER")
    headers = [_table_rows(path)[0] for _, path in parsed]
    further = [name for name in dict.fromkeys(itertools.chain(*headers)) if name != "path" and name not in KNOWN]
    rows = Rows(further)
    count = 0
    for split, path in parsed:
        header, body = _table_rows(path)
        place = {name: at for at, name in enumerate(header)}
        width, blank, places = len(header), len(header), [place.get(name, len(header)) for name in further]
        path_at = place["path"]
        age_at, identity_at, split_at, landmarks_at = (place.get(name, blank) for name in KNOWN)
        for line, row in body:
            count += 1
            row = [field.strip() for field in row]
            extra, row = row[width:], row + [""] * (width - len(row))
            name = row[path_at]
            try:
                if any(extra):
                    raise BadImage(f"line {line} has {width + len(extra)} fields, the first line {width}")
                row[width:] = [""]  # stands for every column that this file lacks
                identity = row[identity_at] or identity_of(name)
                age, landmarks = row[age_at], row[landmarks_at]
                rows.add(
                    name,
                    parse_age(age) if age or not row[identity_at] else None,
                    identity,
                    row[split_at] if split is None else split,
                    parse_landmarks(landmarks) if landmarks else None,
                    [row[at] for at in places],
                )
            except BadImage as reason:
                rows.reject(name or f"{path.name} line {line}", reason)
    if not count:
        raise InputError(f"{', '.join(sources)}: a header and no line below it")
    root = options.images or folders.pop()
    return rows.source(FileReader(root), {"images": os.path.realpath(root)})


def read_appa_real(sources: list[str], options: Options) -> Source:
    """APPA-REAL as it is unpacked: `gt_avg_{train,valid,test}.csv` beside the folders `train`, `valid`, `test`.

    The age is the real one; `apparent_age_avg`, `apparent_age_std` (years) and `num_ratings` are further columns. The
    images are the set's own face crops, `<file>_face.jpg`: a photograph may show more people than the one rated.
    """
    top = folder_of(sources, options, "appa_real", "gt_avg_train.csv, gt_avg_valid.csv or gt_avg_test.csv")
    splits = {"train": "train", "valid": "validation", "test": "test"}
    tables = {name: pathlib.Path(top) / f"gt_avg_{name}.csv" for name in splits}
    if not any(path.is_file() for path in tables.values()):
        raise InputError(f"{top} holds none of {', '.join(path.name for path in tables.values())}")
    further = ("apparent_age_avg", "apparent_age_std", "num_ratings")
    rows = Rows(further)
    for folder, path in tables.items():
        if not path.is_file():
            continue
        body = csv_rows(path)
        header = [cell.strip() for cell in next(body, (0, []))[1]]
        if missing := [name for name in _APPA_REAL_COLUMNS if header.count(name) != 1]:
            raise InputError(f"{path}: the first line must have the column {missing[0]} (once); is it APPA-REAL's?")
        at = {name: header.index(name) for name in _APPA_REAL_COLUMNS}
        for line, row in body:
            name = f"{folder}/{row[at['file_name']].strip()}" if len(row) == len(header) else f"{path.name} line {line}"
            try:
                if len(row) != len(header):
                    raise BadImage(f"{len(row)} fields, where the first line has {len(header)}")
                age = parse_age(row[at["real_age"]])
                rows.add(
                    f"{name}_face.jpg", age, split=splits[folder], further=[row[at[key]].strip() for key in further]
                )
            except BadImage as reason:
                rows.reject(name, reason)
    return rows.source(FileReader(top), {"images": os.path.realpath(top)})
