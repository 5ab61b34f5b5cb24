"""Indexes of checkpoints of strangers: what TensorStore makes of them in memory, before it reads them.

A checkpoint is a tree of OCDBT (https://google.github.io/tensorstore/kvstore/ocdbt/index.html). Each of its nodes, the
indexes, begins with 4 bytes of its kind, its length (8 bytes), a version and a compression. TensorStore unpacks a node
as a whole, whatever that takes, and makes whole texts of its keys and file names, of which each states only how many
bytes it shares with the one before. It finds a node by the place that another one names; here all that look like one
count.
"""

import re
from collections.abc import Iterator

import numpy as np
from etils import epath

from lae_jax.runtime import checksums, files
from lae_jax.runtime.errors import InputError

PACKED, SMALL = 16, 1 << 28  # most bytes of arrays, and of indexes, for each byte of files, and in all besides

# The kind (B-tree node, manifest, version tree node), the length, the version 0, and the compression 0 (none) or 1
# (zstd). Another node may begin within these bytes.
_NODE = re.compile(rb"(?=(\x0c\xdb(?:\x20\xde|\x3a\x2a|\x12\x34))(.{8})\x00([\x00\x01]))", re.DOTALL)
_TREE, _MANIFEST = b"\x0c\xdb\x20\xde", b"\x0c\xdb\x3a\x2a"
_HEAD, _CHECKSUM = 14, 4
_CHUNK = 1 << 24
_TOGETHER = 1 << 20  # bytes that are unpacked, and numbers that are read, at once
_ENTRY = 64  # bytes of an entry besides its text


def require_small(path: epath.Path) -> None:
    """Checks the indexes of a checkpoint before they are read.

    Raises:
      InputError: They take many times as many bytes as there are. Or the checkpoint has a link: an index can name it,
        and TensorStore would read what it leads to.
    """
    stored = checksums.size(path)
    most, total, packed = PACKED * stored + SMALL, 0, 0
    for kind, content, is_packed in (node for file in _files(path) for node in _nodes(file)):
        packed += len(content)
        unpacked = _unpacked(content, most - total) if is_packed else content
        total += len(unpacked) + _spelled(kind, unpacked)
        if max(total, packed) > most:
            raise InputError(f"{path} is damaged (over {most:,} bytes of indexes in {stored:,} of files): restore it")


def _files(folder: epath.Path) -> Iterator[epath.Path]:
    for one in folder.iterdir():
        checksums.require_no_link(one)
        if one.is_dir():
            yield from _files(one)
        else:
            yield one


def _nodes(path: epath.Path) -> Iterator[tuple[bytes, bytes, bool]]:
    """Yields of each node its kind, its content, and whether that is compressed."""
    size = path.stat().length
    with files.open_regular(path) as file:
        place, rest = 0, b""
        while chunk := file.read(_CHUNK):
            data, end = rest + chunk, place + len(chunk)
            for found in _NODE.finditer(data):
                file.seek(place - len(rest) + found.start() + _HEAD)
                length = int.from_bytes(found[2], "little") - _HEAD - _CHECKSUM
                yield found[1], file.read(min(max(0, length), size)), found[3] == b"\x01"
            file.seek(end)
            place, rest = end, data[1 - _HEAD :]


def _unpacked(content: bytes, most: int) -> bytes:
    """Returns what zstd frames unpack to, up to where they are damaged, and little more than `most` bytes of it."""
    import pyarrow as pa  # it starts a thread, see `start.devices`

    stream, unpacked = pa.CompressedInputStream(pa.BufferReader(content), "zstd"), bytearray()
    try:
        while len(unpacked) <= most and (some := stream.read(_TOGETHER)):
            unpacked += some
    except OSError:
        pass
    return bytes(unpacked)


def _spelled(kind: bytes, content: bytes) -> float:
    """Returns the bytes that a node takes besides its own: its entries, and the names of files and keys as texts."""
    numbers = _Numbers(content)
    if kind == _MANIFEST:
        numbers.skip(16)  # an identifier
        numbers.sum(3)  # how the manifest is stored, and two bounds
        numbers.skip(1)
        numbers.skip(4 * (numbers.sum(1) > 0))  # the compression, and its level
    else:
        numbers.skip(1 if kind == _TREE else 2)
    files_of = numbers.texts(each=1)
    return files_of + numbers.texts(each=0) if kind == _TREE else files_of


class _Numbers:
    """The numbers at the begin of a node, of 7 bits a byte; nothing but 0 comes after the end."""

    def __init__(self, content: bytes):
        self._content, self._place = np.frombuffer(content, np.uint8), 0

    def skip(self, count: int) -> None:
        self._place += count

    def sum(self, count: int) -> float:
        """Reads numbers and returns their sum."""
        total = 0.0
        while count > 0 and self._place < len(self._content):
            some = self._content[self._place : self._place + _TOGETHER]
            ends = np.flatnonzero(some < 128)[:count]
            if not len(ends):  # no number is that long
                self._place = len(self._content)
                break
            some = some[: ends[-1] + 1]
            begins = np.append(0, ends[:-1] + 1)
            digit = np.arange(len(some)) - np.repeat(begins, ends - begins + 1)
            total += float(np.sum((some & 127) * 128.0 ** np.minimum(digit, 9)))
            self._place += len(some)
            count -= len(ends)
        return total

    def texts(self, each: int) -> float:
        """Reads the lengths of texts, and returns how many bytes they and their entries are in memory.

        Args:
          each: How many further numbers each text has before the bytes of all.
        """
        count = int(min(self.sum(1), len(self._content)))
        shared, own = self.sum(count - 1), self.sum(count)
        self.sum(each * count)
        self.skip(int(min(own, len(self._content))))
        return shared + own + _ENTRY * count
