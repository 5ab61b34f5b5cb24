"""Writes the shards of a prepared data set: each is a pure function of (source, recipe, shard number).

On another CPU the crops of photographs may differ by a grey level (docs/results.md, "promises and tolerances").
Shard i holds the source rows i*n/N up to (i+1)*n/N, so a rejected image shortens its own shard and moves no other one.
Local processes, machines (beam.py) and a restart after a kill all call `write_shard` for the missing shards. joining.py
makes the data set from them. records.py describes the files and reads them.
"""

import builtins
import collections
import dataclasses
import hashlib
import logging
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from array_record.python import array_record_module
from tensorflow_datasets.core import naming
from tensorflow_datasets.proto import tf_example_pb2

from lae_jax.data import parquet, rejected, stored
from lae_jax.data.records import FORMAT
from lae_jax.data.sources.readers import Picture, Source
from lae_jax.faces import crops, images
from lae_jax.runtime import files, typed
from lae_jax.runtime.errors import InputError
from lae_jax.runtime.files import read_json, sha256_of, write_json
from lae_jax.runtime.typed import declared

logger = logging.getLogger("lae_jax")

# Processes divide the work by shards, and a stopped command keeps the complete ones. A photograph whose face must be
# found takes a hundred times as long as a ready-made crop.
PHOTOGRAPHS_PER_SHARD, CROPS_PER_SHARD = 64, 1024
FEW_SHARDS = 16  # so many even with fewer crops a shard, so that a small folder occupies several cores
MANY_SHARDS = 512  # beyond this number shards get larger: a reader keeps all of them open
MAX_ROWS = 1 << 17  # rows of a shard: its columns are in memory while it is written
PREFIX = "faces-images.array_record-"  # of the names of shards, see `template`
_DIGEST_ROWS = 1 << 13
# Groups of one: a record is read without others. JPEGs do not get smaller: zstd, the default, tries for 30 us an image.
_LAYOUT = "group_size:1,snappy"


def template(out: pathlib.Path) -> naming.ShardedFileTemplate:
    """Returns the pattern of the shards' file names."""
    return naming.ShardedFileTemplate(
        data_dir=str(out), dataset_name="faces", split="images", filetype_suffix="array_record"
    )


def _refused(value: object, name: str) -> None:
    """The form of a rejected row: the columns of rejected.csv; parts of earlier versions have the first two."""
    old = isinstance(value, list) and len(value) == 2
    typed.many(typed.text(), 2 if old else len(rejected.COLUMNS))(value, name)


_PART = typed.fields(
    {
        "rejected": typed.many(_refused),
        **declared.BYTES,
        "columns": typed.optional(typed.fields(declared.BYTES)),
    }
)


def _is_whole(path: pathlib.Path, written: Mapping) -> bool:
    return path.exists() and path.stat().st_size == written["bytes"] and sha256_of(path) == written["sha256"]


@dataclasses.dataclass(frozen=True)
class ShardTask:
    """Everything that shard `index` of `count` is made from.

    A task names its rows and does not hold them. It is small for any source and can be sent to another process or
    machine.

    Attributes:
        out: Folder of the data set.
        index: Number of the shard.
        count: Number of all shards.
        source: The file that `plan` wrote, with one batch of rows per shard.
        source_rows: Number of rows of all shards.
        read: Reads the image of a row.
        recipe: How faces are cut.
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
        """The first source row of the shard."""
        return self.index * self.source_rows // self.count

    @property
    def num_rows(self) -> int:
        """The number of source rows of the shard."""
        return (self.index + 1) * self.source_rows // self.count - self.first_row

    @property
    def path(self) -> pathlib.Path:
        """The shard."""
        return pathlib.Path(str(template(self.out).sharded_filepath(shard_index=self.index, num_shards=self.count)))

    @property
    def columns_path(self) -> pathlib.Path:
        """The columns of the shard's images."""
        return self.out / "parts" / f"{self.index:05d}.parquet"

    @property
    def part_path(self) -> pathlib.Path:
        """JSON about the shard.

        rejected: `rejected.COLUMNS` of each row that is not in the shard. bytes, sha256: of the shard. columns: bytes
        and sha256 of its columns.
        """
        return self.out / "parts" / f"{self.index:05d}.json"

    def part(self) -> dict:
        """Returns the content of `part_path`.

        Raises:
          InputError: It is missing or damaged.
        """
        return read_json(self.part_path, _PART, f"remove {self.path}, and run the same command again")

    def is_complete(self) -> bool:
        """Whether the shard and its parts exist and are unchanged since they were written."""
        if not self.path.exists():
            return False
        try:
            part = self.part()
            # A part that was written before it had the checksum of the columns is taken as it is.
            written = {self.path: part, self.columns_path: part.get("columns")}
            return all(_is_whole(path, entry) for path, entry in written.items() if entry is not None)
        except InputError:
            return False


