"""Differences between trials with intervals over trainings and images together, corrected for the number of them.

A replicate of the bootstrap draws backbones, with replacement, and the images (or people) of the test set, the same for
all trials and trainings, which pairs them. A backbone is drawn with all its seeds, because the scatter of the seeds is
in that of the backbones (Davison and Hinkley, "Bootstrap Methods and their Application", 1997, section 3.8). With one
backbone the seeds are drawn in its place.

`bootstrap.joint` has the interval, and `bootstrap.holm` corrects the p-values for their number.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lae_jax import metrics
from lae_jax.longtail.outcomes import Labels, Trial
from lae_jax.report import bootstrap

SCORES = ("mae", "sigma")
SURE = 1 - bootstrap.LEVEL  # a difference is sure if its corrected p-value is below this
_GROUPS = len(metrics.GROUPS)


class Difference(NamedTuple):
    """A paired difference of a score, in years; NaN where undefined."""

    mean: float
    low: float
    high: float
    p: float
    corrected: float = math.nan  # p after Holm, over all differences of a table

    @property
    def is_sure(self) -> bool:
        """Whether the difference is not 0, after the correction."""
        return self.corrected < SURE


_UNKNOWN = Difference(*[math.nan] * 4)


def differences(trials: Sequence[Trial], reference: Trial, split: str) -> dict[Trial, dict[str, Difference]]:
    """Compares trials with a reference.

    Args:
      trials: The trials, without the reference.
      reference: The trial to compare with.
      split: The split that they are compared on.

    Returns:
      Trial -> score -> its score minus that of the reference. It is undefined for a trial of other seeds or runs, and
      where there are too few images.
    """
    of_reference = _replicates(reference, split)
    found = {one: _compared(one, reference, split, of_reference) for one in dict.fromkeys(trials)}
    places = [(one, score) for one, of in found.items() for score in of]
    corrected = bootstrap.holm(np.array([found[one][score].p for one, score in places]))
    for (one, score), value in zip(places, corrected, strict=True):
        found[one][score] = found[one][score]._replace(corrected=float(value))
    return found


def _compared(one: Trial, reference: Trial, split: str, of_reference: dict) -> dict[str, Difference]:
    if (one.runs, one.seeds) != (reference.runs, reference.seeds):
        return dict.fromkeys(SCORES, _UNKNOWN)
    drawn, count = _replicates(one, split), min(units(labels) for labels in one.labels[split])
    found = {}
    for score in SCORES:
        sample = (one.values(split, score) - reference.values(split, score)).reshape(one.runs, one.seeds)
        found[score] = Difference(*joint(sample, drawn[score] - of_reference[score], count)[:4])
    return found


def joint(sample: np.ndarray, drawn: np.ndarray, count: int) -> bootstrap.Joint:
    """Returns the joint interval of a score, or of its difference.

    Args:
      sample: (R, S) the score of each run and seed.
      drawn: (B, R, S) the same in the replicates of the images.
      count: Number of people or images that the replicates draw (`units`).
    """
    inner = 1 if len(sample) > 1 else 0  # the trainings are the backbones, or the seeds of the only one
    of_training, drawn = sample.mean(axis=inner), drawn.mean(axis=1 + inner)
    return bootstrap.joint(of_training, drawn[:0] if count <= bootstrap.TOO_FEW else drawn, count)


def units(labels: Labels) -> int:
    """Returns the number of people or images that the replicates draw."""
    return int(bootstrap.units(labels.people).max()) + 1


def _replicates(one: Trial, split: str) -> dict[str, np.ndarray]:
    """Returns the scores of each training in the image replicates: score -> (B, R, S).

    Where the runs are of folds, each with images of its own, the scatter of the images is in that of the runs, and the
    images are not drawn.
    """
    labels, predictions = one.labels[split], one.predictions[split]
    if all(np.array_equal(each.rows, labels[0].rows) for each in labels):
        means = drawn_means(labels[0], np.concatenate(predictions)).reshape(-1, one.runs, one.seeds, 1 + _GROUPS)
        return {"mae": means[..., 0], "sigma": metrics.group_deviation(means[..., 1:], means[..., 0])}
    shape = (bootstrap.REPLICATES, one.runs, one.seeds)
    return {score: np.broadcast_to(one.values(split, score).reshape(shape[1:]), shape) for score in SCORES}


def drawn_means(labels: Labels, predictions: np.ndarray) -> np.ndarray:
    """Returns mean errors in the replicates of the images.

    Args:
      labels: The images.
      predictions: (H, N) years, of H heads.

    Returns:
      (B, H, 9) years: over all images, and over those of each of the eight age groups.
    """
    unit, group = bootstrap.units(labels.people), labels.group[:, None] == np.arange(_GROUPS)
    errors = [np.abs(labels.differences(each))[:, None] for each in predictions]
    columns = np.hstack([np.ones((len(unit), 1)), group, *(np.hstack([e, group * e]) for e in errors)])
    sums = bootstrap.replicates(bootstrap.by_unit(unit, columns, int(unit.max()) + 1))
    sums = sums.reshape(len(sums), len(errors) + 1, _GROUPS + 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return sums[:, 1:] / sums[:, :1]
