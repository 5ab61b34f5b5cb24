"""Checks of an audit: pure functions over the columns and splits of prepared data sets.

A finding is a dict of JSON: kind, severity ('leak' | 'warning' | 'note'), splits (that it concerns, the one trained on
first), count, examples (lists of names, 1,000 at most), message. A finding between two data sets also has `other`: path
and hash of the other data set, whose split is then the first.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa

from lae_jax import metrics
from lae_jax.audit import implausible
from lae_jax.data import people
from lae_jax.faces import perceptual_hash

EXAMPLES = 1000
YEARS_APART = 2.0


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """The parts of a data set that an audit checks; arrays have its N rows."""

    path: str
    hash: str
    protocol: str  # 'image' | 'identity' | 'column'
    names: np.ndarray  # str
    ranges: np.ndarray  # (N, 2) float64, years: first and last age, equal where it is exact; NaN where unknown
    identities: np.ndarray  # str, None where unknown
    sha256: np.ndarray  # str, of the source file
    phash: np.ndarray | None  # (N, 32) uint8; None where the data set was prepared without
    sides: np.ndarray  # int, shorter side of the picture in pixels
    image_size: int  # side of the model's input in pixels
    faces: np.ndarray | None  # number found in the photograph, NaN where none was searched; None: prepared without
    all_faces: bool  # whether each face of a photograph is a separate image
    splits: Mapping[str, np.ndarray]  # name -> rows
    spreads: np.ndarray | None = None  # float64, standard deviation of the label in years, NaN where unknown; None: all


def _finding(kind: str, severity: str, count: int, message: str, splits=(), examples=()) -> dict:
    """Returns a finding, with examples as text and at most EXAMPLES of them."""
    listed = [[str(word) for word in example] for example in itertools.islice(examples, EXAMPLES)]
    return {
        "kind": kind,
        "severity": severity,
        "splits": list(splits),
        "count": int(count),
        "examples": listed,
        "message": message,
    }


def _role(split: str) -> tuple[str | None, str]:
    """'fold0-train' -> ('fold0', 'train'); every name that begins with 'train' has the role 'train'."""
    fold, name = re.fullmatch(r"(?:(fold\d+)-)?(.*)", split).groups()
    return fold, "train" if name.startswith("train") else name


def place(split: str) -> int:
    """Returns the place of a split in the order of splits: the one trained on first, the test split last."""
    return {"train": 0, "test": 2}.get(_role(split)[1], 1)


def disjoint(a: str, b: str) -> bool:
    """Whether two splits should share nothing: their roles differ, and they do not belong to two different folds."""
    (fold_a, role_a), (fold_b, role_b) = _role(a), _role(b)
    return role_a != role_b and (fold_a == fold_b or None in (fold_a, fold_b))


def audit(tables: Sequence[Table]) -> list[list[dict]]:
    """Returns the findings of each data set, including those between it and other data sets.

    Time and memory grow with the number of rows, not with the number of pairs of rows.
    """
    pool = _Pool(tables)
    result = []
    for number, table in enumerate(tables):
        findings = [*_across(pool, number), *_ages_apart(pool, number), *_many_near(pool), *_of_one(table)]
        order = ("leak", "warning", "note")
        result.append(sorted(findings, key=lambda finding: order.index(finding["severity"])))
    return result


class _Pool:
    """The rows of all data sets in one sequence, with equal codes for equal files, pictures and people."""

    def __init__(self, tables: Sequence[Table]):
        self.tables = tables
        self.starts = np.cumsum([0, *(len(table.names) for table in tables)])
        self.names = np.concatenate([table.names for table in tables])
        self.ranges = np.concatenate([table.ranges for table in tables])
        file = pa.array(np.concatenate([table.sha256 for table in tables]), pa.string()).dictionary_encode()
        self.file = file.indices.to_numpy().astype(np.int64)
        none = [
            np.zeros((len(table.names), perceptual_hash.BYTES), np.uint8) for table in tables if table.phash is None
        ]
        hashes = [none.pop(0) if table.phash is None else table.phash for table in tables]
        self.picture, self.near, self.near_count = perceptual_hash.search(np.concatenate(hashes))
        # How a number of near pictures begins.
        self.at_least = "at least " if self.near_count > len(self.near) else ""
        # A label denotes another person in another data set.
        self.person = people.codes(np.concatenate([_global_names(t, len(tables) > 1) for t in tables]))[0]

    def sides(self, number: int) -> Iterator[tuple[int, str, int, str]]:
        """Yields (data set, split, data set, split) that should share nothing; the second data set is `number`.

        Within one data set the split that is trained on comes first. Between two data sets both orders occur.
        """
        for one, table in enumerate(self.tables):
            for a, b in itertools.product(table.splits, self.tables[number].splits):
                if not disjoint(a, b):
                    continue
                if one == number and (place(a), a) > (place(b), b):
                    continue
                yield one, a, number, b

    def rows(self, number: int, split: str) -> np.ndarray:
        """Returns the rows of a split of data set `number` in this sequence."""
        return self.tables[number].splits[split] + self.starts[number]


def _global_names(table: Table, several: bool) -> np.ndarray:
    if not several:
        return table.identities
    kept = {}
    for name in set(table.identities.tolist()) - {None}:
        normal = people.normalised(name)
        label = normal and people.scheme(normal, table.hash).startswith("label")
        kept[name] = f"{normal}\t{table.hash}" if label else normal
    return np.array([kept.get(name) for name in table.identities], object)


def _first_rows(codes: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
    """Returns the first of `rows` with each code, (count,); -1 where no row has the code."""
    first = np.full(count, -1, np.int64)
    rows = rows[codes[rows] >= 0][::-1]
    first[codes[rows]] = rows
    return first


def _partners(codes: np.ndarray, a: np.ndarray, b: np.ndarray, near: np.ndarray | None = None) -> np.ndarray:
    """Returns for each of the rows `b` a row of `a` with the same code or a near one; -1 where there is none."""
    if not codes.size or codes.max() < 0:
        return np.full(len(b), -1)
    first = _first_rows(codes, a, codes.max() + 1)
    if near is not None and len(near):
        reached = first.copy()
        for u, v in (near.T, near.T[::-1]):
            there = (first[u] >= 0) & (first[v] < 0)
            reached[v[there]] = first[u[there]]
        first = reached
    return np.where(codes[b] >= 0, first[codes[b]], -1)


def between(one: Table, a: str, two: Table, b: str) -> list[dict]:
    """Returns the findings between split `a` of a data set, trained on, and split `b` of another data set, scored."""
    return list(_of_sides(_Pool([one, two]), 0, a, 1, b))


def _across(pool: _Pool, number: int) -> Iterator[dict]:
    """Yields a finding for files, pictures and people on both sides."""
    for one, a, two, b in pool.sides(number):
        yield from _of_sides(pool, one, a, two, b)


def _of_sides(pool: _Pool, one: int, a: str, two: int, b: str) -> Iterator[dict]:
    rows_a, rows_b = pool.rows(one, a), pool.rows(two, b)
    told_a = a if one == two else f"{a} of {pool.tables[one].path}"
    other = {} if one == two else {"other": {"path": pool.tables[one].path, "hash": pool.tables[one].hash}}

    def finding(kind, severity, count, message, hits, partner):
        examples = ((pool.names[partner[i]], pool.names[rows_b[i]]) for i in hits)
        return {**_finding(kind, severity, count, message, (a, b), examples), **other}

    file = _partners(pool.file, rows_a, rows_b)
    near = np.where(file < 0, _partners(pool.picture, rows_a, rows_b, pool.near), -1)
    for kind, partner, told, sure in (
        ("same_file", file, "the same file", ""),
        ("near_picture", near, "nearly the same picture", pool.at_least),
    ):
        hits = np.flatnonzero(partner >= 0)
        if len(hits):
            message = f"{sure}{len(hits)} of {len(rows_b)} images of {b} are also in {told_a}: {told}"
            yield finding(kind, "leak", len(hits), message, hits, partner)
    partner = _partners(pool.person, rows_a, rows_b)
    hits = np.flatnonzero(partner >= 0)
    if len(hits):
        shared, where = np.unique(pool.person[rows_b[hits]], return_index=True)
        severity, why = "warning", ""
        if one == two:
            severity, why = _SAME_PEOPLE[pool.tables[two].protocol]
        message = f"people on both sides: {len(shared)}, in {told_a} and in {len(hits)} images of {b}{why}"
        yield finding("same_identity", severity, len(shared), message, hits[where], partner)


# Severity of people on both sides within a data set, by the way it was split.
_SAME_PEOPLE = {
    "identity": ("leak", ", although the data set was split by identity"),
    "image": ("note", ": the data set was split by image, so this is expected"),
    "column": ("warning", ": the source itself has this split"),
}


def _extremes(codes: np.ndarray, ranges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the places of the youngest and the oldest of each code: whose ages end first, and whose begin last."""
    by_end, by_begin = np.lexsort((ranges[:, 1], codes)), np.lexsort((ranges[:, 0], codes))
    starts = np.flatnonzero(np.diff(codes[by_end], prepend=-1))
    return by_end[starts], by_begin[np.append(starts[1:], len(codes)) - 1]


