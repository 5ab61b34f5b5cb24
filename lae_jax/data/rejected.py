"""Rejected rows: a list that stays small in memory, their counts by reason, and rejected.csv.

rejected.csv has the columns of `COLUMNS`. Ages and split are empty where they are unknown, and for rows whose image was
not read. Files of earlier versions have the first two columns alone.
"""

import csv
import functools
import math
import pathlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import pyarrow as pa

from lae_jax.data import parquet
from lae_jax.runtime import files, layout
from lae_jax.runtime.foreign import spreadsheets

FILE = layout.REJECTED
COLUMNS = ("name", "reason", "age_low", "age_high", "split")
LOUD = 0.2  # smallest share of rejected images that gives a warning

_BATCH_ROWS = 1 << 13
_SCHEMA = pa.schema([("name", pa.string()), ("reason", pa.string())])


class Rejected(Sequence):
    """A list of (name, reason) that grows by `append` and keeps its rows as Arrow text."""

    def __init__(self):
        self._batches: list[pa.RecordBatch] = []
        self._pending: list[tuple[str, str]] = []

    def append(self, row: tuple[str, str]) -> None:
        """Adds a (name, reason)."""
        self._pending.append(row)
        if len(self._pending) == _BATCH_ROWS:
            columns = zip(*self._pending, strict=True)
            self._batches.append(pa.record_batch([pa.array(column, pa.string()) for column in columns], schema=_SCHEMA))
            self._pending = []

    def __len__(self) -> int:
        return _BATCH_ROWS * len(self._batches) + len(self._pending)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        for batch in self._batches:
            yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)
        yield from self._pending

    def __getitem__(self, at: int) -> tuple[str, str]:
        batch, row = divmod(range(len(self))[at], _BATCH_ROWS)
        if batch == len(self._batches):
            return self._pending[row]
        return tuple(column[row].as_py() for column in self._batches[batch].columns)

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other)


_VARYING = re.compile(r"'[^']*'|\"[^\"]*\"|\b\d[\d,.]*")


def kind_of(reason: str) -> str:
    """Returns what reasons have in common that differ only in numbers and quoted texts."""
    return _kind(reason)[0]


@functools.lru_cache(1 << 12)
def _kind(reason: str) -> tuple[str, tuple[str, ...]]:
    """Returns a reason with '{}' for each quoted text and number, and these."""
    return _VARYING.sub("{}", reason.replace("{", "{{").replace("}", "}}")), tuple(_VARYING.findall(reason))


class Reasons:
    """Counts rejected rows by reason.

    Reasons that differ only in numbers and quoted texts are counted together, and all that come after the first 1,000
    kinds as 'other reasons'.
    """

    _KINDS = 1000

    def __init__(self):
        # Kind -> count, first name, and what stands in the places of the kind: '…' where reasons differ.
        self._found: dict[str, tuple[int, str, tuple[str, ...]]] = {}

    def counting(self, rows: Iterable[Sequence[str]]) -> Iterator[Sequence[str]]:
        """Yields the rows (name, reason and what follows) and counts them."""
        for row in rows:
            name, reason = row[:2]
            kind, parts = _kind(reason)
            if kind not in self._found and len(self._found) >= self._KINDS:
                kind, parts = "other reasons", ()
            count, first, known = self._found.get(kind, (0, name, parts))
            if known != parts:
                known = tuple(a if a == b else "…" for a, b in zip(known, parts, strict=True))
            self._found[kind] = count + 1, first, known
            yield row

    def _often(self) -> list[tuple[str, int, str]]:
        """Reason, count and first name of each kind, the most frequent first."""
        found = ((kind.format(*parts), count, name) for kind, (count, name, parts) in self._found.items())
        return sorted(found, key=lambda one: (-one[1], one[0]))

    def counts(self) -> dict[str, int]:
        """Returns the number of rows of each reason, the most frequent first, 20 at most."""
        return {reason: count for reason, count, _ in self._often()[:20]}

    def count(self, reason: str) -> int:
        """Returns the number of rows that were counted with a reason."""
        return self._found.get(kind_of(reason), (0, ""))[0]

    def told(self) -> str:
        """Returns the three most frequent reasons, each with its count and a name."""
        often = self._often()
        told = "; ".join(f"{count:,} x {reason}, for example {name}" for reason, count, name in often[:3])
        return told + f"; and {len(often) - 3} more reasons" * (len(often) > 3)


