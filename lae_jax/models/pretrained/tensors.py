"""Tensors of a file against those of a model: all are compared before any is read."""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from lae_jax.runtime.errors import InputError

FLOATS = ("float16", "bfloat16", "float32", "float64")
_LISTED = 12  # names in one line of an error


class Tensor(NamedTuple):
    """One of a file: what the file says of it, and how to read it."""

    shape: tuple[int, ...]
    dtype: str  # as numpy names it, or as the file does where numpy has no such dtype
    read: Callable[[], np.ndarray]


class Expected(NamedTuple):
    """One of a model, as a file should hold it."""

    path: tuple[str, ...]  # in the model's variables: ('params', 'stem_conv', 'kernel')
    shape: tuple[int, ...]  # in the file
    axes: tuple[int, ...]  # of the file's array, in the model's order


def listed(names: Iterable[str]) -> str:
    names = list(names)
    rest = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")


def misfit(tensors: Mapping[str, Tensor], wanted: Mapping[str, Expected]) -> str:
    """How the tensors of a file differ from those of a model, by name, shape and dtype; '' where they fit."""
    missing = [name for name in wanted if name not in tensors]
    extra = [name for name in tensors if name not in wanted]
    shapes, dtypes = [], []
    for name, want in wanted.items():
        if (have := tensors.get(name)) is None:
            continue
        if tuple(have.shape) != want.shape:
            shapes.append(f"{name} {list(have.shape)} and not {list(want.shape)}")
        elif have.dtype not in FLOATS:
            dtypes.append(f"{name} {have.dtype}")
    found = [
        ("missing", missing),
        ("not the model's", extra),
        ("of another shape", shapes),
        ("not of floating numbers", dtypes),
    ]
    return "; ".join(f"{len(names)} {what}: {listed(names)}" for what, names in found if names)


def take(tensors: Mapping[str, Tensor], wanted: Mapping[str, Expected], where: str) -> dict:
    """Reads what fits (`misfit` is ''): {'params': ..., 'batch_stats': ...}, float32, nested as the model has it.

    Raises:
      InputError: NaN or infinite values, or negative variances, with the names of all tensors that hold them.
    """
    result: dict = {"params": {}, "batch_stats": {}}
    wrong = []
    for name, want in wanted.items():
        # What is beyond float32 becomes infinite, and is reported as that.
        with np.errstate(over="ignore"):
            array = np.ascontiguousarray(tensors[name].read().transpose(want.axes), np.float32)
        # Of a finite array the sum of magnitudes in float64 is finite, and no mask of its size is made.
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
