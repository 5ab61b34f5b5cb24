"""Makes a prepared data set from photographs.

python -m lae_jax.prepare --reader csv --source faces.csv --out data/faces                   (photographs)
python -m lae_jax.prepare --reader csv --source crops.csv --align none --out data/faces      (face crops)
python -m lae_jax.prepare --reader csv --source train=train.csv --source test=test.csv --images photos --out data/faces
python -m lae_jax.prepare --reader folders --source people/ --out data/people
python -m lae_jax.prepare --reader synthetic --source train=4000 --source validation=1000 --out data/drawn
"""

import argparse
import contextlib
import importlib.util
import logging
import multiprocessing
import os
import pathlib
import signal
from collections.abc import Callable, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lae_jax.audit import saved
from lae_jax.data import joining, shards, splits
from lae_jax.data.sources import readers
from lae_jax.faces import crops, perceptual_hash
from lae_jax.runtime import console, cpu, layout
from lae_jax.runtime.errors import InputError
from lae_jax.runtime.files import is_remote

logger = logging.getLogger("lae_jax")

# Rows whose splits are tried before images are read: of more than these, none will be empty.
_FEW = 10_000
# Images whose perceptual hashes are compared: 600,000 take 8 seconds, and the memory of ten million is bounded.
_NEAR_AT_MOST = 2_000_000


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m lae_jax.prepare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--reader", required=True, choices=sorted(readers.READERS), help="what the source is")
    add("--source", action="append", required=True, help="CSV, folder, or SPLIT=CSV (again for each split)")
    add("--images", help="folder that the CSV's paths start from (default: the CSV's own)")
    add("--out", required=True, help="folder of the prepared data set")
    add("--split", default="4:1", help="train:validation[:test], where the source names no splits (default 4:1)")
    add("--folds", type=int, help="K-fold splits fold0-train, fold0-validation, ... instead of --split")
    add("--by", choices=("identity", "image"), help="what stays on one side (default: identity where it is known)")
    add("--seed", type=int, default=0, help="of the split and of drawn faces (default 0)")
    add("--align", choices=crops.ALIGN, help="by landmarks, of the source or found by mtcnn (default), or"
        " none: the images are crops (default for synthetic and recordio)")  # fmt: skip
    add("--size", type=int, default=256, help="side of the crops in pixels; with --align none the longest allowed"
        " shorter side (default 256)")  # fmt: skip
    add("--margin", type=float, default=0.125, help="around the 112x112 template, share of its side (default 0.125)")
    add("--faces", choices=crops.FACES, default="largest", help="which of several in a photograph (default largest)")
    add("--undetected", choices=crops.UNDETECTED, default="reject", help="images without a face: into rejected.csv"
        " (default), or a centre crop")  # fmt: skip
    add("--quality", type=int, default=95, help="JPEG quality of images that are encoded (default 95)")
    add("--shards", type=int, default=0, help=f"number of shards (default: one for {shards.IMAGES_PER_SHARD} images,"
        f" but not more than {shards.MANY_SHARDS})")  # fmt: skip
    add("--workers", type=int, default=cpu.cores(), help="processes (default: all cores)")
    add("--beam-runner", help="make the shards on Apache Beam: DirectRunner, DataflowRunner, ...; --out may then"
        " be a bucket (docs/data.md)")  # fmt: skip
    add("--beam-option", action="append", default=[], help="NAME=VALUE of Beam's options (again for each)")
    args = parser.parse_args(argv)
    if args.seed < 0:
        raise InputError(f"--seed {args.seed} is negative")
    if args.folds is not None and args.folds < 2:
        raise InputError(f"--folds {args.folds}: at least 2 are needed")
    splits.parse_ratio(args.split)
    if os.path.exists(args.out) and not os.path.isdir(args.out):
        raise InputError(f"--out {args.out} is a file: name a folder")
    if not is_remote(args.out):  # a bucket's names are read by data/beam.py
        layout.require_place(args.out)
    if args.workers < 1 or args.shards < 0:
        raise InputError("--workers must be at least 1 and --shards at least 0")
    if args.beam_runner is None:
        if args.beam_option:
            raise InputError(f"--beam-option {args.beam_option[0]}: only with --beam-runner")
        if is_remote(args.out):
            raise InputError(f"--out {args.out}: a bucket is written by --beam-runner alone (docs/data.md); or name a"
                " folder and copy it")  # fmt: skip
    elif importlib.util.find_spec("apache_beam") is None:
        raise InputError(
            f"--beam-runner {args.beam_runner}: Apache Beam is not installed here. It has an environment of its own,"
            " since it wants other versions: make setup-beam, then .venv-beam/bin/python -m lae_jax.prepare ..."
        )
    return args


