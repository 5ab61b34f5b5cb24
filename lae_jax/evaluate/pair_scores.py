"""Scores of people who are verified on a list of pairs: accuracy by folds, and true accept rates with intervals."""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from lae_jax.report import bootstrap

# Rates of false accepts at which true accepts are told.
FALSE_ACCEPTS = (1e-2, 1e-3, 1e-4)
_TOGETHER = 4_000_000  # weights of pairs in memory
_ROUNDING = 1e-9


def score(similarities: np.ndarray, same: np.ndarray, folds: np.ndarray, people: np.ndarray | None = None) -> dict:
    """Scores similarities of pairs.

    Accuracy: for each fold, the threshold that is best on the other folds (`threshold`) decides its pairs (Huang et
    al., "Labeled Faces in the Wild", 2007, view 2). The true accept rate at a rate of false accepts is the largest that
    any threshold with at most so many false accepts gives; it is undefined where there are too few pairs of different
    people for one false accept. The area under the curve is the probability that a pair of one person is more similar
    than a pair of two.

    Intervals are over people where they are known (`_of_people`), otherwise over pairs of each kind.

    Args:
      similarities: (P,) float.
      same: (P,) bool.
      folds: (P,) numbers of folds.
      people: (P, 2) numbers of the people of each pair; None: unknown.

    Returns:
      pairs, genuine_pairs, accuracy and accuracy_std (mean and standard deviation over the folds), fold_accuracy and
      fold_threshold, area_under_curve, true_accept_rates (by rate of false accepts; None: undefined), intervals (by
      score) and bootstrap, for report.json.
    """
    similarities = np.asarray(similarities, np.float64)
    accuracies, thresholds = _by_fold(similarities, same, folds)
    impostors = int((~same).sum())
    rates = [rate for rate in FALSE_ACCEPTS if rate * impostors >= 1 - _ROUNDING]
    (area, *accepted), replicates = estimates(similarities, same, people, rates)
    independent = int(same.sum()) if people is None else len(np.unique(people[same]))
    intervals = {"area_under_curve": bootstrap.interval(area, replicates[:, 0])}
    for number, (rate, value) in enumerate(zip(rates, accepted, strict=True), 1):
        name = f"true_accept_rate_{rate:g}"
        intervals[name] = bootstrap.share_interval(value, replicates[:, number], independent)
    if independent <= bootstrap.TOO_FEW:
        intervals = {}
    return {
        "pairs": len(same),
        "genuine_pairs": int(same.sum()),
        "accuracy": float(np.mean(accuracies)),
        "accuracy_std": float(np.std(accuracies)),
        "fold_accuracy": accuracies,
        "fold_threshold": thresholds,
        "area_under_curve": float(area),
        "true_accept_rates": {
            f"{rate:g}": float(accepted[rates.index(rate)]) if rate in rates else None for rate in FALSE_ACCEPTS
        },
        "intervals": {name: [*ends] for name, ends in intervals.items() if math.isfinite(sum(ends))},
        "bootstrap": {
            "units": "pairs" if people is None else "people",
            "replicates": bootstrap.REPLICATES,
            "level": bootstrap.LEVEL,
        },
    }


