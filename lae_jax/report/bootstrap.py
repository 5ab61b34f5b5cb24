"""95 % intervals by the bootstrap (Efron, "Bootstrap Methods", 1979): resample people if known, otherwise images.

A score is a function of sums over images. A replicate is therefore a weight for each unit, and one matrix product gives
the sums of all replicates. Two lists of predictions for the same images share the weights, which pairs them.

`joint` also draws trainings.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import betaincinv, ndtr, ndtri, stdtr, stdtrit

REPLICATES = 1000
LEVEL = 0.95
# More units than this are merged at random, which keeps the spread of a sum and bounds the time.
MOST_UNITS = 5_000
_CHUNK = 100
# A score that is undefined in a larger share of replicates has no interval: its group has a handful of images.
_MOST_UNDEFINED = 0.05
_FEW_CASES = 5  # people or images
_ROUNDING = 1e-9  # of a number of cases
# With at most this many people or images, resampling says nothing about others: there are no intervals.
TOO_FEW = 3


def single(people: np.ndarray) -> np.ndarray:
    """Returns the unit of each image: its person, or the image itself if the person is unknown.

    Args:
      people: (N,) numbers of people, -1 where unknown.

    Returns:
      (N,) int64 numbers of units from 0.
    """
    own = np.where(people < 0, -1 - np.arange(len(people)), people)
    return np.unique(own, return_inverse=True)[1]


def units(people: np.ndarray, seed: int = 0) -> np.ndarray:
    """Returns the unit that each image is resampled with: that of `single`, merged at random beyond MOST_UNITS.

    Args:
      people: (N,) numbers of people, -1 where unknown.
      seed: Seed of the merging.

    Returns:
      (N,) numbers of units from 0.
    """
    unit = single(people)
    count = int(unit.max()) + 1
    if count <= MOST_UNITS:
        return unit
    return (np.random.default_rng(seed).permutation(count) % MOST_UNITS)[unit]


def by_unit(unit: np.ndarray, columns: np.ndarray, count: int) -> np.ndarray:
    """Returns the sums of columns (N, M) over the images of each unit (N,): (count, M)."""
    return np.stack([np.bincount(unit, column, count) for column in columns.T], axis=1)


def replicates(sums: np.ndarray, seed: int = 0, count: int = REPLICATES) -> np.ndarray:
    """Draws `count` replicates, units with replacement, from the sums (U, M) of the units: (count, M)."""
    rng, number = np.random.default_rng(seed), len(sums)
    single = sums.astype(np.float32)  # the rounding is far below the spread of the replicates
    parts = []
    for start in range(0, count, _CHUNK):
        rows = min(_CHUNK, count - start)
        drawn = rng.integers(number, size=(rows, number)) + number * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * number).reshape(rows, number)
        parts.append(times.astype(np.float32) @ single)
    return np.concatenate(parts).astype(np.float64)


def weights(count: int, seed: int = 0, number: int = REPLICATES) -> np.ndarray:
    """Draws the weights of `count` trainings in each replicate, with replacement: (number, count), rows sum to 1.

    The deviations from 1 / count are stretched by sqrt(count / (count - 1)). Without that the variance of a mean over a
    handful of trainings is too small by (count - 1) / count (Efron and Tibshirani, 1993, section 5.3).
    """
    if count == 1:
        return np.ones((number, 1))
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), number) / count
    return 1 / count + np.sqrt(count / (count - 1)) * (drawn - 1 / count)


class Joint(NamedTuple):
    """A mean over trainings, or of paired differences, with its interval over trainings and units; NaN: undefined."""

    mean: float
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan  # of the hypothesis that the mean is 0
    error: float = math.nan  # standard error
    freedom: float = math.nan  # degrees of freedom of the standard error


def joint(sample: np.ndarray, drawn: np.ndarray, count: int) -> Joint:
    """Returns the interval of a score over trainings and units (people or images) together.

    A replicate draws units, the same for all trainings, and trainings. Their standard deviation is the standard error.
    A handful of trainings makes it uncertain itself, so the interval is Student's t, with the degrees of freedom of
    the sum of both variances (Satterthwaite, "An Approximate Distribution of Estimates of Variance Components", 1946).

    Args:
      sample: (T,) the score of each training, or its difference.
      drawn: (B, T) the same in the replicates of the units; B = 0 if there are too few units.
      count: Number of units.
    """
    trainings, mean = len(sample), float(np.mean(sample))
    defined = np.isfinite(drawn).all(axis=1)
    if not len(drawn) or not math.isfinite(mean) or defined.mean() < 1 - _MOST_UNDEFINED:
        return Joint(mean)
    # Few units (folds) need the same stretch as few trainings.
    drawn = sample + math.sqrt(count / (count - 1)) * (drawn - sample)
    error = float((weights(trainings, number=len(drawn)) * drawn)[defined].sum(axis=1).std(ddof=1))
    if not error > 1e-6:  # below, it is the rounding of the replicates
        return _student(mean, 0.0, math.inf)
    of_trainings = sample.var(ddof=1) / trainings if trainings > 1 else 0.0
    of_units = drawn[defined].mean(axis=1).var(ddof=1)
    freedom = (of_trainings + of_units) ** 2 / (of_trainings**2 / max(trainings - 1, 1) + of_units**2 / (count - 1))
    return _student(mean, error, freedom)


def mean_of(parts: Sequence[Joint]) -> Joint:
    """Returns the mean of independent estimates, such as those of several data sets, with its interval.

    The interval is for these data sets and says nothing about others. Its degrees of freedom are those of a sum of
    variances (Satterthwaite, 1946).
    """
    mean = float(np.mean([part.mean for part in parts]))
    variances = np.array([part.error for part in parts]) ** 2
    if not variances.sum() > 0:
        return _student(mean, 0.0, math.inf) if np.isfinite(variances).all() else Joint(mean)
    freedom = variances.sum() ** 2 / float(np.sum(variances**2 / [part.freedom for part in parts]))
    return _student(mean, math.sqrt(variances.sum()) / len(parts), freedom)


def _student(mean: float, error: float, freedom: float) -> Joint:
    if not error:
        return Joint(mean, mean, mean, float(abs(mean) < 1e-6), error, freedom)
    half = float(stdtrit(freedom, (1 + LEVEL) / 2)) * error
    return Joint(mean, mean - half, mean + half, float(2 * stdtr(freedom, -abs(mean) / error)), error, freedom)


def holm(p: np.ndarray) -> np.ndarray:
    """Corrects p-values for their number, whatever their dependence.

    Source: Holm, "A Simple Sequentially Rejective Multiple Test Procedure", 1979.

    Args:
      p: (M,) p-values, NaN where undefined.

    Returns:
      (M,) corrected p-values; undefined ones do not count and stay undefined.
    """
    known = np.flatnonzero(np.isfinite(p))
    order = known[np.argsort(p[known], kind="stable")]
    result = np.full(len(p), np.nan)
    result[order] = np.minimum(np.maximum.accumulate((len(known) - np.arange(len(known))) * p[order]), 1.0)
    return result


def interval(estimate: float, values: np.ndarray) -> tuple[float, float]:
    """Returns the bias-corrected percentile interval of a score.

    Sigma needs the correction: group errors scatter more in the replicates than in the sample. Source: Efron and
    Tibshirani, "An Introduction to the Bootstrap", 1993, ch. 14.

    Args:
      estimate: The score of the sample.
      values: (B,) scores of the replicates, NaN where undefined.

    Returns:
      The low and the high end; NaN if the estimate or too many of the values are undefined.
    """
    values = np.asarray(values, np.float64)
    defined = values[np.isfinite(values)]
    if not np.isfinite(estimate) or len(defined) < (1 - _MOST_UNDEFINED) * len(values):
        return np.nan, np.nan
    below = ((defined < estimate).mean() + (defined <= estimate).mean()) / 2
    shift = ndtri(np.clip(below, 1 / (len(defined) + 1), len(defined) / (len(defined) + 1)))
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(defined, ndtr(2 * shift + ndtri([tail, 1 - tail])))
    return float(low), float(high)


def share_interval(estimate: float, values: np.ndarray, count: float) -> tuple[float, float]:
    """Returns the interval of a share of `count` people or images.

    Replicates vary too little where fewer than five people are for or against, and not at all for a share of 0 or 1:
    the interval is then that of `exact_interval`.

    Args:
      estimate: The share in the sample.
      values: (B,) shares of the replicates, NaN where undefined.
      count: Number of people or images.

    Returns:
      The low and the high end, as in `interval`.
    """
    if min(estimate, 1 - estimate) * count < _FEW_CASES:
        return exact_interval(estimate * count, count)
    return interval(estimate, values)


def exact_interval(cases: float, count: float) -> tuple[float, float]:
    """Returns the exact binomial interval of a share of independent people or images.

    Source: Clopper and Pearson, "The Use of Confidence or Fiducial Limits Illustrated in the Case of the Binomial",
    1934. (scipy.stats has this too, but takes half a second to import.)

    Args:
      cases: The number of cases; where people have several images, it need not be whole.
      count: Number of people or images.
    """
    tail, others = (1 - LEVEL) / 2, count - cases
    low = float(betaincinv(cases, others + 1, tail)) if cases > _ROUNDING else 0.0
    return low, float(betaincinv(cases + 1, others, 1 - tail)) if others > _ROUNDING else 1.0


Interval = tuple[float, float]


def difference_interval(one: float, other: float, of_one: Interval, of_other: Interval) -> Interval:
    """Returns the interval of the share `one` minus the share `other` of other people, from their own intervals.

    Source: Newcombe, "Interval Estimation for the Difference between Independent Proportions", 1998, method 10, which
    works for shares of 0 as well.
    """
    difference = one - other
    below = np.hypot(one - of_one[0], of_other[1] - other)
    above = np.hypot(of_one[1] - one, other - of_other[0])
    return float(max(difference - below, -1.0)), float(min(difference + above, 1.0))


def ratio_interval(one: float, other: float, of_one: Interval, of_other: Interval) -> Interval:
    """Returns the interval of the share `one` divided by the share `other` of other people, from their own intervals.

    It has no upper end (infinity) if that of `other` begins at 0. Source: the method of `difference_interval` for
    logarithms (Zou and Donner, "Construction of Confidence Limits about Effect Measures", 2008).
    """
    if not other > 0:
        return np.nan, np.nan
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log([one, other]), np.log(of_one), np.log(of_other)
    (value, base), (low, high), (base_low, base_high) = logs
    if not one > 0:
        return 0.0, float(np.exp(high - base_low)) if base_low > -np.inf else np.inf
    below = np.hypot(value - low, base_high - base)
    above = np.hypot(high - value, base - base_low)
    return float(np.exp(value - base - below)), float(np.exp(value - base + above))
