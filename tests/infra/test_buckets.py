"""Runs in a bucket, on a real server of Cloud Storage whose requests fail."""

import gc
import json
import os
import subprocess
import sys
import threading
import time

import flax.struct
import jax
import numpy as np
import pytest
from conftest import ROOT
from etils import epath

from infra import buckets
from infra.buckets import Fault
from lae_jax import evaluate
from lae_jax.runtime import checkpoints, files, layout, origin, watch
from lae_jax.runtime.errors import InputError, Preempted, SaveFailed, Unreachable
from lae_jax.train import loop

META = {"selected": None, "scores": None}


@flax.struct.dataclass
class State:
    step: np.ndarray
    params: dict


def state(step: int) -> State:
    return State(np.int32(step), {"a": jax.numpy.full((300, 300), float(step)), "b": np.arange(9.0)})


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with buckets.running(tmp_path_factory.mktemp("bucket") / "server") as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment().items():
            patch.setenv(name, value)
        yield server


@pytest.fixture
def server(running):
    yield running
    running.fault()
    if not running.is_up:
        running.start()


@pytest.fixture
def workdir(server, request) -> epath.Path:
    """The folder of a run, in the bucket."""
    folder = epath.Path(f"gs://{buckets.BUCKET}/{abs(hash(request.node.name))}")
    folder.mkdir(parents=True)
    origin.give_id(folder)
    return folder


def leaves(workdir, step):
    with checkpoints.Checkpoints(workdir, read_only=True) as saved:
        tree = saved.arrays(step, ("step", "skipped_steps", "params", "batch_stats", "opt_state"))
    return {jax.tree_util.keystr(k): v.tobytes() for k, v in jax.tree_util.tree_flatten_with_path(tree)[0]}


def save(workdir, *steps: int) -> None:
    with checkpoints.Checkpoints(workdir) as saved:
        for step in steps:
            saved.save(state(step), META | {"step": step})
            saved.wait()


def hold_saved(workdir, step: int, set_aside: bool = False) -> None:
    """Checks that a run resumes from a step; `set_aside`: what was saved in part may have been moved away."""
    assert checkpoints.recover(workdir) == step
    assert set_aside or not (workdir / checkpoints.DAMAGED).exists()
    with checkpoints.Checkpoints(workdir, read_only=True) as saved:
        np.testing.assert_array_equal(saved.arrays(step, ("params",))["params"]["a"], state(step).params["a"])


# ---- whole runs ----


def test_a_run_is_stopped_and_goes_on_through_outages_as_on_a_disk(server, make_config, trained, caplog, monkeypatch):
    whole = trained("represent")
    config = make_config("represent", whole.parent)
    config.workdir, config.save_steps = f"gs://{buckets.BUCKET}/runs/represent", 1
    signals = watch.Signals()
    caplog.set_level("INFO", "lae_jax")
    server.fault(Fault("", "503", count=3, is_upload=True))
    with monkeypatch.context() as patch, pytest.raises(Preempted, match=r"represent is saved at step 2 of 3"):

        def at_step_2(self, journal, line, number, pending, original=loop._Loop._account):
            signals.asked = number == 2
            return original(self, journal, line, number, pending) or signals.asked

        patch.setattr(loop._Loop, "_account", at_step_2)
        loop.train(config, signals)
    assert "saved step 2" in caplog.text
    server.fault(Fault("", "cut", count=2, is_upload=True))
    summary = loop.train(config)
    assert "resumes after step 2" in caplog.text
    assert leaves(epath.Path(config.workdir), 3) == leaves(whole, 3)
    assert summary["scores"] == json.loads((whole / "summary.json").read_text())["scores"]
    rows = files.read_lines(epath.Path(config.workdir) / "metrics.jsonl")
    assert [row["step"] for row in rows if row["kind"] == "train"] == [1, 2, 3]
    assert "runs/represent/lock" not in server.names("runs/")

    evaluate.evaluate(config.workdir, split="test")
    assert server.read("runs/represent/evaluation/drawn-test/report.html").startswith(b"<!")


# ---- faults of a save ----


