"""The scores of section 3.2 and of the contests, of exact ages, computed on the host in float64.

Ages and predictions are years. An image belongs to one of the eight age groups of Table 1 by its true age, after
`floor(age + 0.5)`: 10.4 is in 1-10, 10.5 in 11-20. Babies (0.4 is 0 years) and people over 81 (81.5 is 82) are in two
groups of their own, `OUTSIDE`, in no score over the eight. An undefined score is NaN (None in `to_dict`), never 0.
"""

import dataclasses
import math
from dataclasses import asdict, dataclass

import numpy as np

from lae_jax.runtime.errors import InputError

GROUPS = ("1-10", "11-20", "21-30", "31-40", "41-50", "51-60", "61-70", "71-81")
OUTSIDE = ("0", "82+")  # whole ages outside Table 1
ALL_GROUPS = (*GROUPS, *OUTSIDE)
MAX_CS = 10  # years: the cumulative score is computed for 0..MAX_CS


@dataclass(frozen=True, eq=False)
class AgeReport:
    """The scores of one list of predictions. Arrays of 8 are in the order of `GROUPS`, those of 2 of `OUTSIDE`.

    A group without an image has NaN. If one of the eight has none, `sigma`, `mmae` and both editions of AAR are
    undefined (NaN); `missing_groups` names it.
    """

    n: int  # images, including ages outside 1-81
    mae: float  # equation 5, years, over all n
    group_mae: np.ndarray  # (8,) years
    group_count: np.ndarray  # (8,) images
    bias: np.ndarray  # (8,) years, mean of prediction - age: positive where predictions are too old
    sigma: float  # equation 7, years: deviation from `mae`, not from the mean of `group_mae`
    mmae: float  # years: the mean of `group_mae`
    mean_group_mae: float  # years: the mean over the groups that have images, defined without all eight
    aar_2021: float  # equation 6, 0 to 10
    aar_2022: float  # 0 to 10
    cs: np.ndarray  # (11,) fraction of images with |error| <= k years, k = 0..10
    missing_groups: tuple[str, ...]
    outside_mae: np.ndarray  # (2,) years
    outside_count: np.ndarray  # (2,) images
    outside_bias: np.ndarray  # (2,) years

    def to_dict(self) -> dict:
        """Returns the fields as plain numbers, strings and lists for JSON; an undefined score is None."""
        return {name: plain(value) for name, value in asdict(self).items()}


def age_report(ages: np.ndarray, predictions: np.ndarray) -> AgeReport:
    """Computes equations 5, 6 and 7 and the further scores of `AgeReport`.

    Args:
      ages: (n,) years. Ages outside 1-81 count in `mae`, `cs` and `outside_...`, and in none of the eight groups.
      predictions: (n,) years.

    Raises:
      InputError: There are no ages, the lengths differ, or values are not finite; the message has their number and the
        index of the first.
    """
    ages, predictions = finite("ages", ages), finite("predictions", predictions)
    if ages.size != predictions.size:
        raise InputError(f"{ages.size} ages but {predictions.size} predictions: each age needs one prediction")
    if not ages.size:
        raise InputError("there are no ages to score")
    return of_differences(ages, predictions - ages)


def of_differences(ages: np.ndarray, differences: np.ndarray) -> AgeReport:
    """Computes `AgeReport` from signed errors: (n,) years, which give the age groups, and (n,) years."""
    errors = np.abs(differences)
    mae = float(errors.mean())
    all_count, all_mae, all_bias = by_group(ages, differences)
    inside, outside = slice(len(GROUPS)), slice(len(GROUPS), None)
    count, group_mae, there = all_count[inside], all_mae[inside], all_count[inside] > 0
    sigma = group_deviation(group_mae, mae)
    mmae = float(group_mae.mean())
    return AgeReport(
        n=ages.size,
        mae=mae,
        group_mae=group_mae,
        group_count=count,
        bias=all_bias[inside],
        sigma=sigma,
        mmae=mmae,
        mean_group_mae=float(group_mae[there].mean()) if there.any() else math.nan,
        aar_2021=aar_2021(mae, sigma),
        aar_2022=aar_2022(mmae, sigma),
        cs=(errors[:, None] <= np.arange(MAX_CS + 1)).mean(axis=0),
        missing_groups=tuple(name for name, here in zip(GROUPS, there, strict=True) if not here),
        outside_mae=all_mae[outside],
        outside_count=all_count[outside],
        outside_bias=all_bias[outside],
    )