def recipe_of(args: argparse.Namespace) -> crops.Recipe:
    """How the faces are cut."""
    align = args.align or ("none" if args.reader in ("synthetic", "recordio") else "landmarks")
    return crops.Recipe(align, args.size, args.margin, args.quality, args.faces, args.undetected)


def splitter(args: argparse.Namespace, column: Callable[[str], pa.ChunkedArray]) -> joining.Splits:
    """Columns, by name -> (protocol, rows of each split, rows that were taken out of train)."""
    names = column("split")
    if args.folds is None and _any(names):
        return "column", *splits.by_column(names, column("sha256"))
    identity = column("identity")
    by = _by(args, identity)
    group = splits.groups(column("sha256"), _near(column, len(names)), *([identity] if by == "identity" else []))
    return by, _parted(args, group), np.zeros(0, np.int64)


def _by(args: argparse.Namespace, identity: pa.ChunkedArray) -> str:
    known = _any(identity)
    if args.by == "identity" and not known:
        raise InputError("--by identity, but the source has no identities: add an `identity` column or use --by image")
    return args.by or ("identity" if known else "image")


def _parted(args: argparse.Namespace, group: np.ndarray) -> Mapping[str, np.ndarray]:
    if args.folds is not None:
        return splits.by_fold(group, args.folds, args.seed)
    return splits.by_ratio(group, splits.parse_ratio(args.split), args.seed)


def _check_splits(args: argparse.Namespace, table: pa.Table) -> None:
    """Raises InputError where the rows cannot be split as is wanted, though none be rejected: before any is read."""
    count, identity = table.num_rows, table["identity"]
    if not count or (args.folds is None and _any(table["split"])):
        return
    people = _by(args, identity) == "identity"
    if count > _FEW:
        return
    group = splits.groups(identity) if people else np.arange(count)
    if empty := [name for name, rows in _parted(args, group).items() if not len(rows)]:
        told = console.counted(len(np.unique(group)), "person", "people") + " in " if people else ""
        raise InputError(
            f"split {empty[0]!r} would be empty ({told}{console.counted(count, 'image')}): take another --split or"
            f" --folds, or give more {'people' if people else 'images'}"
        )


def _near(column: Callable[[str], pa.ChunkedArray], count: int) -> np.ndarray:
    """A text that nearly the same pictures share, '' for the others."""
    if count > _NEAR_AT_MOST:
        logger.warning(
            "of more than %d images, pictures that are nearly the same are not kept on one side: see the audit",
            _NEAR_AT_MOST,
        )
        return np.full(count, "", object)
    hashes = b"".join(column("phash").to_pylist())
    number = perceptual_hash.clusters(np.frombuffer(hashes, np.uint8).reshape(-1, perceptual_hash.BYTES))
    return np.array(["" if n < 0 else str(n) for n in number], object)


def _any(texts: pa.ChunkedArray) -> bool:
    return bool(pc.any(pc.not_equal(texts, "")).as_py())  # null where every text is


