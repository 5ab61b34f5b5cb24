"""Every reader on a small tree of the layout in which its data set is published, and on trees that mean harm."""

import os
import pickle
import re
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from conftest import ROOT

from benchmarks import raw_sources
from lae_jax import prepare
from lae_jax.data import records
from lae_jax.data.sources import interface
from lae_jax.data.sources.readers import READERS, Options
from lae_jax.faces.images import BadImage
from lae_jax.prepare import __main__ as door
from lae_jax.runtime.errors import InputError


def read(reader, *sources, images=None):
    return READERS[reader]([str(path) for path in sources], Options(images=images and str(images)))


def column(read, name):
    return read.table[name].to_pylist()


def first_picture(read):
    return read.read(read.table.slice(0, 1).to_pylist()[0]).encoded


def prepared(reader, path, out, *words):
    args = ["--reader", reader, "--source", str(path), "--out", str(out), "--workers", "1", "--align", "none", *words]
    return prepare.prepare(**door.parse_args(args))


def test_utkface_reads_what_the_names_say_and_refuses_malformed_ones(tmp_path):
    good = ["100_1_0_20170112213500903.jpg.chip.jpg", "part1/1_0_2_20161219140623097.jpg", "part1/26_1_4_20170116.jpg"]
    known_bad = {  # the first five are in the published set
        "39_1_20170116174525125.jpg.chip.jpg": "file name",
        "61_3_20170109150557335.jpg.chip.jpg": "file name",
        "24_0_1_20170116220224657 .jpg.chip.jpg": "file name",
        "55_0_0_20170116232725357jpg.chip.jpg": "file name",
        "116_1_0_20170120134744096.jpg.chip.jpg": "outside 0 to 100",
        "20_2_0_20170116174525125.jpg": "file name",
        "20_0_5_20170116174525125.jpg": "file name",
        "٢٠_0_0_20170116174525125.jpg": "file name",
    }
    raw_sources.write_images(tmp_path, [*good, *known_bad])
    (tmp_path / "readme.txt").write_text("no image")
    read_set = read("utkface", tmp_path)
    assert column(read_set, "name") == good and column(read_set, "age") == [100, 1, 26]
    assert column(read_set, "gender") == ["female", "male", "female"]
    assert column(read_set, "race") == ["white", "asian", "other"]
    assert column(read_set, "identity") == [None] * 3
    reasons = dict(read_set.rejected)
    assert {*reasons} == {*known_bad} and all(known_bad[name] in reason for name, reason in reasons.items())
    assert first_picture(read_set) == (tmp_path / good[0]).read_bytes()


def test_utkface_becomes_a_data_set(tmp_path):
    names = [f"{20 + i}_{i % 2}_{i % 5}_2017011617452{i:04d}.jpg.chip.jpg" for i in range(10)]
    raw_sources.write_images(tmp_path / "UTKFace", names)
    manifest = prepared("utkface", tmp_path / "UTKFace", tmp_path / "out")
    data = records.open_dataset(tmp_path / "out")
    assert manifest["count"] == 10 and manifest["protocol"] == "image"
    assert data.column("age").tolist() == list(range(20, 30)) and data.column("gender")[1] == "female"


def test_fgnet(tmp_path):
    names = ["images/001A02.JPG", "images/001A43a.JPG", "images/001A43b.JPG", "images/082A69.jpg"]
    raw_sources.write_images(tmp_path, [*names, "images/1A02.JPG"])
    (tmp_path / "points").mkdir()
    (tmp_path / "points" / "001a02.pts").write_text("version: 1\n")
    read_set = read("fgnet", tmp_path)
    assert column(read_set, "name") == names and column(read_set, "age") == [2, 43, 43, 69]
    assert column(read_set, "identity") == ["001", "001", "001", "082"]
    assert [name for name, _ in read_set.rejected] == ["images/1A02.JPG"]


