"""Shards on Apache Beam: the function that writes a shard, called on the machines of a Beam runner.

A worker opens `parts/source.arrow` of the data set, reads the batch of its shard, writes the shard to its own disk
(ArrayRecord opens local paths only) and copies it through Beam's file systems. The pipeline sends only the numbers of
the shards and one task, however many images there are. The launcher joins the parts. If --out is a bucket, it does so
in a temporary folder that holds everything except the shards.
"""

import concurrent.futures
import contextlib
import dataclasses
import difflib
import logging
import os
import pathlib
import re
import shutil
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO

import apache_beam
import grpc
from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions

from lae_jax.data import shards
from lae_jax.runtime import layout
from lae_jax.runtime.errors import InputError, Unreachable
from lae_jax.runtime.files import is_remote

logger = logging.getLogger("lae_jax")

_COPIES = 16  # copies at a time: each small file in a bucket takes long
_LEFT = re.compile(r"\.[0-9a-f]{32}\.incomplete$")  # files of a worker that was killed during a copy
# Runners whose job server accepts options that Beam's Python code does not know.
_OPEN_RUNNERS = ("PortableRunner", "FlinkRunner", "SparkRunner", "PrismRunner")


def options_of(runner: str, words: Iterable[str]) -> PipelineOptions:
    """Returns Beam's options. sys.argv, which holds the options of lae_jax, is not read.

    Args:
        runner: Name of the Beam runner.
        words: NAME=VALUE each, with or without leading dashes.

    Raises:
        InputError: Beam does not know the runner, a name or a value.
    """
    flags = ["--" + word.lstrip("-") for word in words]
    if any(flag.partition("=")[0] == "--runner" for flag in flags):
        raise InputError("--beam-option runner: name the runner with --beam-runner")
    # Without this option, DirectRunner downloads a program and starts it. It has no other effect on a pipeline without
    # triggers.
    own = ["--allow_unsafe_triggers"] if runner == "DirectRunner" else []
    try:
        options = PipelineOptions([*flags, *own, f"--runner={runner}"])
        known = options.get_all_options()
        given = options.get_all_options(retain_unknown_options=True)
        apache_beam.runners.create_runner(runner)
    except SystemExit as error:  # argparse has printed the reason on standard error
        raise InputError(f"--beam-option: Beam does not accept {' '.join(flags)}") from error
    except (ValueError, ImportError) as error:
        raise InputError(f"--beam-runner {runner}: {error}") from error
    if (unknown := sorted({*given} - {*known})) and runner not in _OPEN_RUNNERS:
        near = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(f"--beam-option {unknown[0]}: Beam has no such option{hint}")
    return options


