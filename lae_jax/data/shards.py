"""Writes a prepared data set: shards that are pure functions of (source, recipe, shard number), then the rest.

Shard i holds the source rows i*n/N up to (i+1)*n/N, so a rejected image shortens its own shard and moves nothing else.
Several processes, or starting again after a kill, call `write_shard` for the shards that are missing. What the
files are is told in records.py, which reads them.
"""

import csv
import dataclasses
import hashlib
import json
import logging
import os
import pathlib
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from tensorflow_datasets.core import naming
from tensorflow_datasets.proto import tf_example_pb2

from lae_jax.data import images, phash
from lae_jax.data.readers import Picture, Source
from lae_jax.errors import InputError
from lae_jax.files import read_json, sha256_of, write_json

logger = logging.getLogger("lae_jax")


FORMAT = 2
IMAGES_PER_SHARD = 4096
UNKNOWN_CROP = {"align": "none", "detector": "unknown"}

_FEATURES = {"image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"), "row": np.int64}


def _template(out: pathlib.Path) -> naming.ShardedFileTemplate:
    return naming.ShardedFileTemplate(
        data_dir=str(out), dataset_name="faces", split="images", filetype_suffix="array_record"
    )


def shard_path(out: pathlib.Path, index: int, count: int) -> pathlib.Path:
    return pathlib.Path(str(_template(out).sharded_filepath(shard_index=index, num_shards=count)))


@dataclasses.dataclass(frozen=True)
class ShardTask:
    """All that one shard is made from; it can be sent to another process."""

    out: pathlib.Path
    index: int
    count: int
    first_row: int
    table: pa.Table
    read: Callable[[dict], Picture]
    size: int
    quality: int

    @property
    def path(self) -> pathlib.Path:
        return shard_path(self.out, self.index, self.count)

    @property
    def columns_path(self) -> pathlib.Path:
        return self.out / "parts" / f"{self.index:05d}.parquet"

    @property
    def part_path(self) -> pathlib.Path:
        """JSON: rejected, [name, reason] of each row that is not in the shard; bytes and sha256 of the shard."""
        return self.out / "parts" / f"{self.index:05d}.json"

    def is_complete(self) -> bool:
        """Whether the shard is there as it was written."""
        if not self.path.exists():
            return False
        part = read_json(self.part_path)
        return self.path.stat().st_size == part["bytes"] and sha256_of(self.path) == part["sha256"]


def write_shard(task: ShardTask) -> int:
    """Writes one shard, its columns and its rejected rows; what is complete already is left. Returns source rows done.

    The shard gets its final name last, so a shard of that name was complete and so were the parts beside it; one that
    was damaged since then is made again.
    """
    if task.is_complete():
        return task.table.num_rows
    temporary = task.path.with_name(task.path.name + ".incomplete")
    writer = array_record_module.ArrayRecordWriter(str(temporary), "group_size:1")
    kept, extra, rejected = [], [], []
    for offset, row in enumerate(_rows(task.table)):
        try:
            picture = task.read(row)
            stored, width, height = images.store_form(picture.encoded, task.size, task.quality)
        except images.BadImage as reason:
            rejected.append([row["name"], str(reason)])
            continue
        example = tf_example_pb2.Example()
        example.features.feature["image"].bytes_list.value.append(stored)
        example.features.feature["row"].int64_list.value.append(task.first_row + offset)
        writer.write(example.SerializeToString(deterministic=True))
        kept.append(offset)
        content = hashlib.sha256(picture.encoded).hexdigest()
        seen = phash.of(stored)
        extra.append((task.first_row + offset, content, width, height, seen, picture.landmarks or row["landmarks"]))
    writer.close()
    source, content, widths, heights, seen, landmarks = zip(*extra, strict=True) if extra else ([],) * 6
    columns = task.table.take(pa.array(kept, pa.int64()))
    at = columns.column_names.index("landmarks")
    columns = columns.set_column(at, "landmarks", pa.array(list(landmarks), task.table.schema.field(at).type))
    for name, values, kind in [
        ("source_row", source, pa.int64()),
        ("sha256", content, pa.string()),
        ("width", widths, pa.int32()),
        ("height", heights, pa.int32()),
        ("phash", seen, pa.binary(phash.BYTES)),
    ]:
        columns = columns.append_column(name, pa.array(list(values), kind))
    pq.write_table(columns, task.columns_path)
    part = {"rejected": rejected, "bytes": temporary.stat().st_size, "sha256": sha256_of(temporary)}
    write_json(task.part_path, part)
    os.replace(temporary, task.path)
    return task.table.num_rows


def _rows(table: pa.Table):
    """The rows as dicts, without ever holding more than a batch of them."""
    for batch in table.to_batches(max_chunksize=256):
        yield from batch.to_pylist()


