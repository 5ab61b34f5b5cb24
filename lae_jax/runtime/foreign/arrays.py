"""The arrays of checkpoints of strangers: what they unpack to, before they are read, and whether they are numbers.

A checkpoint is a tree of OCDBT (https://google.github.io/tensorstore/kvstore/ocdbt/index.html). Each of its nodes, the
indexes, begins with 4 bytes of its kind, its length (8 bytes), a version and a compression. TensorStore unpacks a node
as a whole, whatever that takes. It finds a node by the place that another one names; here all that look like one count.
"""

import math
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from lae_jax.runtime import checksums, files
from lae_jax.runtime.errors import InputError

# A kilobyte of zstd can stand for a gigabyte of zeros. Weights hardly get smaller, momentum of 0 to nothing.
PACKED, SMALL = 16, 1 << 28  # most bytes of arrays, and of indexes, for each byte of files, and in all besides

# The kinds: B-tree node, manifest, version tree node. Then the length, the version 0 and the compression 1 (zstd).
_NODE = re.compile(rb"\x0c\xdb(?:\x20\xde|\x3a\x2a|\x12\x34)(.{8})\x00\x01", re.DOTALL)
_HEAD, _CHECKSUM = 14, 4
_CHUNK = 1 << 24
_FRAME = b"\x28\xb5\x2f\xfd"
_REPEATED, _COMPRESSED, _BLOCK = 1, 2, 1 << 17  # kinds of blocks, and the most bytes that a compressed one unpacks to


def require_small_indexes(path: epath.Path) -> None:
    """Checks the indexes of a checkpoint before they are read.

    Raises:
      InputError: They unpack to many times as many bytes as there are.
    """
    stored = checksums.size(path)
    most, total, packed = PACKED * stored + SMALL, 0, 0
    for content in (node for file in _files(path) for node in _nodes(file)):
        packed += len(content)
        total += _length(content)
        if max(total, packed) > most:
            raise InputError(f"{path} is damaged (over {most:,} bytes of indexes in {stored:,} of files): restore it")


def require_small(path: epath.Path, tree: Any) -> None:
    """Checks the arrays of a checkpoint by their metadata, before they are read.

    Raises:
      InputError: They unpack to many times as many bytes as there are.
    """
    arrays, stored = sum(map(_bytes, jax.tree.leaves(tree))), checksums.size(path)
    if arrays > PACKED * stored + SMALL:
        raise InputError(f"{path} is damaged ({arrays:,} bytes of arrays in {stored:,} of files): restore it")


def _bytes(leaf: Any) -> int:
    """Bytes that an array takes while it is read: a chunk may be larger than the array that it is of."""
    chunk = (leaf.storage and leaf.storage.chunk_shape) or leaf.shape
    return math.prod(map(max, leaf.shape, chunk)) * np.dtype(leaf.dtype).itemsize


def require_finite(path: os.PathLike | str, arrays: Mapping) -> None:
    """Checks that the arrays of a model are finite numbers. NaN gives scores and ages that look like any others.

    Raises:
      InputError: One is not; the message names the first such array.
    """
    for place, leaf in jax.tree_util.tree_flatten_with_path(arrays)[0]:
        if not np.isfinite(leaf).all():
            name = jax.tree_util.keystr(place, simple=True, separator="/")
            raise InputError(
                f"{path}: {name} has values that are not finite: restore the checkpoint, or name another step or run"
            )


def _files(folder: epath.Path) -> Iterator[epath.Path]:
    for one in folder.iterdir():
        if one.is_dir():
            yield from _files(one)
        else:
            yield one


def _nodes(path: epath.Path) -> Iterator[bytes]:
    """Yields the compressed content of each node."""
    with files.open_regular(path) as file:
        place, rest = 0, b""
        while chunk := file.read(_CHUNK):
            data, end = rest + chunk, place + len(chunk)
            for found in _NODE.finditer(data):
                file.seek(place - len(rest) + found.end())
                yield file.read(max(0, int.from_bytes(found[1], "little") - _HEAD - _CHECKSUM))
            file.seek(end)
            place, rest = end, data[1 - _HEAD :]


def _length(content: bytes) -> int:
    """Returns the most bytes that zstd frames unpack to, by the headers of their blocks (RFC 8878).

    What is not a frame counts up to where it is damaged, as TensorStore unpacks it.
    """
    total = place = 0
    while content[place : place + 4] == _FRAME and place + 5 < len(content):
        descriptor = content[place + 4]
        single = descriptor >> 5 & 1
        place += 6 - single + (0, 1, 2, 4)[descriptor & 3]
        width = (single, 2, 4, 8)[descriptor >> 6]
        stated = int.from_bytes(content[place : place + width], "little") + (256 if width == 2 else 0)
        place, size, last = place + width, 0, False
        while not last and place + 3 <= len(content):
            header = int.from_bytes(content[place : place + 3], "little")
            last, kind, length = header & 1, header >> 1 & 3, header >> 3
            size += _BLOCK if kind == _COMPRESSED else length
            place += 3 + (1 if kind == _REPEATED else length)
        place += 4 * (descriptor >> 2 & 1)  # a checksum
        total += min(size, stated) if width else size
    return total
