"""A run as a SavedModel, StableHLO and ONNX: the same ages as the run's, in a folder that tells what it is or fails."""

import dataclasses
import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import ROOT
from etils import epath
from PIL import Image
from programs import TOWERS, needs_onnx, npm_package, program_of

from lae_jax import evaluate, export, models, predict
from lae_jax.configs import common, represent
from lae_jax.data import records
from lae_jax.export import convert, folder, onnx_model, program, saved_model, stablehlo
from lae_jax.predict import __main__ as door
from lae_jax.report import loading, model_card
from lae_jax.runs import calibration, conformal, lineage
from lae_jax.runtime import checkpoints
from lae_jax.runtime.errors import ExportDiffers, InputError
from lae_jax.train import loop

FORMATS = ["saved_model", "stablehlo", pytest.param("onnx", marks=needs_onnx)]


def images_of(side, count=5):
    """Noise, each image of another colour."""
    rng = np.random.default_rng(1)
    noise, colour = rng.integers(0, 100, (count, side, side, 3)), rng.integers(0, 156, (count, 1, 1, 3))
    return (noise + colour).astype(np.uint8)


def assert_equal_in_batches(readable, made, batches=(1, 5)):
    images = images_of(made.image_size)
    ages, distributions = (np.asarray(x) for x in jax.jit(made.function("xla"))(made.variables, images))
    assert np.ptp(ages) > 0.01, "the images must be told apart"
    for count in batches:
        rows = np.asarray(readable.forward(images[:count]))
        assert rows.dtype == np.float32 and rows.shape == (count, 102)
        np.testing.assert_allclose(rows[:, 0], ages[:count], atol=1e-3)
        np.testing.assert_allclose(rows[:, 1:], distributions[:count], atol=1e-4)


@pytest.mark.parametrize("module", [saved_model, stablehlo])
def test_another_program_gives_the_models_ages_at_any_batch_size(module, tmp_path):
    made = program_of("efficientnet_v2_pico", 24, hidden=16, temperature=0.7, flip=True)
    module.write(tmp_path, made)
    readable = module.read(tmp_path)
    assert readable.shape == (None, 24, 24, 3) and readable.dtype == "uint8"
    assert_equal_in_batches(readable, made)


def test_a_saved_model_of_a_vit_gives_its_ages(tmp_path, monkeypatch):
    # TensorFlow reads an older StableHLO than JAX writes: jax.lax.erf would be unknown to it.
    monkeypatch.setitem(models.BACKBONES, "vit_pico", TOWERS["vit_pico"])
    made = program_of("vit_pico", 24)
    saved_model.write(tmp_path, made)
    assert_equal_in_batches(saved_model.read(tmp_path), made)


@needs_onnx
@pytest.mark.parametrize(("name", "side", "fields"), [
    ("efficientnet_v2_pico", 24, {"flip": True, "temperature": 0.7, "hidden": 16}),
    ("efficientnet_v2_tiny", 25, {}),  # an odd size pads another side
    ("efficientnet_lite0", 33, {}),
    ("resnet18", 32, {"temperature": 1.5}),
    ("resnet50", 24, {"flip": True}),
    ("vit_pico", 24, {"flip": True}),
    ("vit_pico", 20, {}),  # as large as its position embeddings
    ("vit_pico_clip", 24, {}),
    ("convnext_pico", 27, {}),  # a side that the strides do not divide
])  # fmt: skip
def test_the_graph_of_onnx_is_the_model(name, side, fields, tmp_path, monkeypatch):
    for tower, entry in TOWERS.items():
        monkeypatch.setitem(models.BACKBONES, tower, entry)
    made = program_of(name, side, **fields)
    onnx_model.write(tmp_path, made)
    readable = onnx_model.read(tmp_path)
    assert readable.shape == (None, side, side, 3) and readable.dtype == "uint8"
    assert_equal_in_batches(readable, made)


def test_exports_hold_every_platform(tmp_path):
    stablehlo.write(tmp_path, program_of("efficientnet_v2_pico", 24))
    exported = jax.export.deserialize(bytearray((tmp_path / stablehlo.FILE).read_bytes()))
    assert exported.platforms == ("cpu", "cuda", "tpu")