def test_agedb(tmp_path):
    names = ["0_MariaCallas_35_f.jpg", "10002_GlennClose_62_f.jpg", "9_D_Artagnan_7_m.jpg"]
    raw_sources.write_images(tmp_path, [*names, "3_MariaCallas_101_f.jpg", "4_MariaCallas_f.jpg"])
    read_set = read("agedb", tmp_path)
    assert column(read_set, "age") == [35, 62, 7] and column(read_set, "gender") == ["female", "female", "male"]
    assert column(read_set, "identity") == ["MariaCallas", "GlennClose", "D_Artagnan"]
    assert len(read_set.rejected) == 2


def test_appa_real_has_the_real_age_and_the_apparent_one_beside_it(tmp_path):
    header = "file_name,num_ratings,apparent_age_avg,apparent_age_std,real_age\n"
    (tmp_path / "gt_avg_train.csv").write_text(header + "000000.jpg,36,5.194444,1.069045,4\n000001.jpg,1,2,3,104\n")
    (tmp_path / "gt_avg_valid.csv").write_text(header + "004113.jpg,34,25.735294,5.04,28\n")
    (tmp_path / "gt_avg_test.csv").write_text(header + "005613.jpg,38,51.026316,9.20,60\nbroken\n")
    faces = ["train/000000.jpg_face.jpg", "valid/004113.jpg_face.jpg", "test/005613.jpg_face.jpg"]
    raw_sources.write_images(tmp_path, [*faces, "train/000000.jpg"])
    read_set = read("appa_real", tmp_path)
    assert column(read_set, "name") == faces and column(read_set, "age") == [4, 28, 60]
    assert column(read_set, "split") == ["train", "validation", "test"]
    assert column(read_set, "apparent_age_avg")[0] == "5.194444"
    assert column(read_set, "apparent_age_std")[0] == "1.069045" and column(read_set, "num_ratings")[0] == "36"
    assert [name for name, _ in read_set.rejected] == ["train/000001.jpg", "gt_avg_test.csv line 3"]
    assert first_picture(read_set) == (tmp_path / faces[0]).read_bytes()


@pytest.mark.parametrize("text", ["", "file_name,real_age\na.jpg,3\n", "a,b\x00\xff\n"])
def test_appa_real_with_another_table_is_refused(tmp_path, text):
    (tmp_path / "gt_avg_train.csv").write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match="gt_avg_train.csv"):
        read("appa_real", tmp_path)


def test_mivia_knows_people_where_the_name_has_vggface2s_folder(tmp_path):
    raw_sources.write_images(tmp_path / "images", ["0.jpg", "n000123/0001_01.jpg"])
    text = "0.jpg,27\nn000123/0001_01.jpg,31.25\ntrain/n000124/0001_01.jpg,3\nn12/1.jpg,4\nx.jpg,old\n"
    (tmp_path / "labels.csv").write_text(text)
    read_set = read("mivia", tmp_path / "labels.csv", images=tmp_path / "images")
    assert column(read_set, "age") == [27, 31.25, 3, 4]
    assert column(read_set, "identity") == [None, "n000123", "n000124", None]
    assert [name for name, _ in read_set.rejected] == ["x.jpg"]
    assert first_picture(read_set) == (tmp_path / "images" / "0.jpg").read_bytes()


def test_csv_rows_keep_their_order_over_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(interface, "_BATCH_ROWS", 7)
    text = "".join(f"{i}.jpg,{i % 90},p{i // 4}\n" for i in range(50))
    (tmp_path / "faces.csv").write_text("path,age,identity\n" + text)
    read_set = read("csv", tmp_path / "faces.csv")
    assert column(read_set, "name") == [f"{i}.jpg" for i in range(50)]
    assert column(read_set, "age") == [i % 90 for i in range(50)] and column(read_set, "identity")[49] == "p12"
    assert read_set.table["name"].num_chunks == 8


def test_csv_columns_of_several_files_are_joined_by_name(tmp_path):
    (tmp_path / "a.csv").write_text("path,age,camera\na.jpg,1,x\n")
    (tmp_path / "b.csv").write_text("age,light,path,landmarks\n2,day,b.jpg,1 2 3 4 5 6 7 8 9 10\n")
    read_set = read("csv", f"train={tmp_path}/a.csv", f"test={tmp_path}/b.csv")
    assert column(read_set, "camera") == ["x", None] and column(read_set, "light") == [None, "day"]
    assert column(read_set, "split") == ["train", "test"]
    assert column(read_set, "landmarks") == [None, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]]
    assert read_set.table.column_names == ["name", "age", "identity", "split", "landmarks", "camera", "light"]


