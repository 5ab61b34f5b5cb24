"""Readers of tables of images in CSV: any table (`csv`), MIVIA (`mivia`), APPA-REAL (`appa_real`)."""

import csv
import itertools
import logging
import math
import os
import pathlib
import re
from collections.abc import Callable, Iterator

from lae_jax.data import people
from lae_jax.data.sources.age_text import AgeRange, BadAge, looks_like, parse_age, parse_age_or_range
from lae_jax.data.sources.image_files import IMAGE_SUFFIXES
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
    parse_landmarks,
)
from lae_jax.faces.images import BadImage
from lae_jax.runtime.console import counted
from lae_jax.runtime.errors import InputError
from lae_jax.runtime.foreign import quoted, shown, spreadsheets
from lae_jax.runtime.layout import require_regular

logger = logging.getLogger("lae_jax")

PATH_NAMES = ("path", "file", "filename", "image", "name")  # the first of these in the header is the path
MAX_ROW = MAX_COLUMNS * MAX_FIELD  # characters, over all lines of a quoted field
_VGGFACE2 = re.compile(r"(?:.*/)?(n\d{6})/[^/]+")
_APPA_REAL_COLUMNS = ("file_name", "num_ratings", "apparent_age_avg", "apparent_age_std", "real_age")


class _Lines:
    """Lines of a file for csv.reader, which sets no limit to the length of a line or of a row of several lines."""

    def __init__(self, file, path: pathlib.Path):
        self._file, self._path, self._taken = file, path, 0

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self._file.readline(MAX_ROW)
        self._taken += len(line)
        if self._taken >= MAX_ROW:
            raise InputError(f"{self._path} has a line of more than {MAX_ROW:,} characters: use a CSV file")
        if not line:
            raise StopIteration
        return line

    def row_ended(self) -> None:
        """Starts the count of characters again, for the next row."""
        self._taken = 0


def csv_rows(path: pathlib.Path) -> Iterator[tuple[int, list[str]]]:
    """Reads a CSV in bounded memory, also one that this project wrote (`spreadsheets.Writer`).

    A warning tells if rows go over several lines, as a quoted note may.

    Yields:
      (line number, fields) of every row that is not empty.

    Raises:
      InputError: The file cannot be read, is not a CSV in UTF-8, has a line of more than MAX_ROW characters, or a quote
        that is closed in a later row.
    """
    ended, width, several, first = 0, 0, 0, ""
    require_regular(path, os.fspath(path))
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            lines = _Lines(file, path)
            rows = csv.reader(lines)
            for row in rows:
                lines.row_ended()
                begun, ended = ended + 1, rows.line_num
                width = width or len(row)
                if ended > begun:
                    _refuse_swallowed(path, begun, ended, row, width)
                    several, first = several + 1, first or f"lines {begun} to {ended}"
                if row:
                    yield ended, [spreadsheets.text(field) for field in row]
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a CSV in UTF-8: {error}. Save it as CSV in UTF-8") from error
    except csv.Error as error:
        raise InputError(
            f"{path} is not a CSV in UTF-8: {error}, in the row that begins in line {ended + 1}. Is a quote not closed"
            " there? Save it as CSV in UTF-8"
        ) from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    if several:
        logger.warning(
            "%s: %s over several lines, the first over %s: if this is not intended, a quote is not closed there",
            path,
            counted(several, "row goes", "rows go"),
            first,
        )


def _refuse_swallowed(path: pathlib.Path, begun: int, ended: int, row: list[str], width: int) -> None:
    """Raises InputError if a quoted field holds further rows.

    These are lines with as many fields as the first line, and with an image in the column in which the row has one.
    """
    for at, field in enumerate(row):
        first, *others = field.splitlines() or [""]
        if not others:
            continue
        own = [*row[:at], *first.split(",")]
        pieces = [*(line.split(",") for line in others[:-1]), [*others[-1].split(","), *row[at + 1 :]]]
        for piece in pieces if len(own) == width else ():
            if len(piece) == width and any(_is_image(a) and _is_image(b) for a, b in zip(own, piece, strict=True)):
                raise InputError(
                    f"{path}: a quote opens in line {begun} and closes only in line {ended}, so the rows between would"
                    f" be lost, such as {quoted(','.join(piece), 80)}: remove the quote, or double it within quotes"
                )


