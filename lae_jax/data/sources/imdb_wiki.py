"""Reader of IMDB-WIKI: photographs, and a Matlab file of names, dates of birth and years of the photographs."""

import datetime
import io
import math
import os
import pathlib
import struct
import warnings
import zlib
from collections.abc import Iterator

import numpy as np
import scipy.io

from lae_jax.data.sources.age_text import parse_age
from lae_jax.data.sources.interface import FileReader, Options, Rows, Source
from lae_jax.faces.images import BadImage
from lae_jax.runtime.errors import InputError

MAX_MAT_BYTES = 1 << 28  # of the file; imdb.mat has a tenth of it
MAX_VARIABLE_BYTES = 1 << 29  # of its variable `imdb` or `wiki`, decompressed
MAX_VARIABLES = 100  # searched for that variable
MAX_ARRAYS = 4_000_000  # in that variable; every cell is one, and IMDB has 1.4 million
MAX_DEPTH = 2  # struct, cell, text
_NUMBERS = ("dob", "photo_taken", "gender", "face_score", "second_face_score")
_NAMES = ("imdb", "wiki")
_DATENUM_OF_ORDINAL_0 = 366  # Matlab counts days from the year 0
# Matlab's level 5 format ("MAT-File Format", MathWorks): kinds of elements, and classes of arrays.
_INT8, _INT32, _UINT32, _MATRIX, _COMPRESSED = 1, 5, 6, 14, 15
_CELL, _STRUCT, _CHAR = 1, 2, 4
_WIDTH = {1: 1, 2: 1, 3: 2, 4: 2, 5: 4, 6: 4, 7: 4, 9: 8, 12: 8, 13: 8}  # bytes of a number
_TEXT = {1, 2, 3, 4, 16, 17, 18}
_WORDS = struct.Struct("<II")


class _Unfit(ValueError):
    pass


