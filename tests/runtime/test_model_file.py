"""A model in one file: every program takes it in place of a run, and one of a stranger is refused in a sentence."""

import json
import os
import pathlib
import re
import shutil
import tomllib

import numpy as np
import pytest
import safetensors.numpy
from conftest import ROOT
from etils import epath
from PIL import Image
from safetensors import safe_open

from lae_jax import evaluate, export, predict
from lae_jax.evaluate import __main__ as evaluating
from lae_jax.export import __main__ as exporting
from lae_jax.export import half
from lae_jax.models import pretrained
from lae_jax.predict import __main__ as door
from lae_jax.report import loading
from lae_jax.runs import build, calibration, conformal, lineage
from lae_jax.runtime import model_file as files_of_models
from lae_jax.runtime.errors import ExportDiffers, InputError
from lae_jax.runtime.model_file import builtin
from lae_jax.serve import about, limits, schema
from lae_jax.train import early, handover, loop, plan

CROPS = [np.random.default_rng(k).integers(0, 255, (32, 32, 3)).astype(np.uint8) for k in range(9)]


def tensors_of(path):
    with safe_open(path, "numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()


def test_a_model_file_gives_the_ages_of_its_run_and_names_no_folder_of_the_machine(model_file, trained):
    run = trained("classify")
    ages, distributions = predict.AgeEstimator.from_run(run).predict(CROPS, distribution=True)
    halves, others = predict.AgeEstimator.from_run(model_file).predict(CROPS, distribution=True)
    np.testing.assert_allclose(halves, ages, atol=half.LIMIT)
    np.testing.assert_allclose(others, distributions, atol=1e-3)
    tensors, metadata = tensors_of(model_file)
    kinds = {(array.dtype.name, array.ndim > 1 and array.size >= 1000) for array in tensors.values()}
    assert kinds == {("float16", True), ("float32", False)}
    header, before = json.loads(metadata["lae_jax"]), build.load(run)
    assert model_file.stat().st_mode & 0o777 == pathlib.Path(__file__).stat().st_mode & 0o666
    assert str(run.parent) not in metadata["lae_jax"] and header["meta"]["data"] == "drawn"
    for name in ("step", "stage", "scores", "crop", "data_hash", "num_outputs", "run"):
        assert header["meta"][name] == before.meta[name], name
    assert [start["from"] for start in header["starts"]] == ["represent"] and header["made_by"]["versions"]["jax"]


def test_the_calibration_and_the_evaluations_of_a_run_are_in_its_file(trained, tmp_path):
    run = shutil.copytree(trained("represent"), tmp_path / "run")
    evaluate.evaluate(run, split="test")
    fitted = conformal.fit(np.linspace(20, 60, 90), np.full((90, 101), 1 / 101), np.linspace(0, 90, 90))
    content = {"temperature": 1.5, "step": build.load(run).step, "conformal": {**fitted.to_json(), "flip": True}}
    (run / "calibration.json").write_text(json.dumps(content))
    export.export(run, "safetensors", tmp_path / "a.safetensors")
    assert predict.AgeEstimator.from_run(tmp_path / "a.safetensors").temperature == 1.5
    there = build.load_file(tmp_path / "a.safetensors")
    np.testing.assert_array_equal(calibration.conformal_of(there, flip=True).thresholds, fitted.thresholds)
    assert calibration.conformal_of(there, flip=False) is None
    card, (report,) = lineage.run_card(tmp_path / "a.safetensors")
    assert report["split"] == "test" and "Evaluated on split `test` of `drawn`" in card and report["run"] == "run"
    # A model file of a model file is the same file.
    export.export(tmp_path / "a.safetensors", "safetensors", tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_kernel_that_half_precision_cannot_hold_stays_and_a_difference_deletes_the_file(
    trained, tmp_path, monkeypatch
):
    wide, var = np.full((100, 100), 1e5, np.float32), np.full(3, 1e-9, np.float32)
    made = half.halved({"params": {"a": wide, "b": wide / 1e3, "small": wide[1:] / 1e3}, "batch_stats": {"c": var}})
    assert {name: array.dtype.name for name, array in made.items()} == {
        "params/a": "float32",
        "params/b": "float16",
        "params/small": "float32",
        "batch_stats/c": "float32",
    }
    coarse = half.halved
    monkeypatch.setattr(half, "halved", lambda v: {n: a if a.ndim < 2 else a * 0 for n, a in coarse(v).items()})
    with pytest.raises(ExportDiffers, match=r"half precision changes the ages by up to .* no file was written"):
        export.export(trained("classify"), "safetensors", tmp_path / "a.safetensors")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(("out", "words", "message"), [
    ("a.bin", [], "the name of a model file must end in .safetensors"),
    ("there.safetensors", [], "exists already: name a new file, or delete this one"),
    ("none/a.safetensors", [], "there is no folder"),
    ("a.safetensors", ["--flip"], "--flip is chosen when a model file is used: omit it"),
    ("a.safetensors", ["--step", "9"], "no checkpoint of step 9"),
])  # fmt: skip
def test_what_cannot_be_written_is_told_before_anything_is_loaded(trained, tmp_path, out, words, message):
    (tmp_path / "there.safetensors").touch()
    with pytest.raises(InputError, match=message):
        exporting.main(
            ["--run", str(trained("classify")), "--format", "safetensors", "--out", str(tmp_path / out), *words]
        )


def test_predict_without_a_run_says_which_model_it_uses_first(shipped, tmp_path, capsys, caplog):
    caplog.set_level("INFO", "lae_jax")
    Image.fromarray(CROPS[0]).save(tmp_path / "face.png")
    door.main(["--aligned", str(tmp_path / "face.png"), "--out", str(tmp_path / "ages.jsonl")])
    first = caplog.messages[0]
    assert first.startswith("model faces-lite0 of this package, trained on FairFace (CC BY 4.0)")
    assert "expected error: about 7 years" in first and first.endswith(f"card: {shipped.card}")
    (row,) = [json.loads(line) for line in (tmp_path / "ages.jsonl").read_text().splitlines()]
    assert row["age"] == pytest.approx(float(predict.AgeEstimator.from_run().predict(CROPS[:1])[0]), abs=1e-3)
    # Another model is not announced.
    caplog.clear()
    door.main(["--run", str(shipped.path), "--aligned", str(tmp_path / "face.png")])
    assert not any("of this package" in line for line in caplog.messages)


def test_evaluations_of_a_file_go_into_the_current_folder(shipped, model_file, drawn, trained, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    report, folder = evaluate.evaluate(model_file, drawn, "test")
    assert folder == epath.Path("tiny/evaluation/drawn-test") and (folder / "report.html").exists()
    assert report["run"] == str(model_file) and loading.read(folder).label == "tiny"
    evaluating.main(["--data", str(drawn), "--split", "test"])
    again = loading.read(epath.Path("faces-lite0/evaluation/drawn-test")).report
    assert again["run"] == "faces-lite0" and again["mae"] == pytest.approx(report["mae"], abs=1e-3)
    with pytest.raises(InputError, match="--calibrate writes into a run"):
        evaluate.evaluate(model_file, calibrate=True)
    with pytest.raises(InputError, match="drawn, the data set of .*, is not there"):
        evaluate.evaluate(model_file)
    (tmp_path / "here" / "tiny" / "checkpoints").mkdir()
    with pytest.raises(InputError, match="here/tiny, which holds other files: start the command in another folder"):
        evaluate.evaluate(model_file, drawn, "test")


def test_an_export_of_a_file_is_that_of_its_run(model_file, trained, tmp_path):
    content = export.export(model_file, "stablehlo", tmp_path / "out")
    assert content["check"]["max_age_difference"] < 1e-3 and content["source"]["run"] == str(model_file)
    card = (tmp_path / "out" / "model_card.md").read_text()
    assert "- run `represent` step 3." in card and "`drawn`" in card


def test_the_server_shows_the_card_and_the_limits_of_the_packages_model(shipped, model_file):
    def told(run):
        estimator = predict.AgeEstimator.from_run(run)
        limit = limits.Limits(1, 1, 1, 1, 1, 1.0)
        return about.about(
            run, estimator, limit, step=None, flip=False, aligned=False, levels=schema.Levels(None, None)
        )

    own, other = told("faces-lite0"), told(model_file)
    assert own.card == "# The card of faces-lite0" and own.model == "faces-lite0 step 3"
    assert own.note == "trained on FairFace (CC BY 4.0); expected error: about 7 years"
    assert other.note is None and other.card.startswith("# Model card: ") and str(model_file.parent) not in other.card


@pytest.mark.parametrize("stage", ["represent", "classify"])
def test_a_stage_starts_from_a_file_as_from_a_run(stage, shipped, small_config):
    config = small_config(stage)
    config.init_from = "faces-lite0"
    early.check_stage(config, config.workdir)
    made, kept = plan.make_plan(config), build.load(shipped.path)
    assert made.init.meta["sha256"] == shipped.sha256
    assert made.constants.get("mae") == (kept.meta["scores"]["mae"] if stage == "classify" else None)
    zeros = {name: _map(tree, np.zeros_like) for name, tree in kept.variables.items()}
    taken = handover.take_over(zeros, made.init, made.stage.loads)
    wanted = {name: {"backbone", "head"} & {*tree} for name, tree in kept.variables.items()}
    for name, parts in wanted.items():
        for part in parts:
            is_taken = _leaves(taken[name][part]) == _leaves(kept.variables[name][part])
            assert is_taken == (part in made.stage.loads), (name, part)


def _map(tree, function):
    return {k: _map(v, function) for k, v in tree.items()} if isinstance(tree, dict) else function(tree)


def _leaves(tree):
    return [_leaves(v) for _, v in sorted(tree.items())] if isinstance(tree, dict) else tree.tolist()


def test_a_run_that_started_from_the_packages_model_says_so_in_its_card(shipped, small_config):
    config = small_config("classify")
    config.init_from = "faces-lite0"
    loop.train(config)
    found = lineage.starts(build.load(config.workdir))
    assert [(one["kind"], one["from"]) for one in found] == [("model file", "faces-lite0"), ("run", "represent")]
    assert found[0]["sha256"] == shipped.sha256
    assert "- model file `faces-lite0` step 3" in lineage.run_card(config.workdir)[0]
    assert "FairFace (CC BY 4.0)" in lineage.run_card(config.workdir)[0]
    # The card of a run whose start is gone has what provenance.json says of it.
    shipped.path.write_bytes(b"another file")
    assert [one["from"] for one in lineage.starts(build.load(config.workdir))] == ["faces-lite0"]


def forged(model_file, path, change=None, header=None):
    """Writes a copy of a model file whose header (an object) and arrays a function changed."""
    arrays, metadata = tensors_of(model_file)
    content = json.loads(metadata["lae_jax"])
    if change is not None:
        change(content, arrays)
    safetensors.numpy.save_file(arrays, path, {"lae_jax": json.dumps(content) if header is None else header})
    return path


def setting(where, value):
    *parents, last = where.split("/")

    def change(content, _):
        for name in parents:
            content = content[name]
        content[last] = value

    return change


def array(name, value):
    return lambda _, arrays: arrays.update({name: value}) if value is not None else arrays.pop(name)


KERNEL, VAR = "params/head/fc/kernel", "batch_stats/backbone/stem_bn/var"


@pytest.mark.parametrize(("change", "message"), [
    (setting("version", 2), "header is damaged .version is 2: it must be 1"),
    (setting("meta/stage", "pretrain"), "meta.stage is 'pretrain': it must be 'represent' or 'classify'"),
    (setting("meta/num_outputs", 5), "meta.num_outputs is 5: it must be 101"),
    (setting("meta/config/data/image_size", 1 << 20), "meta.config.data.image_size is 1048576"),
    (setting("meta/config/data/std", [1, 0, 1]), r"meta.config.data.std\[1\] is 0: it must be a number above 0"),
    (setting("meta/config/model/name", "other"), "config.model: unknown model 'other'"),
    (setting("meta/config/model/name", "resnet18"), "does not fit its model resnet18: .* missing"),
    (setting("meta/config/model/hidden", 8), "does not fit its model efficientnet_v2_pico: .* missing"),
    (setting("temperature", 1e9), "temperature is 1000000000.0: it must be a number at least 0.001 and at most 1000"),
    (setting("starts", [{"from": 3, "kind": "run"}]), r"starts\[0\].from is 3: it must be text"),
    (setting("evaluations", [{}]), r"no evaluations\[0\]"),
    (setting("meta", []), "meta is .*: it must be an object"),
    (array(KERNEL, None), f"1 missing: {KERNEL}"),
    (array("params/head/more", np.zeros(3, np.float32)), "1 unexpected: params/head/more"),
    (array(VAR, np.zeros(3, np.float32)), "1 of another shape"),
    (array(VAR, np.zeros(8, np.int32)), "1 not floating point"),
    (array(VAR, np.full(8, -1, np.float32)), "a negative variance"),
    (array(VAR, np.full(8, np.nan, np.float32)), "NaN or infinite"),
])  # fmt: skip
def test_a_file_of_a_stranger_is_checked_before_it_is_used(change, message, model_file, tmp_path):
    path = forged(model_file, tmp_path / "x.safetensors", change)
    with pytest.raises(InputError, match=rf"x\.safetensors.*{message}"):
        predict.AgeEstimator.from_run(path)


@pytest.mark.parametrize(("content", "message"), [
    (b"", "is damaged or not a safetensors file"),
    (b"\xff" * 64, "a header of 18,446,744,073,709,551,615 bytes; at most 16,777,216 are read"),
    (b"\x08" + bytes(7) + b"{\"a\": 1", "is damaged or not a safetensors file"),
    (b"\x02" + bytes(7) + b"{}", "is not a model file of lae_jax: it has weights"),
    (b"\x15" + bytes(7) + b'{"__metadata__": [1]}', "it must be an object"),
    (b"\x02" + bytes(7) + b"\xff\xff", "is damaged or not a safetensors file"),
])  # fmt: skip
def test_another_file_is_refused_at_once(content, message, tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "AgeEstimator", None)  # refused before the model is loaded
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        door.main(["--run", str(path), "a.jpg"])


def test_headers_that_are_no_strict_json_pipes_and_missing_files_are_refused(model_file, tmp_path):
    for header in ("[]", '{"version": 1, "version": 1}', '{"a": NaN}', "[" * 70 + "]" * 70):
        with pytest.raises(InputError, match="header is damaged"):
            files_of_models.read_header(forged(model_file, tmp_path / "x.safetensors", header=header))
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(InputError, match="pipe.safetensors is not a file"):
        files_of_models.read_header(tmp_path / "pipe.safetensors")
    with pytest.raises(InputError, match=r"tinny.safetensors: no such file. Did you mean .*tiny.safetensors\?"):
        files_of_models.read_header(model_file.with_name("tinny.safetensors"))
    with pytest.raises(InputError, match="is a model file, which holds one step: omit --step"):
        door.main(["--run", str(model_file), "--step", "3", str(model_file)])


@pytest.mark.parametrize(("stage", "change", "message"), [
    ("represent", {"init_step": 3}, "config.init_step is 3, but faces-lite0 is not a run and has no steps: omit it"),
    ("represent", {"model.name": "efficientnet_v2_nano"}, "add --config.model.name=efficientnet_v2_pico"),
    ("classify", {"data.image_size": 32}, "add --config.data.image_size=24"),
])  # fmt: skip
def test_a_stage_that_a_file_does_not_fit_is_told_what_to_set(stage, change, message, shipped, small_config):
    config = small_config(stage)
    config.init_from = "faces-lite0"
    config.update_from_flattened_dict(change)
    with pytest.raises(InputError, match=message):
        plan.make_plan(config)


def test_stage_3_from_a_file_without_a_validation_mae_says_what_to_do(model_file, small_config, tmp_path, trained):
    config = small_config("classify")
    config.init_from = str(forged(model_file, tmp_path / "x.safetensors", setting("meta/scores", None)))
    with pytest.raises(
        InputError, match="has no validation mae: train stage 2 on your data first .* --config.mae_from"
    ):
        plan.make_plan(config)
    config.mae_from = str(trained("represent"))
    assert plan.make_plan(config).constants["mae"] > 0


def test_the_backbone_of_a_file_is_weights_too(model_file, trained):
    weights = pretrained.read(model_file, "efficientnet_v2_pico")
    assert weights.origin == "from its header" and not weights.assumed and len(weights.sha256) == 64
    kept = build.load(model_file).variables
    assert all(_leaves(weights.variables[name]) == _leaves(kept[name]["backbone"]) for name in kept)
    with pytest.raises(
        InputError, match="is a model file of efficientnet_v2_pico and does not fit efficientnet_v2_nano"
    ):
        pretrained.load(model_file, "efficientnet_v2_nano")


def test_a_missing_or_damaged_model_of_the_package_is_told(shipped, small_config):
    shipped.path.write_bytes(shipped.path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"faces-lite0, .*, is damaged .*its SHA-256 differs.*: install lae_jax again"):
        door.main(["a.jpg"])
    shipped.path.unlink()
    with pytest.raises(InputError, match=r"faces-lite0, .* is not in this installation .* with --run"):
        door.main(["a.jpg"])
    config = small_config("represent")
    config.init_from = "faces-lite0"
    with pytest.raises(InputError, match="with --config.init_from"):
        early.check_stage(config, config.workdir)


def test_a_folder_of_the_same_name_is_named_as_a_path(shipped, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("faces-lite0").symlink_to(trained("represent"))
    for path in ("./faces-lite0", "faces-lite0/", pathlib.Path("faces-lite0")):
        assert build.load(path).file is None, path
    assert build.load("faces-lite0").file is not None
    estimator = predict.AgeEstimator.from_run("faces-lite0")
    assert estimator.source == "faces-lite0 step 3"


def test_the_model_of_the_package_is_whole_and_the_wheel_has_it():
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    patterns = data["lae_jax.runtime.model_file"]
    for model in builtin.MODELS.values():
        if model.path.exists() or model.sha256:  # both, once there is a model
            assert builtin.file_of(builtin.DEFAULT) == model.path and model.path.stat().st_size <= 8_000_000
            assert files_of_models.read_header(builtin.DEFAULT)["meta"]["crop"]["align"] != "none"
            card = model.card.read_text()
            assert "CC BY 4.0" in card and re.search("largest gap", card, re.IGNORECASE)
        assert model.card.exists()
        assert all(any(path.match(pattern) for pattern in patterns) for path in (model.path, model.card))


def test_a_file_that_is_passed_on_names_no_folder_of_this_machine():
    told = {
        "path": "/data/of people/faces",
        "message": "8 of 10 images of test are also in train of /home/alice/faces: see /home/alice/a/audit.json",
        "step": 3,
        "from": ["gs://bucket/runs/a", "runs/b", "/home/alice/faces: 4 pictures (see /home/alice/x/audit.json)"],
    }
    assert files_of_models.without_folders(told) == {
        "path": "faces",
        "message": "8 of 10 images of test are also in train of faces: see audit.json",
        "step": 3,
        "from": ["a", "runs/b", "faces: 4 pictures (see audit.json)"],
    }