def _ages_apart(pool: _Pool, number: int) -> Iterator[dict]:
    """Yields findings of files and pictures with several ages, of which at least one is in data set `number`.

    Two ages contradict each other if they are more than YEARS_APART apart, and two ranges, or a range and an age, if
    they do not overlap.
    """
    known = np.flatnonzero(~np.isnan(pool.ranges).any(axis=1))
    if not len(known):
        return
    low, high = pool.ranges.T
    is_range = low < high
    or_ranges = ", or ranges that do not overlap" if is_range.any() else ""

    def here(*rows):
        start, end = pool.starts[number], pool.starts[number + 1]
        return np.any([(r >= start) & (r < end) for r in rows], axis=0)

    def told(kind, what, young, old, sure="", hint=""):
        most = np.where(is_range[young] | is_range[old], 0, YEARS_APART)
        apart = (low[old] - high[young] > most) & here(young, old)
        young, old = young[apart], old[apart]
        if len(young):
            worst = np.argsort(high[young] - low[old], kind="stable")
            examples = (
                [f"{pool.names[row]} ({metrics.label_text(low[row], high[row])})" for row in pair]
                for pair in zip(young[worst], old[worst], strict=True)
            )
            message = f"{what} with ages more than {YEARS_APART:g} years apart{or_ranges}: {sure}{len(young)}{hint}"
            yield _finding(kind, "warning", len(young), message, (), examples)

    youngest, oldest = (known[places] for places in _extremes(pool.file[known], pool.ranges[known]))
    # Two pictures of one file in one data set are faces that were cut by their landmarks.
    faces = (pool.picture[youngest] != pool.picture[oldest]) & (here(youngest) == here(oldest))
    youngest, oldest = youngest[~faces], oldest[~faces]
    hint = ". If a photograph shows several faces, give the landmarks of each face, or crops"
    yield from told("same_file_ages", "files that occur several times", youngest, oldest, hint=hint)

    known = known[pool.picture[known] >= 0]
    if not len(known):
        return
    young, old = (known[places] for places in _extremes(pool.picture[known], pool.ranges[known]))
    own = pool.file[young] != pool.file[old]  # equal files are reported above
    at = np.full(pool.picture.max() + 1, -1)
    at[pool.picture[young]] = np.arange(len(young))
    u, v = at[pool.near.T]
    both = (u >= 0) & (v >= 0)
    u, v = u[both], v[both]
    swapped = low[old[u]] - high[young[v]] > low[old[v]] - high[young[u]]
    yield from told(
        "near_picture_ages",
        "pairs of nearly the same picture",
        np.concatenate([young[own], np.where(swapped, young[v], young[u])]),
        np.concatenate([old[own], np.where(swapped, old[u], old[v])]),
        pool.at_least,
    )


