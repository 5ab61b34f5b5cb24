"""SIGHUP: a request to load the run again, or the end of the terminal, which ends the server."""

import os
import signal
from collections.abc import Callable


def handle(reload: Callable[[], None]) -> None:
    """Sets the handler of SIGHUP. A SIGHUP that is ignored already, as under nohup, stays ignored.

    Args:
      reload: Called at each SIGHUP, unless the terminal that the program was started in is gone.
    """
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        return
    had_terminal = _has_terminal()

    def told(*_) -> None:
        if had_terminal and not _has_terminal():
            signal.raise_signal(signal.SIGTERM)
        else:
            reload()

    signal.signal(signal.SIGHUP, told)


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True
