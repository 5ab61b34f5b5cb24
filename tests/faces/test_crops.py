"""Photographs -> data sets of aligned crops: which face, what becomes of the others, and the crop contract."""

import csv
import io
import json
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import skimage.data
from conftest import ROOT
from PIL import Image

from lae_jax import prepare
from lae_jax.audit import saved
from lae_jax.data import records, stored
from lae_jax.data.sources import synthetic
from lae_jax.data.sources.interface import Picture
from lae_jax.faces import align, crops, detect, images, perceptual_hash, pixels
from lae_jax.prepare import __main__ as door
from lae_jax.prepare import assembly
from lae_jax.runtime.errors import InputError, end_all

COUNTS = ("without_face", "several_faces", "turned_faces")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """scene.jpg: two faces, the larger one away from the middle; one.png; nobody.png; broken.jpg; faces.csv of all."""
    folder = tmp_path_factory.mktemp("photographs")
    faces = [Image.fromarray(synthetic.draw_face(k, 30.0 + k, 0, 200, k)[0]) for k in range(3)]
    scene = Image.new("RGB", (640, 360), (90, 100, 110))
    scene.paste(faces[0].resize((240, 240)), (10, 60))
    scene.paste(faces[1].resize((130, 130)), (300, 110))
    scene.save(folder / "scene.jpg", quality=95)
    faces[2].save(folder / "one.png")
    Image.fromarray(np.full((150, 200, 3), (60, 120, 40), np.uint8)).save(folder / "nobody.png")
    (folder / "broken.jpg").write_bytes((folder / "scene.jpg").read_bytes()[:2000])
    rows = ["path,age", "scene.jpg,30", "one.png,32", "nobody.png,50", "broken.jpg,9", "missing.jpg,8"]
    (folder / "faces.csv").write_text("\n".join(rows) + "\n")
    return folder


def made(photographs, out, **how):
    """The data set that `prepare` makes, and the reasons in rejected.csv by name."""
    prepare.prepare(photographs / "faces.csv", out, workers=1, size=96, **how)
    with open(out / "rejected.csv", newline="") as file:
        return records.open_dataset(out), {name: reason for name, reason, *_ in [*csv.reader(file)][1:]}


def test_the_largest_face_is_cut_and_what_has_none_is_rejected(photographs, tmp_path):
    dataset, rejected = made(photographs, tmp_path / "out", ratio="1:1")
    assert dataset.column("name").tolist() == ["scene.jpg", "one.png"]
    assert dataset.column("cut_by").tolist() == ["mtcnn", "mtcnn"]
    assert rejected["nobody.png"] == "no face found" and "does not decode" in rejected["broken.jpg"]
    assert rejected["missing.jpg"] == "file not found"
    left, _, right, _ = dataset.column("box")[0]
    assert right < 260 and (dataset.column("width")[0], dataset.column("height")[0]) == (640, 360)
    assert dataset.crop["detector"] == "mtcnn 1.0.0" and dataset.crop["size"] == 96
    assert json.loads((tmp_path / "out" / "recipe.json").read_text())["crop"] == dataset.crop


def test_the_face_in_the_centre_or_all_of_them(photographs, tmp_path):
    centre, _ = made(photographs, tmp_path / "centre", faces="centre", ratio="1:1")
    assert centre.column("box")[0][0] > 260
    every, _ = made(photographs, tmp_path / "all", faces="all", ratio="1:1")
    assert every.column("name").tolist() == ["scene.jpg", "scene.jpg#2", "one.png"]
    assert every.column("source_row").tolist() == [0, 0, 1] and every.column("age").tolist() == [30, 30, 32]
    assert every.column("faces").tolist() == [2, 2, 1]
    for dataset, count, told in ((centre, 1, "one was taken, and it may"), (every, 2, "all have its age")):
        assert [dataset.manifest[name] for name in COUNTS] == [1, 1, 0]
        (report,) = saved.run([dataset.path])
        (found,) = [finding for finding in report["findings"] if finding["kind"] == "several_faces"]
        assert (found["severity"], found["count"]) == ("warning", count) and told in found["message"]
        assert found["examples"][0] == ["scene.jpg", "2 faces"] and report["image_size"] == 96
    # The faces of one photograph stay on one side.
    sides = [set(every.rows(name).tolist()) for name in ("train", "validation")]
    assert {0, 1} in sides


