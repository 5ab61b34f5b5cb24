"""Scores of an evaluation, as functions of sums over its images, with intervals and paired differences."""

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np

from lae_jax import metrics
from lae_jax.report import age_groups, bootstrap
from lae_jax.report.tables import Estimate

_GROUPS, _ALL_GROUPS, _SHOTS = len(metrics.GROUPS), len(metrics.ALL_GROUPS), len(metrics.SHOTS)
_CHUNK = 50_000  # images whose columns are in memory at a time
_MOST_VALUES = 20  # of a column, the most frequent; the rest becomes one value
_FEW_NUMBERS = 12  # a column with more different numbers is split into quarters


@dataclasses.dataclass(frozen=True)
class Score:
    """A score and how it is shown.

    Attributes:
      name: Key in `Scored`.
      title: Heading of its column or row.
      better: -1 if lower is better, 1 if higher is better, 0 if neither.
      digits: Digits after the point.
      percent: Whether it is a share that is shown in per cent.
    """

    name: str
    title: str
    better: int = -1
    digits: int = 2
    percent: bool = False


MAIN = (
    Score("mae", "MAE"),
    *(Score(f"mae_{group}", group) for group in metrics.ALL_GROUPS),
    Score("sigma", "sigma"),
    Score("aar_2021", "AAR 2021", 1),
    Score("aar_2022", "AAR 2022", 1),
    Score("cs5", "CS@5", 1, 1, True),
)
MORE = (
    Score("mmae", "mMAE, mean over the groups"),
    Score("class_mae", "class-wise MAE, mean over the ages"),
    *(Score(f"mae_{shot}", f"MAE, {shot}-shot ages") for shot in metrics.SHOTS),
    Score("geometric_mean", "geometric mean of the errors"),
    *(Score(f"geometric_mean_{shot}", f"geometric mean, {shot}-shot ages") for shot in metrics.SHOTS),
    Score("bias", "bias", 0),
    Score("epsilon", "epsilon-error", -1, 3),
)
# Where ages are ranges: errors are distances to the range, and `MAIN` and `MORE` are of the images with an exact age.
OF_RANGES = (
    Score("distance", "distance"),
    *(Score(f"distance_{group}", f"distance {group}") for group in metrics.ALL_GROUPS),
    Score("distance_sigma", "sigma of the distances"),
    Score("in_range", "in range", 1, 1, True),
)
UNCLEAR = "not distinguishable"  # the verdict on a difference whose interval holds 0, or that has none
# Scores of all images where ages are ranges -> their names where all are exact.
_OF_ALL = {
    "distance": "mae",
    **{f"distance_{group}": f"mae_{group}" for group in metrics.ALL_GROUPS},
    "distance_sigma": "sigma",
    **{name: name for name in ("in_range", "bias", "epsilon", *(f"bias_{group}" for group in metrics.ALL_GROUPS))},
}
BIAS = tuple(Score(f"bias_{group}", f"bias {group}", 0) for group in metrics.ALL_GROUPS)


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """Ages and predictions of the same images.

    Attributes:
      ages: (N,) years; of a range, the age that stands for it.
      predictions: (N,) years.
      people: (N,) numbers of people, -1 where unknown.
      training_count: (K,) training images of each whole age; None if unknown.
      guesses: (N, 2) mean and standard deviation of people's guesses, NaN where unknown; or None.
      ranges: (N, 2) first and last age, equal where the age is exact; None if all ages are exact.
    """

    ages: np.ndarray
    predictions: np.ndarray
    people: np.ndarray
    training_count: np.ndarray | None = None
    guesses: np.ndarray | None = None
    ranges: np.ndarray | None = None

    def part(self, places: np.ndarray | slice) -> "Sample":
        """Returns the sample of some images, by place or mask."""
        return dataclasses.replace(
            self,
            ages=self.ages[places],
            predictions=self.predictions[places],
            people=self.people[places],
            guesses=None if self.guesses is None else self.guesses[places],
            ranges=None if self.ranges is None else self.ranges[places],
        )

    @property
    def is_exact(self) -> np.ndarray:
        """Which images have an exact age, (N,) bool."""
        return np.full(len(self.ages), True) if self.ranges is None else self.ranges[:, 0] == self.ranges[:, 1]

    @property
    def exact(self) -> "Sample":
        """The images with an exact age, of which there may be none."""
        return self if self.ranges is None else dataclasses.replace(self.part(self.is_exact), ranges=None)

    @property
    def differences(self) -> np.ndarray:
        """Prediction - age of each image, (N,) years; of a range, the signed distance to it, 0 inside."""
        if self.ranges is None:
            return np.asarray(self.predictions, np.float64) - np.asarray(self.ages, np.float64)
        return metrics.range_differences(self.ranges, self.predictions)

    def decided(self, threshold: float) -> np.ndarray:
        """Whether each image is known to show someone younger or older than a threshold in years, (N,) bool."""
        if self.ranges is None:
            return np.full(len(self.ages), True)
        return (self.ranges[:, 0] >= threshold) | (self.ranges[:, 1] < threshold)

    def by_range(self) -> dict[str, np.ndarray]:
        """Returns the ranges, the youngest first, with the mask (N,) of their images; the most frequent of many."""
        if self.ranges is None:
            return {}
        labels, place, count = metrics.label_classes(self.ranges)
        wide = np.flatnonzero(labels[:, 0] < labels[:, 1])
        kept = np.sort(wide[np.argsort(-count[wide], kind="stable")][:_MOST_VALUES])
        return {metrics.label_text(*labels[one]): place == one for one in kept}

    @property
    def epsilons(self) -> np.ndarray:
        """The epsilon-error of each image, (N,); NaN where the guesses are unknown."""
        result = np.full(len(self.ages), np.nan)
        if self.guesses is not None:
            known = np.isfinite(self.guesses).all(axis=1)
            result[known] = metrics.epsilon_errors(*self.guesses[known].T, self.predictions[known])
        return result

    @property
    def unit(self) -> str:
        """What is resampled: 'people' if any person is known, otherwise 'images'."""
        return "people" if (self.people >= 0).any() else "images"


