"""Chooses one method for several data sets from the predictions that their benches keep, on validation alone.

Each age group counts alike, whatever its share of a validation split, and each data set counts alike. Where a bench has
a run for each fold, the predictions of all folds are scored together, because each image is predicted once. The
bootstrap then samples folds in place of people.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lae_jax import metrics
from lae_jax.longtail import certainty
from lae_jax.longtail.certainty import Difference
from lae_jax.longtail.outcomes import STAGE3, VALIDATION, Labels, Trial
from lae_jax.longtail.summaries import REFERENCE
from lae_jax.report import bootstrap, wording
from lae_jax.runtime.errors import InputError
from lae_jax.stages.methods import METHODS

# Name in table.csv -> title. The first two count all groups alike and decide the choice; the third says what a choice
# costs or gains where a test set has the frequencies of validation.
SCORES = {"mae": "MAE", "sigma": "sigma", "mae_of_images": "MAE of all images"}


class Choice(NamedTuple):
    """A method as it is used on all data sets."""

    method: str
    setting: float
    rate: float  # base_learning_rate

    @property
    def text(self) -> str:
        """The method with its setting and learning rate."""
        setting = METHODS[self.method].setting
        parts = [f"{setting} {self.setting:g}"] * bool(setting) + [f"base_learning_rate {self.rate:g}"] * bool(
            self.rate
        )
        return f"{self.method} ({', '.join(parts)})" if parts else self.method


@dataclasses.dataclass(frozen=True, eq=False)
class Bench:
    """What a bench keeps of a data set.

    Attributes:
      data: The data set, as report.json names it.
      trials: The trials on validation, of all folds together.
      present: The age groups with an image, places in `metrics.GROUPS`.
      over: What the intervals are over, in words.
    """

    data: str
    trials: Mapping[Choice, Trial]
    present: np.ndarray
    over: str

    @classmethod
    def of(cls, data: str, trials: Sequence[Trial]) -> "Bench":
        """Makes a bench of its trials, without runs of stage 3 on images.

        Raises:
          InputError: The trials differ in images, runs or seeds, or no image belongs to an age group.
        """
        heads = [one for one in trials if one.method is not STAGE3]
        first = heads[0] if heads else None
        if first is None or any(_scored(one) != _scored(first) for one in heads):
            why = "its heads were scored on different images, runs or seeds" if heads else "it has no heads"
            raise InputError(f"the bench of {data} is damaged ({why}): run it again with --run and --data")
        present = np.flatnonzero(np.bincount(np.concatenate([one.group for one in first.labels[VALIDATION]]),
                                             minlength=len(metrics.GROUPS))[: len(metrics.GROUPS)])  # fmt: skip
        if not len(present):
            raise InputError(f"{data}: no validation image has an age of 1 to 81, so no age group has a score")
        together = {Choice(one.method.name, one.setting, one.rate): _together(one) for one in heads}
        return cls(data, together, present, _over(first))

    @property
    def words(self) -> wording.BenchWords:
        """The names of the scores: where ages are ranges, the error is the distance to them."""
        return next(iter(self.trials.values())).words

    @functools.cached_property
    def _references(self) -> dict[Choice, np.ndarray]:
        """The replicates of each choice that others are compared with, kept."""
        return {}

    @functools.cached_property
    def scores(self) -> dict[Choice, np.ndarray]:
        """The `SCORES` of each choice, means over all trainings, (3,) years."""
        return {choice: self._trainings(choice).mean(axis=(0, 1)) for choice in self.trials}

    def difference(self, choice: Choice, reference: Choice) -> list[bootstrap.Joint]:
        """Returns the paired differences of the `SCORES` of two choices, with their joint intervals."""
        sample = self._trainings(choice) - self._trainings(reference)
        if reference not in self._references:
            self._references[reference] = self._replicates(reference)
        drawn = self._replicates(choice) - self._references[reference]
        count = min(certainty.units(labels) for labels in self.trials[choice].labels[VALIDATION])
        return [certainty.joint(sample[..., j], drawn[..., j], count) for j in range(len(SCORES))]

    def _trainings(self, choice: Choice) -> np.ndarray:
        """Returns the scores of each run and seed, (R, S, 3) years."""
        one = self.trials[choice]
        means = np.array([[report.mae, *report.group_mae] for report in one.reports(VALIDATION)])
        return self._scores(means).reshape(one.runs, one.seeds, len(SCORES))

    def _replicates(self, choice: Choice) -> np.ndarray:
        """Returns the scores of each run and seed in the replicates of the images, (B, R, S, 3) years."""
        one = self.trials[choice]
        means = certainty.drawn_means(one.labels[VALIDATION][0], np.concatenate(one.predictions[VALIDATION]))
        return self._scores(means).reshape(-1, one.runs, one.seeds, len(SCORES))

    def _scores(self, means: np.ndarray) -> np.ndarray:
        """Returns the scores, (..., 3), from the mean errors over all images and over each group, (..., 9)."""
        groups = means[..., 1 + self.present]
        mae = groups.mean(axis=-1)
        return np.stack([mae, metrics.group_deviation(groups, mae), means[..., 0]], axis=-1)


class Found(NamedTuple):
    """A choice for several data sets.

    Attributes:
      choice: What to use.
      reference: LAE with the learning rate that is best for it over the same data sets.
    """

    choice: Choice
    reference: Choice


def common(benches: Sequence[Bench]) -> list[Choice]:
    """Returns the choices that all benches have, in the order of the first one.

    Raises:
      InputError: LAE with one learning rate is not among them.
    """
    shared = [choice for choice in benches[0].trials if all(choice in one.trials for one in benches)]
    if not any(choice.method == REFERENCE for choice in shared):
        told = "; ".join(f"{one.data}: {_rates(one) or 'none'}" for one in benches)
        raise InputError(
            f"the benches share no base_learning_rate of {REFERENCE} ({told}): run lae_jax.longtail on each data set"
            f" with {REFERENCE} in --methods and the same --base-learning-rate"
        )
    return shared


def not_compared(benches: Sequence[Bench]) -> list[str]:
    """Returns the methods of which the benches share no setting and learning rate."""
    known = {choice.method for choice in common(benches)}
    return sorted({choice.method for one in benches for choice in one.trials} - known)


def choose(benches: Sequence[Bench], among: Sequence[Choice]) -> Found:
    """Returns the method, setting and learning rate to use on data sets such as these.

    It has the lowest mean over the data sets of MAE + sigma among the methods that can be a stage 3 and whose mean MAE
    is no higher than that of LAE, which may be chosen itself. Sigma alone is no condition: it also rises where one
    group gets better than the others.

    Args:
      benches: The benches.
      among: Choices that each of them has (`common`).
    """
    means = {choice: np.mean([one.scores[choice] for one in benches], axis=0) for choice in among}
    reference = min((one for one in means if one.method == REFERENCE), key=lambda one: _aim(means[one]))
    usable = [one for one in means if METHODS[one.method].on_images and one.method != REFERENCE]
    others = [one for one in usable if means[one][0] <= means[reference][0]]
    return Found(min([reference, *others], key=lambda one: _aim(means[one])), reference)


def best_of_each(benches: Sequence[Bench]) -> list[Choice]:
    """Returns each method with the setting and learning rate of its lowest mean MAE + sigma over the data sets."""
    best: dict[str, Choice] = {}
    for choice in common(benches):
        before = best.setdefault(choice.method, choice)
        if _sum(benches, choice) < _sum(benches, before):
            best[choice.method] = choice
    return list(best.values())


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """What the benches of several data sets say together.

    Attributes:
      benches: The benches.
      choice: What to use.
      reference: LAE with the learning rate that is best for it over the same data sets.
      differences: The best of each method and what was chosen -> for each of the `SCORES` the differences to LAE on the
        data sets.
      means: The same -> for each score the mean over the data sets, corrected after Holm for their number.
      left_out: For each data set the choice made on the others, and its differences on this one to LAE as the others
        choose it. That is what to expect on a data set that had no part in the choice.
    """

    benches: Sequence[Bench]
    choice: Choice
    reference: Choice
    differences: Mapping[Choice, Sequence[Sequence[bootstrap.Joint]]]
    means: Mapping[Choice, Sequence[Difference]]
    left_out: Sequence[tuple[Choice, Sequence[bootstrap.Joint]]]

    @property
    def order(self) -> list[Choice]:
        """All choices that are compared, and LAE: the lowest MAE + sigma first."""
        return sorted([self.reference, *self.differences], key=lambda each: _sum(self.benches, each))


def compare(benches: Sequence[Bench]) -> Comparison:
    """Chooses one method for all data sets and compares all others with LAE.

    Raises:
      InputError: They have no LAE in common.
    """
    among = common(benches)
    chosen = choose(benches, among)
    others = [each for each in best_of_each(benches) if each.method not in (REFERENCE, chosen.choice.method)]
    others += [chosen.choice] * (chosen.choice != chosen.reference)
    differences = {}
    for other in others:
        of_data_sets = [one.difference(other, chosen.reference) for one in benches]
        differences[other] = [list(of_score) for of_score in zip(*of_data_sets, strict=True)]
    left_out = []
    for number, one in enumerate(benches if len(benches) > 1 else ()):
        of_others = choose([*benches[:number], *benches[number + 1 :]], among)
        left_out.append((of_others.choice, one.difference(*of_others)))
    return Comparison(benches, *chosen, differences, _corrected(differences), left_out)


def _corrected(differences: Mapping[Choice, Sequence[Sequence[bootstrap.Joint]]]) -> dict[Choice, list[Difference]]:
    means = {choice: [bootstrap.mean_of(of_score) for of_score in scores] for choice, scores in differences.items()}
    places = [(choice, j) for choice in means for j in range(len(SCORES))]
    corrected = dict(zip(places, bootstrap.holm(np.array([means[choice][j].p for choice, j in places])), strict=True))
    return {
        choice: [Difference(*of_score[:4], float(corrected[choice, j])) for j, of_score in enumerate(scores)]
        for choice, scores in means.items()
    }


def _sum(benches: Sequence[Bench], choice: Choice) -> float:
    return float(np.mean([_aim(one.scores[choice]) for one in benches]))


def _aim(scores: np.ndarray) -> float:
    return float(scores[:2].sum())


def _rates(bench: Bench) -> str:
    return ", ".join(f"{choice.rate:g}" for choice in bench.trials if choice.method == REFERENCE)


def _scored(trial: Trial) -> tuple:
    """What the trials of a bench have in common: the images of each run, and the number of seeds."""
    return (trial.seeds, *(one.rows.tobytes() for one in trial.labels[VALIDATION]))


def _over(trial: Trial) -> str:
    """Returns what joint intervals of a bench are over."""
    labels = trial.labels[VALIDATION]
    images, seeds = sum(len(one.rows) for one in labels), f"{trial.seeds} seed{'s' * (trial.seeds != 1)}"
    if _are_folds(labels):
        return f"{len(labels)} folds with a backbone and {seeds} each, together {images} images"
    has_people = any((one.people >= 0).any() for one in labels)
    return wording.over_all(trial.runs, trial.seeds, len(labels[0].rows), has_people).partition(" over ")[2]


def _are_folds(labels: Sequence[Labels]) -> bool:
    return any(not np.array_equal(one.rows, labels[0].rows) for one in labels)


def _together(trial: Trial) -> Trial:
    """Returns a trial on validation alone; folds, which have images of their own, become one run of all images."""
    labels, predictions = trial.labels[VALIDATION], trial.predictions[VALIDATION]
    if _are_folds(labels):
        ages = [each.ages for each in labels]
        if any(each.ndim == 2 for each in ages):
            ages = [each if each.ndim == 2 else np.stack([each] * 2, axis=1) for each in ages]
        folds = np.repeat(np.arange(len(labels)), [len(each.rows) for each in labels])
        labels = [Labels(np.concatenate(ages), np.concatenate([each.rows for each in labels]), folds)]
        predictions = [np.concatenate(predictions, axis=1)]
    return dataclasses.replace(trial, labels={VALIDATION: labels}, predictions={VALIDATION: predictions})
