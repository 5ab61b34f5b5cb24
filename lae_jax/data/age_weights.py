"""Weights of ages for the class-balanced order, from a CSV with the columns age and weight."""

import dataclasses
import functools
import hashlib
import json
import math
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from lae_jax import metrics
from lae_jax.data.sources.csv_file import csv_rows
from lae_jax.runtime.errors import InputError

_HEADER = ["age", "weight"]


@dataclasses.dataclass(frozen=True)
class AgeWeights:
    """Weights by whole age.

    Attributes:
      path: The file that they were read from.
      by_age: Whole age in years -> weight, finite and at least 0.
    """

    path: str
    by_age: Mapping[int, float]

    @functools.cached_property
    def hash(self) -> str:
        """SHA-256 of the ages and weights, whatever the order and the layout of the file."""
        return hashlib.sha256(json.dumps(sorted(self.by_age.items())).encode()).hexdigest()

    def require(self, ages: np.ndarray) -> None:
        """Checks that the whole ages of the training images, (N,) int, all have a weight and one has one above 0.

        Raises:
          InputError: An age has no weight, or all their weights are 0.
        """
        there = np.unique(ages).tolist()
        if missing := [age for age in there if age not in self.by_age]:
            raise InputError(
                f"{self.path} has no weight for the ages {', '.join(map(str, missing))}, which training images have:"
                " add a line for each (weight 0: it is never drawn)"
            )
        if not any(self.by_age[age] > 0 for age in there):
            raise InputError(f"{self.path}: the weight of every age that training images have is 0: raise one")

    def of_ranges(self, ranges: np.ndarray) -> np.ndarray:
        """Returns the weight of each range, (C, 2) whole years: the mean of those of its ages, (C,) float64.

        The ages of a range count as in `metrics.range_weights`.

        Raises:
          InputError: An age of a range has no weight, or all weights are 0.
        """
        shares = metrics.range_weights(ranges)
        self.require(np.flatnonzero(shares.sum(axis=0) > 0))
        return shares @ np.array([self.by_age.get(age, 0.0) for age in range(shares.shape[1])])


def read(path: str) -> AgeWeights:
    """Reads weights from a CSV with the header `age,weight` and a line for each whole age.

    Raises:
      InputError: The file cannot be read, or a line is wrong; the message has its number.
    """
    rows = csv_rows(pathlib.Path(path))
    _, header = next(rows, (0, []))
    if [name.strip().lower() for name in header] != _HEADER:
        raise InputError(f"{path}: the first line is {','.join(header)[:80]!r}: write age,weight")
    found: dict[int, float] = {}
    for line, row in rows:
        age, weight = _parsed(row, f"{path} line {line}")
        if age in found:
            raise InputError(f"{path} line {line}: age {age} has a weight already: keep one line for each age")
        found[age] = weight
    return AgeWeights(path, found)


def _parsed(row: Sequence[str], where: str) -> tuple[int, float]:
    try:
        age, weight = map(float, row)
    except ValueError:
        raise InputError(f"{where}: {','.join(row)[:80]!r} is not an age and a weight: write two numbers") from None
    if not (math.isfinite(age) and age >= 0 and age == int(age)):
        raise InputError(f"{where}: age {row[0].strip()[:80]} is not a whole number of years from 0")
    if not (math.isfinite(weight) and weight >= 0):
        raise InputError(f"{where}: weight {row[1].strip()[:80]} is not a finite number of at least 0")
    return int(age), weight
