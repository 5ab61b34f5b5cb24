"""Reads safetensors files (https://huggingface.co/docs/safetensors) with numpy alone.

A file is 8 bytes (the length of the header), the header (JSON: name -> dtype, shape, place) and the tensors' bytes. The
header is checked in full, so that what it claims is what the file holds, before anything of its size is allocated.
"""

import contextlib
import json
import math
from collections.abc import Iterator

import ml_dtypes
import numpy as np
from etils import epath

from lae_jax.models.pretrained.tensors import Tensor
from lae_jax.runtime.errors import InputError

HEADER_LIMIT = 16 << 20  # bytes; EfficientNetV2-L's has 0.2 million
DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


@contextlib.contextmanager
def opened(path: epath.Path) -> Iterator[dict[str, Tensor]]:
    """name -> Tensor of a file, which can be read until the context ends. Raises InputError where it is damaged."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        entries, start = _header(file, size, path)

        def reader(dtype, shape, place):
            def read() -> np.ndarray:
                file.seek(start + place)
                data = file.read(math.prod(shape) * dtype.itemsize)
                return np.frombuffer(data, dtype).reshape(shape)

            return read

        yield {
            name: Tensor(shape, dtype.name, reader(dtype, shape, place))
            for name, (dtype, shape, place) in entries.items()
        }


def _header(file, size: int, path) -> tuple[dict[str, tuple[np.dtype, tuple[int, ...], int]], int]:
    """name -> (dtype, shape, place among the tensors' bytes), in the order of the places; where those bytes begin."""
    if size < 8:
        raise InputError(f"{path} is no safetensors file: it has {size} bytes; get it again")
    length = int.from_bytes(file.read(8), "little")
    if length > min(HEADER_LIMIT, size - 8):
        raise InputError(
            f"{path} is truncated or no safetensors file: it claims a header of {length} bytes and has {size} in all"
            f" (a header may have {HEADER_LIMIT}); get it again"
        )
    try:
        header = json.loads(file.read(length), object_pairs_hook=_without_doubles)
        if not isinstance(header, dict):
            raise ValueError("it is no mapping")
        header.pop("__metadata__", None)
        entries = {name: _entry(name, value) for name, value in header.items()}
        entries = dict(sorted(entries.items(), key=lambda item: item[1][2:]))
        end = 0
        for name, (_, _, begin, stop) in entries.items():
            if begin != end:
                raise ValueError(f"{name} begins at {begin}, and the one before ends at {end}")
            end = stop
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged or no safetensors file: in its header, {error}; get it again") from error
    there = size - 8 - length
    if end != there:
        what = "is truncated" if end > there else "is damaged"
        raise InputError(f"{path} {what}: its header tells of {end} bytes of tensors, it has {there}; get it again")
    return {name: (dtype, shape, begin) for name, (dtype, shape, begin, _) in entries.items()}, 8 + length


def _entry(name: str, value) -> tuple[np.dtype, tuple[int, ...], int, int]:
    """(dtype, shape, begin, end). Raises ValueError where these do not agree."""
    try:
        dtype, shape, (begin, end) = np.dtype(DTYPES[value["dtype"]]), tuple(value["shape"]), value["data_offsets"]
        numbers = (*shape, begin, end)
        right = all(type(n) is int and n >= 0 for n in numbers) and len(shape) <= 8
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f"the entry of {name[:80]!r} is not one of {', '.join(DTYPES)} with a shape and place"
        ) from None
    if not right or end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"shape and place of {name[:80]!r} do not agree")
    return dtype, shape, begin, end


def _without_doubles(pairs: list) -> dict:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name occurs twice")
    return result
