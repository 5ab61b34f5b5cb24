"""Tensors of safetensors files (https://huggingface.co/docs/safetensors)."""

import contextlib
import functools
import os
import shutil
import tempfile
from collections.abc import Iterator

from etils import epath
from safetensors import SafetensorError, safe_open

from lae_jax.models.pretrained.tensors import Tensor
from lae_jax.runtime import files
from lae_jax.runtime.errors import InputError
from lae_jax.runtime.model_file import HEADER_LIMIT

# The library's names of dtypes -> numpy's. Other dtypes keep the library's name and fit no model.
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32"}
DTYPES |= {"I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool"}


@contextlib.contextmanager
def opened(path: epath.Path) -> Iterator[dict[str, Tensor]]:
    """Opens a file, whose tensors can be read until the context ends.

    Yields:
      The tensors by name.

    Raises:
      InputError: The file is damaged, truncated, or of another format.
    """
    with contextlib.ExitStack() as stack:
        try:
            with path.open("rb") as head:
                length = int.from_bytes(head.read(8), "little")
            if length > HEADER_LIMIT:
                raise InputError(
                    f"{path} is damaged or not a safetensors file (a header of {length:,} bytes; more than"
                    f" {HEADER_LIMIT:,} are not read): get it again"
                )
            file = stack.enter_context(safe_open(os.fspath(_local(path, stack)), framework="numpy"))
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path} is damaged or not a safetensors file ({error}): get it again") from error
        tensors = {}
        for name in file.keys():
            entry = file.get_slice(name)
            dtype = DTYPES.get(entry.get_dtype(), entry.get_dtype())
            tensors[name] = Tensor(tuple(entry.get_shape()), dtype, functools.partial(file.get_tensor, name))
        yield tensors


def _local(path: epath.Path, stack: contextlib.ExitStack) -> epath.Path:
    """The file on a local disk, because the library maps it into memory."""
    if not files.is_remote(path):
        return path
    folder = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
    copy = epath.Path(folder) / path.name
    with path.open("rb") as source, copy.open("wb") as target:
        shutil.copyfileobj(source, target)
    return copy
