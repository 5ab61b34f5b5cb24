"""Shards on Apache Beam are those of the plain way, byte for byte. Runs whole in Beam's environment: make test-beam."""

import importlib.util
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from lae_jax import prepare
from lae_jax.prepare import __main__ as door
from lae_jax.runtime.errors import InputError

needs_beam = pytest.mark.skipif(
    importlib.util.find_spec("apache_beam") is None, reason="Apache Beam has its own environment: make test-beam"
)
TWO_PROCESSES = ["--beam-option", "direct_num_workers=2", "--beam-option=--direct_running_mode=multi_processing"]


@pytest.fixture
def source(tmp_path) -> list[str]:
    """40 pictures of 14 people, three that are none, two that occur twice, two ages that are none."""
    folder = tmp_path / "src"
    folder.mkdir()
    lines = ["path,age,identity"]
    for i in range(40):
        pixels = np.random.default_rng(i).integers(0, 255, (20, 24, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        lines.append(f"{i}.png,{20 + i},p{i // 3}")
    for i in (7, 20, 33):
        (folder / f"{i}.png").write_bytes(b"no image")
    for i in (1, 30):
        shutil.copy(folder / f"{i}.png", folder / f"copy{i}.png")
        lines += [f"copy{i}.png,{20 + i},q{i}", f"{i}.png,x,"]
    (folder / "faces.csv").write_text("\n".join(lines) + "\n")
    return ["--reader", "csv", "--source", str(folder / "faces.csv"), "--align", "none"]


@pytest.fixture
def bucket(tmp_path, monkeypatch) -> pathlib.Path:
    """The folder behind bucket://faces."""
    import bucket

    monkeypatch.setenv(bucket.ROOT, str(tmp_path / "buckets"))
    (tmp_path / "buckets").mkdir()
    return tmp_path / "buckets" / "faces"


def run(out, *words):
    words = [str(word) for word in ("--out", out, "--shards", 6, "--workers", 1, *words)]
    return prepare.prepare(**door.parse_args(words))


def content(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@needs_beam
@pytest.mark.parametrize("processes", [[], TWO_PROCESSES], ids=["in this process", "two processes"])
def test_a_data_set_made_on_beam_is_that_of_the_plain_way(source, tmp_path, processes):
    plain = run(tmp_path / "plain", *source)
    assert plain["rejected"] == 5 and plain["count"] == 39
    assert run(tmp_path / "beam", *source, "--beam-runner", "DirectRunner", *processes) == plain
    assert content(tmp_path / "beam") == content(tmp_path / "plain")


@needs_beam
def test_no_program_is_downloaded(source, tmp_path, monkeypatch):
    from apache_beam.runners.portability import prism_runner

    monkeypatch.delattr(prism_runner, "PrismRunner")
    run(tmp_path / "out", *source, "--beam-runner", "DirectRunner")
    assert (tmp_path / "out" / "dataset.json").exists()


@needs_beam
@pytest.mark.parametrize("again", [[], ["--beam-runner", "DirectRunner"]], ids=["plainly", "on beam"])
def test_killed_and_started_again_it_goes_on_from_the_complete_shards(tmp_path, again):
    words = ["--reader", "synthetic", "--source", "train=300", "--source", "test=60", "--size", "64"]
    out = tmp_path / "out"
    command = [sys.executable, "-m", "lae_jax.prepare", *words, "--shards", "6", "--out", str(out)]
    command += ["--beam-runner", "DirectRunner", *TWO_PROCESSES]
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, stderr=subprocess.DEVNULL)
    shards = "faces-images.array_record-*-of-00006"
    try:
        while len([*out.glob(shards)]) < 2:
            assert process.poll() is None
            time.sleep(0.01)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    kept = {path: path.stat().st_mtime_ns for path in out.glob(shards)}
    assert 2 <= len(kept) < 6 and not (out / "dataset.json").exists()
    run(out, *words, *again)
    run(tmp_path / "whole", *words)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert content(out) == content(tmp_path / "whole")


@needs_beam
def test_a_bucket_gets_the_same_data_set_and_keeps_its_complete_shards(source, tmp_path, bucket):
    plain = run(tmp_path / "plain", *source)
    on_beam = [*source, "--beam-runner", "DirectRunner"]
    assert run("bucket://faces/a", *on_beam) == plain
    assert content(bucket / "a") == content(tmp_path / "plain")
    times = {path: path.stat().st_mtime_ns for path in (bucket / "a").glob("*array_record*")}
    lost = sorted(times)[3]
    lost.unlink()
    (bucket / "a" / "parts" / f"00004.parquet.{5:032x}.incomplete").write_bytes(b"half")
    assert run("bucket://faces/a/", *on_beam, "--folds", 3)["splits"].keys() > {"fold0-train", "fold2-validation"}
    assert {path for path in times if path.stat().st_mtime_ns != times[path]} == {lost}
    run(tmp_path / "plain", *source, "--folds", 3)
    assert content(bucket / "a") == content(tmp_path / "plain")
    with pytest.raises(InputError, match="quality: 95 there, 80 now"):
        run("bucket://faces/a", *on_beam, "--quality", 80)


@needs_beam
def test_where_no_image_can_be_used_a_bucket_gets_only_the_reasons(source, tmp_path, bucket):
    (bucket / "b").mkdir(parents=True)
    (bucket / "b" / "notes.txt").write_text("mine")
    words = [*source, "--images", tmp_path, "--beam-runner", "DirectRunner"]
    with pytest.raises(InputError, match="none of .* images can be used.* bucket://faces/a/rejected.csv lists all"):
        run("bucket://faces/a", *words)
    with pytest.raises(InputError, match=r"other files \(notes.txt\): name a new or an empty folder"):
        run("bucket://faces/b", *words)
    assert content(bucket).keys() == {"a/rejected.csv", "b/notes.txt"}
    few = tmp_path / "few.csv"
    few.write_text("path,age\n0.png,20\n1.png,x\n")
    with pytest.raises(InputError, match="1 image: too few.* bucket://faces/c/rejected.csv lists all"):
        run("bucket://faces/c", *words[:3], few, *words[4:])
    assert (bucket / "c" / "rejected.csv").read_text().splitlines()[1:] == ["1.png,age 'x' is not a number,,,"]


@needs_beam
def test_faces_are_found_on_beam_as_in_the_plain_way(tmp_path):
    from skimage import data

    photograph = Image.fromarray(data.astronaut())
    for i, side in enumerate((300, 240, 200)):
        photograph.resize((side, side)).save(tmp_path / f"{i}.jpg")
    (tmp_path / "train.csv").write_text("path,age\n0.jpg,40\n1.jpg,41\n")
    (tmp_path / "validation.csv").write_text("path,age\n2.jpg,42\n")
    sources = [word for name in ("train", "validation") for word in ("--source", f"{name}={tmp_path / name}.csv")]
    words = ["--reader", "csv", *sources, "--size", "64", "--shards", 2]
    run(tmp_path / "plain", *words)
    run(tmp_path / "beam", *words, "--beam-runner", "DirectRunner")
    assert content(tmp_path / "beam") == content(tmp_path / "plain")


@needs_beam
@pytest.mark.parametrize(("words", "message"), [
    (["--beam-runner", "DirectRuner"], "Unexpected pipeline runner"),
    (["--beam-runner", "DirectRunner", "--beam-option", "direct_num_worker=2"], "did you mean 'direct_num_workers'"),
    (["--beam-runner", "DirectRunner", "--beam-option", "direct_num_workers=x"], "does not accept"),
    (["--beam-runner", "DirectRunner", "--beam-option", "runner=FlinkRunner"], "with --beam-runner"),
    (["--beam-runner", "DirectRunner", "--out", "nowhere://faces"], "cannot be listed"),
])  # fmt: skip
def test_wrong_words_for_beam(source, tmp_path, words, message):
    with pytest.raises(InputError, match=message):
        run(tmp_path / "out", *source, *words)


def test_without_beam_a_sentence_says_how_to_install_it(source, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="make setup-beam"):
        run(tmp_path / "out", *source, "--beam-runner", "DirectRunner")


def test_only_beam_writes_into_a_bucket(source):
    with pytest.raises(InputError, match="--beam-runner"):
        run("gs://faces/a", *source)
    with pytest.raises(InputError, match="only with --beam-runner"):
        run("out", *source, "--beam-option", "direct_num_workers=2")
