"""Splits: named lists of rows. They read the columns and never the images."""

import re

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from lae_jax.errors import InputError

NAMES = {2: ("train", "validation"), 3: ("train", "validation", "test")}


def groups(*keys: np.ndarray) -> np.ndarray:
    """Rows that must stay together: those which share a value of any key, also through a third row.

    Args: arrays (N,) of one length; an empty string or None shares nothing. Returns: (N,) int group numbers.
    """
    n = len(keys[0])
    nodes, offset = [], n
    for key in keys:
        values = np.asarray(["" if v is None else str(v) for v in key])
        unique, code = np.unique(values, return_inverse=True)
        known = values != ""
        nodes.append(np.stack([np.flatnonzero(known), offset + code[known]]))
        offset += len(unique)
    edges = np.concatenate(nodes, axis=1)
    graph = coo_matrix((np.ones(edges.shape[1], np.int8), edges), shape=(offset, offset))
    return connected_components(graph, directed=False)[1][:n]


def _shuffled_groups(group: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """For each row the place of its group in a seeded order, and the rows of each place."""
    _, code = np.unique(group, return_inverse=True)
    place = np.random.default_rng(seed).permutation(code.max() + 1)[code]
    return place, np.bincount(place)


def parse_ratio(text: str) -> tuple[int, ...]:
    """'4:1' -> (4, 1): train and validation; '8:1:1' -> train, validation and test."""
    if not re.fullmatch(r"\d+:\d+(:\d+)?", text) or not all(int(part) for part in text.split(":")):
        raise InputError(
            f"--split {text!r} is no ratio such as 4:1 (train:validation) or 8:1:1 (train:validation:test)"
        )
    return tuple(int(part) for part in text.split(":"))


def by_ratio(group: np.ndarray, ratio: tuple[int, ...], seed: int) -> dict[str, np.ndarray]:
    """Cuts the groups, in a seeded random order, at the ratio's shares of the rows."""
    place, sizes = _shuffled_groups(group, seed)
    middle = (np.cumsum(sizes) - sizes / 2)[place] / len(group)
    borders = np.cumsum(ratio)[:-1] / sum(ratio)
    side = np.searchsorted(borders, middle, side="right")
    return {name: np.flatnonzero(side == i) for i, name in enumerate(NAMES[len(ratio)])}


def by_fold(group: np.ndarray, folds: int, seed: int) -> dict[str, np.ndarray]:
    """K-fold: `fold<k>-train` and `fold<k>-validation`; each row is validated on once."""
    place, sizes = _shuffled_groups(group, seed)
    middle = (np.cumsum(sizes) - sizes / 2)[place] / len(group)
    fold = np.minimum((middle * folds).astype(int), folds - 1)
    rows = {}
    for k in range(folds):
        rows[f"fold{k}-train"], rows[f"fold{k}-validation"] = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
    return rows


def by_column(split: np.ndarray, content: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The splits that the source names; a file that stands in several stays in one: test, then others, then train.

    Args: split (N,) names, '' for rows in none; content (N,) content hashes.
    Returns: the splits, and the rows that were left out of theirs.
    """
    split = np.asarray(["" if s is None else str(s) for s in split])
    names = [name for name in np.unique(split) if name]
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", name):
            raise InputError(f"split name {name!r}: only letters, digits, '_', '-' and '.' (at most 64)")
    taken = np.zeros(len(split), bool)
    # Of two evaluation splits the first in this order keeps a file that both hold.
    seen: set[str] = set()
    for name in sorted(names, key=lambda name: (name == "train", name != "test", name)):
        rows = np.flatnonzero(split == name)
        taken[rows] = np.isin(content[rows], list(seen))
        seen.update(content[rows].tolist())
    return {name: np.flatnonzero((split == name) & ~taken) for name in names}, np.flatnonzero(taken)
