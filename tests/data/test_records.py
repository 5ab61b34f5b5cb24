"""The prepared data set: resumable, checked, open to TFDS, with the splits that were asked for."""

import csv
import functools
import io
import json
import os
import shutil
import sys
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from pictures import photograph
from PIL import Image
from sources import make_source, rejected, run

from lae_jax.data import chunks, parquet, records, shards
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


def test_a_data_set_of_another_format_is_refused(source, tmp_path):
    run(tmp_path / "out", "--source", source)
    manifest = json.loads((tmp_path / "out" / "dataset.json").read_text())
    for other in (records.FORMAT + 1, None):
        (tmp_path / "out" / "dataset.json").write_text(json.dumps(manifest | {"format": other}))
        with pytest.raises(InputError, match=f"format {other}, and .* reads {records.FORMAT}: prepare it again"):
            records.open_dataset(tmp_path / "out")


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (np.array([0, 176]), "rows from 0 to 176, and the data set has 176 images"),
        (np.array([-1, 3]), "rows from -1 to 3"),
        (np.array([3, 3]), "a row twice"),
        (np.array([1.0, 2.0]), "float64 of shape"),
        (np.array([[1, 2]]), "shape .1, 2."),
        (np.array([1]), "1 rows, and dataset.json says 2"),
        (np.array([None, {}], object), "bytes for object of shape"),
        (np.zeros(10_000, np.int64), "80128 bytes of rows.npy; more than 2432 are not read"),
    ],
)
def test_a_split_whose_checksum_was_written_anew_holds_rows_of_the_data_set(drawn, tmp_path, rows, told):
    out = tmp_path / "out"
    shutil.copytree(drawn, out)
    np.savez(out / "splits" / "test.npz", rows=rows)
    seal(out, "splits/test.npz", splits={"train": 96, "validation": 64, "test": 2})
    with pytest.raises(InputError, match=rf"{out}/splits/test.npz is damaged \(.*{told}"):
        records.open_dataset(out).rows("test")


def large(content):
    """The header of an array that claims 2**60 rows, in a few bytes."""
    return content.replace(b"(16,), }" + b" " * 18, b"(1152921504606846976,), }".ljust(26))


@pytest.mark.parametrize(
    ("method", "flags", "change", "told"),
    [
        (zipfile.ZIP_LZMA, 0, bytes, "rows.npy is encrypted, or compressed by another method"),
        (zipfile.ZIP_BZIP2, 0, bytes, "rows.npy is encrypted, or compressed by another method"),
        (zipfile.ZIP_STORED, 1, bytes, "rows.npy is encrypted, or compressed by another method"),
        (zipfile.ZIP_DEFLATED, 0, large, r"128 bytes for int64 of shape \(1152921504606846976,\)"),
    ],
)
def test_a_split_in_another_archive_than_numpy_writes_is_refused(drawn, tmp_path, method, flags, change, told):
    out = tmp_path / "out"
    shutil.copytree(drawn, out)
    path = out / "splits" / "test.npz"
    with zipfile.ZipFile(path) as archive:
        content = archive.read("rows.npy")
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("rows.npy", change(content))
    content = bytearray(path.read_bytes())
    content[content.rindex(b"PK\1\2") + 8] |= flags
    path.write_bytes(content)
    seal(out, "splits/test.npz")
    with pytest.raises(InputError, match=rf"{out}/splits/test.npz is damaged \(.*{told}"):
        records.open_dataset(out).rows("test")


