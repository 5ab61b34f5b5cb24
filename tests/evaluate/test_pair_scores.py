"""Scores on a list of pairs, against cases worked by hand, against other formulas, and on data of a known spread."""

import itertools

import numpy as np
import pytest

from lae_jax.evaluate import pair_scores
from lae_jax.report import bootstrap, wording
from lae_jax.stages import verification


def test_ten_pairs_by_hand():
    # Five folds of a genuine and an impostor pair each.
    genuine, impostor = [0.9, 0.8, 0.7, 0.6, 0.2], [0.65, 0.3, 0.1, 0.0, -0.1]
    similarities = np.array([*genuine, *impostor])
    same, folds = np.arange(10) < 5, np.tile(np.arange(5), 2)
    report = pair_scores.score(similarities, same, folds)
    # The best thresholds of the other folds, each in the middle of a gap, in falling order (wrong decisions):
    # without fold 0, .9 and .65: .45 (1), .15 (1); the middle one of two is the second. It accepts both: half right.
    # without fold 1, .8 and .3: .15 (1). It accepts both.
    # without fold 2, .7 and .1: .725 (2), .45 (2), .1 (2); the middle is .45. It accepts .7 alone: all right.
    # without fold 3, .6 and 0: .675 (1). It refuses both.
    # without fold 4, .2 and -.1: .675 (1), .45 (1). It refuses both.
    assert report["fold_threshold"] == pytest.approx([0.15, 0.15, 0.45, 0.675, 0.45])
    assert report["fold_accuracy"] == pytest.approx([0.5, 0.5, 1, 0.5, 0.5])
    assert report["accuracy"] == pytest.approx(0.6) and report["accuracy_std"] == pytest.approx(0.2)
    # Of 25 comparisons .6 loses one (.65) and .2 two (.65, .3).
    assert report["area_under_curve"] == pytest.approx(22 / 25)
    assert report["pairs"] == 10 and report["genuine_pairs"] == 5
    # Five impostor pairs support no rate below 1 in 5.
    assert report["true_accept_rates"] == {"0.01": None, "0.001": None, "0.0001": None}
    assert wording.about_pairs(report)[-1] == (
        "true accepts at a false accept rate of 0.0001 are undefined: they need 10,000 pairs of two people, and the"
        " list has 5"
    )
    assert len(wording.about_pairs(report)) == 5


def test_true_accepts_by_hand():
    # 100 impostor pairs: one may be accepted at 1 in 100. Above the second, .5, are .9 and .6, not the equal .5.
    genuine, impostor = np.array([0.9, 0.6, 0.5, 0.4]), np.concatenate([[0.7, 0.5], np.linspace(0, 0.3, 98)])
    similarities, same = np.concatenate([genuine, impostor]), np.arange(104) < 4
    report = pair_scores.score(similarities, same, np.arange(104) % 2)
    assert report["true_accept_rates"] == {"0.01": 0.5, "0.001": None, "0.0001": None}
    assert len(wording.about_pairs(report)) == 4
    # A share of four pairs has the interval of Clopper and Pearson: of 2 in 4, 0.0676 to 0.9324.
    assert report["intervals"]["true_accept_rate_0.01"] == pytest.approx([0.0676, 0.9324], abs=1e-4)


def test_three_pairs_or_people_have_no_intervals():
    similarities, same = np.array([0.9, 0.6, 0.5, 0.4, 0.2, 0.1]), np.arange(6) < 3
    assert pair_scores.score(similarities, same, np.arange(6) % 2)["intervals"] == {}
    more, of_more = np.append(similarities, 0.45), np.append(same, True)
    assert pair_scores.score(more, of_more, np.arange(7) % 2)["intervals"]


def drawn(people=40, images=4, spread=0.8, seed=0):
    """Similarities of all pairs of images of drawn people, which of them are of one person, and who they are."""
    rng = np.random.default_rng(seed)
    person = np.repeat(np.arange(people), images)
    embeddings = rng.normal(size=(people, 16))[person] + spread * rng.normal(size=(len(person), 16))
    pairs = np.array([*itertools.combinations(range(len(person)), 2)])
    similarities = verification.cosine(embeddings[pairs[:, 0]], embeddings[pairs[:, 1]])
    return embeddings, pairs, similarities, person[pairs[:, 0]] == person[pairs[:, 1]], person[pairs]


