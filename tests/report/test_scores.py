"""Scores of reports: intervals that mean what they say."""

from types import SimpleNamespace

import numpy as np
import pytest
from samples import sample
from scipy import stats

from lae_jax import metrics
from lae_jax.report import age_groups, bootstrap, charts, scores, tables


def test_scores_of_sums_are_the_scores():
    one = sample(500, training_count=np.arange(101) * 2)
    found, whole = scores.score(one).values, metrics.age_report(one.ages, one.predictions)
    for name in ("mae", "sigma", "mmae", "aar_2021", "aar_2022"):
        assert found[name] == pytest.approx(getattr(whole, name), rel=1e-9)
    assert [found[f"mae_{group}"] for group in metrics.GROUPS] == pytest.approx(whole.group_mae)
    assert [found[f"bias_{group}"] for group in metrics.GROUPS] == pytest.approx(whole.bias)
    assert found["cs5"] == pytest.approx(whole.cs[5])
    assert found["class_mae"] == pytest.approx(metrics.class_mae(one.ages, one.predictions))
    assert found["geometric_mean"] == pytest.approx(metrics.geometric_mean(one.ages, one.predictions))
    few = metrics.shots(one.ages, one.training_count) == 2
    assert found["mae_few"] == pytest.approx(np.abs(one.predictions - one.ages)[few].mean())
    assert np.isnan(found["epsilon"]) and not [name for name in found if "range" in name or "distance" in name]


def test_babies_and_people_over_81_are_scored_apart():
    one = sample(400)
    ages = np.concatenate([one.ages, np.zeros(20), np.full(20, 90.0)])
    errors = np.concatenate([one.predictions - one.ages, np.tile([9.0, 7.0], 10), np.tile([-5.0, -3.0], 10)])
    more = scores.Sample(ages, ages + errors, np.full(len(ages), -1))
    found, alone = scores.score(more), scores.score(one)
    assert [found.values[name] for name in ("mae_0", "bias_0", "mae_82+", "bias_82+")] == pytest.approx([8, 8, 4, -4])
    assert found.values["mmae"] == pytest.approx(alone.values["mmae"]) and found.estimate(scores.MAIN[1]).is_known
    assert scores.group_count(ages).tolist()[8:] == [20, 20]
    titles = [[score.title for score in scores.main_scores(some)] for some in (more, one)]
    assert [*titles[1][:9], "0", "82+", *titles[1][9:]] == titles[0] and titles[1][8] == "71-81"
    assert not {"0", "82+"} & {*titles[1]}


def test_the_table_of_a_report_ends_with_the_groups_outside_where_there_are_any():
    ages = np.array([5.0, 25, 90, 95])
    report = metrics.age_report(ages, ages + 2).to_dict()
    assert [row[:2] for row in age_groups.rows(report)][-2:] == [("71-81", 0), ("82+", 2)]
    assert age_groups.rows(report)[-1][2:] == (2, 2)
    assert [age_groups.edges(group, 95) for group in ("0", "1-10", "82+")] == [(0, 0), (1, 10), (82, 95)]


def test_an_interval_is_as_wide_as_theory_says_and_seeded():
    one = sample(2000)
    errors = np.abs(one.predictions - one.ages)
    estimate = scores.score(one).estimate(scores.MAIN[0])
    half = 1.96 * errors.std() / len(errors) ** 0.5
    assert estimate.value == pytest.approx(errors.mean())
    assert (estimate.high - estimate.low) / 2 == pytest.approx(half, rel=0.12)
    assert scores.score(one).estimate(scores.MAIN[0]) == estimate
    assert scores.score(one, seed=1).estimate(scores.MAIN[0]) != estimate


def test_images_of_a_person_are_drawn_together():
    """Four copies of an image tell nothing new: the interval is twice as wide as over images."""
    alone = sample(300)
    four = scores.Sample(np.repeat(alone.ages, 4), np.repeat(alone.predictions, 4), np.repeat(np.arange(300), 4))
    apart = scores.Sample(four.ages, four.predictions, np.full(1200, -1))
    widths = [e.high - e.low for e in (scores.score(s).estimate(scores.MAIN[0]) for s in (four, apart))]
    assert widths[0] == pytest.approx(2 * widths[1], rel=0.15)
    assert bootstrap.units(np.array([3, -1, 3, -1, 0])).tolist() == [3, 1, 3, 0, 2]


