"""One method for several data sets, chosen from the predictions that their benches keep, on validation alone.

Each age group counts alike, whatever its share of a validation split, and each data set counts alike. Where a bench has
a run for each fold, the predictions of all folds are scored together, as each image is predicted once, and a replicate
of the bootstrap draws folds in place of people.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lae_jax import metrics
from lae_jax.longtail import certainty
from lae_jax.longtail.certainty import Difference
from lae_jax.longtail.outcomes import STAGE3, VALIDATION, Labels, Trial
from lae_jax.longtail.summaries import REFERENCE, in_words, verdict
from lae_jax.report import bootstrap, tables
from lae_jax.runtime.errors import InputError
from lae_jax.stages.methods import METHODS

# Name in table.csv -> title. The first two are of groups that count alike, and choose; the third says what a choice
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
    """

    data: str
    trials: Mapping[Choice, Trial]

    @classmethod
    def of(cls, data: str, trials: Sequence[Trial]) -> "Bench":
        """Returns a bench of its trials; runs of stage 3 on images have no part in it."""
        heads = [one for one in trials if one.method is not STAGE3]
        return cls(data, {Choice(one.method.name, one.setting, one.rate): _together(one) for one in heads})

    @functools.cached_property
    def present(self) -> np.ndarray:
        """The age groups with an image, places in `metrics.GROUPS`."""
        one = next(iter(self.trials.values()))
        return np.flatnonzero(one.reports(VALIDATION)[0].group_count > 0)

    @functools.cached_property
    def scores(self) -> dict[Choice, np.ndarray]:
        """The `SCORES` of each choice, means over all trainings, (3,) years."""
        return {choice: self._trainings(choice).mean(axis=(0, 1)) for choice in self.trials}

    def difference(self, choice: Choice, reference: Choice) -> list[bootstrap.Joint]:
        """Returns the paired differences of the `SCORES` of two choices, with their joint intervals."""
        sample = self._trainings(choice) - self._trainings(reference)
        drawn = self._replicates(choice) - self._replicates(reference)
        count = min(certainty.units(labels) for labels in self.trials[choice].labels[VALIDATION])
        return [certainty.joint(sample[..., j], drawn[..., j], count) for j in range(len(SCORES))]

    def _trainings(self, choice: Choice) -> np.ndarray:
        """Returns the scores of each run and seed, (R, S, 3) years."""
        one = self.trials[choice]
        means = np.array([[report.mae, *report.group_mae] for report in one.reports(VALIDATION)])
        return self._scores(means).reshape(one.runs, one.seeds, len(SCORES))

    def _replicates(self, choice: Choice) -> np.ndarray:
        """Returns the same in the replicates of the images, (B, R, S, 3) years."""
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
            f"no bench of {REFERENCE} with one base_learning_rate on every data set ({told}): run lae_jax.longtail on"
            f" each with --methods {REFERENCE},... and the same --base-learning-rate"
        )
    return shared


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


def compared(benches: Sequence[Bench], chosen: Found) -> dict[Choice, list[list[bootstrap.Joint]]]:
    """Returns the differences to LAE of the best of each method and of what was chosen: for each score, by data set."""
    others = [each for each in best_of_each(benches) if each.method not in (REFERENCE, chosen.choice.method)]
    others += [chosen.choice] * (chosen.choice != chosen.reference)
    found = {}
    for choice in others:
        of_data_sets = [one.difference(choice, chosen.reference) for one in benches]
        found[choice] = [list(of_score) for of_score in zip(*of_data_sets, strict=True)]
    return found


def certain(found: Mapping[Choice, list[list[bootstrap.Joint]]]) -> dict[Choice, list[Difference]]:
    """Returns the means over the data sets of differences, for each score, corrected for their number after Holm."""
    means = {choice: [bootstrap.mean_of(of_score) for of_score in scores] for choice, scores in found.items()}
    places = [(choice, j) for choice in means for j in range(len(SCORES))]
    corrected = dict(zip(places, bootstrap.holm(np.array([means[choice][j].p for choice, j in places])), strict=True))
    return {
        choice: [Difference(*of_score[:4], float(corrected[choice, j])) for j, of_score in enumerate(scores)]
        for choice, scores in means.items()
    }


def left_out(benches: Sequence[Bench]) -> list[tuple[Bench, Found, list[bootstrap.Joint]]]:
    """Returns for each data set what the others choose, and its difference to LAE on the one left out.

    That is what to expect on a data set that had no part in the choice.
    """
    if len(benches) < 2:
        return []
    found, among = [], common(benches)
    for number, one in enumerate(benches):
        chosen = choose([*benches[:number], *benches[number + 1 :]], among)
        found.append((one, chosen, one.difference(*chosen)))
    return found


