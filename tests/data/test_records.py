"""The prepared data set: resumable, checked, open to TFDS, with the splits that were asked for."""

import csv
import functools
import io
import json
import os

import numpy as np
import pytest
import tensorflow_datasets as tfds
from pictures import photograph
from PIL import Image
from sources import make_source, rejected, run

from lae_jax.data import records, shards
from lae_jax.data.rejected import not_processed
from lae_jax.data.sources import readers
from lae_jax.faces import crops, images, perceptual_hash
from lae_jax.prepare import assembly
from lae_jax.runtime.errors import InputError


def test_columns_images_and_splits(source, tmp_path):
    manifest = run(tmp_path / "out", "--source", source, "--shards", 3)
    dataset = records.open_dataset(tmp_path / "out")
    assert len(dataset) == manifest["count"] == 30
    np.testing.assert_array_equal(dataset.column("age"), 20.0 + np.arange(30))
    rows = [dataset.rows(name) for name in ("train", "validation", "test")]
    assert sorted(np.concatenate(rows)) == list(range(30)) and [len(some) for some in rows] == [24, 3, 3]
    train, validation, test = ({*dataset.column("identity")[some]} for some in rows)
    assert not train & validation and not (train | validation) & test
    assert manifest["protocol"] == "identity" and manifest["reasons"] == {}


def test_jpeg_that_needs_no_change_keeps_its_bytes(source, tmp_path):
    run(tmp_path / "out", "--source", source, "--shards", 2)
    data = tfds.builder_from_directory(str(tmp_path / "out")).as_data_source(
        "images", decoders={"image": tfds.decode.SkipDecoding()}
    )
    assert len(data) == 30
    for i in (0, 17, 29):
        assert data[i]["image"] == (source.parent / f"{i}.jpg").read_bytes() and data[i]["row"] == i


def test_larger_and_foreign_images_are_brought_into_form(tmp_path):
    folder = tmp_path / "src"
    folder.mkdir()
    Image.new("RGB", (300, 400), (200, 30, 30)).save(folder / "large.jpg")
    Image.new("RGBA", (40, 30), (0, 250, 0, 128)).save(folder / "alpha.png")
    Image.new("CMYK", (40, 30)).save(folder / "cmyk.jpg")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (40, 20)).save(folder / "turned.jpg", exif=turned)
    deep = np.linspace(0, 65535, 600, dtype=np.uint16).reshape(20, 30)
    Image.fromarray(deep).save(folder / "deep.png")
    names = ["large.jpg", "alpha.png", "cmyk.jpg", "turned.jpg", "deep.png"]
    csv_path = make_source(folder, [(name, 30, "") for name in names])
    run(tmp_path / "out", "--source", csv_path, "--size", 64, "--ratio", "1:1")
    data = tfds.builder_from_directory(str(tmp_path / "out")).as_data_source("images")
    shapes = [example["image"].shape for example in data]
    assert shapes == [(85, 64, 3), (30, 40, 3), (30, 40, 3), (40, 20, 3), (20, 30, 3)]
    assert abs(data[4]["image"].astype(int)[..., 0] - deep // 256).max() <= 3


def test_started_again_after_a_kill_it_ends_the_same(source, tmp_path):
    run(tmp_path / "whole", "--source", source, "--shards", 5)
    out = tmp_path / "out"
    written = []

    def killed(task, tick, original=shards.write_shard):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(task.index)
        return original(task, tick=tick)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shards, "write_shard", killed)
        run(out, "--source", source, "--shards", 5)
    (out / "faces-images.array_record-00003-of-00005.incomplete").write_bytes(b"half")
    with pytest.raises(InputError, match="unfinished"):
        records.open_dataset(out)
    kept = {path.name: path.stat().st_mtime_ns for path in out.glob("*.array_record-*-of-00005")}
    assert len(kept) == 3
    manifest = run(out, "--source", source, "--shards", 5)
    assert manifest == json.loads((tmp_path / "whole" / "dataset.json").read_text())
    assert all((out / name).stat().st_mtime_ns == time for name, time in kept.items())


