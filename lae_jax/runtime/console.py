"""Output in the terminal: log lines, a progress line, tables."""

import contextlib
import io
import logging
import os
import sys
import time
import warnings
from collections.abc import Iterable, Sequence

import rich.box
import rich.console
import rich.table
import rich.text
import tqdm

from lae_jax.runtime import foreign

logger = logging.getLogger("lae_jax")


class Formatter(logging.Formatter):
    """Formats a record as one line, `12:00:00 message`, and a traceback below it, as `foreign.shown` does."""

    def __init__(self):
        super().__init__("%(asctime)s %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Returns the line."""
        return foreign.shown(super().formatMessage(record))

    def formatException(self, ei: tuple) -> str:
        """Returns the traceback."""
        return foreign.shown_lines(super().formatException(ei))


_format_warning = warnings.formatwarning


def _formatted_warning(*parts) -> str:
    return foreign.shown_lines(_format_warning(*parts))


def setup_logging() -> None:
    """Sends the log of this package to standard error, and silences the start-up messages of libraries.

    Python's warnings get escapes in place of control characters, like the log.
    """
    warnings.formatwarning = _formatted_warning
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(Formatter())
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
    logging.getLogger("jax").setLevel(logging.ERROR)
    # Orbax also logs the traceback of each error that it raises.
    for chatty in ("absl", "orbax"):
        logging.getLogger(chatty).setLevel(logging.CRITICAL)


# With fewer items in total, or after fewer seconds, the speed does not predict how long the rest takes.
_FEW, _FEW_SECONDS = 10, 1.0
# Seconds between the lines of the log where standard error is not a terminal, and the widest of them.
EVERY, _WIDTH = 30.0, 120


class _Line(tqdm.tqdm):
    """`prepare  1,203/6,184 images  19 %  482/s  0:10 left`; a narrow terminal shows less of it."""

    _first: tuple[int, float] | None = None  # number of items and time at the first update

    def __str__(self) -> str:
        shown = self.format_dict
        done, elapsed, width = shown["n"], shown["elapsed"], shown["ncols"]
        share = speed = ends = ""
        if self.total:
            share = f"{100 * done // self.total} %"
        rate = self._rate(done, elapsed)
        if rate:
            speed = f"{rate:,.{0 if rate >= 10 else 1 if rate >= 1 else 2}f}/s"
        if not self.total or done >= self.total:
            ends = f"in {clock(elapsed)}"
        elif rate:
            ends = f"{clock((self.total - done) / rate)} left"
        name = f"{foreign.shown(shown['prefix'])}  {done:,}{f'/{self.total:,}' if self.total else ''} {self.unit}"
        further = shown["postfix"] or ""
        # The least useful parts are dropped first.
        for words in ((share, speed, ends, further), (share, speed, ends), (share, ends), (ends,), ()):
            text = "  ".join([name, *filter(None, words)])
            if len(text) <= width:
                return text
        return name[:width]

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Draws the line. The work goes on if the terminal is gone."""
        with contextlib.suppress(OSError):
            super().display(msg, pos)

    def close(self) -> None:
        """Ends the line, likewise."""
        with contextlib.suppress(OSError):
            super().close()

    def _rate(self, done: int, elapsed: float) -> float | None:
        """Items per second, counted from the first update: workers start and a step compiles before it."""
        if self._first is None and done > self.initial:
            self._first = done, elapsed
        if self._first is None or (self.total and self.total < _FEW):
            return None
        since, seconds = done - self._first[0], elapsed - self._first[1]
        return since / seconds if since and seconds >= _FEW_SECONDS else None


class _Log(_Line):
    """The same line in the log, once every `EVERY` seconds: for a file, a pipe, a scheduler, a notebook."""

    _told: float | None = None  # when the last line was logged

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Logs the line if it is time. tqdm calls this often, and with an empty message at the end."""
        now, text = time.monotonic(), str(self)
        if self._told is None:
            self._told = now
        if msg is None and now - self._told >= EVERY:
            self._told = now
            logger.info("%s", text)


def progress(
    iterable: Iterable | None = None,
    *,
    total: int | None = None,
    what: str,
    unit: str,
    active: bool = True,
    initial: int = 0,
    leave: bool = True,
) -> tqdm.tqdm:
    """Returns a progress line on standard error; where that is not a terminal, a line in the log every `EVERY` seconds.

    Args:
      iterable: Its items are counted; without it `update(n)` counts.
      total: Number of items; 0: nothing is shown.
      what: Name of the work.
      unit: Name of the items, in the plural.
      active: False shows nothing: on all hosts but the first.
      initial: Number of items that were done before.
      leave: Whether the line stays when it is done.
    """
    known, is_terminal = _has_size(), sys.stderr is not None and sys.stderr.isatty()
    return (_Line if is_terminal else _Log)(
        iterable,
        file=None if is_terminal else io.StringIO(),  # nothing is drawn
        total=total,
        desc=what,
        unit=unit,
        disable=not active or total == 0,
        dynamic_ncols=known,
        ncols=None if known else 80 if is_terminal else _WIDTH,
        nrows=None if known else 24,
        mininterval=0.2,
        miniters=1,
        initial=initial,
        leave=leave,
    )


def _has_size() -> bool:
    """Whether the terminal reports its size; if not, it has 0 columns or lines."""
    try:
        return all(os.get_terminal_size(sys.stderr.fileno()))
    except (OSError, ValueError):  # not a terminal
        return False


def clock(seconds: float) -> str:
    """Formats a time in seconds as 0:09 or 1:02:09."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def counted(number: int, one: str, many: str | None = None) -> str:
    """Returns '1 face' or '1,203 faces'; `many` is the plural if it is not `one` with an s."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def write(*lines: str) -> None:
    """Writes lines to standard output, above a progress line, each as `foreign.shown`."""
    with tqdm.tqdm.external_write_mode():
        for line in lines:
            print(foreign.shown(line), flush=True)


_LINES = rich.box.Box("    \n    \n -- \n" + "    \n" * 5, ascii=True)  # a rule below the header


def table(header: Sequence[str], rows: Sequence[Sequence]) -> str:
    """Returns a plain table as text.

    Args:
      header: Titles of the columns. The first column is left-aligned, all other columns are right-aligned.
      rows: Cells, each as `foreign.shown`; floats get two digits.
    """
    shown = rich.table.Table(box=_LINES, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for number, title in enumerate(header):
        shown.add_column(rich.text.Text(foreign.shown(title)), justify="right" if number else "left", no_wrap=True)
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"{len(row)} cells below {len(header)} titles: {row}")
        texts = (f"{cell:.2f}" if isinstance(cell, float) else foreign.shown(str(cell)) for cell in row)
        shown.add_row(*map(rich.text.Text, texts))
    # At its full width, because the reader may be a program.
    console = rich.console.Console(file=io.StringIO(), width=10_000, color_system=None)
    console.print(shown)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())
