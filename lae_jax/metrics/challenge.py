"""The numbers of age checks: who passes, who is referred, what that costs, how far the estimates of one person differ.

A check lets people pass who are at least `threshold` years old. A challenge age above the threshold makes up for
errors: people whose estimated age is below it are referred to another check. The terms are those of NIST IR 8525, "Face
Analysis Technology Evaluation: Age Estimation and Verification", 2024. What is defined here says so.
"""

import math
from dataclasses import dataclass

import numpy as np

CUTS = np.arange(102)  # years; nobody is estimated at 101 or older


@dataclass(frozen=True)
class Costs:
    """What the outcomes of a policy cost, in any unit. All others cost nothing. The defaults are an example of ours.

    Attributes:
      passing: A person below the threshold passes.
      denial: A person of the threshold or older is denied.
      referral: A person is referred.
    """

    passing: float = 100.0
    denial: float = 10.0
    referral: float = 1.0


@dataclass(frozen=True, eq=False)
class Photographs:
    """The photographs of an age check.

    Attributes:
      low: (N,) true age in years, or the first age of its range.
      high: (N,) the last age of the range; equal to `low` where the age is exact.
      estimates: (N,) estimated ages in years, NaN where the photograph could not be processed.
      weights: (N,) how many photographs a row stands for.
    """

    low: np.ndarray
    high: np.ndarray
    estimates: np.ndarray
    weights: np.ndarray

    def younger(self, threshold: float) -> np.ndarray:
        """Returns the weight of each photograph whose label is wholly below an age, otherwise 0: (N,)."""
        return np.where(self.high < threshold, self.weights, 0.0)

    def older(self, threshold: float) -> np.ndarray:
        """Returns the weight of each photograph whose label is wholly at or above an age, otherwise 0: (N,)."""
        return np.where(self.low >= threshold, self.weights, 0.0)

    def passes(self, challenge: float) -> np.ndarray:
        """Returns who is estimated at or above the challenge age, (N,) bool. What was not processed does not pass."""
        return self.estimates >= challenge

    @property
    def years(self) -> np.ndarray:
        """Completed years of each exact age, -1 of a range: (N,) int64. All of a year are below 18 or none."""
        return np.where(self.low == self.high, np.floor(self.low), -1).astype(np.int64)

    def estimated_within(self, first: int, last: int) -> np.ndarray:
        """Returns whose estimate has `first` to `last` completed years, (N,) bool. What was not processed has not."""
        return (self.estimates >= first) & (self.estimates < last + 1)


def outcomes(estimates: np.ndarray, lower: float, upper: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns who passes, who is referred and who is denied under a policy of two cuts.

    Who is estimated at `upper` or older passes. Who is estimated below `lower` is denied. The others are referred, and
    so is who could not be processed; where the cuts are equal nobody is referred, and who could not be processed is
    denied.

    Args:
      estimates: (N,) years, NaN where the photograph could not be processed.
      lower: Years.
      upper: Years, at least `lower`.

    Returns:
      Three of (N,) bool, of which each photograph has one.
    """
    passes = estimates >= upper
    denied = np.isnan(estimates) if lower == upper else np.full(len(estimates), False)
    denied = denied | (estimates < lower)
    return passes, ~passes & ~denied, denied


def policy_costs(photographs: Photographs, threshold: float, lower: float, upper: float, costs: Costs) -> np.ndarray:
    """Returns what each photograph costs under a policy: (N,); 0 where the label holds the threshold."""
    younger, older = photographs.younger(threshold), photographs.older(threshold)
    passes, referred, denied = outcomes(photographs.estimates, lower, upper)
    return (
        costs.passing * younger * passes + costs.denial * older * denied + costs.referral * (younger + older) * referred
    )


def cheapest_policy(photographs: Photographs, threshold: float, costs: Costs) -> tuple[int, int]:
    """Returns the lower and the upper cut, whole years from 0 to 101, with the lowest cost on these photographs.

    Of equal costs, it is the policy with the highest upper cut, which lets the fewest people pass, and then the one
    with the lowest lower cut.
    """
    younger, older = photographs.younger(threshold), photographs.older(threshold)
    # Weight of those who are estimated at each cut or older.
    minors, adults = (_at_least(photographs.estimates, weights) for weights in (younger, older))
    lower, upper = CUTS[:, None], CUTS[None, :]
    with_referral = lower < upper
    everyone = younger.sum() + older.sum()
    missing = np.isnan(photographs.estimates)
    not_processed, older_not_processed = (weights[missing].sum() for weights in (younger + older, older))
    referred = (minors + adults)[:, None] - (minors + adults)[None, :] + not_processed * with_referral
    denied = older.sum() - adults[:, None] - older_not_processed * with_referral
    cost = costs.passing * minors[None, :] + costs.denial * denied + costs.referral * referred
    cost = np.where(lower <= upper, cost, math.inf) / max(everyone, 1e-9)
    rounded = np.round(cost, 9)
    found = np.argwhere(rounded == rounded.min())
    best = max(found.tolist(), key=lambda pair: (pair[1], -pair[0]))
    return int(CUTS[best[0]]), int(CUTS[best[1]])


def _at_least(estimates: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The weight of the estimates of each cut of `CUTS` or above: (N,), (N,) -> (102,)."""
    known = ~np.isnan(estimates)
    whole = np.clip(np.floor(estimates[known]), 0, CUTS[-1]).astype(np.int64)
    return np.bincount(whole, weights[known], len(CUTS))[::-1].cumsum()[::-1]


def deviation(count: np.ndarray, total: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """Returns the standard deviation of a sample, with n - 1, from sums; NaN for fewer than two values.

    Args:
      count: (...) number of values.
      total: (...) their sum.
      squares: (...) the sum of their squares.
    """
    count = np.asarray(count, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = np.sqrt(np.maximum(squares - total**2 / count, 0) / (count - 1))
    return np.where(count > 1, spread, math.nan)


def within_people(people: np.ndarray, differences: np.ndarray) -> np.ndarray:
    """Returns how the errors of each person with several photographs differ.

    The definitions are ours. The square of the spread within a person is the sum of the squares of all people, divided
    by the sum of their degrees of freedom. The error of the age difference of two photographs is the difference of
    their errors; its mean absolute value is over the pairs of a person first, and then over the people.

    Args:
      people: (N,) numbers of people, -1 where unknown.
      differences: (N,) prediction - age, years.

    Returns:
      (P, 4): number of the person; sum of the squares of the deviations from the mean error of the person; degrees of
      freedom, which are the photographs minus 1; mean absolute error of the age difference of two photographs.
    """
    order = np.lexsort((differences, people))
    people, differences = people[order], differences[order]
    order = people >= 0
    people, differences = people[order], differences[order]
    numbers, first, count = np.unique(people, return_index=True, return_counts=True)
    place = np.repeat(np.arange(len(numbers)), count)
    mean = np.bincount(place, differences, len(numbers)) / np.maximum(count, 1)
    squares = np.bincount(place, (differences - mean[place]) ** 2, len(numbers))
    # Of sorted errors e_1 <= ... <= e_n, the sum of |e_i - e_j| over all pairs is that of (2 k - n - 1) e_k.
    rank = np.arange(len(people)) - first[place] + 1
    apart = np.bincount(place, (2 * rank - count[place] - 1) * differences, len(numbers))
    several = count > 1
    pairs = count * (count - 1) / 2
    found = np.stack([numbers, squares, count - 1, apart / np.maximum(pairs, 1)], axis=1)
    return found[several]