@pytest.mark.parametrize("workers", [1, 2])
def test_progress_is_told_row_by_row(source, tmp_path, workers):
    options = readers.Options(str(source.parent))
    rows, told = readers.READERS["csv"]([str(source)], options), []
    tasks = shards.plan(rows, tmp_path / "out", "csv", crops.Recipe(), 2)
    assembly.Processes(str(tmp_path / "out"), workers).write(tasks, told.append)
    assert sum(told) == 30 and (workers > 1 or max(told) == 1)


@pytest.mark.parametrize("damage", ["a byte", "cut", "emptied"])
def test_a_shard_that_was_damaged_is_made_again(source, tmp_path, damage, caplog):
    run(tmp_path / "out", "--source", source)
    (shard,) = (tmp_path / "out").glob("*array_record*")
    whole, manifest = shard.read_bytes(), (tmp_path / "out" / "dataset.json").read_text()
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 1
    shard.write_bytes({"a byte": bytes(changed), "cut": whole[:-9], "emptied": b""}[damage])
    run(tmp_path / "out", "--source", source)
    assert shard.read_bytes() == whole and (tmp_path / "out" / "dataset.json").read_text() == manifest
    records.open_dataset(tmp_path / "out")


def test_a_data_set_that_was_looked_at_is_whole_and_is_made_again(source, tmp_path):
    out = tmp_path / "out"
    manifest = run(out, "--source", source)
    (out / "dataset.json").unlink()
    for folder in (out, out / "splits", out / "parts"):
        for name in (".DS_Store", "Thumbs.db"):
            (folder / name).write_text("litter")
        (folder / ".ipynb_checkpoints").mkdir()
    assert run(out, "--source", source) == manifest
    assert len(records.open_dataset(out)) == 30


def test_absolute_paths_are_fine_inside_the_image_folder(tmp_path):
    rows = [(f"{i}.png", 20 + i, f"p{i}") for i in range(6)]
    path = make_source(tmp_path / "source", rows)
    path.write_text(
        "path,age\n" + "".join(f"{tmp_path}/source/{i}.png,{20 + i}\n" for i in range(6)) + "/etc/hosts,3\n"
    )
    run(tmp_path / "out", "--source", str(path))
    assert len(records.open_dataset(tmp_path / "out")) == 6
    rejected = (tmp_path / "out" / "rejected.csv").read_text()
    assert "/etc/hosts" in rejected and "leads out" in rejected
    run(tmp_path / "root", "--source", str(path), "--images", "/")


def test_several_processes_write_the_same_bytes(source, tmp_path):
    one = run(tmp_path / "one", "--source", source, "--shards", 3)
    two = run(tmp_path / "two", "--source", source, "--shards", 3, "--workers", 2)
    assert one == two