def _is_image(cell: str) -> bool:
    return cell.strip().lower().endswith(IMAGE_SUFFIXES)


def _table_rows(path: pathlib.Path) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """Returns (column names, rows below): names from the first line, or path and age where that is already a row."""
    rows = csv_rows(path)
    line, first = next(rows, (0, None))
    if first is None:
        raise InputError(f"{path} is empty: write one line for each image, with `path,age` and further columns")
    header = [cell.strip().lower() for cell in first]
    if not any(name in PATH_NAMES for name in header):
        if len(first) == 2 and _is_age(first[1]):
            return ["path", "age"], itertools.chain([(line, first)], rows)
        raise InputError(
            f"{path}: the first line {quoted(','.join(first), 80)} names no column {'|'.join(PATH_NAMES)}"
            " and is not `path,age` either: add a header"
            + separator(first[0])
            + (f"; the second field looks like {hint}" if len(first) == 2 and (hint := looks_like(first[1])) else "")
        )
    if len(header) > MAX_COLUMNS:
        raise InputError(f"{path}: {len(header)} columns; at most {MAX_COLUMNS} are allowed")
    path_column = next(name for name in PATH_NAMES if name in header)
    kept = ["path" if name == path_column else "source_" * (name in RESERVED) + name for name in header]
    for name, new in zip(header, kept, strict=True):
        if header.count(name) > 1 or kept.count(new) > 1:
            raise InputError(f"{path}: the first line names the column {quoted(name)} twice: rename one")
    if "age" not in kept and "identity" not in kept:
        raise InputError(f"{path}: no column `age` or `identity`; the first line has {shown(', '.join(header), 300)}")
    return kept, rows


def separator(cell: str) -> str:
    """Returns, as the end of a sentence, what separates the fields of a table that was read as one field; or ''."""
    found = next((name for mark, name in ((";", "semicolons"), ("\t", "tabs")) if mark in cell), "")
    return f", and separate the fields with commas, not {found}" if found else ""


def _is_age(text: str) -> bool:
    """Whether a text is a number, or a range of ages."""
    try:
        return isinstance(parse_age_or_range(text), AgeRange) or math.isfinite(float(text))
    except (ValueError, BadAge):
        return False


def _split_and_path(source: str) -> tuple[str | None, pathlib.Path]:
    """'validation=val.csv' -> ('validation', Path('val.csv')); a plain path has the split None."""
    split, separator, path = source.partition("=")
    if separator and "/" not in split and not os.path.exists(source):
        return split, pathlib.Path(path)
    return None, pathlib.Path(source)


def read_csv(sources: list[str], options: Options) -> Source:
    """Reads CSVs of `path,age` and any further columns (`identity`, `split`, ...), with or without a header.

    An age is a number of years or a range (`age_text.parse_age_or_range`).

    Args:
      sources: Paths, or `SPLIT=PATH`, which puts the rows of that file into that split.
      options: `images` is the folder that the image paths start from (default: the folder of the CSVs, which must then
        be the same for all).

    Raises:
      InputError: A CSV cannot be used, or the folder of the images is unknown.
    """
    return _read(sources, options, lambda name: None)


def read_mivia(sources: list[str], options: Options) -> Source:
    """Reads the MIVIA Age Dataset (Guess The Age): CSVs of `name,age` without a header, names below `options.images`.

    The images come from VGGFace2. Where a name still has the folder of that data set (`n000123/0001_01.jpg`), the
    folder is the identity; otherwise the identity is unknown.

    Raises:
      InputError: A CSV cannot be used, or the folder of the images is unknown.
    """
    return _read(sources, options, vggface2_identity)