def test_many_units_are_put_together_without_changing_the_width(monkeypatch):
    one = sample(3000)
    plain = scores.score(one).estimate(scores.MAIN[0])
    monkeypatch.setattr(bootstrap, "MOST_UNITS", 500)
    assert bootstrap.units(one.people).max() == 499
    merged = scores.score(one).estimate(scores.MAIN[0])
    assert merged.high - merged.low == pytest.approx(plain.high - plain.low, rel=0.15)
    assert merged.value == pytest.approx(plain.value)


def test_sigma_of_few_images_lies_in_its_interval_and_a_handful_has_none():
    rng = np.random.default_rng(0)
    ages = np.repeat([5.0, 15, 25, 35, 45, 55, 65, 75], 16)
    one = scores.Sample(ages, ages + rng.normal(0, 5, len(ages)), np.full(len(ages), -1))
    found = scores.score(one).estimate(next(s for s in scores.MAIN if s.name == "sigma"))
    assert found.low < found.value < found.high
    lone = one.part(np.flatnonzero((ages != 75) | (np.arange(len(ages)) == len(ages) - 1)))
    estimates = {s.name: scores.score(lone).estimate(s) for s in scores.MAIN}
    assert np.isfinite(estimates["sigma"].value) and np.isnan(estimates["sigma"].low)
    assert estimates["mae_71-81"].interval == "" and estimates["mae"].interval


def test_shares_of_none_and_of_few_images_are_not_taken_for_sure():
    ages = np.linspace(10, 60, 40)
    cs5 = next(s for s in scores.MAIN if s.name == "cs5")
    for off, expected in ((1, (0.9119, 1)), (9, (0, 0.0881))):  # 0.025 ** (1 / 40) is 0.9119
        found = scores.score(scores.Sample(ages, ages + off, np.full(40, -1))).estimate(cs5)
        assert (found.low, found.high) == pytest.approx(expected, abs=1e-3)
    few = scores.score(scores.Sample(ages[:3], ages[:3] + [1, 2, 9], np.full(3, -1)))
    assert [few.estimate(s).interval for s in scores.MAIN] == [""] * len(scores.MAIN)
    assert few.difference(few, cs5).interval == "" and few.estimate(cs5).value == pytest.approx(2 / 3)


def test_different_models_that_are_always_within_5_years_are_not_the_same():
    ages, cs5 = np.linspace(10, 60, 40), next(s for s in scores.MAIN if s.name == "cs5")
    one, other = (scores.score(scores.Sample(ages, ages + off, np.full(40, -1))) for off in (1, 2))
    difference = one.difference(other, cs5)
    assert difference.value == 0 and (difference.low, difference.high) == pytest.approx((-0.088, 0.088), abs=1e-3)
    assert scores.verdict(difference, cs5) == "not distinguishable" == scores.UNCLEAR
    assert scores.verdict(one.difference(one, cs5), cs5) == "the same"
    # Nor are two that miss the same image.
    missing = [ages + np.where(ages == 60, 9, off) for off in (1, 2)]
    one, other = (scores.score(scores.Sample(ages, predicted, np.full(40, -1))) for predicted in missing)
    assert one.difference(other, cs5).high == pytest.approx(0.088, abs=1e-3)


def test_a_share_of_many_images_is_as_sure_as_they_are_many(monkeypatch):
    monkeypatch.setattr(bootstrap, "MOST_UNITS", 50)
    ages, cs5 = np.linspace(10, 60, 400), next(s for s in scores.MAIN if s.name == "cs5")
    lone = scores.Sample(ages, ages, np.full(400, -1))
    assert scores.score(lone).estimate(cs5).low == pytest.approx(0.025 ** (1 / 400), abs=1e-4)
    ((_, accepts, _),) = scores.decisions(lone, np.zeros(400), 40, (0.5,))
    assert accepts.high == pytest.approx(1 - 0.025 ** (1 / 240), abs=1e-3)


def test_a_share_of_few_cases_has_the_exact_interval():
    for cases, count in ((0, 40), (1, 30), (4, 9), (26, 30), (7, 7)):
        exact = stats.binomtest(cases, count).proportion_ci(0.95, "exact")
        assert bootstrap.exact_interval(cases, count) == pytest.approx((exact.low, exact.high), abs=1e-12)
    replicates = np.linspace(0.3, 0.5, 1000)
    assert bootstrap.share_interval(0.4, replicates, 10) == bootstrap.exact_interval(4, 10)
    assert bootstrap.share_interval(0.4, replicates, 20) == bootstrap.interval(0.4, replicates)


