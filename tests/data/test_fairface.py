"""FairFace: its tables as published, damaged by a spreadsheet, beside a folder or an archive, and hostile archives."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from lae_jax.data.sources import fairface
from lae_jax.data.sources.readers import READERS, Options
from lae_jax.faces.images import BadImage
from lae_jax.runtime.errors import InputError

ROWS = [
    "train/1.jpg,50-59,Male,East Asian,True", "train/2.jpg,03-Sep,Female,Indian,False",
    "val/1.jpg,Oct-19,Female,Black,False", "train/3.jpg,more than 70,Male,White,True", "val/2.jpg,0-2,Male,White,True",
    "train/4.jpg,,Male,White,True",
]  # fmt: skip
HEADER = "file,age,gender,race,service_test\n"


def picture(seed):
    pixels = np.random.default_rng(seed).integers(0, 255, (20, 24, 3), np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "JPEG")
    return content.getvalue()


def read(folder):
    return READERS["fairface"]([str(folder)], Options())


def pictures_of(source):
    return [source.read({"name": name}).encoded for name in source.table["name"].to_pylist()]


def add(archive, name, content=b"", **fields):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for field, value in fields.items():
        setattr(member, field, value)
    archive.addfile(member, io.BytesIO(content))


def test_the_table_beside_a_folder_and_beside_an_archive_give_the_same(tmp_path, caplog):
    names = [row.split(",")[0] for row in ROWS[:5]]
    unpacked, packed = tmp_path / "unpacked", tmp_path / "packed"
    for folder in (unpacked, packed):
        folder.mkdir()
    (packed / "labels.csv").write_text(HEADER + "\n".join(ROWS) + "\n")
    for split in ("train", "val"):
        of_split = [row for row in ROWS if row.startswith(split)]
        (unpacked / f"fairface_label_{split}.csv").write_text(HEADER + "\n".join(of_split) + "\n")
        (unpacked / split).mkdir()
    with tarfile.open(packed / "images.tar", "w") as archive:
        for seed, name in enumerate(names):
            (unpacked / name).write_bytes(picture(seed))
            add(archive, f"./{name}" if seed % 2 else name, picture(seed))
    one, other = read(unpacked), read(packed)
    by_name = {row["name"]: row for row in one.table.to_pylist()}
    assert {row["name"]: row for row in other.table.to_pylist()} == by_name
    assert pictures_of(other) == [picture(seed) for seed in range(5)]
    assert dict(zip(one.table["name"].to_pylist(), pictures_of(one), strict=True)) == {
        name: picture(seed) for seed, name in enumerate(names)
    }
    ranges = [(by_name[name]["age_low"], by_name[name]["age_high"], by_name[name]["split"]) for name in names]
    assert ranges == [
        (50, 59, "train"), (3, 9, "train"), (10, 19, "validation"), (70, 100, "train"), (0, 2, "validation"),
    ]  # fmt: skip
    assert by_name["train/1.jpg"]["race"] == "East Asian" and by_name["train/1.jpg"]["age"] is None
    assert dict(other.rejected) == {"train/4.jpg": "no age"}
    told = (
        "age: 2 rows have a date that a spreadsheet made of a range, such as 03-Sep of 3-9. Read as 3-9 (1), 10-19 (1)"
    )
    assert caplog.text.count(told) == 2


def test_an_archive_gives_only_its_regular_files(tmp_path, monkeypatch):
    (tmp_path / "labels.csv").write_text(HEADER + "\n".join(f"train/{i}.jpg,20-29,,," for i in range(6)) + "\n")
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    with tarfile.open(tmp_path / "images.tar", "w") as archive:
        add(archive, "train/0.jpg", picture(0))
        add(archive, "train/1.jpg", type=tarfile.SYMTYPE, linkname="../secret.jpg")
        add(archive, "train/2.jpg", type=tarfile.LNKTYPE, linkname="train/0.jpg")
        add(archive, "train/3.jpg", type=tarfile.FIFOTYPE)
        add(archive, "train/4.jpg", b"x" * 2000)
    monkeypatch.setattr(fairface, "MAX_FILE_BYTES", 1500)
    source = read(tmp_path)
    assert source.read({"name": "train/0.jpg"}).encoded == picture(0)
    for name, reason in {
        1: "not found",
        2: "not found",
        3: "not found",
        4: "larger than 1,500 bytes",
        5: "not found",
    }.items():
        with pytest.raises(BadImage, match=reason):
            source.read({"name": f"train/{name}.jpg"})


@pytest.mark.parametrize("content", [b"", b"no archive at all" * 100, None])
def test_an_archive_that_is_none_or_too_large_is_named(tmp_path, monkeypatch, content):
    (tmp_path / "labels.csv").write_text(HEADER + "train/0.jpg,20-29,,,\n")
    path = tmp_path / "images.tar"
    if content is None:
        with tarfile.open(path, "w") as archive:
            for i in range(3):
                add(archive, f"train/{i}.jpg", picture(i))
        monkeypatch.setattr(fairface, "MAX_MEMBERS", 2)
    else:
        path.write_bytes(content)
    told = "more than 2 files" if content is None else "cannot be read"
    with pytest.raises(InputError, match=rf"images\.tar .*{told}.*: unpack it"):
        read(tmp_path).read({"name": "train/0.jpg"})


def test_an_archive_that_ends_within_a_file_is_told(tmp_path):
    (tmp_path / "labels.csv").write_text(HEADER + "train/0.jpg,20-29,,,\n")
    with tarfile.open(tmp_path / "images.tar", "w") as archive:
        add(archive, "train/0.jpg", picture(0))
    whole = (tmp_path / "images.tar").read_bytes()
    (tmp_path / "images.tar").write_bytes(whole[:700])
    with pytest.raises((BadImage, InputError), match="ends within the file|cannot be read"):
        read(tmp_path).read({"name": "train/0.jpg"})


@pytest.mark.parametrize(("table", "told"), [
    ("file,gender\ntrain/1.jpg,Male\n", "must have the column age once"),
    ("image,age\ntrain/1.jpg,0-2\n", "must have the column file once"),
    ("file,age,age\ntrain/1.jpg,0-2,3\n", "must have the column age once"),
    ("", "must have the column file once"),
])  # fmt: skip
def test_a_table_that_is_not_fairfaces_is_refused(tmp_path, table, told):
    (tmp_path / "labels.csv").write_text(table)
    with pytest.raises(InputError, match=rf"labels\.csv: the first line {told}"):
        read(tmp_path)


def test_a_folder_without_a_table_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds none of fairface_label_train.csv, .*: name the folder of the tables"):
        read(tmp_path)
    (tmp_path / "labels.csv").write_text(HEADER)
    with pytest.raises(InputError, match="finds its images itself; omit --images"):
        READERS["fairface"]([str(tmp_path)], Options(images=str(tmp_path)))


@pytest.mark.parametrize("size", [-512, -513, -1, -1024, 1 << 40])
def test_an_archive_whose_sizes_lie_is_refused(tmp_path, size):
    (tmp_path / "labels.csv").write_text(HEADER + "train/0.jpg,20-29,,,\n")
    member = tarfile.TarInfo("train/0.jpg")
    member.size = size
    header = member.tobuf(tarfile.GNU_FORMAT)
    (tmp_path / "images.tar").write_bytes(header + bytes(4096))
    with pytest.raises(InputError, match=rf"images\.tar cannot be read \(a file of {size} bytes"):
        read(tmp_path).read({"name": "train/0.jpg"})


def test_two_tables_of_the_same_images_are_refused(tmp_path):
    for name in ("labels.csv", "fairface_label_train.csv"):
        (tmp_path / name).write_text(HEADER + "train/0.jpg,20-29,,,\n")
    with pytest.raises(InputError, match="fairface_label_train.csv and labels.csv, which list the same images"):
        read(tmp_path)


def test_a_line_without_an_image_is_rejected(tmp_path):
    (tmp_path / "labels.csv").write_text(HEADER + "train/0.jpg,20-29,,,\n,20-29,,,\n")
    assert dict(read(tmp_path).rejected) == {"labels.csv line 3": "no image path"}
