"""The arrays of checkpoints of strangers: what they unpack to, before they are read, and whether they are numbers."""

import math
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from lae_jax.runtime import checksums
from lae_jax.runtime.errors import InputError
from lae_jax.runtime.foreign.ocdbt import PACKED, SMALL


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


def target(leaf: Any) -> np.ndarray | jax.ShapeDtypeStruct:
    """Returns what orbax restores an array as: a NumPy array, or what a `jax.ShapeDtypeStruct` says."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf
    return np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)


def without_classes(tree: Any) -> Any:
    """Returns nested mappings without the class weights of stage 1."""
    if not isinstance(tree, Mapping):
        return tree
    return {key: without_classes(part) for key, part in tree.items() if key != "class_weights"}


def require_finite(path: os.PathLike | str, arrays: Mapping) -> None:
    """Checks that the arrays of a model are finite numbers. NaN gives scores and ages that look like any others.

    Raises:
      InputError: One is not; the message names the first such array.
    """
    for place, leaf in jax.tree_util.tree_flatten_with_path(arrays)[0]:
        shards = leaf.addressable_shards if isinstance(leaf, jax.Array) else ()
        if not all(np.isfinite(part).all() for part in [shard.data for shard in shards] or [leaf]):
            name = jax.tree_util.keystr(place, simple=True, separator="/")
            raise InputError(
                f"{path}: {name} has values that are not finite: restore the checkpoint, or name another step or run"
            )


def shapes(tree: Any) -> dict[str, tuple]:
    """Returns {path of a leaf: its shape}."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}


def compare(saved: dict[str, tuple], wanted: dict[str, tuple], where: str) -> None:
    """Compares the shapes of a checkpoint with those of a model.

    Args:
      saved: `shapes` of the checkpoint.
      wanted: `shapes` of the model.
      where: Path of the checkpoint, for the message.

    Raises:
      InputError: Shapes differ; the message names the first such leaf.
    """
    for name in sorted({*saved, *wanted}):
        if saved.get(name) != wanted.get(name):
            raise InputError(
                f"{where} does not fit this run: {name} is {saved.get(name, 'missing')} in the checkpoint and"
                f" {wanted.get(name, 'missing')} in the model of the config"
            )
