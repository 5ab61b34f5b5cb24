"""What a run writes down while it goes: `metrics.jsonl`, TensorBoard events, and the text of the progress line."""

import json
import logging
import pathlib
import time
from collections.abc import Mapping

import numpy as np
from ml_collections import ConfigDict
from tensorboardX import SummaryWriter

logger = logging.getLogger("lae_jax")


class Journal:
    """Averages over `log_steps` steps: loss as (sum, weight), rate, images/s, share of the time spent waiting for data.

    Lines of steps after `start` are of an earlier try that was not saved and are cut off.
    """

    def __init__(self, workdir: pathlib.Path, start: int, schedule, config: ConfigDict, *, active: bool):
        self._path, self._schedule, self._config, self._active = workdir / "metrics.jsonl", schedule, config, active
        kept = []
        if self._path.exists():
            rows = [json.loads(line) for line in self._path.read_text().splitlines() if line.endswith("}")]
            kept = [row for row in rows if row["step"] <= start]
        last = next((row for row in reversed(kept) if row["kind"] == "train"), {"bad_steps": 0, "seconds": 0.0})
        self.bad_steps, self._seconds_before = last["bad_steps"], last["seconds"]
        self._started = time.perf_counter()
        self._reset()
        if active:
            self._path.write_text("".join(json.dumps(row) + "\n" for row in kept))
            self._file = open(self._path, "a", encoding="utf-8")
            self._events = SummaryWriter(str(workdir / "tensorboard"), purge_step=start + 1)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._active:
            self._file.close()
            self._events.close()

    @property
    def seconds(self) -> float:
        """Of all starts of the run."""
        return self._seconds_before + time.perf_counter() - self._started

    def _reset(self) -> None:
        self._loss, self._weight, self._steps, self._waiting = 0.0, 0.0, 0, 0.0
        self._begun = time.perf_counter()

    def waited(self, seconds: float) -> None:
        """Counts time in which the device had no batch."""
        self._waiting += seconds

    def stepped(self, step: int, metrics: Mapping) -> str:
        """Takes a step's metrics (fetching them); returns the text for the progress line when there is a new one."""
        loss, weight = (float(value) for value in metrics["loss"])
        if bool(metrics["bad"]):
            self.bad_steps += 1
            logger.warning("step %d: loss or gradients were not finite; nothing was changed", step)
        else:
            self._loss, self._weight = self._loss + loss, self._weight + weight
        self._steps += 1
        if step % self._config.log_steps and self._steps < self._config.log_steps:
            return ""
        seconds = max(time.perf_counter() - self._begun, 1e-9)
        row = {
            "loss": self._loss / self._weight if self._weight else None,
            # The optimiser does not count bad steps.
            "rate": float(self._schedule.rate(step - 1 - self.bad_steps)),
            "grad_norm": _plain(metrics["grad_norm"]),
            "images_per_second": self._steps * self._config.batch_size / seconds,
            "waiting": self._waiting / seconds,
            "bad_steps": self.bad_steps,
            "seconds": self.seconds,
        }
        self._write(step, "train", row)
        self._reset()
        loss_text = "not finite" if row["loss"] is None else f"{row['loss']:.4f}"
        return (
            f"loss {loss_text}, rate {row['rate']:.2e}, {row['images_per_second']:.0f} images/s,"
            f" {row['waiting']:.0%} waiting for data"
        )

    def evaluated(self, step: int, scores: Mapping | None, steps_per_epoch: int) -> None:
        """Writes an evaluation's scores; its time does not count as training."""
        if scores is not None:
            self._write(step, "validation", dict(scores))
            told = [f"{k} {v:.3f}" for k, v in scores.items() if isinstance(v, float)]
            logger.info("epoch %.4g, step %d: %s", step / steps_per_epoch, step, ", ".join(told[:6]))
        self._reset()

    def _write(self, step: int, kind: str, row: dict) -> None:
        if not self._active:
            return
        self._file.write(json.dumps({"step": step, "kind": kind, **row}) + "\n")
        self._file.flush()
        for name, value in row.items():
            if isinstance(value, (int, float)):
                self._events.add_scalar(f"{kind}/{name}", value, step)


def _plain(value) -> float | None:
    value = float(value)
    return value if np.isfinite(value) else None
