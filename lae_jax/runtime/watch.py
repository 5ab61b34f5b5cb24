"""Watches a run from outside its loop: signals that ask it to stop, and the time since its last step."""

import contextlib
import faulthandler
import os
import signal
import socket
import threading
from collections.abc import Iterator

from lae_jax.runtime.errors import STALLED

INSISTING = (signal.SIGTERM, signal.SIGINT)
# A closed terminal sends SIGHUP, often twice; schedulers can be told to send SIGUSR1 some time before they kill.
ASKING = (*INSISTING, signal.SIGHUP, signal.SIGUSR1)
_STDERR = 2


class Signals:
    """Requests to stop: a first signal of `ASKING` sets `asked`, a later one of `INSISTING` ends the process at once.

    A SIGHUP that is ignored already, as under nohup, stays ignored.

    A thread reads the signals from a socket. Python's own handlers wait until the main thread returns from C++, which
    never happens if a loader or a device hangs.

    Attributes:
      asked: Whether a signal has arrived.
    """

    def __init__(self):
        self.asked = False

    @contextlib.contextmanager
    def caught(self) -> Iterator["Signals"]:
        """Catches the signals inside the block. Only the main thread can; in any other thread it does nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        self._terminals = [number for number in (1, _STDERR) if _is_terminal(number)]
        ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else set()
        before = {number: signal.signal(number, lambda *_: None) for number in {*ASKING} - ignored}
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

    def _leave_terminals(self) -> None:
        """Sends the output nowhere where it went to a terminal: that is closed, and writing to it would be an error."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for number in self._terminals:
            os.dup2(nowhere, number)
        os.close(nowhere)

    def _read(self, reader: socket.socket) -> None:
        while numbers := reader.recv(64):
            for number in numbers:
                if number not in ASKING:
                    continue
                name = signal.Signals(number).name
                if number == signal.SIGHUP:
                    self._leave_terminals()
                if self.asked and number not in INSISTING:
                    continue
                if self.asked:
                    _say(f"a second signal ({name}): left at once; all steps since the last checkpoint are lost")
                    os._exit(128 + number)
                self.asked = True
                _say(f"{name}: finishing the step, saving, then leaving; a second signal leaves at once")


class Watchdog:
    """Prints the stacks of all threads and ends the process if there is no beat for `minutes`.

    It counts its own ticks instead of reading the clock, so that it does not end a process (or a laptop) that wakes up
    from sleep.
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
        """Restarts the time; call it when something was finished."""
        self._beats += 1
        self._counting = True

    def rest(self) -> None:
        """Stops the time until the next beat; call it before work of unknown length, such as a compilation."""
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


def _is_terminal(number: int) -> bool:
    try:
        return os.isatty(number)
    except OSError:  # it is closed
        return False


def _say(text: str) -> None:
    # Not through logging: the main thread may hold the lock of logging and never release it.
    with contextlib.suppress(OSError):  # nobody reads it, or its disk is full
        os.write(_STDERR, f"\n{text}\n".encode())
