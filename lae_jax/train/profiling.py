"""`--profile`: a trace of some steps of a run for TensorBoard's profile plugin and for Perfetto."""

import dataclasses
import logging
import os
import pathlib
import re
import shutil
import socket
import tempfile

import jax
from etils import epath

from lae_jax.runtime import files, layout
from lae_jax.runtime.errors import InputError

logger = logging.getLogger("lae_jax")

FOLDER = "profile"
MAX_STEPS = 1000  # viewers read at most a million events, so a trace of more steps is useless
_SKIPPED = 2  # first steps of a start, not traced by `--profile N`: they compile and fill the pipeline


@dataclasses.dataclass(frozen=True)
class Steps:
    """The steps to trace.

    Attributes:
      first: First step, counted from 1 over the whole run; 0: trace the `last` steps after the first two of a start.
      last: Last step, which is traced too.
    """

    first: int
    last: int

    def of_start(self, before: int) -> tuple[int, int]:
        """Returns (first, last) for a start that continues after step `before`."""
        if self.first:
            return self.first, self.last
        return before + _SKIPPED + 1, before + _SKIPPED + self.last


def parse(text: str) -> Steps:
    """Reads '20' or '100:120'.

    Raises:
      InputError: The text has another form, or names too many steps.
    """
    match = re.fullmatch(r"(?:(\d{1,9}):)?(\d{1,9})", text)
    first, last = (int(match[1]) if match[1] else None, int(match[2])) if match else (None, 0)
    if not match or first == 0 or last < (first or 1):
        raise InputError(f"--profile {text}: give a number of steps (--profile 20) or FIRST:LAST (--profile 100:120)")
    if last - (first or 1) >= MAX_STEPS:
        raise InputError(f"--profile {text}: trace at most {MAX_STEPS} steps; viewers cannot open more")
    return Steps(first or 0, last)


class Trace:
    """Traces the steps of a start into `workdir/profile/host<number>`; without steps it does nothing.

    Call `begin(step)` before a step is dispatched and `end(step)` when its results have arrived; by then the next step
    has begun. Leaving the block ends a running trace.
    """

    def __init__(self, workdir: epath.Path, steps: Steps | None, before: int, total: int):
        """Checks that all of the steps are still to come.

        Args:
          workdir: The workdir of the run.
          steps: The steps to trace.
          before: Number of steps that are done.
          total: Number of steps of the run.

        Raises:
          InputError: A step is done already or beyond the end of the run.
        """
        self._first, self._last = steps.of_start(before) if steps else (0, 0)
        if steps and not before < self._first <= self._last <= total:
            raise InputError(
                f"--profile: steps {self._first} to {self._last} are not among the remaining steps, {before + 1} to"
                f" {total}: name some of those"
            )
        self._folder = workdir / FOLDER / f"host{jax.process_index()}"
        self._running = False

    def __enter__(self) -> "Trace":
        return self

    def __exit__(self, *_) -> None:
        self._stop()

    def begin(self, step: int) -> None:
        """Starts the trace if `step` is the first one to trace."""
        if step != self._first:
            return
        # The profiler cannot write into a bucket: its files are copied there.
        self._written = tempfile.mkdtemp() if files.is_remote(self._folder) else os.fspath(self._folder)
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # it records a million events a second, and each slows its function down
        jax.profiler.start_trace(self._written, profiler_options=options)
        self._running = True

    def end(self, step: int) -> None:
        """Ends the trace if `step` is the last one to trace."""
        if step == self._last:
            self._stop()

    def _stop(self) -> None:
        if not self._running:
            return
        self._running = False
        try:
            self._write()
        except Exception as error:  # the profiler has errors of its own; the run is worth more than its trace
            logger.warning("%s: the trace could not be written (%s). The run continues", self._folder, error)

    def _write(self) -> None:
        jax.profiler.stop_trace()
        if os.fspath(self._folder) != self._written:
            written = pathlib.Path(self._written)
            for path in written.rglob("*"):
                if path.is_file():
                    target = self._folder / path.relative_to(written)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(path.read_bytes())
            shutil.rmtree(written)
        traces = self._folder / "plugins" / "profile"
        newest = traces / max(layout.contents(traces))
        logger.info(
            "the trace is written: open %s/%s.trace.json.gz in Perfetto (docs/training.md)",
            newest,
            socket.gethostname(),
        )
