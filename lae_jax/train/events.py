"""TensorBoard's events of a run, written beside it: a run goes on where they cannot be written."""

import contextlib
import logging
import os
import pathlib
import queue
import socket
import threading
import time

from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import RecordWriter

logger = logging.getLogger("lae_jax")

_WAITING = 1000  # scalars that may wait to be written
_SECONDS = 10.0  # to write what waits, at a flush or at the end


class Events:
    """Scalars for TensorBoard.

    They are written in a thread of their own, so that a slow disk does not hold up the training. tensorboardX's
    SummaryWriter has such a thread too, but it ends at the first error, as of a full disk, with a traceback, and the
    next calls wait for it for ever. Hence the writer of records below it.
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
            self._folder.mkdir(parents=True, exist_ok=True)
            name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
            writer = RecordWriter(os.fspath(self._folder / name))
            try:
                _write_event(writer, file_version="brain.Event:2")
                _write_event(writer, step=self._start + 1, session_log=SessionLog(status=SessionLog.START))
                while True:
                    name, value, step = self._queue.get()
                    if value is None:
                        writer.flush()
                        return
                    if isinstance(value, threading.Event):
                        writer.flush()
                        value.set()
                    else:
                        _write_event(writer, step=step, summary=summary.scalar(name, value))
            finally:
                # It has been flushed, or the disk is full, which the error that is under way says.
                with contextlib.suppress(OSError):
                    writer.close()
        except OSError as error:
            self._lose(f"the events cannot be written ({error})")


def _write_event(writer: RecordWriter, **fields: object) -> None:
    writer.write(Event(wall_time=time.time(), **fields).SerializeToString())