@pytest.mark.parametrize(("text", "message"), [
    ("", "is empty"), ("path,age\n", "no line below"), ("path,years\na.jpg,3\n", "no column `age`"),
    ("age,identity\n3,p\n", "names no column"), ("path,age,age\na.jpg,3,4\n", "'age' twice"),
    ("a.jpg,x\n", "names no column"),
])  # fmt: skip
def test_a_csv_that_cannot_be_used(tmp_path, text, message):
    (tmp_path / "faces.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        run(tmp_path / "out", "--source", tmp_path / "faces.csv")


def test_csv_without_header_and_further_columns(source, tmp_path):
    bare = source.parent / "bare.csv"
    bare.write_text("".join(f"{i}.jpg,{i + 0.5}\n" for i in range(10)))
    run(tmp_path / "bare", "--source", bare)
    np.testing.assert_array_equal(records.open_dataset(tmp_path / "bare").column("age"), np.arange(10) + 0.5)
    further = source.parent / "further.csv"
    points = "1 2 3 4 5 6 7 8 9 10.5"
    text = "".join(f"c{i},{i}.jpg,{i},n{i},9,{points}\n" for i in range(10))
    further.write_text("Camera,File,Age,Name,Width,Landmarks\n" + text + "c,1.jpg,1,n,9,1 2 x\n")
    run(tmp_path / "further", "--source", further)
    dataset = records.open_dataset(tmp_path / "further")
    assert dataset.column("camera").tolist() == [f"c{i}" for i in range(10)]
    assert dataset.column("name")[3] == "3.jpg" and dataset.column("source_name")[3] == "n3"
    assert dataset.column("width")[0] == 24 and dataset.column("landmarks")[0][9] == 10.5
    assert "not ten numbers" in rejected(tmp_path / "further")["1.jpg"]


def test_splits_of_several_csvs_keep_a_doubled_file_on_one_side(source, tmp_path):
    folder = source.parent
    (folder / "copy.jpg").write_bytes((folder / "3.jpg").read_bytes())
    (folder / "train.csv").write_text("path,age\n" + "".join(f"{i}.jpg,{i}\n" for i in range(20)))
    (folder / "val.csv").write_text("path,age\ncopy.jpg,3\n" + "".join(f"{i}.jpg,{i}\n" for i in range(20, 25)))
    manifest = run(
        tmp_path / "out", "--source", f"train={folder}/train.csv", "--source", f"validation={folder}/val.csv"
    )
    assert manifest["splits"] == {"train": 19, "validation": 6} and manifest["protocol"] == "column"
    assert "same file" in rejected(tmp_path / "out")["3.jpg"]


def test_rejected_photographs_keep_their_age_and_split(tmp_path):
    """An age check counts those that could not be processed, and not those that were no photographs."""
    ages = [*map(str, range(12)), "16", "20-29", "17.5", "30", "x"]
    names = [f"{i}.png" for i in range(12)] + ["broken.png", "cut.png", "empty.png", "lost.png", "1.png"]
    splits = ["train" if i % 2 else "test" for i in range(12)] + ["test", "test", "train", "test", "test"]
    rows = [(name, age, split) for name, age, split in zip(names, ages, splits, strict=True)]
    path = make_source(tmp_path / "source", rows, "path,age,split")
    for name, content in (("broken.png", b"no image"), ("cut.png", b"neither"), ("empty.png", b"")):
        (path.parent / name).write_bytes(content)
    (path.parent / "lost.png").unlink()
    out = tmp_path / "out"
    assert run(out, "--source", path)["protocol"] == "column"
    with open(out / "rejected.csv") as file:
        found = {row["name"]: [*row.values()][2:] for row in csv.DictReader(file)}
    assert found == {
        "broken.png": ["16.0", "16.0", "test"],
        "cut.png": ["20.0", "29.0", "test"],
        "empty.png": ["17.5", "17.5", "train"],
        "lost.png": ["30.0", "30.0", "test"],
        "1.png": ["", "", ""],
    }
    read = functools.partial(not_processed, out / "rejected.csv")
    assert read("test") == ({(16, 16): 1, (20, 29): 1}, 1) and read("train") == ({(17.5, 17.5): 1}, 1)
    assert read(None) == ({(16, 16): 1, (17.5, 17.5): 1, (20, 29): 1}, 1)


def test_lists_of_rejected_rows_that_do_not_tell_ages_are_read_as_unknown(tmp_path):
    listed = tmp_path / "rejected.csv"
    for text, known in (("name,reason\na,no face found\n", None), ("name,reason\n", ({}, 0)), ("name,rea", None)):
        listed.write_text(text)
        assert not_processed(listed, None) == known
    listed.write_text("name,reason,age_low,age_high,split\na,no face found,1\n")
    assert not_processed(listed, None) is None and not_processed(tmp_path / "no.csv", None) is None
    listed.write_text("name,reason,age_low,age_high,split\na,no face found,nan,-3,\n")
    assert not_processed(listed, None) == ({}, 1)
    # A part that an earlier version wrote.
    out = tmp_path / "out"
    source = make_source(tmp_path / "source", [(f"{i}.png", i, f"p{i}") for i in range(12)])
    (source.parent / "3.png").write_bytes(b"no image")
    run(out, "--source", source, "--shards", 2)
    for name in ("dataset.json", "rejected.csv"):
        (out / name).unlink()
    part = out / "parts" / "00000.json"
    content = json.loads(part.read_text())
    assert [row[2:] for row in content["rejected"]] == [["3.0", "3.0", ""]]
    part.write_text(json.dumps(content | {"rejected": [row[:2] for row in content["rejected"]]}))
    assert run(out, "--source", source, "--shards", 2)["rejected"] == 1
    assert not_processed(out / "rejected.csv", None) == ({}, 1)


def test_a_folder_a_person(tmp_path):
    for person in ("anna", "ben", "cleo"):
        (tmp_path / "people" / person).mkdir(parents=True)
        for i in range(3):
            pixels = np.random.default_rng([i, ord(person[0])]).integers(0, 255, (16, 16), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "people" / person / f"{i}.png")
    run(tmp_path / "out", "--reader", "folders", "--source", tmp_path / "people", "--ratio", "2:1")
    dataset = records.open_dataset(tmp_path / "out")
    assert dataset.column("identity").tolist() == ["anna"] * 3 + ["ben"] * 3 + ["cleo"] * 3
    assert len(dataset.rows("validation")) == 3 and np.isnan(dataset.column("age")).all()


def test_drawn_faces_come_with_landmarks(drawn):
    dataset = records.open_dataset(drawn)
    assert dataset.manifest["splits"] == {"train": 96, "validation": 64, "test": 16}
    landmarks = np.stack(dataset.column("landmarks"))
    assert landmarks.shape == (176, 10) and (landmarks[:, 0] < landmarks[:, 2]).mean() > 0.99


@pytest.mark.parametrize("damage", ["flip", "cut", "delete", "columns", "split", "manifest"])
def test_damage_is_found_when_the_data_set_is_opened(source, tmp_path, damage):
    out = tmp_path / "out"
    run(out, "--source", source, "--shards", 2)
    records.open_dataset(out)
    shard = next(out.glob("*.array_record-00001*"))
    target = {
        "columns": out / "columns.parquet",
        "split": out / "splits" / "train.npz",
        "manifest": out / "dataset.json",
    }.get(damage, shard)
    content = bytearray(target.read_bytes())
    if damage == "delete":
        target.unlink()
    elif damage == "cut":
        target.write_bytes(content[:-1])
    elif damage == "manifest":
        target.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 3] ^= 1
        target.write_bytes(content)
    with pytest.raises(InputError, match=target.name):
        records.open_dataset(out)