def cause(counts: Mapping[str, int], align: str) -> str:
    """Returns the likely cause of the most frequent of some reasons, and what to do.

    Args:
        counts: Number of rows of each reason.
        align: How the faces were cut, of the recipe.
    """
    most = max(counts, key=lambda reason: counts[reason], default="")
    if "no face found" in most and align != "none":
        return "If the images are face crops already, pass --align none"
    if "differs in upper and lower case" in most:
        return "Write the paths as they are on the disk"
    if "file not found" in most or "path leads out" in most:
        return "Name the folder that the paths start from with --images"
    if most.startswith("landmarks "):
        return "Correct the column `landmarks`, or omit it: the faces are then found here"
    if most.startswith("spread "):
        return "Write years from 0 to 100 into the column of --label-spread"
    if most.startswith("age "):
        return "Write years from 0 to 100 into the column of ages"
    return "Correct the source"


# How reasons begin that do not say whether the photograph can be processed: there was none, or it is in the data set.
_WITHOUT_PHOTOGRAPH = ("file not found", "path ", "not a regular file", "cannot be read", "removed from split")


def with_label(name: str, reason: str, row: Mapping) -> list[str]:
    """Returns the values of `COLUMNS` for a row of a source whose image was rejected.

    Args:
        name: Name of the image.
        reason: Why it was rejected.
        row: The row of the source: age, split and, where some ages are ranges, `parquet.RANGE`.
    """
    ages = [row.get(end, row.get("age")) for end in parquet.RANGE]
    texts = ["" if age is None else repr(float(age)) for age in ages]
    return [name, reason, *texts, row.get("split") or ""]


def write(path: pathlib.Path, rows: Iterable[Sequence[str]]) -> None:
    """Writes rejected.csv with rows of `COLUMNS`, or of their first ones; the rest is then unknown."""
    with files.replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = spreadsheets.Writer(file)
        writer.writerow(COLUMNS)
        writer.writerows([*row, *[""] * (len(COLUMNS) - len(row))] for row in rows)


class NotProcessed(NamedTuple):
    """Photographs that were rejected because they could not be processed.

    Attributes:
        labels: (first age, last age) in years -> number of photographs.
        of_unknown_age: Number of further rejected rows, whose age is unknown.
    """

    labels: dict[tuple[float, float], int]
    of_unknown_age: int


def not_processed(path: pathlib.Path, split: str | None) -> NotProcessed | None:
    """Reads the photographs that could not be processed from rejected.csv.

    Rows without a photograph do not count, such as those whose file did not exist.

    Args:
        path: rejected.csv.
        split: Split of the source; rows of other splits do not count. None: all rows count.

    Returns:
        The photographs; None if there is no such file, it is damaged, or it is of an earlier version and has no ages.
    """
    labels, unknown = Counter(), 0
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = spreadsheets.rows(file)
            header = tuple(next(rows, ()))
            if header[:2] != COLUMNS[:2]:
                return None
            for row in rows:
                if header != COLUMNS:
                    return None
                _, reason, *ages, of_split = row
                low, high = (float(age) if age else math.nan for age in ages)
                if reason.startswith(_WITHOUT_PHOTOGRAPH):
                    continue
                if not 0 <= low <= high < math.inf:
                    unknown += split is None or of_split in ("", split)  # the reader refused a row before its split
                elif split is None or of_split == split:
                    labels[low, high] += 1
    except (OSError, ValueError, csv.Error):
        return None
    return NotProcessed(dict(sorted(labels.items())), unknown)
