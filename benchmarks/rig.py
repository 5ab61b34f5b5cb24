"""The rig of `benchmarks.survival`: runs in processes of their own, and what is read of them from outside."""

import contextlib
import dataclasses
import importlib
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
from etils import epath

from lae_jax import prepare
from lae_jax.runtime import checkpoints, checksums, cpu

ROOT = pathlib.Path(__file__).parent.parent
SAVE_STEPS = 3
PAIR = {"processes": 2, "devices": 8}
TIMEOUT = 300


class Broken(AssertionError):
    """A fault did what it must not do."""


class Skipped(Exception):
    """A fault cannot be done on this machine; the message says why."""


@contextlib.contextmanager
def small_disk(folder: pathlib.Path, megabytes: int) -> Iterator[Callable[[int], None]]:
    """Mounts a file system of its own at a new folder; yields a function that fills it but for so many bytes.

    The function removes what it filled before.
    """
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        raise Skipped(f"NO REAL DISK WAS FULL: a file system cannot be mounted here ({mounted.stderr.strip()})")

    def leave(free: int) -> None:
        (folder / "rest").unlink(missing_ok=True)
        status = os.statvfs(folder)
        with open(folder / "rest", "wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, status.f_bavail * status.f_frsize - free))

    try:
        yield leave
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def hold(condition: bool, what: str) -> None:
    if not condition:
        raise Broken(what)


@dataclasses.dataclass(frozen=True)
class Bench:
    """A folder with a prepared data set, on which it starts runs of `steps` steps, unless a call overrides `epochs`."""

    folder: pathlib.Path
    steps: int = 30
    whole_pair: bool = True  # see hold_like_whole

    @property
    def data(self) -> pathlib.Path:
        return self.folder / "drawn"

    def prepare(self) -> None:
        """96 + 64 + 16 drawn faces of 32 px in two shards."""
        source = {"train": "96", "validation": "64", "test": "16"}
        prepare.prepare(source, self.data, reader="synthetic", size=32, shards=2, workers=1)

    def fields(self, workdir: pathlib.Path, **more) -> dict:
        return {
            "workdir": str(workdir),
            "init_from": "scratch",
            "data.path": str(self.data),
            "data.image_size": 24,
            "data.threads": 2,
            "model.name": "efficientnet_v2_pico",
            "model.stochastic_depth": 0.5,
            "batch_size": 32,
            "eval_batch_size": 32,
            "epochs": self.steps / 3,
            "eval_epochs": 4.0,
            "save_steps": SAVE_STEPS,
            "log_steps": 1,
            **more,
        }

    def config(self, workdir: pathlib.Path, stage: str = "represent", **more):
        """For a run in this process."""
        config = importlib.import_module(f"lae_jax.configs.{stage}").get_config()
        config.update_from_flattened_dict(self.fields(workdir, **more))
        return config

    @contextlib.contextmanager
    def start(self, workdir: pathlib.Path, processes=1, devices=8, flags=(), stage="represent", **more):
        """A run in one or more processes of `devices` devices in all; whatever is left of them ends with the block.

        They have the XLA_FLAGS of this process, and compile quickly: of two that share few cores, one waits for the
        other for at most 30 seconds (Gloo).
        """
        words = [f"--config.{name}={value}" for name, value in self.fields(workdir, **more).items()]
        words += [f"--devices={devices // processes}", *flags]
        if processes > 1:
            words += [f"--coordinator=localhost:{free_port()}", f"--processes={processes}"]
        environment = {
            **os.environ,
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {cpu.quick_compilation()}".strip(),
            "JAX_COMPILATION_CACHE_DIR": str(self.folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_ENABLE_X64": str(more.get("model.dtype") == "float64").lower(),
        }
        started = []
        try:
            for i in range(processes):
                log = workdir.parent / f"{workdir.name}.log{i}"
                command = [sys.executable, "-m", "lae_jax.main", "--config", stage, *words]
                # Through another process: a limit on this one's files must not cut its words short.
                with open(log, "wb") as file:
                    writer = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=file)
                process = subprocess.Popen(
                    [*command, *([f"--process={i}"] if processes > 1 else [])],
                    cwd=ROOT, env=environment, stdout=writer.stdin, stderr=writer.stdin,
                )  # fmt: skip
                writer.stdin.close()
                started.append(Started(process, writer, workdir, log))
            yield started
        finally:
            for one in started:
                one.process.kill()
                one.ends()

    def whole(self, processes: int, devices: int) -> pathlib.Path:
        """The run that nothing happened to, made at the first call."""
        workdir = self.folder / f"whole{processes}x{devices}"
        if not workdir.exists():
            self.run(workdir, processes=processes, devices=devices)
        return workdir

    def hold_like_whole(self, workdir: pathlib.Path, processes: int, devices: int) -> None:
        """Checks that a run in which something happened ended bitwise equal to the whole one on the same devices; or a
        pair of processes, without `whole_pair`, close to the whole run of one process, which other faults need too."""
        if processes == 1 or self.whole_pair:
            hold_equal(self.whole(processes, devices), workdir, self.steps)
            return
        one, two = leaves(self.whole(1, devices), self.steps), leaves(workdir, self.steps)
        worst = max(distance(one, two, part) for part in ("params", "batch_stats"))
        hold(worst < 1e-3, f"{workdir} is {worst:.1e} away from one process")

    def run(self, workdir: pathlib.Path, **more) -> None:
        """Runs to the end, with status 0."""
        with self.start(workdir, **more) as started:
            for one in started:
                hold(one.ends() == 0, f"status {one.process.returncode}: {one.text()[-2000:]}")


@dataclasses.dataclass(frozen=True)
class Started:
    process: subprocess.Popen
    writer: subprocess.Popen  # of its log
    workdir: pathlib.Path
    log: pathlib.Path

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def ends(self) -> int:
        status = self.process.wait(TIMEOUT)
        self.writer.wait(TIMEOUT)
        return status

    def acknowledged(self) -> int:
        """The last step that it said was saved; 0 if none."""
        return max((int(step) for step in re.findall(r"saved step (\d+)", self.text())), default=0)

    def reaches(self, step: int) -> bool:
        """Waits until a step stands in metrics.jsonl; False if the process ended before."""
        return self._wait_for(lambda: logged_steps(self.workdir) >= step)

    def begins_to_save(self) -> bool:
        return self._wait_for(lambda: saving(self.workdir))

    def acknowledges(self, step: int) -> bool:
        return self._wait_for(lambda: self.acknowledged() >= step)

    def _wait_for(self, happened: Callable[[], bool]) -> bool:
        deadline = time.monotonic() + TIMEOUT
        while self.process.poll() is None:
            if happened():
                return True
            hold(time.monotonic() < deadline, f"nothing happened: {self.text()[-2000:]}")
            time.sleep(0.002)
        return False


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def logged_steps(workdir: pathlib.Path) -> int:
    """The last step in metrics.jsonl; 0 if there is none."""
    path = workdir / "metrics.jsonl"
    numbers = re.findall(r'"step": (\d+), "kind": "train"', path.read_text()) if path.exists() else []
    return int(numbers[-1]) if numbers else 0


def saving(workdir: pathlib.Path) -> bool:
    """Whether a checkpoint is being written just now."""
    folder = workdir / checkpoints.FOLDER
    with contextlib.suppress(FileNotFoundError):
        return any(not path.name.isdigit() or not (path / checksums.NAME).exists() for path in folder.iterdir())
    return False


def newest_whole(workdir: pathlib.Path) -> int:
    """The newest checkpoint that is as it was sealed, without changing anything; 0 if there is none."""
    names = (checkpoints.FOLDER, checkpoints.UNSCORED)
    folders = [path for name in names for path in (workdir / name).glob("*") if path.name.isdigit()]
    whole = [path for path in map(epath.Path, folders) if checksums.has(path) and checksums.damage(path) is None]
    return max((int(path.name) for path in whole), default=0)


def leaves(workdir: pathlib.Path, step: int) -> dict[str, np.ndarray]:
    """All of a checkpoint's state by name."""
    with checkpoints.Checkpoints(workdir, read_only=True) as saved:
        state = saved.arrays(step, ("step", "skipped_steps", "params", "batch_stats", "opt_state"))
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]}


