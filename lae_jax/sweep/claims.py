"""Trains the runs of a sweep, each in a process of its own; a lock keeps two sweeps from training one run."""

import dataclasses
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from etils import epath

from lae_jax.report import loading
from lae_jax.runtime import files, lock, typed, watch
from lae_jax.runtime.errors import FolderInUse, Preempted, SaveFailed

logger = logging.getLogger("lae_jax")

RUNS, CLAIMS, LOGS, FAILED = "runs", "claims", "logs", "failed"  # in the folder of the sweep
CONFIG = "config.json"  # in the folder of a claim, from the first start of the run
# A scheduler that ends a job may signal all its processes. The trainer that has the signal must not get it again from
# here, because a second one ends it at once. SIGUSR1 counts only as a first one, so it is sent, and later than theirs.
_FORWARD_SECONDS = 1.0
_POLL_SECONDS = 0.1
_PREEMPTED = {Preempted.status, *(-number for number in watch.ASKING), *(128 + number for number in watch.ASKING)}
# Runs a module as `python -m` does. On Linux it first asks for SIGTERM when its parent (the first argument) is killed.
# It asks itself, because a process that has loaded JAX must not run anything between fork and exec.
_START = """
import ctypes, os, runpy, signal, sys
parent, *sys.argv = sys.argv[1:]
if sys.platform == "linux":
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):
        sys.exit("the sweep has ended")
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
_FAILURE = typed.fields({"status": typed.whole(), "message": typed.text(), "time": typed.number(0)})


@dataclasses.dataclass(frozen=True)
class Run:
    """A run of a sweep.

    Attributes:
      name: Name of its folder in OUT/runs.
      setting: Name of its setting.
      seed: Its seed.
      fold: Number of its fold; None without folds.
      words: Command line of `lae_jax.main`, without the workdir.
      folder: Folder of its last stage, from OUT.
      data: Its data set.
      split: The data set's name of its validation split.
      config: Name of a stage ('' where there is one) -> its fields, without the folder of the run.
    """

    name: str
    setting: str
    seed: int
    fold: int | None
    words: tuple[str, ...]
    folder: str
    data: str
    split: str
    config: Mapping[str, Mapping] = dataclasses.field(default_factory=dict, compare=False)


Command = Callable[[Run, str], list[list[str]]]  # run, its workdir -> the command lines that are left to do


def evaluation_of(out: epath.Path, run: Run, split: str) -> epath.Path | None:
    """Returns the folder of a run's evaluation on a split of its data set; None without one."""
    folder = out / run.folder
    if not (folder / "summary.json").exists():
        return None
    step = loading.read_run(folder).summary["step"]
    for one in loading.evaluations(folder):
        report = loading.read_report(one)
        of_this = report["split"] == split and report.get("step") == step and report.get("same_data_as_training")
        if of_this and not report.get("flip"):
            return one
    return None


def failures(out: epath.Path, runs: Sequence[Run]) -> dict[str, dict]:
    """Returns what failed: name of a run -> 'status', 'message' and 'time'."""
    found = {}
    for run in runs:
        if (path := out / FAILED / f"{run.name}.json").exists():
            found[run.name] = files.read_json(path, _FAILURE, "remove it")
    return found


def train(
    out: epath.Path,
    runs: Sequence[Run],
    commands: Command,
    is_done: Callable[[Run], bool],
    signals: watch.Signals,
) -> list[Run]:
    """Trains the runs that are not done and that no other sweep trains, one after the other.

    A run that failed before is tried again, once; one that another sweep found to fail meanwhile is not.

    Args:
      out: Folder of the sweep.
      runs: The runs, in their order.
      commands: Returns the command lines of a run's programs (the words after `python -m`).
      is_done: Whether nothing is left to do for a run.
      signals: Signals that ask to stop.

    Returns:
      The runs that other sweeps are training.

    Raises:
      Preempted: A signal came; the run that was being trained is saved.
      SaveFailed: A run could not write its files.
    """
    before, busy = failures(out, runs), []
    for number, run in enumerate(runs, 1):
        now = failures(out, [run])
        if is_done(run) or (now and now[run.name] != before.get(run.name)):
            continue
        # Made here, because `hold` removes a folder that it made, and another sweep may wait for the lock in it.
        claim = out / CLAIMS / run.name
        claim.mkdir(parents=True, exist_ok=True)
        try:
            with lock.hold(claim):
                if is_done(run):
                    continue
                files.write_json(claim / CONFIG, run.config)
                _train(out, run, f"run {number} of {len(runs)}, {run.name}", commands, signals)
        except FolderInUse:
            logger.info("run %d of %d, %s: another process trains it", number, len(runs), run.name)
            busy.append(run)
    return [run for run in busy if not is_done(run)]


def _train(out: epath.Path, run: Run, told: str, commands: Command, signals: watch.Signals) -> None:
    (out / LOGS).mkdir(exist_ok=True)
    log = out / LOGS / f"{run.name}.log"
    logger.info("%s: training, the log is %s", told, log)
    started, failed = time.monotonic(), out / FAILED / f"{run.name}.json"
    failed.unlink(missing_ok=True)
    for words in commands(run, os.fspath(out / RUNS / run.name)):
        if signals.asked:
            raise Preempted(f"{told} was not finished; start the same command again")
        status = _call(words, log, signals)
        if status in _PREEMPTED:
            raise Preempted(f"{told} is stopped; the same command resumes it")
        if status == FolderInUse.status:
            raise FolderInUse(_last_line(log))
        if status:
            message = _last_line(log)
            failed.parent.mkdir(exist_ok=True)
            files.write_json(failed, {"status": status, "message": message, "time": time.time()})
            if status == SaveFailed.status:
                raise SaveFailed(f"{told}: {message}")
            logger.warning("%s: ended with status %d (%s); the log is %s", told, status, message, log)
            return
    logger.info("%s: done after %.0f s", told, time.monotonic() - started)


def _call(words: Sequence[str], log: epath.Path, signals: watch.Signals) -> int:
    """Runs a program of the package and returns its status; passes on a signal that asks to stop."""
    with open(log, "ab") as file:
        # A session of its own: Ctrl-C in a terminal goes to all processes of one.
        child = subprocess.Popen(
            [sys.executable, "-c", _START, str(os.getpid()), *words],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        asked = None
        while child.poll() is None:
            if signals.asked and asked is None:
                asked = time.monotonic() + _FORWARD_SECONDS
            if asked is not None and time.monotonic() >= asked:
                asked = float("inf")
                child.send_signal(signal.SIGUSR1)
            time.sleep(_POLL_SECONDS)
        return child.returncode
    finally:
        if child.poll() is None:
            child.terminate()
            child.wait()


def _last_line(log: epath.Path) -> str:
    with open(log, "rb") as file:
        file.seek(max(0, os.path.getsize(log) - 4096))
        lines = file.read().decode(errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "no output")