def sentences(benches: Sequence[Bench], chosen: Found, told: Mapping[Choice, list[Difference]]) -> dict[str, str]:
    """Returns what to use and with what gain, what the other data sets choose, and the command.

    Args:
      benches: The benches.
      chosen: `choose` of them.
      told: `certain` of their differences.
    """
    choice, reference = chosen
    where = f"over {len(benches)} data sets" if len(benches) > 1 else f"on {benches[0].data}"
    where += ", on validation with all age groups counted alike"
    if choice == reference:
        text = (
            f"Use {choice.text}: no other method that can be a stage 3 has a lower MAE + sigma {where} without a higher"
            " MAE."
        )
    else:
        text = (
            f"Use {choice.text}: of the methods that can be a stage 3 and whose MAE is no higher than that of"
            f" {REFERENCE}, it has the lowest MAE + sigma {where}. Difference to {reference.text}:"
            f" {_all_in_words(told[choice])} (joint 95 % intervals for these data sets; verdicts after Holm's"
            f" correction for {len(told) * len(SCORES)} differences)."
        )
    texts = {"recommendation": text}
    if others := left_out(benches):
        parts = [f"{bench.data}: {found.choice.text}, {_all_in_words(of)}" for bench, found, of in others]
        texts["left_out"] = (
            f"What the other data sets choose, and its difference to {REFERENCE} on the one left out:"
            f" {'; '.join(parts)}."
        )
    return {**texts, "command": _command(choice)}


def _all_in_words(differences: Sequence[Difference | bootstrap.Joint]) -> str:
    parts = [f"{title} {_in_words(one)}" for title, one in zip(SCORES.values(), differences, strict=True)]
    return ", ".join(parts)


def _command(choice: Choice) -> str:
    """Returns the command that trains a choice on images."""
    method = METHODS[choice.method]
    flags = {"classify.method": choice.method}
    if method.setting:
        flags["data.power" if method.sets == "power" else "classify.setting"] = f"{choice.setting:g}"
    flags["optim.base_learning_rate"] = f"{choice.rate:g}"
    words = " ".join(f"--config.{name}={value}" for name, value in flags.items())
    return f"python -m lae_jax.main --config configs/classify.py {words}"


def table(
    benches: Sequence[Bench], reference: Choice, found: Mapping, told: Mapping[Choice, list[Difference]]
) -> tables.Table:
    """Returns a table: the mean differences to LAE, and MAE and sigma on each data set; lowest sum first."""
    header = ["method", *(f"{score} - {REFERENCE}" for score in SCORES.values())]
    header += [f"{score}, {one.data}" for one in benches for score in SCORES.values()]
    rows = []
    for choice in sorted([reference, *found], key=lambda each: _sum(benches, each)):
        words = map(_in_words, told[choice]) if choice in told else [""] * len(SCORES)
        rows.append([choice.text, *words, *(f"{value:.2f}" for one in benches for value in one.scores[choice])])
    return tables.Table(header, rows)


def csv_of(benches: Sequence[Bench], reference: Choice, found: Mapping, told: Mapping[Choice, list[Difference]]) -> str:
    """Returns a line for each method and data set, and one for the mean over the data sets (`all`)."""
    ends = ("", "_low", "_high", "_p", "_p_corrected")
    header = ["method", "parameter", "setting", "base_learning_rate", "data", *SCORES]
    header += [f"{score}_minus_{REFERENCE}{end}" for score in SCORES for end in ends]
    rows = []
    for choice in sorted([reference, *found], key=lambda each: _sum(benches, each)):
        parameter = METHODS[choice.method].setting
        setting = f"{choice.setting:g}" if parameter else ""
        for number, data in enumerate([*(one.data for one in benches), "all"]):
            of_all = number == len(benches)
            scores = [one.scores[choice] for one in benches]
            values = np.mean(scores, axis=0) if of_all else scores[number]
            differences = [math.nan] * len(SCORES) * len(ends)
            if choice in found and of_all:
                differences = [value for one in told[choice] for value in one]
            elif choice in found:
                differences = [value for of in found[choice] for value in (*of[number][:4], math.nan)]
            rows.append(
                [choice.method, parameter, setting, f"{choice.rate:g}", data, *map(float, [*values, *differences])]
            )
    return tables.csv_text(header, rows)


def _sum(benches: Sequence[Bench], choice: Choice) -> float:
    return float(np.mean([_aim(one.scores[choice]) for one in benches]))


def _aim(scores: np.ndarray) -> float:
    return float(scores[:2].sum())


def _rates(bench: Bench) -> str:
    return ", ".join(f"{choice.rate:g}" for choice in bench.trials if choice.method == REFERENCE)


def _in_words(difference: Difference | bootstrap.Joint) -> str:
    text = in_words(difference.mean, difference.low, difference.high)
    return f"{text} {verdict(difference)}" if isinstance(difference, Difference) else text


def _together(trial: Trial) -> Trial:
    """Returns a trial on validation alone; folds, which have images of their own, become one run of all images."""
    labels, predictions = trial.labels[VALIDATION], trial.predictions[VALIDATION]
    if any(not np.array_equal(each.rows, labels[0].rows) for each in labels):
        ages = [each.ages for each in labels]
        if any(each.ndim == 2 for each in ages):
            ages = [each if each.ndim == 2 else np.stack([each] * 2, axis=1) for each in ages]
        folds = np.repeat(np.arange(len(labels)), [len(each.rows) for each in labels])
        labels = [Labels(np.concatenate(ages), np.concatenate([each.rows for each in labels]), folds)]
        predictions = [np.concatenate(predictions, axis=1)]
    return dataclasses.replace(trial, labels={VALIDATION: labels}, predictions={VALIDATION: predictions})