def test_a_distribution_is_that_of_the_temperature_and_the_age_is_not():
    made, images = program_of("efficientnet_v2_pico", 24), images_of(24)
    plain, warm = (
        jax.jit(program_of("efficientnet_v2_pico", 24, temperature=t).function("xla"))(made.variables, images)
        for t in (1.0, 2.0)
    )
    np.testing.assert_allclose(warm[0], plain[0], rtol=1e-6)
    root = np.sqrt(np.asarray(plain[1], np.float64))
    np.testing.assert_allclose(warm[1], root / root.sum(axis=1, keepdims=True), atol=1e-6)


@pytest.fixture(scope="module")
def run(drawn, tmp_path_factory):
    """A short run in bfloat16 on the drawn faces, with a hidden layer, calibrated, evaluated on its test split."""
    folder = tmp_path_factory.mktemp("export") / "run"
    c = represent.get_config()
    c.workdir, c.init_from, c.data.path = str(folder), "scratch", str(drawn)
    c.data.image_size, c.data.resize, c.data.threads = 24, 28, 2
    c.data.augment = common.augmentation("flip")
    c.model.name, c.model.dtype, c.model.hidden = "efficientnet_v2_pico", "bfloat16", 16
    c.batch_size, c.eval_batch_size, c.epochs = 32, 32, 1.0
    loop.train(c)
    rng = np.random.default_rng(0)
    fitted = conformal.fit(rng.uniform(20, 60, 90), rng.dirichlet(np.ones(101), 90), rng.integers(1, 80, 90))
    content = {"temperature": 1.3, "step": 3, "conformal": {**fitted.to_json(), "flip": False}}
    calibration.write_calibration(epath.Path(folder), content)
    evaluate.evaluate(folder, split="test")
    return folder


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    """format -> an export of the run, ONNX with a page; each is made once, and not to be changed."""
    made = {}

    def make(form):
        if form not in made:
            made[form] = tmp_path_factory.mktemp("exported") / form
            with pytest.MonkeyPatch.context() as patch:
                software = npm_package(made[form].parent / "npm", patch)
                page = {"page": True, "onnxruntime_web": software} if form == "onnx" else {}
                export.export(run, form, made[form], **page)
        return made[form]

    return make


@pytest.mark.parametrize("form", FORMATS)
def test_an_estimator_of_an_export_gives_what_the_run_gives(run, exported, drawn, form):
    of_run, of_export = (predict.AgeEstimator.from_run(path) for path in (run, exported(form)))
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (40, 36, 3)).astype(np.uint8) for _ in range(9)]
    expected, expected_distributions = of_run.predict(images, distribution=True)
    ages, distributions = of_export.predict(images, distribution=True)
    # The run was trained in bfloat16. On a CPU both compute in float32.
    np.testing.assert_allclose(ages, expected, atol=1e-3)
    np.testing.assert_allclose(distributions, expected_distributions, atol=1e-5)
    assert of_export.temperature == of_run.temperature == 1.3 and of_export.crop == of_run.crop
    np.testing.assert_array_equal(of_export.conformal.thresholds, of_run.conformal.thresholds)
    assert of_export.input == of_run.input and form in of_export.source
    np.testing.assert_allclose(of_export.predict(images[:2]), ages[:2], atol=1e-4)


def test_predict_takes_an_export(exported, tmp_path):
    Image.fromarray(images_of(30)[0]).save(tmp_path / "face.png")
    path, out = exported("stablehlo"), tmp_path / "ages.jsonl"
    words = ["--run", str(path), "--aligned", str(tmp_path / "face.png"), "--distribution", "--out", str(out)]
    door.main(words)
    row = json.loads(out.read_text())
    (age,), (distribution,) = predict.AgeEstimator.from_run(path).predict([images_of(30)[0]], distribution=True)
    assert row["age"] == pytest.approx(age, abs=1e-4)
    np.testing.assert_allclose(row["distribution"], distribution, atol=1e-6)
    for more in (["--step", "3"], ["--flip"]):
        with pytest.raises(InputError, match="is an export, whose step and flip are fixed"):
            door.main([*words, *more])


