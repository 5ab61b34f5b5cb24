"""One method for several data sets: groups and data sets count alike, and only validation has a part in the choice."""

import csv
import hashlib
import json

import numpy as np
import pytest
from scipy import stats

from lae_jax import longtail
from lae_jax.longtail import __main__ as door
from lae_jax.longtail import choices, kept_predictions, recommendation
from lae_jax.longtail.choices import Bench, Choice
from lae_jax.longtail.outcomes import STAGE3, Labels, Trial
from lae_jax.runtime.errors import InputError
from lae_jax.stages.methods import METHODS

# Ten children, five people over 70, and 40 of each age between: a validation split with a long tail.
AGES = np.concatenate([np.arange(1, 11.0), np.repeat(np.arange(11, 71.0), 40), np.arange(72, 77.0)])
CHILDREN = AGES < 11


def trial(name, error, of_children=None, rate=0.1, setting=0.0, ages=AGES, seeds=2, folds=1, method=None):
    """A trial whose errors on validation are those of children and of all others; the second seed errs by 0.1 more.

    On test, which must have no part in anything, they are the contrary.
    """
    errors = np.where(ages < 11, error if of_children is None else of_children, error)
    predictions = np.stack([ages + errors + 0.1 * seed for seed in range(seeds)])
    rows = np.array_split(np.arange(len(ages)), folds)
    labels = [Labels(ages[of], of, np.full(len(of), -1)) for of in rows]
    kept, contrary = ([each[:, of] for of in rows] for each in (predictions, ages + 20 - (predictions - ages)))
    splits = {"validation": labels, "test": labels}
    return Trial(method or METHODS[name], setting, rate, 0, splits, {"validation": kept, "test": contrary})


def choose(*benches):
    return choices.choose(benches, choices.common(benches))


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
    bench = Bench.of("a", [lae, even, shortcut])
    sums = {choice.method: scores[:2].sum() for choice, scores in bench.scores.items()}
    assert sums["interpolation"] < sums["crt"] < sums["lae"]
    found = choices.compare([bench])
    assert found.choice == found.reference == Choice("lae", 0.0, 0.1)
    told = recommendation.sentences(found, {})
    assert told["recommendation"].startswith("Use lae (base_learning_rate 0.1): each other of the 2 methods")
    assert [row[:2] for row in recommendation.table(found).rows] == [
        ["interpolation (share 0.5, base_learning_rate 0.1)", "no"], ["crt (base_learning_rate 0.1)", "yes"],
        ["lae (base_learning_rate 0.1)", "yes"],
    ]  # fmt: skip
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
    assert [one.method for one in choices.best_of_each(benches)] == ["lae", "effective_number"]
    told = recommendation.sentences(choices.compare(benches), {"epochs": 4.0})
    assert (
        "of the 2 methods that can be a stage 3" in told["recommendation"]
        and "base_learning_rate: crt." in told["not_compared"]
    )
    assert "setting=0.999 --config.optim.base_learning_rate=0.1 --config.epochs=4.0" in told["command"]
    with pytest.raises(InputError, match=r"\(a: 0.01, 0.1; c: 0.5\).*the same --base-learning-rate"):
        choose(benches[0], Bench.of("c", [trial("lae", 1.0, rate=0.5)]))


def test_differences_are_means_over_data_sets_that_count_alike_with_the_error_of_all():
    """The second data set has a quarter of the images and no children."""
    rng = np.random.default_rng(0)
    of_sets = []
    for data, gain, ages in (("a", 1.0, AGES), ("b", 3.0, np.append(AGES[10:-5:4], AGES[-5:]))):
        lae, even = trial("lae", 20.0, ages=ages), trial("lds", 19.0, ages=ages)
        noise = rng.normal(0, 2.0, (2, len(ages)))
        predictions = [lae.predictions["validation"][0] - gain + noise]
        crt = Trial(METHODS["crt"], 0.0, 0.1, 0, lae.labels, {"validation": predictions, "test": predictions})
        of_sets.append(Bench.of(data, [lae, crt, even]))
    assert [len(one.present) for one in of_sets] == [8, 7]
    found = choices.compare(of_sets)
    by_score, means = (of[Choice("crt", 0.0, 0.1)] for of in (found.differences, found.means))
    assert means[0].mean == pytest.approx(np.mean([one.mean for one in by_score[0]]))
    assert means[0].mean == pytest.approx(-2.0, abs=0.2)
    error = np.hypot(*(one.error for one in by_score[0])) / 2
    assert error > 0 and (means[0].high - means[0].low) / 2 >= stats.norm.ppf(0.975) * error
    # A difference that is the same for all images has no error: replicates are paired.
    paired = found.means[Choice("lds", 0.0, 0.1)]
    assert paired[0][:3] == pytest.approx((-1.0,) * 3, abs=1e-5)
    # Holm multiplies the smallest of six p-values by six.
    p = sorted((one.p, one.corrected) for of in found.means.values() for one in of)
    known = [(one, corrected) for one, corrected in p if one > 0]
    assert known[0][1] == pytest.approx(min(1.0, known[0][0] * (6 - len(p) + len(known))), rel=1e-6)


