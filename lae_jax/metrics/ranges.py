"""The scores where labels are ranges of ages, and the ages that stand for a range.

Ranges have the shape (n, 2), years: first and last age, both inside, equal where the age is exact. A range that ends at
100 has no upper end.
"""

import math
from dataclasses import asdict, dataclass

import numpy as np

from lae_jax.metrics.exact import (
    GROUPS,
    AgeReport,
    age_class,
    age_report,
    by_group,
    finite,
    group_deviation,
    of_differences,
    plain,
)
from lae_jax.runtime.errors import InputError

# From OLD on, each HALVING years halve the people of a population.
OPEN_END, OLD, HALVING = 100, 70, 5.0
_OF_EXACT = ("mae", "sigma", "mmae", "aar_2021", "aar_2022", "cs")


@dataclass(frozen=True, eq=False)
class RangeReport:
    """The scores where labels are ranges of ages. The error of a prediction is its distance to the range, 0 inside.

    An image belongs to the age group of `label_age`. Arrays of 8 are in the order of `GROUPS`, those of 2 of `OUTSIDE`.
    A score that no image or group has is NaN; `missing_groups` names the groups without an image.
    """

    n: int  # images
    n_exact: int  # images with an exact age
    distance: float  # years, mean over all images; of an exact age it is the absolute error
    in_range: float  # share of the ranges that hold the prediction; exact ages do not count
    group_distance: np.ndarray  # (8,) years
    group_count: np.ndarray  # (8,) images
    bias: np.ndarray  # (8,) years, mean of the signed distance: positive where predictions are too old
    distance_sigma: float  # years: equation 7 with distances
    mean_group_distance: float  # years: the mean over the groups that have images
    missing_groups: tuple[str, ...]
    outside_distance: np.ndarray  # (2,) years
    outside_count: np.ndarray  # (2,) images
    outside_bias: np.ndarray  # (2,) years
    exact: AgeReport | None  # of the images with an exact age

    def to_dict(self) -> dict:
        """Returns plain numbers, strings and lists for JSON; an undefined score is None.

        Of `exact` it has MAE, sigma, mMAE, AAR and CS, and nothing where no age is exact.
        """
        values = {name: value for name, value in asdict(self).items() if name != "exact"}
        if self.exact is not None:
            values |= {name: getattr(self.exact, name) for name in _OF_EXACT}
        return {name: plain(value) for name, value in values.items()}


def range_report(ranges: np.ndarray, predictions: np.ndarray) -> RangeReport:
    """Computes the scores of `RangeReport`.

    Args:
      ranges: (n, 2) years.
      predictions: (n,) years.

    Raises:
      InputError: There are no ranges, the lengths differ, or values are not finite.
    """
    ranges, predictions = _scorable(ranges, predictions)
    low, high = ranges.T
    differences, exact = range_differences(ranges, predictions), low == high
    distances = np.abs(differences)
    all_count, all_distance, all_bias = by_group(label_age(ranges), differences)
    inside, outside = slice(len(GROUPS)), slice(len(GROUPS), None)
    count, of_group, there = all_count[inside], all_distance[inside], all_count[inside] > 0
    distance = float(distances.mean())
    return RangeReport(
        n=low.size,
        n_exact=int(exact.sum()),
        distance=distance,
        in_range=float((distances[~exact] == 0).mean()) if not exact.all() else math.nan,
        group_distance=of_group,
        group_count=count,
        bias=all_bias[inside],
        distance_sigma=float(group_deviation(of_group, distance)),
        mean_group_distance=float(of_group[there].mean()) if there.any() else math.nan,
        missing_groups=tuple(name for name, here in zip(GROUPS, there, strict=True) if not here),
        outside_distance=all_distance[outside],
        outside_count=all_count[outside],
        outside_bias=all_bias[outside],
        exact=age_report(low[exact], predictions[exact]) if exact.any() else None,
    )


def distance_report(ranges: np.ndarray, predictions: np.ndarray) -> AgeReport:
    """Computes the scores of `AgeReport` with the distance to the range in place of the absolute error.

    An image belongs to the age group of `label_age`. If both ends of every range are equal, the scores are those of
    `age_report`, bit for bit.

    Args:
      ranges: (n, 2) years.
      predictions: (n,) years.

    Raises:
      InputError: As in `range_report`.
    """
    ranges, predictions = _scorable(ranges, predictions)
    return of_differences(label_age(ranges), range_differences(ranges, predictions))