def test_differences_and_ratios_of_shares_of_different_people():
    # 56 of 70 and 48 of 80, of Newcombe's paper (example a, method 10: 0.0524 to 0.3339), from Wilson's intervals.
    one, other = (0.6918335550, 0.8769526075), (0.4904546501, 0.7003817240)
    assert bootstrap.difference_interval(0.8, 0.6, one, other) == pytest.approx((0.0524, 0.3339), abs=1e-4)
    assert bootstrap.difference_interval(0, 0, (0, 0.1), (0, 0.2)) == (-0.2, 0.1)
    low, high = bootstrap.ratio_interval(0.8, 0.6, one, other)
    assert low == pytest.approx(4 / 3 * np.exp(-np.hypot(np.log(0.8 / one[0]), np.log(other[1] / 0.6))))
    assert high == pytest.approx(4 / 3 * np.exp(np.hypot(np.log(one[1] / 0.8), np.log(0.6 / other[0]))))
    assert bootstrap.ratio_interval(0, 0.5, (0, 0.1), (0.25, 0.7)) == pytest.approx((0, 0.4))
    assert bootstrap.ratio_interval(0.1, 0.05, (0.05, 0.2), (0, 0.1))[1] == np.inf
    assert np.isnan(bootstrap.ratio_interval(0.1, 0, (0.05, 0.2), (0, 0.1))).all()


def test_the_rates_of_a_decision_have_intervals_of_people():
    rng = np.random.default_rng(0)
    ages, people = rng.uniform(10, 30, 400), np.arange(400) % 100
    chances = np.clip((ages - 18) / 16 + 0.5 + rng.normal(0, 0.2, 400), 0, 1)
    cuts = (0.5, 0.9, 1.1)
    found = scores.decisions(scores.Sample(ages, ages, people), chances, 18, cuts)
    for (counted, accepts, rejects), cut in zip(found, cuts, strict=True):
        assert counted == metrics.decision(ages, chances, 18, cut)
        for rate, estimate in ((counted.false_accept_rate, accepts), (counted.false_reject_rate, rejects)):
            assert estimate.value == rate and estimate.low <= rate <= estimate.high and estimate.low < estimate.high
    assert found[2][1].low == 0 < found[2][1].high < 0.1 and found[2][2].high == 1
    width = [1.96 * (r * (1 - r) / n) ** 0.5 for r, n in ((found[0][1].value, found[0][0].younger),)][0]
    assert (found[0][1].high - found[0][1].low) / 2 == pytest.approx(width, rel=0.3)
    young = scores.decisions(scores.Sample(ages[:3], ages[:3], people[:3]), chances[:3], 40, (0.5,))
    assert young[0][1].interval == "" and not young[0][2].is_known


def test_pairs_make_a_small_difference_sure():
    one = sample(300)
    errors = one.predictions - one.ages
    other = scores.Sample(one.ages, one.ages + errors * 0.97, one.people)
    first, second = scores.score(one), scores.score(other)
    mae = scores.MAIN[0]
    difference = second.difference(first, mae)
    assert difference.high < 0 and scores.verdict(difference, mae) == "better"
    assert second.estimate(mae).high > first.estimate(mae).low, "without pairs they could not be told apart"
    assert scores.verdict(first.difference(first, mae), mae) == "the same"
    aar = next(s for s in scores.MAIN if s.name == "aar_2022")
    assert scores.verdict(tables.Estimate(-1.0, -2.0, -0.5), aar) == "worse"


def test_values_of_a_column():
    numbers = scores.values_of([str(i) for i in range(100)] + [None, ""])
    assert [mask.sum() for mask in numbers.values()] == [25, 25, 25, 25, 2] and [*numbers][-1] == "unknown"
    many = scores.values_of([f"camera {i}" for i in range(30)] + ["canon"] * 5)
    assert [*many][0] == "canon" and len(many) == 21 and many["11 others"].sum() == 11 - 1 + 1
    assert sum(mask.sum() for mask in many.values()) == 35


@pytest.mark.parametrize(
    "slope, told", [(0.5, "0.50 years to the prediction: predictions differ less between people than their ages do."),
                    (1.0, "1.00 years to the prediction.")]
)  # fmt: skip
def test_a_flat_prediction_is_told_without_a_side(slope, told):
    ages = np.arange(10.0, 24)
    one = SimpleNamespace(sample=scores.Sample(ages, 38 + slope * ages, np.full(14, -1)))  # all are too old
    assert charts.density(one).finding.endswith(told)
