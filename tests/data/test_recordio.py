"""insightface's RecordIO: what mxnet writes is read, and no length is believed."""

import struct

import pytest

from benchmarks import raw_sources
from lae_jax import prepare
from lae_jax.data import records
from lae_jax.data.sources import recordio
from lae_jax.data.sources.readers import READERS, Options
from lae_jax.faces.images import BadImage
from lae_jax.runtime.errors import InputError


def read(folder):
    return READERS["recordio"]([str(folder)], Options())


def pictures(source):
    return [source.read(row).encoded for row in source.table.to_pylist()]


def test_images_and_people_of_insightfaces_layout(tmp_path):
    source = read(raw_sources.write_recordio(tmp_path, [2, 1, 3]))
    assert source.table["identity"].to_pylist() == ["0", "0", "1", "2", "2", "2"]
    assert source.table["name"].to_pylist() == [f"{key:08d}" for key in range(1, 7)]
    assert source.table["age"].null_count == 6 and not source.rejected
    assert pictures(source) == [raw_sources.jpeg(key) for key in range(1, 7)]


def test_the_bytes_are_those_of_mxnets_writer():
    """A record written out by hand after dmlc-core's recordio.h and mxnet's IRHeader."""
    content = struct.pack("<I", 0) + struct.pack("<f", 7.0) + struct.pack("<QQ", 5, 0) + b"image"
    by_hand = bytes.fromhex("0a23d7ce") + struct.pack("<I", 29) + content + b"\0\0\0"
    assert raw_sources.framed(raw_sources.packed(7.0, b"image", 5)) == by_hand


@pytest.mark.parametrize("extra", [raw_sources.MAGIC, raw_sources.MAGIC * 3, b"abc" + raw_sources.MAGIC * 2])
@pytest.mark.parametrize("shift", range(4))
def test_a_record_that_holds_the_magic_is_joined_again(tmp_path, extra, shift):
    extra = b"\0" * shift + extra + b"tail"
    source = read(raw_sources.write_recordio(tmp_path, [2], extra))
    assert pictures(source) == [raw_sources.jpeg(key) + extra for key in (1, 2)]


def test_a_header_that_holds_the_magic_is_joined_again(tmp_path):
    magic = struct.unpack("<Q", raw_sources.MAGIC * 2)[0]
    record = raw_sources.framed(raw_sources.packed(3.0, b"image", magic))
    (tmp_path / "train.rec").write_bytes(record)
    (tmp_path / "train.idx").write_text("1\t0\n")
    source = read(tmp_path)
    assert source.table["identity"].to_pylist() == ["3"] and pictures(source) == [b"image"]


def test_records_without_insightfaces_header_and_with_several_labels(tmp_path):
    contents = [raw_sources.packed(4.0, b"a"), raw_sources.packed([5.0, 0.0], b"b")]
    framed = [raw_sources.framed(content) for content in contents]
    (tmp_path / "train.rec").write_bytes(b"".join(framed))
    (tmp_path / "train.idx").write_text(f"1\t{len(framed[0])}\n0\t0\n")
    source = read(tmp_path / "train.rec")
    assert source.table["identity"].to_pylist() == ["4", "5"] and pictures(source) == [b"a", b"b"]


def test_recordio_becomes_a_data_set_split_by_people(tmp_path):
    raw_sources.write_recordio(tmp_path / "faces_emore", [3] * 6)
    source, how = tmp_path / "faces_emore", {"workers": 2, "shards": 2, "ratio": "2:1"}
    assert prepare.prepare(source, tmp_path / "out", reader="recordio", **how)["protocol"] == "identity"
    data = records.open_dataset(tmp_path / "out")
    people = data.column("identity")
    assert len(data) == 18 and not {*people[data.rows("train")]} & {*people[data.rows("validation")]}


def change(folder, **changes):
    for name, how in changes.items():
        path = folder / {"records": "train.rec", "index": "train.idx", "property": "property"}[name]
        path.write_bytes(how(path.read_bytes()))