@pytest.mark.parametrize(("line", "reason"), [
    ('"a\nb.jpg",3,', "control character"), ("a\x1b[2J.jpg,3,", "control character"), ("a\0.jpg,3,", "control"),
    ("a.jpg,3,,too,many", "5 fields"), ("a.jpg,1_0,", "not a number"), ("a.jpg,inf,", "outside"),
    ("a" * 4097 + ",3,", "more than 4,096"), ("a.jpg,3," + "x" * 65537, "field has more than"),
])  # fmt: skip
def test_a_csv_line_that_cannot_be_kept_is_refused_alone(tmp_path, line, reason):
    (tmp_path / "faces.csv").write_text(f"path,age,camera\n{line}\nb.jpg,4,\n")
    read_set = read("csv", tmp_path / "faces.csv")
    assert column(read_set, "name") == ["b.jpg"]
    ((name, told),) = read_set.rejected
    assert reason in told and len(name) < 400 and name.isprintable()


@pytest.mark.parametrize(("content", "message"), [
    (b"path,age\n\"" + b"x" * 200_000 + b"\",3\n", "field larger"),
    (b"path,age\n" + b"\"\n\"," * 2_200_000, "line of more than"),
    (b"path,age\na.jpg," + b" " * 4_300_000 + b"3\n", "line of more than"),
    (b"path,age\n\xff\xfe.jpg,3\n", "UTF-8"),
    (b"path,age," + b",".join(b"c%d" % i for i in range(70)) + b"\na.jpg,3\n", "72 columns"),
    (b"file,age,name,source_name\na.jpg,3,x,y\n", "twice"),
])  # fmt: skip
def test_a_csv_that_is_none_is_refused_in_bounded_memory(tmp_path, content, message):
    (tmp_path / "faces.csv").write_bytes(content)
    tracemalloc.start()
    with pytest.raises(InputError, match=message):
        read("csv", tmp_path / "faces.csv")
    assert tracemalloc.get_traced_memory()[1] < 3e8
    tracemalloc.stop()


def test_rows_do_not_stay_python_objects(tmp_path):
    lines = [f"{i}.jpg,{i % 90},p\n" for i in range(30_000)]
    (tmp_path / "faces.csv").write_text("path,age,identity\n" + "".join(lines))
    tracemalloc.start()
    read_set = read("csv", tmp_path / "faces.csv")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert read_set.table.num_rows == 30_000 and read_set.table["name"].num_chunks == 4
    # Arrow's memory is not traced. What is: Python objects, 300 bytes a row of those that wait for their batch.
    assert peak < 4.5e6


def test_a_shard_is_sent_with_its_own_rows(tmp_path):
    (tmp_path / "faces.csv").write_text("path,age\n" + "".join(f"{i:040d}.jpg,3\n" for i in range(100_000)))
    read_set = read("csv", tmp_path / "faces.csv")
    assert len(pickle.dumps(read_set.table.slice(50_000, 10))) < read_set.table.nbytes / 5
    assert len(pickle.dumps(read_set.read)) < 1000


