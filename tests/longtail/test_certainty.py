"""Joint intervals: as wide as theory says, right as often as they claim; and Holm's correction."""

import numpy as np
import pytest
from scipy import stats

from lae_jax.longtail import certainty
from lae_jax.longtail.outcomes import Labels, Trial
from lae_jax.stages.methods import METHODS

AGES = np.resize(np.arange(1, 82.0), 240)


def trial(name, errors, people=None, rows=None):
    """A trial whose errors are those given: one (seeds, images) for each run."""
    people = np.full(len(AGES), -1) if people is None else people
    of_runs = [
        Labels(AGES, np.arange(len(AGES)) if rows is None else rows[number], people) for number in range(len(errors))
    ]
    predictions = [AGES + one for one in errors]
    return Trial(METHODS[name], 0.0, 0.1, 0, {"validation": of_runs}, {"validation": predictions})


def difference(one, other, score="mae"):
    return certainty.differences([one], other, "validation")[one][score]


def drawn(rng, runs, seeds, of_backbones, of_seeds, of_images):
    """Errors far above 0, so that the MAE is their mean, with variances of each level."""
    images = rng.normal(0, of_images, len(AGES))
    backbones = rng.normal(0, of_backbones, (runs, 1, 1))
    return [*(20 + backbones + rng.normal(0, of_seeds, (runs, seeds, 1)) + images)]


def test_the_error_is_the_sum_of_those_of_trainings_and_images():
    rng = np.random.default_rng(0)
    for runs, seeds in ((4, 3), (1, 5)):
        reference = [np.full((seeds, len(AGES)), 20.0)] * runs
        errors = drawn(rng, runs, seeds, 1.0, 0.5, 3.0)
        found = difference(trial("crt", errors), trial("lae", reference))
        of_training = np.array([one.mean(axis=1) for one in errors]) - 20
        of_training = of_training.mean(axis=1) if runs > 1 else of_training[0]
        count = len(of_training)
        parts = [of_training.var(ddof=1) / count, np.mean(errors, axis=(0, 1)).var() / len(AGES)]
        freedom = sum(parts) ** 2 / (parts[0] ** 2 / (count - 1) + parts[1] ** 2 / (len(AGES) - 1))
        half = stats.t.ppf(0.975, freedom) * np.sqrt(sum(parts))
        assert found.mean == pytest.approx(of_training.mean())
        assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.12)
        assert found.p == pytest.approx(2 * stats.t.sf(abs(found.mean) / np.sqrt(sum(parts)), freedom), abs=0.05)
    # Fewer people than images, and images that all runs share: the interval is wider.
    people = np.arange(len(AGES)) // 12
    shared = np.repeat(rng.normal(0, 3, len(AGES) // 12), 12)
    alone, grouped = (
        difference(trial("crt", [20 + shared[None]], of), trial("lae", [np.full((1, len(AGES)), 20.0)], of))
        for of in (None, people)
    )
    assert (grouped.high - grouped.low) / (alone.high - alone.low) == pytest.approx(12**0.5, rel=0.25)


def test_the_scatter_of_folds_has_that_of_their_images():
    rng = np.random.default_rng(1)
    errors, reference = drawn(rng, 4, 1, 1.0, 0.0, 3.0), [np.full((1, len(AGES)), 20.0)] * 4
    folds = np.arange(4 * len(AGES)).reshape(4, -1)
    found = difference(trial("crt", errors, rows=folds), trial("lae", reference, rows=folds))
    half = stats.t.ppf(0.975, 3) * np.mean(errors, axis=(1, 2)).std(ddof=1) / 2
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.08)


@pytest.mark.parametrize("levels", [(1.0, 0.0, 0.0), (0.3, 0.5, 4.0)])
def test_the_interval_holds_the_true_difference_as_often_as_it_says(levels):
    """Of three backbones, with trainings alone and with all levels. A plain bootstrap holds it in 80 % of the cases."""
    rng, reference = np.random.default_rng(2), trial("lae", [np.full((2, len(AGES)), 20.0)] * 3)
    trials = [trial("crt", drawn(rng, 3, 2, *levels)) for _ in range(100)]
    found = [of["mae"] for of in certainty.differences(trials, reference, "validation").values()]
    held = np.mean([one.low <= 0 <= one.high for one in found])
    assert 0.9 <= held <= 0.99
    assert np.mean([one.p < 0.05 for one in found]) == pytest.approx(1 - held)


def test_sigma_has_an_interval_and_a_group_without_images_none():
    rng = np.random.default_rng(3)
    uneven = 5 + 10 * (AGES < 11)[None] + rng.normal(0, 0.1, (2, len(AGES)))
    one, reference = trial("crt", [uneven]), trial("lae", [np.full((2, len(AGES)), 5.0)])
    found = difference(one, reference, "sigma")
    assert found.mean == pytest.approx(one.values("validation", "sigma").mean(), rel=1e-6)
    assert 0 < found.low < found.mean < found.high and found.is_sure


def test_trials_of_other_seeds_are_not_compared():
    one, reference = trial("crt", [np.full((1, len(AGES)), 4.0)]), trial("lae", [np.full((2, len(AGES)), 5.0)])
    found = certainty.differences([one], reference, "validation")[one]["mae"]
    assert np.isnan(found.mean) and not found.is_sure
