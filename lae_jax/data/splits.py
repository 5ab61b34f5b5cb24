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
ENOUGH = 5  # smallest number of people (or images) of an age group for which every split gets one
_MAX_SHARE = 1_000_000  # of a ratio: its products with ten million rows fit 64 bits
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


def parse_ratio(text: str) -> tuple[int, ...]:
    """Parses a ratio: '4:1' -> (4, 1), train and validation; '8:1:1' -> (8, 1, 1), train, validation and test.

    Raises:
        InputError: The text is not a ratio.
    """
    if not re.fullmatch(r"\d+:\d+(:\d+)?", text) or not all(int(part) for part in text.split(":")):
        raise InputError(
            f"--ratio {text!r} is not a ratio: write 4:1 (train:validation) or 8:1:1 (train:validation:test)"
        )
    ratio = tuple(int(part) for part in text.split(":"))
    if max(ratio) > _MAX_SHARE:
        raise InputError(f"--ratio {text}: its numbers may be at most {_MAX_SHARE:,}")
    return ratio


def parts(group: np.ndarray, ratio: tuple[int, ...], seed: int, kind: np.ndarray | None = None) -> np.ndarray:
    """Divides groups of rows among parts, stratified by the rarest kind of row in each group.

    The groups are taken in the order of their strata, rarest first, and shuffled within. Each stratum is cut so that
    the parts have the ratio's shares of all rows so far. A part that lacks a kind which `ENOUGH` groups have (with more
    parts: as many groups as parts) then gets the smallest group that can be spared, so a part is empty only if there
    are fewer groups than parts. All numbers are integers, so the result is the same on every machine.

    Args:
        group: (N,) numbers of the groups of rows that must stay together.
        ratio: Shares of the parts.
        seed: Seed of the shuffle.
        kind: (N,) kind of each row, from 0; -1: unknown. Default: all rows are alike.

    Returns:
        (N,) number of the part of each row.
    """
    code = np.unique(group, return_inverse=True)[1]
    kind = np.full(len(code), -1) if kind is None else kind
    rows, kinds, count = np.bincount(code), int(kind.max(initial=-1)) + 1, len(ratio)
    has = np.zeros((len(rows), kinds + 1), bool)
    has[:, kinds] = True  # one more kind, that of all rows: no part is empty
    has[code[kind >= 0], kind[kind >= 0]] = True
    holders = has.sum(axis=0)
    sought = holders >= np.append(np.full(kinds, max(ENOUGH, count)), count)
    order = [*np.argsort(holders[:kinds], kind="stable").tolist(), kinds]
    stratum, shuffled = has[:, order].argmax(axis=1), np.random.default_rng(seed).permutation(len(rows))
    side, held = np.full(len(rows), -1, np.int32), [0] * count
    for number, one in enumerate(order):
        here = shuffled[stratum[shuffled] == number]
        if len(here):
            middle = 2 * np.cumsum(rows[here]) - rows[here]  # twice the place of each group's middle row
            side[here] = np.searchsorted(_borders(ratio, held, int(rows[here].sum())), middle, side="right")
        if sought[one]:
            _complete(side, has, one, [k for k in order[: number + 1] if sought[k]], rows, count)
        known = side >= 0
        held = np.bincount(side[known], weights=rows[known], minlength=count).astype(np.int64).tolist()
    return side[code]


def _borders(ratio: tuple[int, ...], held: list[int], more: int) -> list[int]:
    """Twice the rows after which a stratum of `more` rows is cut, where the parts hold `held` rows already."""
    whole = sum(held) + more
    due = np.cumsum([max(0, share * whole - sum(ratio) * rows) for share, rows in zip(ratio, held, strict=True)])
    return [-(-2 * more * int(upto) // int(due[-1])) for upto in due[:-1]]


def _complete(side: np.ndarray, has: np.ndarray, kind: int, kept: list[int], rows: np.ndarray, count: int) -> None:
    """Moves a group with the kind to each part without one, in place; no part loses the last group of a kind in `kept`.

    The group is the smallest of the part that has most groups of the kind.
    """
    there = np.bincount(side[has[:, kind] & (side >= 0)], minlength=count)
    for part in np.flatnonzero(there == 0):
        some = np.flatnonzero(has[:, kind] & (side >= 0))
        spare = np.ones(len(some), bool)
        for other in kept:
            groups_of_kind = np.bincount(side[has[:, other] & (side >= 0)], minlength=count)
            spare &= ~has[some, other] | (groups_of_kind[side[some]] > 1)
        some = some[spare]
        if len(some):
            there = np.bincount(side[has[:, kind] & (side >= 0)], minlength=count)
            side[some[np.lexsort((rows[some], -there[side[some]]))[0]]] = part


def by_ratio(
    group: np.ndarray, ratio: tuple[int, ...], seed: int, kind: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Returns the splits of a ratio, `train`, `validation` and with three shares `test`; see `parts`."""
    side = parts(group, ratio, seed, kind)
    return {name: np.flatnonzero(side == i) for i, name in enumerate(NAMES[len(ratio)])}


def by_fold(
    group: np.ndarray, folds: int, seed: int, kind: np.ndarray | None = None, ratio: tuple[int, int] | None = None
) -> Mapping[str, np.ndarray]:
    """Returns the splits of a K-fold, `fold<k>-train` and `fold<k>-validation`; each row is validated on once.

    With a ratio, its second share of the rows is in no fold: they are the split `test`.
    """
    fold = np.full(len(group), -1, np.int32)
    inside = parts(group, ratio, seed, kind) == 0 if ratio else np.full(len(group), True)
    if inside.any():
        fold[inside] = parts(group[inside], (1,) * folds, seed, None if kind is None else kind[inside])
    return _Folds(fold, folds, ratio is not None)


class _Folds(Mapping):
    """Rows of each split of a K-fold, made on request: together they are K times as many as all rows."""

    def __init__(self, fold: np.ndarray, folds: int, test: bool):
        self._fold = fold
        self._sides = {f"fold{k}-{side}": (k, side) for k in range(folds) for side in NAMES[2]}
        self._sides |= {"test": (-1, "validation")} if test else {}

    def __getitem__(self, name: str) -> np.ndarray:
        k, side = self._sides[name]
        here = self._fold == k
        return np.flatnonzero(here if side == "validation" else (self._fold >= 0) & ~here)

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
