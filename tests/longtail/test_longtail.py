"""The bench from a run to its tables: features are kept, choices are validation's, bad input is told."""

import csv
import errno
import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lae_jax import longtail, losses, metrics, stages
from lae_jax.configs import classify, represent
from lae_jax.data import pipeline
from lae_jax.evaluate import measure
from lae_jax.longtail import __main__ as door
from lae_jax.longtail import extraction, summaries, trials
from lae_jax.report import comparison_page
from lae_jax.runtime import checkpoints as saved
from lae_jax.runtime.errors import InputError, SaveFailed
from lae_jax.stages.methods import METHODS
from lae_jax.train import loop


@pytest.fixture(scope="module")
def finished(trained):
    """The folder of stages 2 and 3 on drawn faces."""
    return trained("classify").parent


def words(finished, drawn, out, *more):
    run = ["--run", str(finished / "represent"), "--data", str(drawn), "--out", str(out)]
    return [*run, "--passes", "2", "--seeds", "2", "--methods", "stage2,lae,lws,tau_norm,routing", *more]


def test_a_run_becomes_tables_a_picture_and_three_sentences(finished, drawn, tmp_path, capsys):
    out = tmp_path / "out"
    like = ["--like", str(finished / "classify"), "--base-learning-rate", "0.001", "--base-learning-rate", "0.1"]
    door.main(words(finished, drawn, out, *like))
    told = capsys.readouterr().out
    assert "For the lowest MAE" in told and "| lae |" in told
    report = json.loads((out / "report.json").read_text())
    assert (
        set(report["sentences"]) == {*summaries.AIMS, "improvement"}
        and report["data_hash"]
        and len(report["checkpoints"]) == 1
    )
    assert report["epochs"] == 1.0 and report["batch_size"] == 32 and report["base_learning_rates"] == [0.001, 0.1]
    assert sorted(report["head_groups"] + report["tail_groups"]) == list(range(8))
    with (out / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    counted = {name: sum(row["method"] == name and row["split"] == "test" for row in rows) for name in METHODS}
    assert {n: c for n, c in counted.items() if c} == {
        "stage2": 1, "lae": 2, "lws": 2, "tau_norm": 4, "routing": 8
    }  # fmt: skip
    assert all(row["n"] == ("1" if row["method"] == "stage3" else "2") for row in rows)
    with (out / "table.csv").open() as file:
        best = list(csv.DictReader(file))
    assert [r["method"] for r in best][::3] == [*dict.fromkeys(r["method"] for r in rows)]
    of_test = {r["method"]: r for r in best if r["split"] == "test"}
    assert {name for name in comparison_page._DIFFERENCES if name in best[0]} == set(summaries.DIFFERENCES)
    difference = float(of_test["lws"]["mae"]) - float(of_test["lae"]["mae"])
    assert float(of_test["lws"]["mae_minus_lae"]) == pytest.approx(difference, abs=1e-5)
    assert float(of_test["lws"]["mae_minus_lae_half"]) > 0 and of_test["lae"]["mae_minus_lae"] == ""
    assert (out / "head_tail.png").read_bytes().startswith(b"\x89PNG")
    tex = (out / "table.tex").read_text()
    assert r"tau\_norm" in tex and len({line.count(" & ") for line in tex.splitlines() if "&" in line}) == 1
    # Stage 2's own head and the run of stage 3 score as the programs for images say.
    for run, name in (("represent", "stage2"), ("classify", "stage3")):
        real = measure.predict(saved.load_run(finished / run), split="test").scores()
        row = next(r for r in rows if r["method"] == name and r["split"] == "test")
        assert float(row["mae"]) == pytest.approx(real["mae"], rel=1e-4)


def test_a_head_with_a_hidden_layer_scores_as_the_program_for_images_says(make_config, drawn, tmp_path):
    c = make_config("represent", tmp_path)
    c.model.hidden = 8
    loop.train(c)
    longtail.compare([c.workdir], drawn, tmp_path / "out", methods=["stage2", "lae"], passes=1, seeds=1)
    with (tmp_path / "out" / "trials.csv").open() as file:
        row = next(r for r in csv.DictReader(file) if r["method"] == "stage2" and r["split"] == "test")
    real = measure.predict(saved.load_run(c.workdir), split="test").scores()
    assert float(row["mae"]) == pytest.approx(real["mae"], rel=1e-4)


def test_runs_that_are_compared_have_one_recipe(finished, drawn, tmp_path, monkeypatch):
    extractor = extraction.open_run(str(finished / "represent"), drawn, tmp_path)
    like = str(finished / "classify")
    taken = trials.recipe(extractor, [like, like], {"epochs": 3.0})
    assert (taken.epochs, taken.batch_size, taken.optim.base_learning_rate) == (3.0, 32, 0.001)
    own = trials.recipe(extractor, [], {})
    assert (own.epochs, own.batch_size, own.model.name) == (8.0, 32, "efficientnet_v2_pico")
    longer = classify.get_config()
    longer.batch_size, longer.epochs = 32, 4.0
    known = {"like": taken, "longer": longer}
    monkeypatch.setattr(trials, "_lae_config", known.get)
    with pytest.raises(InputError, match=r"differ in epochs: 3.0 there, 4.0 now"):
        trials.recipe(extractor, ["like", "longer"], {})


def test_features_are_kept_and_known_again(finished, drawn, tmp_path, monkeypatch):
    made, opened = (extraction.open_run(str(finished / "represent"), drawn, tmp_path) for _ in range(2))
    first, plain = made.features("train", 2), made.features("train")
    assert first.values.shape[:2] == (2, 96) and plain.values.shape[:2] == (1, 96)
    assert first.values.dtype == np.float32
    assert np.abs(first.values[0] - first.values[1]).max() > 1e-3, "two passes see other augmentations"
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "train_batches", None)
        again = opened.features("train", 2)
    np.testing.assert_array_equal(again.values, first.values)
    # A file that was changed is not believed.
    array = next(tmp_path.glob("train-0-*.npy"))
    content = bytearray(array.read_bytes())
    content[-1] ^= 1
    array.write_bytes(content)
    np.testing.assert_array_equal(opened.features("train").values, plain.values)
    # Nor is a pipe waited for.
    array.unlink()
    os.mkfifo(array)
    with pytest.raises(InputError, match=f"{array.name} is not a file: remove it"):
        opened.features("train")
    array.unlink()
    # A pass that was finished is kept when the next one is interrupted, or its part of the file was changed.
    for array in tmp_path.glob("train-2-*.npy"):
        content = bytearray(array.read_bytes())
        content[-1] ^= 1
        array.write_bytes(content)
    computed = []
    with monkeypatch.context() as patch:
        patch.setattr(
            extraction.Extractor,
            "_compute",
            lambda self, examples, passes, number, *rest, original=extraction.Extractor._compute: (
                computed.append(number) or original(self, examples, passes, number, *rest)
            ),
        )
        np.testing.assert_array_equal(opened.features("train", 2).values, first.values)
    assert computed == [1]
    # Another checkpoint has another name.
    opened.digest = "another"
    for one in (made, opened):
        one.features("validation")
    assert len(list(tmp_path.glob("validation-*.npy"))) == 2