@dataclasses.dataclass(frozen=True, eq=False)
class Scored:
    """The scores of a sample.

    Attributes:
      values: Score -> number, NaN where undefined.
      drawn: Score -> (B,) numbers of the replicates; empty if there are too few units.
      units: Share -> number of people or images that it is of.
    """

    values: dict[str, float]
    drawn: dict[str, np.ndarray]
    units: dict[str, int]

    def estimate(self, score: Score) -> Estimate:
        """Returns a score with its 95 % interval."""
        value, low, high = self.values.get(score.name, math.nan), math.nan, math.nan
        if score.name in self.drawn:
            drawn = self.drawn[score.name]
            if score.percent:
                low, high = bootstrap.share_interval(value, drawn, self.units[score.name])
            else:
                low, high = bootstrap.interval(value, drawn)
        return Estimate(value, low, high, score.digits, score.percent)

    def difference(self, other: "Scored", score: Score) -> Estimate:
        """Returns this score minus that of `other` with its 95 % interval, from paired replicates."""
        value = self.values.get(score.name, math.nan) - other.values.get(score.name, math.nan)
        low = high = math.nan
        if score.name in self.drawn and score.name in other.drawn:
            low, high = bootstrap.interval(value, self.drawn[score.name] - other.drawn[score.name])
            error = "distance" if score.name == "in_range" else "mae"
            if score.percent and low == high == 0 and not np.array_equal(self.drawn[error], other.drawn[error]):
                # The predictions differ, but the share does not: among other images it may differ by at most this.
                high = bootstrap.share_interval(0.0, self.drawn[score.name], self.units[score.name])[1]
                low = -high
        return Estimate(value, low, high, score.digits, score.percent, signed=True)


def verdict(difference: Estimate, score: Score) -> str:
    """Returns 'better' or 'worse', `UNCLEAR` if a difference's interval holds 0, 'the same' if it holds only 0."""
    if difference.is_zero:
        return "the same"
    if not (difference.low > 0 or difference.high < 0):
        return UNCLEAR
    return "better" if (difference.value > 0) == (score.better > 0) else "worse"


def score(sample: Sample, seed: int = 0) -> Scored:
    """Returns the scores of `MAIN`, `MORE` and `BIAS` with their replicates; the seed decides the replicates.

    Where ages are ranges, it has those of `OF_RANGES` and `BIAS` too, and `MAIN` and `MORE` are of the exact ages.
    """
    found = _score(sample, seed)
    if sample.ranges is None:
        exact = [{name: of[name] for name in of if name != "in_range"} for of in (found.values, found.drawn)]
        return Scored(*exact, found.units)
    whole = [{new: of[old] for new, old in _OF_ALL.items() if old in of} for of in (found.values, found.drawn)]
    units = {"in_range": int(bootstrap.single(sample.people[~sample.is_exact]).max(initial=-1)) + 1}
    exact = sample.exact
    if len(exact.ages):
        part = _score(exact, seed)
        own = [{name: of[name] for name in of if name not in _OF_ALL} for of in (part.values, part.drawn)]
        whole, units = [{**a, **b} for a, b in zip(own, whole, strict=True)], {**part.units, **units}
    return Scored(*whole, units)


