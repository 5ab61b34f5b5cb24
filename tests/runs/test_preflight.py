"""What a program is given wrongly ends it before JAX or TensorFlow is loaded, in one sentence that says what to do."""

import importlib
import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT

from lae_jax import evaluate, longtail
from lae_jax import main as training
from lae_jax.configs import represent, small
from lae_jax.data import records
from lae_jax.runs import preflight
from lae_jax.runtime import layout
from lae_jax.runtime.errors import InputError

# Starts every program with each of the command lines in standard input, and tells what it said and what it loaded.
PROGRAM = """
import importlib, json, sys
from lae_jax.runtime.errors import Ended
for program, words in json.load(sys.stdin):
    try:
        importlib.import_module(f"lae_jax.{program}.__main__").main(words)
        told = "no error"
    except Ended as error:
        told = str(error)
    print(json.dumps(told))
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules} & {"jax", "tensorflow", "pyarrow", "scipy"})))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Runs of stages 1 and 2, their data set, an export, a photograph, and a table; nothing in them can be loaded."""
    top = tmp_path_factory.mktemp("place")
    data = {"path": str(top / "faces"), "train": "train", "split": "validation", "fold": None}
    for name, stage, path in (
        ("run", "represent", "faces"),
        ("people", "pretrain", "faces"),
        ("old", "represent", "f"),
    ):
        (top / name / "checkpoints" / "8").mkdir(parents=True)
        config = {"stage": stage, "data": data | {"path": str(top / path)}}
        (top / name / "config.json").write_text(json.dumps(config))
    (top / "broken" / "checkpoints").mkdir(parents=True)
    (top / "broken" / "config.json").write_text('{"data": 5}')
    (top / "faces").mkdir()
    (top / "faces" / "dataset.json").write_text(json.dumps({"splits": {"train": 4, "validation": 2}}))
    for name in ("photo.jpg", "table.csv", "file"):
        (top / name).write_text("path,age\n")
    return top


WRONG = [
    ("predict", ["--run", "rum", "photo.jpg"], "rum holds no run: no such folder. Did you mean {top}/run?"),
    (
        "predict",
        ["--run", "people", "photo.jpg"],
        "stage pretrain, which does not estimate ages: name a run of stage 2",
    ),
    ("predict", ["--run", "run", "--step", "9", "photo.jpg"], "run has no checkpoint of step 9, only [8]"),
    ("predict", ["--run", "run", "photo.jgp"], "photo.jgp: no such file or folder. Did you mean {top}/photo.jpg?"),
    ("predict", ["--run", "run", "tables.csv"], "tables.csv: no such file or folder. Did you mean {top}/table.csv?"),
    ("predict", ["--run", "run", "*.gif"], "*.gif: no file matches"),
    ("predict", ["--run", "run", "photo.jpg", "--out", "none/a.csv"], "there is no folder {top}/none: create it first"),
    ("predict", ["--run", "run", "photo.jpg", "--out", "file/a.csv"], "{top}/file, which is a file"),
    ("predict", ["--run", "run", "photo.jpg", "--draw", "file"], "--draw {top}/file is a file: name a folder"),
    ("predict", ["--run", "run", "table.csv", "--images", "photos"], "--images {top}/photos does not exist"),
    ("evaluate", ["--run", "run", "--split", "validaton"], "unknown split 'validaton'; did you mean 'validation'?"),
    ("evaluate", ["--run", "run", "--split", "val"], "unknown split 'val'; did you mean 'validation'?"),
    ("evaluate", ["--run", "run", "--data", "facse"], "is not a prepared data set: no such folder. Did you mean"),
    (
        "evaluate",
        ["--run", "run", "--data", "gs://bucket/faces"],
        "Copy it (gcloud storage cp -r gs://bucket/faces DIR)",
    ),
    (
        "evaluate",
        ["--run", "broken"],
        "{top}/broken/config.json is damaged (data is 5: it must be an object): restore it",
    ),
    ("evaluate", ["--run", "old"], "the data set of {top}/old, is not there. If it was moved, name its new place with"),
    ("evaluate", ["--run", "run", "--step", "9"], "run has no checkpoint of step 9, only [8]"),
    ("evaluate", ["--run", "run", "--calibrate", "--split", "train"], "omit --data and --split"),
    ("report", ["run", "rum", "--out", "reports"], "{top}/rum: no such folder. Did you mean {top}/run?"),
    ("report", ["run", "--out", "file"], "--out {top}/file is a file: name a folder"),
    ("report", ["run", "--out", "file/mine"], "--out {top}/file/mine lies in {top}/file, which is a file"),
    ("export", ["--run", "run", "--format", "onxx", "--out", "new"], "unknown format 'onxx'; did you mean 'onnx'?"),
    ("export", ["--run", "run", "--format", "stablehlo", "--out", "faces"], "faces exists already: name a new folder"),
    ("export", ["--run", "run", "--format", "stablehlo", "--out", "file/a"], "{top}/file, which is a file"),
    ("export", ["--run", "people", "--format", "stablehlo", "--out", "new"], "stage pretrain, which does not estimate"),
    (
        "longtail",
        ["--run", "people", "--data", "faces", "--out", "new"],
        "of stage pretrain: name one of stage represent",
    ),
    ("longtail", ["--run", "run", "--data", "facse", "--out", "new"], "Did you mean {top}/faces?"),
    ("longtail", ["--run", "run", "--data", "faces", "--out", "file"], "--out {top}/file is a file"),
    ("audit", ["facse"], "is not a prepared data set: no such folder. Did you mean {top}/faces?"),
    (
        "prepare",
        ["--reader", "csv", "--source", "table.csv", "--out", "new", "--images", "file"],
        "is a file: name the",
    ),
    ("prepare", ["--reader", "csv", "--source", "table.csv", "--out", "file/a"], "{top}/file, which is a file"),
    ("serve", ["--run", "people"], "stage pretrain, which does not estimate ages"),
    ("serve", ["--run", "run", "--step", "9"], "run has no checkpoint of step 9, only [8]"),
]
_PATHS = {
    "rum",
    "run",
    "people",
    "old",
    "broken",
    "photo.jpg",
    "photo.jgp",
    "tables.csv",
    "table.csv",
    "*.gif",
    "none/a.csv",
    "file",
}
_PATHS |= {"file/a.csv", "photos", "facse", "faces", "reports", "file/mine", "new", "file/a"}


