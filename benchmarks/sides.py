"""Programs that take turns on one machine: each in a process of its own, with its own interpreter and threads, told
over a pipe what to do. While one computes, the others wait for their next line.

A side is a module that calls `serve` with what it can do, or a program in another language that reads and answers the
same lines of JSON. Imports nothing but the standard library: the other side's environment has none of ours.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence

ROOT = pathlib.Path(__file__).parent.parent
SECONDS = 1.0  # that a turn should take


class SideError(Exception):
    """A side cannot do what it was asked for; the message is its own."""


class OutOfMemory(SideError):
    """What was asked for does not fit the device."""


class Side:
    """A process that asks and answers; ends with the `with` block."""

    def __init__(self, name: str, command: Sequence[str], env: Mapping[str, str] | None = None, cores: int = 0):
        """Args: env: more variables of its environment; cores: that it may use, of those that we may; 0: all."""
        self.name = name
        allowed = sorted(os.sched_getaffinity(0))[: cores or None]
        # Torch counts the machine's cores, XLA those that it may use.
        threads = {"OMP_NUM_THREADS": str(len(allowed)), "MKL_NUM_THREADS": str(len(allowed))}
        self._process = subprocess.Popen(
            ["taskset", "-c", ",".join(map(str, allowed)), *command],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
            env={**os.environ, **threads, **(env or {})},
        )  # fmt: skip

    def ask(self, do: str, **arguments) -> dict:
        """Raises SideError where the side could not, OutOfMemory where it had no room."""
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise SideError(f"the process of {self.name} ended with status {self._process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise (OutOfMemory if answer["full"] else SideError)(answer["error"])
        return answer

    def __enter__(self) -> "Side":
        return self

    def __exit__(self, *_) -> None:
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


def serve(can: Mapping[str, Callable[..., dict]], is_full: Callable[[Exception], bool]) -> None:
    """Answers the lines of standard input until it ends.

    Args: can: what may be asked for; is_full: whether an exception says that the device's memory is full.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not come between the answers
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = can[request.pop("do")](**request)
        except Exception as error:
            full = is_full(error)
            if not full:
                traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"[:500], "full": full}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def cpu_seconds() -> float:
    """Seconds of CPU time of this process and of the processes that it started. Needs psutil."""
    import psutil

    own = psutil.Process()
    return sum(sum(one.cpu_times()[:2]) for one in [own, *own.children(recursive=True)])


def per_step(steps: int, wall: float, cpu: float) -> dict:
    """A turn's answer: seconds a step, and seconds of CPU time, since the readings of the two clocks."""
    return {"seconds": (time.perf_counter() - wall) / steps, "cpu_seconds": (time.process_time() - cpu) / steps}


def take_turns(sides: list[Side], turns: int) -> dict[str, dict]:
    """What `per_step` says of each side: the medians over its turns, each of about `SECONDS` of steps.

    Every side has started; the order is turned round from one turn to the next.
    """
    counts = {}
    for side in sides:  # the first steps warm up
        once = side.ask("turn", steps=2)["seconds"]
        counts[side.name] = max(1, round(SECONDS / once))
    found = {side.name: [] for side in sides}
    for turn in range(turns):
        for side in sides if turn % 2 == 0 else sides[::-1]:
            found[side.name].append(side.ask("turn", steps=counts[side.name]))
    return {
        name: {key: statistics.median(turn[key] for turn in taken) for key in taken[0]} for name, taken in found.items()
    }
