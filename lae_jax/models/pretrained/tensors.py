"""Compares the tensors of a file with those of a model, then reads them: none is read before all are compared."""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from lae_jax.runtime.errors import InputError

FLOATS = ("float16", "bfloat16", "float32", "float64")
_LISTED = 12  # names in one line of an error


class Tensor(NamedTuple):
    """A tensor in a file: the file's description of it, and a function that reads it."""

    shape: tuple[int, ...]
    dtype: str  # numpy's name, or the file's where numpy has no such dtype
    read: Callable[[], np.ndarray]


class Expected(NamedTuple):
    """A tensor of a model, as a file should hold it."""

    path: tuple[str, ...]  # in the model's variables: ('params', 'stem_conv', 'kernel')
    shape: tuple[int, ...]  # in the file
    axes: tuple[int, ...]  # axes of the file's array without its `extra`, in the model's order
    extra: int = 0  # leading axes of length 1 that the model does not have


def listed(names: Iterable[str]) -> str:
    """The first 12 names as text, and the number of further names."""
    names = list(names)
    rest = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")


def misfit(tensors: Mapping[str, Tensor], wanted: Mapping[str, Expected]) -> str:
    """How the tensors of a file differ from the expected ones, by name, shape and dtype; '' if they fit."""
    missing = [name for name in wanted if name not in tensors]
    extra = [name for name in tensors if name not in wanted]
    shapes, dtypes = [], []
    for name, want in wanted.items():
        if (have := tensors.get(name)) is None:
            continue
        if tuple(have.shape) != want.shape:
            shapes.append(f"{name} {list(have.shape)} instead of {list(want.shape)}")
        elif have.dtype not in FLOATS:
            dtypes.append(f"{name} {have.dtype}")
    found = [
        ("missing", missing),
        ("unexpected", extra),
        ("of another shape", shapes),
        ("not floating point", dtypes),
    ]
    return "; ".join(f"{len(names)} {what}: {listed(names)}" for what, names in found if names)


def take(tensors: Mapping[str, Tensor], wanted: Mapping[str, Expected], where: str) -> dict:
    """Reads tensors that fit (`misfit` is '').

    Args:
      tensors: Tensors of the file by name.
      wanted: Tensors of the model by their names in the file.
      where: The file's name in messages.

    Returns:
      {'params': ..., 'batch_stats': ...}, float32, nested like the model's variables.

    Raises:
      InputError: Some values are NaN or infinite, or some variances negative; names all tensors that hold them.
    """
    result: dict = {"params": {}, "batch_stats": {}}
    wrong = []
    for name, want in wanted.items():
        # Values beyond float32 become infinite, and are reported as infinite.
        with np.errstate(over="ignore"):
            array = tensors[name].read().reshape(want.shape[want.extra :]).transpose(want.axes)
            array = np.ascontiguousarray(array, np.float32)
        # The sum of magnitudes in float64 is finite if the array is, and needs no mask of the array's size.
        if not np.isfinite(np.add.reduce(np.abs(array), axis=None, dtype=np.float64)):
            wrong.append(f"{name} (NaN or infinite)")
        elif want.path[-1] == "var" and array.min() < 0:
            wrong.append(f"{name} (a negative variance)")
        *parents, leaf = want.path
        node = result
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = array
    if wrong:
        raise InputError(f"{where} holds values that no trained model has: {listed(wrong)}; get the file again")
    return result
