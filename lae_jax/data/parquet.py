"""The columns of images in a Parquet file: measured before they are read, and checked.

The pages tell by their headers how many values stand in them, before Arrow makes room for those. The metadata at the
end of a file may say something else, and a page of a few bytes can stand for a billion values. A header is a structure
in Thrift's compact protocol (https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift).
"""

import dataclasses
import os
import pathlib
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lae_jax.runtime.errors import InputError

# Encodings that `prepare` writes: PLAIN, PLAIN_DICTIONARY, RLE, RLE_DICTIONARY. Others make long texts of nothing.
ENCODINGS = frozenset({0, 2, 3, 8})
_LONGEST = 1 << 16  # bytes of a header; it holds the smallest and the largest value of its page
_DEEPEST = 8
MAX_AGE = 100  # years; readers reject older ones
_BATCH = 1 << 14  # rows that are read together
ROW_BYTES, MORE_BYTES = 4096, 1 << 26  # most bytes of the columns for each row, and in all besides
MAX_LIST = 16  # values of a row of a column, on average; landmarks have 10

# Types of the columns that programs read; those of _OPTIONAL may be missing, and only those of _NULLABLE have no value
# in some rows.
_OWN = {
    "name": pa.string(),
    "age": pa.float64(),
    "identity": pa.string(),
    "sha256": pa.string(),
    "width": pa.int32(),
    "height": pa.int32(),
    "source_row": pa.int64(),
}
RANGE = ("age_low", "age_high")  # first and last age where a label is a range, equal where it is exact
# Standard deviation of each label in years, null where it is unknown. A column of texts with this name is one of the
# source, in a data set that was prepared before there were spreads.
SPREAD = "age_spread"
_OPTIONAL = {
    "phash": pa.binary(32),
    "scale": pa.float32(),
    "faces": pa.int32(),
    **dict.fromkeys(RANGE, pa.float64()),
}
_NULLABLE = ("age", "identity", "faces", *RANGE)
# Types of all columns that `prepare` writes.
_TYPES = [*_OWN.values(), *_OPTIONAL.values(), pa.list_(pa.float32())]


def read_columns(path: pathlib.Path, count: int, again: str) -> pa.Table:
    """Reads the columns of images and checks their types.

    Args:
      path: The file.
      count: Number of the images.
      again: What to do if it is damaged, for messages.

    Raises:
      InputError: The file is damaged, or a few of its bytes stand for many.
    """
    try:
        with pq.ParquetFile(path) as file:
            texts = [field.name for field in file.schema_arrow if pa.types.is_string(field.type)]
            # Other compressions than that of `prepare` can stand for thousands of times as many bytes.
            groups = [file.metadata.row_group(group) for group in range(file.num_row_groups)]
            parts = [group.column(place) for group in groups for place in range(group.num_columns)]
            if {part.compression for part in parts} - {"SNAPPY", "UNCOMPRESSED"}:
                raise ValueError("it has another compression than snappy")
            if file.metadata.num_rows != count:
                raise ValueError(f"{file.metadata.num_rows} rows, and the shards hold {count} images")
            schema = file.schema_arrow
            for field in schema:
                if field.type not in _TYPES:
                    raise ValueError(f"column {field.name} is {field.type}, which no column of prepare is")
            for part in parts:
                _require_few_values(path, part, count)
        with pq.ParquetFile(path, read_dictionary=texts) as file:  # a text that is repeated is held once
            held, left = [], ROW_BYTES * count + MORE_BYTES
            for batch in file.iter_batches(_BATCH):
                left -= sum(map(_bytes, batch.columns))
                if left < 0:
                    raise ValueError(f"more than {ROW_BYTES} bytes a row")
                held.append(batch.cast(schema))
        table = pa.Table.from_batches(held, schema)
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error}): {again}") from error
    if reason := _wrong(table):
        raise InputError(f"{path} is damaged ({reason}): {again}")
    return table


def _require_few_values(path: pathlib.Path, part: pq.ColumnChunkMetaData, count: int) -> None:
    """Checks the number of values in a part of a column, by its pages: a page of a few bytes can stand for a billion.

    Raises:
      ValueError: There are more than MAX_LIST for each of `count` rows.
    """
    values = 0
    for page in pages(path, part):
        values += page.values
        if page.values < 0 or values > MAX_LIST * count:
            raise ValueError(f"column {part.path_in_schema} has more than {MAX_LIST} values a row")
        if page.encoding not in ENCODINGS:
            raise ValueError(f"column {part.path_in_schema} has another encoding than those of prepare")


