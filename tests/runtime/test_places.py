"""Places that are no file or no folder, or that hold something else: refused at once, and nothing there is touched."""

import os
import re
import socket

import pytest

from lae_jax import export, longtail, report
from lae_jax.data import age_weights
from lae_jax.data.sources import csv_file, interface
from lae_jax.predict import __main__ as predicting
from lae_jax.predict import check_inputs
from lae_jax.runtime import errors, files, layout
from lae_jax.runtime.errors import InputError, SaveFailed


@pytest.fixture(params=["pipe", "socket", "device", "link to a device"])
def odd(request, tmp_path, monkeypatch):
    """(path that ends in .csv, what it is): no file, and opening it would wait, fail or never end."""
    path = tmp_path / "odd.csv"
    if request.param == "pipe":
        os.mkfifo(path)
    elif request.param == "socket":
        monkeypatch.chdir(tmp_path)  # the path of a socket is short
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(path.name)
    elif request.param == "device":
        try:
            os.mknod(path, 0o600 | 0o020000, os.makedev(1, 5))
        except PermissionError:
            pytest.skip("a device cannot be made here")
    else:
        path.symlink_to("/dev/zero")
    return path, request.param.rpartition(" ")[2]


def test_outputs_and_inputs_that_are_no_files(odd, tmp_path):
    path, what = odd
    told = f"is a {what}: name a "
    with pytest.raises(InputError, match=f"--out {re.escape(str(path))} {told}file"):
        predicting.parse_args(["--run", "a", "a.jpg", "--out", str(path)])
    with pytest.raises(InputError, match=f"--contest {re.escape(str(path))} {told}file"):
        predicting.parse_args(["--run", "a", "--contest", str(path), "--out", str(tmp_path / "out.csv")])
    with pytest.raises(InputError, match=f"{re.escape(str(path))} {told}folder"):
        layout.require_writable(path)
    with pytest.raises(InputError, match=f"{told}file"):
        next(csv_file.csv_rows(path))
    with pytest.raises(InputError, match=f"--source .*{told}file"):
        csv_file.read_csv([str(path)], interface.Options())
    with pytest.raises(InputError, match=f"{told}file"):
        age_weights.read(str(path))


def test_a_pipe_among_photographs(tmp_path, trained):
    os.mkfifo(tmp_path / "list.csv")
    with pytest.raises(InputError, match="list.csv is a pipe"):
        check_inputs(trained("represent"), [str(tmp_path / "list.csv")], None, None)


def test_a_report_is_not_written_among_other_files(tmp_path, trained):
    other = tmp_path / "other"
    other.mkdir()
    (other / "table.csv").write_text("mine")
    (other / "notes.txt").write_text("mine")
    for call in (
        lambda: report.compare([trained("represent")], other),
        lambda: longtail.require_place(other),
    ):
        with pytest.raises(InputError, match=r"holds other files \(notes.txt.*: name a new or an empty folder"):
            call()
    assert sorted(os.listdir(other)) == ["notes.txt", "table.csv"] and (other / "table.csv").read_text() == "mine"


def test_results_are_written_over_earlier_ones_and_what_lies_beside_them_stays(tmp_path):
    own, marks = {"report.html", "table.csv"}, {"report.html"}
    (tmp_path / "table.csv.incomplete").touch()
    (tmp_path / ".DS_Store").touch()
    layout.require_place_for_results(tmp_path, own, marks)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match="notes.txt"):
        layout.require_place_for_results(tmp_path, own, marks)
    (tmp_path / "report.html").touch()
    layout.require_place_for_results(tmp_path, own, marks)


@pytest.mark.parametrize("there", ["folder", "file", "link"])
def test_an_export_leaves_what_is_not_its_own(tmp_path, trained, there):
    begun = tmp_path / "out.incomplete"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("mine")
    if there == "folder":
        (tmp_path / "mine").rename(begun)
    elif there == "link":
        begun.symlink_to(tmp_path / "mine")
    else:
        begun.write_text("mine")
    with pytest.raises(InputError, match="out.incomplete is in the way and is not an unfinished export"):
        export.check(trained("represent"), "onnx", tmp_path / "out", None)
    assert begun.read_text() == "mine" if there == "file" else (begun / "thesis.tex").read_text() == "mine"


def test_an_export_that_was_killed_is_no_obstacle(tmp_path, trained):
    (tmp_path / "out.incomplete").mkdir()
    (tmp_path / "out.incomplete" / "model.onnx").write_bytes(b"half")
    export.check(trained("represent"), "onnx", tmp_path / "out", None)


def test_what_is_left_at_the_place_of_a_new_file_is_not_written_through(tmp_path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "a.json.incomplete").symlink_to(tmp_path / "precious")
    files.write_json(tmp_path / "a.json", {})
    os.mkfifo(tmp_path / "b.json.incomplete")
    files.write_json(tmp_path / "b.json", {})
    assert (tmp_path / "precious").read_text() == "mine" and files.read_json(tmp_path / "b.json") == {}


@pytest.mark.parametrize(("error", "message"), [
    (OSError(28, os.strerror(28)), r"^out could not be written \(No space left on device\): make room, then start"),
    (OSError(122, os.strerror(122)), r"Disk quota exceeded\): make room"),
    (OSError(30, os.strerror(30), "out/a"), r"^out could not be written \(Read-only file system\): make it writable"),
    (OSError(30, os.strerror(30), "/tmp/a"), r"^/tmp/a could not be written \(Read-only"),
    (OSError(5, os.strerror(5), "out/a"), r"Input/output error\): check the disk"),
    (PermissionError(13, os.strerror(13), "out/a"), r"^out .*Permission denied\): make it writable"),
    (RuntimeError("write() failed: No space left on device; writing out/a"), "^out could not be written"),
])  # fmt: skip
def test_errors_of_a_disk_are_one_sentence(error, message):
    with pytest.raises(SaveFailed, match=message), errors.saving("out"):
        raise error


@pytest.mark.parametrize("error", [
    PermissionError(13, "Permission denied", "source/a.jpg"), OSError(5, "Input/output error", "source/a.jpg"),
    FileNotFoundError(2, "No such file or directory", "out/a"), ValueError("a"), InputError("a"),
])  # fmt: skip
def test_other_errors_stay(error):
    with pytest.raises(type(error)) as raised, errors.saving("out"):
        raise error
    assert raised.value is error


def test_everything_is_closed_and_the_first_error_stays():
    ended = []

    def fail(name):
        ended.append(name)
        raise OSError(name)

    with pytest.raises(OSError, match="^a$"):
        errors.end_all(None, lambda: fail("a"), lambda: fail("b"))
    errors.end_all(InputError, lambda: fail("c"), lambda: ended.append("d"))
    assert ended == ["a", "b", "c", "d"]
