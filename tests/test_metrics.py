"""Equations 5 to 7, both editions of AAR and verification, against published rows and hand-worked numbers."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from lae_jax import metrics

ROWS_2022 = Path(__file__).resolve().parents[2] / "shared" / "data" / "aar_2022_rows.csv"
ONE_A_GROUP = np.array([5.0, 15.0, 25.0, 35.0, 45.0, 55.0, 65.0, 75.0])


# Table 2 of the paper: MAE, sigma, AAR.
@pytest.mark.parametrize(
    ("mae", "sigma", "aar"),
    [
        (1.97, 1.93, 6.10),
        (1.93, 1.65, 6.42),
        (1.78, 1.33, 6.89),
        (1.85, 1.37, 6.78),
        (1.71, 1.11, 7.18),
        (1.89, 0.37, 7.74),
        (1.86, 0.20, 7.94),
    ],
)
def test_aar_of_table_2(mae, sigma, aar):
    assert metrics.aar_2021(mae, sigma) == pytest.approx(aar, abs=0.015)


def test_published_rows_of_2022():
    if not ROWS_2022.exists():
        pytest.skip(f"{ROWS_2022} is not here: the published rows of 2022 travel beside the repository")
    with ROWS_2022.open() as file:
        rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    rows = [row for row in rows if row["consistent_to_0.015"]]
    assert len(rows) == 19
    for row in rows:
        group_mae = np.array([row[f"MAE{j}"] for j in range(1, 9)])
        assert group_mae.mean() == pytest.approx(row["mMAE"], abs=0.015)
        assert metrics.group_deviation(group_mae, row["MAE"]) == pytest.approx(row["sigma"], abs=0.015)
        assert metrics.aar_2022(row["mMAE"], row["sigma"]) == pytest.approx(row["AAR"], abs=0.015)


def test_a_report_that_reaches_a_published_row():
    # Eight groups with these MAEs, in numbers that make the overall MAE 1.87: the row 1.87, 2.01, 0.32, 7.67 of 2022.
    group_mae = np.array([2.72, 2.09, 1.76, 1.91, 1.95, 1.76, 1.92, 1.98])
    counts = np.array([2, 20, 134, 134, 134, 92, 26, 3])
    ages, errors = np.repeat(ONE_A_GROUP, counts), np.repeat(group_mae, counts)
    signs = np.where(np.arange(len(ages)) % 2, 1, -1)
    report = metrics.age_report(ages, ages + signs * errors)
    assert report.mae == pytest.approx(1.87, abs=0.015)
    assert report.mmae == pytest.approx(2.01, abs=0.015)
    assert report.sigma == pytest.approx(0.32, abs=0.015)
    assert report.aar_2022 == pytest.approx(7.67, abs=0.015)
    assert report.aar_2021 == pytest.approx(7 - 1.87 + 3 - 0.32, abs=0.03)
    np.testing.assert_allclose(report.group_mae, group_mae)
    assert report.group_count.tolist() == counts.tolist()


def test_aar_is_between_0_and_10_and_undefined_stays_undefined():
    assert metrics.aar_2021(20.0, 20.0) == 0 and metrics.aar_2021(0.0, 0.0) == 10
    assert metrics.aar_2022(20.0, 20.0) == 0 and metrics.aar_2022(0.0, 0.0) == 10
    assert np.isnan([metrics.aar_2021(1.0, np.nan), metrics.aar_2022(np.nan, 1.0)]).all()


def test_ages_at_the_borders():
    ages = [-3, 0, 0.49, 0.5, 1, 10, 10.49, 10.5, 11, 20.5, 70.4, 70.5, 71, 80, 81, 81.49, 81.5, 82, 100]
    expected = [-1, -1, -1, 0, 0, 0, 0, 1, 1, 2, 6, 7, 7, 7, 7, 7, -1, -1, -1]
    assert metrics.age_group(ages).tolist() == expected
    assert metrics.age_class([10.5, 10.49, 0.5, -0.5, 81.0]).tolist() == [11, 10, 1, 0, 81]
    assert metrics.age_class(np.float32(30.5)) == 31 and metrics.age_class([1]).dtype == np.int64
    for j, name in enumerate(metrics.GROUPS):
        low, high = map(int, name.split("-"))
        assert (metrics.age_group(np.arange(low, high + 1)) == j).all()


def test_groups_go_by_the_true_age_and_ages_outside_count_in_mae_alone():
    report = metrics.age_report([10, 10.5, 81, 0, 82], [12, 10.5, 78, 5, 72])
    assert report.group_count.tolist() == [1, 1, 0, 0, 0, 0, 0, 1] and report.n == 5
    assert report.group_mae[[0, 1, 7]].tolist() == [2, 0, 3]
    assert report.mae == pytest.approx((2 + 0 + 3 + 5 + 10) / 5)
    assert report.bias[[0, 1, 7]].tolist() == [2, 0, -3]


def test_sigma_is_about_the_overall_mae():
    # Group errors 1, ..., 8, but nine more images of the first group: MAE = (10 x 1 + 2 + ... + 8) / 17 = 45 / 17.
    ages = np.append(ONE_A_GROUP, np.full(9, 5.0))
    errors = np.append(np.arange(1.0, 9.0), np.ones(9))
    report = metrics.age_report(ages, ages - errors)
    assert report.mae == pytest.approx(45 / 17) and report.mmae == report.mean_group_mae == pytest.approx(4.5)
    by_hand = np.sqrt(sum((j - 45 / 17) ** 2 for j in range(1, 9)) / 8)
    about_the_mean = np.sqrt(sum((j - 4.5) ** 2 for j in range(1, 9)) / 8)
    assert report.sigma == pytest.approx(by_hand) and report.sigma > about_the_mean + 0.5
    assert report.aar_2021 == pytest.approx(7 - 45 / 17 + 3 - by_hand)
    assert report.aar_2022 == pytest.approx(0.5 + 5 - by_hand)


def test_cumulative_score_and_bias():
    ages = np.tile(ONE_A_GROUP, 2)
    predictions = ages + np.concatenate([np.arange(8), [-20] * 8])
    report = metrics.age_report(ages, predictions)
    assert report.cs.tolist() == [k / 16 for k in (1, 2, 3, 4, 5, 6, 7, 8, 8, 8, 8)]
    assert report.bias.tolist() == [(k - 20) / 2 for k in range(8)]


def test_a_group_without_images_is_undefined_and_named():
    report = metrics.age_report(ONE_A_GROUP[1:7], ONE_A_GROUP[1:7] + [1, 2, 3, 1, 2, 3])
    assert report.missing_groups == ("1-10", "71-81")
    assert np.isnan([report.sigma, report.mmae, report.aar_2021, report.aar_2022]).all()
    assert np.isnan(report.group_mae[[0, 7]]).all() and np.isnan(report.bias[[0, 7]]).all()
    assert report.mae == report.mean_group_mae == 2
    as_json = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert as_json["sigma"] is None and as_json["group_mae"] == [None, 1, 2, 3, 1, 2, 3, None]
    assert as_json["missing_groups"] == ["1-10", "71-81"] and as_json["mae"] == 2 and as_json["n"] == 6
    assert as_json["group_count"] == [0, 1, 1, 1, 1, 1, 1, 0] and len(as_json["cs"]) == 11


def test_a_report_with_no_group_at_all():
    report = metrics.age_report([0, 90], [1, 88])
    assert report.mae == 1.5 and len(report.missing_groups) == 8
    assert np.isnan(report.mean_group_mae) and report.to_dict()["mean_group_mae"] is None


def test_a_full_report_is_json_and_does_not_depend_on_the_order():
    rng = np.random.default_rng(0)
    ages = rng.uniform(0, 90, 1000)
    predictions = (ages + rng.normal(0, 5, 1000)).astype(np.float32)
    one = metrics.age_report(ages, predictions).to_dict()
    order = rng.permutation(1000)
    other = metrics.age_report(ages[order], predictions[order]).to_dict()
    assert one["missing_groups"] == [] and json.loads(json.dumps(one, allow_nan=False)) == one
    for name, value in one.items():
        np.testing.assert_allclose(other[name], value, rtol=1e-12)


@pytest.mark.parametrize(
    ("ages", "predictions", "message"),
    [
        ([], [], "no ages"),
        ([1, 2], [1], "2 ages but 1 predictions"),
        ([1, np.nan, np.inf], [1, 2, 3], "2 of 3 ages are not finite, the first at index 1"),
        ([1, 2, 3], [1, 2, -np.inf], "1 of 3 predictions are not finite, the first at index 2"),
        ([[1], [2]], [1, 2], r"shape \(n,\), not \(2, 1\)"),
    ],
)
def test_what_cannot_be_scored_is_refused(ages, predictions, message):
    with pytest.raises(ValueError, match=message):
        metrics.age_report(ages, predictions)


def test_age_class_refuses_nan():
    with pytest.raises(ValueError, match="not finite"):
        metrics.age_class([3.0, np.nan])


def test_class_wise_mae_counts_every_age_alike():
    ages = np.array([20.0, 20.2, 19.6, 60.0])
    assert metrics.class_mae(ages, ages + [1, -1, 1, 5]) == pytest.approx((1 + 5) / 2)
    assert metrics.age_report(ages, ages + [1, -1, 1, 5]).mae == pytest.approx(2)


def test_shots_go_by_the_training_images_of_the_age():
    count = np.zeros(50, int)
    count[[10, 20, 30, 40, 41]] = [101, 100, 20, 19, 0]
    found = metrics.shots([10, 20.4, 29.6, 40, 41, 49, 80, 0], count)
    assert [metrics.SHOTS[place] for place in found] == ["many", "medium", "medium", *["few"] * 5]


def test_the_geometric_mean_is_scipys_and_defined_with_an_error_of_0():
    ages = np.array([10.0, 20.0, 30.0])
    errors = np.array([0.5, 2.0, 8.0])
    assert metrics.geometric_mean(ages, ages + errors) == pytest.approx(stats.gmean(errors)) == pytest.approx(2)
    assert 0 < metrics.geometric_mean(ages, ages + [0, 2, 8]) < 1


def test_epsilon_error_is_half_a_normal_density():
    # At the mean 0; one standard deviation away 1 - exp(-1/2); a spread of 0 forgives nothing but 0.
    found = metrics.epsilon_errors([30, 30, 30, 30], [5, 5, 0, 0], [30, 35, 30, 31])
    assert found.tolist() == pytest.approx([0, 1 - np.exp(-0.5), 0, 1])
    with pytest.raises(ValueError, match="1 spreads are below 0"):
        metrics.epsilon_errors([30, 30], [5, -1], [30, 35])


def test_a_decision_counts_who_is_wrongly_accepted_and_rejected():
    ages, chances = np.array([10, 17.9, 18, 30, 40]), np.array([0.1, 0.95, 0.4, 0.9, 0.9])
    found = metrics.decision(ages, chances, 18, 0.9)
    assert (found.younger, found.older, found.false_accepts, found.false_rejects) == (2, 3, 1, 1)
    assert found.false_accept_rate == 1 / 2 and found.false_reject_rate == pytest.approx(1 / 3)
    assert metrics.decision(ages, chances, 18, 0.96).false_accepts == 0
    assert np.isnan(metrics.decision(ages[2:], chances[2:], 18, 0.5).false_accept_rate)


@pytest.mark.parametrize("age, group", [
    (0, "0"), (0.4, "0"), (0.5, "1-10"), (10.4, "1-10"), (10.5, "11-20"), (70.5, "71-81"), (81.4, "71-81"),
    (81.5, "82+"), (100, "82+"),
])  # fmt: skip
def test_a_fractional_age_is_in_the_group_of_its_whole_age(age, group):
    assert metrics.ALL_GROUPS[metrics.extended_group(age)] == group
    assert metrics.age_group(age) == (metrics.GROUPS.index(group) if group in metrics.GROUPS else -1)


def test_babies_and_people_over_81_have_scores_beside_the_papers():
    ages = np.concatenate([ONE_A_GROUP, [0.0, 0.4, 81.5]])
    whole, paper = metrics.age_report(ages, ages + 3.0), metrics.age_report(ONE_A_GROUP, ONE_A_GROUP + 3.0)
    assert whole.outside_count.tolist() == [2, 1] and whole.outside_mae.tolist() == [3, 3] and whole.n == 11
    off = metrics.age_report(ages, ages + np.r_[np.full(8, 3.0), 9, 5, -4])
    assert (
        off.outside_mae.tolist() == [7, 4]
        and off.outside_bias.tolist() == [7, -4]
        and off.mae == pytest.approx(42 / 11)
    )
    assert off.group_mae.tolist() == paper.group_mae.tolist() and off.mmae == paper.mmae == 3
    assert paper.outside_count.tolist() == [0, 0] and paper.to_dict()["outside_mae"] == [None, None]
