"""Prepared data sets that are damaged, or were made by a stranger: told, and never followed outside of their folder."""

import json
import shutil
import sys
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from sources import run

from lae_jax.data import chunks, parquet, records
from lae_jax.runtime.errors import InputError


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