@pytest.mark.parametrize("what", ["503", "cut", 0.3])
def test_a_save_survives_what_passes(server, workdir, what):
    """Requests that fail, connections that are cut during an upload, a slow server."""
    server.fault(Fault("", what, count=5, is_upload=True))
    save(workdir, 1)
    hold_saved(workdir, 1)


def test_a_save_survives_a_restart_of_the_server(server, workdir):
    save(workdir, 1)

    def restart():
        while not server.names(f"{workdir.name}/checkpoints/2/state/"):
            time.sleep(0.01)
        server.stop()
        time.sleep(1)
        server.start()

    thread = threading.Thread(target=restart)
    thread.start()
    save(workdir, 2)
    thread.join()
    hold_saved(workdir, 2)


STEP_2 = "(POST|PUT|DELETE) .*checkpoints%2F2"


@pytest.mark.parametrize(
    ("fault", "error", "told"),
    [
        (Fault(STEP_2, "403"), SaveFailed, "the bucket refused access"),
        (Fault("POST .*resumable.*checkpoints%2F2", "503"), Unreachable, "the bucket did not answer"),
    ],
    ids=["refused", "away"],
)
def test_a_save_that_fails_loses_nothing_and_is_told_in_a_sentence(server, workdir, fault, error, told):
    save(workdir, 1)
    server.fault(fault)
    with pytest.raises(error, match=rf"points/2: {told} \(.*HTTP.*\); the newest complete one is of step 1") as end:
        save(workdir, 2)
    assert "\n" not in str(end.value) and "tensorstore_spec" not in str(end.value) and len(str(end.value)) < 600
    server.fault()
    assert checkpoints.recover(workdir) == 1
    gc.collect()  # TensorFlow sends once more what failed
    save(workdir, 3)
    hold_saved(workdir, 3, set_aside=True)


def test_a_bucket_that_is_away_does_not_make_checkpoints_damaged(server, workdir):
    save(workdir, 1)
    server.fault(Fault(f"GET /{buckets.BUCKET}/", "503"))
    for read in (checkpoints.recover, checkpoints.load_run):
        with pytest.raises(Exception) as end:
            read(workdir)
        assert isinstance(error := end.value, Unreachable) or "did not answer" in str(_sentence(error))
    server.fault()
    hold_saved(workdir, 1)


def _sentence(error):
    from lae_jax.runtime.errors import save_failed

    return save_failed(error)


# ---- what a user reads ----


def test_a_place_that_cannot_hold_a_run_is_named(server, monkeypatch):
    with pytest.raises(InputError, match=r"^gs://typo/runs/a: there is no bucket gs://typo: create it"):
        layout.require_workdir("gs://typo/runs/a")
    with pytest.raises(InputError, match=r"^s3://bucket/runs/a: a run is on a local disk, on a mount or in a bucket"):
        layout.require_workdir("s3://bucket/runs/a")
    with pytest.raises(InputError, match=r"^gs://bucket/none holds no run"):
        layout.require_run("gs://bucket/none")
    with pytest.raises(InputError, match=r"gs://bucket/none.json is missing"):
        files.read_json("gs://bucket/none.json")


@pytest.mark.parametrize(("fault", "status", "told"), [
    ("403", 2, "the bucket refused access (Error executing an HTTP request: HTTP response code 403): give the account"),
    ("503", 1, "the bucket did not answer (All 10 retry attempts failed."),
], ids=["refused", "away"])  # fmt: skip
def test_a_program_says_what_is_wrong_with_a_bucket(server, drawn, fault, status, told):
    server.fault(Fault("", fault))
    words = ["represent", "--config.workdir=gs://bucket/runs/b", "--config.init_from=scratch"]
    ended = subprocess.run(
        [sys.executable, "-m", "lae_jax.main", "--config", *words, f"--config.data.path={drawn}"],
        cwd=ROOT, env={**os.environ, "JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    *_, last = ended.stderr.splitlines()
    assert ended.returncode == status and told in last and "Traceback" not in ended.stderr, ended.stderr
    assert last.startswith("error: gs://bucket") and last.endswith("then start the same command again")