def test_a_data_set_left_out_says_what_to_expect_on_a_new_one():
    """LAE's learning rate is that of the others too."""
    made = {"a": (5.0, 5.5, 4.0, 6.0), "b": (5.0, 5.5, 4.5, 6.0), "c": (5.0, 2.0, 7.0, 1.0)}
    benches = [
        Bench.of(data, [trial("lae", lae), trial("lae", slow, rate=0.01), trial("crt", crt), trial("lds", lds)])
        for data, (lae, slow, crt, lds) in made.items()
    ]
    found = choices.compare(benches)
    assert found.reference.rate == 0.01
    assert [chosen.method for chosen, _ in found.left_out] == ["lds", "lds", "crt"]
    # Of a and b LAE is best with 0.1, of the two pairs with c with 0.01.
    assert [of[0].mean for _, of in found.left_out] == pytest.approx([0.5, 0.5, 2.0], abs=1e-5)
    assert choices.compare(benches[:1]).left_out == []


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
    header = recommendation.table(choices.compare(benches)).header
    assert "distance, ranges" in header and "distance of all images, ranges" in header and "MAE, exact" in header
    assert benches[0].scores[Choice("crt", 0.0, 0.1)] == pytest.approx([2.0, 0.0, 2.0], abs=1e-6)


def test_too_few_images_have_no_interval_and_are_not_counted():
    few = np.concatenate([[5.0], AGES[~CHILDREN]])
    found = choices.compare([Bench.of("a", [trial("lae", 5.0, 9.0, ages=few), trial("crt", 4.0, ages=few)])])
    told = recommendation.sentences(found, {})["recommendation"]
    assert "MAE -1.50 (no interval)" in told and "Holm's correction for 1 differences" in told


@pytest.mark.parametrize(("trials", "told"), [
    ([trial("lae", 5.0), trial("crt", 4.0, seeds=1)], "a is damaged .its heads were scored on different images"),
    ([trial("lae", 5.0), trial("crt", 4.0, folds=2)], "on different images"),
    ([trial("lae", 5.0, method=STAGE3)], "is damaged"),
    ([trial("lae", 5.0, ages=np.full(30, 90.0))], "no validation image has an age of 1 to 81"),
])  # fmt: skip
def test_what_cannot_be_looked_at_together_is_refused(trials, told):
    with pytest.raises(InputError, match=told):
        Bench.of("a", trials)


def written(folder, data, trials, **changed):
    folder.mkdir()
    kept_predictions.write(folder, trials)
    report = {"runs": ["r"], "data": data, "test": "", "seeds": 2, "head_groups": [2], "tail_groups": [0]}
    report |= {"data_hash": hashlib.sha256(data.encode()).hexdigest(), "epochs": 8.0, "sentences": {}}
    report |= {"optim": {"name": "sgd", "schedule": "one_cycle"}, **changed}
    (folder / "report.json").write_text(json.dumps(report))
    return str(folder)


def test_benches_of_one_data_set_or_of_other_recipes_are_refused(tmp_path):
    trials = [trial("lae", 5.0), trial("crt", 4.0)]
    a, out = written(tmp_path / "a", "data/a", trials), tmp_path / "out"
    made = {
        "moved": (
            "data/moved",
            {"data_hash": hashlib.sha256(b"data/a").hexdigest()},
            "a and .*moved are benches of one data set",
        ),
        "again": ("data/a", {"data_hash": "0" * 64}, "are benches of one data set"),
        "adam": ("data/b", {"optim": {"name": "adamw", "schedule": "one_cycle"}}, "optim.name sgd and adamw"),
        "short": ("data/c", {"epochs": 4.0}, "epochs 8.0 and 4.0.*cannot be compared"),
        "old": ("data/d", {"epochs": None}, "report.json has no epochs: run"),
    }
    for name, (data, changed, told) in made.items():
        with pytest.raises(InputError, match=told):
            longtail.recommend([a, written(tmp_path / name, data, trials, **changed)], out)
    assert not out.exists()


def test_the_program_writes_a_table_and_the_command(tmp_path, capsys):
    a = written(tmp_path / "a", "data/a", [trial("lae", 5.0, 9.0), trial("lae_power", 4.0, setting=0.25)])
    b = written(tmp_path / "b", "data/b", [trial("lae", 5.0, 9.0), trial("lae_power", 4.0, setting=0.25)])
    door.main(["--over", a, "--over", b, "--out", str(tmp_path / "out")])
    told = capsys.readouterr().out
    assert "Use lae_power (power 0.25, base_learning_rate 0.1)" in told and "over 2 data sets" in told
    assert "--config.classify.method=lae_power --config.data.power=0.25 --config.optim.base_learning_rate=0.1" in told
    assert "on that data set: data/a: lae_power" in told and "| MAE, data/b |" in told
    assert f"data/a over 2 seeds of one backbone and {len(AGES)} images, nothing about other backbones; data/b" in told
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