@pytest.mark.parametrize(("name", "reason"), [
    ("../secret.jpg", "leads out"), ("link.jpg", "leads out"), ("folder/secret.jpg", "leads out"),
    ("loop.jpg", "cannot be read"), ("pipe.jpg", "not a regular file"), ("sub", "not a regular file"),
    ("", "not a regular"),
    ("/dev/zero", "leads out"), ("a\0b", "zero byte"), ("x" * 5000, "cannot be read"), ("huge.jpg", "larger than"),
])  # fmt: skip
def test_a_path_that_means_harm_is_not_read(tmp_path, name, reason):
    inside = tmp_path / "inside"
    (inside / "sub").mkdir(parents=True)
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    (inside / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (inside / "folder").symlink_to(tmp_path)
    (inside / "loop.jpg").symlink_to(inside / "loop.jpg")
    os.mkfifo(inside / "pipe.jpg")
    with open(inside / "huge.jpg", "wb") as file:
        file.truncate(interface.MAX_FILE_BYTES + 1)
    with pytest.raises(BadImage, match=reason):
        interface.read_inside(str(inside), name)


def test_a_device_in_the_image_folder_is_not_read():
    with pytest.raises(BadImage, match="not a regular file"):
        interface.read_inside("/dev", "zero")


def test_links_that_stay_inside_and_absolute_paths_are_read(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"face")
    (tmp_path / "b.jpg").symlink_to("a.jpg")
    assert interface.read_inside(str(tmp_path), "b.jpg") == b"face"
    assert interface.read_inside("/", str(tmp_path / "a.jpg")) == b"face"


def test_a_relative_folder_is_the_one_below_the_current_folder(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / name / "faces").mkdir(parents=True)
        (tmp_path / name / "faces/x.jpg").write_text(name)
        monkeypatch.chdir(tmp_path / name)
        assert interface.read_inside("faces", "x.jpg") == name.encode()


def test_a_tree_with_loops_odd_names_and_closed_folders_is_walked_once(tmp_path):
    raw_sources.write_images(tmp_path, ["ben/b/2.jpg", "ben/a.jpg", "anna/1.png", "anna-2/1.jpg", "loose.jpg"])
    (tmp_path / "ben" / "up").symlink_to(tmp_path)
    (tmp_path / "out").symlink_to("/etc")
    (tmp_path / "anna" / "line\nbreak.jpg").write_bytes(b"x")
    (tmp_path / os.fsdecode(b"\xff\xfe")).mkdir()
    (tmp_path / os.fsdecode(b"\xff\xfe") / "1.jpg").write_bytes(b"x")
    read_set = read("folders", tmp_path)
    assert column(read_set, "name") == ["anna/1.png", "anna-2/1.jpg", "ben/a.jpg", "ben/b/2.jpg"]
    assert column(read_set, "identity") == ["anna", "anna-2", "ben", "ben"]
    reasons = dict(read_set.rejected)
    assert reasons["ben/up"] == reasons["out"] == "a link to a folder: links are not followed"
    assert "not in the folder of a person" in reasons["loose.jpg"]
    assert "control" in reasons["anna/line\\nbreak.jpg"] and "UTF-8" in reasons["\\udcff\\udcfe/1.jpg"]


def test_images_are_known_by_their_ending_or_by_how_they_begin_and_the_rest_is_counted(tmp_path, caplog):
    caplog.set_level("INFO", "lae_jax")
    raw_sources.write_images(tmp_path, ["a/0.jpg", "a/1.png"])
    jpeg = (tmp_path / "a/0.jpg").read_bytes()
    kept = ["2.JFIF", "3.jpe", "4.mpo", "5", "6.jpg_original", "7.28", "8.heic", "9.avif"]
    for name in kept:
        (tmp_path / "a" / name).write_bytes(jpeg)
    for name in ("notes.txt", "more.txt", "faces.csv", "README", "clip.mp4"):
        (tmp_path / "a" / name).write_bytes(b"age,path\n30,0.jpg")
    os.truncate(tmp_path / "a/clip.mp4", interface.MAX_FILE_BYTES + 1)
    (tmp_path / "a" / "lost").symlink_to(tmp_path / "nothing")
    assert column(read("folders", tmp_path), "name") == sorted(
        f"a/{name}" for name in ["0.jpg", "1.png", "lost", *kept]
    )
    told = f"{tmp_path}: 5 files are ignored, because the format is not read: 2 .txt, 1 "
    (line,) = [line for line in caplog.messages if "ignored" in line]
    assert line.startswith(told) and {*line[len(told) - 2 :].split(", ")} == {
        "1 .csv", "1 without an ending", "1 .mp4"
    }  # fmt: skip


def test_a_tree_deeper_than_python_can_call_is_walked(tmp_path):
    at = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1200):
        os.mkdir("d", dir_fd=at)
        below = os.open("d", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(os.open("1.jpg", os.O_CREAT, dir_fd=at))
    os.close(at)
    try:
        assert column(read("folders", tmp_path), "name") == ["d/" * 1200 + "1.jpg"]
    finally:
        subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)  # pytest's own cleaning calls itself as deep


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_a_folder_that_cannot_be_read_is_told(tmp_path):
    raw_sources.write_images(tmp_path, ["anna/1.jpg", "ben/1.jpg"])
    (tmp_path / "ben").chmod(0)
    assert read("folders", tmp_path).rejected == [("ben", "folder cannot be read (Permission denied)")]
    (tmp_path / "ben").chmod(0o700)


