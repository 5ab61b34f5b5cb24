"""Sections about age checks, against tables of ten people that are worked by hand."""

import csv
import dataclasses
import io
from types import SimpleNamespace

import numpy as np
import pytest
from etils import epath
from test_pages import checked, write_run

from lae_jax.metrics import Costs, Photographs
from lae_jax.report import age_checks, bootstrap, evaluation_page, loading, page, pictures, tables
from lae_jax.report.age_checks import cases, disparity, pass_rates, severity, within_person, years

# Age, estimate (None: not processed), sex of ten people; the last two were rejected before the evaluation.
TEN = [(12, 14.0, "f"), (13, 15.5, "m"), (15, 26.0, "f"), (16, 17.0, "f"), (17, 25.0, "m"), (18, 24.0, "f"),
       (21, 30.0, "m"), (25, 22.0, "f"), (17, None, ""), (40, None, "")]  # fmt: skip


@pytest.fixture
def ten():
    ages, estimates, sex = zip(*TEN, strict=True)
    ages, estimates = np.array(ages, np.float64), np.array(estimates, np.float64)
    return cases.Check(
        18.0, 25.0, Costs(), Photographs(ages, ages, estimates, np.ones(10)), np.full(10, -1),
        {"sex": np.array(sex, object)}, False, 2, 0, 1.0,
    )  # fmt: skip


def rows(table):
    """The rows of a table: numbers of estimates, texts."""
    return [[cell.value if isinstance(cell, tables.Estimate) else cell for cell in row] for row in table.rows]


def test_failures_count_as_not_passed_and_both_conventions_stand_side_by_side(ten):
    # Below 18 are six: two pass; five were processed. Of 18 and older are four: one passes; three were processed.
    assert rows(pass_rates.overall(ten)) == [
        ["below 18, pass", pytest.approx(2 / 6), pytest.approx(2 / 5), "6", "1", "6"],
        ["18 and older, referred", pytest.approx(3 / 4), pytest.approx(2 / 3), "4", "1", "4"],
    ]
    first = pass_rates.overall(ten).rows[0][1]
    assert (first.low, first.high) == bootstrap.exact_interval(2, 6)


def test_a_rejected_photograph_counts_as_the_share_of_the_split(ten):
    weights = np.where(np.arange(10) >= 8, 0.25, 1.0)
    part = dataclasses.replace(ten, photographs=dataclasses.replace(ten.photographs, weights=weights), share=0.25)
    # 5 + 1 / 4 photographs below 18, and 3 + 1 / 4 of older people.
    assert rows(pass_rates.overall(part))[0] == [
        "below 18, pass", pytest.approx(2 / 5.25), pytest.approx(2 / 5), "5.2", "0.2", "5.2"]  # fmt: skip
    assert rows(pass_rates.overall(part))[1][1] == pytest.approx(2.25 / 3.25)
    assert "each counts as 0.25 of a photograph" in age_checks._opening(part, "run")[-1]


def test_shares_by_year(ten):
    found = rows(pass_rates.by_year(ten))
    assert [(row[0], row[1], *row[2:]) for row in found] == [
        ("12", 0, "0", "1", "0", "1", "too young"),
        ("13", 0, "0", "1", "0", "1", "too young"),
        ("15", 1, "1", "1", "0", "1", "too young"),
        ("16", 0, "0", "1", "0", "1", "too young"),
        ("17", 0.5, "1", "2", "1", "2", "too young"),
        ("18", 0, "0", "1", "0", "1", "old enough"),
        ("21", 1, "1", "1", "0", "1", "old enough"),
        ("25", 0, "0", "1", "0", "1", "old enough"),
    ]


def test_the_smallest_challenge_age(ten):
    found = pass_rates.at_challenges(ten)
    # The estimates below 18 are 14, 15.5, 26, 17, 25: nobody passes from 27 on, and of the older people 30 passes.
    assert rows(pass_rates.smallest(ten, found))[0] == ["rate at most 1 %", "27", 0, 0.75]
    assert rows(pass_rates.smallest(ten, found))[3][1] == "none up to 100", "six people show no rate of 0.1 %"
    ages, accepted, referred = found
    assert [accepted[int(age) - 18].value for age in (18, 25, 26)] == pytest.approx([2 / 6, 2 / 6, 1 / 6])
    assert [referred[int(age) - 18].value for age in (18, 22, 23, 31)] == pytest.approx([1 / 4, 1 / 4, 2 / 4, 1])
    assert (ages[0], ages[-1]) == (18, 100)