def missing(tasks: list[ShardTask]) -> list[ShardTask]:
    """Returns the tasks whose shards are missing or damaged."""
    found = [task for task in tasks if not task.is_complete()]
    for task in found:
        if task.path.exists():
            logger.warning("%s or its parts were damaged after they were written: they are made again", task.path)
    return found


def write_shard(
    task: ShardTask,
    open: Callable[[str], BinaryIO] | None = None,
    tick: Callable[[int], None] = lambda rows: None,
) -> int:
    """Writes a shard, its columns and its rejected rows, unless the shard is complete.

    The shard gets its final name last, so a shard of that name was complete, with its parts. If it was damaged
    afterwards, it is made again.

    Args:
        task: The task of the shard.
        open: Opens the source file if it is not on a local disk.
        tick: Called with the number of rows done since its last call.

    Returns:
        The number of source rows done.
    """
    if task.is_complete():
        tick(task.num_rows)
        return task.num_rows
    with open(task.source) if open else builtins.open(task.source, "rb") as file, pa.ipc.open_file(file) as reader:
        table = pa.Table.from_batches([reader.get_batch(task.index)])
    with files.replacing(task.path) as temporary:
        labels = table.select([name for name in ("age", *parquet.RANGE, "split") if name in table.column_names])
        writer = array_record_module.ArrayRecordWriter(str(temporary), _LAYOUT)
        made, refused = [], []
        for number, name, result in stored.stored(_ticking(_rows(table), tick), task.first_row, task.read, task.recipe):
            if isinstance(result, images.BadImage):
                row = labels.slice(number - task.first_row, 1).to_pylist()[0]
                refused.append(rejected.with_label(name, str(result), row))
                continue
            example = tf_example_pb2.Example()
            example.features.feature["image"].bytes_list.value.append(result.encoded)
            example.features.feature["row"].int64_list.value.append(number)
            writer.write(example.SerializeToString(deterministic=True))
            made.append(result.columns)
        writer.close()
        columns = table.take(pa.array([row["source_row"] - task.first_row for row in made], pa.int64()))
        for name, kind in stored.COLUMNS.items():
            values = pa.array([row[name] for row in made], kind)
            if name in columns.column_names:
                columns = columns.set_column(columns.column_names.index(name), name, values)
            else:
                columns = columns.append_column(name, values)
        with files.replacing(task.columns_path) as place:
            pq.write_table(columns, place)
        part = {
            "rejected": refused,
            "bytes": temporary.stat().length,
            "sha256": sha256_of(temporary),
            "columns": {"bytes": task.columns_path.stat().st_size, "sha256": sha256_of(task.columns_path)},
        }
        write_json(task.part_path, part)
    return task.num_rows


def _rows(table: pa.Table) -> Iterator[dict]:
    """The rows as dicts, with at most one batch of them in memory."""
    for batch in table.to_batches(max_chunksize=256):
        yield from batch.to_pylist()


def _ticking(rows: Iterator[dict], tick: Callable[[int], None]) -> Iterator[dict]:
    """The rows. Each counts as done when the next one is requested."""
    for row in rows:
        yield row
        tick(1)


