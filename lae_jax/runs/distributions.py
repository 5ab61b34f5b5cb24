"""Predicted distributions over the ages 0..100: intervals, thresholds, calibration.

Class k covers the ages from k - 0.5 to k + 0.5 evenly; the first class starts at 0 and the last one ends at 100.
"""

from collections.abc import Callable

import numpy as np

from lae_jax.metrics import age_class

_TINY = 1e-30  # replaces a probability that is 0 in float32
_TEMPERATURES = (0.05, 20.0)
_BLOCK = 8192  # rows that are worked on together: only results are ever held for all rows


def _in_blocks(function: Callable[..., np.ndarray], *arrays: np.ndarray) -> np.ndarray:
    """Returns `function` of arrays (N, ...) that treats each row alone."""
    first = function(*(array[:_BLOCK] for array in arrays))
    result = np.empty((len(arrays[0]), *first.shape[1:]), first.dtype)
    result[:_BLOCK] = first
    for start in range(_BLOCK, len(result), _BLOCK):
        part = slice(start, start + _BLOCK)
        result[part] = function(*(array[part] for array in arrays))
    return result


def tempered(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Returns softmax(logits / temperature), float64, of distributions softmax(logits), (N, K); 1 changes nothing."""

    def of_block(probabilities: np.ndarray) -> np.ndarray:
        logits = np.log(np.maximum(np.asarray(probabilities, np.float64), _TINY)) / temperature
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        return weights / weights.sum(axis=1, keepdims=True)

    return _in_blocks(of_block, probabilities)


def _edges(count: int) -> np.ndarray:
    """Returns the ages between the classes, (count + 1,)."""
    return np.clip(np.arange(count + 1) - 0.5, 0, count - 1)


def _cumulative(probabilities: np.ndarray) -> np.ndarray:
    """Returns the probability below each edge, (N, K + 1)."""
    sums = np.cumsum(np.asarray(probabilities, np.float64), axis=1)
    return np.concatenate([np.zeros((len(sums), 1)), sums / sums[:, -1:]], axis=1)


def quantiles(probabilities: np.ndarray, level: float) -> np.ndarray:
    """Returns the age below which `level` (0 to 1) of each distribution (N, K) lies: (N,) years."""

    def of_block(probabilities: np.ndarray) -> np.ndarray:
        below = _cumulative(probabilities)
        edges = _edges(below.shape[1] - 1)
        # The first class at whose end the level is reached.
        place = np.minimum((below[:, 1:] < level).sum(axis=1), below.shape[1] - 2)
        rows = np.arange(len(below))
        low, high = below[rows, place], below[rows, place + 1]
        share = np.divide(level - low, high - low, out=np.zeros(len(below)), where=high > low)
        return edges[place] + np.clip(share, 0, 1) * (edges[place + 1] - edges[place])

    return _in_blocks(of_block, probabilities)


def intervals(probabilities: np.ndarray, level: float) -> np.ndarray:
    """Returns the central interval of probability `level` (0 to 1) of each distribution (N, K): (N, 2) years."""
    tail = (1 - level) / 2
    return np.stack([quantiles(probabilities, tail), quantiles(probabilities, 1 - tail)], axis=1)


def spread(probabilities: np.ndarray) -> np.ndarray:
    """Returns the standard deviation of each distribution (N, K): (N,) years, at least that of one class, 0.29."""

    def of_block(probabilities: np.ndarray) -> np.ndarray:
        weights = np.asarray(probabilities, np.float64)
        weights = weights / weights.sum(axis=1, keepdims=True)
        classes = np.arange(weights.shape[1])
        mean = weights @ classes
        variance = np.sum(weights * (classes - mean[:, None]) ** 2, axis=1)
        return np.sqrt(variance + 1 / 12)  # a class covers a year evenly

    return _in_blocks(of_block, probabilities)


def at_least(probabilities: np.ndarray, age: float) -> np.ndarray:
    """Returns P(age >= `age`) of each distribution (N, K): (N,), 0 to 1."""
    return 1 - below(probabilities, np.full(len(probabilities), age))


def below(probabilities: np.ndarray, ages: np.ndarray) -> np.ndarray:
    """Returns the probability of each distribution (N, K) below its age, one of (N,): (N,), 0 to 1.

    An age is inside the central interval of `level` if this value is within level / 2 of 1/2 (the probability integral
    transform: Gneiting et al., "Probabilistic Forecasts, Calibration and Sharpness", 2007).
    """

    def of_block(probabilities: np.ndarray, ages: np.ndarray) -> np.ndarray:
        cumulative = _cumulative(probabilities)
        edges, rows = _edges(cumulative.shape[1] - 1), np.arange(len(cumulative))
        place = np.clip(np.floor(ages + 0.5), 0, cumulative.shape[1] - 2).astype(int)
        share = np.clip((ages - edges[place]) / (edges[place + 1] - edges[place]), 0, 1)
        low, high = cumulative[rows, place], cumulative[rows, place + 1]
        return low + share * (high - low)

    return _in_blocks(of_block, probabilities, np.asarray(ages))


def coverage(probabilities: np.ndarray, ages: np.ndarray, level: float) -> float:
    """Returns the share of the ages (N,) inside their intervals, which is `level` for calibrated distributions."""
    low, high = intervals(probabilities, level).T
    return float(np.mean((ages >= low) & (ages <= high)))


def ends(probabilities: np.ndarray, ranges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the probability of each distribution (N, K) below its range (N, 2), and up to the range's end: (N,) each.

    A range covers the classes of its whole ages: 20-29 the ages from 19.5 to 29.5. Where the age is exact, both are the
    probability below it.
    """
    low, high = ranges.T
    half = np.where(low < high, 0.5, 0.0)
    return below(probabilities, low - half), below(probabilities, high + half)


def fit_temperature(probabilities: np.ndarray, ages: np.ndarray) -> float:
    """Returns the temperature of the highest likelihood of the ages, which are clipped to the classes.

    Guo et al., "On Calibration of Modern Neural Networks", 2017.

    Args:
      probabilities: (N, K).
      ages: (N,) years; or ranges, (N, 2), of which the likelihood is the probability of all their ages together.
    """
    from scipy.optimize import minimize_scalar  # takes as long to load as JAX

    classes = np.clip(age_class(ages), 0, probabilities.shape[1] - 1)

    def surprise(log_temperature: float) -> float:
        def chosen(probabilities: np.ndarray, classes: np.ndarray) -> np.ndarray:
            warm = tempered(probabilities, np.exp(log_temperature))
            if classes.ndim == 1:
                return warm[np.arange(len(classes)), classes]
            every = np.arange(warm.shape[1])
            return np.sum(warm, axis=1, where=(every >= classes[:, :1]) & (every <= classes[:, 1:]))

        return -np.log(np.maximum(_in_blocks(chosen, probabilities, classes), _TINY)).mean()

    return float(np.exp(minimize_scalar(surprise, bounds=np.log(_TEMPERATURES), method="bounded").x))


def is_inside(temperature: float) -> bool:
    """Whether a fitted temperature is inside the bounds of the search and not at one of them."""
    low, high = _TEMPERATURES
    return low * 1.01 < temperature < high / 1.01