def test_policies(ten):
    assert rows(pass_rates.policies(ten)) == [
        ["threshold alone", "18", "–", *map(pytest.approx, (2 / 6, 0, 3 / 4, 0, 1 / 4, 21.0))],
        ["challenge age", "–", "25", *map(pytest.approx, (2 / 6, 4 / 6, 1 / 4, 3 / 4, 0, 20.7))],
        ["two cuts", "11", "25", *map(pytest.approx, (2 / 6, 4 / 6, 1 / 4, 3 / 4, 0, 20.7))],
        ["lowest cost here", "18", "30", *map(pytest.approx, (0, 3 / 6, 1 / 4, 3 / 4, 0, 0.6))],
    ]


def test_the_ages_of_the_false_positives(ten):
    assert rows(severity.ages(ten)) == [["15", "1", "1", 0.5, 3], ["17", "1", "1", 0.5, 1], ["all", "2", "2", 1, 2]]
    with pictures.style():
        drawn = severity.picture(ten)
    assert drawn.rows == [(12, 1, 0), (13, 1, 0), (14, 0, 0), (15, 1, 1), (16, 1, 0), (17, 2, 1)]
    assert "that pass: 2 of 6. The youngest person on them is 15." in drawn.finding
    nobody = dataclasses.replace(ten, challenge=40.0)
    assert severity.ages(nobody) is None


def test_errors_by_year_macro_and_window():
    ages = np.array([13, 13, 13, 18, 18, 19, 16.5, 17, 8, 22], np.float64)
    errors = np.array([2, -1, 5, 4, 2, -6, 0, -1, 7, np.nan])
    sex = np.array(["f", "m", "f", "f", "m", "m", "f", "m", "f", "f"], object)
    check = cases.Check(
        18.0, 25.0, Costs(), Photographs(ages, ages, ages + errors, np.ones(10)), np.arange(10), {"sex": sex}, True, 0,
        0, 1.0,
    )  # fmt: skip
    found = {row[0]: row[1:] for row in rows(years.by_year(check))}
    assert [*found] == [f"{age}" for age in range(13, 31)]
    assert found["13"] == ["3", "3", pytest.approx(8 / 3), pytest.approx(3), pytest.approx(2)]
    assert found["18"] == ["2", "2", 3, pytest.approx(2**0.5), 3]
    assert found["19"][:3] == ["1", "1", 6] and np.isnan(found["19"][3]) and found["22"][:2] == ["0", "0"]
    # Cells: 18 has MAE 3, 19 has 6; of the sexes f 18: 4, m 18: 2, m 19: 6. The photograph of 22 was not processed.
    assert rows(years.macro(check)) == [
        ["of each year", 4.5, "2 of 13", "3"],
        ["of each year and sex", 4, "3 of 26", "3"],
    ]
    # Estimates of 13, 13, 13, 16.5: 15, 12, 18, 16.5. Younger: 8 as 15. Older: 18 as 22, 18 as 20, 19 as 13, 17 as 16.
    assert [row[1:] for row in rows(years.window(check))] == [
        ["4", "4", 0.5],
        ["1", "1", 1],
        ["1", "1", 1],
        ["5", "5", pytest.approx(2 / 5)],
        ["4", "4", pytest.approx(2 / 4)],
    ]


def test_gaps_between_groups(ten, monkeypatch):
    monkeypatch.setattr(bootstrap, "TOO_FEW", 0)
    # Below 18: f 12, 15, 16 (one of three passes); m 13, 17 (one of two). Older: f 18, 25 referred; m 21 passes.
    found = disparity.gaps(ten)
    assert rows(found) == [
        ["f minus m", "sex", "18 and older, referred", 1, pytest.approx(np.nan, nan_ok=True), "2 and 1"],
        ["m minus f", "sex", "below 18, pass", pytest.approx(1 / 6), pytest.approx(1.5), "2 and 3"],
    ]
    one, other = bootstrap.exact_interval(1, 2), bootstrap.exact_interval(1, 3)
    gap = found.rows[1][3]
    assert (gap.low, gap.high) == pytest.approx(bootstrap.difference_interval(1 / 2, 1 / 3, one, other))
    assert rows(disparity.rates(ten)) == [
        ["f", "sex", pytest.approx(1 / 3), "3", 1, "2"], ["m", "sex", 0.5, "2", 0, "1"]]  # fmt: skip
    monkeypatch.setattr(bootstrap, "TOO_FEW", 3)
    assert disparity.gaps(ten) is None