@pytest.mark.parametrize(
    "more, told",
    [
        (["--methods", "lea"], "unknown method 'lea'; did you mean 'lae'"),
        (
            ["--test", "nothing"],
            "has no such split; use a split that is not used for training or choosing: --test test$",
        ),
        (
            ["--test", "train"],
            "were used for training; use a split that is not used for training or choosing: --test test$",
        ),
        (["--test", "validation"], "methods are chosen on it; use a split .*: --test test$"),
        (["--seeds", "0"], "seeds is 0: it must be at least 1"),
        (["--base-learning-rate", "-1"], "base_learning_rates must be above 0"),
        (["--by-fold"], "has no folds: prepare it with --folds K --ratio 9:1"),
        (["--like", "RUNS/represent"], "is a run of stage represent: name one of stage classify with --like"),
        (["--run", "RUNS/classify"], "name one of stage represent"),
        (["--run", "RUNS/nothing"], "holds no run"),
    ],
)
def test_bad_input_is_one_sentence(finished, drawn, tmp_path, more, told):
    more = [word.replace("RUNS", str(finished)) for word in more]
    with pytest.raises(InputError, match=told):
        door.main(words(finished, drawn, tmp_path, *more))
    assert not (tmp_path / "report.json").exists()


class _Splits:
    """A data set of train, validation and more splits, of ten rows each."""

    def __init__(self, *more, protocol="identity", first=""):
        names = [f"{first}train", f"{first}validation", *more]
        self.manifest = {"splits": names, "protocol": protocol}

    def rows(self, name):
        return 10 * self.manifest["splits"].index(name) + np.arange(10)