def plan(
    source: Source, out: pathlib.Path, recipe: dict, *, size: int, quality: int, shards: int = 0
) -> list[ShardTask]:
    """Opens (or goes on with) the folder `out` and returns the tasks whose shards are its images.

    Raises InputError if `out` was begun with another source or recipe, or if the source has no row.
    """
    count = source.table.num_rows
    if not count:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in source.rejected[:3])
        raise InputError(f"the source has no usable row ({len(source.rejected)} rejected: {reasons})")
    shards = shards or -(-count // IMAGES_PER_SHARD)
    digest = hashlib.sha256()
    for batch in source.table.combine_chunks().to_batches():
        digest.update(repr([batch.schema.to_string(), batch.num_rows]).encode())
        for row in _rows(pa.table(batch)):
            digest.update(json.dumps(row, sort_keys=True).encode())
    recipe = {
        **recipe,
        "format": FORMAT,
        "size": size,
        "quality": quality,
        "shards": shards,
        "source_rows": count,
        "source_sha256": digest.hexdigest(),
    }
    try:
        (out / "parts").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out} cannot be made ({error.strerror}): name another --out") from error
    recipe_path = out / "recipe.json"
    if recipe_path.exists():
        before = read_json(recipe_path)
        differing = sorted(key for key in {*before, *recipe} if before.get(key) != recipe.get(key))
        if differing:
            listed = ", ".join(f"{key}: {before.get(key)!r} there, {recipe.get(key)!r} now" for key in differing)
            raise InputError(
                f"{out} was begun with another recipe ({listed}): choose another --out or remove the folder"
            )
    else:
        write_json(recipe_path, recipe)
    borders = [i * count // shards for i in range(shards + 1)]
    return [
        ShardTask(
            out,
            i,
            shards,
            borders[i],
            source.table.slice(borders[i], borders[i + 1] - borders[i]),
            source.read,
            size,
            quality,
        )
        for i in range(shards)
    ]


def finish(
    tasks: Sequence[ShardTask],
    rejected: Sequence[tuple[str, str]],
    make_splits: Callable[[pa.Table], tuple[str, dict[str, np.ndarray], np.ndarray]],
    crop: dict,
) -> dict:
    """Joins the parts of complete shards, makes the splits, writes the manifest last and returns it.

    Args: rejected: (name, reason) refused by the reader; make_splits: columns -> (protocol: 'image' | 'identity' |
    'column', rows of each split, rows that were taken out of theirs since the same file stands in another).
    """
    out = tasks[0].out
    tables = [pq.read_table(task.columns_path) for task in tasks]
    parts = [read_json(task.part_path) for task in tasks]
    columns = pa.concat_tables(tables)
    rejected = list(rejected) + [tuple(row) for part in parts for row in part["rejected"]]
    if not columns.num_rows:
        _remove(tasks)
        told = "; ".join(f"{name}: {reason}" for name, reason in rejected[:3])
        raise InputError(
            f"none of {len(rejected)} images can be used ({told}). Nothing was kept: mend it, or name the folder that"
            " the paths start from with --images, and give the command again"
        )
    protocol, splits, doubled = make_splits(columns)
    for name, rows in splits.items():
        if not len(rows):
            raise InputError(
                f"{out}: split {name!r} would be empty ({columns.num_rows} images, {len(rejected)} rejected); take"
                " another --split, or give more images or people"
            )
    listed = list(rejected)
    if len(doubled):
        names, own = columns["name"].to_pylist(), columns["split"].to_pylist()
        listed += [(names[i], f"left out of split {own[i]}: the same file stands in another split") for i in doubled]
    pq.write_table(columns, out / "columns.parquet")
    with open(out / "rejected.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("name", "reason"), *listed])
    (out / "splits").mkdir(exist_ok=True)
    for old in (out / "splits").iterdir():
        old.unlink()
    for name, rows in splits.items():
        np.savez(out / "splits" / f"{name}.npz", rows=np.asarray(rows, np.int64))
    shards = [
        {
            "file": task.path.name,
            "count": table.num_rows,
            "bytes": part["bytes"],
            "sha256": part["sha256"],
        }
        for task, table, part in zip(tasks, tables, parts, strict=True)
    ]
    _write_tfds_metadata(out, shards, crop)
    files = ["columns.parquet", *(f"splits/{name}.npz" for name in sorted(splits))]
    manifest = {
        "format": FORMAT,
        "count": columns.num_rows,
        "rejected": len(rejected),
        "left_out_of_split": len(doubled),
        "shards": shards,
        "files": {name: {"bytes": (out / name).stat().st_size, "sha256": sha256_of(out / name)} for name in files},
        "splits": {name: len(rows) for name, rows in splits.items()},
        "protocol": protocol,
        "crop": crop,
    }
    write_json(out / "dataset.json", manifest)
    return manifest


def _remove(tasks: Sequence[ShardTask]) -> None:
    """Takes back all that `plan` and `write_shard` made; the folder too, unless it holds something else."""
    for task in tasks:
        for path in (task.path, task.columns_path, task.part_path):
            path.unlink()
    out = tasks[0].out
    (out / "recipe.json").unlink()
    (out / "parts").rmdir()
    if not any(out.iterdir()):
        out.rmdir()


def _write_tfds_metadata(out: pathlib.Path, shards: list[dict], crop: dict) -> None:
    info = tfds.core.SplitInfo(
        name="images",
        shard_lengths=[shard["count"] for shard in shards],
        num_bytes=sum(shard["bytes"] for shard in shards),
        filename_template=_template(out),
    )
    tfds.folder_dataset.write_metadata(
        data_dir=str(out),
        features=tfds.features.FeaturesDict(_FEATURES),
        split_infos=[info],
        check_data=False,
        version="1.0.0",
        description="Faces prepared by lae_jax; ages and splits stand in columns.parquet and splits/.",
        metadata=tfds.core.MetadataDict({"crop": crop}),
    )