def _bytes(column: pa.Array) -> int:
    """Bytes of a column, with a text as often as it stands there."""
    if not pa.types.is_dictionary(column.type):
        return column.nbytes
    column.validate(full=True)
    return 4 * len(column) + (pc.sum(pc.binary_length(column.dictionary).take(column.indices)).as_py() or 0)


def _wrong(table: pa.Table) -> str:
    """Returns what is wrong with the columns; '' if nothing is."""
    kinds = {field.name: field.type for field in table.schema}
    if len(kinds) < table.num_columns:
        return "two columns of one name"
    for name, kind in {**_OWN, **_OPTIONAL}.items():
        if kinds.get(name, kind if name in _OPTIONAL else None) != kind:
            return f"column {name} is {kinds.get(name, 'missing')}, not {kind}"
        if name in kinds and name not in _NULLABLE and table[name].null_count:
            return f"column {name} has no value in {table[name].null_count} rows"
    ages = table["age"].to_numpy()
    # Comparisons with NaN, an unknown age, are false.
    if ((ages < 0) | (ages > MAX_AGE)).any():
        return f"an age is below 0 or above {MAX_AGE}"
    if kinds.get(SPREAD, pa.string()) not in (pa.float64(), pa.string()):
        return f"column {SPREAD} is {kinds[SPREAD]}, not {pa.float64()}"
    if kinds.get(SPREAD) == pa.float64():
        spreads = table[SPREAD].drop_null().to_numpy()
        if not ((spreads >= 0) & (spreads <= MAX_AGE)).all():
            return f"a spread of a label does not lie in 0 to {MAX_AGE}"
    if not (there := [name for name in RANGE if name in kinds]):
        return ""
    if len(there) < len(RANGE):
        return f"of the columns {' and '.join(RANGE)} one is missing"
    low, high = (table[name].to_numpy() for name in RANGE)
    if ((low < 0) | (high > MAX_AGE) | (low > high) | (np.isnan(low) != np.isnan(high))).any():
        return f"a range of ages does not lie in 0 to {MAX_AGE}"
    if not np.array_equal(np.where(low == high, low, np.nan), ages, equal_nan=True):
        return "columns age, age_low and age_high contradict each other"
    return ""


@dataclasses.dataclass(frozen=True)
class Page:
    """A page.

    Attributes:
      values: Number of its values, also of those in lists.
      encoding: Number of its encoding.
    """

    values: int
    encoding: int


def pages(path: os.PathLike | str, part: pq.ColumnChunkMetaData) -> Iterator[Page]:
    """Yields the pages of a column in a row group, except for dictionaries.

    Raises:
      ValueError: They are damaged.
    """
    place = part.dictionary_page_offset if part.has_dictionary_page else None
    place = part.data_page_offset if place is None else min(place, part.data_page_offset)
    end = place + part.total_compressed_size
    with open(path, "rb") as file:
        while place < end:
            file.seek(place)
            header = _Header(file.read(_LONGEST))
            fields = header.structure()
            # A data page has the fields 5 or 8, a dictionary 7.
            for number, encoding in ((5, 2), (8, 4)):
                if isinstance(one := fields.get(number), dict):
                    yield Page(one.get(1, 0), one.get(encoding, -1))
            size = fields.get(3)
            if not isinstance(size, int) or size < 0:
                raise ValueError("a page has no size")
            place += header.place + size


class _Header:
    """Reads a structure from bytes."""

    def __init__(self, content: bytes):
        self.content, self.place = content, 0

    def structure(self, depth: int = 0) -> dict:
        """Returns the fields by number: whole numbers and structures; others are left out."""
        fields, number = {}, 0
        while kind := self._byte():
            number = number + (kind >> 4) if kind >> 4 else self._whole()
            value = self._value(kind & 15, depth)
            if value is not None:
                fields[number] = value
        return fields

    def _value(self, kind: int, depth: int) -> int | dict | None:
        if kind in (1, 2):  # true, false
            return None
        if kind == 3:
            return self._byte()
        if kind in (4, 5, 6):
            return self._whole()
        if kind == 8:  # bytes
            length = self._varint()
            self.place += length
            return None
        if kind == 12 and depth < _DEEPEST:
            return self.structure(depth + 1)
        raise ValueError("a page has an unknown header")

    def _byte(self) -> int:
        if self.place >= len(self.content):
            raise ValueError("the header of a page has no end")
        self.place += 1
        return self.content[self.place - 1]

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 63:
                raise ValueError("a number of a page has no end")

    def _whole(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