@pytest.mark.parametrize("dataset, told", [
    (_Splits(), "with --ratio 8:1:1, which makes the split test, and train stage 2 on it"),
    (_Splits(first="fold0-"), "with --folds K --ratio 9:1, which makes the split test"),
    (_Splits(protocol="column"), "with a split test in the source"),
    (_Splits("a", "b"), "training or choosing: --test a or --test b"),
])  # fmt: skip
def test_without_a_split_to_judge_methods_on_it_is_told_how_to_make_one(dataset, told):
    _, validation, *_ = dataset.manifest["splits"]
    assert told in trials._what_works(dataset, validation, np.arange(10))


def test_a_data_set_that_the_run_has_not_seen_is_refused(finished, drawn, tmp_path):
    shutil.copytree(drawn, tmp_path / "other")
    manifest = json.loads((tmp_path / "other" / "dataset.json").read_text())
    manifest["protocol"] = "image"
    (tmp_path / "other" / "dataset.json").write_text(json.dumps(manifest))
    with pytest.raises(
        InputError, match="is not the data set that.*name the data set of the run with --data .*/drawn when"
    ):
        extraction.open_run(str(finished / "represent"), tmp_path / "other", tmp_path)


def test_features_without_room_are_an_error_before_they_are_computed(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(SaveFailed, match=r"train.npy needs 0.0 GB \(No space left .*: make room"):
        extraction._of_pass(tmp_path / "train.npy", 2, 0, (3, 4), np.dtype(np.float32))
    assert not list(tmp_path.iterdir())


class _Fold:
    def __init__(self, fold):
        config = represent.get_config()
        config.data.fold = fold
        self.config = config
        self.dataset = type("D", (), {"path": "data", "manifest": {"splits": [f"fold{i}-train" for i in range(3)]}})


def test_folds_need_a_run_for_each():
    trials.check_folds([_Fold(2), _Fold(0), _Fold(1)], True)
    for folds in ([None], [0, 1], [0, 0, 1, 2]):
        with pytest.raises(InputError, match="A single backbone for all folds"):
            trials.check_folds([_Fold(fold) for fold in folds], True)
    with pytest.raises(InputError, match="set --by-fold"):
        trials.check_folds([_Fold(0), _Fold(1)], False)


def one_try(name, validation, test, seeds, setting=0.0):
    """Reports whose eight groups all have the error given: MAE is it, sigma 0."""
    ages = np.arange(1, 82, dtype=float)

    def reports(errors):
        return [metrics.age_report(ages, ages + error) for error in errors]

    both = {"validation": reports(validation), "test": reports(test)}
    return trials.Trial(METHODS[name], setting, 1.0, 0, both, seeds)


def test_validation_chooses_and_test_is_only_told():
    all_trials = [
        one_try("lae", [5.0, 5.2], [4.0, 4.2], 2),
        one_try("lae_power", [4.0, 4.0], [9.0, 9.2], 2, 0.25),
        one_try("lae_power", [4.5, 4.5], [1.0, 1.0], 2, 0.5),
    ]
    assert summaries.choose(all_trials, "lowest MAE") is all_trials[1]
    assert summaries.best_of_each(all_trials) == all_trials[:2]
    told = summaries.sentence(all_trials, "lowest MAE")
    assert "use lae_power, power 0.25 (base_learning_rate 1): its expected MAE (from validation) is 4.00 ± 0.00" in told
    assert "; on test MAE 9.10 ± 0.14" in told
    over = "95 % intervals over 2 seeds of one backbone, one test set"
    assert f"Difference to lae on test ({over}): MAE +5.00 (+5.00 to +5.00), higher; sigma +0.00 (" in told
    assert told.endswith("), not distinguishable.")


def made(name, error, of_children, of_test=None):
    """A try whose errors are those of children and of all others, of two seeds; a validation split of few children
    and, with `of_test` children, a test split of its own."""

    def reports(children):
        ages = np.concatenate([np.tile(np.arange(1, 11.0), children), np.tile(np.arange(11, 82.0), 20)])
        predictions = [ages + np.where(ages < 11, of_children, error) + shift for shift in (0.0, 0.1)]
        return [metrics.age_report(ages, predicted) for predicted in predictions]

    validation = reports(1)
    test = validation if of_test is None else reports(of_test)
    return trials.Trial(METHODS[name], 0.0, 1.0, 0, {"validation": validation, "test": test}, 2)


def test_an_improvement_is_worse_in_nothing():
    lae, even, dear = made("lae", 3.0, 9.0), made("crt", 3.0, 6.0), made("inverse", 5.0, 5.0)
    told = summaries.improvement([lae, even, dear])
    assert "crt has the lowest expected MAE + sigma" in told and told.count(", lower") == 2
    assert "(95 % intervals over 2 seeds of one backbone, one test set): MAE -" in told
    assert "No other method has an expected MAE and an" in summaries.improvement([lae, dear])
    assert "It is unknown" in summaries.improvement([even, dear])


def test_the_choice_is_for_the_groups_of_the_test_split():
    """What costs the frequent ages a little and gives the children much is chosen where the children count."""
    dear, cheap = (made(name, *errors, 20) for name, errors in (("crt", (3.5, 5.0)), ("lae", (3.2, 9.0))))
    assert summaries.choose([dear, cheap], "lowest MAE") is dear
    assert dear.mean("validation", "mae") > cheap.mean("validation", "mae")
    for one in (dear, cheap):
        assert one.mean("expected", "mae") == pytest.approx(one.mean("test", "mae"))
        assert one.mean("expected", "sigma") == pytest.approx(one.mean("test", "sigma"))
    few = [made(name, *errors, 1) for name, errors in (("crt", (3.5, 5.0)), ("lae", (3.2, 9.0)))]
    assert summaries.choose(few, "lowest MAE") is few[1]


def test_pairs_are_seeds_of_one_run_and_means_of_several():
    one, other = one_try("lae", [1.0], [5.0, 6.0, 7.0], 3), one_try("crt", [1.0], [4.0, 5.5, 5.0], 3)
    mean, half = summaries.paired(one, other, "test", "mae")
    differences = np.array([1.0, 0.5, 2.0])
    assert mean == pytest.approx(differences.mean())
    assert half == pytest.approx(4.30265 * differences.std(ddof=1) / 3**0.5, rel=1e-4)
    several = one_try("lae", [1.0], [5.0, 7.0, 8.0, 8.0], 2), one_try("crt", [1.0], [5.0, 5.0, 6.0, 5.0], 2)
    mean, half = summaries.paired(*several, "test", "mae")
    assert mean == pytest.approx(1.75) and half == pytest.approx(12.7062 * 0.75 * 2**0.5 / 2**0.5, rel=1e-4)
    assert np.isnan(summaries.paired(one, several[0], "test", "mae")).all()


@pytest.mark.parametrize(("errors", "seeds", "over", "told"), [
    # Means of three backbones, each over its two seeds.
    ([4.0, 4.0, 5.0, 5.0, 4.5, 4.5], 2, "95 % intervals over 3 backbones, one test set",
     "MAE -0.50 (-1.74 to +0.74), not distinguishable; sigma +0.00"),
    ([2.0, 2.0, 2.5, 1.5, 1.9, 2.1], 2, "95 % intervals over 3 backbones, one test set",
     "MAE -3.00 (-3.00 to -3.00), lower; sigma"),
    ([4.5], 1, "one seed, no interval", "MAE -0.50, not distinguishable; sigma +0.00, not distinguishable."),
])  # fmt: skip
def test_a_difference_is_told_with_what_its_interval_is_over(errors, seeds, over, told):
    lae = one_try("lae", [5.0] * len(errors), [5.0] * len(errors), seeds)
    other = one_try("crt", [4.0] * len(errors), errors, seeds)
    for sentence in (summaries.sentence([lae, other], "lowest MAE"), summaries.improvement([lae, other])):
        assert f"({over}): {told}" in sentence


def test_an_undefined_aim_is_said():
    ages = np.arange(11, 82, dtype=float)
    report = [metrics.age_report(ages, ages)]
    one = trials.Trial(METHODS["lae"], 0.0, 1.0, 0, {"validation": report, "test": report}, 1)
    assert "no image of age 1-10" in summaries.sentence([one], "lowest sigma")
    assert "use lae" in summaries.sentence([one], "lowest MAE")


def test_the_tables_show_babies_and_people_over_81_where_there_are_any():
    ages = np.append(np.arange(1, 82.0), 90.0)
    with_old = [metrics.age_report(ages, ages + 2)]
    one = trials.Trial(METHODS["lae"], 0.0, 1.0, 0, {"validation": with_old, "test": with_old}, 1)
    assert "| 71-81 | 82+ |" in summaries.markdown([one], "test") and "mae_82+" in summaries.csv_of([one])
    assert "82+" not in summaries.markdown([one_try("lae", [1.0], [1.0], 1)], "test")


def test_head_groups_have_an_equal_share_or_more():
    head, tail = summaries.head_and_tail(np.repeat([5.0, 15, 25, 35, 45, 55, 65, 75], [1, 10, 40, 20, 20, 10, 5, 2]))
    assert head.tolist() == [2, 3, 4] and tail.tolist() == [0, 1, 5, 6, 7]


@pytest.mark.parametrize(
    "method, setting, told",
    [
        ("stage2", None, "works on features only"),
        ("routing", 0.4, "works on features only"),
        ("lws", None, "works on features only"),
        ("feature_calibration", None, "works on features only"),
        ("effective_number", None, "needs a beta"),
        ("balanced_softmax", 0.5, "has no setting"),
        ("lae_power", 0.5, "config.data.power"),
        ("lea", None, "unknown method"),
    ],
)
def test_a_method_that_does_not_fit_stage_3_is_refused(method, setting, told):
    with pytest.raises(InputError, match=told):
        stages.with_method(stages.CLASSIFY, method, setting)


def test_the_methods_that_can_be_a_stage_3_train_by_their_own_loss():
    """On images these, and no other, say what they are for; what they learn is what the bench learns."""
    expected = {"lae", "lae_no_mse", "lae_new_head", "crt", "logit_adjusted_loss", "balanced_softmax", "inverse"}
    expected |= {"lae_new_head_mae", "absolute_error", "crt_kept_head", "inverse_root", "effective_number", "lds", "balanced_mse", "two_layers", "two_layers_crt", "c_mixup"}
    made, power = {}, METHODS["lae_power"]
    for method in METHODS.values():
        if method.on_images and method is not power:
            setting = method.settings[0] if method.setting else None
            made[method.name] = method, setting, stages.with_method(stages.CLASSIFY, method.name, setting)
    assert {*made} == expected | {"two_layers_c_mixup"} and power.on_images
    logits, ages = jax.random.normal(jax.random.key(0), (3, 101)), jnp.array([3.0, 20.0, 80.5])
    counts = jnp.arange(1.0, 102.0)
    constants = {
        "mae": 4.0,
        "er_weight": 1.0,
        "label_sigma": 1.0,
        "in_range": "uniform",
        "counts": counts,
        "smoothed": counts,
    }
    for method, setting, stage in made.values():
        assert (stage.order, stage.trains, stage.mix is None) == (method.order, ("head",), method.mix is None)
        of_bench = method.loss(logits, ages, constants, setting)
        np.testing.assert_array_equal(stage.loss(logits, ages, constants), of_bench)
    assert made["lae"][2] is stages.CLASSIFY
    np.testing.assert_array_equal(
        stages.CLASSIFY.loss(logits, ages, constants), losses.classification_loss(logits, ages, 4.0)
    )


def test_a_method_of_another_stage_is_refused_and_lae_is_stage_3_itself():
    with pytest.raises(InputError, match="to stage classify"):
        stages.with_method(stages.REPRESENT, "crt", None)
    assert stages.with_method(stages.CLASSIFY, "lae", None).order == stages.CLASSIFY.order
