"""Prepared data sets: open, check, read. Each is a folder of ArrayRecord shards, columns, splits and a manifest.

faces-images.array_record-00000-of-00004   tf.Example: image (encoded bytes), row (number of the source row)
columns.parquet                         one row per image, in the order of the shards
splits/<name>.npz                       rows (int64) of a split
rejected.csv                            name, reason, age and split
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
import zipfile

import numpy as np
import pyarrow as pa
from array_record.python import array_record_data_source

from lae_jax import metrics
from lae_jax.data import chunks, parquet, split_names
from lae_jax.runtime import layout, typed
from lae_jax.runtime.errors import InputError, unknown
from lae_jax.runtime.files import open_regular, read_json, sha256_of, write_json
from lae_jax.runtime.foreign import zips
from lae_jax.runtime.typed import declared

logger = logging.getLogger("lae_jax")


FORMAT = 3  # version of the format of prepared data sets
FULL_BELOW_BYTES = 10e9  # size of all shards below which their checksums are computed when a data set is opened
_AGAIN = "prepare it again (python -m lae_jax.prepare ...)"
_COLUMNS_FILE, _VERIFIED = "columns.parquet", "verified.json"
IMAGE_BYTES = 100  # an image takes more in a shard
_LIMIT = 1 << 40  # images, and bytes of a shard
MANIFEST = typed.fields(
    {
        "count": typed.whole(1, _LIMIT),
        "splits": typed.named(typed.whole(0, _LIMIT), declared.NAME),
        "crop": declared.CROP,
        "protocol": typed.one_of(("image", "identity", "column")),
        "shards": typed.many(
            typed.fields({"file": declared.NAME, "count": typed.whole(0, _LIMIT), **declared.BYTES}),
        ),
        "files": typed.named(typed.fields(declared.BYTES)),
        "format": typed.whole(),
    }
)
# Size, time of change and SHA-256 of each file.
_SEEN = typed.named(typed.many(typed.either(typed.whole(), declared.DIGEST), 3))


@dataclasses.dataclass(frozen=True)
class _Shard:
    """A whole shard, as `ArrayRecordDataSource` takes it (its protocol `FileInstruction`)."""

    filename: str
    take: int
    examples_in_shard: int
    skip: int = 0


class Dataset:
    """A prepared data set, opened and checked. Images are read by row; columns and splits are arrays."""

    def __init__(self, path: pathlib.Path, manifest: dict, columns: pa.Table, shards: list[chunks.Chunks]):
        self.path, self.manifest, self._columns, self._chunks = path, manifest, columns, shards
        self._is_small = np.zeros(manifest["count"], bool)  # images whose sizes were checked
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
        return values.astype(np.float64) if name in ("age", *parquet.RANGE) else values

    @property
    def has_ranges(self) -> bool:
        """Whether the ages of some images are ranges."""
        return self.has_column(parquet.RANGE[0])

    def age_ranges(self) -> np.ndarray:
        """Returns the first and last age of each image, (N, 2) float64: equal where exact, NaN where unknown."""
        names = parquet.RANGE if self.has_ranges else ("age", "age")
        return np.stack([self.column(name) for name in names], axis=1)

    def label_ages(self) -> np.ndarray:
        """Returns the age that stands for each label, (N,) float64: exact, or that of its range; NaN where unknown."""
        return metrics.label_age(self.age_ranges()) if self.has_ranges else self.column("age")

    @property
    def has_spreads(self) -> bool:
        """Whether the labels of some images have a spread."""
        return self.has_column(parquet.SPREAD) and self._columns[parquet.SPREAD].type == pa.float64()

    def spreads(self) -> np.ndarray:
        """Returns the standard deviation of each label, (N,) float64 years; NaN where unknown."""
        return self.column(parquet.SPREAD) if self.has_spreads else np.full(len(self), np.nan)

    def targets(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Returns what a stage learns of rows: a column's values, (N,), or ranges, (N, 2), if an age among them is one.

        Raises:
            InputError: There is no such column.
        """
        if name == "age" and self.has_ranges:
            ranges = self.age_ranges()[rows]
            if (ranges[:, 0] < ranges[:, 1]).any():
                return ranges
        return self.column(name)[rows]

    def rows(self, split: str) -> np.ndarray:
        """Returns the rows (int64) of a split; 'all' is every row.

        Raises:
            InputError: The split is unknown or empty.
        """
        if split == "all":
            return np.arange(len(self), dtype=np.int64)
        split_names.require(self.path, split, self.manifest["splits"])
        count = self.manifest["splits"][split]
        if not count:
            raise InputError(f"{self.path}: split {split!r} is empty")
        path = self.path / "splits" / f"{split}.npz"
        try:
            rows = _rows(path, len(self))
            if len(rows) != count:
                raise ValueError(f"{len(rows)} rows, and dataset.json says {count}")
        except zips.ERRORS as error:
            raise InputError(f"{path} is damaged ({error}): restore it, or {_AGAIN}") from error
        return rows

    def shard_of(self, row: int) -> str:
        """Returns the name of the shard that holds a row."""
        return self.manifest["shards"][self._place(row)[0]]["file"]

    @functools.cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([shard["count"] for shard in self.manifest["shards"]])

    def _place(self, row: int) -> tuple[int, int]:
        """Returns the number of the shard that holds a row, and the row's number in it."""
        shard = int(np.searchsorted(self._ends, row, side="right"))
        return shard, int(row - self._ends[shard] + self.manifest["shards"][shard]["count"])

    def _require_small(self, row: int) -> None:
        shard, number = self._place(row)
        try:
            self._chunks[shard].require_small(number)
        except (ValueError, OSError) as error:
            name = self.manifest["shards"][shard]["file"]
            raise InputError(f"{self.path / name} is damaged ({error}): restore it, or {_AGAIN}") from error
        self._is_small[row] = True

    def read(self, rows: np.ndarray) -> list[bytes]:
        """Returns the serialised tf.Examples (image, row) of the rows, in the same order.

        Raises:
            InputError: An image is larger than `chunks.MAX_RECORD_BYTES`, or its shard is damaged.
        """
        for row in rows[~self._is_small[rows]].tolist():
            self._require_small(row)
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
    manifest = read_json(path / layout.DATASET, again=_AGAIN)
    if "format" in manifest and manifest["format"] != FORMAT:
        raise InputError(
            f"{path} has the format {manifest['format']!r}, and this version of lae_jax reads {FORMAT}: {_AGAIN}, or"
            " use the version that made it"
        )
    typed.require(manifest, MANIFEST, path / layout.DATASET, _AGAIN)
    expected = {**{shard["file"]: shard for shard in manifest["shards"]}, **manifest["files"]}
    total = sum(shard["count"] for shard in manifest["shards"])
    needed = {_COLUMNS_FILE, *(f"splits/{name}.npz" for name in manifest["splits"])}
    if len(expected) != len(manifest["shards"]) + len(needed) or needed != {*manifest["files"]}:
        raise InputError(f"{path}/dataset.json is damaged (its files are not those of its shards and splits): {_AGAIN}")
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
    shards = _verify(path, expected, hashed, _AGAIN)
    if total != manifest["count"] or total > size // IMAGE_BYTES:
        raise InputError(
            f"{path}: {total} images in {size} bytes of shards, {manifest['count']} in dataset.json: {_AGAIN}"
        )
    columns = parquet.read_columns(path / _COLUMNS_FILE, total, f"restore it, or {_AGAIN}")
    return Dataset(path, manifest, columns, shards)


