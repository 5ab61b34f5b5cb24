"""What a distribution over the ages says, against closed forms."""

import numpy as np
import pytest
from scipy.special import softmax

from lae_jax.runs import distributions


def one_hot(*ages):
    return np.eye(101)[list(ages)]


def normal(mean, deviation):
    weights = np.exp(-((np.arange(101) - mean) ** 2) / (2 * deviation**2))
    return (weights / weights.sum())[None]


def test_a_certain_age_is_its_year():
    expected = [[29.55, 30.45], [0.025, 0.475], [99.525, 99.975]]
    np.testing.assert_allclose(distributions.intervals(one_hot(30, 0, 100), 0.9), expected)


def test_the_quantiles_of_a_normal_distribution():
    low, high = distributions.intervals(normal(40, 6), 0.9)[0]
    # 1.6449 is the normal's 95 % quantile; a year's class adds 1/12 to the variance.
    spread = 1.6449 * np.sqrt(36 + 1 / 12)
    assert low == pytest.approx(40 - spread, abs=0.02) and high == pytest.approx(40 + spread, abs=0.02)
    assert distributions.quantiles(normal(40, 6), 0.5)[0] == pytest.approx(40)


def test_quantiles_and_thresholds_are_inverse():
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.full(101, 0.1), 20)
    for level in (0.05, 0.3, 0.8):
        for row, age in enumerate(distributions.quantiles(probabilities, level)):
            assert distributions.at_least(probabilities[row : row + 1], age)[0] == pytest.approx(1 - level, abs=1e-9)


def test_probability_of_an_age_or_more():
    half = (one_hot(10) + one_hot(50)) / 2
    assert distributions.at_least(half, 18)[0] == pytest.approx(0.5)
    assert distributions.at_least(one_hot(18), 18)[0] == pytest.approx(0.5)  # 17.5 up to 18.5
    assert distributions.at_least(one_hot(18), 17)[0] == 1 and distributions.at_least(one_hot(18), 19)[0] == 0
    assert distributions.at_least(one_hot(0), 0)[0] == 1 and distributions.at_least(one_hot(100), 100)[0] == 0


def test_a_temperature_divides_the_logits():
    logits = np.random.default_rng(1).normal(size=(4, 101)) * 3
    np.testing.assert_allclose(
        distributions.tempered(softmax(logits, axis=1), 2.5), softmax(logits / 2.5, axis=1), rtol=1e-9
    )
    plain = softmax(logits, axis=1)
    np.testing.assert_allclose(distributions.tempered(plain, 2.5), softmax(logits / 2.5, axis=1), rtol=1e-9)
    np.testing.assert_allclose(distributions.tempered(plain, 1), plain, rtol=1e-12)


def test_the_fitted_temperature_mends_what_is_too_sure():
    rng = np.random.default_rng(2)
    means = rng.uniform(20, 70, 4000)
    ages = np.rint(means + rng.normal(size=4000) * 6)
    sure = np.concatenate([normal(mean, 2.0) for mean in means])
    temperature = distributions.fit_temperature(sure, ages)
    # A normal's logits divided by T have T times the variance.
    assert temperature == pytest.approx((6 / 2) ** 2, rel=0.05)
    assert distributions.coverage(sure, ages, 0.9) < 0.5
    assert distributions.coverage(distributions.tempered(sure, temperature), ages, 0.9) == pytest.approx(0.9, abs=0.02)


def test_the_share_below_an_age_turns_quantiles_round():
    probabilities = np.random.default_rng(0).dirichlet(np.ones(101), 50)
    for level in (0.05, 0.5, 0.95):
        ages = distributions.quantiles(probabilities, level)
        np.testing.assert_allclose(distributions.below(probabilities, ages), level, atol=1e-9)
    assert distributions.below(probabilities[:2], np.array([0.0, 120.0])).tolist() == [0.0, 1.0]


def test_blocks_of_rows_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    chances, ages = softmax(rng.normal(0, 2, (10, 101)), axis=1).astype(np.float32), rng.uniform(1, 90, 10)

    def results(rows=slice(None)):
        return [
            distributions.tempered(chances[rows], 1.7),
            distributions.intervals(chances[rows], 0.9),
            distributions.below(chances[rows], ages[rows]),
            distributions.at_least(chances[rows], 18),
        ]

    whole, temperature = results(), distributions.fit_temperature(chances, ages)
    sizes = []
    monkeypatch.setattr(distributions, "_BLOCK", 4)
    monkeypatch.setattr(
        distributions, "_cumulative", lambda p, original=distributions._cumulative: sizes.append(len(p)) or original(p)
    )
    for expected, found in zip(whole, results(), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    assert max(sizes) == 4 and distributions.fit_temperature(chances, ages) == pytest.approx(temperature, rel=1e-6)
    assert [len(found) for found in results(slice(0, 0))] == [0] * 4
