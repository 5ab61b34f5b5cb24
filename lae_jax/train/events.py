"""TensorBoard's events of a run, written beside it: a run goes on where they cannot be written."""

import logging
import pathlib
import queue
import threading

from tensorboardX import SummaryWriter

logger = logging.getLogger("lae_jax")

_WAITING = 1000  # scalars that may wait to be written
_SECONDS = 10.0  # to write what waits, at a flush or at the end


class Events:
    """Scalars for TensorBoard.

    tensorboardX hands its events to a thread that ends at the first error, as of a full disk; the next calls would
    wait for it for ever. So they are made in a thread of their own.
    """

    def __init__(self, folder: pathlib.Path, start: int):
        """Starts to write.

        Args:
          folder: Folder of the events.
          start: Step after which earlier events of the folder are hidden.
        """
        self._folder, self._start = folder, start
        self._queue: queue.Queue = queue.Queue(_WAITING)
        self._is_lost = False
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._thread.start()

    def add(self, name: str, value: float, step: int) -> None:
        """Adds a scalar. It never waits."""
        if self._is_lost:
            return
        try:
            self._queue.put_nowait((name, value, step))
        except queue.Full:
            self._lose("the events do not reach the disk")

    def flush(self) -> None:
        """Waits for what was added, for some seconds at most."""
        done = threading.Event()
        self.add("", done, 0)
        if not self._is_lost and not done.wait(_SECONDS):
            self._lose("the events do not reach the disk")

    def close(self) -> None:
        """Ends the writing, after some seconds at most."""
        self.flush()
        self.add("", None, 0)
        self._thread.join(0 if self._is_lost else _SECONDS)

    def _lose(self, reason: str) -> None:
        self._is_lost = True
        logger.warning("%s: %s. The run continues without them; metrics.jsonl has all numbers", self._folder, reason)

    def _write(self) -> None:
        try:
            writer = SummaryWriter(str(self._folder), purge_step=self._start + 1)
            while True:
                name, value, step = self._queue.get()
                if value is None:
                    writer.close()
                    return
                if isinstance(value, threading.Event):
                    writer.flush()
                    value.set()
                else:
                    writer.add_scalar(name, value, step)
        except OSError as error:
            self._lose(f"the events cannot be written ({error})")
