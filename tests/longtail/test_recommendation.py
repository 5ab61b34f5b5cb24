"""One method for several data sets: groups and data sets count alike, and only validation has a part in the choice."""

import csv
import json

import numpy as np
import pytest
from scipy import stats

from lae_jax import longtail
from lae_jax.longtail import __main__ as door
from lae_jax.longtail import kept_predictions, recommendation
from lae_jax.longtail.outcomes import STAGE3, Labels, Trial
from lae_jax.longtail.recommendation import Bench, Choice
from lae_jax.runtime.errors import InputError
from lae_jax.stages.methods import METHODS

# Ten children, five people over 70, and 40 of each age between: a validation split with a long tail.
AGES = np.concatenate([np.arange(1, 11.0), np.repeat(np.arange(11, 71.0), 40), np.arange(72, 77.0)])
CHILDREN = AGES < 11


def trial(name, error, of_children=None, rate=0.1, setting=0.0, ages=AGES, seeds=2, folds=1, method=None):
    """A trial whose errors are those of children and of all others; the second seed errs by 0.1 more."""
    errors = np.where(ages < 11, error if of_children is None else of_children, error)
    predictions = np.stack([ages + errors + 0.1 * seed for seed in range(seeds)])
    rows = np.array_split(np.arange(len(ages)), folds)
    labels = [Labels(ages[of], of, np.full(len(of), -1)) for of in rows]
    kept = [predictions[:, of] for of in rows]
    return Trial(method or METHODS[name], setting, rate, 0, {"validation": labels}, {"validation": kept})


def choose(*benches):
    return recommendation.choose(benches, recommendation.common(benches))


def test_groups_count_alike_though_the_split_has_a_long_tail():
    lae, crt = trial("lae", 5.0, 9.0), trial("crt", 5.2, 6.0)
    found = choose(Bench.of("a", [lae, crt]))
    assert found.choice == Choice("crt", 0.0, 0.1) and found.reference.method == "lae"
    assert crt.values("validation", "mae").mean() > lae.values("validation", "mae").mean()
    scores = Bench.of("a", [crt]).scores[Choice("crt", 0.0, 0.1)]
    groups = np.array([6.0] + [5.2] * 7) + 0.05
    images = np.where(CHILDREN, 6.05, 5.25).mean()
    np.testing.assert_allclose(scores, [groups.mean(), groups.std(), images], rtol=1e-6)


def test_a_method_that_is_worse_on_average_or_works_on_features_only_is_not_chosen():
    even = trial("crt", 7.0)  # the lowest MAE + sigma, by making all groups worse
    shortcut = trial("interpolation", 1.0, setting=0.5)
    lae = trial("lae", 6.0, 12.0)
    assert recommendation._aim(Bench.of("a", [even]).scores[Choice("crt", 0.0, 0.1)]) < recommendation._aim(
        Bench.of("a", [lae]).scores[Choice("lae", 0.0, 0.1)]
    )
    found = choose(Bench.of("a", [lae, even, shortcut]))
    assert found.choice == found.reference == Choice("lae", 0.0, 0.1)
    told = recommendation.sentences([Bench.of("a", [lae, even, shortcut])], found, {})
    assert told["recommendation"].startswith("Use lae (base_learning_rate 0.1): no other method")
    # Sigma may rise where the children's group gets better than the others.
    assert choose(Bench.of("a", [trial("lae", 6.0), trial("crt", 5.0, 2.0)])).choice.method == "crt"


def test_one_setting_and_rate_is_for_all_data_sets_and_so_is_that_of_lae():
    a = [trial("lae", 5.0, rate=0.01), trial("lae", 6.0, rate=0.1)]
    b = [trial("lae", 7.0, rate=0.01), trial("lae", 4.0, rate=0.1)]
    a += [trial("effective_number", e, setting=s) for s, e in ((0.9, 1.0), (0.999, 4.0))]
    b += [trial("effective_number", e, setting=s) for s, e in ((0.9, 9.0), (0.999, 3.0))]
    b += [trial("crt", 0.1)]  # a method that one bench has alone
    benches = [Bench.of("a", a), Bench.of("b", [*b, trial("lae", 0.0, method=STAGE3)])]
    found = choose(*benches)
    assert found == (Choice("effective_number", 0.999, 0.1), Choice("lae", 0.0, 0.1))
    assert [one.method for one in recommendation.best_of_each(benches)] == ["lae", "effective_number"]
    with pytest.raises(InputError, match=r"\(a: 0.01, 0.1; c: 0.5\).*the same --base-learning-rate"):
        choose(benches[0], Bench.of("c", [trial("lae", 1.0, rate=0.5)]))


def test_differences_are_means_over_data_sets_with_the_error_of_both():
    rng = np.random.default_rng(0)
    of_sets = []
    for data, gain in (("a", 1.0), ("b", 3.0)):
        lae = trial("lae", 20.0)
        noise = rng.normal(0, 2.0, (2, len(AGES)))
        crt = Trial(
            METHODS["crt"], 0.0, 0.1, 0, lae.labels, {"validation": [lae.predictions["validation"][0] - gain + noise]}
        )
        of_sets.append(Bench.of(data, [lae, crt]))
    found = recommendation.compared(of_sets, choose(*of_sets))
    (choice, by_score), told = *found.items(), recommendation.certain(found)
    mean, *_ = told[choice]
    assert mean.mean == pytest.approx(-2.0, abs=0.15) and mean.is_sure and mean.corrected >= mean.p
    error = np.hypot(*(one.error for one in by_score[0])) / 2
    assert error > 0 and (mean.high - mean.low) / 2 >= stats.norm.ppf(0.975) * error
    assert mean.low < by_score[0][0].mean - by_score[0][0].error < by_score[0][0].mean