def test_wrong_paths_splits_steps_and_stages_are_told_before_jax_is_loaded(place):
    given = [(name, [str(place / word) if word in _PATHS else word for word in words]) for name, words, _ in WRONG]
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM], input=json.dumps(given), cwd=ROOT, timeout=120, capture_output=True, text=True
    )
    *told, loaded = map(json.loads, ended.stdout.splitlines())
    assert len(told) == len(WRONG), ended.stderr
    for (name, words, wanted), line in zip(WRONG, told, strict=True):
        assert wanted.replace("{top}", str(place)) in line, (name, words, line)
    assert loaded == []
    assert not (place / "new").exists() and not (place / "reports").exists()


@pytest.mark.parametrize(("program", "words"), [
    ("prepare", ["--reader", "csv", "--source", "table.csv", "--out", "new"]),
    ("predict", ["--run", "run", "photo.jpg", "--out", "a.csv"]),
    ("predict", ["--run", "run", "photo.jpg", "--draw", "new"]),
    ("report", ["run", "--out", "new"]),
    ("export", ["--run", "run", "--format", "stablehlo", "--out", "new"]),
    ("longtail", ["--run", "run", "--data", "faces", "--out", "new"]),
    ("evaluate", ["--run", "run"]),
])  # fmt: skip
def test_a_folder_that_cannot_be_written_is_told(place, monkeypatch, program, words):
    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.chdir(place)
    monkeypatch.setattr(layout.tempfile, "TemporaryFile", refuse)
    with pytest.raises(InputError, match=r"cannot be written \(Permission denied\): name another folder"):
        importlib.import_module(f"lae_jax.{program}.__main__").main(words)


@pytest.mark.parametrize(("extra", "package", "words"), [
    ("onnx", "onnxruntime", ("export", "--run", "run", "--format", "onnx", "--out", "new")),
    ("serve", "uvicorn", ("serve", "--run", "run")),
    ("hub", "huggingface_hub", None),
])  # fmt: skip
def test_an_extra_that_is_missing_is_told_with_the_command_that_installs_it(place, monkeypatch, extra, package, words):
    monkeypatch.chdir(place)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf"needs the package {package}: .* pip install 'lae-jax\[{extra}\]'$"):
        if words:
            importlib.import_module(f"lae_jax.{words[0]}.__main__").main([*words[1:]])
        else:
            config = represent.get_config()
            config.data.path, config.workdir, config.init_from = "faces", "new", "hf:timm/resnet18.a1_in1k"
            training.check_paths(config)


@pytest.mark.parametrize(("field", "value", "message"), [
    ("data.path", "facse", r"no such folder. Did you mean faces\?"),
    ("data.split", "val", "unknown split 'val'; did you mean 'validation'"),
    ("data.path", "gs://bucket/faces", "gcsfuse BUCKET DIR.*then name DIR .in a run --config.data.path=DIR"),
    ("data.fold", 0, "unknown split 'fold0-train'.*make folds with prepare --folds K"),
    ("init_from", "", "config.init_from is empty: name what the backbone starts from"),
    ("init_from", "rum", r"rum holds no run: no such folder. Did you mean run\?"),
    ("init_from", "faces", "faces holds no run: it is a prepared data set"),
    ("mae_from", "faces", "faces holds no run: it is a prepared data set"),
    ("init_from", "weights.safetensors", "config.init_from: no such file or folder: weights.safetensors"),
    ("workdir", "", "name a folder that is only for the run"),
    ("workdir", "faces", "name a folder that is only for the run"),
    ("workdir", ".", r"config.workdir: \. holds other files \(.*, \.\.\.\): name a new or an empty folder"),
    ("workdir", "file/run", "lies in .*file, which is a file"),
])  # fmt: skip
def test_a_config_is_checked_before_jax_is_loaded(place, monkeypatch, field, value, message):
    monkeypatch.chdir(place)
    config = represent.get_config()
    config.data.path, config.workdir, config.init_from = "faces", "new", "scratch"
    training.check_paths(config)
    config.update_from_flattened_dict({field: value})
    with pytest.raises(InputError, match=message):
        training.check_paths(config)