def vggface2_identity(name: str) -> str | None:
    """Returns the identity in a name of VGGFace2: 'n000123/0001_01.jpg' -> 'n000123'; None for other names."""
    found = _VGGFACE2.fullmatch(name)
    return found[1] if found else None


def _age(text: str, identity: str) -> float | AgeRange | None:
    """Reads an age or a range of ages, which may be missing where the person is known."""
    missing = not text or text[0].isalpha() and not people.normalised(text)
    return None if missing and identity and people.normalised(identity) else parse_age_or_range(text)


def _read(sources: list[str], options: Options, identity_of: Callable[[str], str | None]) -> Source:
    parsed = [_split_and_path(source) for source in sources]
    for _, path in parsed:
        if path.is_dir():
            raise InputError(f"--source {path} is a folder: name its CSV, or use --reader folders")
        require_regular(path, f"--source {path}")
        if not path.is_file():
            raise InputError(f"--source {path}: no such file")
    folders = {str(path.parent) for _, path in parsed}
    if options.images is None and len(folders) > 1:
        raise InputError(f"the CSVs are in several folders ({', '.join(sorted(folders))}): add --images FOLDER")
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
                    raise BadImage(f"line {line} has {width + len(extra)} fields; the first line has {width}")
                row[width:] = [""]  # the value of every column that this file lacks
                identity = row[identity_at] or identity_of(name)
                age, landmarks = row[age_at], row[landmarks_at]
                rows.add(
                    name,
                    _age(age, row[identity_at]),
                    identity,
                    row[split_at] if split is None else split,
                    parse_landmarks(landmarks) if landmarks else None,
                    [row[at] for at in places],
                )
            except BadImage as reason:
                rows.reject(name or f"{path.name} line {line}", reason)
    if not count:
        raise InputError(f"{', '.join(sources)}: no line below the header; add one for each image")
    root = options.images or folders.pop()
    return rows.source(FileReader(root), {"images": os.path.realpath(root)})


def read_appa_real(sources: list[str], options: Options) -> Source:
    """Reads unpacked APPA-REAL: `gt_avg_{train,valid,test}.csv` beside the folders `train`, `valid`, `test`.

    The age is the real one; `apparent_age_avg`, `apparent_age_std` (years) and `num_ratings` are further columns. The
    images are the face crops of the data set, `<file>_face.jpg`: a photograph may show more people than the one rated.

    Raises:
      InputError: `sources` is not one folder that holds one of these files, a file lacks a column, or `options.images`
        is set.
    """
    top = folder_of(sources, options, "appa_real", "gt_avg_train.csv, gt_avg_valid.csv or gt_avg_test.csv")
    splits = {"train": "train", "valid": "validation", "test": "test"}
    tables = {name: pathlib.Path(top) / f"gt_avg_{name}.csv" for name in splits}
    if not any(path.is_file() for path in tables.values()):
        raise InputError(
            f"{top} holds none of {', '.join(path.name for path in tables.values())}: name the unpacked folder"
        )
    further = ("apparent_age_avg", "apparent_age_std", "num_ratings")
    rows = Rows(further)
    for folder, path in tables.items():
        if not path.is_file():
            continue
        body = csv_rows(path)
        header = [cell.strip() for cell in next(body, (0, []))[1]]
        if missing := [name for name in _APPA_REAL_COLUMNS if header.count(name) != 1]:
            raise InputError(
                f"{path}: the first line must have the column {missing[0]} once: use the file of APPA-REAL"
            )
        at = {name: header.index(name) for name in _APPA_REAL_COLUMNS}
        for line, row in body:
            name = f"{folder}/{row[at['file_name']].strip()}" if len(row) == len(header) else f"{path.name} line {line}"
            try:
                if len(row) != len(header):
                    raise BadImage(f"{len(row)} fields; the first line has {len(header)}")
                age = parse_age(row[at["real_age"]])
                rows.add(
                    f"{name}_face.jpg", age, split=splits[folder], further=[row[at[key]].strip() for key in further]
                )
            except BadImage as reason:
                rows.reject(name, reason)
    return rows.source(FileReader(top), {"images": os.path.realpath(top)})
