"""Writes the shards of a prepared data set: each is a pure function of (source, recipe, shard number).

On another CPU the crops of photographs may differ by a grey level (docs/results.md, "promises and tolerances").
Shard i holds the source rows i*n/N up to (i+1)*n/N, so a rejected image shortens its own shard and moves nothing else.
Processes, machines (beam.py) and starting again after a kill are three ways to call `write_shard` for the shards that
are missing; joining.py makes the data set of them. What the files are is told in records.py, which reads them.
"""

import builtins
import dataclasses
import hashlib
import itertools
import logging
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from array_record.python import array_record_module
from tensorflow_datasets.core import naming
from tensorflow_datasets.proto import tf_example_pb2

from lae_jax.data import stored
from lae_jax.data.records import FORMAT
from lae_jax.data.sources.readers import Picture, Source
from lae_jax.faces import crops, images
from lae_jax.runtime.errors import InputError
from lae_jax.runtime.files import read_json, sha256_of, write_json

logger = logging.getLogger("lae_jax")

IMAGES_PER_SHARD = 1024  # where there are few: shards are what processes share out
MANY_SHARDS = 512  # beyond this many they get larger: a reader keeps all of them open
MAX_ROWS = 1 << 17  # of a shard: its columns are in memory while it is written
PREFIX = "faces-images.array_record-"  # of the shards' names, by `template`
_DIGEST_ROWS = 1 << 13
# Each record alone is read in one go. A JPEG cannot be made smaller: zstd, the default, tries for 30 us an image.
_LAYOUT = "group_size:1,snappy"


def template(out: pathlib.Path) -> naming.ShardedFileTemplate:
    """How the shards are called."""
    return naming.ShardedFileTemplate(
        data_dir=str(out), dataset_name="faces", split="images", filetype_suffix="array_record"
    )


@dataclasses.dataclass(frozen=True)
class ShardTask:
    """All that shard `index` of `count` is made from. It names its rows and holds none, so it is small, however large
    the source is, and can be sent to another process or machine.

    source: the file that `plan` wrote, with a batch of rows a shard; source_rows: of all shards.
    """

    out: pathlib.Path
    index: int
    count: int
    source: str
    source_rows: int
    read: Callable[[dict], Picture]
    recipe: crops.Recipe

    @property
    def first_row(self) -> int:
        return self.index * self.source_rows // self.count

    @property
    def num_rows(self) -> int:
        return (self.index + 1) * self.source_rows // self.count - self.first_row

    @property
    def path(self) -> pathlib.Path:
        return pathlib.Path(str(template(self.out).sharded_filepath(shard_index=self.index, num_shards=self.count)))

    @property
    def columns_path(self) -> pathlib.Path:
        return self.out / "parts" / f"{self.index:05d}.parquet"

    @property
    def part_path(self) -> pathlib.Path:
        """JSON: rejected, [name, reason] of each row that is not in the shard; several_faces, photographs in which
        more than one was found; bytes and sha256 of the shard."""
        return self.out / "parts" / f"{self.index:05d}.json"

    def is_complete(self) -> bool:
        """Whether the shard is there as it was written."""
        if not self.path.exists():
            return False
        part = read_json(self.part_path)
        return self.path.stat().st_size == part["bytes"] and sha256_of(self.path) == part["sha256"]


def missing(tasks: list[ShardTask]) -> list[ShardTask]:
    """The tasks whose shards are not there as they were written."""
    found = [task for task in tasks if not task.is_complete()]
    for task in found:
        if task.path.exists():
            logger.warning("%s was damaged since it was written: it is made again", task.path)
    return found


def write_shard(
    task: ShardTask,
    open: Callable[[str], BinaryIO] | None = None,
    tick: Callable[[int], None] = lambda rows: None,
) -> int:
    """Writes one shard, its columns and its rejected rows; what is complete already is left. Returns source rows done.

    The shard gets its final name last, so a shard of that name was complete and so were the parts beside it; one that
    was damaged since then is made again.

    Args: open: gives the file of the source, where it is not on a local disk; tick: is called with the number of rows
    that are done since it was called last.
    """
    if task.is_complete():
        tick(task.num_rows)
        return task.num_rows
    with open(task.source) if open else builtins.open(task.source, "rb") as file, pa.ipc.open_file(file) as reader:
        table = pa.Table.from_batches([reader.get_batch(task.index)])
    temporary = task.path.with_name(task.path.name + ".incomplete")
    writer = array_record_module.ArrayRecordWriter(str(temporary), _LAYOUT)
    made, rejected, several = [], [], set()
    for number, name, result in stored.stored(_ticking(_rows(table), tick), task.first_row, task.read, task.recipe):
        if isinstance(result, images.BadImage):
            rejected.append([name, str(result)])
            continue
        example = tf_example_pb2.Example()
        example.features.feature["image"].bytes_list.value.append(result.encoded)
        example.features.feature["row"].int64_list.value.append(number)
        writer.write(example.SerializeToString(deterministic=True))
        made.append(result.columns)
        if (result.columns["faces"] or 0) > 1:
            several.add(number)
    writer.close()
    columns = table.take(pa.array([row["source_row"] - task.first_row for row in made], pa.int64()))
    for name, kind in stored.COLUMNS.items():
        values = pa.array([row[name] for row in made], kind)
        if name in columns.column_names:
            columns = columns.set_column(columns.column_names.index(name), name, values)
        else:
            columns = columns.append_column(name, values)
    pq.write_table(columns, task.columns_path)
    part = {
        "rejected": rejected,
        "several_faces": len(several),
        "bytes": temporary.stat().st_size,
        "sha256": sha256_of(temporary),
    }
    write_json(task.part_path, part)
    os.replace(temporary, task.path)
    return task.num_rows


