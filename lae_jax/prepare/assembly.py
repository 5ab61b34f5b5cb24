"""Assembly of a prepared data set from a source: splits, and the processes that write shards."""

import concurrent.futures
import concurrent.futures.process
import contextlib
import dataclasses
import logging
import multiprocessing
import pathlib
import signal
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lae_jax import metrics
from lae_jax.data import joining, parquet, shards, splits, stems
from lae_jax.data.sources import interface
from lae_jax.faces import crops, perceptual_hash
from lae_jax.runtime import console, cpu, files, start
from lae_jax.runtime.errors import InputError, Unreachable, end_all

if TYPE_CHECKING:
    from lae_jax.data import beam

logger = logging.getLogger("lae_jax")

# People are counted exactly with at most this many rows; with more, only where names are as few as parts.
_FEW = 10_000
# Perceptual hashes of at most this many images are compared: 600,000 take 8 seconds, and this bounds the memory.
_NEAR_AT_MOST = 2_000_000


@dataclasses.dataclass(frozen=True)
class Splitting:
    """How to split rows where the source names no splits: arguments of `lae_jax.prepare.prepare`."""

    ratio: tuple[int, ...] | None
    folds: int | None
    by: str | None
    seed: int

    @property
    def parts(self) -> int:
        """The number of parts that every row is in one of: of splits, or of folds."""
        return self.folds + (self.ratio is not None) if self.folds else len(self.ratio)


def splitter(how: Splitting, column: Callable[[str], pa.ChunkedArray]) -> joining.Splits:
    """Splits the rows of a data set.

    Args:
      how: The way to split, where the source names no splits.
      column: Returns a column by its name; raises KeyError if there is none.

    Returns:
      (protocol, rows of each split, rows that were removed from train).

    Raises:
      InputError: The rows cannot be split in this way.
    """
    names = column("split")
    if how.folds is None and _any(names):
        return "column", *splits.by_column(names, column("sha256"))
    identity = column("identity")
    by = _by(how, identity)
    ages = _ages(column)
    photograph = stems.of_one_photograph(column("name"), ages, identity)
    near = _near(column, len(names))
    group = splits.groups(column("sha256"), near, photograph, *([identity] if by == "identity" else []))
    return by, _parted(how, group, ages), np.zeros(0, np.int64)


def _ages(column: Callable[[str], pa.ChunkedArray]) -> list[pa.ChunkedArray]:
    """Returns the ages, in one column; in two, the first and the last ages of their ranges, if an age is a range."""
    try:
        return [column(name) for name in parquet.RANGE]
    except KeyError:
        return [column("age")]


def _by(how: Splitting, identity: pa.ChunkedArray) -> str:
    known = _any(identity)
    if how.by == "identity" and not known:
        raise InputError("--by identity, but the source has no identities: add an `identity` column or use --by image")
    return how.by or ("identity" if known else "image")


def _parted(how: Splitting, group: np.ndarray, ages: list[pa.ChunkedArray]) -> Mapping[str, np.ndarray]:
    columns = [column.to_numpy().astype(np.float64) for column in ages]  # NaN where unknown
    years = columns[0] if len(columns) == 1 else metrics.label_age(np.stack(columns, axis=1))
    known, kind = np.isfinite(years), np.full(len(years), -1)
    kind[known] = metrics.extended_group(years[known])
    if how.folds is not None:
        return splits.by_fold(group, how.folds, how.seed, kind, how.ratio)
    return splits.by_ratio(group, how.ratio, how.seed, kind)


def _check_splits(how: Splitting, table: pa.Table) -> None:
    """Raises InputError, before any image is read, where the rows cannot be split even if none is rejected."""
    count, identity = table.num_rows, table["identity"]
    if not count or (how.folds is None and _any(table["split"])):
        return
    people = _by(how, identity) == "identity"
    if count > _FEW and not (people and pc.count_distinct(identity).as_py() <= how.parts):
        return
    groups = len(np.unique(splits.groups(identity))) if people else count
    if groups < how.parts:
        told = console.counted(count, "image")
        told = f"{console.counted(groups, 'person', 'people')} in {told}" if people else told
        raise InputError(f"{told}: too few for {how.folds or how.parts} {_ways(how, groups, people)}")


