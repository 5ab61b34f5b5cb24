"""A data set from two workers of Beam's job server, over gRPC, of which one is killed: make test-infra."""

import contextlib
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
from conftest import ROOT

from lae_jax import prepare

# Beam's own job server. It starts one worker, and is told to start two.
SERVER = """
import sys
from apache_beam.runners.portability import local_job_service_main
from apache_beam.runners.portability.fn_api_runner import fn_runner
begin = fn_runner.FnApiRunner.__init__
def init(self, *args, **kwargs):
    begin(self, *args, **kwargs)
    self._num_workers = 2
fn_runner.FnApiRunner.__init__ = init
local_job_service_main.run(["-p", sys.argv[1]])
"""
SOURCE = ["--reader", "synthetic", "--source", "train=300", "--source", "test=60", "--size", "64", "--shards", "6"]
SECONDS = 900  # each worker loads TensorFlow


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def wait_for(condition, process, seconds=SECONDS):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def answers(port: int) -> bool:
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    return False


@pytest.fixture
def start(tmp_path):
    """A function: words -> a process of Python, its output in NAME.log. What it started ends with the test."""
    started = []
    # The pool starts `python`.
    path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"

    def run(name: str, *words: str) -> subprocess.Popen:
        with open(tmp_path / f"{name}.log", "wb") as log:
            process = subprocess.Popen(
                [sys.executable, *words], cwd=ROOT, env={**os.environ, "PATH": path}, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        started.append(process)
        return process

    run.started = started
    yield run
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture
def servers(start):
    """(the words of `prepare` that name a job server with two workers, the pool that starts them)"""
    jobs, workers = free_port(), free_port()
    server = start("server", "-c", SERVER, str(jobs))
    pool = start("pool", "-m", "apache_beam.runners.worker.worker_pool_main", "--service_port", str(workers))
    wait_for(lambda: answers(jobs), server)
    wait_for(lambda: answers(workers), pool)
    options = (f"job_endpoint=127.0.0.1:{jobs}", "environment_type=EXTERNAL", f"environment_config=127.0.0.1:{workers}")
    return ["--beam-runner", "PortableRunner", *(word for one in options for word in ("--beam-option", one))], pool


def children(pid: int) -> list[int]:
    return [
        int(word) for path in pathlib.Path(f"/proc/{pid}/task").glob("*/children") for word in path.read_text().split()
    ]


def content(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_worker_is_killed_and_a_second_command_completes_the_data_set(start, servers, tmp_path):
    """Beam's job server waits for a killed worker without end: Ctrl-C then says what to do."""
    on_beam, pool = servers
    out, pattern = tmp_path / "out", "faces-images.array_record-*-of-00006"
    words = ["-m", "lae_jax.prepare", *SOURCE, "--out", str(out)]
    first = start("first", *words, *on_beam)
    wait_for(lambda: [*out.glob(pattern)], first)
    assert len(workers := children(pool.pid)) == 2
    os.kill(workers[0], signal.SIGKILL)
    time.sleep(2)
    first.send_signal(signal.SIGINT)
    status, told = first.wait(SECONDS), (tmp_path / "first.log").read_text()
    assert status == 130 and "Traceback" not in told, told
    assert re.search(r"out keeps [1-5] of 6 shards .*: run the same command to continue", told), told
    for process in start.started[:2]:  # the other worker goes on
        os.killpg(process.pid, signal.SIGKILL)
    kept = {path: path.stat().st_mtime_ns for path in out.glob(pattern)}
    assert start("second", *words).wait(SECONDS) == 0, (tmp_path / "second.log").read_text()
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "a complete shard was made again"
    prepare.prepare(
        {"train": "300", "test": "60"}, tmp_path / "plain", reader="synthetic", size=64, shards=6, workers=1
    )
    wanted = content(tmp_path / "plain")
    made = content(out)
    assert {name: made[name] for name in wanted} == wanted


def test_a_server_that_dies_is_a_sentence(start, servers, tmp_path):
    on_beam, _ = servers
    words = ["-m", "lae_jax.prepare", *SOURCE, "--out", str(tmp_path / "out")]
    first = start("first", *words, *on_beam)
    wait_for(lambda: "Starting worker" in (tmp_path / "pool.log").read_text(), first)
    os.killpg(start.started[0].pid, signal.SIGKILL)
    assert first.wait(SECONDS) == 1
    told = (tmp_path / "first.log").read_text()
    assert "Traceback" not in told and told.splitlines()[-1].startswith("error: Beam's PortableRunner broke off ("), (
        told
    )
    assert told.rstrip().endswith("see its log, then run the same command again")
