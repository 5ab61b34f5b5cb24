"""What benchmarks share: a command line, clocks, sides that take turns, and how the result is printed.

A benchmark compares sides of one run: they take turns, the order is reversed from one turn to the next, and what counts
are medians and the ratios of a run. Other processes as sides, of other environments too: `sides`.
"""

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from lae_jax.runtime import console, start


def parser(description: str) -> argparse.ArgumentParser:
    """A command line whose help is the module's docstring."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def now() -> np.ndarray:
    """(2,) seconds of wall time, and of this process's CPU time."""
    return np.array([time.perf_counter(), time.process_time()])


def take_turns(
    sides: Mapping[str, Callable[[], object]], turns: int, warm_up: int = 1, before: Callable[[], None] = lambda: None
) -> dict[str, np.ndarray]:
    """Seconds of wall and CPU time of each side in each turn: {name: (turns, 2)}.

    Args:
      sides: What is measured, by name.
      turns: Turns that count.
      warm_up: Turns before them, which compile and fill caches.
      before: Runs before each side, unmeasured.
    """
    found = {name: [] for name in sides}
    for turn in range(-warm_up, turns):
        for name, side in list(sides.items())[:: 1 if turn % 2 else -1]:
            before()
            begun = now()
            side()
            if turn >= 0:
                found[name].append(now() - begun)
    return {name: np.array(taken) for name, taken in found.items()}


def rates(counts: Mapping[str, float] | float, seconds: Mapping[str, np.ndarray]) -> dict[str, list[float]]:
    """Medians by side of `counts` (of each side, or of all) a second, of wall time and of CPU time."""
    each = counts if isinstance(counts, Mapping) else dict.fromkeys(seconds, counts)
    return {name: np.median(each[name] / taken, axis=0).tolist() for name, taken in seconds.items()}


def show(content: Mapping, header: Sequence[str], rows: Sequence[Sequence]) -> None:
    """Prints a result: a line of JSON for programs, a table for people."""
    print(json.dumps(content, default=lambda value: value.tolist()))
    print(console.table(header, rows))


def run(main: Callable[[], None]) -> None:
    """Runs a benchmark's main as the programs of lae_jax run. Signals that ask it to end raise SystemExit, so that it
    ends the processes that it started."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:  # under nohup SIGHUP is ignored
            signal.signal(number, lambda number, _: sys.exit(128 + number))
    start.program(main)