def test_a_resumed_run_whose_data_set_was_moved_is_told_the_field(place, monkeypatch):
    monkeypatch.chdir(place)
    config = represent.get_config()
    config.data.path, config.workdir = "facse", "run"
    told = r"the data set of run, is not there. Did you mean faces\?. If it was moved, .* --config.data.path=PATH"
    with pytest.raises(InputError, match=told):
        training.check_paths(config)


def test_a_recipe_names_its_own_fields(place, monkeypatch):
    monkeypatch.chdir(place)
    config = small.get_config("tuned")
    config.faces = "faces"
    training.check_paths(config)
    config.stages.classify.data.split = "val"
    with pytest.raises(
        InputError, match="name splits with config.stages.classify.data.train and config.stages.classify"
    ):
        training.check_paths(config)
    config.stages.represent.init_from = ""
    with pytest.raises(
        InputError, match="config.stages.represent.init_from is empty.*--config.stages.represent.init_f"
    ):
        training.check_paths(config)


@pytest.mark.parametrize("field", ["init_from", "mae_from", "teacher"])
def test_a_stage_of_a_recipe_takes_nothing_from_a_later_one(place, monkeypatch, field):
    """The later run is not there when the stage starts, which may be hours after the recipe."""
    monkeypatch.chdir(place)
    config = small.get_config("tuned")
    config.faces = "faces"
    later, earlier = (os.path.join(config.workdir, name) for name in ("classify", "represent"))
    config.stages.classify[field] = earlier
    training.check_paths(config)
    training._check_recipe(config)
    for wrong in (later, earlier):
        config.stages.represent[field] = wrong
        with pytest.raises(InputError, match=f"{wrong} holds no run"):
            training.check_paths(config)
        if field != "teacher":
            with pytest.raises(InputError, match=f"{wrong} holds no run"):
                training._check_recipe(config)


def test_the_names_of_models_methods_and_schedules_are_checked_before_the_data_is_read(monkeypatch, place):
    from lae_jax.train import early, loop

    monkeypatch.chdir(place)
    monkeypatch.setattr(loop, "train", lambda *_: pytest.fail("the names come first"))
    for field, value, message in (
        ("model.name", "resnet81", r"config.stages.represent.model: .*resnet81.*did you mean"),
        ("optim.schedule", "cosine", "config.stages.represent.optim.schedule is 'cosine'"),
        ("parallel", "shardmap", "config.stages.represent.parallel: unknown form 'shardmap'; did you mean 'shard_map'"),
    ):
        config = small.get_config("tuned")
        config.stages.represent.update_from_flattened_dict({field: value})
        with pytest.raises(InputError, match=message), early.naming("represent", config):
            early.check_names(config.stages.represent)


def test_a_split_of_a_fold_has_the_folds_name(place):
    config = {"data": {"fold": 1, "split": "validation"}}
    assert preflight.split_of(config, "validation") == "fold1-validation" and preflight.split_of(config, "all") == "all"
    assert preflight.validation_split(place / "run") == "validation" and preflight.validation_split(place) == ""


@pytest.mark.parametrize("text", ["cut", "[]", '{"splits": 5}'])
def test_a_damaged_dataset_json_is_left_to_what_opens_it(tmp_path, text):
    (tmp_path / "dataset.json").write_text(text)
    preflight.require_split(tmp_path, "validation")
    with pytest.raises(InputError, match="dataset.json is damaged"):
        records.open_dataset(tmp_path)
    (tmp_path / "dataset.json").write_text('{"splits": {"train": 2}}')
    with pytest.raises(InputError, match="unknown split 'validation' "):
        preflight.require_split(tmp_path, "validation")


@pytest.mark.parametrize(("flag", "value"), [
    ("threshold", 18), ("slices", "sex"), ("spread", "std"), ("show_faces", True), ("calibrate", True),
    ("baseline", "run"),
])  # fmt: skip
def test_flags_about_ages_are_refused_for_a_run_of_stage_1(place, monkeypatch, flag, value):
    monkeypatch.chdir(place)
    name = {"slices": "slice", "show_faces": "show-faces"}.get(flag, flag)
    with pytest.raises(InputError, match=f"stage pretrain, .*: omit --{name}, or name a run of stage 2 or 3"):
        evaluate.evaluate("people", **{flag: value})


def test_features_are_not_kept_in_a_bucket(place, monkeypatch):
    monkeypatch.chdir(place)
    with pytest.raises(InputError, match="--out gs://bucket/bench: .* name a folder on a local disk or a mount"):
        longtail.compare("run", "faces", "gs://bucket/bench")
