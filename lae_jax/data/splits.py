"""Splits: named arrays of rows, made from the columns without the images."""

import re
from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from lae_jax.runtime.errors import InputError

NAMES = {2: ("train", "validation"), 3: ("train", "validation", "test")}
_PARTS = 16


def _column(values: np.ndarray | pa.ChunkedArray) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(values, pa.string())]) if isinstance(values, np.ndarray) else values


def codes(values: pa.ChunkedArray) -> tuple[np.ndarray, int]:
    """Returns the number of each text, (N,) int32, -1 where it is '' or null; and how many different texts there are.

    Values are numbered in 16 parts, by their last character, because Arrow holds three copies of what it numbers and
    ten million hashes are 0.7 GB.
    """
    last = pc.utf8_slice_codeunits(values, -1).dictionary_encode().combine_chunks().indices
    part = pc.fill_null(last, 0).to_numpy(zero_copy_only=False) % _PARTS
    part[~pc.fill_null(pc.not_equal(values, ""), False).to_numpy()] = -1
    code, count = np.full(len(values), -1, np.int32), 0
    for number in range(_PARTS):
        rows = part == number
        # A text column of Arrow holds at most 2 GiB, one of large texts holds more.
        some = values.filter(pa.array(rows)).cast(pa.large_string()).combine_chunks().dictionary_encode()
        code[rows] = some.indices.to_numpy() + np.int32(count)
        count += len(some.dictionary)
    return code, count


def groups(*keys: np.ndarray | pa.ChunkedArray) -> np.ndarray:
    """Groups rows that must stay together: those that share a value of any key, also through a third row.

    Args:
        *keys: Texts (N,) each. An empty string or None shares nothing.

    Returns:
        (N,) int group numbers, in the order of the groups' first rows.
    """
    n = len(keys[0])
    edges, nodes = [], n
    for key in keys:
        code, values = codes(_column(key))
        # Rows and values are the nodes of the graph. A value that only one row has connects nothing.
        shared = np.bincount(code[code >= 0], minlength=values) > 1
        rows = np.flatnonzero(code >= 0)
        rows = rows[shared[code[rows]]]
        edges.append(np.stack([rows, nodes + (np.cumsum(shared) - 1)[code[rows]]]))
        nodes += int(shared.sum())
    edges = np.concatenate(edges, axis=1)
    graph = coo_matrix((np.ones(edges.shape[1], np.int8), edges), shape=(nodes, nodes))
    return connected_components(graph, directed=False)[1][:n]


def _shuffled_groups(group: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """For each row the place of its group in a seeded order, and the number of rows at each place."""
    _, code = np.unique(group, return_inverse=True)
    place = np.random.default_rng(seed).permutation(code.max() + 1)[code]
    return place, np.bincount(place)


def parse_ratio(text: str) -> tuple[int, ...]:
    """Parses a ratio: '4:1' -> (4, 1), train and validation; '8:1:1' -> (8, 1, 1), train, validation and test.

    Raises:
        InputError: The text is not a ratio.
    """
    if not re.fullmatch(r"\d+:\d+(:\d+)?", text) or not all(int(part) for part in text.split(":")):
        raise InputError(
            f"--ratio {text!r} is not a ratio: write 4:1 (train:validation) or 8:1:1 (train:validation:test)"
        )
    return tuple(int(part) for part in text.split(":"))


def by_ratio(group: np.ndarray, ratio: tuple[int, ...], seed: int) -> dict[str, np.ndarray]:
    """Puts the groups into a seeded random order and cuts it at the ratio's shares of the rows."""
    place, sizes = _shuffled_groups(group, seed)
    middle = (np.cumsum(sizes) - sizes / 2)[place] / len(group)
    borders = np.cumsum(ratio)[:-1] / sum(ratio)
    side = np.searchsorted(borders, middle, side="right")
    return {name: np.flatnonzero(side == i) for i, name in enumerate(NAMES[len(ratio)])}


def by_fold(group: np.ndarray, folds: int, seed: int) -> Mapping[str, np.ndarray]:
    """Returns the splits of a K-fold, `fold<k>-train` and `fold<k>-validation`. Each row is validated on once."""
    place, sizes = _shuffled_groups(group, seed)
    middle = (np.cumsum(sizes) - sizes / 2)[place] / len(group)
    return _Folds(np.minimum((middle * folds).astype(int), folds - 1), folds)


class _Folds(Mapping):
    """Rows of each split of a K-fold, made on request: together they are K times as many as all rows."""

    def __init__(self, fold: np.ndarray, folds: int):
        self._fold = fold
        self._sides = {f"fold{k}-{side}": (k, side) for k in range(folds) for side in NAMES[2]}

    def __getitem__(self, name: str) -> np.ndarray:
        k, side = self._sides[name]
        return np.flatnonzero((self._fold == k) == (side == "validation"))

    def __iter__(self) -> Iterator[str]:
        return iter(self._sides)

    def __len__(self) -> int:
        return len(self._sides)


def by_column(
    split: np.ndarray | pa.ChunkedArray, content: np.ndarray | pa.ChunkedArray
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Returns the splits that the source names, with each file in one of them.

    A file in several splits stays in test, else in the first of the remaining splits by name, train last.

    Args:
        split: (N,) names (`split_names.one_name`), '' or None for rows without a split.
        content: (N,) content hashes.

    Returns:
        The rows of each split, and the rows that were removed from theirs, in order.
    """
    split = _column(split)
    names = sorted(name for name in pc.unique(split).drop_null().to_pylist() if name)
    own = pc.fill_null(pc.index_in(split, pa.array(names, pa.string())), -1).to_numpy()
    number = {name: place for place, name in enumerate(names)}
    content, known = codes(_column(content))
    taken = np.zeros(len(own), bool)
    seen = np.zeros(known + 1, bool)  # the last place is that of -1
    # The first split in this order keeps a file that several hold.
    for name in sorted(names, key=lambda name: (name == "train", name != "test", name)):
        rows = np.flatnonzero(own == number[name])
        taken[rows] = seen[content[rows]]
        seen[content[rows]] = True
    return {name: np.flatnonzero((own == number[name]) & ~taken) for name in names}, np.flatnonzero(taken)
