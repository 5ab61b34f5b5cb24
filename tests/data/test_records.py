"""The prepared data set: resumable, checked, open to TFDS, with the splits that were asked for."""

import csv
import io
import json
import os
import re
import types

import numpy as np
import pytest
import tensorflow_datasets as tfds
from pictures import photograph
from PIL import Image

from lae_jax import prepare
from lae_jax.data import joining, records, shards
from lae_jax.data.sources import readers
from lae_jax.faces import crops, images, perceptual_hash
from lae_jax.prepare import __main__ as door
from lae_jax.prepare import assembly, sheets
from lae_jax.runtime.errors import InputError


def make_source(folder, rows, header="path,age,identity"):
    """Writes pictures and a CSV of (name, age, identity); every picture differs, unless names are (name, same as)."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [header]
    for i, (name, age, identity) in enumerate(rows):
        if not (folder / name).exists():
            pixels = np.random.default_rng(i).integers(0, 255, (20, 24, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name)
        lines.append(f"{name},{age},{identity}")
    (folder / "faces.csv").write_text("\n".join(lines) + "\n")
    return folder / "faces.csv"


def run(out, *args):
    words = [str(word) for word in ("--out", out, "--workers", 1, "--align", "none", *args)]
    if "--reader" not in words:
        words += ["--reader", "csv"]
    return prepare.prepare(**door.parse_args(words))


def rejected(out):
    with open(out / "rejected.csv") as file:
        return {row["name"]: row["reason"] for row in csv.DictReader(file)}


@pytest.fixture
def source(tmp_path):
    return make_source(tmp_path / "src", [(f"{i}.jpg", 20 + i, f"p{i // 3}") for i in range(30)])


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


def test_a_command_that_found_nothing_leaves_only_its_reasons(source, tmp_path):
    told = "none of 30 images can be used: 30 x file not found, for example 0.jpg.*--images"
    with pytest.raises(InputError, match=told):
        run(tmp_path / "out", "--source", source, "--images", str(tmp_path))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["rejected.csv"]
    assert rejected(tmp_path / "out") == {f"{i}.jpg": "file not found" for i in range(30)}
    (tmp_path / "no.csv").write_text("path,age\na.jpg,old\nb.jpg,130\nc.jpg,140\n")
    with pytest.raises(InputError, match="no usable row. 3 rejected: 2 x age … is outside 0 to 100.*column of ages"):
        run(tmp_path / "no", "--source", tmp_path / "no.csv")
    assert rejected(tmp_path / "no")["c.jpg"] == "age '140' is outside 0 to 100"
    with pytest.raises(InputError, match="holds only rejected.csv"):
        records.open_dataset(tmp_path / "no")
    with pytest.raises(InputError, match="is a folder: name its CSV, or use --reader folders"):
        run(tmp_path / "out", "--source", source.parent)
    run(tmp_path / "out", "--source", source)
    fewer = make_source(tmp_path / "fewer", [(f"{i}.jpg", 20 + i, f"p{i // 3}") for i in range(24)])
    with pytest.raises(InputError, match=r"another recipe \(other rows: 30 there, 24 now"):
        run(tmp_path / "out", "--source", fewer)


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


def test_what_a_file_manager_left_does_not_keep_what_cannot_be_used(source, tmp_path, monkeypatch):
    def looked_at(*args):
        for folder in (tmp_path / "out", tmp_path / "out" / "parts"):
            (folder / ".DS_Store").write_text("litter")
        return write(*args)

    write = joining.refusals.write
    monkeypatch.setattr(joining.refusals, "write", looked_at)
    with pytest.raises(InputError, match="nothing else was kept"):
        run(tmp_path / "out", "--source", source, "--images", str(tmp_path))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"rejected.csv", ".DS_Store"}


@pytest.mark.parametrize(
    "out, complete, told",
    [
        ("out", 0, r"out: no shard was complete yet \(3 shards of at most 64 images\): run .* to start again"),
        ("out", 2, r"out keeps 2 of 3 shards \(128 of 150 images\): run .* to continue"),
        ("gs://b/out", 2, "gs://b/out keeps the complete shards: run .* to continue"),
    ],
)
def test_what_a_stopped_preparation_keeps_is_told(out, complete, told, tmp_path):
    tasks = []
    for number, rows in enumerate((64, 64, 22)):
        path = tmp_path / str(number)
        if number < complete:
            path.touch()
        tasks.append(types.SimpleNamespace(path=path, num_rows=rows, source_rows=150))
    assert re.fullmatch(told, assembly._kept(out, tasks))


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


def test_another_recipe_in_the_same_folder_is_refused(source, tmp_path):
    run(tmp_path / "out", "--source", source)
    with pytest.raises(InputError, match="size: 256 there, 64 now"):
        run(tmp_path / "out", "--source", source, "--size", 64)
    with pytest.raises(InputError, match="images:"):
        run(tmp_path / "out", "--source", source, "--images", tmp_path)


@pytest.mark.parametrize(("words", "message"), [
    (["--seed", "-1"], "seed is -1: it must be at least 0"),
    (["--ratio", "4x1"], "4:1"), (["--folds", "1"], "at least 2"),
    (["--quality", "0"], "1 to 100"), (["--by", "identity"], "no identities"),
    (["--folds", "3", "--ratio", "8:1:1"], "write 9:1, all folds : test"),
    (["--folds", "6", "--ratio", "9:1"], "too few for 6 folds and a test split. What works: --folds 6 without --ratio"),
    (["--folds", "7"], r"6 images: too few for 7 folds. What works: --folds 6, or more images"),
    (["--ratio", "1:9000000"], "at most 1,000,000"),
])  # fmt: skip
def test_wrong_flags(tmp_path, words, message):
    source = make_source(tmp_path / "src", [(f"{i}.jpg", 20, "") for i in range(6)])
    with pytest.raises(InputError, match=message):
        run(tmp_path / "out", "--source", source, *words)
    assert not (tmp_path / "out").exists()


def test_too_few_people_are_told_what_works(tmp_path):
    source = make_source(tmp_path / "src", [(f"{i}.jpg", 20 + i, f"p{i % 2}") for i in range(6)])
    told = r"2 people in 6 images: too few for 3 splits. What works: --ratio 4:1 \(without test\), or --by image"
    with pytest.raises(InputError, match=told):
        run(tmp_path / "out", "--source", source)
    assert run(tmp_path / "two", "--source", source, "--ratio", "4:1")["splits"] == {"train": 3, "validation": 3}
    with pytest.MonkeyPatch.context() as patch, pytest.raises(InputError, match="2 people in 6 images"):
        patch.setattr(assembly, "_FEW", 5)
        run(tmp_path / "many", "--source", source)
    by_image = run(tmp_path / "three", "--source", source, "--by", "image")["splits"]
    assert by_image == {"train": 4, "validation": 1, "test": 1}


def test_too_few_usable_rows_are_told_with_the_reasons_of_the_others(tmp_path):
    source = make_source(tmp_path / "src", [(f"{i}.jpg", 20 if i < 2 else "3-9", "") for i in range(26)])
    told = "2 images: too few for 3 splits.*24 rejected: 24 x age '3-9'.*column of ages.*/out/rejected.csv lists all"
    with pytest.raises(InputError, match=told):
        run(tmp_path / "out", "--source", source)
    assert rejected(tmp_path / "out").keys() == {f"{i}.jpg" for i in range(2, 26)}
    run(tmp_path / "out", "--source", source, "--ratio", "1:1")
    written = (tmp_path / "out" / "rejected.csv").read_bytes()
    source.write_text(source.read_text().replace("1.jpg,20", "1.jpg,"))
    with pytest.raises(InputError, match="1 image: too few.*25 rejected: 24 x age '3-9'.* 2.jpg; 1 x no age"):
        run(tmp_path / "out", "--source", source)
    assert (tmp_path / "out" / "rejected.csv").read_bytes() == written


@pytest.mark.parametrize("spoilt", [5, 1])
def test_a_split_that_rejected_images_leave_empty_is_told_with_their_reasons(tmp_path, spoilt):
    people = [f"p{i % 3}" for i in range(6)] if spoilt == 5 else ["a"] * 5 + ["b"]
    source = make_source(tmp_path / "src", [(f"{i}.jpg", 20, people[i]) for i in range(6)])
    for i in range(6 - spoilt, 6):
        (source.parent / f"{i}.jpg").write_text("no image")
    why = (
        rf"'validation' would be empty \({6 - spoilt} of 6 images .*Rejected: {spoilt} x not an image that can be read"
    )
    end = {5: "Correct the source; or choose another --ratio.*nothing else", 1: "Choose another .* images are kept"}
    with pytest.raises(InputError, match=f"{why}, for example.*{end[spoilt]}"):
        run(tmp_path / "out", "--source", source, "--ratio", "4:1", "--shards", 2)
    assert len(rejected(tmp_path / "out")) == spoilt
    assert (tmp_path / "out" / "recipe.json").exists() == (spoilt == 1)


def test_the_program_shows_groups_crops_and_reasons_and_warns_of_many_rejected(tmp_path, capsys, caplog):
    ages = [0, 0.4, 10.5, 81.5, 81.4, 20]
    source = make_source(tmp_path / "src", [(f"{i}.jpg", ages[i % 6], "") for i in range(30)])
    source.write_text(source.read_text() + "3.jpg,130,\n" + "".join(f"gone{i}.jpg,5,\n" for i in range(8)))
    words = ["--reader", "csv", "--source", str(source), "--align", "none", "--workers", "1", "--out"]
    caplog.set_level("INFO", "lae_jax")
    door.main([*words, str(tmp_path / "out")])
    told = capsys.readouterr().out
    rows = {line.split()[0]: line.split()[1:] for line in told.splitlines()[:14] if line.strip()}
    assert rows["age"] == ["train", "validation", "test"] and sum(map(int, rows["all"])) == 30
    assert {name: sum(map(int, rows[name])) for name in ("0", "1-10", "11-20", "71-81", "82+")} == {
        "0": 10, "1-10": 0, "11-20": 10, "71-81": 5, "82+": 5
    }  # fmt: skip
    assert all(int(count) for name in ("0", "82+") for count in rows[name])
    assert "rejected: 8 x file not found" in told and "rejected: 1 x age '130' is outside 0 to 100" in told
    assert f"look at {tmp_path}/out/crops.jpg and {tmp_path}/out/rejected.jpg" in told and "next: python -m" in told
    last = caplog.records[-1].getMessage()
    assert last.startswith("WARNING: 9 of 39 images (23%) were rejected, 8 x file not found.") and "--images" in last
    # The sheets are of this state, and do not change what a run checks.
    before = records.open_dataset(tmp_path / "out", "full").hash
    make_source(tmp_path / "src", [(f"{i}.jpg", 20, "") for i in range(30)])
    caplog.clear()
    door.main([*words, str(tmp_path / "few")])
    assert records.open_dataset(tmp_path / "few").hash != before and not (tmp_path / "few" / "rejected.jpg").exists()
    assert "WARNING" not in caplog.text


@pytest.mark.parametrize(("splits", "has_ages", "commands"), [
    (("train", "validation"), True, ["main --config configs/represent.py --config.data.path=o", "configs/small.py"]),
    (("train", "validation"), False, ["main --config configs/pretrain.py --config.data.path=o"]),
    (("fold0-train", "fold0-validation"), True, ["configs/represent.py --config.data.path=o --config.data.fold=0"]),
    (("test",), True, ["evaluate --run RUN --data o --split test"]),
])  # fmt: skip
def test_the_next_command_fits_the_splits(splits, has_ages, commands):
    lines = door.next_commands(splits, "o", has_ages)
    assert len(lines) == len(commands) and all(part in line for part, line in zip(commands, lines, strict=True))
    assert all(("--config.init_from=" in line) == ("data.path" in line) for line in lines)


def test_a_sheet_shows_many_ages_and_every_reason():
    ages = np.r_[np.full(500, 25.0), np.arange(1, 81), np.nan]
    chosen = ages[sheets.over_ages(ages, 64)]
    assert len({*chosen[1:]}) == 63 and np.isnan(chosen[0]) and (np.diff(chosen[1:]) > 0).all()
    few = ages[sheets.over_ages(ages[490:520], 25) + 490]
    assert (few == 25).sum() == 5 and len({*few}) == 21 and len(few) == 25
    assert sorted(sheets.over_ages(ages[:3], 64)) == [0, 1, 2]
    rows = [*((f"a{i}", f"age '{i}' is wrong") for i in range(30)), ("b", "empty file"), ("c", "file not found")]
    assert [name for name, _ in sheets.in_turn(rows, 5)] == ["a0", "b", "c", "a1", "a2"]


def test_bad_rows_and_images_are_rejected_with_their_reason(tmp_path):
    folder = tmp_path / "src"
    folder.mkdir()
    (folder / "text.jpg").write_text("no image")
    (folder / "empty.jpg").write_bytes(b"")
    pixels = np.random.default_rng(0).integers(0, 255, (60, 60, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "whole.jpg")
    (folder / "cut.jpg").write_bytes((folder / "whole.jpg").read_bytes()[:3000])
    Image.new("1", (11000, 10000)).save(folder / "bomb.png")
    rows = [
        ("good.jpg", 5, ""),
        ("fine.jpg", 6, ""),
        ("text.jpg", 5, ""),
        ("empty.jpg", 5, ""),
        ("cut.jpg", 5, ""),
        ("bomb.png", 5, ""),
        ("old.jpg", 101, ""),
        ("young.jpg", -1, ""),
        ("word.jpg", "five", ""),
        ("nan.jpg", "nan", ""),
        ("none.jpg", "", ""),
    ]
    path = make_source(folder, rows)
    path.write_text(path.read_text() + "missing.jpg,5,\n../outside.jpg,5,\n/etc/hostname,5,\n")
    manifest = run(tmp_path / "out", "--source", path, "--ratio", "1:1")
    reasons = rejected(tmp_path / "out")
    assert manifest["count"] == 2 and manifest["rejected"] == len(reasons) == 12
    for name, reason in [
        ("text.jpg", "not an image"),
        ("empty.jpg", "empty file"),
        ("cut.jpg", "does not decode"),
        ("bomb.png", "11000 x 10000 pixels as PNG take 550 MB to decode, more than 500"),
        ("old.jpg", "outside 0 to 100"),
        ("young.jpg", "outside 0 to 100"),
        ("word.jpg", "not a number"),
        ("nan.jpg", "no age ('nan')"),
        ("none.jpg", "no age"),
        ("missing.jpg", "not found"),
        ("../outside.jpg", "leads out"),
        ("/etc/hostname", "leads out"),
    ]:
        assert reason in reasons[name], (name, reasons[name])


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
    assert images.store_form(encoded, 64, 90) == (encoded, perceptual_hash.of(encoded), 30, 50)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_keeps_its_bytes_is_read_as_strictly_as_by_a_whole_decode(progressive):
    buffer = io.BytesIO()
    Image.fromarray(photograph(90, 80, 0)).save(buffer, "JPEG", quality=80, progressive=progressive)
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(buffer.getvalue())
        if rng.random() < 0.3:
            del damaged[rng.integers(len(damaged)) :]
        for place in rng.integers(len(damaged), size=rng.integers(4)) if damaged else ():
            damaged[place] = rng.integers(256)
        verdicts = []
        for read in (images.load, lambda encoded: images.store_form(encoded, 256, 90)):
            try:
                read(bytes(damaged))
                verdicts.append(None)
            except images.BadImage as reason:
                verdicts.append(str(reason))
        assert verdicts[0] == verdicts[1]
        refused += verdicts[0] is not None
    assert 60 < refused < 280


def test_a_data_set_of_another_format_is_refused(source, tmp_path):
    run(tmp_path / "out", "--source", source)
    manifest = json.loads((tmp_path / "out" / "dataset.json").read_text())
    for other in (records.FORMAT + 1, None):
        (tmp_path / "out" / "dataset.json").write_text(json.dumps(manifest | {"format": other}))
        with pytest.raises(InputError, match=f"format {other}, and .* reads {records.FORMAT}: prepare it again"):
            records.open_dataset(tmp_path / "out")
