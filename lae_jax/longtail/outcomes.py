"""Outcomes of the long-tail bench: the predictions of every trial, and their scores on validation and test."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np

from lae_jax import metrics
from lae_jax.report import wording
from lae_jax.stages.methods import METHODS, Method

VALIDATION, TEST = "validation", "test"
# The scores expected on test: errors by group in validation, weighted by the groups' frequencies in test. A test
# split with equal groups needs other settings than a validation split with the long tail.
EXPECTED = "expected"
STAGE3 = Method("stage3", "Bao et al., 2021 (LAE)", "a run of stage 3, trained on images instead of features")


def method_of(name: str) -> Method:
    """Returns the method of a trial, also of runs of stage 3; raises KeyError for an unknown name."""
    return STAGE3 if name == STAGE3.name else METHODS[name]


@dataclasses.dataclass(frozen=True, eq=False)
class Labels:
    """The images of a split, on which the heads of a run are scored.

    Attributes:
      ages: (N,) years, or (N, 2) ranges.
      rows: (N,), rows of the data set.
      people: (N,) numbers of people, -1 where unknown.
    """

    ages: np.ndarray
    rows: np.ndarray
    people: np.ndarray

    def report(self, predictions: np.ndarray) -> metrics.AgeReport:
        """Returns the scores of predictions, (N,) years; of ranges the errors are the distances to them."""
        scored = metrics.age_report if self.ages.ndim == 1 else metrics.distance_report
        return scored(self.ages, predictions)

    def differences(self, predictions: np.ndarray) -> np.ndarray:
        """Returns the signed errors of predictions, (N,) years."""
        ranges = self.ages if self.ages.ndim == 2 else np.stack([self.ages] * 2, axis=1)
        return metrics.range_differences(ranges, np.asarray(predictions, np.float64))

    @property
    def group(self) -> np.ndarray:
        """The index in `metrics.ALL_GROUPS` of each image, (N,)."""
        return metrics.extended_group(self.ages if self.ages.ndim == 1 else metrics.label_age(self.ages))


@dataclasses.dataclass(frozen=True, eq=False)
class Trial:
    """A method with one setting and one peak learning rate, over runs and seeds.

    Attributes:
      method: The method.
      setting: Its setting.
      rate: The peak as base_learning_rate.
      skipped_steps: Number of skipped steps over all runs and seeds.
      labels: Split -> the images of each run.
      predictions: Split -> the predictions of each run, (S, N) years.
    """

    method: Method
    setting: float
    rate: float
    skipped_steps: int
    labels: Mapping[str, Sequence[Labels]]
    predictions: Mapping[str, Sequence[np.ndarray]]

    @property
    def name(self) -> str:
        """The method and its setting."""
        return (
            f"{self.method.name}, {self.method.setting} {self.setting:g}" if self.method.setting else self.method.name
        )

    @property
    def runs(self) -> int:
        """Number of runs."""
        return len(self.predictions[VALIDATION])

    @property
    def seeds(self) -> int:
        """Number of seeds of a run."""
        return len(self.predictions[VALIDATION][0])

    @property
    def told_on(self) -> str:
        """The split that the results are of: test, or validation without one."""
        return TEST if TEST in self.predictions else VALIDATION

    @property
    def words(self) -> wording.BenchWords:
        """The scores and their names."""
        is_range = any(one.ages.ndim == 2 for labels in self.labels.values() for one in labels)
        return wording.BENCH_OF_RANGES if is_range else wording.BENCH

    def values(self, split: str, score: str) -> np.ndarray:
        """Returns a score of each (run, seed), runs outermost: a field of the report, 'cs5' or 'mae_plus_sigma'."""
        return np.array([_score(report, score) for report in self.reports(split)], np.float64)

    def reports(self, split: str) -> list[metrics.AgeReport]:
        """Returns the report of each (run, seed), runs outermost."""
        return self._expected if split == EXPECTED else self._reports[split]

    @functools.cached_property
    def _reports(self) -> dict[str, list[metrics.AgeReport]]:
        return {
            split: [
                labels.report(predicted)
                for labels, of_run in zip(self.labels[split], predictions, strict=True)
                for predicted in of_run
            ]
            for split, predictions in self.predictions.items()
        }

    @functools.cached_property
    def _expected(self) -> list[metrics.AgeReport]:
        if TEST not in self.predictions:
            return self._reports[VALIDATION]
        counts = self._reports[TEST][0].group_count
        return [metrics.reweighted(report, counts) for report in self._reports[VALIDATION]]

    def mean(self, split: str, score: str) -> float:
        """Returns the mean of a score over (run, seed)."""
        return float(self.values(split, score).mean())

    def spread(self, split: str, score: str) -> float:
        """Returns the standard deviation of a score over (run, seed); 0 for a single one."""
        values = self.values(split, score)
        return float(values.std(ddof=1)) if len(values) > 1 else 0.0

    def group_mae(self, split: str) -> np.ndarray:
        """Returns the mean error of each group, (8,) years, the mean over runs and seeds."""
        return np.mean([report.group_mae for report in self.reports(split)], axis=0)

    def outside_mae(self, split: str) -> np.ndarray:
        """Returns the mean error of babies and of people over 81, (2,) years, likewise."""
        return np.mean([report.outside_mae for report in self.reports(split)], axis=0)


def _score(report: metrics.AgeReport, score: str) -> float:
    if score == "cs5":
        return report.cs[5]
    return report.mae + report.sigma if score == "mae_plus_sigma" else getattr(report, score)