def test_labels_that_are_no_people_are_refused_alone(tmp_path):
    folder = raw_sources.write_recordio(tmp_path, [1, 1, 1])
    label = struct.pack("<f", 1.0)

    def relabel(data):
        at = data.index(struct.pack("<I", 0) + label)
        return data[: at + 4] + struct.pack("<f", float("nan")) + data[at + 8 :]

    change(folder, records=relabel, property=lambda data: b"2,112,112")
    source = read(folder)
    assert source.table["identity"].to_pylist() == ["0"]
    assert "label nan" in source.rejected[0][1] and "names 2 people" in source.rejected[1][1]


def test_a_file_that_was_cut_off_loses_its_end_only(tmp_path):
    folder = raw_sources.write_recordio(tmp_path, [2, 2])
    index = (folder / "train.idx").read_text().split()
    change(folder, records=lambda data: data[: int(index[9]) - 30])  # in the midst of record 3
    source = read(folder)
    assert len(source.table) == 2
    assert [name for name, _ in source.rejected] == ["00000003", "00000004", "00000005", "00000006"]
    assert "past the end" in source.rejected[0][1] and "ends at byte" in source.rejected[1][1]


def test_an_index_that_lacks_images_is_told(tmp_path):
    folder = raw_sources.write_recordio(tmp_path, [2, 2])
    change(folder, index=lambda data: b"".join(line for line in data.splitlines(True) if not line.startswith(b"2")))
    source = read(folder)
    assert source.rejected == [("train.idx", "names 3 images, record 0 announces 4")]


@pytest.mark.parametrize(("name", "how", "message"), [
    ("index", lambda data: b"one\t0\n", "line 1"), ("index", lambda data: data + b"7\n", "not `key TAB"),
    ("index", lambda data: b"1\t-4\n", "not `key"), ("index", lambda data: b"1\t" + b"9" * 60, "not `key"),
    ("index", lambda data: data + b"1\t0\n", "key 1 occurs twice"), ("property", lambda data: b"many", "property"),
    ("records", lambda data: b"", "record 0"), ("records", lambda data: b"\0" * 64, "no record begins"),
    ("records", lambda data: data[:4] + b"\xff\xff\xff\x1f" + data[8:], "past the end"),
    ("records", lambda data: data[:8] + b"\xff\xff\xff\x3f" + data[12:], "labels, more than it holds"),
    ("records", lambda data: data[:4] + b"\x04\0\0\0" + data[8:], "shorter than its header"),
])  # fmt: skip
def test_files_that_are_no_recordio_are_refused(tmp_path, name, how, message):
    folder = raw_sources.write_recordio(tmp_path, [2, 2])
    change(folder, **{name: how})
    with pytest.raises(InputError, match=message):
        read(folder)


def test_what_is_missing_is_named(tmp_path):
    folder = raw_sources.write_recordio(tmp_path, [1])
    (folder / "train.idx").unlink()
    with pytest.raises(InputError, match="train.idx is missing"):
        read(folder)
    with pytest.raises(InputError, match="nowhere is missing; NAME.rec"):
        read(tmp_path / "nowhere")


@pytest.mark.parametrize(("data", "reason"), [
    (raw_sources.MAGIC + struct.pack("<I", 1 << 29) + raw_sources.MAGIC + struct.pack("<I", 1 << 29), "wrong order"),
    (raw_sources.MAGIC + struct.pack("<I", 3 << 29), "wrong order"),
    (raw_sources.MAGIC + struct.pack("<I", 5 << 29), "wrong order"),
    (raw_sources.MAGIC + struct.pack("<I", 1 << 29) + (raw_sources.MAGIC + struct.pack("<I", 2 << 29)) * 2000, "parts"),
    (raw_sources.MAGIC + struct.pack("<I", 1 << 29), "ends at byte"),
])  # fmt: skip
def test_parts_in_disorder_are_refused(tmp_path, data, reason):
    path = tmp_path / "train.rec"
    path.write_bytes(data)
    with open(path, "rb") as file, pytest.raises(BadImage, match=reason):
        recordio.read_record(file.fileno(), 0, len(data))


def test_a_record_larger_than_any_photograph_is_not_read(tmp_path):
    path = tmp_path / "train.rec"
    path.write_bytes(raw_sources.MAGIC + struct.pack("<I", 130_000_000))
    with open(path, "r+b") as file:
        file.truncate(140_000_000)
        with pytest.raises(BadImage, match="larger than"):
            recordio.read_record(file.fileno(), 0, 140_000_000)