def _rows(path: pathlib.Path, count: int) -> np.ndarray:
    """Returns the rows in the file of a split of a data set with `count` images.

    Raises:
      ValueError: They are not rows of the data set, each once. A file of another kind raises other errors too.
    """
    with open_regular(path) as file, zipfile.ZipFile(file) as archive:
        rows = zips.array(archive, "rows.npy", 8 * count + 1024)
    if rows.dtype != np.int64 or rows.ndim != 1:
        raise ValueError(f"{rows.dtype} of shape {rows.shape}, not a list of int64")
    if len(rows) and not (rows.min() >= 0 and rows.max() < count):
        raise ValueError(f"rows from {rows.min()} to {rows.max()}, and the data set has {count} images")
    is_there = np.zeros(count, bool)
    is_there[rows] = True
    if is_there.sum() < len(rows):
        raise ValueError("a row twice")
    return rows


def _verify(path: pathlib.Path, expected: dict[str, dict], hashed: set[str], again: str) -> list[chunks.Chunks]:
    """Checks files; returns the chunks of the shards."""
    verified = read_json(path / _VERIFIED, _SEEN, "remove it") if (path / _VERIFIED).exists() else {}
    seen, shards = {}, []
    for name, entry in expected.items():
        with open_regular(path / name) as file:
            status = os.fstat(file.fileno())
        if status.st_size != entry["bytes"]:
            raise InputError(f"{path / name} has {status.st_size} bytes, not {entry['bytes']}: restore it, or {again}")
        if "count" in entry:
            try:
                shards.append(chunks.Chunks(path / name, entry["count"]))
            except (ValueError, OSError) as error:
                raise InputError(f"{path / name} is damaged ({error}): restore it, or {again}") from error
            if (held := len(shards[-1])) != entry["count"]:
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
            write_json(path / _VERIFIED, {**verified, **seen})
        except OSError:
            logger.debug("%s is read-only: the checksums are computed at every start", path)
    return shards