@pytest.mark.parametrize(
    ("column", "values", "told"),
    [
        ("age", pa.array(["x"] * 176), "column age is string, not double"),
        ("age", pa.array([130.0] * 176), "an age is below 0 or above 100"),
        ("name", pa.array([None] * 176, pa.string()), "column name has no value in 176 rows"),
        ("sha256", None, "column sha256 is missing"),
    ],
)
def test_columns_whose_checksum_was_written_anew_have_the_types_that_programs_read(
    drawn, tmp_path, column, values, told
):
    out = tmp_path / "out"
    shutil.copytree(drawn, out)
    table = pq.read_table(out / "columns.parquet")
    place = table.column_names.index(column)
    table = table.remove_column(place) if values is None else table.set_column(place, column, values)
    pq.write_table(table, out / "columns.parquet")
    seal(out, "columns.parquet")
    with pytest.raises(InputError, match=rf"{out}/columns.parquet is damaged \({told}"):
        records.open_dataset(out)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"age_high": None}, "of the columns age_low and age_high one is missing"),
        ({"age_low": None}, "of the columns age_low and age_high one is missing"),
        ({"age_low": 30.0}, "a range of ages does not lie in 0 to 100"),
        ({"age_high": 101.0}, "a range of ages does not lie in 0 to 100"),
        ({"age_low": -1.0}, "a range of ages does not lie in 0 to 100"),
        ({"age_high": np.nan}, "a range of ages does not lie in 0 to 100"),
        ({"age": 20.0}, "columns age, age_low and age_high contradict each other"),
        ({"age_high": 20.0}, "columns age, age_low and age_high contradict each other"),
        ({}, ""),
    ],
)
def test_columns_of_ranges_that_contradict_each_other_are_refused(drawn, tmp_path, change, told):
    """The first image is 20 to 29 years old."""
    table = pq.read_table(drawn / "columns.parquet")
    columns = {
        "age": table["age"].to_numpy().copy(),
        **{name: table["age"].to_numpy().copy() for name in parquet.RANGE},
    }
    for name, value in {"age": np.nan, "age_low": 20.0, "age_high": 29.0, **change}.items():
        columns[name] = None if value is None else np.append(value, columns[name][1:])
    table = table.drop_columns(["age"])
    for name, values in columns.items():
        if values is not None:
            table = table.append_column(name, pa.array(values, pa.float64(), mask=np.isnan(values)))
    pq.write_table(table, tmp_path / "columns.parquet")
    if told:
        with pytest.raises(InputError, match=rf"columns.parquet is damaged \({told}\): restore it"):
            parquet.read_columns(tmp_path / "columns.parquet", len(table), "restore it")
    else:
        assert len(parquet.read_columns(tmp_path / "columns.parquet", len(table), "restore it")) == len(table)


def with_long_list(table):
    """A list of 30 million numbers in the last row, which take 600 bytes."""
    ends = np.append(np.arange(len(table)), 30_000_000).astype(np.int32)
    values = pa.ListArray.from_arrays(pa.array(ends), pa.array(np.zeros(30_000_000, np.float32)))
    return table.append_column("more", values), {"write_batch_size": 1 << 30}


def with_long_text(table):
    """Texts that each have the text before as their beginning, in a few bytes."""
    column = pa.array(["x" * 1_000_000] * len(table))
    table = table.append_column("more", column)
    return table, {"use_dictionary": False, "column_encoding": {"more": "DELTA_BYTE_ARRAY"}}


def with_bytes(table):
    return table.append_column("more", pa.array([b"x" * 1_000_000] * len(table), pa.binary(1_000_000))), {}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (with_long_list, "column more.list.element has more than 16 values a row"),
        (with_long_text, "column more has another encoding"),
        (with_bytes, r"column more is fixed_size_binary\[1000000\], which no column of prepare is"),
    ],
)
def test_columns_of_a_few_bytes_that_stand_for_many_are_not_read(drawn, tmp_path, change, told):
    out = tmp_path / "out"
    shutil.copytree(drawn, out)
    table, options = change(pq.read_table(out / "columns.parquet"))
    pq.write_table(table, out / "columns.parquet", **options)
    seal(out, "columns.parquet")
    with pytest.raises(InputError, match=rf"{out}/columns.parquet is damaged \({told}"):
        records.open_dataset(out)


