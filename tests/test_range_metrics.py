"""Scores of ranges of ages by hand, what stands for a range, and the factors of the class-balanced order."""

import json

import numpy as np
import pytest
from scipy import stats

from lae_jax import metrics
from lae_jax.data import sampling
from lae_jax.report import scores


def test_a_report_of_ranges_by_hand():
    ranges = np.array([[20, 29], [20, 29], [30, 39], [70, 100], [25, 25], [0, 0.4]])
    report = metrics.range_report(ranges, np.array([24.0, 33, 28, 100, 27, 3.4]))
    # Distances 0, 4, -2, 0, 2, 3; of the five ranges, two hold their prediction.
    assert (report.n, report.n_exact) == (6, 1) and report.distance == pytest.approx(11 / 6)
    assert report.in_range == pytest.approx(2 / 5)
    # 24.5 is in 21-30 and 34.5 in 31-40.
    assert report.group_count.tolist() == [0, 0, 3, 1, 0, 0, 0, 1] and report.outside_count.tolist() == [1, 0]
    np.testing.assert_allclose(report.group_distance[[2, 3, 7]], [2, 2, 0])
    np.testing.assert_allclose(report.bias[[2, 3, 7]], [2, -2, 0])
    assert report.outside_distance[0] == report.outside_bias[0] == 3
    assert report.mean_group_distance == pytest.approx(4 / 3) and np.isnan(report.distance_sigma)
    assert report.missing_groups == ("1-10", "11-20", "41-50", "51-60", "61-70")
    assert report.exact.n == 1 and report.exact.mae == 2
    as_json = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert as_json["mae"] == 2 and as_json["sigma"] is None and "exact" not in as_json


def test_without_exact_ages_there_is_no_mae_and_without_ranges_no_share_in_range():
    of_ranges = metrics.range_report(np.array([[20, 29]]), np.array([31.0])).to_dict()
    assert "mae" not in of_ranges and "cs" not in of_ranges and of_ranges["in_range"] == 0
    ages, predictions = np.array([5.0, 15, 25, 35, 45, 55, 65, 75]), np.arange(8.0) * 10
    exact = metrics.range_report(np.stack([ages, ages], axis=1), predictions)
    plain = metrics.age_report(ages, predictions)
    assert np.isnan(exact.in_range) and exact.distance == plain.mae and exact.distance_sigma == plain.sigma
    np.testing.assert_array_equal(exact.group_distance, plain.group_mae)


def test_distances_take_the_place_of_errors_and_of_exact_ages_they_are_the_errors():
    rng = np.random.default_rng(0)
    ages, predictions = rng.uniform(0, 90, 200), rng.uniform(0, 90, 200)
    exact, as_ranges = (
        metrics.age_report(ages, predictions),
        metrics.distance_report(np.stack([ages] * 2, 1), predictions),
    )
    assert exact.to_dict() == as_ranges.to_dict() and exact.sigma > 0
    ranges = np.stack([np.floor(ages / 10) * 10, np.floor(ages / 10) * 10 + 9], axis=1)
    found, known = metrics.distance_report(ranges, predictions), metrics.range_report(ranges, predictions)
    assert (found.mae, found.sigma) == (known.distance, known.distance_sigma)
    np.testing.assert_array_equal(found.group_mae, known.group_distance)
    assert found.cs[0] == known.in_range and found.mmae == known.mean_group_distance


def test_the_age_of_a_range_is_its_middle_and_that_of_an_open_one_the_mean_of_a_population():
    people = 0.5 ** (np.arange(31) / 5)
    mean = (people * np.arange(70, 101)).sum() / people.sum()
    found = metrics.label_age(np.array([[20, 29], [34.5, 34.5], [70, 100], [np.nan, np.nan], [100, 100], [0, 2]]))
    np.testing.assert_allclose(found, [24.5, 34.5, mean, np.nan, 100, 1])
    texts = [metrics.label_text(*one) for one in ((20, 29), (34.5, 34.5), (70, 100), (np.nan, np.nan), (100, 100))]
    assert texts == ["20-29", "34.5", "70+", "age unknown", "100"]


def test_images_of_ranges_count_at_their_ages():
    count = metrics.images_by_age(np.array([[20, 29]] * 20 + [[25, 25]] * 3 + [[4.4, 4.4]]))
    assert count[20:30].tolist() == [2, 2, 2, 2, 2, 5, 2, 2, 2, 2] and count[4] == 1 and count.sum() == 24
    assert metrics.images_by_age(np.zeros((0, 2))).tolist() == [0] * 101


@pytest.mark.parametrize("low, high", [(0.2, 0.8), (19.6, 29.4), (7.3, 7.4)])
def test_ranges_with_fractions_count_at_the_ages_that_the_loss_gives_them(low, high):
    ranges = np.array([[low, high], [7.4, 7.4]])
    expected = metrics.range_weights(ranges[:1])[0]
    expected[7] += 1  # an exact age counts as its whole age
    np.testing.assert_array_equal(metrics.images_by_age(ranges), expected)