def by_group(ages: np.ndarray, differences: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns images, mean absolute difference and mean difference of `ALL_GROUPS`: (n,), (n,) -> three of (10,).

    A group without an image has NaN.
    """
    group = extended_group(ages)
    count = np.bincount(group, minlength=len(ALL_GROUPS))
    totals = (np.bincount(group, weights=d, minlength=len(ALL_GROUPS)) for d in (np.abs(differences), differences))
    means = (np.divide(t, count, out=np.full(len(t), np.nan), where=count > 0) for t in totals)
    return count, *means


def reweighted(report: AgeReport, group_count: np.ndarray) -> AgeReport:
    """Returns the scores to expect on a split with other frequencies of the groups.

    Changes mae to sum_j w_j MAE^j, and with it sigma, aar_2021 and aar_2022; all other scores stay. Use it to select on
    a long-tailed split for a split with another age distribution.

    Args:
      report: Scores on the split at hand.
      group_count: (8,) images of each group on the other split. A score is NaN if it needs a group without images in
        `report`.
    """
    weights = np.asarray(group_count, np.float64)
    used = weights > 0
    mae = float(np.average(report.group_mae[used], weights=weights[used])) if used.any() else math.nan
    sigma = group_deviation(report.group_mae, mae)
    return dataclasses.replace(
        report, mae=mae, sigma=sigma, aar_2021=aar_2021(mae, sigma), aar_2022=aar_2022(report.mmae, sigma)
    )


def age_class(ages: np.ndarray) -> np.ndarray:
    """Returns whole ages, `floor(age + 0.5)`: years of any shape -> int64.

    Raises:
      InputError: An age is NaN or Inf.
    """
    ages = np.asarray(ages, np.float64)
    check_finite("ages", ages.ravel())
    return np.floor(ages + 0.5).astype(np.int64)


def age_group(ages: np.ndarray) -> np.ndarray:
    """Returns the index in `GROUPS` of each age (Table 1), -1 outside 1-81; otherwise as `extended_group`."""
    group = extended_group(ages)
    return np.where(group < len(GROUPS), group, -1)


def extended_group(ages: np.ndarray) -> np.ndarray:
    """Returns the index in `ALL_GROUPS` of each age: finite years of any shape -> int64."""
    whole, last = age_class(ages), len(GROUPS) - 1
    inside = np.minimum((whole - 1) // 10, last)
    return np.where(whole < 1, last + 1, np.where(whole > 81, last + 2, inside))


def group_deviation(group_mae: np.ndarray, mae: float) -> float:
    """Returns equation 7, `sigma = sqrt(sum_j (MAE^j - MAE)^2 / 8)`, the deviation from the overall MAE.

    Args:
      group_mae: (..., 8) years.
      mae: (...) years.

    Returns:
      (...) years; NaN where a group is NaN.
    """
    differences = np.asarray(group_mae, np.float64) - np.asarray(mae)[..., None]
    return np.sqrt(np.mean(differences**2, axis=-1))


def aar_2021(mae: float, sigma: float) -> float:
    """Returns equation 6, the index of Guess The Age 2021: `max(0, 7 - MAE) + max(0, 3 - sigma)`; NaN in, NaN out."""
    # np.maximum and not max: max(0, nan) is 0, and an undefined score would look like a bad one.
    return np.maximum(0.0, 7.0 - mae) + np.maximum(0.0, 3.0 - sigma)


def aar_2022(mmae: float, sigma: float) -> float:
    """Returns the index of the 2022 contest: `max(0, 5 - mMAE) + max(0, 5 - sigma)`, same sigma; NaN in, NaN out."""
    return np.maximum(0.0, 5.0 - mmae) + np.maximum(0.0, 5.0 - sigma)


def class_mae(ages: np.ndarray, predictions: np.ndarray) -> float:
    """Returns the mean, over the whole ages that occur, of the MAE of each age: (n,) years -> years.

    Every age has the same weight. Source: CMAE of Bao et al., "General vs. Long-Tailed Age Estimation", IEEE TIP 2023.
    """
    classes, errors = age_class(ages), np.abs(np.subtract(predictions, ages, dtype=np.float64))
    count = np.bincount(classes - classes.min())
    total = np.bincount(classes - classes.min(), errors)
    return float((total[count > 0] / count[count > 0]).mean())


SHOTS = ("many", "medium", "few")


def shots(ages: np.ndarray, training_count: np.ndarray) -> np.ndarray:
    """Returns the index in `SHOTS` of each age: more than 100, 20 to 100, fewer than 20 training images of that age.

    Ages without training images are few-shot, as in the code of the source: Yang et al., "Delving into Deep Imbalanced
    Regression", ICML 2021.

    Args:
      ages: (n,) years; whole ages are compared.
      training_count: (K,) images of the whole ages 0..K-1; all other ages have none.
    """
    classes, training_count = age_class(ages), np.asarray(training_count)
    known = (classes >= 0) & (classes < len(training_count))
    count = np.where(known, training_count[np.where(known, classes, 0)], 0)
    return np.where(count > 100, 0, np.where(count < 20, 2, 1))


_SMALLEST_ERROR = 1e-6  # years: a single error of 0 would make the geometric mean 0


def log_errors(ages: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """Returns logarithms of the absolute errors, (n,) years -> (n,); an error below 1e-6 years counts as 1e-6."""
    return np.log(np.maximum(np.abs(np.subtract(predictions, ages, dtype=np.float64)), _SMALLEST_ERROR))


def geometric_mean(ages: np.ndarray, predictions: np.ndarray) -> float:
    """Returns `(prod_i |error_i|)^(1/n)`, (n,) years -> years: small if most errors are, however large the largest are.

    Source: Yang et al., "Delving into Deep Imbalanced Regression", ICML 2021.
    """
    return float(np.exp(log_errors(ages, predictions).mean()))


def epsilon_errors(means: np.ndarray, spreads: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """Returns `1 - exp(-(prediction - mean)^2 / (2 spread^2))` of each image; the epsilon-error is the mean of these.

    Source: Escalera et al., "ChaLearn Looking at People 2015: Apparent Age and Cultural Event Recognition", ICCV
    Workshops 2015.

    Args:
      means: (n,) years, mean of the ages that people guessed.
      spreads: (n,) years, standard deviation of these. If it is 0, the error is 0 at the mean and 1 elsewhere.
      predictions: (n,) years.

    Returns:
      (n,) in [0, 1].

    Raises:
      InputError: Values are not finite, or spreads are below 0.
    """
    means, spreads, predictions = finite("means", means), finite("spreads", spreads), finite("ages", predictions)
    if (spreads < 0).any():
        raise InputError(f"{(spreads < 0).sum()} spreads are below 0: a standard deviation is 0 or more")
    distance = np.abs(predictions - means)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(distance > 0, distance / spreads, 0.0)
    return 1 - np.exp(-(ratio**2) / 2)


@dataclass(frozen=True)
class Decision:
    """Counts of a decision that accepts a person as `threshold` years or older if P(age >= threshold) >= `cut`.

    A false accept is a younger person who is accepted; a false reject is an older person who is not.
    Source: the false positive and false negative rates of NIST IR 8525, "Face Analysis Technology Evaluation: Age
    Estimation and Verification", 2024.
    """

    threshold: float
    cut: float
    younger: int
    older: int
    false_accepts: int
    false_rejects: int

    @property
    def false_accept_rate(self) -> float:
        """Fraction of the younger people; NaN if there are none."""
        return self.false_accepts / self.younger if self.younger else math.nan

    @property
    def false_reject_rate(self) -> float:
        """Fraction of the older people; NaN if there are none."""
        return self.false_rejects / self.older if self.older else math.nan


def decision(ages: np.ndarray, chances: np.ndarray, threshold: float, cut: float) -> Decision:
    """Counts the accepts and rejects of a decision about an age.

    Args:
      ages: (n,) true ages in years.
      chances: (n,) P(age >= threshold).
      threshold: Years.
      cut: In (0, 1].
    """
    older, accepted = np.asarray(ages) >= threshold, np.asarray(chances) >= cut
    counts = ((~older).sum(), older.sum(), (accepted & ~older).sum(), (older & ~accepted).sum())
    return Decision(threshold, cut, *map(int, counts))


def finite(name: str, values: np.ndarray) -> np.ndarray:
    """Returns `values` in float64; raises InputError if they are not a list of finite numbers."""
    values = np.asarray(values, np.float64)
    if values.ndim != 1:
        raise InputError(f"{name} should be a list of numbers, shape (n,), not {values.shape}")
    check_finite(name, values)
    return values


def check_finite(name: str, values: np.ndarray) -> None:
    """Raises InputError if rows of `values`, (n, ...), are not finite, with their number and the index of the first."""
    bad = np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(axis=1)) if values.size else []
    if len(bad):
        raise InputError(f"{len(bad)} of {len(values)} {name} are not finite, the first at index {bad[0]}")


def plain(value: object) -> object:
    """Returns arrays and tuples as lists and numpy's numbers as Python's, for JSON; NaN and Inf become None."""
    if isinstance(value, np.ndarray | tuple | list):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