class Beam:
    """Makes shards with a Beam runner and puts them into `out`.

    Args:
        out: A folder in a bucket, or one that launcher and workers share.
        runner: Name of the Beam runner.
        words: Beam's options, as for `options_of`.
    """

    def __init__(self, out: str, runner: str, words: Iterable[str]):
        self._out = out.rstrip("/") if is_remote(out) else os.path.abspath(out)
        self._runner, self._options = runner, options_of(runner, words)
        self._begun = False

    @contextlib.contextmanager
    def folder(self) -> Iterator[pathlib.Path]:
        """Yields the launcher's folder: `out`, or a local folder that is copied to the bucket at the end."""
        if not is_remote(self._out):
            yield pathlib.Path(self._out)
            return
        with tempfile.TemporaryDirectory(prefix="lae_jax-", ignore_cleanup_errors=True) as local:
            folder = pathlib.Path(local)
            (folder / "parts").mkdir()
            layout.require_place(self._out, self._sizes())
            self._fetch(folder, [name for name in ("recipe.json",) if name in self._sizes()])
            self._fetch(folder, [f"parts/{name}" for name in self._sizes("parts") if name.endswith(".json")])
            try:
                yield folder
            except InputError as error:
                if self._begun and not (folder / "recipe.json").exists():  # joining.finish removed its files
                    self._delete(lambda name: name == "recipe.json" or name.startswith(("parts/", shards.PREFIX)))
                if (folder / layout.REJECTED).exists():
                    self._put(folder, [layout.REJECTED])
                raise InputError(str(error).replace(local, self._out)) from error
            self._deliver(folder)

    def missing(self, tasks: list[shards.ShardTask]) -> list[shards.ShardTask]:
        """Returns the tasks whose shards are missing.

        In a bucket only the sizes are compared, because a bucket verifies checksums itself.
        """
        if not is_remote(self._out):
            return shards.missing(tasks)
        self._begun = True
        sizes, parts = self._sizes(), self._sizes("parts")
        complete = [
            task
            for task in tasks
            if task.columns_path.name in parts
            and task.part_path.exists()
            and sizes.get(task.path.name) == task.part()["bytes"]
        ]
        self._fetch(tasks[0].out, [f"parts/{task.columns_path.name}" for task in complete])
        there = {task.index for task in complete}
        return [task for task in tasks if task.index not in there]

    def write(self, tasks: list[shards.ShardTask], tick: Callable[[int], None]) -> None:
        """Runs the pipeline.

        Args:
            tasks: Tasks of the shards to write.
            tick: Called once, at the end, with the number of source rows of these shards.

        Raises:
            Unreachable: The runner broke off.
        """
        if not tasks:
            return
        folder = tasks[0].out
        if is_remote(self._out):
            self._put(folder, ["recipe.json", "parts/source.arrow"])
        task = dataclasses.replace(tasks[0], source=FileSystems.join(self._out, "parts", "source.arrow"))
        logger.info("writing %d shards with Beam's %s", len(tasks), self._runner)
        with _naming(self._runner), apache_beam.Pipeline(options=self._options) as pipeline:
            numbers = pipeline | apache_beam.Create([task.index for task in tasks]) | apache_beam.Reshuffle()
            numbers | "shard" >> apache_beam.Map(write_shard, task, self._out)
        if is_remote(self._out):
            names = [path.name for each in tasks for path in (each.columns_path, each.part_path)]
            self._fetch(folder, [f"parts/{name}" for name in names])
            self._delete(lambda name: bool(_LEFT.search(name)))
        else:
            for path in (*folder.iterdir(), *(folder / "parts").iterdir()):
                if _LEFT.search(path.name):
                    path.unlink()
        tick(sum(each.num_rows for each in tasks))

    def _sizes(self, *below: str) -> dict[str, int]:
        """Returns the size in bytes of each file in a folder, by name."""
        try:
            (found,) = FileSystems.match([FileSystems.join(self._out, *below, "*")])
        except (ValueError, OSError, BeamIOError) as error:
            raise InputError(f"--out {self._out} cannot be listed: {error}") from error
        return {file.path.rsplit("/", 1)[1]: file.size_in_bytes for file in found.metadata_list}

    def _fetch(self, folder: pathlib.Path, names: list[str]) -> None:
        _all(lambda name: _copy(FileSystems.join(self._out, *name.split("/")), str(folder / name)), names)

    def _put(self, folder: pathlib.Path, names: list[str]) -> None:
        _all(lambda name: put(folder / name, FileSystems.join(self._out, *name.split("/"))), names)

    def _delete(self, unwanted: Callable[[str], bool]) -> None:
        paths = [
            FileSystems.join(self._out, *below, name)
            for below in ((), ("parts",), ("splits",))
            for name in self._sizes(*below)
            if unwanted("/".join((*below, name)))
        ]
        FileSystems.delete(paths)

    def _deliver(self, folder: pathlib.Path) -> None:
        names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
        names = [name for name in names if not name.startswith("parts/")]
        self._delete(lambda name: name == "parts/source.arrow" or name.startswith("splits/") and name not in names)
        self._put(folder, [name for name in names if name != "dataset.json"])
        self._put(folder, ["dataset.json"])


@contextlib.contextmanager
def _naming(runner: str) -> Iterator[None]:
    """Turns the errors of a runner that breaks off into a sentence, also those that its threads print."""
    before = threading.excepthook
    threading.excepthook = lambda args: None if isinstance(args.exc_value, grpc.RpcError) else before(args)
    try:
        yield
    except (grpc.RpcError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not str(error).startswith("Pipeline "):
            raise
        reason = error.details() if isinstance(error, grpc.Call) else str(error)
        last = (reason or type(error).__name__).strip().splitlines()[-1][:200]
        raise Unreachable(
            f"Beam's {runner} broke off ({last}): see its log, then run the same command again"
        ) from error
    finally:
        threading.excepthook = before


def write_shard(index: int, task: shards.ShardTask, out: str) -> int:
    """Makes shard `index` on a worker's disk, then copies its parts and, last, the shard to `out`.

    Returns:
        The number of source rows.
    """
    with tempfile.TemporaryDirectory(prefix="lae_jax-", ignore_cleanup_errors=True) as local:
        task = dataclasses.replace(task, out=pathlib.Path(local), index=index)
        task.columns_path.parent.mkdir()
        count = shards.write_shard(task, _open)
        for path in (task.columns_path, task.part_path, task.path):
            put(path, FileSystems.join(out, *path.relative_to(task.out).parts))
    return count


def put(path: pathlib.Path, target: str) -> None:
    """Copies a file to `target`, whole or not at all. Two workers can make the same shard at the same time."""
    temporary = f"{target}.{uuid.uuid4().hex}.incomplete"
    _copy(str(path), temporary)
    FileSystems.rename([temporary], [target])


def _open(path: str) -> BinaryIO:
    return FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)


def _copy(source: str, target: str) -> None:
    created = FileSystems.create(target, compression_type=CompressionTypes.UNCOMPRESSED)
    with _open(source) as reader, created as writer:
        shutil.copyfileobj(reader, writer, 1 << 20)


def _all(function: Callable[[str], None], names: list[str]) -> None:
    with concurrent.futures.ThreadPoolExecutor(_COPIES) as pool:
        for _ in pool.map(function, names):
            pass