def test_checksums_are_computed_once_for_each_state_of_a_file(source, tmp_path, monkeypatch):
    out = tmp_path / "out"
    run(out, "--source", source)
    computed = []
    monkeypatch.setattr(
        records, "sha256_of", lambda path, original=records.sha256_of: computed.append(path.name) or original(path)
    )
    records.open_dataset(out)
    assert sorted(computed) == sorted({*computed}) and {"columns.parquet", "train.npz"} < {*computed}
    before = len(computed)
    records.open_dataset(out)
    assert len(computed) == before
    os.utime(out / "columns.parquet", (0, 0))
    records.open_dataset(out)
    assert computed[before:] == ["columns.parquet"]


def test_unknown_names_say_what_there_is(drawn, tmp_path):
    dataset = records.open_dataset(drawn)
    with pytest.raises(InputError, match="did you mean 'validation'"):
        dataset.rows("validaton")
    with pytest.raises(InputError, match="not a prepared data set"):
        records.open_dataset(tmp_path)
    with pytest.raises(InputError, match="mount"):
        records.open_dataset("gs://bucket/faces")


def test_store_form_gives_the_size_of_the_source():
    encoded = images.encode(Image.new("RGB", (30, 50)), 90)
    assert images.store_forms([encoded], 64, 90) == [(encoded, perceptual_hash.of(encoded), 30, 50)]


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_keeps_its_bytes_is_read_as_strictly_as_by_a_whole_decode(progressive):
    buffer = io.BytesIO()
    Image.fromarray(photograph(90, 80, 0)).save(buffer, "JPEG", quality=80, progressive=progressive)
    rng = np.random.default_rng(0)
    many = []
    for _ in range(300):
        damaged = bytearray(buffer.getvalue())
        if rng.random() < 0.3:
            del damaged[rng.integers(len(damaged)) :]
        for place in rng.integers(len(damaged), size=rng.integers(4)) if damaged else ():
            damaged[place] = rng.integers(256)
        many.append(bytes(damaged))
    found = (images.decode_all(many), images.store_forms(many, 256, 90))
    whole, kept = ([str(one) if isinstance(one, images.BadImage) else "" for one in each] for each in found)
    assert whole == kept
    refused = sum(map(bool, whole))
    assert 60 < refused < 280