def _scorable(ranges: np.ndarray, predictions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns ranges and predictions in float64, checked."""
    ranges = np.stack([finite("ages", end) for end in np.asarray(ranges, np.float64).T], axis=1)
    predictions = finite("predictions", predictions)
    if len(ranges) != predictions.size:
        raise InputError(f"{len(ranges)} ages but {predictions.size} predictions: each age needs one prediction")
    if not len(ranges):
        raise InputError("there are no ages to score")
    return ranges, predictions


def range_differences(ranges: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """Returns the signed distance of each prediction to its range, 0 inside: (n, 2) and (n,) years -> (n,) years.

    It is positive where the prediction is too old.
    """
    return predictions - np.clip(predictions, ranges[:, 0], ranges[:, 1])


def range_weights(ranges: np.ndarray) -> np.ndarray:
    """Returns how likely each whole age 0..100 is under a range alone: (n, 2) years -> (n, 101), rows sum to 1.

    The same as `losses.range_weights`, which says more.
    """
    ages, (low, high) = np.arange(101.0), np.asarray(ranges, np.float64).T[:, :, None]
    inside = (ages >= low) & (ages <= high)
    inside |= ~inside.any(axis=1, keepdims=True) & (ages == np.floor((low + high) / 2 + 0.5))
    population = np.where(high >= OPEN_END, 0.5 ** (np.maximum(ages - OLD, 0) / HALVING), 1.0)
    weights = np.where(inside, population, 0.0)
    return weights / weights.sum(axis=1, keepdims=True)


def images_by_age(ranges: np.ndarray) -> np.ndarray:
    """Returns how many images there are of each whole age 0..100: (n, 2) years -> (101,).

    An image counts at the ages of its range as `range_weights` says, and in whole where its age is exact.
    """
    labels, _, count = label_classes(ranges)
    return count @ range_weights(labels)


def label_classes(ranges: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the different labels, that of each image, and the number of images of each label.

    An exact age counts as its whole age. A range keeps its ends.

    Args:
      ranges: (n, 2) years.

    Returns:
      (C, 2) years, (n,) int64 places among these, (C,) int64.
    """
    ranges = np.asarray(ranges, np.float64)
    is_exact = ranges[:, :1] == ranges[:, 1:]
    labels = np.where(is_exact, age_class(ranges), ranges)
    labels, place, count = np.unique(labels, axis=0, return_inverse=True, return_counts=True)
    return labels, place.ravel(), count


def class_factors(labels: np.ndarray, counts: np.ndarray, power: float) -> np.ndarray:
    """Returns factors of the class-balanced order that make ages, and not labels, equally likely.

    A label with n images is drawn with probability in proportion to n^power times its factor. The factor is
    (n / m)^(1 - power), where m is the mean, over the ages of the label, of the number of images at an age, and an
    image counts at an age as `range_weights` says. If all labels are exact, n = m and the factors are 1. A range of ten
    years that no other label overlaps is as likely as ten ages.

    Args:
      labels: (C, 2), the different labels.
      counts: (C,), images of each.
      power: From 0 (ages are equally likely) to 1 (as frequent as they are).

    Returns:
      (C,) float64.
    """
    shares = range_weights(labels)
    at_age = counts @ shares
    return (counts / (shares @ at_age)) ** (1 - power)


def label_age(ranges: np.ndarray) -> np.ndarray:
    """Returns the age that stands for a range: (n, 2) years -> (n,) years, NaN where the range is unknown.

    It is the mean of the range; without an upper end, that of `range_weights`. Groups, splits and tables use it.
    """
    low, high = np.asarray(ranges, np.float64).T
    ages = (low + high) / 2
    is_open = (high >= OPEN_END) & (low < high)
    different, place = np.unique(low[is_open], return_inverse=True)
    if len(different):
        weights = range_weights(np.stack([different, np.full(len(different), float(OPEN_END))], axis=1))
        ages[is_open] = (weights @ np.arange(101.0))[place]
    return ages


def label_text(low: float, high: float) -> str:
    """Returns a label as people write it: `34`, `20-29`, `70+` without an upper end, 'age unknown' for NaN."""
    if math.isnan(low):
        return "age unknown"
    if low == high:
        return f"{low:.4g}"
    return f"{low:.4g}+" if high >= OPEN_END else f"{low:.4g}-{high:.4g}"


def coverage(below: np.ndarray, up_to: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Returns the share of labels that central intervals of predicted distributions hold, `levels` if calibrated.

    An exact age is in the interval or not. Of a range, the interval holds the share of the range's probability that is
    in it. If the distributions are calibrated, the mean is the level for ranges too, because the probability integral
    transform of a label that is only known to lie in a range is uniform between its ends (Czado, Gneiting and Held,
    "Predictive Model Assessment for Count Data", Biometrics 2009). That the interval and the range overlap says less:
    of calibrated intervals more than `level` do.

    Args:
      below: (n,) probability below the range; below the age where it is exact.
      up_to: (n,) probability up to the end of the range; equal to `below` where the age is exact.
      levels: (L,) probabilities of the intervals, 0 to 1.

    Returns:
      (L,).
    """
    width = up_to - below
    found = []
    for level in np.asarray(levels, np.float64):
        first, last = 0.5 - level / 2 - 1e-12, 0.5 + level / 2 + 1e-12
        shared = np.clip(np.minimum(up_to, last) - np.maximum(below, first), 0, None)
        is_inside = (below >= first) & (up_to <= last)
        found.append(np.divide(shared, width, out=is_inside.astype(np.float64), where=width > 0).mean())
    return np.array(found)
