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
from etils import epath

from lae_jax import longtail, losses, stages
from lae_jax.configs import classify, represent
from lae_jax.data import pipeline
from lae_jax.evaluate import measure
from lae_jax.longtail import __main__ as door
from lae_jax.longtail import extraction, setup
from lae_jax.report import comparison_page, wording
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
        set(report["sentences"]) == {*wording.BENCH.aims, "improvement"}
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
    assert {name for name in best[0] if name.endswith("_minus_lae")} == set(wording.BENCH.differences)
    difference = float(of_test["lws"]["mae"]) - float(of_test["lae"]["mae"])
    assert float(of_test["lws"]["mae_minus_lae"]) == pytest.approx(difference, abs=1e-5)
    assert float(of_test["lws"]["mae_minus_lae_half"]) > 0 and of_test["lae"]["mae_minus_lae"] == ""
    assert float(of_test["lws"]["mae_minus_lae_low"]) < difference < float(of_test["lws"]["mae_minus_lae_high"])
    p = [float(of_test["lws"][f"mae_minus_lae_{end}"]) for end in ("p", "p_corrected")]
    assert (
        0 < p[0] <= p[1] <= 1
        and "joint 95 % intervals over 2 seeds of one backbone and the people of 16" in report["joint"]
    )
    assert (out / "head_tail.png").read_bytes().startswith(b"\x89PNG")
    tex = (out / "table.tex").read_text()
    assert r"tau\_norm" in tex and {line.count(" & ") for line in tex.splitlines() if "&" in line} == {11, 9}
    # Stage 2's own head and the run of stage 3 score as the programs for images say.
    for run, name in (("represent", "stage2"), ("classify", "stage3")):
        real = measure.predict(saved.load_run(finished / run), split="test").scores()
        row = next(r for r in rows if r["method"] == name and r["split"] == "test")
        assert float(row["mae"]) == pytest.approx(real["mae"], rel=1e-4)
    # All but the features and the heads is made again from the predictions, without the run and the data set.
    names = ("table.csv", "table.md", "table.tex", "trials.csv", "report.json")
    before = {name: (out / name).read_text() for name in names}
    other = tmp_path / "moved"
    other.mkdir()
    for name in ("report.json", "predictions.npz"):
        shutil.copy(out / name, other)
    door.main(["--again", "--out", str(other)])
    assert {name: (other / name).read_text() for name in names} == before
    (other / "predictions.npz").write_bytes((out / "predictions.npz").read_bytes()[:-1000])
    with pytest.raises(InputError, match="predictions.npz is damaged .*: run lae_jax.longtail with --run and --data"):
        longtail.again(other)
    (other / "predictions.npz").unlink()
    with pytest.raises(InputError, match="has no predictions.npz: run lae_jax.longtail with --run and --data"):
        longtail.again(other)
    assert (other / "table.csv").read_text() == before["table.csv"]


def test_tables_are_made_again_of_a_finished_bench_alone(tmp_path):
    with pytest.raises(InputError, match="holds no report.json of lae_jax.longtail"):
        door.main(["--again", "--out", str(tmp_path)])
    with pytest.raises(InputError, match="--again takes --out alone"):
        door.main(["--again", "--out", str(tmp_path), "--seeds", "3"])
    with pytest.raises(InputError, match="--run and --data are required, or --again"):
        door.main(["--out", str(tmp_path)])


def test_without_a_test_split_methods_are_chosen_and_told_on_validation(finished, drawn, tmp_path):
    out = tmp_path / "out"
    how = {"methods": ["stage2", "lae", "crt"], "passes": 0, "seeds": 1, "epochs": 0.3}
    report = longtail.compare([finished / "represent"], drawn, out, test="", **how)
    assert report["base_learning_rates"] == [0.001, 0.01, 0.1] and report["test"] == ""
    assert "; on validation" not in report["sentences"]["lowest MAE"] and ": on validation" in str(report["sentences"])
    with (out / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["split"] for row in rows} == {"validation"} and len(rows) == 1 + 3 + 3
    page, table = comparison_page.of_bench(epath.Path(out))
    assert "on validation of" in page.title and len(table.rows) == 3


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
    taken = setup.recipe(extractor, [like, like], {"epochs": 3.0})
    assert (taken.epochs, taken.batch_size, taken.optim.base_learning_rate) == (3.0, 32, 0.001)
    own = setup.recipe(extractor, [], {})
    assert (own.epochs, own.batch_size, own.model.name) == (8.0, 32, "efficientnet_v2_pico")
    longer = classify.get_config()
    longer.batch_size, longer.epochs = 32, 4.0
    known = {"like": taken, "longer": longer}
    monkeypatch.setattr(setup, "_lae_config", known.get)
    with pytest.raises(InputError, match=r"differ in epochs: 3.0 there, 4.0 now"):
        setup.recipe(extractor, ["like", "longer"], {})


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
    assert told in setup._what_works(dataset, validation, np.arange(10))


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
    setup.check_folds([_Fold(2), _Fold(0), _Fold(1)], True)
    for folds in ([None], [0, 1], [0, 0, 1, 2]):
        with pytest.raises(InputError, match="A single backbone for all folds"):
            setup.check_folds([_Fold(fold) for fold in folds], True)
    with pytest.raises(InputError, match="set --by-fold"):
        setup.check_folds([_Fold(0), _Fold(1)], False)


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
    expected |= {
        "lae_new_head_mae",
        "absolute_error",
        "crt_kept_head",
        "inverse_root",
        "effective_number",
        "lds",
        "balanced_mse",
        "two_layers",
        "two_layers_crt",
        "c_mixup",
    }
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
