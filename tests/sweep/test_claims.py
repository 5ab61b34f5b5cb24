"""Several sweeps on one folder: each run is trained once, also where a process is killed or asked to stop."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest
from conftest import ROOT
from etils import epath

from lae_jax.runtime import lock, watch
from lae_jax.runtime.errors import Preempted, SaveFailed
from lae_jax.sweep import claims
from lae_jax.sweep.claims import Run

# What stands in for the trainer: counts to `steps` in a file, which it goes on from, and stops as lae_jax.main does.
TRAINER = """
import os, pathlib, signal, sys, time
folder, steps, pause, status = pathlib.Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
asked = []
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, lambda number, _: asked.append(number))
folder.mkdir(parents=True, exist_ok=True)
with open(folder / "starts", "a") as file:
    file.write(f"{os.getpid()} of {os.getppid()}\\n")
done = folder / "steps"
for step in range(int(done.read_text() or 0) if done.exists() else 0, steps):
    time.sleep(pause)
    done.write_text(str(step + 1))
    if asked:
        (folder / "asked").write_text(signal.Signals(asked[0]).name)
        print("stopped: saved", flush=True)
        sys.exit(75)
if status:
    print("diverged: ten steps in a row")
    sys.exit(status)
(folder / "done").touch()
"""
SWEEP = """
import sys
from etils import epath
from lae_jax.runtime import start, watch
from lae_jax.sweep import claims
from test_claims import commands, is_done, run
out = epath.Path(sys.argv[1])
def main():
    with watch.Signals().caught() as signals:
        claims.train(out, [run("a"), run("b")], commands(200, 0.05), is_done(out), signals)
start.program(main)
"""


def run(name):
    return Run(name, name, 0, None, (), f"runs/{name}", "data", "validation")


def commands(steps=2, pause=0.01, status=0):
    return lambda each, workdir: [["stand_in_trainer", workdir, str(steps), str(pause), str(status)]]


def is_done(out):
    return lambda each: (out / each.folder / "done").exists()


@pytest.fixture
def out(tmp_path, monkeypatch):
    (tmp_path / "stand_in_trainer.py").write_text(textwrap.dedent(TRAINER))
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join(map(str, (tmp_path, ROOT, ROOT / "tests" / "sweep", ROOT / "tests")))
    )
    (tmp_path / "out").mkdir()
    return epath.Path(tmp_path / "out")


def starts(out, name):
    return (out / "runs" / name / "starts").read_text().splitlines()


def test_two_sweeps_beside_each_other_train_each_run_once(out):
    runs, busy = [run(name) for name in "abcdef"], {}

    def sweep(number):
        busy[number] = claims.train(out, runs, commands(3, 0.1), is_done(out), watch.Signals())

    threads = [threading.Thread(target=sweep, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(starts(out, each.name)) for each in runs] == [1] * 6
    assert all(is_done(out)(each) for each in runs)
    # The one that came to the end first was told what the other one still trained.
    assert {each.name for left in busy.values() for each in left} <= {"e", "f"}
    claims.train(out, runs, commands(), is_done(out), watch.Signals())  # nothing is left
    assert [len(starts(out, each.name)) for each in runs] == [1] * 6


def test_a_run_that_another_process_trains_is_left_to_it(out):
    with lock.hold(out / "claims" / "a"):
        busy = claims.train(out, [run("a"), run("b")], commands(), is_done(out), watch.Signals())
    assert [each.name for each in busy] == ["a"] and is_done(out)(run("b")) and not is_done(out)(run("a"))
    # A trainer whose sweep was killed may live on for a while: it says so with status 6.
    busy = claims.train(out, [run("a")], commands(status=6), is_done(out), watch.Signals())
    assert [each.name for each in busy] == ["a"] and not claims.failures(out, [run("a")])


def wait_for(path, seconds=60):
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not come"
        time.sleep(0.02)


def begin(out):
    return subprocess.Popen([sys.executable, "-c", SWEEP, str(out)], stderr=subprocess.PIPE, text=True)


def test_a_killed_sweep_ends_its_trainer_and_the_next_one_goes_on(out):
    process = begin(out)
    wait_for(out / "runs" / "a" / "steps")
    process.kill()
    process.communicate()
    wait_for(out / "runs" / "a" / "asked")  # the system told the trainer
    assert (out / "runs" / "a" / "asked").read_text() == "SIGTERM"
    reached = int((out / "runs" / "a" / "steps").read_text())
    assert claims.train(out, [run("a")], commands(reached + 2), is_done(out), watch.Signals()) == []
    assert is_done(out)(run("a")) and len(starts(out, "a")) == 2
    assert (out / "runs" / "a" / "steps").read_text() == str(reached + 2)


def test_a_signal_is_passed_on_once_and_ends_the_sweep_with_75(out):
    process = begin(out)
    wait_for(out / "runs" / "a" / "steps")
    process.send_signal(signal.SIGTERM)
    told = process.communicate()[1]
    assert process.returncode == 75 and "run 1 of 2, a is stopped; the same command resumes it" in told
    assert (out / "runs" / "a" / "asked").read_text() == "SIGUSR1" and not (out / "runs" / "b").exists()


def test_a_signal_before_a_run_trains_nothing(out):
    signals = watch.Signals()
    signals.asked = True
    with pytest.raises(Preempted):
        claims.train(out, [run("a")], commands(), is_done(out), signals)
    assert not (out / "runs").exists()


def test_a_run_that_fails_is_told_and_the_others_are_trained(out, caplog):
    def some_fail(each, workdir):
        return commands(status=3 if each.name == "a" else 0)(each, workdir)

    runs = [run("a"), run("b")]
    with caplog.at_level("WARNING"):
        claims.train(out, runs, some_fail, is_done(out), watch.Signals())
    assert is_done(out)(run("b"))
    assert claims.failures(out, runs)["a"].items() >= {"status": 3, "message": "diverged: ten steps in a row"}.items()
    # The next sweep tries it again; one that finds that another sweep has just tried does not.
    claims.train(out, runs, some_fail, is_done(out), watch.Signals())
    assert len(starts(out, "a")) == 2 and len(starts(out, "b")) == 1

    def while_another_tries(each):
        failed = out / "failed" / "b2.json"
        failed.write_text(json.dumps({"status": 3, "message": "diverged", "time": 5.0}))
        return is_done(out)(each)

    claims.train(out, [run("b"), run("b2")], commands(), while_another_tries, watch.Signals())
    assert not (out / "runs" / "b2").exists()
    claims.train(out, [run("b2")], commands(), is_done(out), watch.Signals())
    assert is_done(out)(run("b2")) and not claims.failures(out, [run("b2")])


def test_a_full_disk_ends_the_sweep(out):
    with pytest.raises(SaveFailed, match="run 1 of 2, a: diverged"):
        claims.train(out, [run("a"), run("b")], commands(status=5), is_done(out), watch.Signals())
    assert not (out / "runs" / "b").exists()
