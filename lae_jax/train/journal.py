"""The records of a run: `metrics.jsonl`, `divergence.jsonl`, TensorBoard events, the text of the progress line."""

import json
import logging
import os
import pathlib
import tempfile
import time
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from lae_jax.runtime import files
from lae_jax.runtime.errors import InputError, SaveFailed, end_all, saving
from lae_jax.runtime.typed import declared
from lae_jax.train import wall_time
from lae_jax.train.costs import StepCost
from lae_jax.train.events import Events

logger = logging.getLogger("lae_jax")


class Lines:
    """A file of JSON lines, continued after step `start`: lines of later steps, which were not saved, are removed.

    So are the lines of `start` itself of the kind `again`. A file in a bucket cannot be appended to: its lines are kept
    in memory, and `publish` writes the whole file.
    """

    def __init__(self, path: epath.Path, start: int, again: str | None = None):
        self._path = path
        if os.path.islink(path):
            raise InputError(f"{path} is a link, and lines are added to the file: put what it leads to in its place")
        self.found = files.read_lines(path, declared.line, "restore it, or remove this line")  # with those removed
        self.rows = [r for r in self.found if r["step"] < start or r["step"] == start and r.get("kind", "") != again]
        self._lines = [json.dumps(row) + "\n" for row in self.rows]
        self._file = None  # opened for the first line
        # A kill may have interrupted the last line: the next one must not continue it.
        if path.exists() and path.stat().length != sum(map(len, self._lines)):
            files.write_text(path, "".join(self._lines))

    def append(self, row: Mapping) -> None:
        """Appends a line.

        Raises:
          SaveFailed: It cannot be written; a checkpoint would not have room either.
        """
        line = json.dumps(row) + "\n"
        if files.is_remote(self._path):
            self._lines.append(line)
            return
        with saving(self._path):
            # Without a buffer, so that closing the file has nothing left to write.
            self._file = self._file or open(self._path, "ab", buffering=0)
            rest = line.encode()
            while rest:  # a disk that gets full takes a part first
                rest = rest[self._file.write(rest) :]

    def publish(self) -> None:
        """Writes a file in a bucket; does nothing for other files."""
        if self._lines and files.is_remote(self._path):
            self._path.write_text("".join(self._lines))

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()


def told(scores: Mapping) -> str:
    """Returns the scores of an evaluation as a line of text."""
    shown = {name: value for name, value in scores.items() if isinstance(value, float)}
    if shown.get("mmae") == shown.get("mean_group_mae"):  # no group is empty
        shown.pop("mean_group_mae", None)
    return ", ".join(f"{name} {value:.3f}" for name, value in shown.items())


