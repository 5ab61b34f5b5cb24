"""Photographs in, ages out: the same as an evaluation gives, in any number, with reasons where there are none."""

import csv
import dataclasses
import io
import json
import os
import pathlib
import re
import shutil
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import skimage.data
from conftest import ROOT
from etils import epath
from PIL import Image

from lae_jax import evaluate, predict, prepare
from lae_jax.data import records
from lae_jax.data.sources import synthetic
from lae_jax.evaluate import __main__ as evaluate_door
from lae_jax.evaluate import contents, measure, results
from lae_jax.predict import __main__ as door
from lae_jax.predict import answers, photographs
from lae_jax.runs import build, calibration, preflight
from lae_jax.runtime.errors import InputError, NothingPredicted
from lae_jax.train import loop


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """photographs/: 0.png ... 11.png, drawn; faces.csv; a run in run/ that was trained on their crops."""
    from lae_jax.configs import represent

    folder = tmp_path_factory.mktemp("predict")
    (folder / "photographs").mkdir()
    rows = []
    for k in range(12):
        picture, _ = synthetic.draw_face(k, 6.0 * k + 5, 1, 160, k)
        Image.fromarray(picture).save(folder / "photographs" / f"{k}.png")
        rows.append(f"photographs/{k}.png,{6 * k + 5}")
    (folder / "faces.csv").write_text("\n".join(["path,age", *rows]) + "\n")
    prepare.prepare(folder / "faces.csv", folder / "data", size=64, workers=1, ratio="1:1")
    c = represent.get_config()
    c.workdir, c.init_from, c.data.path = str(folder / "run"), "scratch", str(folder / "data")
    c.data.image_size, c.data.resize, c.data.threads = 24, 28, 2
    c.model.name, c.batch_size, c.eval_batch_size, c.epochs = "efficientnet_v2_pico", 8, 8, 1.0
    loop.train(c)
    return folder