def test_a_data_set_left_out_says_what_to_expect_on_a_new_one():
    benches = [
        Bench.of("a", [trial("lae", 5.0), trial("crt", 4.0), trial("lds", 6.0)]),
        Bench.of("b", [trial("lae", 5.0), trial("crt", 4.5), trial("lds", 6.0)]),
        Bench.of("c", [trial("lae", 5.0), trial("crt", 7.0), trial("lds", 1.0)]),
    ]
    found = recommendation.left_out(benches)
    assert [chosen.choice.method for _, chosen, _ in found] == ["lds", "lds", "crt"]
    assert [of[0].mean for *_, of in found] == pytest.approx([1.0, 1.0, 2.0])
    assert recommendation.left_out(benches[:1]) == []


def test_folds_are_scored_together_and_drawn_as_folds():
    whole, parts = (Bench.of("a", [trial("lae", 5.0, 9.0, folds=n), trial("crt", 4.0, folds=n)]) for n in (1, 4))
    for choice, scores in whole.scores.items():
        np.testing.assert_allclose(parts.scores[choice], scores, rtol=1e-6)
    found = choose(parts)
    one = parts.trials[found.choice]
    assert one.runs == 1 and one.seeds == 2 and len(one.labels["validation"][0].rows) == len(AGES)
    assert {*one.labels["validation"][0].people} == {0, 1, 2, 3}
    # The children are in one fold of four: where it is not drawn, there is nothing to say about them.
    assert all(np.isnan(each.low) for each in parts.difference(*found)[:2])
    assert np.isfinite(parts.difference(*found)[2].low)


def test_ranges_and_exact_ages_go_together():
    ranges = np.stack([AGES, AGES + 3], axis=1)
    labels = Labels(ranges, np.arange(len(AGES)), np.full(len(AGES), -1))
    of_range = [
        Trial(METHODS[name], 0.0, 0.1, 0, {"validation": [labels]}, {"validation": [ranges[:, 1][None] + error]})
        for name, error in (("lae", 3.0), ("crt", 2.0))
    ]
    benches = [Bench.of("ranges", of_range), Bench.of("exact", [trial("lae", 4.0), trial("crt", 4.5)])]
    assert choose(*benches).choice.method == "crt"
    assert benches[0].scores[Choice("crt", 0.0, 0.1)] == pytest.approx([2.0, 0.0, 2.0], abs=1e-6)


def written(folder, data, trials):
    folder.mkdir()
    kept_predictions.write(folder, trials)
    report = {"runs": ["r"], "data": data, "test": "", "seeds": 2, "head_groups": [2], "tail_groups": [0]}
    (folder / "report.json").write_text(json.dumps({**report, "sentences": {}}))
    return str(folder)


def test_the_program_writes_a_table_and_the_command(tmp_path, capsys):
    a = written(tmp_path / "a", "data/a", [trial("lae", 5.0, 9.0), trial("lae_power", 4.0, setting=0.25)])
    b = written(tmp_path / "b", "data/b", [trial("lae", 5.0, 9.0), trial("lae_power", 4.0, setting=0.25)])
    door.main(["--over", a, "--over", b, "--out", str(tmp_path / "out")])
    told = capsys.readouterr().out
    assert "Use lae_power (power 0.25, base_learning_rate 0.1)" in told and "over 2 data sets" in told
    assert "--config.classify.method=lae_power --config.data.power=0.25 --config.optim.base_learning_rate=0.1" in told
    assert "on the one left out: data/a: lae_power" in told and "| MAE, data/b |" in told
    content = json.loads((tmp_path / "out" / "recommendation.json").read_text())
    assert content["choice"] == {"method": "lae_power", "setting": 0.25, "rate": 0.1}
    assert content["data"] == ["data/a", "data/b"]
    with (tmp_path / "out" / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["data"]) for row in rows] == [
        (name, data) for name in ("lae_power", "lae") for data in ("data/a", "data/b", "all")
    ]
    assert float(rows[2]["mae_minus_lae"]) == pytest.approx(-1.5) and rows[5]["mae_minus_lae"] == ""
    assert (tmp_path / "out" / "table.tex").read_text().count("lae\\_power") == 1
    # Again into the same folder; not into a bench's, nor from what is no bench.
    longtail.recommend([a], tmp_path / "out")
    with pytest.raises(InputError, match="name a new or an empty folder"):
        longtail.recommend([a], a)
    with pytest.raises(InputError, match="holds no report.json of lae_jax.longtail"):
        longtail.recommend([tmp_path / "out"], tmp_path / "other")
    with pytest.raises(InputError, match="at least one bench"):
        longtail.recommend([], tmp_path / "other")


@pytest.mark.parametrize("more", [["--again"], ["--run", "r"], ["--seeds", "3"]])
def test_over_takes_the_place_of_the_results_alone(more):
    with pytest.raises(InputError, match="takes --out alone"):
        door.parse_args(["--over", "a", "--out", "b", *more])
