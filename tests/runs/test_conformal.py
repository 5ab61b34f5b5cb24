"""Conformal intervals: thresholds worked by hand, and the coverage of every age group in a simulation."""

import json
import math

import numpy as np
import pytest

from lae_jax import evaluate, metrics
from lae_jax.runs import conformal, distributions
from lae_jax.runtime import typed
from lae_jax.runtime.errors import InputError
from lae_jax.runtime.typed import declared

SURE = np.eye(101)[45]  # a class covers a year evenly: its variance is 1/12
SCALE = (1 / 12) ** 0.25


def fitted(people):
    """Thresholds in years of people, (true age, estimated age), whose distributions all have the same spread."""
    ages, estimates = np.array(people, float).T
    found = conformal.fit(estimates, np.tile(SURE, (len(ages), 1)), ages)
    return found, {name: row * SCALE for name, row in zip(conformal.NAMES, found.thresholds, strict=True)}


def at(percent):
    return conformal.PERCENTS.index(percent)


def test_ten_people_of_one_group():
    """Errors of 1 to 10 years. The threshold is the ceil(11 level)-th smallest, and from 91 % on there is none."""
    found, years = fitted([(45, 45 + error) for error in range(1, 11)])
    ranks = {9: 1, 10: 2, 50: 6, 72: 8, 73: 9, 80: 9, 81: 9, 82: 10, 90: 10}
    for percent, error in ranks.items():
        assert years["41-50"][at(percent)] == pytest.approx(error, abs=1e-4), percent
    assert math.isinf(years["41-50"][at(91)]) and found.borrowing(0.91)[5] == "41-50"
    assert "41-50" not in found.borrowing(0.9) and len(found.borrowing(0.9)) == 9
    # The share below the largest of ten is distributed as Beta(10, 1), whose 5 % quantile is 0.05^(1/10).
    assert found.fewest(0.9) == {"group": "41-50", "images": 10, "coverage": pytest.approx(0.05**0.1)}
    assert found.fewest(0.91) is None
    # Other groups borrow these people. An estimate of 45 accepts 6 years on both sides; without a threshold, all ages.
    one = SURE[None]
    np.testing.assert_allclose(found.intervals([45.0], one, 0.5), [[39, 51]], atol=2e-4)
    np.testing.assert_allclose(found.intervals([45.0], one, 0.495), found.intervals([45.0], one, 0.5))
    np.testing.assert_array_equal(found.intervals([45.0], one, 0.95), [[0, 100]])
    with pytest.raises(InputError, match=r"level is 0.995: conformal intervals have levels up to 0.99"):
        found.intervals([45.0], one, 0.995)
    evaluate.check(0.99, None, None, None, None, "conformal")
    with pytest.raises(InputError, match=r"interval is 0.995: it must be at most 0.99 with --calibrate conformal"):
        evaluate.check(0.995, None, None, None, None, "conformal")


def test_a_group_whose_ages_are_in_the_intervals_of_the_groups_before_accepts_nothing_more():
    """The second of three errors of people of 15 is 12 years. From 30 and 31 it reaches 20, beyond 25; from 40 not."""
    young, older = [(15, 25), (15, 27), (15, 29)], [(25, 30), (25, 31), (25, 40)]
    found, years = fitted([*young, *older])
    assert years["11-20"][at(50)] == pytest.approx(12, abs=1e-4)
    # Scores: held, held, 15 years. ceil(4 x 50 %) = 2, ceil(4 x 75 %) = 3.
    assert found.thresholds[3, at(50)] == conformal.HELD and years["21-30"][at(75)] == pytest.approx(15, abs=1e-4)
    alone = fitted(older)[1]
    assert alone["21-30"][at(50)] == pytest.approx(6, abs=1e-4)
    bounds = found.intervals([30.0, 31.0, 40.0], np.tile(SURE, (3, 1)), 0.5)
    assert bounds[:, 0] == pytest.approx([18, 19, 34], abs=1e-3)  # 34: 31-40 borrows the second of 5, 6 and 15 years