def test_errors_within_a_person():
    # The ten photographs of tests/test_challenge.py: squares 26 + 18 + 0 over 2 + 1 + 1; pairs 14 / 3, 6 and 0.
    people = np.array([4, 9, 7, 4, -1, 5, 9, 7, 4, -1])
    errors = np.array([8.0, -2, 0, 1, 5, 3, -2, 6, 3, 50])
    ages = np.full(10, 20.0)
    check = cases.Check(
        18.0, 25.0, Costs(), Photographs(ages, ages, ages + errors, np.ones(10)), people, {}, True, 0, 0, 1.0
    )
    found = rows(within_person.table(check))
    assert [row[1:] for row in found] == [
        [pytest.approx(11**0.5), "3", "7"],
        [pytest.approx((14 / 3 + 6) / 3), "3", "7"],
    ]
    assert within_person.table(dataclasses.replace(check, people=np.full(10, -1))) is None


def test_a_page_with_an_age_check_says_where_the_numbers_are(tmp_path):
    rng = np.random.default_rng(0)
    ages = np.floor(rng.uniform(8, 45, 300))
    found = {"labels": [[16, 16, 4], [10, 20, 3]], "of_unknown_age": 2, "share": 0.25}
    run = write_run(
        tmp_path, "run", ages, ages + rng.normal(0, 8, 300), people=np.arange(300) % 150, unprocessed=found,
        contents={"threshold": 18, "challenge": 25, "costs": [7, 2, 1]},
    )  # fmt: skip
    folder = epath.Path(run / "evaluation" / "faces-test")
    page.write(folder / "report.html", evaluation_page.of_evaluation(folder))
    text = (folder / "report.html").read_text()
    checked(text)
    for told in ("These numbers are not a certificate", "7 rejected photographs of known age", "3 labels are ranges",
                 "2 further rejected rows have no known age", "who passes costs 7", "Words of age checks"):  # fmt: skip
        assert told in text, told
    assert "3 of the 307 photographs do not count" in text
    whole = list(csv.DictReader(io.StringIO((folder / "report" / "age_check.csv").read_text())))
    assert whole[0]["photographs"] == str((ages < 18).sum() + 1) and float(whole[0]["all photographs high"]) > 0
    names = {"age_check", "age_check_by_year", "challenge_ages", "policies", "errors_by_year", "macro_mae", "window",
             "disparity", "rates_of_groups", "within_person", "challenge", "severity", "severity_by_year"}  # fmt: skip
    # There is one group, so there are no gaps.
    assert names - {path.stem for path in (folder / "report").iterdir()} == {"disparity", "rates_of_groups"}
    # Without the ages of rejected photographs, and without people below the threshold.
    unknown = write_run(tmp_path, "unknown", ages, ages, contents={"threshold": 18, "challenge": 25})
    old = write_run(tmp_path, "old", ages + 20, ages, contents={"threshold": 18, "challenge": 25}, unprocessed=None)
    with pictures.style():
        first, second = (
            age_checks.sections(loading.read(epath.Path(one / "evaluation" / "faces-test"))) for one in (unknown, old)
        )
    assert "of which ages, is unknown" in first[0].texts[-1] and len(first) > 5
    assert len(second) == 1 and second[0].texts[-1].startswith("No photograph shows a person who is below 18")


def test_labels_that_are_all_ranges_have_rates_and_no_rows_by_year(ten, monkeypatch):
    low = np.array([0, 3, 10, 10, 10, 20, 20, 30, 10, 17], np.float64)
    photographs = dataclasses.replace(ten.photographs, low=low, high=low + 5)
    monkeypatch.setattr(cases, "of_evaluation", lambda _: dataclasses.replace(ten, photographs=photographs))
    with pictures.style():
        made = age_checks.sections(SimpleNamespace(label="run"))
    assert made[0].texts[1:3] == [
        "1 of the 10 photographs do not count: 18 lies in the range of their label.",
        "10 labels are ranges: they are in no row of a single year.",
    ]
    # Below 18 are the first five and the ninth: the estimates 26 and 25 pass.
    assert made[0].tables[0].rows[0][1].value == pytest.approx(2 / 6) and made[0].tables[1].rows == []
    assert made[2].is_empty and "2 of 6" not in page.html(page.Page("t", [], made))