def _score(sample: Sample, seed: int) -> Scored:
    unit, classes = bootstrap.units(sample.people, seed), np.unique(metrics.age_class(sample.ages))
    count, sums = int(unit.max()) + 1, 0.0
    for start in range(0, len(unit), _CHUNK):
        part = slice(start, start + _CHUNK)
        columns = np.concatenate(_columns(sample.part(part), classes), axis=1)
        sums = sums + bootstrap.by_unit(unit[part], columns, count)
    edges = np.cumsum([9, 3 * _ALL_GROUPS, 2 * len(classes)])

    def statistics(sums: np.ndarray) -> dict[str, np.ndarray]:
        return _statistics(*np.split(sums, edges, axis=-1))

    values = {name: float(value) for name, value in statistics(sums.sum(axis=0)).items()}
    drawn = statistics(bootstrap.replicates(sums, seed)) if count > bootstrap.TOO_FEW else {}
    return Scored(values, drawn, {"cs5": int(bootstrap.single(sample.people).max()) + 1})


def decisions(
    sample: Sample, chances: np.ndarray, threshold: float, cuts: Sequence[float], seed: int = 0
) -> list[tuple[metrics.Decision, Estimate, Estimate]]:
    """Scores P(age >= threshold) as a decision at each cut.

    Images whose range holds the threshold are left out: they show neither younger nor older people for sure.

    Args:
      sample: Ages and people.
      chances: (N,) P(age >= threshold).
      threshold: Age in years.
      cuts: Smallest chances at which a person counts as old enough.
      seed: Seed of the replicates.

    Returns:
      For each cut the decision, its rate of false accepts and its rate of false rejects; nothing if no image is left.
    """
    decided = sample.decided(threshold)
    if not decided.any():
        return []
    sample, chances = sample.part(decided), np.asarray(chances)[decided]
    found = [metrics.decision(sample.ages, chances, threshold, cut) for cut in cuts]
    older = np.asarray(sample.ages)[:, None] >= threshold
    accepted = np.asarray(chances)[:, None] >= np.asarray(cuts)
    columns = np.concatenate([~older, older, accepted & ~older, older & ~accepted], axis=1)
    unit, single = bootstrap.units(sample.people, seed), bootstrap.single(sample.people)
    drawn = bootstrap.replicates(bootstrap.by_unit(unit, columns, int(unit.max()) + 1), seed)

    def rate(value: float, wrong: int, of: int) -> Estimate:
        count = len(np.unique(single[columns[:, of]]))
        low = high = math.nan
        if count > bootstrap.TOO_FEW:
            low, high = bootstrap.share_interval(value, _ratio(drawn[:, wrong], drawn[:, of]), count)
        return Estimate(value, low, high, digits=1, percent=True)

    return [
        (one, rate(one.false_accept_rate, 2 + i, 0), rate(one.false_reject_rate, 2 + len(cuts) + i, 1))
        for i, one in enumerate(found)
    ]


def _columns(sample: Sample, classes: np.ndarray) -> list[np.ndarray]:
    """What is summed over the images: in total, by age group, by whole age, by shot."""
    ages, differences, is_range = np.asarray(sample.ages, np.float64), sample.differences, ~sample.is_exact
    errors = np.abs(differences)
    logs, inside = metrics.log_errors(np.zeros_like(errors), errors), is_range & (errors == 0)
    group = _one_hot(metrics.extended_group(ages), _ALL_GROUPS)
    by_class = _one_hot(np.searchsorted(classes, metrics.age_class(ages)), len(classes))
    shot = np.zeros((len(ages), _SHOTS))
    if sample.training_count is not None:
        shot = _one_hot(metrics.shots(ages, sample.training_count), _SHOTS)
    epsilons = sample.epsilons
    known = ~np.isnan(epsilons)
    epsilons = np.where(known, epsilons, 0.0)
    return [
        np.stack(
            [np.ones_like(errors), errors, differences, errors <= 5, logs, epsilons, known, inside, is_range], axis=1
        ),
        np.concatenate([group, group * errors[:, None], group * differences[:, None]], axis=1),
        np.concatenate([by_class, by_class * errors[:, None]], axis=1),
        np.concatenate([shot, shot * errors[:, None], shot * logs[:, None]], axis=1),
    ]


def group_count(ages: np.ndarray) -> np.ndarray:
    """Returns the number of images of each group of `metrics.ALL_GROUPS`: (N,) years -> (10,)."""
    return np.bincount(metrics.extended_group(ages), minlength=_ALL_GROUPS)


def main_scores(sample: Sample) -> list[Score]:
    """Returns those of `OF_RANGES`, where ages are ranges, and those of `MAIN`, where ages are exact.

    Scores of babies and of people over 81 are left out where there are none.
    """
    found = []
    for scores, error, some in ((OF_RANGES, "distance", sample), (MAIN, "mae", sample.exact)):
        if (error == "mae" or sample.ranges is not None) and len(some.ages):
            hidden = {f"{error}_{group}" for group in {*metrics.OUTSIDE} - {*age_groups.shown(some.ages)}}
            found += [score for score in scores if score.name not in hidden]
    return found