def _many_near(pool: _Pool) -> Iterator[dict]:
    """Yields a finding if there are more pairs of near pictures than are compared."""
    if pool.at_least:
        message = (
            f"at least {pool.near_count} pairs of pictures are nearly the same, and only {len(pool.near)} of them were"
            " looked at for leaks and ages: find out which picture occurs so often (a placeholder?), remove it from the"
            " source and prepare it again"
        )
        yield _finding("many_near_pictures", "warning", pool.near_count, message)


def _of_one(table: Table) -> Iterator[dict]:
    """Yields the findings within one data set."""
    known = ~np.isnan(table.ranges).any(axis=1)
    exact = table.ranges[:, 0] == table.ranges[:, 1]
    for split, rows in table.splits.items():
        ages = metrics.label_age(table.ranges[rows][known[rows]])
        count = np.bincount(metrics.age_group(ages) + 1, minlength=len(metrics.GROUPS) + 1)[1:]
        empty = [group for group, images in zip(metrics.GROUPS, count, strict=True) if not images]
        if len(ages) and empty:
            scores = "sigma and AAR are" if exact[rows][known[rows]].all() else "sigma is"
            message = f"{split} has no image of age {', '.join(empty)}: {scores} undefined there"
            yield _finding("group_without_images", "warning", len(empty), message, (split,), [[g] for g in empty])
    for finding in implausible.findings(table.names[exact], table.ranges[exact, 0]):  # of ranges nothing is expected
        yield _finding(*finding)
    if table.spreads is not None and not np.isnan(table.spreads).all():
        spreads = table.spreads[~np.isnan(table.spreads)]
        quartiles = ", ".join(f"{value:.1f}" for value in np.quantile(spreads, (0.25, 0.5, 0.75)))
        message = (
            f"{len(spreads)} of {len(table.names)} labels have a spread: quartiles {quartiles} years, from"
            f" {spreads.min():.1f} to {spreads.max():.1f}"
        )
        yield _finding("label_spread", "note", len(spreads), message)
    several = np.flatnonzero(table.faces > 1) if table.faces is not None else ()
    if len(several):
        taken = "all have its age" if table.all_faces else "one was taken, and it may not be the face of that age"
        message = f"{len(several)} of {len(table.names)} images come from photographs with several faces: {taken}"
        examples = ((table.names[i], f"{table.faces[i]:.0f} faces") for i in several)
        yield _finding("several_faces", "warning", len(several), message, (), examples)
    small = np.flatnonzero(table.sides < table.image_size)
    if len(small):
        message = f"{len(small)} of {len(table.names)} faces are smaller than {table.image_size} pixels in the source"
        examples = ((table.names[i], f"{table.sides[i]} pixels") for i in small)
        yield _finding("small_images", "note", len(small), message, (), examples)
    named = sum(name is not None for name in table.identities.tolist())
    if named < len(table.names):
        message = f"{len(table.names) - named} of {len(table.names)} images have no identity: it is unknown"
        yield _finding(
            "identity_unknown", "note", len(table.names) - named, f"{message} whether their people are on both sides"
        )
    if table.phash is None:
        message = "prepared without perceptual hashes, so only whole files were compared: prepare the data set again"
        yield _finding("no_perceptual_hash", "note", len(table.names), message)


def damaged(message: str) -> dict:
    """Returns the finding of a data set that cannot be opened."""
    return _finding("damaged", "warning", 1, message)