class Journal:
    """Averages over `log_steps` steps: loss, learning rate, images/s, share of the time spent waiting for data.

    Only the first host (`active`) writes. Lines of steps after `start` are removed, and the scores of `start` if it is
    not `scored`: they come again.

    Attributes:
      wall: Where the wall time of the run goes.
      skipped_steps: Skipped steps of the run.
    """

    def __init__(
        self,
        workdir: epath.Path,
        start: int,
        schedule,
        config: ConfigDict,
        *,
        active: bool,
        scored: bool = True,
        began: float | None = None,
        cost: StepCost | None = None,
    ):
        """Continues the records after step `start`.

        Args:
          workdir: The workdir of the run.
          start: Steps that are done.
          schedule: Gives `learning_rate`.
          config: The config.
          active: Whether this host writes.
          scored: Whether the scores of `start` are complete.
          began: When this start began, of `time.perf_counter`; None: now.
          cost: What a step costs; None: not known.
        """
        self._workdir, self._schedule, self._config, self._active = workdir, schedule, config, active
        self._cost = cost
        self._step = start
        self.skipped_steps = 0
        began = time.perf_counter() if began is None else began
        self.wall = wall_time.WallTime(time.perf_counter, began)
        self._reset()
        if not active:
            return
        self._metrics = Lines(workdir / "metrics.jsonl", start, None if scored else "validation")
        self._divergence = Lines(workdir / "divergence.jsonl", start)
        self.skipped_steps = len(self._divergence.rows)
        self.wall = wall_time.WallTime(time.perf_counter, began, wall_time.of_lines(self._metrics.found, start))
        remote = files.is_remote(workdir)
        self._events_folder = pathlib.Path(tempfile.mkdtemp() if remote else os.fspath(workdir / "tensorboard"))
        self._events = Events(self._events_folder, start)
        if len(self._metrics.found) > len(self._metrics.rows):
            self._write_time()  # now: the lines that told of the lost steps are gone

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, kind, *_) -> None:
        if not self._active:
            return
        # After a line that a full disk has cut off, another one would be damage.
        last = [] if kind is not None and issubclass(kind, SaveFailed) else [self._write_time]
        end_all(kind, *last, self._upload, self._metrics.close, self._divergence.close, self._events.close)

    def _reset(self) -> None:
        self._loss, self._weight, self._steps, self._waiting = 0.0, 0.0, 0, 0.0
        self._begun = time.perf_counter()

    def waited(self, seconds: float) -> None:
        """Counts seconds in which the device had no batch."""
        self._waiting += seconds

    def learning_rate(self, step: int) -> float:
        """Returns the learning rate of step number `step` (from 1); the optimiser does not count skipped steps."""
        return float(self._schedule.learning_rate(step - 1 - self.skipped_steps))

    def stepped(self, step: int, metrics: Mapping) -> str:
        """Adds a step's metrics, after `skipped_step` if skipped; returns new text for the progress line, or ''."""
        loss, weight = (float(value) for value in metrics["loss"])
        if not metrics["skipped"]:
            self._loss, self._weight = self._loss + loss, self._weight + weight
        self._steps, self._step = self._steps + 1, step
        if step % self._config.log_steps and self._steps < self._config.log_steps:
            return ""
        seconds = max(time.perf_counter() - self._begun, 1e-9)
        row = {
            "loss": self._loss / self._weight if self._weight else None,
            "learning_rate": self.learning_rate(step),
            "grad_norm": _plain(metrics["grad_norm"]),
            "images_per_second": self._steps * self._config.batch_size / seconds,
            "waiting": self._waiting / seconds,
            "skipped_steps": self.skipped_steps,
            "seconds": self.wall.seconds,
            "goodput": self.wall.goodput,
            **(self._cost.row(seconds / self._steps) if self._cost else {}),
        }
        self._write(step, "train", row)
        self._reset()
        loss_text = "not finite" if row["loss"] is None else f"{row['loss']:.4f}"
        return (
            f"loss {loss_text}, learning rate {row['learning_rate']:.2e}, {row['images_per_second']:.0f} images/s,"
            f" {row['waiting']:.0%} waiting for data"
        )

    def skipped_step(self, step: int, metrics: Mapping, names: Sequence[str]) -> None:
        """Records a step whose loss or gradients were not finite, with the names of its global batch's rows."""
        loss, weight = (float(value) for value in metrics["loss"])
        row = {
            "step": step,
            "learning_rate": self.learning_rate(step),
            "loss": _plain(loss / weight),
            "grad_norm": _plain(metrics["grad_norm"]),
            "in_a_row": int(metrics["skipped_steps"]),
            "rows": list(names),
        }
        self.skipped_steps += 1
        logger.warning(
            "step %d: loss or gradients were not finite, so the step was skipped (see divergence.jsonl)", step
        )
        if self._active:
            self._divergence.append(row)

    def evaluated(self, step: int, scores: Mapping | None, steps_per_epoch: int) -> None:
        """Records the scores of an evaluation, whose time does not count as training."""
        if scores is not None:
            self._write(step, "validation", dict(scores))
            logger.info("epoch %.4g, step %d: %s", step / steps_per_epoch, step, told(scores))
        self._reset()

    def publish(self) -> None:
        """Writes where the wall time went, before a checkpoint of the last step, and uploads records in a bucket."""
        if self._active:
            self._write_time()
            self._upload()

    def _write_time(self) -> None:
        self._write(self._step, "time", self.wall.row())

    def _upload(self) -> None:
        if not files.is_remote(self._workdir):
            return
        self._metrics.publish()
        self._divergence.publish()
        self._events.flush()
        folder = self._workdir / "tensorboard"
        folder.mkdir(parents=True, exist_ok=True)
        for file in self._events_folder.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())

    def _write(self, step: int, kind: str, row: dict) -> None:
        if not self._active:
            return
        self._metrics.append({"step": step, "kind": kind, **row})
        for name, value in row.items():
            if isinstance(value, (int, float)):
                self._events.add(f"{kind}/{name}", value, step)


def _plain(value) -> float | None:
    value = float(value)
    return value if np.isfinite(value) else None