def test_a_group_with_few_people_borrows_those_of_the_nearest_ages():
    """80 % needs 4 people. The group has 2, and the next ages are 70 and, of two people, 68: 5 errors in all."""
    people = [(75, 72), (79, 74), (70, 69), (68, 64), (68, 61), (62, 40), (62, 42), (61, 41)]
    found, years = fitted(people)
    assert "71-81" in found.borrowing(0.8) and "61-70" not in found.borrowing(0.8)
    # Errors 1, 3, 4, 5, 7: ceil(6 x 80 %) = 5. At 50 % one person is enough, and the errors are its own, 3 and 5.
    assert years["71-81"][at(80)] == pytest.approx(7, abs=1e-4)
    assert years["71-81"][at(50)] == pytest.approx(5, abs=1e-4)


def test_intervals_of_a_higher_level_hold_those_of_a_lower_one_and_all_hold_the_estimate():
    found, (estimates, probabilities, _) = conformal.fit(*people(300, 0)), people(200, 1)
    before = np.stack([estimates, estimates], axis=1)
    for percent in conformal.PERCENTS:
        bounds = found.intervals(estimates, probabilities, percent / 100)
        assert (bounds[:, 0] <= before[:, 0]).all() and (before[:, 1] <= bounds[:, 1]).all()
        before = bounds


def test_the_groups_are_those_of_the_scores():
    ages = np.arange(0, 100.01, 0.25)
    names = [metrics.ALL_GROUPS[group] for group in metrics.extended_group(ages)]
    assert [conformal.NAMES[group] for group in conformal.group_of(ages)] == names
    counts = np.bincount([metrics.ALL_GROUPS.index(name) for name in names], minlength=10)
    found = conformal.fit(ages, np.tile(SURE, (len(ages), 1)), ages)
    assert dict(zip(conformal.NAMES, found.images, strict=True)) == dict(zip(metrics.ALL_GROUPS, counts, strict=True))


def test_they_are_read_as_they_were_written():
    found = conformal.fit(*people(60, 0))
    content = json.loads(json.dumps({**found.to_json(), "flip": False}, allow_nan=False))
    typed.require(content, declared.CONFORMAL, "here")
    again = conformal.from_json(content)
    np.testing.assert_array_equal(again.thresholds, found.thresholds)
    assert np.isinf(found.thresholds).any() and (again.images == found.images).all()
    del content["thresholds"]["82+"]
    with pytest.raises(InputError, match=r"here is damaged \(no thresholds.82\+\)"):
        typed.require(content, declared.CONFORMAL, "here")


WEIGHTS = {"1-10": 0.1, "11-20": 0.1, "21-30": 0.35, "31-40": 0.25, "41-50": 0.12, "51-60": 0.06, "61-70": 0.02}


def people(count, seed):
    """Draws estimates, distributions and ages. Few are old, estimates lean to 35, and distributions are too sure."""
    rng = np.random.default_rng(seed)
    groups = rng.choice(len(WEIGHTS), count, p=list(WEIGHTS.values()))
    ages = 10.0 * groups + rng.integers(1, 11, count)
    spread = rng.uniform(3, 6, count)
    estimates = np.clip(35 + 0.75 * (ages - 35) + spread * rng.normal(size=count), 0, 100)
    weights = np.exp(-((np.arange(101) - estimates[:, None]) ** 2) / (2 * spread[:, None] ** 2)) + 1e-9
    return estimates, weights / weights.sum(axis=1, keepdims=True), ages


def test_every_age_group_is_covered_where_intervals_of_the_distributions_miss():
    """Over many fits to 400 people, as few as 8 of a group: the mean coverage is at least the level, to 3 errors."""
    level, fits = 0.8, 15
    estimates, probabilities, ages = people(4000, 1000)
    group = conformal.group_of(ages)
    there = [conformal.NAMES.index(name) for name in WEIGHTS]

    def coverage(bounds):
        inside = (bounds[:, 0] <= ages) & (ages <= bounds[:, 1])
        return np.array([inside[group == one].mean() for one in there])

    plain = coverage(distributions.intervals(probabilities, level))
    found = [
        coverage(conformal.fit(*people(400, seed)).intervals(estimates, probabilities, level)) for seed in range(fits)
    ]
    mean, error = np.mean(found, axis=0), np.std(found, axis=0, ddof=1) / math.sqrt(fits)
    assert plain.min() < level - 0.15 and plain.max() > level - 0.03
    assert (mean >= level - 3 * np.maximum(error, 0.005)).all(), mean
    assert (mean <= level + 0.05)[2:5].all(), mean  # not by intervals that hold everything