def test_the_number_of_values_is_that_of_the_pages_and_not_of_the_metadata(tmp_path):
    table = pa.table({"more": [[1.0] * 70_000, [2.0]]})
    pq.write_table(
        table, tmp_path / "a.parquet", write_batch_size=1 << 30, column_encoding="PLAIN", use_dictionary=False
    )
    content, true, other = (tmp_path / "a.parquet").read_bytes(), b"\xe2\xc5\x08", b"\x80\x80\x04"
    place = content.rindex(true)
    for place in [place for place in range(len(content)) if content[place : place + 3] == true]:
        (tmp_path / "b.parquet").write_bytes(content[:place] + other + content[place + 3 :])
        with pq.ParquetFile(tmp_path / "b.parquet") as file:
            part = file.metadata.row_group(0).column(0)
            if part.num_values == 70_001:
                continue
            assert sum(page.values for page in parquet.pages(tmp_path / "b.parquet", part)) == 70_001
            assert len(file.read()["more"].combine_chunks().values) == 70_001, (
                "Arrow reads them all: this is the attack"
            )
            return
    pytest.fail("the metadata has no number of values")


@pytest.mark.parametrize("layout", ["group_size:1,zstd", "group_size:1,brotli", "group_size:2,snappy"])
def test_a_record_of_a_few_bytes_that_stand_for_many_is_not_unpacked(drawn, tmp_path, layout, monkeypatch):
    out = tmp_path / "out"
    shutil.copytree(drawn, out)
    manifest = json.loads((out / "dataset.json").read_text())
    shard, count = out / manifest["shards"][0]["file"], manifest["shards"][0]["count"]
    writer = array_record_module.ArrayRecordWriter(str(shard), layout)
    for number in range(count):
        writer.write(bytes(chunks.MAX_RECORD_BYTES + 1 if number == 3 else 1000))
    writer.close()
    manifest["shards"][0] |= {"bytes": shard.stat().st_size, "sha256": records.sha256_of(shard)}
    (out / "dataset.json").write_text(json.dumps(manifest))
    if "group_size:2" in layout:
        with pytest.raises(InputError, match="several images in a chunk"):
            records.open_dataset(out)
        return
    dataset = records.open_dataset(out)
    assert dataset.read(np.array([2, count])) and shard.stat().st_size < 1_000_000
    monkeypatch.setattr(dataset, "_source", None)
    with pytest.raises(InputError, match=f"{shard.name} is damaged .*134,217,729 bytes, more than 134,217,728"):
        dataset.read(np.array([3]))


def seal(out, name, **changed):
    """Writes the manifest of a data set anew for a changed file, as a stranger would."""
    manifest = json.loads((out / "dataset.json").read_text()) | changed
    manifest["files"][name] = {"bytes": (out / name).stat().st_size, "sha256": records.sha256_of(out / name)}
    (out / "dataset.json").write_text(json.dumps(manifest))