def told(workdir: pathlib.Path, kind: str) -> list[dict]:
    """The lines of metrics.jsonl of a kind, 'train' or 'validation'."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == kind]


def hold_equal(one: pathlib.Path, two: pathlib.Path, step: int) -> None:
    """Checks that two runs have bitwise equal states after `step`, and equal scores."""
    a, b = leaves(one, step), leaves(two, step)
    differing = [name for name in a if a[name].tobytes() != b[name].tobytes()]
    hold(a.keys() == b.keys() and not differing, f"{two} differs from {one} in {differing[:3]}")
    hold(told(one, "validation") == told(two, "validation"), f"the scores of {two} differ from those of {one}")


def distance(one: dict[str, np.ndarray], two: dict[str, np.ndarray], part: str) -> float:
    """Relative norm of the difference over the leaves whose name has `part` in it."""
    names = [name for name in one if part in name]
    difference = sum(float(np.sum((one[name] - two[name]) ** 2)) for name in names)
    return (difference / sum(float(np.sum(one[name] ** 2)) for name in names)) ** 0.5


def damage_file(path: pathlib.Path, kind: str, rng: np.random.Generator) -> None:
    content = bytearray(path.read_bytes())
    if kind == "deleted":
        path.unlink()
        return
    if kind == "flipped" and content:
        content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
    elif kind == "cut":
        del content[int(rng.integers(len(content))) :]
    else:
        content.clear()
    path.write_bytes(content)