def test_a_centre_crop_stands_in_where_no_face_is_found(photographs, tmp_path):
    dataset, rejected = made(photographs, tmp_path / "out", undetected="centre", ratio="1:1")
    assert dataset.column("cut_by").tolist() == ["mtcnn", "mtcnn", "centre"] and "nobody.png" not in rejected
    assert dataset.column("box")[2] is None and dataset.column("scale")[2] == pytest.approx(150 / 96)


def test_a_photograph_that_lies_on_its_side_gives_an_upright_crop_in_its_own_coordinates(photographs, tmp_path):
    portrait = Image.fromarray(skimage.data.astronaut()).crop((60, 0, 460, 300))
    (tmp_path / "upright").mkdir()
    portrait.save(tmp_path / "upright" / "one.png")
    portrait.rotate(90, expand=True).save(tmp_path / "lying.png")
    (tmp_path / "nobody.png").write_bytes((photographs / "nobody.png").read_bytes())
    (tmp_path / "faces.csv").write_text("path,age\nlying.png,30\nupright/one.png,32\nnobody.png,4\n")
    dataset, rejected = made(tmp_path, tmp_path / "out", ratio="1:1", rotate=True, undetected="centre")
    assert dataset.column("cut_by").tolist() == ["mtcnn", "mtcnn", "centre"] and not rejected
    lying, upright = (np.reshape(marks, (5, 2)) for marks in dataset.column("landmarks")[:2])
    assert (dataset.column("width")[0], dataset.column("height")[0]) == (300, 400)
    np.testing.assert_allclose(lying, np.stack([upright[:, 1], 399 - upright[:, 0]], axis=1), atol=1)
    assert align.roll(lying) == pytest.approx(align.roll(upright) - 90, abs=2)
    crop = [np.asarray(images.load(one[one.index(b"\xff\xd8") :]), float) for one in dataset.read(np.arange(2))]
    assert np.abs(crop[0] - crop[1]).mean() < 6
    assert [dataset.manifest[name] for name in COUNTS] == [1, 0, 1]
    assert door.tell(dataset.manifest, "out", "largest")[1:] == [
        "found: 1 photograph without a face, 1 photograph with a face turned by more than 45 degrees"
    ]
    # A data set that was made before the choice existed is continued.
    recipe = tmp_path / "out" / "recipe.json"
    written = json.loads(recipe.read_text())
    assert written.pop("rotate") is True
    recipe.write_text(json.dumps(written))
    with pytest.raises(InputError, match="another recipe .*rotate: False there, True now"):
        made(tmp_path, tmp_path / "out", ratio="1:1", rotate=True, undetected="centre")


def test_small_faces_are_cut_where_they_are_asked_for(monkeypatch):
    asked = []
    monkeypatch.setattr(
        detect, "detect", lambda pictures, smallest, rotate: asked.append((smallest, rotate)) or [[]] * 2
    )
    two = [crops.Photograph(Image.new("RGB", (9, 9))), crops.Photograph(Image.new("RGB", (9, 9)), reduced=2)]
    crops.cut(two, crops.Recipe("landmarks", smallest_face=30, rotate=True))
    crops.cut(two, crops.Recipe("landmarks"))
    assert asked == [([30, 15], True), ([None, None], False)]
    # Crops of other faces do not change, so a model takes photographs that are searched in either way.
    assert crops.Recipe("landmarks", smallest_face=30, rotate=True).contract() == crops.Recipe("landmarks").contract()


def test_landmarks_of_the_source_are_used(photographs, tmp_path):
    marks = align.template(150, 0.2)
    text = " ".join(f"{number:.3f}" for number in marks.ravel())
    (photographs / "marked.csv").write_text(f"path,age,landmarks\nnobody.png,50,{text}\none.png,32,\n")
    prepare.prepare(photographs / "marked.csv", tmp_path / "out", workers=1, size=96, ratio="1:1")
    dataset = records.open_dataset(tmp_path / "out")
    assert dataset.column("cut_by").tolist() == ["source", "mtcnn"]
    np.testing.assert_allclose(dataset.column("landmarks")[0], marks.ravel(), atol=1e-3)


def saved_turned(picture, orientation):
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    picture.save(buffer, "PNG", exif=exif)
    return buffer.getvalue()


