"""What a person sees in the terminal: log lines, the one progress line, tables, and errors without a traceback."""

import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence

import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from lae_jax.errors import Ended

logger = logging.getLogger("lae_jax")


def setup_logging() -> None:
    """Sends this package's log to standard error, and silences the start-up chatter of the libraries."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
    logging.getLogger("jax").setLevel(logging.ERROR)
    # Orbax logs the traceback of whatever it raises as well.
    for chatty in ("absl", "orbax"):
        logging.getLogger(chatty).setLevel(logging.CRITICAL)


def progress(iterable: Iterable | None = None, *, total: int | None = None, what: str = "", unit: str = "it", **kwargs):
    """A tqdm progress line on standard error; nothing at all where that is no terminal."""
    return tqdm.tqdm(iterable, total=total, desc=what, unit=unit, disable=None, dynamic_ncols=True, **kwargs)


def write(text: str) -> None:
    """A line on standard output, above a progress line."""
    tqdm.tqdm.write(text)


def table(header: Sequence[str], rows: Sequence[Sequence]) -> str:
    """Lines of a plain table: the first column to the left, the others to the right; floats with two digits."""
    cells = [[f"{c:.2f}" if isinstance(c, float) else str(c) for c in row] for row in [header, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = [
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(r, widths, strict=True)))
        for r in cells
    ]
    return "\n".join([lines[0], "  ".join("-" * w for w in widths), *lines[1:]])


def door(main: Callable[[], None], leave: Callable[[int], None] = sys.exit) -> None:
    """Runs a program's main: log lines on; an end with a status of its own is one line on standard error.

    Args: leave: ends the process with a status other than 0.
    """
    setup_logging()
    try:
        with logging_redirect_tqdm(loggers=[logger]):
            main()
        return
    except Ended as end:
        print(f"{end.label}: {end}", file=sys.stderr)
        status = end.status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    except Exception:
        traceback.print_exc()
        status = 1
    leave(status)
