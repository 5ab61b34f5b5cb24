"""Conformal intervals: intervals of ages that hold in every age group, fitted to the validation split.

Of the people of each true age group, at least the share `level` has an age inside its interval. This is label-
conditional conformal prediction (Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World", 2005, section
4.5; Vovk, "Conditional Validity of Inductive Conformal Predictors", 2012). An age y is accepted if its score,

    |y - estimated age| / sqrt(spread of the distribution),

is at most the threshold of the age group of y. The interval is the smallest one that holds all accepted ages and the
estimated age. The threshold of a group with n images is the k-th smallest of their scores, k = ceil((n + 1) level): a
new image of the group is equally likely to have each of the n + 1 ranks, so its score is at most the threshold with
probability k / (n + 1) or more.

The groups are fitted one after the other, from the youngest and the oldest to the middle. An image whose age lies in
the interval of the groups before has the score `HELD`, which no threshold excludes. So a group whose ages are mostly
between accepted ages and the estimated age gets a low threshold, and not intervals that hold too much. This keeps the
guarantee, because the thresholds of the groups before do not depend on the images of this group, and those after only
widen the intervals.

A group with fewer images than a level needs borrows the images whose ages are nearest. It is fitted after the groups
with enough images. The coverage of all these images together is at least the level, that of the group need not be. Ding
et al., "Class-Conditional Conformal Prediction with Many Classes", 2023, also merge classes with few images.
"""

import dataclasses
import logging
import math

import numpy as np

from lae_jax.metrics import GROUPS, OUTSIDE
from lae_jax.runs import distributions
from lae_jax.runtime.errors import InputError

logger = logging.getLogger("lae_jax")

NAMES = (OUTSIDE[0], *GROUPS, OUTSIDE[1])  # the age groups, the youngest first
PERCENTS = range(1, 100)  # the levels
HIGHEST = PERCENTS[-1] / 100  # the highest level as a share
HELD = -1.0  # as a score: lies in the interval of the groups before; as a threshold: accepts no age
_FIRST = np.array([0, 0.5, 10.5, 20.5, 30.5, 40.5, 50.5, 60.5, 70.5, 81.5])  # years, where the groups start
_LAST = np.append(_FIRST[1:], 100.0)
_OUTSIDE_IN = (0, 9, 1, 8, 2, 7, 3, 6, 4, 5)
_DIGITS = 1e4  # thresholds are rounded up to 1 / _DIGITS


@dataclasses.dataclass(frozen=True, eq=False)
class Conformal:
    """Thresholds of the age groups `NAMES`, at the levels `PERCENTS`.

    Attributes:
      thresholds: (10, 99); infinity: all ages of the group are accepted.
      images: (10,) number of images of each group that the thresholds were fitted to.
    """

    thresholds: np.ndarray
    images: np.ndarray

    def intervals(self, ages: np.ndarray, probabilities: np.ndarray, level: float) -> np.ndarray:
        """Returns the interval of each image.

        Args:
          ages: (N,) estimated ages in years.
          probabilities: (N, 101) calibrated distributions.
          level: From 0 to `PERCENTS[-1]` percent; a level between two percents counts as the higher one.

        Returns:
          (N, 2) years.

        Raises:
          InputError: There are no intervals of this level.
        """
        if percent_of(level) > PERCENTS[-1]:
            raise InputError(f"level is {level}: conformal intervals have levels up to {HIGHEST}")
        ages = np.asarray(ages, np.float64)
        within = _Within(ages, _scale(probabilities))
        for group, threshold in enumerate(self._of_level(level)):
            within.accept(group, threshold)
        return np.stack([within.lower, within.upper], axis=1)

    def groups(self, level: float) -> list[tuple[float, float, float | None]]:
        """Returns the first and last age in years and the threshold of each group, for a JSON file.

        Null is an infinite threshold.
        """
        thresholds = [value if math.isfinite(value) else None for value in self._of_level(level).tolist()]
        return list(zip(_FIRST.tolist(), _LAST.tolist(), thresholds, strict=True))

    def _of_level(self, level: float) -> np.ndarray:
        """The threshold of each group, (10,)."""
        return self.thresholds[:, percent_of(level) - PERCENTS[0]]

    def borrowing(self, level: float) -> list[str]:
        """Returns the names of the groups that have fewer images than the level needs."""
        return [name for name, count in zip(NAMES, self.images, strict=True) if count < needed(percent_of(level))]

    def fewest(self, level: float) -> dict | None:
        """Returns what to expect of the group with the fewest images that does not borrow; None if all borrow.

        A fit to n images with the k-th smallest score covers a share of the group that is distributed as Beta(k, n + 1
        - k): the level on average, and less for some fits to few images. Source: Vovk, 2012.

        Returns:
          'group', 'images', and 'coverage', the share that one fit in twenty stays below.
        """
        from scipy.special import betaincinv  # takes as long to load as JAX

        percent = percent_of(level)
        own = [(int(n), name) for name, n in zip(NAMES, self.images, strict=True) if n >= needed(percent)]
        if not own:
            return None
        count, name = min(own)
        rank = _rank(count, percent)
        return {"group": name, "images": count, "coverage": float(betaincinv(rank, count + 1 - rank, 0.05))}

    def to_json(self) -> dict:
        """Returns the fields for a JSON file, where null is an infinite threshold."""
        thresholds = [[value if math.isfinite(value) else None for value in row] for row in self.thresholds.tolist()]
        return {"thresholds": dict(zip(NAMES, thresholds, strict=True)), "images": [int(n) for n in self.images]}