class _Walk:
    """Checks a variable before scipy reads it.

    scipy allocates arrays of the size that a file claims, and recurses as deep as a file is nested. So this class
    compares every length with the bytes that exist, and accepts only a struct of numbers, text and cells.
    """

    def __init__(self, data: bytes):
        self._data, self._arrays = data, 0

    def element(self, at: int, end: int) -> tuple[int, int, int, int]:
        """Returns (kind, start, length, start of the next element) of the element at `at`."""
        if end - at < 8:
            raise _Unfit("an element is cut off")
        kind, length = _WORDS.unpack_from(self._data, at)
        if kind >> 16:
            kind, length, start, following = kind & 0xFFFF, kind >> 16, at + 4, at + 8
            if length > 4:
                raise _Unfit("a short element is too long")
        else:
            start = at + 8
            following = start + -(-length // 8) * 8
        if following > end:
            raise _Unfit("an element is longer than its container")
        return kind, start, length, following

    def expect(self, at: int, end: int, kind: int, length: int | None = None) -> tuple[int, int, int]:
        """Returns (start, length, start of the next element); raises _Unfit for another kind or length."""
        found, start, given, following = self.element(at, end)
        if found != kind or length not in (None, given):
            raise _Unfit("an element has another kind than expected")
        return start, given, following

    def array(self, at: int, end: int, depth: int = 0) -> None:
        """Checks the content of a matrix element from `at` to `end`; raises _Unfit."""
        self._arrays += 1
        if self._arrays > MAX_ARRAYS:
            raise _Unfit(f"more than {MAX_ARRAYS:,} arrays")
        if at == end and depth:
            return
        at, kind, count = self._head(at, end)
        if kind in (_CELL, _STRUCT):
            if depth == MAX_DEPTH:
                raise _Unfit("the nesting of cells or structs is too deep")
            if kind == _STRUCT:
                at, fields = self._fields(at, end)
                count *= fields
            if count > (end - at) // 8:
                raise _Unfit("an array claims more cells than it holds")
            for _ in range(count):
                start, length, at = self.expect(at, end, _MATRIX)
                self.array(start, start + length, depth + 1)
        else:
            element, _, length, at = self.element(at, end)
            if kind == _CHAR and (element not in _TEXT or count > length):
                raise _Unfit("a text claims more characters than it holds")
            if kind != _CHAR and (element not in _WIDTH or count * _WIDTH[element] != length):
                raise _Unfit("an array claims more or fewer numbers than it holds")
        if at != end:
            raise _Unfit("an array is longer than its content")

    def _head(self, at: int, end: int) -> tuple[int, int, int]:
        """Reads flags, dimensions and name; returns (place behind them, class, number of elements)."""
        start, _, at = self.expect(at, end, _UINT32, 8)
        flags = _WORDS.unpack_from(self._data, start)[0]
        kind = flags & 0xFF
        if flags & 0x0800 or not (kind in (_CELL, _STRUCT, _CHAR) or 6 <= kind <= 15):
            raise _Unfit("it holds an array that is neither numbers, text, cell nor struct")
        start, _, at = self.expect(at, end, _INT32, 8)
        rows, columns = struct.unpack_from("<ii", self._data, start)
        if rows < 0 or columns < 0:
            raise _Unfit("a dimension is negative")
        _, length, at = self.expect(at, end, _INT8)
        if length > 64:
            raise _Unfit("a name is too long")
        return at, kind, rows * columns

    def _fields(self, at: int, end: int) -> tuple[int, int]:
        """Reads the names of the fields; returns (place behind them, number of fields)."""
        start, _, at = self.expect(at, end, _INT32, 4)
        width = struct.unpack_from("<i", self._data, start)[0]
        start, length, at = self.expect(at, end, _INT8)
        if not 1 <= width <= 64 or length % width or not 1 <= length // width <= 64:
            raise _Unfit("the names of the fields are malformed")
        names = [self._data[i : i + width] for i in range(start, start + length, width)]
        if not all(0 in name and name.split(b"\0")[0].isascii() for name in names) or len({*names}) < len(names):
            raise _Unfit("the names of the fields are malformed")
        return at, length // width


def _variables(data: bytes) -> Iterator[tuple[str, int, bytes]]:
    """Yields (name, kind, stored bytes) of each variable; decompresses only the first bytes."""
    at = 128
    for _ in range(MAX_VARIABLES):
        if at == len(data):
            return
        if len(data) - at < 8:
            raise _Unfit("an element is cut off")
        kind, length = _WORDS.unpack_from(data, at)
        if kind not in (_MATRIX, _COMPRESSED) or length > len(data) - at - 8:
            raise _Unfit("an element is cut off or is not a variable")
        stored = data[at + 8 : at + 8 + length]
        at += 8 + length
        # The first bytes hold tag, flags, dimensions and name.
        first = (
            zlib.decompressobj().decompress(stored, 128)
            if kind == _COMPRESSED
            else data[at - length - 8 : at - length + 120]
        )
        walk = _Walk(first)
        _, _, place = walk.expect(8, len(first), _UINT32, 8)
        _, _, place = walk.expect(place, len(first), _INT32)
        start, size, _ = walk.expect(place, len(first), _INT8)
        yield first[start : start + size].decode("latin-1"), kind, stored


def _content(kind: int, stored: bytes) -> bytes:
    """Returns the decompressed content of the matrix element of a variable; raises _Unfit where it is too large."""
    if kind == _MATRIX:
        return stored
    stream = zlib.decompressobj()
    content = stream.decompress(stored, MAX_VARIABLE_BYTES)
    if not stream.eof:
        raise _Unfit(f"its variable is cut off or has more than {MAX_VARIABLE_BYTES:,} bytes")
    if _WORDS.unpack_from(content) != (_MATRIX, len(content) - 8):
        raise _Unfit("its variable is malformed")
    return content[8:]


def load_mat(path: pathlib.Path) -> np.void:
    """Reads the struct `imdb` or `wiki` of a Matlab file of level 5 (`save -v7` or `-v6`).

    Raises:
      InputError: The file cannot be read, is not of this form, or is too large.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_MAT_BYTES + 1 if os.fstat(file.fileno()).st_size > MAX_MAT_BYTES else -1)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > MAX_MAT_BYTES:
        raise InputError(f"{path} has more than {MAX_MAT_BYTES:,} bytes: use imdb.mat or wiki.mat as published")
    if data[124:128] == b"\x00\x02IM" or data.startswith(b"\x89HDF"):
        raise InputError(f"{path} is a file of Matlab v7.3 (HDF5), which is not supported: save it in Matlab with -v7")
    if data[124:128] != b"\x00\x01IM":
        raise InputError(
            f"{path} is not a Matlab file of level 5 (little-endian): use imdb.mat or wiki.mat as published"
        )
    try:
        for name, kind, stored in _variables(data):
            if name in _NAMES:
                content = _content(kind, stored)
                _Walk(content).array(0, len(content))
                return _load(name, content)
    except Exception as error:  # scipy and zlib raise many kinds of errors for hostile bytes
        raise InputError(f"{path} is damaged or not from IMDB-WIKI: {error}") from error
    raise InputError(f"{path} holds no variable {' or '.join(_NAMES)}: use imdb.mat or wiki.mat as published")


def _load(name: str, content: bytes) -> np.void:
    """Reads checked bytes with scipy, behind a new header."""
    header = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM"
    buffer = io.BytesIO(header + _WORDS.pack(_MATRIX, len(content)) + content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        value = scipy.io.loadmat(buffer, variable_names=[name])[name]
    if value.shape != (1, 1) or value.dtype.names is None:
        raise _Unfit(f"`{name}` is not a struct")
    return value[0, 0]


def _numbers(record: np.void, field: str) -> np.ndarray:
    """Returns a field as float64 (N,); NaN means unknown."""
    values = record[field]
    if values.dtype.kind not in "fiu":
        raise InputError(f"the field {field} does not hold numbers")
    return values.ravel().astype(np.float64)


def _texts(record: np.void, field: str) -> list[str]:
    """Returns the texts in the cells of a field; '' where a cell holds none, [] where the field is missing."""
    if field not in record.dtype.names:
        return []
    return [
        str(cell.ravel()[0]) if isinstance(cell, np.ndarray) and cell.dtype.kind == "U" and cell.size == 1 else ""
        for cell in record[field].ravel()
    ]


def age_in(year: float, born: float) -> int:
    """Returns the age on 1 July of `year` as the authors of the data set compute it.

    Their formula is `[age, ~] = datevec(datenum(photo_taken, 7, 1) - dob)`: the number of days lived, read as a day
    number of Matlab, whose years begin with year 0 of 366 days. A birthday counts one or two days later than by the
    calendar.

    Args:
      year: Year of the photograph.
      born: Date of birth as a Matlab day number.

    Raises:
      BadImage: One of them is not a date.
    """
    try:
        datetime.date.fromordinal(int(born) - _DATENUM_OF_ORDINAL_0)  # raises where this is not a date
        taken = datetime.date(int(year), 7, 1).toordinal() + _DATENUM_OF_ORDINAL_0
        days = math.floor(taken - born)
        if days <= _DATENUM_OF_ORDINAL_0:
            return days // _DATENUM_OF_ORDINAL_0 if days < 0 else 0
        return datetime.date.fromordinal(days - _DATENUM_OF_ORDINAL_0).year
    except (ValueError, OverflowError):
        raise BadImage(f"date of birth {born} or year {year} is unknown") from None


def read_imdb_wiki(sources: list[str], options: Options) -> Source:
    """Reads IMDB-WIKI: `imdb.mat` or `wiki.mat`, with the images below `options.images` (default: the file's folder).

    The age is that in the middle of the year of the photograph, by the authors' formula (`age_in`); the identity is
    the name. Rows without a face (face_score -inf or NaN), with a second face, or with an age outside 0 to 100 are
    rejected.

    Raises:
      InputError: `sources` is not one file, or the file is not from IMDB-WIKI.
    """
    if len(sources) != 1 or not os.path.isfile(sources[0]):
        raise InputError("--reader imdb_wiki needs one --source FILE: imdb.mat or wiki.mat")
    path = pathlib.Path(sources[0])
    record = load_mat(path)
    if missing := {*_NUMBERS, "full_path"} - {*record.dtype.names}:
        raise InputError(f"{path} has no field {sorted(missing)[0]}: use imdb.mat or wiki.mat as published")
    try:
        born, taken, gender, score, second = (_numbers(record, field) for field in _NUMBERS)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    names, people = _texts(record, "full_path"), _texts(record, "name")
    people = people or [""] * len(names)
    if any(len(column) != len(names) for column in (born, taken, gender, score, second, people)):
        raise InputError(f"{path}: its fields do not have equal lengths")
    rows = Rows(["gender", "face_score", "photo_taken"])
    for i, name in enumerate(names):
        try:
            if not math.isfinite(score[i]):
                raise BadImage(f"no face was found (face_score {score[i]})")
            if not math.isnan(second[i]):
                raise BadImage(f"a second face was found (second_face_score {second[i]})")
            age = parse_age(str(age_in(taken[i], born[i])))
            word = {0.0: "female", 1.0: "male"}.get(gender[i])
            rows.add(name, age, people[i].strip(), further=[word, f"{score[i]:g}", f"{taken[i]:.0f}"])
        except BadImage as reason:
            rows.reject(name or f"{path.name} entry {i + 1}", reason)
    root = options.images or str(path.parent)
    return rows.source(FileReader(root), {"images": os.path.realpath(root)})