@pytest.mark.parametrize("reader", ["utkface", "fgnet", "agedb", "appa_real", "folders"])
def test_a_reader_of_folders_says_what_it_needs(tmp_path, reader):
    with pytest.raises(InputError, match=f"--reader {reader} needs one --source FOLDER"):
        read(reader, tmp_path / "missing")
    with pytest.raises(InputError, match="holds no"):
        read(reader, tmp_path)
    with pytest.raises(InputError, match="omit --images"):
        read(reader, tmp_path, images=tmp_path)


def test_every_reader_is_documented():
    text = (ROOT / "docs" / "data.md").read_text()
    for name in READERS:
        assert f"--reader {name} " in text and f"`{name}`" in text, name


def test_drawn_faces_are_a_source_like_the_others():
    read_set = READERS["synthetic"](["train=3", "test=2"], Options(size=32))
    assert column(read_set, "split") == ["train"] * 3 + ["test"] * 2
    row = read_set.table.slice(4, 1).to_pylist()[0]
    assert len(read_set.read(row).landmarks) == 10 and np.isfinite(row["age"])


def conversions():
    """name of the CSV -> the lines of docs/data.md that write it."""
    text = (ROOT / "docs" / "data.md").read_text()
    return {
        re.search(r'(\w+|\{split\})\.csv", "w"', code)[1]: code
        for code in re.findall(r"```python\n(.*?)```", text, re.S)
    }


@pytest.mark.parametrize(("table", "files", "rows"), [
    ("afad", ["AFAD-Full/15/111/1-0.jpg", "AFAD-Full/16/112/2-0.jpg"], [(15, None), (16, None)]),
    ("cacd", ["CACD2000/14_Aaron_Johnson_0001.jpg", "CACD2000/62_Zo\u00eb_0012.jpg"],
     [(14, "Aaron_Johnson"), (62, "Zo\u00eb")]),
    ("morph", ["Album2/009055_1M54.JPG", "Album2/224896_00F25.JPG"], [(54, "009055"), (25, "224896")]),
    ("lagenda", ["LAGENDA/images/a.jpg"], [(31.5, None)]),
    ("{split}", ["00/nm0000100_rm1_1955-1-6_1994.jpg"], [(39, "nm0000100")]),
])  # fmt: skip
def test_the_documented_conversions_give_a_csv(tmp_path, table, files, rows):
    raw_sources.write_images(tmp_path, files)
    (tmp_path / "csvs").mkdir()
    for split in ("train", "valid", "test"):
        line = f"filename,age,gender,x_min\n{files[0]},39,M,4\n"
        (tmp_path / "csvs" / f"imdb_{split}_new_1024.csv").write_text(line)
    if table == "lagenda":
        header = "img_name,age,gender,face_x0,face_y0,face_x1,face_y1,person_x0,person_y0,person_x1,person_y1\n"
        faces = ["31.5,M,2,2,10,12,0,0,16,16", "-1,F,1,1,4,4,-1,-1,-1,-1", "7,F,-1,-1,-1,-1,0,0,9,9"]
        lines = "".join(f"images/a.jpg,{face}\n" for face in faces)
        (tmp_path / "LAGENDA" / "lagenda_annotation.csv").write_text(header + lines)
    subprocess.run([sys.executable, "-c", conversions()[table]], cwd=tmp_path, check=True, timeout=60)
    read_set = read("csv", tmp_path / f"{table.format(split='valid')}.csv")
    assert list(zip(column(read_set, "age"), column(read_set, "identity"), strict=True)) == rows
    assert first_picture(read_set)[:2] == b"\xff\xd8" and not read_set.rejected
