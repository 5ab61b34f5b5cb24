"""A real disk without room: every program says so in a sentence with status 5, and nothing that is finished is lost."""

import asyncio
import contextlib
import os
import shutil
import sys

import pytest
import tensorstore
from PIL import Image

from benchmarks import rig
from lae_jax import audit, evaluate, export, longtail, prepare
from lae_jax.longtail import fitting
from lae_jax.predict import __main__ as predicting
from lae_jax.report import loading
from lae_jax.runtime import console, errors, files
from lae_jax.runtime.errors import SaveFailed
from lae_jax.train import journal


@pytest.fixture
def disk(tmp_path):
    """A file system of 24 MB of its own, and a function that leaves so many bytes of it."""
    with contextlib.ExitStack() as stack:
        try:
            leave = stack.enter_context(rig.small_disk(tmp_path / "disk", 24))
        except rig.Skipped as reason:
            pytest.skip(str(reason))
        yield tmp_path / "disk", leave


@contextlib.contextmanager
def full(place):
    """The block fails, with a sentence that names `place`."""
    with pytest.raises(SaveFailed, match="could not be (written|saved).*No space left on device") as failed:
        yield
    assert str(place) in str(failed.value) and failed.value.status == 5


def contents(folder):
    """{name: bytes} of the files below a folder."""
    return {os.path.relpath(path, folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_prepare_keeps_the_finished_shards_and_goes_on(disk):
    folder, leave = disk
    out = folder / "faces"
    how = {"reader": "synthetic", "size": 32, "shards": 4, "workers": 1}
    source = {"train": "120", "validation": "20"}
    leave(250_000)
    with full(out):
        prepare.prepare(source, out, **how)
    kept = {path.name: path.stat().st_mtime_ns for path in out.glob("*-of-*") if "incomplete" not in path.name}
    assert kept and not (out / "dataset.json").exists()
    leave(8_000_000)
    assert prepare.prepare(source, out, **how)["count"] == 140
    assert all((out / name).stat().st_mtime_ns == time for name, time in kept.items())
    # What is joined again does not harm the data set that is there.
    before = contents(out)
    leave(0)
    with full(out):
        prepare.prepare(source, out, **how)
    assert before.items() <= contents(out).items()


def test_an_evaluation_stays_as_it_was(disk, trained):
    folder, leave = disk
    run = shutil.copytree(trained("represent"), folder / "run")
    evaluate.evaluate(run)
    before = contents(run)
    leave(100_000)
    with full(run):
        evaluate.evaluate(run, threshold=18)
    assert contents(run) == before


def test_a_first_evaluation_that_fails_is_none(disk, trained):
    folder, leave = disk
    run = shutil.copytree(trained("represent"), folder / "run")
    leave(60_000)
    with full(run):
        evaluate.evaluate(run)
    assert not loading.evaluations(run)


@pytest.mark.parametrize("form", ["stablehlo", "onnx"])
def test_an_export_that_does_not_fit_is_removed(disk, trained, form):
    folder, leave = disk
    leave(8_000)
    with full(folder / "export"):
        export.export(trained("represent"), form, folder / "export")
    assert [path.name for path in folder.iterdir()] == ["rest"]


def test_features_heads_and_tables_of_the_bench(disk, trained, drawn, monkeypatch):
    folder, leave = disk
    how = {"methods": ["stage2", "lae"], "passes": 1, "seeds": 1, "epochs": 1.0}
    leave(0)
    with full(folder / "out"):
        longtail.compare(trained("represent"), drawn, folder / "out", **how)
    leave(8_000_000)
    first = longtail.compare(trained("represent"), drawn, folder / "out", **how)
    before = contents(folder / "out")
    monkeypatch.setattr(fitting.Bench, "train", None)  # the heads are kept
    leave(4096)
    with full(folder / "out"):
        longtail.compare(trained("represent"), drawn, folder / "out", **how)
    assert contents(folder / "out") == before and "lae" in first["sentences"]["improvement"]


def test_an_audit(disk, drawn):
    folder, leave = disk
    data = shutil.copytree(drawn, folder / "drawn")
    leave(0)
    with full(data):
        audit.audit(data)


def test_predictions_so_far_are_kept_and_an_earlier_file_stays(disk, trained, tmp_path, caplog, monkeypatch):
    folder, leave = disk
    monkeypatch.setattr(console.logger, "propagate", True)
    crops = tmp_path / "crops"
    crops.mkdir()
    for number in range(200):
        Image.new("RGB", (32, 32)).save(crops / f"{number:0100}.png")
    out = folder / "ages.csv"
    out.write_text("earlier")
    words = ["--run", str(trained("represent")), "--aligned", str(crops), "--out", str(out)]
    leave(8192)
    with full(out):
        predicting.main(words)
    assert out.read_text() == "earlier"
    (kept,) = folder.glob("ages.incomplete*.csv")
    assert kept.read_text().startswith("name,face") and str(kept) in caplog.text
    (folder / "rest").unlink()
    predicting.main(words)
    assert len(out.read_text().splitlines()) == 201


def test_closing_a_journal_on_a_full_disk_does_not_replace_the_error(disk):
    folder, leave = disk
    lines = journal.Lines(files.epath.Path(folder / "metrics.jsonl"), 0)
    leave(0)
    with full(folder / "metrics.jsonl"), contextlib.closing(lines):
        for step in range(1000):
            lines.append({"step": step, "kind": "train"})


def test_the_writes_after_the_first_that_fails_print_nothing(monkeypatch):
    told = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    errors.silence_other_writes.__wrapped__()
    loop, (promise, future) = asyncio.new_event_loop(), tensorstore.Promise.new()

    async def write():
        await future

    task = loop.create_task(write())
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.close()
    promise.set_result(1)  # what orbax's other writes do once it has ended its loop
    assert not told
    task.get_coro().close()

    class Broken:
        def __del__(self):
            raise RuntimeError("Event loop is closed")

    Broken()
    assert [str(one.exc_value) for one in told] == ["Event loop is closed"]