def estimates(
    similarities: np.ndarray, same: np.ndarray, people: np.ndarray | None, rates: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the area under the curve and the true accept rates, and those of the bootstrap's replicates.

    The replicates of two models on the same pairs are paired: their differences are those of the models.

    Args:
      similarities: (P,) float.
      same: (P,) bool.
      people: As in `score`.
      rates: (F,) rates of false accepts.

    Returns:
      (1 + F,) and (replicates, 1 + F).
    """
    curve = _Curve(similarities[same], similarities[~same])
    (found,) = curve.scores(np.ones((1, int(same.sum()))), np.ones((1, int((~same).sum()))), rates)
    drawn = _of_pairs(same) if people is None else _of_people(people, same)
    return found, np.concatenate([curve.scores(*weights, rates) for weights in drawn])


def threshold(similarities: np.ndarray, same: np.ndarray) -> float:
    """Returns the threshold from which on pairs are accepted, with the most right decisions.

    It lies in the middle between two neighbouring similarities. Of several best thresholds it is the middle one.

    Args:
      similarities: (P,) float.
      same: (P,) bool.
    """
    order = np.argsort(-similarities, kind="stable")
    falling, is_same = similarities[order], same[order]
    right = np.concatenate([[0], np.cumsum(np.where(is_same, 1, -1))])  # of the first n accepted, up to a constant
    # The first n can be accepted only where similarity n is larger than the next one.
    cuts = np.concatenate([[0], np.flatnonzero(falling[:-1] > falling[1:]) + 1, [len(falling)]])
    best = cuts[right[cuts] == right[cuts].max()]
    cut = int(best[len(best) // 2])
    ends = np.concatenate([[falling[0] + 1], falling, [falling[-1] - 1]])
    return float((ends[cut] + ends[cut + 1]) / 2)


def _by_fold(similarities: np.ndarray, same: np.ndarray, folds: np.ndarray) -> tuple[list[float], list[float]]:
    accuracies, thresholds = [], []
    for fold in np.unique(folds):
        own = folds == fold
        thresholds.append(threshold(similarities[~own], same[~own]))
        accuracies.append(float(np.mean((similarities[own] >= thresholds[-1]) == same[own])))
    return accuracies, thresholds


class _Curve:
    """The scores of weighted pairs."""

    def __init__(self, genuine: np.ndarray, impostor: np.ndarray):
        self._order, self._genuine_order = np.argsort(-impostor), np.argsort(-genuine)
        self._impostor, self._genuine = impostor[self._order], genuine[self._genuine_order]
        # Of impostor pair k: number of genuine pairs that are more similar. Of a genuine pair: number of impostor pairs
        # that are at least as similar, or more similar.
        self._above = np.searchsorted(-self._genuine, -self._impostor, side="left")
        self._not_below = np.searchsorted(-self._impostor, -self._genuine, side="right")
        self._more = np.searchsorted(-self._impostor, -self._genuine, side="left")

    def scores(self, genuine: np.ndarray, impostor: np.ndarray, rates: Sequence[float]) -> np.ndarray:
        """Returns the area under the curve and the true accept rates.

        Args:
          genuine: (R, G) weights of the genuine pairs.
          impostor: (R, I) weights of the impostor pairs.
          rates: (F,) rates of false accepts.

        Returns:
          (R, 1 + F), NaN where all weights of a kind are 0.
        """
        own, other = (
            np.concatenate([np.zeros((len(weights), 1)), np.cumsum(weights[:, order], axis=1)], axis=1)
            for weights, order in ((genuine, self._genuine_order), (impostor, self._order))
        )
        all_own, all_other = own[:, -1:], other[:, -1:]
        with np.errstate(invalid="ignore", divide="ignore"):
            # Half of those that are equal count.
            before = (other[:, self._not_below] + other[:, self._more]) / 2
            found = [1 - np.sum(np.diff(own, axis=1) * before, axis=1) / (all_own * all_other)[:, 0]]
            for rate in rates:
                # The first impostor pair that would be one too many: only genuine pairs above it are accepted.
                is_over = other[:, 1:] > rate * all_other + _ROUNDING
                first = np.argmax(is_over, axis=1)
                found.append(own[np.arange(len(own)), self._above[first]] / all_own[:, 0])
        found = np.stack(found, axis=1)
        found[(all_own == 0)[:, 0] | (all_other == 0)[:, 0]] = np.nan
        return found


def _of_pairs(same: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields weights (R, G) and (R, I) of replicates that draw the pairs of each kind."""

    def draw(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
        return _times(rng, rows, int(same.sum())), _times(rng, rows, int((~same).sum()))

    yield from _replicates(draw, len(same))


def _of_people(people: np.ndarray, same: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields weights of replicates that draw people.

    A pair of two people counts as often as both are drawn, the product. Such intervals are too wide rather than too
    narrow (Owen, "The Pigeonhole Bootstrap", 2007), most where a person is in one pair alone.
    """
    numbers = np.unique(people, return_inverse=True)[1].reshape(-1, 2)
    count = int(numbers.max()) + 1

    def draw(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
        times = _times(rng, rows, count)
        of_two = times[:, numbers[~same, 0]] * times[:, numbers[~same, 1]]
        return times[:, numbers[same, 0]], of_two

    yield from _replicates(draw, max(len(same), count))


def _times(rng: np.random.Generator, rows: int, count: int) -> np.ndarray:
    """How often each of `count` units is drawn, with replacement: (rows, count)."""
    drawn = rng.integers(count, size=(rows, count)) + count * np.arange(rows)[:, None]
    return np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count).astype(np.float64)


def _replicates(draw: Callable, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    rng, rows = np.random.default_rng(0), max(1, _TOGETHER // count)
    for first in range(0, bootstrap.REPLICATES, rows):
        yield draw(rng, min(rows, bootstrap.REPLICATES - first))
