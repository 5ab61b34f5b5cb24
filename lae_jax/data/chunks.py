"""Where the records of a shard are in its file, and how large each is, before ArrayRecord unpacks it.

A shard is a file of Riegeli (https://github.com/google/riegeli/blob/master/doc/riegeli_records_file_format.md): blocks
of 64 KiB, each with a header of 24 bytes, and in them chunks, each with a header of 40 bytes that has the size of what
it unpacks to; a reader unpacks no more. `prepare` writes a chunk for each image. The last chunk but the padding lists
them all, and the last block begins with a chunk that has the place of that list.
"""

import os

import numpy as np
import pyarrow as pa

_BLOCK, _BLOCK_HEADER, _HEADER = 1 << 16, 24, 40
_CODECS = {b"s": "snappy", b"z": "zstd", b"b": "brotli"}
_ENTRY = 64  # most bytes that the list has for an image
_MORE = 1 << 12  # and besides
MAX_RECORD_BYTES = 1 << 27  # of a record; an image of 8,192 x 8,192 pixels in JPEG has less


class Chunks:
    """The chunks of the images of a shard.

    Args:
      path: The shard.
      most: The largest number of images that it can have.

    Raises:
      ValueError: It is not a shard that `prepare` wrote.
    """

    def __init__(self, path: os.PathLike | str, most: int):
        # Not kept open: ArrayRecord keeps all shards open, and the number of open files is limited.
        self._path, size = path, os.stat(path).st_size
        if size % _BLOCK or size < 2 * _BLOCK:
            raise ValueError("its size is not that of whole blocks")
        # The place of the list is fixed in 8 bytes; it stands there three times.
        place = int(_numbers(self._records(size - _BLOCK, 3, _MORE)[0][1:].partition(b"\x10")[0])[0])
        most = min(most, size // _HEADER)
        entries = self._records(place, most + 1, _ENTRY * most + _MORE)[1:]
        self._places, _, counts = _fields(b"".join(entries), (1, 2, 3)).T
        if len(entries) != len(counts) or (counts != 1).any():
            raise ValueError("it has several images in a chunk")

    def __len__(self) -> int:
        return len(self._places)

    def require_small(self, number: int) -> None:
        """Checks the size of an image before it is unpacked.

        Raises:
          ValueError: It is larger than MAX_RECORD_BYTES.
        """
        self._header(int(self._places[number]), 1, MAX_RECORD_BYTES)

    def _header(self, place: int, most: int, limit: int) -> tuple[int, int]:
        """Returns the sizes of the content of a chunk, in the file and unpacked."""
        header = self._read(place, _HEADER)
        size, kind, unpacked = (int.from_bytes(header[at : at + 8], "little") for at in (8, 24, 32))
        if kind & 0xFF != ord("r") or kind >> 8 > most or max(size, unpacked) > limit:
            raise ValueError(f"at {place} it has {kind >> 8} records of {unpacked:,} bytes, more than {limit:,}")
        return size, unpacked

    def _records(self, place: int, most: int, limit: int) -> list[bytes]:
        """Returns the records of a chunk."""
        size, unpacked = self._header(place, most, limit)
        content = self._read(place, _HEADER + size)[_HEADER:]
        codec, rest = content[:1], content[1:]
        length, start = _number(rest)
        lengths = _numbers(_unpacked(rest[start : start + length], codec, 10 * most))
        values = _unpacked(rest[start + length :], codec, unpacked)
        ends = np.cumsum(lengths).tolist()
        if lengths.max(initial=0) > unpacked or not ends or ends[-1] != len(values):
            raise ValueError(f"the records at {place} are damaged")
        return [values[a:b] for a, b in zip([0, *ends], ends, strict=False)]

    def _read(self, place: int, count: int) -> bytes:
        """Returns bytes from a place on, without the headers of blocks."""
        parts = []
        with open(self._path, "rb", buffering=0) as file:
            while count:
                place += _BLOCK_HEADER if place % _BLOCK == 0 else 0
                part = os.pread(file.fileno(), min(count, _BLOCK - place % _BLOCK), place)
                if not part:
                    raise ValueError("its end is missing")
                parts.append(part)
                place, count = place + len(part), count - len(part)
        return b"".join(parts)


def _unpacked(content: bytes, codec: bytes, limit: int) -> bytes:
    if codec == b"\0":
        return content
    length, start = _number(content)
    if codec not in _CODECS or length > limit:
        raise ValueError("its list of images has another compression or a wrong length")
    return pa.decompress(content[start:], length, _CODECS[codec], asbytes=True) if length else b""


def _number(content: bytes) -> tuple[int, int]:
    """Returns the varint that bytes begin with, and its length."""
    end = next((place for place, byte in enumerate(content[:9], 1) if byte < 128), 0)
    if not end:
        raise ValueError("a number in it is damaged")
    return int(_numbers(content[:end])[0]), end


def _numbers(content: bytes) -> np.ndarray:
    """Returns the int64 of varints, of 63 bits at most, in order."""
    data = np.frombuffer(content, np.uint8)
    ends = np.flatnonzero(data < 128)
    starts = np.concatenate([[0], ends[:-1] + 1]).astype(np.int64)[: len(ends)]
    if (len(data) and not len(ends)) or (len(ends) and ends[-1] != len(data) - 1) or (ends - starts > 8).any():
        raise ValueError("a number in it is damaged")
    if not len(data):
        return np.zeros(0, np.int64)
    shifts = 7 * (np.arange(len(data)) - np.repeat(starts, ends - starts + 1))
    return np.add.reduceat((data & 127).astype(np.int64) << shifts, starts)


def _fields(content: bytes, names: tuple[int, ...]) -> np.ndarray:
    """Returns the values of messages that have the same fields, all of them varints: (messages, fields)."""
    numbers = _numbers(content)
    if len(numbers) % (2 * len(names)):
        raise ValueError("its list of images is damaged")
    numbers = numbers.reshape(-1, len(names), 2)
    if (numbers[:, :, 0] != [name << 3 for name in names]).any():
        raise ValueError("its list of images is damaged")
    return numbers[:, :, 1]
