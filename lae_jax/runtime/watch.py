"""What watches over a run from outside its loop: signals that ask it to stop, and the time since its last step."""

import contextlib
import faulthandler
import os
import signal
import socket
import threading
from collections.abc import Iterator

from lae_jax.runtime.errors import STALLED

ASKING = (signal.SIGTERM, signal.SIGINT)
_STDERR = 2


class Signals:
    """`asked` is True after a first SIGTERM or SIGINT; a second one ends the process at once.

    A thread reads them from a socket: Python's own handlers wait until the main thread comes back from C++, and a
    loader or a device that hangs never does.
    """

    def __init__(self):
        self.asked = False

    @contextlib.contextmanager
    def caught(self) -> Iterator["Signals"]:
        """Catches the signals inside the block (only the main thread can; elsewhere nothing is caught)."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        before = {number: signal.signal(number, lambda *_: None) for number in ASKING}
        wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        thread = threading.Thread(target=self._read, args=(reader,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
            writer.close()
            thread.join()
            reader.close()

    def _read(self, reader: socket.socket) -> None:
        while numbers := reader.recv(64):
            for number in numbers:
                if number not in ASKING:
                    continue
                name = signal.Signals(number).name
                if self.asked:
                    _say(f"a second signal ({name}): left at once, what was done since the last checkpoint is lost")
                    os._exit(128 + number)
                self.asked = True
                _say(f"{name}: finishing the step, saving, then leaving; a second signal leaves at once")


class Watchdog:
    """Ends the process, with the stacks of all threads, when nothing happens for `minutes`.

    It counts ticks of its own and not the clock, so that a process (or a laptop) that was asleep is not ended when it
    wakes up.
    """

    TICKS = 60

    def __init__(self, minutes: float):
        self._minutes = minutes
        self._counting, self._beats = False, 0
        self._ended = threading.Event()

    def __enter__(self) -> "Watchdog":
        self._thread = threading.Thread(target=self._count, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._ended.set()
        self._thread.join()

    def beat(self) -> None:
        """Something was finished: the time counts from here."""
        self._beats += 1
        self._counting = True

    def rest(self) -> None:
        """No time counts until the next beat: something of unknown length begins, a compilation above all."""
        self._counting = False

    def _count(self) -> None:
        ticks, seen = 0, 0
        while not self._ended.wait(self._minutes * 60 / self.TICKS):
            if not self._counting or self._beats != seen:
                ticks, seen = 0, self._beats
                continue
            ticks += 1
            if ticks >= self.TICKS:
                _say(f"no step ended for {self._minutes:g} minutes (config.stall_minutes); the stacks of all threads:")
                faulthandler.dump_traceback(_STDERR, all_threads=True)
                os._exit(STALLED)


def _say(text: str) -> None:
    # Not through logging: the main thread may hold its lock and never give it back.
    os.write(_STDERR, f"\n{text}\n".encode())