def prepare(args: argparse.Namespace) -> dict:
    """Reads, checks, shards, splits; returns the manifest."""
    recipe = recipe_of(args)
    if args.beam_runner is not None:
        from lae_jax.data import beam

        way = beam.Beam(args.out, args.beam_runner, args.beam_option)
    else:
        way = _Processes(args.out, args.workers)
    options = readers.Options(args.images, args.size, args.quality, args.seed)
    source = readers.READERS[args.reader](args.source, options)
    rejected = source.rejected
    _check_splits(args, source.table)
    with way.folder() as out:
        tasks = shards.plan(source, out, args.reader, recipe, args.shards)
        del source  # its table; the tasks have it in a file
        missing = way.missing(tasks)
        if len(missing) < len(tasks):
            logger.info("%s: %d of %d shards are there already", args.out, len(tasks) - len(missing), len(tasks))
        try:
            with console.progress(total=sum(task.num_rows for task in missing), what="prepare", unit="images") as line:
                way.write(missing, line.update)
        except KeyboardInterrupt:
            logger.info("%s keeps what is done: the same command goes on with it", args.out)
            raise
        return joining.finish(tasks, rejected, lambda column: splitter(args, column))


class _Processes:
    """Shards made by processes of this machine, in a folder of this machine."""

    def __init__(self, out: str, workers: int):
        self._out, self._workers = pathlib.Path(out), workers

    def folder(self) -> contextlib.AbstractContextManager[pathlib.Path]:
        return contextlib.nullcontext(self._out)

    def missing(self, tasks: list[shards.ShardTask]) -> list[shards.ShardTask]:
        return shards.missing(tasks)

    def write(self, tasks: list[shards.ShardTask], tick: Callable[[int], None]) -> None:
        """Writes the shards; tick: is called with the number of source rows that are done since it was called last."""
        workers = min(self._workers, len(tasks))
        if workers <= 1:
            for task in tasks:
                shards.write_shard(task, tick=tick)
            return
        # Not fork: the parent may hold threads.
        context = multiprocessing.get_context("spawn")
        rows, told = context.Value("q", 0), 0
        with context.Pool(workers, _start_worker, (rows,)) as pool:
            running = [pool.apply_async(_write_in_worker, (task,)) for task in tasks]
            for result in running:
                while not result.ready():
                    result.wait(0.5)
                    now = rows.value
                    tick(now - told)
                    told = now
                result.get()
        tick(rows.value - told)


_rows_done = None  # of all workers; in a worker


def _start_worker(rows) -> None:
    global _rows_done
    _rows_done = rows
    # A Ctrl-C reaches all processes of a terminal: the parent ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _take_one_thread()


def _take_one_thread() -> None:
    """One core for TensorFlow's operations too, before it starts: on some CPUs its sums depend on the threads."""
    os.environ.update(TF_NUM_INTRAOP_THREADS="1", TF_NUM_INTEROP_THREADS="1")


def _write_in_worker(task: shards.ShardTask) -> None:
    def tick(rows: int) -> None:
        with _rows_done.get_lock():
            _rows_done.value += rows

    shards.write_shard(task, tick=tick)


def main(argv: list[str] | None = None) -> None:
    _take_one_thread()  # so that one worker, which is this process, makes the bytes that several make
    args = parse_args(argv)
    manifest = prepare(args)
    rows = [(name, count) for name, count in manifest["splits"].items()]
    print(console.table(["split", "images"], rows))
    if not any(name.endswith("train") for name in manifest["splits"]):
        logger.warning("no split is called train: name the one to train on with --config.data.train")
    left_out = manifest["left_out_of_split"]
    told = f"{manifest['rejected']:,} rejected"
    if left_out:
        told += f", {left_out:,} left out of the splits, being files that stand in another one"
    if manifest["rejected"] or left_out:
        told += f" (see {args.out}/rejected.csv)"
    print(f"{console.counted(manifest['count'], 'image')} in {args.out}, split by {manifest['protocol']}; {told}")
    if several := manifest["several_faces"]:
        taken = {"all": "each has the photograph's age", "centre": "the one in the middle was taken"}
        print(
            f"several faces were found in {console.counted(several, 'photograph')}:"
            f" {taken.get(args.faces, 'the largest was taken')} (--faces {args.faces})"
        )
    if is_remote(args.out):
        print(f"not audited, since data is read from disks and mounts: {saved.COMMAND} on the copy that is trained on")
        return
    (report,) = saved.run([args.out])
    print(saved.tell(report))


if __name__ == "__main__":
    console.door(main)
