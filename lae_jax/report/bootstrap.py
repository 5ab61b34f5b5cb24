"""95 % intervals by resampling people, where they are known, or images (Efron, "Bootstrap Methods", 1979).

A score is a function of sums over images. So a replicate is a weight for each unit, and every score of every replicate
comes out of one matrix product; two lists of predictions of the same images share the weights, which pairs them.
"""

import numpy as np
from scipy.special import ndtr, ndtri
from scipy.stats import binomtest

REPLICATES = 1000
LEVEL = 0.95
# More units than these are put together at random, which leaves the spread of a sum as it is and bounds the time.
MOST_UNITS = 5_000
_CHUNK = 100
# A score that is undefined in more replicates than these has no interval: its group has a handful of images.
_MOST_UNDEFINED = 0.05
# So many people or images alone, drawn again, say nothing of others.
TOO_FEW = 3


def single(people: np.ndarray) -> np.ndarray:
    """The person or image that each image is of: (N,) numbers of people, -1 where unknown -> (N,) int64 from 0.

    An image of nobody known is a unit of its own.
    """
    own = np.where(people < 0, -1 - np.arange(len(people)), people)
    return np.unique(own, return_inverse=True)[1]


def units(people: np.ndarray, seed: int = 0) -> np.ndarray:
    """The unit that each image is drawn with, of one or, beyond MOST_UNITS, of several people: (N,) -> (N,) from 0."""
    unit = single(people)
    count = int(unit.max()) + 1
    if count <= MOST_UNITS:
        return unit
    return (np.random.default_rng(seed).permutation(count) % MOST_UNITS)[unit]


def by_unit(unit: np.ndarray, columns: np.ndarray, count: int) -> np.ndarray:
    """Sums over the images of each unit: (N,), (N, M) -> (count, M)."""
    return np.stack([np.bincount(unit, column, count) for column in columns.T], axis=1)


def replicates(sums: np.ndarray, seed: int = 0, count: int = REPLICATES) -> np.ndarray:
    """Sums (U, M) of the units -> (count, M) of units that were drawn with replacement; the seed decides which."""
    rng, number = np.random.default_rng(seed), len(sums)
    single = sums.astype(np.float32)  # the replicates scatter by far more than it rounds
    parts = []
    for start in range(0, count, _CHUNK):
        rows = min(_CHUNK, count - start)
        drawn = rng.integers(number, size=(rows, number)) + number * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * number).reshape(rows, number)
        parts.append(times.astype(np.float32) @ single)
    return np.concatenate(parts).astype(np.float64)


def interval(estimate: float, values: np.ndarray) -> tuple[float, float]:
    """The bias-corrected percentile interval (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, ch. 14).

    Sigma needs the correction: what is drawn again scatters more between the groups than the images did. Args: values:
    (B,) of the replicates, NaN where undefined. NaN, NaN where the estimate or too many of them are undefined.
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


def share_interval(estimate: float, values: np.ndarray, count: int) -> tuple[float, float]:
    """That of a share of `count` people or images; where it is none of them or all, which all replicates then are too,
    Wilson's (Wilson, "Probable Inference", 1927)."""
    if estimate in (0.0, 1.0):
        found = binomtest(round(estimate * count), count).proportion_ci(LEVEL, "wilson")
        return float(found.low), float(found.high)
    return interval(estimate, values)
