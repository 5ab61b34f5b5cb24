"""The prepared data set: a folder of ArrayRecord shards, a table of columns, splits, and a manifest.

    faces-images.array_record-00000-of-00004   tf.Example: image (encoded bytes), row (number of the source row)
    columns.parquet                         one row an image, in the order of the shards
    splits/<name>.npz                       rows (int64) of a split
    rejected.csv                            name, reason
    recipe.json                             what the shards are a function of; written first
    dataset.json                            manifest: counts, sizes and SHA-256 of the files above; written last
    dataset_info.json, features.json        TFDS metadata, so that tfds.builder_from_directory opens the folder

A shard is a pure function of (source, recipe, shard number): shard i holds the source rows i*n/N up to (i+1)*n/N, so a
rejected image shortens its own shard and moves nothing else. Several processes, or starting again after a kill, call
`write_shard` for the shards that are missing.
"""

import csv
import dataclasses
import functools
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

from lae_jax.data import images
from lae_jax.data.readers import Picture, Source
from lae_jax.errors import InputError, unknown
from lae_jax.files import is_remote, sha256_of, write_json

logger = logging.getLogger("lae_jax")

FORMAT = 1
IMAGES_PER_SHARD = 4096
FULL_BELOW_BYTES = 10e9  # of all shards: up to here their checksums are computed when a data set is opened
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
    def rejected_path(self) -> pathlib.Path:
        return self.out / "parts" / f"{self.index:05d}.json"


def write_shard(task: ShardTask) -> int:
    """Writes one shard, its columns and its rejected rows; what is complete already is left. Returns source rows done.

    The shard gets its final name last, so a shard of that name is complete and so are the parts beside it.
    """
    if task.path.exists():
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
        extra.append((task.first_row + offset, content, width, height, picture.landmarks or row["landmarks"]))
    writer.close()
    source, content, widths, heights, landmarks = zip(*extra, strict=True) if extra else ([],) * 5
    columns = task.table.take(pa.array(kept, pa.int64()))
    at = columns.column_names.index("landmarks")
    columns = columns.set_column(at, "landmarks", pa.array(list(landmarks), task.table.schema.field(at).type))
    for name, values, kind in [
        ("source_row", source, pa.int64()),
        ("sha256", content, pa.string()),
        ("width", widths, pa.int32()),
        ("height", heights, pa.int32()),
    ]:
        columns = columns.append_column(name, pa.array(list(values), kind))
    pq.write_table(columns, task.columns_path)
    task.rejected_path.write_text(json.dumps(rejected))
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
    (out / "parts").mkdir(parents=True, exist_ok=True)
    recipe_path = out / "recipe.json"
    if recipe_path.exists():
        before = json.loads(recipe_path.read_text())
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
    parts = [pq.read_table(task.columns_path) for task in tasks]
    columns = pa.concat_tables(parts)
    if not columns.num_rows:
        first = json.loads(tasks[0].rejected_path.read_text())[:3]
        raise InputError(f"none of {sum(t.table.num_rows for t in tasks)} images can be used, for instance {first}")
    protocol, splits, doubled = make_splits(columns)
    rejected = list(rejected) + [tuple(row) for task in tasks for row in json.loads(task.rejected_path.read_text())]
    for name, rows in splits.items():
        if not len(rows):
            raise InputError(
                f"{out}: split {name!r} would be empty; take another --split, or give more images or people"
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
            "count": part.num_rows,
            "bytes": task.path.stat().st_size,
            "sha256": sha256_of(task.path),
        }
        for task, part in zip(tasks, parts, strict=True)
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


class Dataset:
    """A prepared data set that was opened and checked; images are read by row, columns and splits are arrays."""

    def __init__(self, path: pathlib.Path, manifest: dict, columns: pa.Table):
        self.path, self.manifest, self._columns = path, manifest, columns
        builder = tfds.builder_from_directory(str(path))
        lengths = [shard["count"] for shard in manifest["shards"]]
        if builder.info.splits["images"].shard_lengths != lengths:
            raise InputError(f"{path}: dataset_info.json and dataset.json count differently: prepare it again")
        self._source = builder.as_data_source("images", deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)

    def __len__(self) -> int:
        return self.manifest["count"]

    @functools.cached_property
    def hash(self) -> str:
        """SHA-256 over the manifest, which holds the SHA-256 of everything else."""
        return hashlib.sha256(json.dumps(self.manifest, sort_keys=True).encode()).hexdigest()

    @property
    def crop(self) -> dict:
        """The crop contract."""
        return self.manifest["crop"]

    def column(self, name: str) -> np.ndarray:
        """One column, (N,): float64 with NaN for unknown ages, otherwise as stored (None where unknown)."""
        if name not in self._columns.column_names:
            raise InputError(f"{self.path}: " + unknown("column", name, self._columns.column_names))
        values = self._columns[name].to_numpy(zero_copy_only=False)
        return values.astype(np.float64) if name == "age" else values

    def rows(self, split: str) -> np.ndarray:
        """Rows (int64) of a split; 'all' is every row. Raises InputError for an unknown or an empty one."""
        if split == "all":
            return np.arange(len(self), dtype=np.int64)
        if split not in self.manifest["splits"]:
            raise InputError(f"{self.path}: " + unknown("split", split, [*self.manifest["splits"], "all"]))
        with np.load(self.path / "splits" / f"{split}.npz") as file:
            rows = file["rows"]
        if not len(rows):
            raise InputError(f"{self.path}: split {split!r} is empty")
        return rows

    def shard_of(self, row: int) -> str:
        """The file that holds a row."""
        ends = np.cumsum([shard["count"] for shard in self.manifest["shards"]])
        return self.manifest["shards"][int(np.searchsorted(ends, row, side="right"))]["file"]

    def read(self, rows: np.ndarray) -> list[bytes]:
        """Serialised tf.Examples (image, row) of the rows, in their order."""
        # One by one: the source's own batch access starts a thread pool at each call and is slower.
        return [self._source[row] for row in rows.tolist()]