def test_an_export_says_what_it_is(run, exported, drawn):
    content = json.loads((exported("stablehlo") / "export.json").read_text())
    check, source = content["check"], content["source"]
    assert content["files"].keys() == {"model.stablehlo", "model_card.md"}
    assert check["images"] == 32 and check["batches"] == [1, 31] and check["from"] == f"of split validation of {drawn}"
    assert 0 <= check["max_age_difference"] <= 1e-3 and check["runtime"].startswith("jax ")
    assert source["run"] == str(run) and source["dtype"] == "bfloat16"
    assert (content["input"]["image_size"], content["input"]["resize"]) == (24, 28)
    card = (exported("stablehlo") / "model_card.md").read_text()
    summary = json.loads((run / "summary.json").read_text())
    test = json.loads((run / "evaluation" / "drawn-test" / "report.json").read_text())
    for scores in (summary["scores"], test):
        between = {name: f" ({low:.2f} to {high:.2f})" for name, (low, high) in scores.get("intervals", {}).items()}
        error = f"{scores['group_mae'][-1]:.2f}{between.get('mae_71-81', '')}"
        assert f"| 71-81 | {scores['group_count'][-1]} | {error} |" in card
        assert f"MAE {scores['mae']:.2f} years{between.get('mae', '')}, sigma" in card
    assert between and "In brackets: 95 % intervals over people, for other images of the same kind." in card
    for words in (str(drawn), "read as `synthetic`", "docs/data.md", "trained from random values", "Do not use it",
                  '"detector": "unknown"', "28 x 28", "No leak was found",
                  "in the validation split is unknown: the data was not split by identity",
                  "People of the evaluation on `test` whom it was trained on: "):  # fmt: skip
        assert words in card, words
    unnamed, data = {**test, "same_people_on_both_sides": None}, {"path": "p", "hash": "h", "protocol": "identity"}
    nobody = model_card.write(content, checkpoints.load_run(run).meta, [], [unnamed], data)
    assert "whom it was trained on: unknown, because the data has no identities" in nobody
    assert "not split by identity" not in nobody
    # An evaluation of the validation split counted its people; and the only checkpoint was not chosen.
    counted = {**test, "split": "validation", "same_people_on_both_sides": 0}
    card = model_card.write(content, checkpoints.load_run(run).meta, [], [counted], {**data, "protocol": "column"})
    assert "not split by identity" not in card and "was chosen by" not in card


@needs_onnx
def test_an_export_with_a_page_lists_it(exported, run):
    content = json.loads((exported("onnx") / "export.json").read_text())
    licences = {"onnxruntime-web/LICENSE", "onnxruntime-web/ThirdPartyNotices.txt"}
    assert content["files"].keys() == {"model.onnx", "model_card.md", "index.html", *licences}
    page = (exported("onnx") / "index.html").read_text()
    assert content["page"]["file"] == "index.html" and 'id="card"' in page and "Use and misuse</h" in page
    assert str(run.parent) not in page


def test_the_card_tells_starting_weights_and_leaks(run, exported, tmp_path):
    checkpoint = checkpoints.load_run(run)
    leak = {"message": "7 pictures are on both sides", "data": "data/faces"}
    weights = {"kind": "weights", "from": "hf:timm/resnet18.a1_in1k@abc", "step": None, "sha256": "f00d"}
    content = json.loads((exported("stablehlo") / "export.json").read_text())
    meta = {**checkpoint.meta, "leaks": [leak], "scores": None}
    card = model_card.write(content, meta, [weights], [], {"path": "p", "hash": "h"})
    assert "trained with a leak (`data/faces`): 7 pictures are on both sides" in card
    assert "`hf:timm/resnet18.a1_in1k@abc` (SHA-256 `f00d`)" in card
    assert "https://huggingface.co/timm/resnet18.a1_in1k," in card and "not evaluated" in card


@pytest.mark.parametrize("form", FORMATS)
def test_an_export_with_a_wrong_weight_is_deleted(run, form, tmp_path, monkeypatch):
    write = folder.FORMATS[form].write

    def corrupting(path, made):
        kernel = made.variables["params"]["head"]["fc"]["kernel"].copy()
        kernel[0, 90] += 5
        head = made.variables["params"]["head"]
        params = {**made.variables["params"], "head": {**head, "fc": {**head["fc"], "kernel": kernel}}}
        write(path, program.Program(**{**vars(made), "variables": {**made.variables, "params": params}}))

    monkeypatch.setattr(folder.FORMATS[form], "write", corrupting)
    with pytest.raises(ExportDiffers, match=rf"the {form} gives ages that differ .* it was deleted") as end:
        convert.export(run, form, tmp_path / "out")
    assert end.value.status == 1 and not [*tmp_path.iterdir()]


