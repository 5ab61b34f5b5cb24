"""Sums over photographs and over their bootstrap replicates, and the estimates that follow from them."""

import dataclasses
import math
from collections.abc import Callable, Iterable

import numpy as np

from lae_jax.report import bootstrap
from lae_jax.report.tables import Estimate


@dataclasses.dataclass(frozen=True, eq=False)
class Sums:
    """Sums of columns, by name.

    Attributes:
      totals: Name -> sum over the photographs.
      drawn: Name -> (B,) sums over the replicates.
      people: Name -> number of people, or images where people are unknown, that the column is not 0 for. A photograph
        that stands for a part of one counts as that part.
    """

    totals: dict[str, float]
    drawn: dict[str, np.ndarray]
    people: dict[str, float]

    def share(self, part: str, whole: str, digits: int = 2) -> Estimate:
        """Returns the share that the column `part` is of the column `whole`, with its 95 % interval."""
        if not self.totals[whole] > 0:
            return Estimate(math.nan, digits=digits, percent=True)
        value = self.totals[part] / self.totals[whole]
        drawn = _ratio(self.drawn[part], self.drawn[whole])
        low, high = bootstrap.share_interval(value, drawn, self.people[whole])
        return Estimate(value, low, high, digits, percent=True)

    def statistic(self, function: Callable[..., np.ndarray], *names: str, signed: bool = False) -> Estimate:
        """Returns a function of sums with its 95 % interval; the first name is that of the number of photographs.

        Args:
          function: Maps sums (...) of the named columns to numbers (...).
          *names: The columns.
          signed: Whether a plus sign is shown.
        """
        value = float(function(*(np.float64(self.totals[name]) for name in names)))
        low = high = math.nan
        if self.people[names[0]] > bootstrap.TOO_FEW:
            low, high = bootstrap.interval(value, function(*(self.drawn[name] for name in names)))
        return Estimate(value, low, high, signed=signed)


def resample(people: np.ndarray, columns: Iterable[tuple[str, np.ndarray]], seed: int = 0) -> Sums:
    """Adds up columns over the photographs, and over replicates of people with all their photographs.

    Args:
      people: (N,) numbers of people, -1 where unknown.
      columns: Name and (N,) numbers; made one after the other, so that they are not all in memory.
      seed: Seed of the replicates.
    """
    unit, single = bootstrap.units(people, seed), bootstrap.single(people)
    count, totals, sums, counted = int(unit.max()) + 1, {}, [], {}
    for name, column in columns:
        column = np.asarray(column, np.float64)
        totals[name] = float(column.sum())
        counted[name] = float(np.minimum(np.bincount(single, np.abs(column)), 1).sum())
        sums.append(np.bincount(unit, column, count))
    drawn = bootstrap.replicates(np.stack(sums, axis=1), seed)
    return Sums(totals, dict(zip(totals, drawn.T, strict=True)), counted)


def mean(count: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Returns the mean from sums, NaN where there is nothing."""
    return _ratio(total, count)


def _ratio(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    return np.divide(total, count, out=np.full(np.shape(total), np.nan), where=np.asarray(count) > 0)