def open_dataset(path: str | os.PathLike, verify: str = "auto") -> Dataset:
    """Opens a prepared data set and checks it: files there, sizes, counts, and their SHA-256.

    A SHA-256 is computed once for each state (size, time of change) of a file and then remembered in `verified.json`.

    Args: verify: 'full'; 'quick' (shards are not hashed); 'auto': full below 10 GB. Raises InputError that names the
    file and what to do.
    """
    if verify not in ("auto", "full", "quick"):
        raise InputError(f"config.data.verify is {verify!r}: it must be 'auto', 'full' or 'quick'")
    if is_remote(path):
        raise InputError(
            f"{path}: prepared data is read from a local disk or a mount. Copy it (gcloud storage cp -r {path} DIR) or"
            " mount the bucket (gcsfuse BUCKET DIR), and name it with --config.data.path=DIR (in a recipe"
            " --config.faces=DIR)"
        )
    path = pathlib.Path(path)
    again = "prepare it again (python -m lae_jax.prepare ...)"
    if not (path / "dataset.json").exists():
        if (path / "recipe.json").exists():
            raise InputError(
                f"{path} was not finished: run the same prepare command again, it goes on where it stopped"
            )
        raise InputError(
            f"{path} is no prepared data set: make it with"
            f" python -m lae_jax.prepare --reader csv --source faces.csv --out {path}"
        )
    try:
        manifest = json.loads((path / "dataset.json").read_text())
        expected = {**{s["file"]: s for s in manifest["shards"]}, **manifest["files"]}
        total = sum(shard["count"] for shard in manifest["shards"])
        if missing := {"count", "splits", "crop", "protocol"} - {*manifest}:
            raise KeyError(*sorted(missing))
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise InputError(f"{path}/dataset.json is damaged ({error!r}): {again}") from error
    size = sum(shard["bytes"] for shard in manifest["shards"])
    hashed = {*expected}
    if verify == "quick" or (verify == "auto" and size >= FULL_BELOW_BYTES):
        hashed = {*manifest["files"]}
        logger.info("%s: checksums of its %d shards are not computed (data.verify)", path, len(manifest["shards"]))
    _verify(path, expected, hashed, again)
    columns = pq.read_table(path / "columns.parquet")
    if not total == columns.num_rows == manifest["count"]:
        raise InputError(
            f"{path}: {total} images in the shards, {columns.num_rows} rows in columns.parquet,"
            f" {manifest['count']} in dataset.json: {again}"
        )
    return Dataset(path, manifest, columns)


def _verify(path: pathlib.Path, expected: dict[str, dict], hashed: set[str], again: str) -> None:
    try:
        verified = json.loads((path / "verified.json").read_text())
    except (OSError, json.JSONDecodeError):
        verified = {}
    seen = {}
    for name, entry in expected.items():
        try:
            status = (path / name).stat()
        except FileNotFoundError:
            raise InputError(f"{path / name} is missing: restore it, or {again}") from None
        if status.st_size != entry["bytes"]:
            raise InputError(f"{path / name} has {status.st_size} bytes, not {entry['bytes']}: restore it, or {again}")
        if "count" in entry:
            try:
                held = array_record_module.ArrayRecordReader(str(path / name)).num_records()
            except RuntimeError as error:
                raise InputError(f"{path / name} is damaged ({error}): restore it, or {again}") from error
            if held != entry["count"]:
                raise InputError(f"{path / name} holds {held} images, dataset.json says {entry['count']}: {again}")
        if name not in hashed:
            continue
        seen[name] = [status.st_size, status.st_mtime_ns, entry["sha256"]]
        if verified.get(name) != seen[name] and sha256_of(path / name) != entry["sha256"]:
            raise InputError(f"{path / name} was changed (its SHA-256 is not the manifest's): restore it, or {again}")
    if {**verified, **seen} != verified:
        try:
            write_json(path / "verified.json", {**verified, **seen})
        except OSError:
            logger.debug("%s is read-only: the checksums are computed at every start", path)
