"""Intervals over trainings and images together: their closed form, their coverage, and Holm's correction."""

import numpy as np
import pytest
from scipy import stats

from lae_jax.report import bootstrap


def drawn_means(errors, seed=0):
    """Means of errors (T, N) in the replicates of the images: (B, T)."""
    sums = bootstrap.replicates(np.concatenate([errors.T, np.ones((errors.shape[1], 1))], axis=1), seed)
    return sums[:, :-1] / sums[:, -1:]


def joint(errors):
    return bootstrap.joint(errors.mean(axis=1), drawn_means(errors), errors.shape[1])


@pytest.mark.parametrize("trainings", [2, 5, 1])
def test_the_variance_is_that_of_trainings_plus_that_of_images(trainings):
    rng = np.random.default_rng(trainings)
    errors = 2 + rng.normal(0, 1, (trainings, 1)) + rng.normal(0, 9, 400)  # an image is as hard for all trainings
    found, mean = joint(errors), errors.mean()
    of_trainings = errors.mean(axis=1).var(ddof=1) / trainings if trainings > 1 else 0.0
    of_images = errors.mean(axis=0).var(ddof=1) / 400
    error = np.sqrt(of_trainings + of_images)
    freedom = error**4 / (of_trainings**2 / max(trainings - 1, 1) + of_images**2 / 399)
    half = stats.t.ppf(0.975, freedom) * error
    assert found.mean == pytest.approx(mean)
    assert [found.low, found.high] == pytest.approx([mean - half, mean + half], abs=0.1 * half)
    assert found.high - found.mean == pytest.approx(found.mean - found.low)
    assert found.p == pytest.approx(2 * stats.t.sf(abs(mean) / error, freedom), abs=0.03)


def test_few_units_are_stretched_as_few_trainings_are():
    """Five folds of one seed: the interval is Student's t of the five means."""
    folds = np.array([[3.0, 3.4, 2.9, 3.3, 3.6]])
    found = joint(folds)
    half = stats.t.ppf(0.975, 4) * folds.std(ddof=1) / np.sqrt(5)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.08)


def test_a_true_difference_of_zero_is_inside_as_often_as_the_level_says():
    rng, inside = np.random.default_rng(0), 0
    for number in range(200):
        errors = rng.normal(0, 0.3, (3, 1)) + rng.normal(0, 4, 150)
        found = bootstrap.joint(errors.mean(axis=1), drawn_means(errors, number), 150)
        inside += found.low <= 0 <= found.high
    assert 0.9 <= inside / 200 <= 0.99


def test_equal_trainings_differ_by_exactly_zero_and_undefined_ones_have_no_interval():
    assert bootstrap.joint(np.zeros(3), np.zeros((50, 3)), 9)[:4] == (0.0, 0.0, 0.0, 1.0)
    for sample, drawn in (([1.0, np.nan], np.ones((50, 2))), ([1.0, 2.0], np.empty((0, 2)))):
        assert np.isnan(bootstrap.joint(np.array(sample), drawn, 9)[1:]).all()
    drawn = np.random.default_rng(0).normal(0, 1, (100, 2))
    drawn[:9, 0] = np.nan  # a group of images that some replicates lack
    assert np.isnan(bootstrap.joint(np.array([1.0, 2.0]), drawn, 9).low)


def test_holm_is_the_step_down_of_his_paper():
    p = np.array([0.01, np.nan, 0.04, 0.03, 0.005])
    np.testing.assert_allclose(bootstrap.holm(p), [0.03, np.nan, 0.06, 0.06, 0.02])
    assert bootstrap.holm(np.array([0.6, 0.9])).tolist() == [1.0, 1.0]


def test_a_mean_of_independent_estimates_has_the_error_of_their_sum():
    parts = [bootstrap.Joint(1.0, error=0.3, freedom=4.0), bootstrap.Joint(3.0, error=0.4, freedom=9.0)]
    found = bootstrap.mean_of(parts)
    freedom = 0.25**2 / (0.09**2 / 4 + 0.16**2 / 9)
    half = stats.t.ppf(0.975, freedom) * 0.25
    assert found[:3] == pytest.approx((2.0, 2.0 - half, 2.0 + half)) and found.error == pytest.approx(0.25)
    assert found.p == pytest.approx(2 * stats.t.sf(2.0 / 0.25, freedom)) and found.freedom == pytest.approx(freedom)
    assert bootstrap.mean_of(parts[:1]).low == pytest.approx(1.0 - stats.t.ppf(0.975, 4) * 0.3)
    unknown = bootstrap.mean_of([parts[0], bootstrap.Joint(3.0)])
    assert unknown.mean == 2.0 and np.isnan(unknown[1:]).all()
    same = bootstrap.Joint(0.0, 0.0, 0.0, 1.0, 0.0, np.inf)
    assert bootstrap.mean_of([same, same])[:4] == (0.0, 0.0, 0.0, 1.0)
    assert bootstrap.mean_of([same, parts[1]]).error == pytest.approx(0.2)
