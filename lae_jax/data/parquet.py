"""The pages of a Parquet file, by their headers: how many values stand in them, before Arrow makes room for those.

The metadata at the end of a file may say something else, and a page of a few bytes can stand for a billion values. A
header is a structure in Thrift's compact protocol
(https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift).
"""

import dataclasses
import os
from collections.abc import Iterator

import pyarrow.parquet as pq

# Encodings that `prepare` writes: PLAIN, PLAIN_DICTIONARY, RLE, RLE_DICTIONARY. Others make long texts of nothing.
ENCODINGS = frozenset({0, 2, 3, 8})
_LONGEST = 1 << 16  # bytes of a header; it holds the smallest and the largest value of its page
_DEEPEST = 8


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
