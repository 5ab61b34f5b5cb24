"""Prepared data sets: open, check, read. Each is a folder of ArrayRecord shards, columns, splits and a manifest.

faces-images.array_record-00000-of-00004   tf.Example: image (encoded bytes), row (number of the source row)
columns.parquet                         one row per image, in the order of the shards
splits/<name>.npz                       rows (int64) of a split
rejected.csv                            name, reason
recipe.json                             everything that determines the shards; written first
dataset.json                            manifest: counts, sizes and SHA-256 of the files above; written last
dataset_info.json, features.json        TFDS metadata, for other programs: tfds.builder_from_directory opens the folder

No TFDS metadata is read here: features.json names Python modules, which TFDS imports.
"""

import dataclasses
import functools
import hashlib
import json
import logging
import os
import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from array_record.python import array_record_data_source, array_record_module

from lae_jax.data import split_names
from lae_jax.runtime import layout
from lae_jax.runtime.errors import InputError, unknown
from lae_jax.runtime.files import sha256_of, write_json

logger = logging.getLogger("lae_jax")


FORMAT = 3  # version of the format of prepared data sets
FULL_BELOW_BYTES = 10e9  # size of all shards below which their checksums are computed when a data set is opened


@dataclasses.dataclass(frozen=True)
class _Shard:
    """A whole shard, as `ArrayRecordDataSource` takes it (its protocol `FileInstruction`)."""

    filename: str
    take: int
    examples_in_shard: int
    skip: int = 0


class Dataset:
    """A prepared data set, opened and checked. Images are read by row; columns and splits are arrays."""

    def __init__(self, path: pathlib.Path, manifest: dict, columns: pa.Table):
        self.path, self.manifest, self._columns = path, manifest, columns
        shards = [(str(path / shard["file"]), shard["count"]) for shard in manifest["shards"]]
        self._source = array_record_data_source.ArrayRecordDataSource(
            [_Shard(name, count, count) for name, count in shards]
        )

    def __len__(self) -> int:
        return self.manifest["count"]

    @functools.cached_property
    def hash(self) -> str:
        """SHA-256 of the manifest, which holds the SHA-256 of the shards, the columns and the splits."""
        return hashlib.sha256(json.dumps(self.manifest, sort_keys=True).encode()).hexdigest()

    @property
    def crop(self) -> dict:
        """The crop contract."""
        return self.manifest["crop"]

    def has_column(self, name: str) -> bool:
        """Whether the data set has this column."""
        return name in self._columns.column_names

    def column(self, name: str) -> np.ndarray:
        """Returns a column, (N,): ages as float64 with NaN where unknown, others as stored (None where unknown).

        Raises:
            InputError: There is no such column.
        """
        if not self.has_column(name):
            raise InputError(f"{self.path}: " + unknown("column", name, self._columns.column_names))
        values = self._columns[name].to_numpy(zero_copy_only=False)
        return values.astype(np.float64) if name == "age" else values

    def rows(self, split: str) -> np.ndarray:
        """Returns the rows (int64) of a split; 'all' is every row.

        Raises:
            InputError: The split is unknown or empty.
        """
        if split == "all":
            return np.arange(len(self), dtype=np.int64)
        split_names.require(self.path, split, self.manifest["splits"])
        with np.load(self.path / "splits" / f"{split}.npz") as file:
            rows = file["rows"]
        if not len(rows):
            raise InputError(f"{self.path}: split {split!r} is empty")
        return rows

    def shard_of(self, row: int) -> str:
        """Returns the name of the shard that holds a row."""
        ends = np.cumsum([shard["count"] for shard in self.manifest["shards"]])
        return self.manifest["shards"][int(np.searchsorted(ends, row, side="right"))]["file"]

    def read(self, rows: np.ndarray) -> list[bytes]:
        """Returns the serialised tf.Examples (image, row) of the rows, in the same order."""
        # One row at a time: the batch access of the source starts a thread pool at each call and is slower.
        return [self._source[row] for row in rows.tolist()]

    def encoded(self, rows: np.ndarray) -> list[bytes]:
        """Returns the encoded images (JPEG) of the rows, in the same order."""
        # Importing it takes as long as opening a data set, and most programs that open one need no encoded images.
        from tensorflow_datasets.proto import tf_example_pb2

        examples = map(tf_example_pb2.Example.FromString, self.read(rows))
        return [example.features.feature["image"].bytes_list.value[0] for example in examples]


def open_dataset(path: str | os.PathLike, verify: str = "auto") -> Dataset:
    """Opens a prepared data set and checks that its files exist, their sizes, counts and SHA-256.

    A SHA-256 is computed once for each state (size, time of change) of a file and then stored in `verified.json`.

    Args:
        path: Folder of the data set.
        verify: 'full'; 'quick' (shards are not hashed); 'auto' (full below 10 GB).

    Raises:
        InputError: A check fails. The message names the file and what to do.
    """
    if verify not in ("auto", "full", "quick"):
        raise InputError(f"config.data.verify is {verify!r}: it must be 'auto', 'full' or 'quick'")
    layout.require_dataset(path)
    path = pathlib.Path(path)
    again = "prepare it again (python -m lae_jax.prepare ...)"
    try:
        manifest = json.loads((path / "dataset.json").read_text())
        expected = {**{s["file"]: s for s in manifest["shards"]}, **manifest["files"]}
        total = sum(shard["count"] for shard in manifest["shards"])
        if missing := {"count", "splits", "crop", "protocol"} - {*manifest}:
            raise KeyError(*sorted(missing))
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise InputError(f"{path}/dataset.json is damaged ({error!r}): {again}") from error
    if manifest.get("format") != FORMAT:
        raise InputError(
            f"{path} has the format {manifest.get('format')!r}, and this version of lae_jax reads {FORMAT}: {again}, or"
            " use the version that made it"
        )
    size = sum(shard["bytes"] for shard in manifest["shards"])
    hashed = {*expected}
    large = verify == "auto" and size >= FULL_BELOW_BYTES
    if large or verify == "quick":
        hashed = {*manifest["files"]}
    if large:
        logger.info(
            "%s: %.0f GB, so the checksums of its shards are not computed (config.data.verify='full' computes them)",
            path,
            size / 1e9,
        )
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
            raise InputError(
                f"{path / name} was changed (its SHA-256 is not the one in dataset.json): restore it, or {again}"
            )
    if {**verified, **seen} != verified:
        try:
            write_json(path / "verified.json", {**verified, **seen})
        except OSError:
            logger.debug("%s is read-only: the checksums are computed at every start", path)
