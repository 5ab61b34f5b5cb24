"""The scores of settings over all their trainings, and the differences between settings."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from lae_jax import metrics
from lae_jax.report import bootstrap, loading, scores
from lae_jax.report.loading import Evaluation
from lae_jax.report.scores import Scored
from lae_jax.report.tables import Estimate
from lae_jax.runtime.errors import InputError
from lae_jax.sweep.claims import Run

SURE = 1 - bootstrap.LEVEL  # a difference is sure if its corrected p-value is below this


@dataclasses.dataclass(frozen=True, eq=False)
class Setting:
    """A setting with the scores of its trainings.

    A training is a seed. With folds it is one model a fold; the predictions of all folds are scored together, as those
    of one model. Where the models of all folds are scored on the same images, each of them is a training.

    Attributes:
      trainings: Seed, or (fold, seed) -> its scores.
      units: Number of units that a replicate draws.
    """

    name: str
    trainings: Mapping[object, Scored]
    units: int

    def estimate(self, score: scores.Score) -> Estimate:
        """Returns the mean over the trainings with its joint interval and the spread over the trainings."""
        sample, drawn = _stacked([*self.trainings.values()], score)
        found = bootstrap.joint(sample, drawn, self.units)
        spread = float(sample.std(ddof=1)) if len(sample) > 1 else math.nan
        return Estimate(found.mean, found.low, found.high, score.digits, score.percent, spread=spread)


@dataclasses.dataclass(frozen=True)
class Difference:
    """A setting's score minus that of another one.

    Attributes:
      value: The difference with its joint interval, of this comparison alone.
      p: Its p-value, corrected for the number of comparisons; NaN if undefined.
    """

    setting: str
    other: str
    score: scores.Score
    value: Estimate
    p: float = math.nan

    @property
    def verdict(self) -> str:
        """'better' or 'worse' where that is sure after the correction; 'the same', or `scores.UNCLEAR`."""
        if self.value.is_zero:
            return "the same"
        if not self.p < SURE:
            return scores.UNCLEAR
        return "better" if (self.value.value > 0) == (self.score.better > 0) else "worse"


@dataclasses.dataclass(frozen=True, eq=False)
class Pooled:
    """The result of a sweep.

    Attributes:
      settings: The settings that have a complete training, in the order of the sweep.
      shown: The scores that the images have.
      differences: Of each pair of settings, in the error and in sigma.
      images: Number of different images.
      unit: What is drawn: 'people', 'images' or 'folds'.
      missing: Age groups without an image, which sigma and AAR need.
      incomplete: Names of runs that do not count, because a run of another fold of their seed is missing.
    """

    settings: Sequence[Setting]
    shown: Sequence[scores.Score]
    differences: Sequence[Difference]
    images: int
    unit: str
    missing: Sequence[str]
    incomplete: Sequence[str]


def pool(found: Mapping[Run, Evaluation], same_images: bool) -> Pooled:
    """Joins the evaluations of the runs of a sweep.

    With one seed and several folds, the scatter of the folds has that of their trainings and that of their images. The
    folds are then drawn in place of the images.

    Args:
      found: Runs with their evaluations.
      same_images: Whether all runs are scored on the same images, also those of other folds.

    Raises:
      InputError: The evaluations are of different images, or the folds share images.
    """
    folds = sorted({run.fold for run in found if run.fold is not None}) if not same_images else []
    first: dict[object, Evaluation] = {}
    for run, one in found.items():
        _require_same(first.setdefault(run.fold if folds else None, one), one)
    if folds:
        _require_disjoint([first[fold] for fold in folds])
    by_setting: dict[str, dict] = {}
    for run, one in found.items():
        training = run.seed if folds or run.fold is None else (run.fold, run.seed)
        by_setting.setdefault(run.setting, {}).setdefault(training, {})[run] = one
    draws_folds = len(folds) > 1 and len({run.seed for run in found}) == 1
    settings, incomplete, pooled = [], [], None
    for name, trainings in by_setting.items():
        scored = {}
        for training, parts in trainings.items():
            if folds and len(parts) < len(folds):
                incomplete += [run.name for run in parts]
                continue
            pooled = _sample([parts[run].sample for run in sorted(parts, key=lambda run: run.fold or 0)], draws_folds)
            scored[training] = scores.score(pooled)
        if scored:
            settings.append(Setting(name, scored, int(bootstrap.units(pooled.people).max()) + 1))
    if pooled is None:
        raise InputError("no seed has a finished run of each fold: start the same command again")
    shown = scores.main_scores(pooled)
    return Pooled(
        settings,
        shown,
        _differences(settings, [score for score in shown if score.name in _COMPARED]),
        len(pooled.ages),
        "folds" if draws_folds else pooled.unit,
        [
            group
            for group, count in zip(metrics.ALL_GROUPS, scores.group_count(pooled.ages), strict=True)
            if group in metrics.GROUPS and not count
        ],
        incomplete,
    )


_COMPARED = ("distance", "distance_sigma", "mae", "sigma")


def _require_same(one: Evaluation, other: Evaluation) -> None:
    if one.report["data_hash"] != other.report["data_hash"]:
        raise InputError(
            f"{one.folder} and {other.folder} are evaluations of different data sets: the one at"
            f" {one.report['data']} changed while the sweep was trained. Train the sweep into a new folder"
        )
    loading.same_images(one, other)


def _require_disjoint(folds: Sequence[Evaluation]) -> None:
    names = np.concatenate([one.names for one in folds])
    if len({*names}) < len(names):
        raise InputError(
            f"the folds of {folds[0].report['data']} share images, so their predictions cannot be joined: prepare it"
            " again with --fold"
        )


def _sample(parts: Sequence[scores.Sample], draws_folds: bool) -> scores.Sample:
    """Returns the samples of all folds as one. People of two folds have numbers of their own."""
    people, start = [], 0
    for number, part in enumerate(parts):
        if draws_folds:
            people.append(np.full(len(part.ages), number))
        else:
            people.append(np.where(part.people < 0, -1, part.people + start))
            start += int(part.people.max(initial=-1)) + 1
    has_ranges = any(part.ranges is not None for part in parts)
    ranges = [np.stack([part.ages] * 2, axis=1) if part.ranges is None else part.ranges for part in parts]
    return scores.Sample(
        np.concatenate([part.ages for part in parts]),
        np.concatenate([part.predictions for part in parts]),
        np.concatenate(people),
        ranges=np.concatenate(ranges) if has_ranges else None,
    )


def _stacked(scored: Sequence[Scored], score: scores.Score) -> tuple[np.ndarray, np.ndarray]:
    """Returns a score of trainings, (T,), and of their replicates, (B, T)."""
    sample = np.array([one.values.get(score.name, math.nan) for one in scored])
    drawn = [one.drawn[score.name] for one in scored if score.name in one.drawn]
    return sample, np.stack(drawn, axis=1) if len(drawn) == len(scored) else np.empty((0, len(scored)))


def _differences(settings: Sequence[Setting], compared: Sequence[scores.Score]) -> list[Difference]:
    """Compares each pair of settings, on the trainings that both have."""
    found = []
    for score in compared:
        for one, other in itertools.combinations(settings, 2):
            both = [training for training in one.trainings if training in other.trainings]
            if not both:
                continue
            (a, of_a), (b, of_b) = (_stacked([each.trainings[k] for k in both], score) for each in (one, other))
            joint = bootstrap.joint(a - b, of_a - of_b, one.units)
            value = Estimate(joint.mean, joint.low, joint.high, score.digits, score.percent, signed=True)
            found.append(Difference(one.name, other.name, score, value, joint.p))
    corrected = bootstrap.holm(np.array([one.p for one in found]))
    return [dataclasses.replace(one, p=float(p)) for one, p in zip(found, corrected, strict=True)]