def _ways(how: Splitting, groups: int, people: bool) -> str:
    """What cannot be made of too few groups of images, and what can."""
    fewer = f"--folds {groups}{' without --ratio' * bool(how.ratio)}" if how.folds else "--ratio 4:1 (without test)"
    ways = [fewer] * (2 <= groups < how.parts)
    ways += ["--by image (a person may then be on both sides)"] * people
    ways.append(f"more {'people' if people else 'images'}")
    what = "splits" if how.folds is None else "folds and a test split" if how.ratio else "folds"
    return f"{what}. What works: {', or '.join(ways)}"


def _near(column: Callable[[str], pa.ChunkedArray], count: int) -> np.ndarray:
    """Returns a text for each row that nearly identical pictures share; '' for pictures without such a partner."""
    if count > _NEAR_AT_MOST:
        logger.warning(
            "more than %d images, so nearly the same pictures may be in different splits: the audit reports them",
            _NEAR_AT_MOST,
        )
        return np.full(count, "", object)
    hashes = b"".join(column("phash").to_pylist())
    number = perceptual_hash.clusters(np.frombuffer(hashes, np.uint8).reshape(-1, perceptual_hash.BYTES))
    return np.array(["" if n < 0 else str(n) for n in number], object)


def _any(texts: pa.ChunkedArray) -> bool:
    return bool(pc.any(pc.not_equal(texts, "")).as_py())  # null where every text is null


def prepare(
    read: Callable[[], interface.Source],
    out: str,
    way: "Processes | beam.Beam",
    *,
    reader: str,
    recipe: crops.Recipe,
    shards_wanted: int,
    how: Splitting,
) -> dict:
    """Reads, checks, shards and splits a source.

    Args:
      read: Returns the source.
      out: Folder of the prepared data set.
      way: Writer of the shards.
      reader: Name of the reader.
      recipe: How faces are cropped.
      shards_wanted: Number of shards; 0: chosen by the number of images.
      how: The way to split, where the source names no splits.

    Returns:
      The manifest.

    Raises:
      InputError: The source, `out` or the way to split cannot be used.
    """
    source = read()
    rejected = source.rejected
    with way.folder() as folder:
        try:
            _check_splits(how, source.table)
        except InputError as error:
            if not len(rejected):
                raise
            raise InputError(f"{error}. {shards.list_rejected(source, folder, recipe)}") from error
        tasks = shards.plan(source, folder, reader, recipe, shards_wanted)
        del source  # frees its table, which the tasks read from a file
        missing = way.missing(tasks)
        if len(missing) < len(tasks):
            logger.info("%s: %d of %d shards are already complete", out, len(tasks) - len(missing), len(tasks))
        if len(missing) > 1:
            logger.info("%s: %s; Ctrl-C keeps the complete ones", out, _shards(tasks))
        try:
            with console.progress(total=sum(task.num_rows for task in missing), what="prepare", unit="images") as line:
                way.write(missing, line.update)
        except (KeyboardInterrupt, Unreachable):
            logger.info("%s", _kept(out, tasks))
            raise
        return joining.finish(tasks, rejected, lambda column: splitter(how, column))


def _shards(tasks: list[shards.ShardTask]) -> str:
    return f"{console.counted(len(tasks), 'shard')} of at most {max(task.num_rows for task in tasks):,} images"


def _kept(out: str, tasks: list[shards.ShardTask]) -> str:
    """What a stopped preparation keeps."""
    if files.is_remote(out):
        return f"{out} keeps the complete shards: run the same command to continue"
    rows = [task.num_rows for task in tasks if task.path.exists()]
    if not rows:
        return f"{out}: no shard was complete yet ({_shards(tasks)}): run the same command to start again"
    return (
        f"{out} keeps {len(rows)} of {console.counted(len(tasks), 'shard')} ({sum(rows):,} of"
        f" {console.counted(tasks[0].source_rows, 'image')}): run the same command to continue"
    )


_DIED = (
    "a worker process died before it could start or finish. In a script of your own, call prepare below"
    " if __name__ == '__main__': (each worker imports the script), or pass workers=1. Else the machine may lack memory:"
    " pass fewer --workers"
)


