"""Leaves of a tree whose rows lie on all devices, an equal number on each, while other leaves are copied to each.

A leaf is named by the last key of its path: that of the parameters, and its momentum.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

AXIS = "batch"
# Every number of devices that divides this number divides the rows too, so that they all restore one checkpoint.
MULTIPLE = 1024


def padded(count: int) -> int:
    """Returns the number of rows that hold `count`: a multiple of MULTIPLE."""
    return -(-count // MULTIPLE) * MULTIPLE


def is_split(path: tuple, names: tuple[str, ...]) -> bool:
    """Whether the leaf at this path of JAX has its rows on all devices."""
    return bool(names) and getattr(path[-1], "key", None) in names


def specs(tree: Any, names: tuple[str, ...]) -> Any:
    """Returns how each leaf lies on the devices, as a tree of PartitionSpecs."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: PartitionSpec(AXIS) if is_split(path, names) else PartitionSpec(), tree
    )


def apply(function: Callable, names: tuple[str, ...], tree: Any, *others: Any) -> Any:
    """Returns the tree with `function` of the split leaves; all other leaves are those of the last tree."""

    def one(path: tuple, *leaves: Any) -> Any:
        return function(*leaves) if is_split(path, names) else leaves[-1]

    return jax.tree_util.tree_map_with_path(one, tree, *others)


def mean(gradients: Any, names: tuple[str, ...]) -> Any:
    """Returns the mean of the gradients of all devices.

    Args:
      gradients: Of the mean loss of each device's images. The gradient of a split leaf has the images of all devices
        in it already.
      names: Names of the split leaves.
    """
    if not names:
        return jax.lax.pmean(gradients, AXIS)
    devices = jax.lax.axis_size(AXIS)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf / devices if is_split(path, names) else jax.lax.pmean(leaf, AXIS), gradients
    )


def norm(tree: Any, names: tuple[str, ...]) -> jax.Array:
    """Returns the global norm of a tree; the squares of split leaves are summed over the devices."""
    if not names:
        return optax.tree.norm(tree)
    paths = jax.tree_util.tree_leaves_with_path(tree)
    own, whole = ([leaf for path, leaf in paths if is_split(path, names) is split] for split in (True, False))
    squares = optax.tree.norm(whole, squared=True)
    return jnp.sqrt(squares + jax.lax.psum(optax.tree.norm(own, squared=True), AXIS) if own else squares)