@pytest.fixture(scope="module")
def evaluated(folder):
    """name -> (age, prediction) of an evaluation of all images."""
    evaluate.evaluate(folder / "run", split="all")
    with open(folder / "run" / "evaluation" / "data-all" / "predictions.csv") as file:
        return {row["name"]: float(row["prediction"]) for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def estimator(folder):
    return predict.AgeEstimator.from_run(folder / "run")


def lines(path):
    return [json.loads(line) for line in pathlib.Path(path).read_text().splitlines()]


def test_photographs_give_what_an_evaluation_of_their_crops_gives(folder, evaluated, tmp_path):
    out = tmp_path / "ages.csv"
    door.main(["--run", str(folder / "run"), str(folder / "faces.csv"), "--out", str(out), "--threshold", "18"])
    with open(out) as file:
        rows = {row["name"]: row for row in csv.DictReader(file) if row["age"]}
    assert rows.keys() == evaluated.keys() and len(rows) >= 10
    for name, row in rows.items():
        assert float(row["age"]) == pytest.approx(evaluated[name], abs=0.02)
        assert float(row["lower"]) < float(row["upper"]) and 0 <= float(row["p_at_least_18"]) <= 1
        assert row["cut_by"] == "mtcnn" and float(row["right"]) > float(row["left"])


def test_the_number_of_images_changes_nothing_and_compiles_nothing(estimator):
    images = [np.random.default_rng(k).integers(0, 255, (40, 40, 3)).astype(np.uint8) for k in range(9)]
    alone = np.concatenate([estimator.predict([image]) for image in images])
    ages, distribution = estimator.predict(images, distribution=True)
    np.testing.assert_allclose(ages, alone, atol=1e-4)
    assert ages.dtype == np.float32 and distribution.shape == (9, 101)
    np.testing.assert_allclose(distribution.sum(axis=1), 1, atol=1e-5)
    seen = []
    counting = predict.AgeEstimator(
        lambda batch: seen.append(len(batch)) or np.tile(np.float32([50] + [1 / 101] * 101), (len(batch), 1)),
        (8, 64),
        estimator.input,
        estimator.crop,
    )
    for count in (1, 7, 8, 9, 63, 64, 65, 130, 0):
        assert counting.predict([images[0]] * count).tolist() == [50.0] * count
    assert {*seen} == {8, 64}


@pytest.mark.parametrize(
    "row",
    [[np.nan, *[1 / 101] * 101], [50, *[np.nan] * 101], [-7, *[1 / 101] * 101], [50, *[1.0] * 101], [50, 0.5, 0.5]],
)
def test_outputs_that_are_no_ages_and_probabilities_are_refused(estimator, row):
    forward = lambda batch: np.tile(np.float32(row), (len(batch), 1))  # noqa: E731
    damaged = dataclasses.replace(estimator, forward=forward, source="runs/x step 3")
    with pytest.raises(InputError, match="runs/x step 3 is damaged: its outputs are not an age"):
        damaged.predict([np.zeros((8, 8, 3), np.uint8)] * 40)


def test_images_of_another_kind_are_refused(estimator):
    for wrong in (np.zeros((8, 8, 3)), np.zeros((8, 8), np.uint8), np.zeros((0, 8, 3), np.uint8)):
        with pytest.raises(InputError, match=r"image 1 of 2: an image is uint8 \(H, W, 3\)"):
            estimator.predict([np.zeros((8, 8, 3), np.uint8), wrong])


def test_what_cannot_be_used_has_a_row_that_says_so_and_the_rest_goes_on(folder, tmp_path, capsys):
    (tmp_path / "text.jpg").write_text("no picture")
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    Image.fromarray(np.full((30, 30), 40000, np.uint16)).save(tmp_path / "deep.png")
    rotated = Image.Exif()
    rotated[0x0112] = 6
    good = Image.open(folder / "photographs" / "5.png")
    good.rotate(90, expand=True).save(tmp_path / "turned.jpg", exif=rotated, quality=95)
    good.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    Image.new("P", (9, 9)).save(tmp_path / "a.gif", save_all=True, append_images=[Image.new("P", (9, 9), 3)])
    # A header that claims a picture of 1.2 GB, in a file of a few bytes.
    tiny = io.BytesIO()
    Image.new("RGB", (4, 4)).save(tiny, "PNG")
    header = struct.pack(">4sIIBBBBB", b"IHDR", 20000, 20000, 8, 2, 0, 0, 0)
    bomb = tiny.getvalue()[:12] + header + struct.pack(">I", zlib.crc32(header)) + tiny.getvalue()[33:]
    (tmp_path / "bomb.png").write_bytes(bomb)
    out = tmp_path / "ages.jsonl"
    words = ["--run", str(folder / "run"), str(tmp_path), "missing.jpg", "--out", str(out), "--distribution"]
    door.main(words)
    rows = {pathlib.Path(row["name"]).name: row for row in lines(out)}
    assert (
        rows["text.jpg"]["reason"] == "not an image that can be read"
        and rows["missing.jpg"]["reason"] == "file not found"
    )
    assert (
        rows["bomb.png"]["reason"] == "more than 100,000,000 pixels; only a JPEG may have more: save it as plain JPEG"
    )
    assert {rows[name]["reason"] for name in ("dot.png", "deep.png", "a.gif")} == {"no face found"}
    # Upright, and with its colours, it is the photograph that it was.
    door.main(["--run", str(folder / "run"), str(folder / "photographs" / "5.png"), "--out", str(out)])
    (straight,) = lines(out)
    assert rows["turned.jpg"]["age"] == pytest.approx(straight["age"], abs=1.0)
    assert len(rows["cmyk.jpg"]["distribution"]) == 101
    with pytest.raises(NothingPredicted) as end:
        door.main(["--run", str(folder / "run"), str(tmp_path / "text.jpg")])
    assert end.value.status == 1 and "not an image that can be read" in capsys.readouterr().out


def test_several_faces_have_a_row_each_and_are_drawn(folder, tmp_path):
    scene = Image.new("RGB", (420, 200), (120, 130, 140))
    for k, x in ((3, 10), (5, 230)):
        scene.paste(Image.open(folder / "photographs" / f"{k}.png"), (x, 20))
    scene.save(tmp_path / "two.png")
    out = tmp_path / "ages.jsonl"
    words = [
        "--run",
        str(folder / "run"),
        str(tmp_path / "*.png"),
        "--out",
        str(out),
        "--draw",
        str(tmp_path / "drawn"),
    ]
    door.main(words)
    rows = lines(out)
    assert [row["face"] for row in rows] == [1, 2] and {round(row["box"][0] > 210) for row in rows} == {0, 1}
    (drawn,) = (tmp_path / "drawn").iterdir()
    assert np.abs(np.asarray(Image.open(drawn), float) - np.asarray(scene, float)).max() > 60


def test_a_photograph_that_lies_on_its_side_is_turned_and_what_was_found_is_told(folder, tmp_path, caplog):
    caplog.set_level("INFO", "lae_jax")
    lying = Image.fromarray(skimage.data.astronaut()).crop((60, 0, 460, 300)).rotate(90, expand=True)
    lying.save(tmp_path / "lying.png")
    Image.new("RGB", (60, 60), (70, 110, 60)).save(tmp_path / "nobody.png")
    out, drawn = tmp_path / "ages.jsonl", tmp_path / "drawn"
    words = ["--run", str(folder / "run"), str(tmp_path / "*.png"), "--out", str(out), "--draw", str(drawn), "--rotate"]
    door.main(words)
    assert "photograph without a face, 1 photograph with a face turned by more than 45 degrees" in caplog.text
    turned, nobody = lines(out)
    assert nobody["reason"] == "no face found"
    left, top, right, bottom = turned["box"]  # in pixels of the photograph as it is shown
    # The eyes are one above the other, where they are in the photograph.
    assert left < 101 < right and top < 400 - 186.5 < 400 - 143.3 < bottom and right - left > bottom - top
    (drawing,) = drawn.iterdir()
    with Image.open(drawing) as picture:
        assert picture.size == lying.size
        edge = np.asarray(picture, float)[round(top) : round(bottom), round(left)]
    assert np.abs(edge - [33, 102, 172]).mean() < 40
    (row,) = predict.predict(folder / "run", tmp_path / "lying.png", rotate=True)
    assert row.box == turned["box"]


def test_the_contests_interface(folder, evaluated, tmp_path, caplog):
    caplog.set_level("WARNING", "lae_jax")
    Image.new("RGB", (60, 60), (70, 110, 60)).save(folder / "photographs" / "nobody.png")
    names = ["3.png", "nobody.png", "lost.png", "1.png"]
    (tmp_path / "foo_test.csv").write_text("".join(f"{name},1\n" for name in names))
    words = ["--contest", str(tmp_path / "foo_test.csv"), "--images", str(folder / "photographs")]
    door.main(["--run", str(folder / "run"), *words, "--out", str(tmp_path / "out.csv")])
    with open(tmp_path / "out.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert [row[0] for row in rows] == names and rows[2][1] == "nan" and float(rows[1][1]) > 0
    assert float(rows[0][1]) == pytest.approx(evaluated["photographs/3.png"], abs=0.02)
    assert "nobody.png: no face found: a centre crop" in caplog.text and "lost.png: file not found" in caplog.text


def test_a_model_of_ready_crops_takes_crops_only(folder, trained, tmp_path):
    run = str(trained("represent"))
    photograph = str(folder / "photographs" / "1.png")
    with pytest.raises(InputError, match="how they were cut is unknown. Give crops .* with --aligned"):
        door.main(["--run", run, photograph])
    door.main(["--run", run, "--aligned", photograph, "--out", str(tmp_path / "o.jsonl")])
    assert lines(tmp_path / "o.jsonl")[0]["age"] > 0


def test_a_calibration_travels_with_the_run(folder):
    run = str(folder / "run")
    with pytest.raises(InputError, match="--calibrate fits on the validation split"):
        evaluate.evaluate(run, split="train", calibrate=True)
    report, _ = evaluate.evaluate(run, calibrate=True)
    content = json.loads((folder / "run" / "calibration.json").read_text())
    assert predict.AgeEstimator.from_run(run).is_calibrated
    assert report["interval"]["coverage"] == content["after"]["coverage"]
    estimator = predict.AgeEstimator.from_run(run)
    assert estimator.temperature == content["temperature"] != 1
    report = json.loads((folder / "run" / "evaluation" / "data-validation" / "report.json").read_text())
    assert report["interval"]["temperature"] == content["temperature"]
    rows = records.open_dataset(folder / "data").rows("validation")
    assert content["n"] == len(rows)


def test_conformal_intervals_travel_with_the_run(folder, tmp_path, caplog, capsys):
    caplog.set_level("INFO", "lae_jax")
    run = epath.Path(shutil.copytree(folder / "run", tmp_path / "run"))
    checkpoint = build.load(run)
    done = measure.predict(checkpoint)
    with pytest.raises(InputError, match=r"90% need 9 images with an exact age, and split validation has 6"):
        measure.calibrate(done, 0.9, with_conformal=True, flip=False)
    assert calibration.conformal_of(checkpoint, flip=False) is None
    measure.calibrate(done, 0.5, with_conformal=True, flip=False)
    assert "fitted to 6 images of validation with an exact age" in caplog.text and "need: 0, " in caplog.text
    place = run / "evaluation" / "data-validation"
    report = results.write(done, place, contents.Contents(interval=0.5))
    with open(place / "predictions.csv") as file:
        held = [(float(row["conformal_lower"]), float(row["conformal_upper"])) for row in csv.DictReader(file)]
    inside = [low <= age <= high for (low, high), age in zip(held, done.targets, strict=True)]
    assert report["conformal"]["coverage"] == np.mean(inside) and report["conformal"]["on_these"]
    told = [line for line in evaluate_door.tell(report) if "conformal" in line or "fitted" in line]
    assert told[0].startswith("50% conformal intervals hold ") and told[0].endswith("the page has them by age group")
    assert told[1:] == ["they were fitted to some or all of these images: evaluate on other images"]
    no_age_is_exact = {"coverage": None, "on_these": False}
    told = evaluate_door.tell(report | {"conformal": report["conformal"] | no_age_is_exact})
    (line,) = (line for line in told if "conformal" in line)
    assert re.fullmatch(r"50% conformal intervals are [\d.]+ years wide on average", line)
    # Fitted images are told wherever they are, and no others.
    for split, rows, expected in (("all", done.rows, True), ("train", done.dataset.rows("train")[:6], False)):
        other = dataclasses.replace(done, split=split, rows=rows)
        assert results._conformal(other, 0.5, flip=False).described["on_these"] is expected
    # `predict` gives them in each of its forms.
    estimator = predict.AgeEstimator.from_run(run)
    fields = answers.Fields.of(estimator, 0.5)
    given = np.concatenate([done.outputs[:, None], done.probabilities], axis=1)
    names = [photographs.Named(f"{number}.png") for number in range(6)]
    rows = [
        answers.rows_of(photographs.Found(name, [None], [], ""), outputs[None], estimator, fields)[0]
        for name, outputs in zip(names, given, strict=True)
    ]
    np.testing.assert_allclose([(row.conformal_lower, row.conformal_upper) for row in rows], held, atol=1e-4)
    for out in (str(tmp_path / "a.csv"), str(tmp_path / "a.jsonl"), None):
        with answers.opened(out, fields) as write:
            write(rows)
    assert f"{'conformal':>13}" in capsys.readouterr().out.splitlines()[0]
    with open(tmp_path / "a.csv") as file:
        (first, *_) = csv.DictReader(file)
    assert [*first][3:7] == ["lower", "upper", "conformal_lower", "conformal_upper"]
    assert (
        float(first["conformal_upper"]) == rows[0].conformal_upper == lines(tmp_path / "a.jsonl")[0]["conformal_upper"]
    )
    # What was fitted to other estimates, or for another level, is not given.
    assert calibration.conformal_of(checkpoint, flip=True) is None and "fitted without --flip" in caplog.text
    assert not answers.Fields.of(estimator, 0.995).conformal and "use --interval 0.99 or less" in caplog.text
    # A calibration without them replaces them, because they were fitted to another temperature.
    caplog.clear()
    measure.calibrate(done, 0.5, with_conformal=False, flip=False)
    assert calibration.conformal_of(checkpoint, flip=False) is None
    removed = "the conformal intervals are removed: fit them again with --calibrate conformal"
    assert caplog.text.count(removed) == 1
    measure.calibrate(done, 0.5, with_conformal=False, flip=False)
    assert caplog.text.count(removed) == 1


@pytest.mark.parametrize(("words", "message"), [
    ([], "name photographs"),
    (["a.jpg", "--interval", "1"], "interval is 1.0: it must lie between 0 and 1"),
    (["a.jpg", "--threshold", "200"], "threshold is 200.0: it must be an age from 0 to 100"),
    (["a.jpg", "--out", "ages.txt"], "must end in .csv or .jsonl"),
    (["a.jpg", "--distribution"], "needs --out NAME.jsonl"),
    (["--contest", "a.csv"], "needs --out FILE.csv"),
    (["a.jpg", "--aligned", "--draw", "d"], "omit --aligned"),
    (["a.jpg", "--aligned", "--rotate"], "--rotate is for photographs, and the images are face crops: omit it"),
    (["a.jpg", "--smallest-face", "12"], "--smallest-face must be at least 20 pixels, got 12"),
])  # fmt: skip
def test_wrong_flags(words, message):
    with pytest.raises(InputError, match=message):
        door.parse_args(["--run", "runs/r", *words])


def test_a_table_stays_in_line_with_long_names(capsys):
    names = ("a.jpg", "photo" * 20 + "7.jpg")
    rows = [answers.Row(name=name, face=1, age=30.0, lower=20.0, upper=40.0) for name in names]
    with answers.opened(None, answers.Fields()) as write:
        write([*rows, answers.Row(name="b" * 40, reason="no face found")])
    head, short, long, none = capsys.readouterr().out.splitlines()
    assert long.startswith("...") and long[:32].endswith("photo7.jpg") and len(short) == len(long) == len(head)
    assert none == f"...{'b' * 29}  no face found"


def test_a_glob_or_folder_without_images_is_told(folder, tmp_path):
    with pytest.raises(InputError, match=r"\*.webp: no file matches"):
        door.main(["--run", str(folder / "run"), str(tmp_path / "*.webp")])
    with pytest.raises(InputError, match=f"^{tmp_path}: no image found"):
        door.main(["--run", str(folder / "run"), str(tmp_path)])


def test_links_that_lead_in_circles_are_not_followed_by_a_glob(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("x.jpg", "a/y.jpg", "a/b/z.jpg", "a/b/.hidden/q.jpg", "a/.w.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for name in ("c", "d", "e", "a/b/f"):  # 4**40 paths
        (tmp_path / name).symlink_to(tmp_path)
    for word in ("**/*.jpg", "./**/*.jpg", f"{tmp_path}/**/*.jpg"):
        found = [os.path.relpath(one.name) for one in photographs.named([word])]
        assert found == ["a/b/z.jpg", "a/y.jpg", "x.jpg"], word
    for word, names in (("a/**", ["a"]), ("**", ["."]), ("**/b", ["a/b"]), ("a/**/.h*/*", ["a/b/.hidden/q.jpg"])):
        assert [*map(os.path.normpath, preflight.matching(word))] == names


def test_nothing_in_a_folder_is_dropped_in_silence(tmp_path, caplog):
    caplog.set_level("INFO", "lae_jax")
    for name in ("a.jfif", "b", "notes.txt", ".DS_Store"):
        Image.new("RGB", (9, 9)).save(tmp_path / name, "JPEG")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "link").symlink_to(tmp_path)
    for tell in (True, False):
        found = photographs.of_chunk([*photographs.named([str(tmp_path)], tell=tell)], None, np.asarray)
        told = {pathlib.Path(one.image.name).name: one.reason for one in found}
        assert told == {"a.jfif": "", "b": "", "link": "a link to a folder: links are not followed"}
    assert len(caplog.messages) == 2 and "1 file is ignored, because the format is not read: 1 .txt" in caplog.text


def test_a_csv_whose_columns_are_unknown_is_told_the_names_and_one_without_a_header_is_read(tmp_path):
    (tmp_path / "list.csv").write_text("photo;years\n1.png;3\n")
    with pytest.raises(InputError, match=r"'photo;years' has no column path\|file\|.* commas, not semicolons"):
        list(photographs.in_csv(str(tmp_path / "list.csv")))
    (tmp_path / "list.csv").write_text("lost.png\n1.png\n")
    assert [each.name for each in photographs.in_csv(str(tmp_path / "list.csv"))] == ["lost.png", "1.png"]


@pytest.mark.parametrize("flag", [[], ["--contest"]])
def test_the_list_of_the_images_is_not_written_over(tmp_path, monkeypatch, flag):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("list.csv").write_text("path\na.jpg\n")
    with pytest.raises(InputError, match=r"--out ./list\.csv is the list of the images itself: name another file"):
        door.parse_args(["--run", "runs/r", *flag, "list.csv", "--out", "./list.csv"])


def test_ages_of_arrays_need_no_tensorflow_and_those_of_a_model_file_no_orbax(folder, estimator, model_file):
    code = f"""
import sys
for name in ("tensorflow", "tensorflow_datasets", "mtcnn", "array_record"):
    sys.modules[name] = None
import numpy as np
from lae_jax.predict import AgeEstimator
AgeEstimator.from_run({str(model_file)!r}).predict([np.full((50, 40, 3), 90, np.uint8)])
assert not {{"orbax", "scipy", "h5py"}} & {{*sys.modules}}
estimator = AgeEstimator.from_run({str(folder / "run")!r})
print(estimator.predict([np.full((50, 40, 3), 90, np.uint8)])[0])
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    expected = estimator.predict([np.full((50, 40, 3), 90, np.uint8)])[0]
    assert result.returncode == 0 and float(result.stdout) == pytest.approx(expected, abs=1e-3), result.stderr