def test_intervals_hold_of_a_range_the_share_of_its_probability():
    below, up_to = np.array([0.2, 0.0, 0.4, 0.05]), np.array([0.6, 0.1, 0.4, 0.05])
    # The middle half is 0.25 to 0.75: 0.35 of 0.4; nothing; the exact age inside; the exact age outside.
    np.testing.assert_allclose(
        metrics.coverage(below, up_to, [0.5, 0.9]), [(0.875 + 0 + 1 + 0) / 4, (1 + 0.5 + 1 + 1) / 4]
    )


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_ages_are_equally_likely_also_where_labels_are_ranges(power):
    """20-29 with 400 images, 60-79 with 10, the age 5 with 40, and 70-79, which 60-79 overlaps, with 30."""
    labels = np.array([[5, 5], [20, 29], [60, 79], [70, 79]], float)
    counts = np.array([40, 400, 10, 30])
    factors = metrics.class_factors(labels, counts, power)
    at_age = np.array([40, 40, (10 * 0.5 + (0.5 + 3) * 10) / 20, 3.5])  # mean images at the ages of each label
    np.testing.assert_allclose(factors, (counts / at_age) ** (1 - power))
    if power == 0:
        np.testing.assert_allclose(factors[:2], [1, 10])
    classes = np.repeat(np.arange(4), counts)
    order = sampling.class_balanced(classes, 500, 3, power, dict(enumerate(factors.tolist())))
    drawn = np.bincount(np.concatenate([classes[order(step).numpy()] for step in range(20)]), minlength=4)
    expected = counts**power * factors
    assert stats.chisquare(drawn, expected / expected.sum() * drawn.sum()).pvalue > 1e-3


def test_exact_ages_as_ranges_have_factors_of_1():
    ages = np.array([3.0, 3, 20.4, 20, 81])
    labels, place, counts = metrics.label_classes(np.stack([ages, ages], axis=1))
    assert labels[:, 0].tolist() == [3, 20, 81] and place.tolist() == [0, 0, 1, 1, 2] and counts.tolist() == [2, 2, 1]
    assert metrics.class_factors(labels, counts, 0.3).tolist() == [1, 1, 1]


def mixed(n=600, seed=0):
    rng = np.random.default_rng(seed)
    ages = rng.uniform(1, 81, n)
    ranges = np.stack([ages // 10 * 10, ages // 10 * 10 + 9], axis=1)
    ranges[: n // 3] = ages[: n // 3, None]
    ranges[ages >= 70, 1] = np.where(ranges[ages >= 70, 0] < ranges[ages >= 70, 1], 100, ranges[ages >= 70, 1])
    predictions = ages + rng.normal(0, 6, n)
    return scores.Sample(metrics.label_age(ranges), predictions, np.full(n, -1), ranges=ranges)


def test_scores_of_sums_are_the_scores_of_ranges():
    one = mixed()
    found, whole = scores.score(one), metrics.range_report(one.ranges, one.predictions)
    for name in ("distance", "distance_sigma", "in_range"):
        assert found.values[name] == pytest.approx(getattr(whole, name), rel=1e-9)
    assert [found.values[f"distance_{group}"] for group in metrics.GROUPS] == pytest.approx(whole.group_distance)
    assert [found.values[f"bias_{group}"] for group in metrics.GROUPS] == pytest.approx(whole.bias)
    for name in ("mae", "sigma", "mmae", "aar_2021"):
        assert found.values[name] == pytest.approx(getattr(whole.exact, name), rel=1e-9)
    names = [score.name for score in scores.main_scores(one)]
    assert names[0] == "distance" and names.index("in_range") + 1 == names.index("mae")
    only = one.part(~one.is_exact)
    assert [score.name for score in scores.main_scores(only)][-1] == "in_range"
    assert "mae" not in scores.score(only).values and len(only.exact.ages) == 0


def test_an_interval_of_the_distance_is_as_wide_as_theory_says_and_pairs_make_a_difference_sure():
    one, score = mixed(2000), scores.OF_RANGES[0]
    distances = np.abs(one.differences)
    estimate = scores.score(one).estimate(score)
    assert estimate.value == pytest.approx(distances.mean())
    assert (estimate.high - estimate.low) / 2 == pytest.approx(1.96 * distances.std() / 2000**0.5, rel=0.12)
    share = scores.score(one).estimate(scores.OF_RANGES[-1])
    inside = distances[~one.is_exact] == 0
    half = 1.96 * (inside.mean() * (1 - inside.mean()) / len(inside)) ** 0.5
    assert (share.high - share.low) / 2 == pytest.approx(half, rel=0.12)
    nearer = scores.Sample(one.ages, one.ages + 0.9 * (one.predictions - one.ages), one.people, ranges=one.ranges)
    difference = scores.score(nearer).difference(scores.score(one), score)
    assert difference.high < 0 and scores.verdict(difference, score) == "better"


def test_a_range_that_holds_the_threshold_is_neither_younger_nor_older():
    ranges = np.array([[10, 19], [18, 29], [10, 17], [18, 18], [17, 17], [0, 2]], float)
    one = scores.Sample(metrics.label_age(ranges), np.zeros(6), np.full(6, -1), ranges=ranges)
    assert one.decided(18).tolist() == [False, True, True, True, True, True]
    ((found, *_),) = scores.decisions(one, np.array([0.9, 0.9, 0.9, 0.1, 0.1, 0.1]), 18, (0.5,))
    assert (found.younger, found.older, found.false_accepts, found.false_rejects) == (3, 2, 1, 1)
    assert scores.decisions(one.part([0]), np.array([0.5]), 18, (0.5,)) == []
