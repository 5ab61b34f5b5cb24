"""What every side of `input_pipeline` has in common, with the standard library alone: the peers' side uses it too."""

import multiprocessing
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace

from benchmarks import sides

# Environment of a side: a thread of a mathematical library beside the one that is measured would be a second core.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


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


class Pipeline:
    """A pipeline that is started once and then takes turns of `batches` batches.

    Buffers that are filled ahead are as full at the end of a turn as they were at its start, so a turn's time is that
    of as many batches as were taken.
    """

    def __init__(self, kinds: Mapping[str, Callable[[SimpleNamespace], Iterator]]):
        self._kinds = kinds

    def start(self, kind: str, **given) -> dict:
        """Starts a kind of pipeline: pictures, data (folders), image_size, batch, batches, cores (0: all)."""
        given = SimpleNamespace(**given)
        self._stream, self._batches = self._kinds[kind](given), given.batches
        # Two turns: until buffers are full, all operations compiled, and the clocks of the cores up.
        for _ in range(2):
            self.turn()
        return {}

    def turn(self) -> dict:
        """The images of a turn, and its seconds of wall and CPU time."""
        wall, cpu = time.perf_counter(), _cpu()
        images = sum(len(next(self._stream)) for _ in range(self._batches))
        wall_end, cpu_end = _settled()
        return {"images": images, "wall": wall_end - wall, "cpu": cpu_end - cpu}


def serve(kinds: Mapping[str, Callable[[SimpleNamespace], Iterator]]) -> None:
    """Answers what `input_pipeline` asks of a side."""
    pipeline = Pipeline(kinds)
    sides.serve({"start": pipeline.start, "turn": pipeline.turn}, lambda error: False)
