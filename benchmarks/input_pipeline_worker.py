"""What every side of `input_pipeline` has in common, with the standard library alone: the peers' side uses it too."""

import argparse
import json
import multiprocessing
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator

# A thread of a mathematical library beside the one that is measured would be a second core.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")


def arguments(kinds: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=kinds)
    parser.add_argument("--cores", action="store_true", help="all cores, not one")
    for name in ("--pictures", "--data"):
        parser.add_argument(name, required=True)
    for name in ("--image_size", "--batch", "--batches"):
        parser.add_argument(name, type=int, required=True)
    return parser.parse_args()


def bind(args: argparse.Namespace) -> None:
    """To one core, before libraries count the cores. Where the system cannot, CPU time is still that of one thread."""
    if not args.cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def _cpu() -> float:
    """Seconds of CPU time of this process and of a DataLoader's workers."""
    seconds = time.process_time()
    for child in multiprocessing.active_children():
        for thread in pathlib.Path(f"/proc/{child.pid}/task").iterdir():
            seconds += int((thread / "schedstat").read_text().split()[0]) / 1e9
    return seconds


def _settled() -> tuple[float, float]:
    """Waits until nothing has run in this process for a tenth of a second; (wall, cpu) of when something last did."""
    wall, cpu = time.perf_counter(), _cpu()
    before = cpu
    while time.perf_counter() - wall < 0.1:
        time.sleep(0.005)
        now = _cpu()
        if now - before > 0.001:  # more than looking takes
            wall, cpu = time.perf_counter(), now
        before = now
    return wall, cpu


def serve(args: argparse.Namespace, batches: Callable[[], Iterator]) -> None:
    """Answers each line on standard input with the times of `args.batches` batches.

    Buffers that are filled ahead are as full at the end of a turn as they were at its start, so a turn's time is that
    of as many batches as were taken.
    """
    out, sys.stdout = sys.stdout, sys.stderr
    stream = batches()

    def turn() -> dict:
        wall, cpu = time.perf_counter(), _cpu()
        images = sum(len(next(stream)) for _ in range(args.batches))
        wall_end, cpu_end = _settled()
        return {"images": images, "wall": wall_end - wall, "cpu": cpu_end - cpu}

    # Two turns: until buffers are full, all operations compiled, and the clocks of the cores up.
    for _ in range(2):
        turn()
    print(json.dumps("ready"), file=out, flush=True)
    for _ in sys.stdin:
        print(json.dumps(turn()), file=out, flush=True)