def _rows(table: pa.Table) -> Iterator[dict]:
    """The rows as dicts, without ever holding more than a batch of them."""
    for batch in table.to_batches(max_chunksize=256):
        yield from batch.to_pylist()


def _ticking(rows: Iterator[dict], tick: Callable[[int], None]) -> Iterator[dict]:
    """The rows; each counts as done when the next one is asked for."""
    for row in rows:
        yield row
        tick(1)


def plan(source: Source, out: pathlib.Path, reader: str, recipe: crops.Recipe, shards: int = 0) -> list[ShardTask]:
    """Opens (or goes on with) the folder `out` and returns the tasks whose shards are its images.

    The rows go into `parts/source.arrow`, a batch a shard: nobody needs the source's table after this.

    Args: reader: its name; recipe: how faces are cut; shards: their number (0: by the number of images).

    Raises InputError if `out` was begun with another source or recipe, or if the source has no row.
    """
    count = source.table.num_rows
    if not count:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in itertools.islice(source.rejected, 3))
        raise InputError(f"the source has no usable row ({len(source.rejected)} rejected: {reasons})")
    shards = shards or max(min(-(-count // IMAGES_PER_SHARD), MANY_SHARDS), -(-count // MAX_ROWS))
    if -(-count // shards) > MAX_ROWS:
        raise InputError(
            f"--shards {shards} for {count:,} images: a shard holds at most {MAX_ROWS:,}, so take"
            f" {-(-count // MAX_ROWS)} or more (or leave --shards away)"
        )
    written = {
        "reader": reader,
        **source.recipe,
        **dataclasses.asdict(recipe),
        "crop": recipe.contract(),
        "format": FORMAT,
        "shards": shards,
        "source_rows": count,
        "source_sha256": _digest(source.table),
    }
    try:
        (out / "parts").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out} cannot be made ({error.strerror}): name another --out") from error
    recipe_path = out / "recipe.json"
    if recipe_path.exists():
        before = read_json(recipe_path)
        differing = sorted(key for key in {*before, *written} if before.get(key) != written.get(key))
        if differing:
            told = {key: f"{key}: {before.get(key)!r} there, {written.get(key)!r} now" for key in differing}
            if "crop" in told and "crop" in before:
                told["crop"] = f"crop: {crops.differing(before['crop'], written['crop'])}"
            if "source_sha256" in told:
                rest = {key: words for key, words in told.items() if not key.startswith("source_")}
                told = {"source": f"other rows: {before.get('source_rows')} there, {count} now"} | rest
            listed = ", ".join(told.values())
            raise InputError(
                f"{out} was begun with another recipe ({listed}): choose another --out or remove the folder"
            )
    else:
        write_json(recipe_path, written)
    path = os.path.abspath(source_path(out))
    tasks = [ShardTask(out, index, shards, path, count, source.read, recipe) for index in range(shards)]
    _write_source(source.table, tasks, path)
    return tasks


def source_path(out: pathlib.Path) -> pathlib.Path:
    return out / "parts" / "source.arrow"


def _write_source(table: pa.Table, tasks: list[ShardTask], path: str) -> None:
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_file(path + ".incomplete", table.schema, options=options) as writer:
        for task in tasks:
            try:
                writer.write_batch(_batch(table, task.first_row, task.num_rows))
            except pa.ArrowInvalid as error:  # Arrow's texts end at 2 GiB a column
                raise InputError(
                    f"the rows of shard {task.index} hold too much text ({error}): take more --shards"
                ) from error
    os.replace(path + ".incomplete", path)


def _batch(table: pa.Table, first: int, count: int) -> pa.RecordBatch:
    columns = [column.combine_chunks() for column in table.slice(first, count).columns]
    return pa.record_batch(columns, schema=table.schema)


def _digest(table: pa.Table) -> str:
    """SHA-256 of the rows, however they lie in memory."""
    digest = hashlib.sha256(repr([(field.name, str(field.type)) for field in table.schema]).encode())
    for first in range(0, table.num_rows, _DIGEST_ROWS):
        for column in _batch(table, first, _DIGEST_ROWS).columns:
            for piece in _content(column):
                digest.update(piece)
    return digest.hexdigest()


def _content(array: pa.Array) -> Iterator[bytes | memoryview]:
    """What an array of numbers, texts or lists of them holds: which are null, the lengths, the values."""
    yield np.packbits(array.is_valid().to_numpy(zero_copy_only=False)).tobytes()
    array = array.drop_null()
    if pa.types.is_list(array.type):
        yield array.value_lengths().to_numpy().tobytes()
        yield from _content(array.flatten())
    elif pa.types.is_string(array.type) and len(array):
        _, offsets, text = array.buffers()
        ends = np.frombuffer(offsets, np.int32)[array.offset : array.offset + len(array) + 1]
        yield np.diff(ends).tobytes()
        yield memoryview(text)[ends[0] : ends[-1]] if text else b""
    elif len(array):
        yield array.to_numpy().tobytes()