def plan(source: Source, out: pathlib.Path, reader: str, recipe: crops.Recipe, shards: int = 0) -> list[ShardTask]:
    """Starts or resumes the folder `out` and returns the tasks of its shards.

    The rows go into `parts/source.arrow`, one batch per shard. The source's table is not needed after this.

    Args:
        source: Rows of the source, and how to read their images.
        out: Folder of the data set.
        reader: Name of the reader.
        recipe: How faces are cut.
        shards: Number of shards; 0 chooses it by the number of images.

    Raises:
        InputError: The source has no row, `shards` is too small, `out` cannot be created or was started with another
            source or recipe.
    """
    count = source.table.num_rows
    if not count:
        raise InputError(f"the source has no usable row. {list_rejected(source, out, recipe)}")
    shards = shards or number_of_shards(count, recipe)
    if -(-count // shards) > MAX_ROWS:
        raise InputError(
            f"--shards {shards} for {count:,} images: a shard holds at most {MAX_ROWS:,}. Use"
            f" {-(-count // MAX_ROWS)} or more, or omit --shards"
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
    _make_folder(out / "parts")
    recipe_path = out / "recipe.json"
    if recipe_path.exists():
        # Recipes of earlier versions do not state what was added since.
        before = {"rotate": False, **read_json(recipe_path, declared.RECIPE)}
        differing = sorted(key for key in {*before, *written} if before.get(key) != written.get(key))
        if differing:
            told = {key: f"{key}: {before.get(key)!r} there, {written.get(key)!r} now" for key in differing}
            if "crop" in told and before.get("crop"):
                told["crop"] = f"crop: {crops.differing(before['crop'], written['crop'])}"
            if "source_sha256" in told:
                rest = {key: words for key, words in told.items() if not key.startswith("source_")}
                told = {"source": f"other rows: {before.get('source_rows')} there, {count} now"} | rest
            listed = ", ".join(told.values())
            raise InputError(
                f"{out} was started with another recipe ({listed}): choose another --out or remove the folder"
            )
    else:
        write_json(recipe_path, written)
    path = os.path.abspath(source_path(out))
    tasks = [ShardTask(out, index, shards, path, count, source.read, recipe) for index in range(shards)]
    _write_source(source.table, tasks, path)
    return tasks


def number_of_shards(count: int, recipe: crops.Recipe) -> int:
    """Returns the number of shards of `count` rows. It does not depend on the machine, because the bytes must not."""
    small = -(-count // PHOTOGRAPHS_PER_SHARD)
    wanted = small if recipe.align != "none" else max(-(-count // CROPS_PER_SHARD), min(small, FEW_SHARDS))
    return max(min(wanted, MANY_SHARDS), -(-count // MAX_ROWS))


def list_rejected(source: Source, out: pathlib.Path, recipe: crops.Recipe) -> str:
    """Writes rejected.csv of a source that cannot be used, unless `out` holds a data set that was begun.

    Args:
        source: The source.
        out: Folder of the data set.
        recipe: How faces are cut.

    Returns:
        How many rows the reader rejected, why, and the likely cause.
    """
    reasons, count = rejected.Reasons(), len(source.rejected)
    rows, listed = reasons.counting(source.rejected), ""
    if (out / "recipe.json").exists():
        collections.deque(rows, maxlen=0)  # only counts them
    else:
        _make_folder(out)
        rejected.write(out / rejected.FILE, rows)
        listed = f". {out}/{rejected.FILE} lists all"
    loud = count >= rejected.LOUD * (source.table.num_rows + count)
    cause = f". {rejected.cause(reasons.counts(), recipe.align)}" if loud else ""
    return f"{count:,} rejected: {reasons.told()}{cause}{listed}"


def _make_folder(path: pathlib.Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path} cannot be created ({error.strerror}): choose another --out") from error


def source_path(out: pathlib.Path) -> pathlib.Path:
    """Returns the path of the source's rows, below the folder of the data set."""
    return out / "parts" / "source.arrow"


def _write_source(table: pa.Table, tasks: list[ShardTask], path: str) -> None:
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with files.replacing(path) as place, pa.ipc.new_file(os.fspath(place), table.schema, options=options) as writer:
        for task in tasks:
            try:
                writer.write_batch(_batch(table, task.first_row, task.num_rows))
            except pa.ArrowInvalid as error:  # a text column of Arrow holds at most 2 GiB
                raise InputError(
                    f"the rows of shard {task.index} hold too much text ({error}): use more --shards"
                ) from error


def _batch(table: pa.Table, first: int, count: int) -> pa.RecordBatch:
    columns = [column.combine_chunks() for column in table.slice(first, count).columns]
    return pa.record_batch(columns, schema=table.schema)


def _digest(table: pa.Table) -> str:
    """SHA-256 of the rows, whatever their layout in memory."""
    digest = hashlib.sha256(repr([(field.name, str(field.type)) for field in table.schema]).encode())
    for first in range(0, table.num_rows, _DIGEST_ROWS):
        for column in _batch(table, first, _DIGEST_ROWS).columns:
            for piece in _content(column):
                digest.update(piece)
    return digest.hexdigest()


def _content(array: pa.Array) -> Iterator[bytes | memoryview]:
    """The content of an array of numbers, texts or lists of them: which are null, the lengths, the values."""
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