def from_json(content: dict) -> Conformal:
    """Returns what `Conformal.to_json` wrote."""
    rows = [[math.inf if value is None else value for value in content["thresholds"][name]] for name in NAMES]
    return Conformal(np.array(rows, np.float64), np.array(content["images"]))


def of_level(fitted: Conformal | None, level: float) -> Conformal | None:
    """Returns `fitted`; None, with a warning, if it has no intervals of this level."""
    if fitted is None or percent_of(level) <= PERCENTS[-1]:
        return fitted
    logger.warning("there are no conformal intervals of %s: use --interval %s or less", level, HIGHEST)
    return None


def percent_of(level: float) -> int:
    """Returns the percents of the level that stands for `level`: the level itself, rounded up."""
    return max(math.ceil(100 * level - 1e-9), PERCENTS[0])


def needed(percent: int) -> int:
    """Returns the fewest images that have a threshold at a level: the least n with ceil((n + 1) level) <= n."""
    return -(-percent // (100 - percent))


def fit(estimates: np.ndarray, probabilities: np.ndarray, ages: np.ndarray) -> Conformal:
    """Fits the thresholds.

    Args:
      estimates: (N,) estimated ages in years.
      probabilities: (N, 101) calibrated distributions.
      ages: (N,) true ages in years (`known`).
    """
    estimates, ages = np.asarray(estimates, np.float64), known(ages)
    scale = _scale(probabilities)
    scores, members = np.abs(ages - estimates) / scale, group_of(ages)
    places = [np.flatnonzero(members == group) for group in range(len(NAMES))]
    images = np.array([len(place) for place in places])
    thresholds = np.full((len(NAMES), len(PERCENTS)), HELD)
    for column, percent in enumerate(PERCENTS):
        within = _Within(estimates, scale)
        own = [group for group in _OUTSIDE_IN if images[group] >= needed(percent)]
        for group in own + [group for group in _OUTSIDE_IN if group not in own]:
            if group in own:
                place = places[group]
                is_held = (within.lower[place] <= ages[place]) & (ages[place] <= within.upper[place])
                found = np.where(is_held, HELD, scores[place])
            else:
                found = scores[_nearest(ages, group, needed(percent))]
            # At least that of the level before, so that an interval holds those of lower levels.
            threshold = max(_quantile(found, percent), thresholds[group, max(column - 1, 0)])
            thresholds[group, column] = threshold
            within.accept(group, threshold)
    return Conformal(thresholds, images)


def known(ages: np.ndarray) -> np.ndarray:
    """Returns the ages that intervals are compared with: years in float64; an age above 100 counts as 100."""
    return np.clip(np.asarray(ages, np.float64), 0, 100)


def group_of(ages: np.ndarray) -> np.ndarray:
    """Returns the place in `NAMES` of the group of each age: years -> int64."""
    return np.searchsorted(_FIRST, ages, side="right") - 1


class _Within:
    """Intervals that grow with each group: the smallest ones that hold the estimated ages and all accepted ages."""

    def __init__(self, estimates: np.ndarray, scale: np.ndarray):
        self.estimates, self.scale = estimates, scale
        self.lower, self.upper = estimates, estimates

    def accept(self, group: int, threshold: float) -> None:
        """Adds the ages of a group whose score is at most a threshold."""
        if threshold < 0:
            return
        reach = threshold * self.scale
        low = np.maximum(self.estimates - reach, _FIRST[group])
        high = np.minimum(self.estimates + reach, _LAST[group])
        some = low <= high
        self.lower = np.where(some, np.minimum(self.lower, low), self.lower)
        self.upper = np.where(some, np.maximum(self.upper, high), self.upper)


def _scale(probabilities: np.ndarray) -> np.ndarray:
    """The divisor of the scores: (N, 101) -> (N,)."""
    return np.sqrt(distributions.spread(probabilities))


def _rank(count: int, percent: int) -> int:
    return -(-(count + 1) * percent // 100)


def _quantile(scores: np.ndarray, percent: int) -> float:
    """The ceil((n + 1) level)-th smallest of n scores, rounded up; infinity if there is none."""
    rank = _rank(len(scores), percent)
    if rank > len(scores):
        return math.inf
    value = float(np.partition(scores, rank - 1)[rank - 1])
    return HELD if value < 0 else math.ceil(value * _DIGITS) / _DIGITS


def _nearest(ages: np.ndarray, group: int, count: int) -> np.ndarray:
    """The places of the `count` images whose ages are nearest to a group, and of all that are as near as the last."""
    years = np.maximum(np.maximum(_FIRST[group] - ages, ages - _LAST[group]), 0)
    return np.flatnonzero(years <= np.sort(years)[: max(count, 1)].max(initial=0.0))
