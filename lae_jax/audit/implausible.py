"""Ages that are implausible as a whole: rounded, numbers of classes, or not those in the names of the files."""

import re
from collections.abc import Iterator

import numpy as np

from lae_jax import metrics

# Whipple's index (United Nations, Demographic Yearbook): ages with at most 1.10 count as fairly accurate.
HEAPED = 1.10
_SURE = 4.0  # standard deviations by which a share must differ from chance
_CLASSES = range(10, 81)  # oldest "age" of what may be numbers of classes
_IMAGES_OF_A_CLASS = 5  # on average
_LOOKED_AT = 20_000  # names, of more
_NAMED = 100  # names with a number that are enough to compare them with the ages
_MOST = 0.9  # share of these names that must differ from the age in the same way
_BEGINS = re.compile(r"(?:.*[/\\])?([0-9]{1,3})[^0-9.][^/\\]*")


def findings(names: np.ndarray, ages: np.ndarray) -> Iterator[tuple[str, str, int, str]]:
    """Yields (kind, severity, count, message).

    Args:
      names: (N,) of the images.
      ages: (N,) years, exact.
    """
    heaped = heaping(ages)
    if heaped and heaped[0] > HEAPED and heaped[1] > _SURE:
        share = f"{heaped[0] / 5:.1%} of the ages are multiples of 5; a smooth histogram has 20 %"
        yield "heaped_ages", "warning", len(ages), f"{share}: many ages are rounded"
    named = offset(names, ages)
    if named and named[0]:
        years, example = named
        told = f"the names begin with a number that is the age {'+' if years > 0 else '-'} {abs(years)} ({example})"
        yield "age_unlike_name", "warning", len(ages), f"{told}: the ages may be numbers of classes, or shifted"
    elif not named and looks_like_classes(ages):
        told = f"the ages are whole numbers from 0 to {ages.max():.0f} without a gap"
        yield "class_numbers", "note", len(ages), f"{told}: if they are numbers of classes, add the youngest age"


def heaping(ages: np.ndarray) -> tuple[float, float] | None:
    """Computes Whipple's index of ages in years.

    The index is the share of whole ages that are multiples of 5, divided by the fifth of their neighbourhood (two years
    to both sides) that a smooth histogram has there: 1 means no heaping, 5 means multiples of 5 only. Only multiples
    whose neighbourhood is between the 1st and 99th percentile count.

    Returns:
      (index, standard deviations from chance); None where no multiple counts.
    """
    if not len(ages):
        return None
    whole = metrics.age_class(ages)
    low, high = np.percentile(whole, [1, 99])
    count = np.bincount(np.maximum(whole, 0), minlength=int(whole.max()) + 3)
    middles = [m for m in range(5, int(whole.max()) + 1, 5) if low <= m - 2 and m + 2 <= high]
    around = sum(count[m - 2 : m + 3].sum() for m in middles)
    if not around:
        return None
    share = count[middles].sum() / around
    return float(5 * share), float((share - 0.2) / np.sqrt(0.16 / around))


def looks_like_classes(ages: np.ndarray) -> bool:
    """Whether ages are whole, begin at 0 and have no gap, as numbers of classes (the age minus the youngest one)."""
    if not len(ages) or ages.min() != 0 or (ages != np.floor(ages)).any():
        return False
    oldest = int(ages.max())
    return oldest in _CLASSES and len(np.unique(ages)) == oldest + 1 and len(ages) >= _IMAGES_OF_A_CLASS * (oldest + 1)


def offset(names: np.ndarray, ages: np.ndarray) -> tuple[int, str] | None:
    """Compares the ages with the numbers that names begin with: `26_0_1_2017.jpg`.

    Args:
      names: (N,) of the images.
      ages: (N,) years.

    Returns:
      (years, example): the numbers are the ages plus `years` in nearly all names. None if there is no such rule, or
      most names have no number. Numbers that count the images do not repeat and say nothing.
    """
    step = len(names) // _LOOKED_AT + 1
    looked = [*zip(names[::step].tolist(), ages[::step].tolist(), strict=True)]
    found = [(int(match[1]), age, name) for name, age in looked if (match := _BEGINS.fullmatch(name))]
    if len(found) < max(_NAMED, len(looked) / 2):
        return None
    numbers, of_age = (np.array([one[i] for one in found]) for i in (0, 1))
    if len(np.unique(numbers)) > len(numbers) / 2 or len(np.unique(of_age)) < 3:
        return None
    years, counts = np.unique(numbers - of_age, return_counts=True)
    most = years[counts.argmax()]
    if counts.max() < _MOST * len(found) or most != int(most):
        return None
    example = next(f"{name}: {age:g}" for number, age, name in found if number - age == most)
    return int(most), example