def records_of(encoded, landmarks, size=96):
    row = {"name": "x", "landmarks": None if landmarks is None else np.ravel(landmarks).tolist()}
    made = stored.stored([row], 0, lambda row: Picture(encoded), crops.Recipe("landmarks", size))
    return [result for _, _, result in made]


def test_landmarks_are_those_of_the_photograph_that_exif_turned():
    picture = Image.fromarray(synthetic.draw_face(0, 30.0, 0, 200, 0)[0])
    encoded = saved_turned(picture.rotate(90, expand=True), 6)
    upright = align.template(150, 0.2) + [20, 10]
    (right,) = records_of(encoded, upright)
    (plain,) = records_of(saved_turned(picture, 1), upright)
    assert right.encoded == plain.encoded
    (refused,) = records_of(encoded, np.stack([upright[:, 1], 199 - upright[:, 0]], axis=1))
    assert "measured before the EXIF orientation turned the photograph by 90 degrees" in str(refused)


def test_a_photograph_that_is_used_smaller_keeps_its_coordinates(monkeypatch):
    face = Image.fromarray(synthetic.draw_face(1, 30.0, 0, 400, 0)[0])
    large = Image.new("RGB", (1000, 800), (90, 100, 110))
    large.paste(face, (300, 200))
    marks = align.template(400, 0.3) + [300, 200]

    def detected(pictures):
        reduced = 1000 / pictures[0].width if pictures else 1
        inside = (marks + 0.5) / reduced - 0.5
        box = (np.array([300, 200, 700, 600]) + 0.5) / reduced - 0.5
        return [[detect.Face(box, inside, 1.0)]] * len(pictures)

    monkeypatch.setattr(detect, "detect", lambda pictures, *how: detected(pictures))
    encoded = saved_turned(large, 1)
    monkeypatch.setattr(images, "decode_all", lambda many: [pixels.decode(encoded) for encoded in many])  # in here
    results = []
    for kept in (800_000, 200_000):
        monkeypatch.setattr(pixels, "MAX_KEPT_PIXELS", kept)
        results.append((*records_of(encoded, marks), *records_of(encoded, None)))
    for whole, small in zip(*results, strict=True):
        assert (small.columns["width"], small.columns["height"]) == (1000, 800)
        np.testing.assert_allclose(small.columns["landmarks"], marks.ravel(), atol=1e-6)
        assert small.columns["scale"] == pytest.approx(whole.columns["scale"])
        levels = [np.asarray(images.load(each.encoded), float) for each in (whole, small)]
        assert np.abs(levels[0] - levels[1]).mean() < 4
        assert perceptual_hash.distance(whole.columns["phash"], small.columns["phash"]) < 40
    np.testing.assert_allclose(results[1][1].columns["box"], [300, 200, 700, 600], atol=1e-6)


def test_other_choices_are_another_recipe(photographs, tmp_path):
    made(photographs, tmp_path / "out", ratio="1:1")
    for name, value in {"margin": 0.3, "faces": "all", "align": "none"}.items():
        with pytest.raises(InputError, match=f"another recipe .*{name}: "):
            made(photographs, tmp_path / "out", ratio="1:1", **{name: value})


def test_a_photograph_gives_the_same_crop_alone_and_in_any_list(photographs):
    """To the tolerance of docs/results.md."""
    pictures = [crops.Photograph(Image.open(photographs / name).convert("RGB")) for name in ("scene.jpg", "one.png")]
    recipe = crops.Recipe("landmarks", 96, faces="all")
    together = crops.cut([*pictures[::-1], *pictures], recipe)
    for number, picture in enumerate(pictures):
        (alone,) = crops.cut([picture], recipe)
        for one, two in zip(alone, together[2 + number], strict=True):
            difference = np.abs(np.asarray(one.image, int) - np.asarray(two.image, int)).max(axis=2)
            assert difference.max() <= 1 and (difference > 0).mean() <= 1e-3


@pytest.mark.slow
def test_one_process_and_several_make_the_same_shards(photographs, tmp_path):
    words = ["--reader", "csv", "--source", str(photographs / "faces.csv"), "--shards", "2", "--size", "96"]
    alone = [*words, "--ratio", "1:1", "--workers", "1", "--out", str(tmp_path / "1")]
    # A worker alone is the program's own process; of several, each is one that this one starts.
    command = [sys.executable, "-m", "lae_jax.prepare", *alone]
    subprocess.run(command, cwd=ROOT, timeout=300, check=True, capture_output=True)
    prepare.prepare(photographs / "faces.csv", tmp_path / "2", shards=2, size=96, ratio="1:1", workers=2)
    one, two = ([path.read_bytes() for path in sorted((tmp_path / n).glob("*array_record*"))] for n in "12")
    assert len(one) == 2 and one == two