def test_scores_agree_with_those_of_training_and_of_other_formulas():
    embeddings, pairs, similarities, same, people = drawn()
    report = pair_scores.score(similarities, same, np.arange(len(same)) % 10, people)
    as_pairs = verification.Pairs(np.arange(len(embeddings)), pairs[same], pairs[~same])
    assert report["true_accept_rates"]["0.001"] == verification.score(embeddings, as_pairs).true_accept_rate
    genuine, impostor = similarities[same], similarities[~same]
    for rate in ("0.01", "0.001", "0.0001"):
        most = int(float(rate) * len(impostor) + 1e-9)
        assert report["true_accept_rates"][rate] == np.mean(genuine > np.sort(impostor)[-1 - most])
    assert report["area_under_curve"] == pytest.approx(np.mean(genuine[:, None] > impostor[None, :]), abs=1e-12)
    assert report["bootstrap"]["units"] == "people"
    for name, (low, high) in report["intervals"].items():
        rate = report["true_accept_rates"].get(name.removeprefix("true_accept_rate_"), report["area_under_curve"])
        assert low < rate < high


def test_weights_stand_for_pairs_that_occur_so_often():
    rng = np.random.default_rng(3)
    genuine, impostor = rng.integers(3, 9, 30) / 10, rng.integers(0, 6, 200) / 10  # many are equal
    times = rng.integers(0, 4, 30), rng.integers(0, 4, 200)
    weighted = pair_scores._Curve(genuine, impostor).scores(times[0][None], times[1][None], [0.01, 0.1])[0]
    one, other = np.repeat(genuine, times[0]), np.repeat(impostor, times[1])
    plain = pair_scores._Curve(one, other).scores(np.ones((1, len(one))), np.ones((1, len(other))), [0.01, 0.1])[0]
    np.testing.assert_allclose(weighted, plain, rtol=1e-12)
    halves = (one[:, None] == other[None, :]).mean() / 2
    assert plain[0] == pytest.approx((one[:, None] > other[None, :]).mean() + halves)
    assert np.isnan(pair_scores._Curve(genuine, impostor).scores(0 * times[0][None], times[1][None], [0.1])).all()


def test_intervals_over_people_hold_the_area_of_all_people_and_those_over_their_pairs_do_not(monkeypatch):
    """Pairs of a few people are not independent: intervals over pairs are far too narrow."""
    monkeypatch.setattr(bootstrap, "REPLICATES", 200)
    *_, similarities, same, _ = drawn(300, 3, seed=99)
    ones = np.ones((1, same.sum())), np.ones((1, (~same).sum()))
    truth = pair_scores._Curve(similarities[same], similarities[~same]).scores(*ones, [])[0, 0]
    held = {"people": 0, "pairs": 0}
    for seed in range(25):
        *_, similarities, same, people = drawn(20, 3, seed=seed)
        for name, units in (("people", people), ("pairs", None)):
            (area,), replicates = pair_scores.estimates(similarities, same, units, [])
            low, high = bootstrap.interval(area, replicates[:, 0])
            held[name] += low <= truth <= high
    assert held["people"] >= 22 and held["pairs"] <= held["people"] - 4


def test_the_threshold_never_splits_equal_similarities():
    similarities, same = np.array([0.5, 0.5, 0.5, 0.1]), np.array([True, False, True, False])
    assert pair_scores.threshold(similarities, same) == pytest.approx(0.3)
    assert pair_scores.threshold(similarities, np.ones(4, bool)) == pytest.approx(-0.4)
    assert pair_scores.threshold(similarities, np.zeros(4, bool)) == pytest.approx(1.0)


def test_many_pairs_are_scored_in_bounded_memory(monkeypatch):
    monkeypatch.setattr(bootstrap, "REPLICATES", 7)
    monkeypatch.setattr(pair_scores, "_TOGETHER", 3 * 780)
    rows = [len(one) for one, _ in pair_scores._of_pairs(np.arange(780) < 30)]
    assert rows == [3, 3, 1]