def test_a_data_set_names_no_file_outside_of_itself(drawn, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(drawn, out)
    manifest = json.loads((out / "dataset.json").read_text())
    for name, told in (
        ("../../etc/passwd", r"shards\[0\].file is '../../etc/passwd'"),
        (5, "is 5: it must be the name"),
    ):
        shards_there = [{**manifest["shards"][0], "file": name}, manifest["shards"][1]]
        (out / "dataset.json").write_text(json.dumps({**manifest, "shards": shards_there}))
        with pytest.raises(InputError, match=f"dataset.json is damaged .*{told}"):
            records.open_dataset(out)
    more = {**manifest["files"], "../x": {"bytes": 1, "sha256": "0" * 64}}
    (out / "dataset.json").write_text(json.dumps({**manifest, "files": more}))
    with pytest.raises(InputError, match="its files are not those of its shards and splits"):
        records.open_dataset(out)


@pytest.mark.parametrize("damage", ["{}", "", "cut", "gone"])
@pytest.mark.parametrize("part", ["00000.json", "00000.parquet"])
def test_a_damaged_part_is_made_again(source, tmp_path, part, damage):
    out = tmp_path / "out"
    manifest = run(out, "--source", source, "--shards", 2)
    path = out / "parts" / part
    whole = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(whole[: len(whole) // 2] if damage == "cut" else damage.encode())
    assert run(out, "--source", source, "--shards", 2) == manifest and path.read_bytes() == whole


def prepared_by_a_stranger(out, source, table, **options):
    """Prepares a data set, and puts other columns into a part of it, with the checksum of those."""
    run(out, "--source", source, "--shards", 2)
    (out / "dataset.json").unlink()
    path = out / "parts" / "00001.parquet"
    pq.write_table(table(pq.read_table(path)), path, **options)
    part = json.loads((out / "parts" / "00001.json").read_text())
    part["columns"] = {"bytes": path.stat().st_size, "sha256": records.sha256_of(path)}
    (out / "parts" / "00001.json").write_text(json.dumps(part))
    return path


def many_rows(table):
    return pa.table({"name": pa.array(["x"]).take(pa.array(np.zeros(10_000_000, np.int32)))})


def another_type(table):
    return table.set_column(0, table.column_names[0], pa.array([5] * len(table)))


def another_column(table):
    return table.append_column("more", pa.array(["x"] * len(table)))


@pytest.mark.parametrize(
    ("table", "options", "told"),
    [
        (many_rows, {}, r"is damaged \(10000000 images in \d+ bytes\): remove .*00001-of-00002, and run"),
        (
            lambda table: table,
            {"compression": "zstd"},
            r"is damaged \(it has another compression than snappy\)",
        ),
        (another_type, {}, r"is damaged \(column name is int64, not string\): remove .*00001-of-00002, and run"),
        (another_column, {}, "has other columns than .*00000.parquet: remove .*00001-of-00002 and .*00000-of-00002"),
    ],
)
def test_columns_of_a_part_that_a_stranger_made_are_refused(source, tmp_path, table, options, told):
    path = prepared_by_a_stranger(tmp_path / "out", source, table, **options)
    with pytest.raises(InputError, match=f"{path} {told}"):
        run(tmp_path / "out", "--source", source, "--shards", 2)


@pytest.mark.parametrize("name", ["parts", "splits"])
def test_nothing_is_deleted_where_a_link_in_the_folder_leads_to(source, tmp_path, name):
    out, mine = tmp_path / "out", tmp_path / "mine"
    run(out, "--source", source, "--shards", 2)
    (out / "dataset.json").unlink()
    (out / name).rename(mine)
    (mine / "letter.txt").write_text("dear")
    (out / name).symlink_to(mine)
    with pytest.raises(InputError, match=f"--out {out}: {out / name} is a link, and prepare deletes files there"):
        run(out, "--source", source, "--shards", 2)
    assert (mine / "letter.txt").read_text() == "dear"


def test_a_part_is_not_written_through_a_link(source, tmp_path):
    out, mine = tmp_path / "out", tmp_path / "mine"
    manifest = run(out, "--source", source, "--shards", 2)
    mine.write_text("dear")
    (out / "parts" / "00001.parquet").unlink()
    (out / "parts" / "00001.parquet").symlink_to(mine)
    assert run(out, "--source", source, "--shards", 2) == manifest and mine.read_text() == "dear"


def test_opening_and_reading_a_data_set_imports_nothing_that_it_names(drawn, tmp_path, monkeypatch):
    out = tmp_path / "out"
    shutil.copytree(drawn, out)
    (out / "planted_in_data.py").write_text("")
    features = json.loads((out / "features.json").read_text())
    (out / "features.json").write_text(json.dumps(features | {"pythonClassName": "planted_in_data.Class"}))
    monkeypatch.syspath_prepend(out)
    dataset = records.open_dataset(out)
    assert len(dataset.encoded(dataset.rows("test"))) == 16
    assert "planted_in_data" not in sys.modules
    with pytest.raises(ValueError, match=r"planted_in_data\.Class"):
        tfds.builder_from_directory(str(out))
    assert sys.modules.pop("planted_in_data"), "TFDS imports it: this is the attack"