def test_ages_that_are_not_numbers_are_a_difference(run, tmp_path, monkeypatch):
    crops = convert.Crops(images_of(24), "random images")
    made = program_of("efficientnet_v2_pico", 24)
    nowhere = dataclasses.replace(made, mean=(float("nan"),) * 3)
    stablehlo.write(tmp_path, nowhere)
    with pytest.raises(ExportDiffers, match="nan years"):
        convert.compared("stablehlo", tmp_path, made, crops)


def test_drawn_faces_stand_in_for_a_data_set_that_is_gone(run, monkeypatch, caplog):
    def gone(*_):
        raise InputError("data/faces is not a prepared data set")

    monkeypatch.setattr(records, "open_dataset", gone)
    crops = convert.crops_of(checkpoints.load_run(run))
    assert crops.images.shape == (32, 24, 24, 3) and "drawn faces" in crops.told
    assert len(np.unique(crops.images.reshape(32, -1), axis=0)) == 32


@pytest.mark.parametrize("form", FORMATS)
def test_each_export_needs_its_own_runtime_alone(exported, form):
    others = {"saved_model": ["flax", "onnxruntime"], "stablehlo": ["tensorflow", "flax", "onnxruntime"],
              "onnx": ["tensorflow", "flax", "jax"]}[form]  # fmt: skip
    code = f"""
import sys
for name in {[*others, "orbax", "optax", "ml_collections"]!r}:
    sys.modules[name] = None
import numpy as np
from lae_jax.predict import AgeEstimator
print(AgeEstimator.from_run({str(exported(form))!r}).predict([np.full((50, 40, 3), 90, np.uint8)])[0])
assert "keras" not in sys.modules
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    expected = predict.AgeEstimator.from_run(exported(form)).predict([np.full((50, 40, 3), 90, np.uint8)])
    assert float(result.stdout) == pytest.approx(expected[0], abs=1e-3)


@pytest.fixture
def copy(exported, tmp_path):
    return shutil.copytree(exported("stablehlo"), tmp_path / "copy")


def changed(content, path, value):
    *parents, last = path.split(".")
    place = content
    for name in parents:
        place = place[name]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return content


def flip_a_byte(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(("damage", "message"), [
    (lambda p: flip_a_byte(p / "model.stablehlo"), "model.stablehlo was changed"),
    (lambda p: (p / "model.stablehlo").write_bytes(b"x"), "model.stablehlo has 1 bytes"),
    (lambda p: (p / "model.stablehlo").unlink(), "model.stablehlo is missing"),
    (lambda p: (p / "more.so").write_bytes(b"x"), "more.so does not belong there"),
    (lambda p: (p / "export.json").unlink(), "has no export.json: it was not finished"),
    (lambda p: (p / "export.json").write_text("{"), "export.json is damaged"),
    (lambda p: (p / "export.json").write_text("[]"), r"export.json is damaged \(a list in place of an object\)"),
    (lambda p: (p / "export.json").write_text('{"name": "x"}'), r"export.json is damaged \(no format\)"),
])  # fmt: skip
def test_a_damaged_folder_is_named(copy, damage, message):
    damage(copy)
    with pytest.raises(InputError, match=message) as end:
        predict.AgeEstimator.from_run(copy)
    assert str(copy) in str(end.value)


@pytest.mark.parametrize(("field", "value", "message"), [
    ("format", "pickle", "unknown format 'pickle'"),
    ("version", 2, "version is 2: it must be 1"),
    ("input.image_size", 32, r"its model takes uint8 \(None, 24, 24, 3\)"),
    ("input", None, r"damaged \(no input\)"),
    ("temperature", float("inf"), "damaged"),
    ("temperature", 0, "temperature is 0: it must be a number at least 0.001"),
    ("format", "saved_model", "its saved_model cannot be read here"),
    ("files", {"/etc/passwd": {"bytes": 1, "sha256": "0" * 64}}, "passwd is missing|does not belong there"),
])  # fmt: skip
def test_a_wrong_field_is_told(copy, field, value, message):
    content = changed(json.loads((copy / "export.json").read_text()), field, value)
    (copy / "export.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=message) as end:
        predict.AgeEstimator.from_run(copy)
    assert str(copy) in str(end.value)


def test_a_folder_of_nothing_is_no_run(tmp_path):
    with pytest.raises(InputError, match=f"{tmp_path} holds no run"):
        predict.AgeEstimator.from_run(tmp_path)


def test_a_package_that_is_missing_is_named_with_the_extra(monkeypatch, tmp_path):
    for name in ("onnx", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(InputError, match=rf"ONNX needs the package {name}: .*lae-jax\[onnx\]"):
            onnx_model.required(name)
    with pytest.raises(InputError, match=r"lae-jax\[onnx\]"):
        onnx_model.write(tmp_path, program_of("efficientnet_v2_pico", 24))
    with pytest.raises(InputError, match=r"lae-jax\[onnx\]"):
        folder.read("onnx", tmp_path)


def test_an_export_that_was_looked_at_is_whole_and_may_go_where_nothing_else_is(run, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / ".DS_Store").write_text("litter")
    export.export(run, "stablehlo", out)
    (out / "Thumbs.db").write_text("litter")
    (out / "__MACOSX").mkdir()
    (out / "__MACOSX" / "._model.stablehlo").write_text("litter")
    assert folder.open_export(out).image_size == 24


def test_the_card_follows_the_runs_that_a_run_was_started_from(run, tmp_path):
    checkpoint = checkpoints.load_run(run)
    weights = {"from": "hf:timm/x@abc", "step": None, "sha256": "f00d" * 16}
    chain = [("last", "middle", {}), ("middle", "hf:timm/x", weights)]
    for name, start, recorded in chain:
        (tmp_path / name).mkdir()
        config = {"init_from": start if ":" in start else str(tmp_path / start), "init_step": None}
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        (tmp_path / name / "provenance.json").write_text(json.dumps({"init": recorded}))
    meta = {**checkpoint.meta, "config": {**checkpoint.meta["config"], "init_from": str(tmp_path / "last")}}
    found = lineage.starts(dataclasses.replace(checkpoint, workdir=checkpoint.workdir / "gone", meta=meta))
    assert [(start["kind"], start["from"]) for start in found] == [
        ("run", str(tmp_path / "last")),
        ("run", str(tmp_path / "middle")),
        ("weights", "hf:timm/x@abc"),
    ]
    assert found[-1]["sha256"] == weights["sha256"]


def test_no_bucket_that_a_strangers_run_names_is_asked(run, monkeypatch):
    asked = []
    kind, exists = type(epath.Path("gs://a/b")), type(epath.Path("gs://a/b")).exists
    monkeypatch.setattr(kind, "exists", lambda path: asked.append(path) if "://" in str(path) else exists(path))
    checkpoint = checkpoints.load_run(run)
    config = {**checkpoint.meta["config"], "init_from": "gs://stranger/run"}
    other = dataclasses.replace(checkpoint, meta={**checkpoint.meta, "config": config, "data": "gs://stranger/data"})
    assert lineage.starts(other) and not asked
    assert lineage.data_of(other)["reader"] is None and not asked
    loading.started_from(dataclasses.replace(loading.read_run(run), provenance={"init": {"from": "gs://stranger/run"}}))
    assert not asked


def test_a_damaged_evaluation_is_left_out_of_the_card_and_named(run, tmp_path, caplog):
    copy = shutil.copytree(run, tmp_path / "run")
    (whole,) = (copy / "evaluation").iterdir()
    damaged = shutil.copytree(whole, whole.with_name("other"))
    (damaged / "report.json").write_text("{")
    (whole / "predictions.csv").write_text("not read for a card")
    card, reports = lineage.run_card(copy)
    assert [report["split"] for report in reports] == ["test"] and "test" in card
    assert f"{damaged}/report.json is damaged" in caplog.text and "does not have this evaluation" in caplog.text


def test_what_cannot_be_exported_is_told_before_work(run, tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="exists already"):
        export.export(run, "stablehlo", tmp_path / "full")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]
    with pytest.raises(InputError, match="export to a local disk"):
        export.export(run, "stablehlo", "gs://bucket/out")
    with pytest.raises(InputError, match="has no checkpoint of step 999"):
        export.export(run, "stablehlo", tmp_path / "out", step=999)
    with pytest.raises(InputError, match="holds no run"):
        export.export(tmp_path, "stablehlo", tmp_path / "out")
    checkpoint = checkpoints.load_run(run)
    other = dataclasses.replace(checkpoint, meta={**checkpoint.meta, "stage": "pretrain"})
    monkeypatch.setattr(checkpoints, "load_run", lambda *_: other)
    with pytest.raises(InputError, match="is a run of stage pretrain, which does not estimate ages"):
        convert.export(run, "stablehlo", tmp_path / "out")
    assert not (tmp_path / "out").exists()