@pytest.fixture
def with_accelerator(photographs, tmp_path, monkeypatch):
    """A data set of two shards by two workers, as where JAX has an accelerator, with another way to find faces."""
    monkeypatch.setattr(assembly, "_has_accelerator", lambda: True)
    source = tmp_path / "faces.csv"
    source.write_text("path,age\n" + "one.png,32\nscene.jpg,30\n" * 12)  # more rows a shard than are read together

    def prepared(find, workers=2, name="out"):
        monkeypatch.setattr(detect, "detect", find)
        how = {"shards": 2, "size": 96, "ratio": "1:1", "undetected": "centre", "workers": workers}
        prepare.prepare(source, tmp_path / name, images=photographs, **how)
        return [path.read_bytes() for path in sorted((tmp_path / name).glob("*array_record*"))]

    return prepared


def test_with_an_accelerator_one_process_makes_several_shards_at_a_time(with_accelerator):
    processes, both = set(), threading.Barrier(2)

    def find(pictures, *_):
        both.wait(60)  # raises an error where the second shard waits for the first one
        processes.add(os.getpid())
        return [[]] * len(pictures)

    found = with_accelerator(find)
    assert processes == {os.getpid()} and len(found) == 2
    assert found == with_accelerator(lambda pictures, *_: [[]] * len(pictures), workers=1, name="alone")


def test_with_an_accelerator_a_failure_ends_all_shards(with_accelerator, tmp_path, monkeypatch):
    both, told = threading.Barrier(2), threading.Event()

    def find(pictures, *_):
        if both.wait(60) == 0:
            raise InputError("the accelerator is lost")
        told.wait(60)
        return [[]] * len(pictures)

    monkeypatch.setattr(assembly, "end_all", lambda kind, stop, *rest: end_all(kind, stop, told.set, *rest))

    with pytest.raises(InputError, match="the accelerator is lost"):
        with_accelerator(find)
    assert not [*(tmp_path / "out").glob("*.array_record-*")]


def test_a_contract_gives_its_recipe_again():
    recipe = crops.Recipe("landmarks", 200, 0.3, 90)
    assert crops.Recipe.of_contract(recipe.contract(), faces="all") == crops.Recipe("landmarks", 200, 0.3, 90, "all")
    with pytest.raises(InputError, match="ready-made crops"):
        crops.Recipe.of_contract(crops.UNKNOWN)
    with pytest.raises(InputError, match=r"differently from .* \((.* there and .* here)+\): install"):
        crops.Recipe.of_contract({**recipe.contract(), "detector": "mtcnn 0.1"})
    assert crops.Recipe.of_contract({**recipe.contract(), "detector": "mtcnn 0.1"}, allow_other=True) == recipe


def test_of_two_contracts_the_fields_that_differ_are_told_and_what_to_do():
    there, here = crops.Recipe("landmarks", 200, 0.3).contract(), crops.Recipe("landmarks", 200, 0.1).contract()
    assert crops.differing(there, here) == "margin 0.3 there and 0.1 here"
    assert crops.how_to_cut_alike(there, here) == "prepare the data with --margin 0.3"
    assert "mtcnn 0.1 there and mtcnn 1.0.0 here" in crops.differing({**there, "detector": "mtcnn 0.1"}, there)
    assert crops.differing(crops.UNKNOWN, here).startswith(
        "there: ready-made crops, cut in an unknown way; here: align"
    )
    assert "--align none" in crops.how_to_cut_alike(crops.UNKNOWN, here)
    assert "from photographs" in crops.how_to_cut_alike(there, crops.UNKNOWN)


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 8},
        {"quality": 0},
        {"margin": 2.0},
        {"align": "eyes"},
        {"faces": "both"},
        {"smallest_face": 19, "align": "landmarks"},
        {"rotate": True},
        {"smallest_face": 24.5, "align": "landmarks"},
        {"smallest_face": 24},
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong)).replace("_", "[_-]")):
        crops.Recipe(**wrong)
