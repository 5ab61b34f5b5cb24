"""launch/slurm.sbatch under real Slurm, on two nodes of this machine with two simulated devices each."""

import os
import pathlib
import re
import sys
import tempfile

import pytest
from conftest import ROOT

from infra import slurm
from lae_jax.runtime import checkpoints, cpu, files

STEPS = 60
END = 900  # seconds a job may take: every start loads TensorFlow twice


@pytest.fixture(scope="module")
def cluster():
    # The path of a socket is short.
    with slurm.running(pathlib.Path(tempfile.mkdtemp(prefix="slurm-"))) as running:
        yield running


@pytest.fixture
def submit(cluster, drawn, tmp_path, monkeypatch):
    """Submits a run on both nodes; returns the number of its job. Its folder is run/, its logs are logs/."""
    settings = {
        "DEVICES": slurm.GPUS,
        "LOGS": tmp_path / "logs",
        "PYTHON": sys.executable,
        "JAX_COMPILATION_CACHE_DIR": tmp_path / "compiled",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": 0,
        # Of two processes that share few cores, one waits for the other for at most 30 seconds (Gloo).
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {cpu.quick_compilation()}".strip(),
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, str(value))
    fields = {
        "workdir": tmp_path / "run", "init_from": "scratch", "data.path": drawn, "data.image_size": 24,
        "data.threads": 2, "model.name": "efficientnet_v2_pico", "batch_size": 32, "eval_batch_size": 32,
        "epochs": STEPS / 3, "eval_epochs": STEPS / 3, "save_steps": 5, "log_steps": 1,
    }  # fmt: skip

    def start(*words: str) -> str:
        words = [*words, *(f"--config.{name}={value}" for name, value in fields.items())]
        options = ["--parsable", "--nodes=2", f"--gpus-per-node={slurm.GPUS}", "--cpus-per-task=2"]
        options += [f"--output={tmp_path}/slurm.log"]
        return cluster.ask("sbatch", *options, "launch/slurm.sbatch", "--config=represent", *words, cwd=ROOT).strip()

    return start


def texts(folder: pathlib.Path) -> str:
    return "".join(f"\n== {path.name}\n{path.read_text()}" for path in sorted(folder.rglob("*.log")))


def reaches(folder: pathlib.Path, step: int) -> bool:
    path = folder / "run" / "metrics.jsonl"
    return path.exists() and any(row["step"] >= step for row in files.read_lines(path))


def hold_finished(cluster, job: str, folder: pathlib.Path, at_once: bool = True) -> None:
    assert cluster.ends(job, END, at_once) == "COMPLETED", texts(folder)
    assert (folder / "run" / "summary.json").exists()
    rows = [row["step"] for row in files.read_lines(folder / "run" / "metrics.jsonl") if row["kind"] == "train"]
    assert rows == [*range(1, STEPS + 1)], "a step is missing, or was counted twice"
    assert checkpoints.recover(folder / "run") == STEPS
    assert "2 hosts, 4 devices" in (folder / "logs" / "0.log").read_text()


def test_a_run_that_gets_a_signal_is_queued_again_and_ends(cluster, submit, tmp_path):
    job = submit()
    slurm.wait_for(lambda: reaches(tmp_path, 7), END)
    cluster.ask("scancel", "--signal=TERM", job)
    hold_finished(cluster, job, tmp_path)
    log = texts(tmp_path / "logs")
    saved = re.findall(rf"is saved at step (\d+) of {STEPS}", log)
    assert len(saved) == 2 and len({*saved}) == 1, log
    assert {*re.findall(r"resumes after step (\d+)", log)} == {*saved}
    assert "launch/slurm.sbatch: preempted" in (tmp_path / "slurm.log").read_text()


def test_a_run_whose_node_dies_goes_on_when_the_node_is_back(cluster, submit, tmp_path):
    job = submit("--heartbeat_seconds=10")
    slurm.wait_for(lambda: reaches(tmp_path, 7), END)
    cluster.kill_node("n2")
    slurm.wait_for(lambda: cluster.state(job) != "RUNNING", END)
    cluster.start_node("n2")
    # Slurm needs some time to give up the step that the node had.
    hold_finished(cluster, job, tmp_path, at_once=False)
    resumed = re.findall(r"resumes after step (\d+)", (tmp_path / "logs" / "0.log").read_text())
    assert resumed and int(resumed[0]) >= 5


def test_a_wrong_flag_ends_the_job_with_status_2(cluster, submit, tmp_path):
    job = submit("--config.epoch=3")
    assert cluster.ends(job, END) == "FAILED" and cluster.status(job) == 2, texts(tmp_path)
    assert "unknown config field" in texts(tmp_path / "logs")