def error_scores(sample: Sample) -> dict[str, Score]:
    """Returns the score of the error of each group of `metrics.ALL_GROUPS`: MAE, or distance where ages are ranges."""
    known, error = (MAIN, "mae") if sample.ranges is None else (OF_RANGES, "distance")
    by_name = {score.name: score for score in known}
    return {group: by_name[f"{error}_{group}"] for group in metrics.ALL_GROUPS}


def _one_hot(places: np.ndarray, count: int) -> np.ndarray:
    return (places[:, None] == np.arange(count)).astype(np.float64)


def _statistics(total, by_group, by_class, by_shot) -> dict[str, np.ndarray]:
    """From sums (..., M) of `_columns` to score -> (...)."""
    count, errors, differences, within, logs, epsilons, with_epsilon, inside, ranges = np.moveaxis(total, -1, 0)
    group_count, group_errors, group_differences = np.split(by_group, 3, axis=-1)
    class_count, class_errors = np.split(by_class, 2, axis=-1)
    shot_count, shot_errors, shot_logs = np.split(by_shot, 3, axis=-1)
    mae, group_mae, bias = errors / count, _ratio(group_errors, group_count), _ratio(group_differences, group_count)
    of_paper = group_mae[..., :_GROUPS]
    sigma, mmae = metrics.group_deviation(of_paper, mae), of_paper.mean(axis=-1)
    of_shot, logs_of_shot = _ratio(shot_errors, shot_count), _ratio(shot_logs, shot_count)
    of_class = np.where(class_count > 0, _ratio(class_errors, class_count), 0.0)
    return {
        "mae": mae,
        **{f"mae_{name}": group_mae[..., j] for j, name in enumerate(metrics.ALL_GROUPS)},
        "sigma": sigma,
        "aar_2021": metrics.aar_2021(mae, sigma),
        "aar_2022": metrics.aar_2022(mmae, sigma),
        "cs5": within / count,
        "mmae": mmae,
        "class_mae": of_class.sum(axis=-1) / (class_count > 0).sum(axis=-1),
        **{f"mae_{name}": of_shot[..., j] for j, name in enumerate(metrics.SHOTS)},
        "geometric_mean": np.exp(logs / count),
        **{f"geometric_mean_{name}": np.exp(logs_of_shot[..., j]) for j, name in enumerate(metrics.SHOTS)},
        "bias": differences / count,
        "epsilon": _ratio(epsilons, with_epsilon),
        "in_range": _ratio(inside, ranges),
        **{f"bias_{name}": bias[..., j] for j, name in enumerate(metrics.ALL_GROUPS)},
    }


def _ratio(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    return np.divide(total, count, out=np.full(np.shape(total), np.nan), where=count > 0)


def values_of(values: Sequence) -> dict[str, np.ndarray]:
    """Splits a column (N,) by value: value -> mask (N,), the most frequent value first.

    A column with many different numbers is split into quarters. In other columns, all values but the 20 most frequent
    become one. Empty cells are 'unknown'.
    """
    texts = np.array(["" if value is None or value != value else str(value) for value in values], object)
    known = texts != ""
    numbers = _numbers(texts[known])
    if numbers is not None and len(np.unique(numbers)) > _FEW_NUMBERS:
        edges = np.unique(np.quantile(numbers, [0, 0.25, 0.5, 0.75, 1]))
        place = np.clip(np.searchsorted(edges, numbers, side="right") - 1, 0, len(edges) - 2)
        names = [f"{low:g} to {high:g}" for low, high in itertools.pairwise(edges)]
        labels = np.full(len(texts), "unknown", object)
        labels[known] = np.array(names, object)[place]
        order = [*names, "unknown"]
    else:
        labels = np.where(known, texts, "unknown")
        found, count = np.unique(labels.astype(str), return_counts=True)
        order = found[np.argsort(-count, kind="stable")].tolist()
        if len(order) > _MOST_VALUES:
            rest = set(order[_MOST_VALUES:])
            labels = np.array([f"{len(rest)} others" if label in rest else label for label in labels], object)
            order = [*order[:_MOST_VALUES], f"{len(rest)} others"]
    masks = {name: labels == name for name in order}
    return {name: mask for name, mask in masks.items() if mask.any()}


def _numbers(texts: np.ndarray) -> np.ndarray | None:
    try:
        numbers = texts.astype(np.float64)
    except ValueError:
        return None
    return numbers if len(numbers) and np.isfinite(numbers).all() else None