class Processes:
    """Writes shards with processes of this machine into a local folder.

    Where JAX has an accelerator and faces are searched for, threads of this process take the place of the processes:
    only one process can own an accelerator. Each thread writes a shard, so while the accelerator finds the faces of one
    shard, the photographs of others are decoded, in processes of their own (`faces.decoders`), cut and encoded.
    """

    def __init__(self, out: str, workers: int):
        self._out, self._workers = pathlib.Path(out), workers

    def folder(self) -> contextlib.AbstractContextManager[pathlib.Path]:
        """Returns a context with the folder of the data set."""
        return contextlib.nullcontext(self._out)

    def missing(self, tasks: list[shards.ShardTask]) -> list[shards.ShardTask]:
        """Returns the tasks whose shards are not complete."""
        return shards.missing(tasks)

    def write(self, tasks: list[shards.ShardTask], tick: Callable[[int], None]) -> None:
        """Writes the shards.

        Args:
          tasks: The shards to write.
          tick: Called with the number of source rows that were processed since its last call.
        """
        workers = min(self._workers, len(tasks))
        finds_faces = any(task.recipe.align == "landmarks" for task in tasks)
        on_accelerator = finds_faces and _has_accelerator()
        if workers <= 1:
            if finds_faces and not on_accelerator and start.is_program:  # it then makes the same bytes as several
                _start_jax()
            for task in tasks:
                shards.write_shard(task, tick=tick)
        elif on_accelerator:
            _in_threads(tasks, workers, tick)
        else:
            _in_processes(tasks, workers, finds_faces, tick)


def _has_accelerator() -> bool:
    """Whether JAX has an accelerator in this process. A program sets JAX up here."""
    if cpu.only_cpus():
        return False
    import jax

    if start.is_program:
        start.devices()
    if jax.default_backend() == "cpu":
        cpu.warn_of_unused_accelerator(has_plugin=True)
    return jax.default_backend() != "cpu"


class _Stopped(Exception):
    """Another thread failed, or the user stopped the program."""


def _in_threads(tasks: list[shards.ShardTask], workers: int, tick: Callable[[int], None]) -> None:
    rows, stopped = multiprocessing.Value("q", 0), threading.Event()

    def done(count: int) -> None:
        if stopped.is_set():
            raise _Stopped
        with rows.get_lock():
            rows.value += count

    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        running = {pool.submit(shards.write_shard, task, tick=done) for task in tasks}
        try:
            _wait(running, rows, tick)
        except BaseException as error:
            end_all(type(error), stopped.set, lambda: pool.shutdown(cancel_futures=True))
            raise


def _in_processes(tasks: list[shards.ShardTask], workers: int, finds_faces: bool, tick: Callable[[int], None]) -> None:
    # Not fork: the parent may have threads.
    context = multiprocessing.get_context("spawn")
    rows = context.Value("q", 0)
    others = {*multiprocessing.active_children()}
    with concurrent.futures.ProcessPoolExecutor(workers, context, _start_worker, (rows, finds_faces)) as pool:
        running = {pool.submit(_write_in_worker, task) for task in tasks}
        try:
            _wait(running, rows, tick)
        except concurrent.futures.process.BrokenProcessPool as error:
            raise InputError(_DIED) from error
        except BaseException as error:
            children = {*multiprocessing.active_children()} - others
            end_all(type(error), *(child.terminate for child in children), lambda: pool.shutdown(cancel_futures=True))
            raise


def _wait(running: set[concurrent.futures.Future], rows, tick: Callable[[int], None]) -> None:
    """Waits for all shards; tells meanwhile how many `rows`, a shared number, are done. Raises the first error."""
    seen = 0
    while running:
        done, running = concurrent.futures.wait(running, 0.5, concurrent.futures.FIRST_EXCEPTION)
        now = rows.value
        tick(now - seen)
        seen = now
        for one in done:
            one.result()


_rows_done = None  # in a worker: the rows that all workers have processed


def _start_worker(rows, finds_faces: bool) -> None:
    global _rows_done
    _rows_done = rows
    # Ctrl-C reaches all processes of a terminal; the parent ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if finds_faces:
        _start_jax()


def _start_jax() -> None:
    cpu.one_thread()
    start.devices()


def _write_in_worker(task: shards.ShardTask) -> None:
    def tick(rows: int) -> None:
        with _rows_done.get_lock():
            _rows_done.value += rows

    shards.write_shard(task, tick=tick)
