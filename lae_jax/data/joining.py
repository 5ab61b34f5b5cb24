"""Joins the parts of complete shards into a prepared data set: columns, splits, manifest.

Parts are read one at a time. Only the splits, which are row numbers, grow with the number of images.
"""

import contextlib
import dataclasses
import itertools
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import tensorflow_datasets as tfds

from lae_jax.data import parquet, records
from lae_jax.data import rejected as refusals
from lae_jax.data.shards import ShardTask, source_path, template
from lae_jax.faces import align, crops
from lae_jax.runtime import files, layout
from lae_jax.runtime.errors import InputError
from lae_jax.runtime.files import sha256_of, write_json

_FEATURES = {"image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"), "row": np.int64}
# Rows of columns.parquet that are read and written together, and bytes of them after which no more are added.
_GROUP_ROWS, _GROUP_BYTES = 1 << 16, 1 << 27

Splits = tuple[str, Mapping[str, np.ndarray], np.ndarray]


def finish(
    tasks: Sequence[ShardTask],
    rejected: Sequence[tuple[str, str]],
    make_splits: Callable[[Callable[[str], pa.ChunkedArray]], Splits],
) -> dict:
    """Joins the parts of complete shards, makes the splits and writes the manifest last.

    The shards themselves are not opened.

    Args:
        tasks: Tasks of all shards, which are complete.
        rejected: (name, reason) of the rows that the reader refused.
        make_splits: (name -> that column, KeyError if there is none) -> (protocol: 'image' | 'identity' | 'column',
            rows of each split, rows that were removed from their split because another split holds the same file).

    Returns:
        The manifest.

    Raises:
        InputError: No image can be used, or a split would be empty; rejected.csv is written all the same.
    """
    out, recipe = tasks[0].out, tasks[0].recipe
    crop = recipe.contract()
    shards, refused, found = [], len(rejected), crops.Counts()
    for task in tasks:
        part = task.part()
        refused += len(part["rejected"])
        held = _count_of(task, part["bytes"])
        if held and recipe.align == "landmarks":
            _count(task, held, found)
        shards.append({"file": task.path.name, "count": held, "bytes": part["bytes"], "sha256": part["sha256"]})
    count, reasons = sum(shard["count"] for shard in shards), refusals.Reasons()
    listed = reasons.counting(_rejected(tasks, rejected))
    if not count:
        refusals.write(out / refusals.FILE, listed)
        _remove(tasks)
        raise InputError(
            f"none of {refused:,} images can be used: {reasons.told()}."
            f" {refusals.cause(reasons.counts(), recipe.align)}, then run the command"
            f" again. {out}/{refusals.FILE} lists all; nothing else was kept"
        )
    columns_path = out / "columns.parquet"
    _join_columns(tasks, [shard["count"] for shard in shards], columns_path)
    protocol, splits, doubled = make_splits(lambda name: _column(columns_path, name))
    refusals.write(out / refusals.FILE, itertools.chain(listed, _doubled(columns_path, doubled)))
    found.without_face += reasons.count(crops.NO_FACE)
    sizes = {name: len(rows) for name, rows in splits.items()}
    if empty := [name for name, size in sizes.items() if not size]:
        lost = refused >= refusals.LOUD * (count + refused)
        why = f" Rejected: {reasons.told()}." if refused else ""
        mend = "add images to that split" if protocol == "column" else "choose another --ratio, or add images or people"
        mend = f"{refusals.cause(reasons.counts(), recipe.align)}; or {mend}" if lost else mend.capitalize()
        raise InputError(
            f"{out}: split {empty[0]!r} would be empty ({count:,} of {count + refused:,} images could be used).{why}"
            f" {mend}. {out}/{refusals.FILE} lists the rejected images. The images are kept:"
            f" another --ratio uses them again; for another source or other crops, name another --out or remove {out}"
        )
    _write_splits(out / "splits", splits)
    _write_tfds_metadata(out, shards, crop)
    described = ["columns.parquet", *(f"splits/{name}.npz" for name in sorted(splits))]
    manifest = {
        "format": records.FORMAT,
        "count": count,
        "rejected": refused,
        "reasons": reasons.counts(),
        **dataclasses.asdict(found),
        "left_out_of_split": len(doubled),
        "shards": shards,
        "files": {name: {"bytes": (out / name).stat().st_size, "sha256": sha256_of(out / name)} for name in described},
        "splits": sizes,
        "protocol": protocol,
        "crop": crop,
    }
    write_json(out / "dataset.json", manifest)
    source_path(out).unlink()
    return manifest


def _column(path: pathlib.Path, name: str) -> pa.ChunkedArray:
    if name not in pq.read_schema(path).names:
        raise KeyError(name)
    return pq.read_table(path, columns=[name])[name]


def _again(task: ShardTask) -> str:
    return f"remove {task.path}, and run the same command again"


def _count_of(task: ShardTask, size: int) -> int:
    """Returns the number of images of a shard by its columns. The folder may be a stranger's.

    Raises:
      InputError: The columns are damaged, or of more images than `size` bytes of a shard can hold.
    """
    try:
        with files.open_regular(task.columns_path) as file:
            count = pq.read_metadata(file).num_rows
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{task.columns_path} is damaged ({error}): {_again(task)}") from error
    if not 0 <= count <= size // records.IMAGE_BYTES:
        raise InputError(f"{task.columns_path} is damaged ({count} images in {size} bytes): {_again(task)}")
    return count


def _count(task: ShardTask, held: int, found: crops.Counts) -> None:
    """Adds the photographs of a shard; those that were rejected are counted by their reason."""
    table = _columns_of(task, held)
    try:
        rows, faces = table["source_row"].to_numpy(), table["faces"].fill_null(0).to_numpy()
        searched = pc.equal(table["cut_by"], "mtcnn").to_numpy()
        landmarks = table["landmarks"].filter(pa.array(searched)).combine_chunks().flatten().to_numpy()
        turned = rows[searched][align.is_turned(landmarks.reshape(-1, 5, 2))]
    except (KeyError, ValueError, IndexError, pa.ArrowException) as error:  # of columns that a stranger made
        raise InputError(f"{task.columns_path} is damaged ({error}): {_again(task)}") from error
    found.without_face += pc.sum(pc.equal(table["cut_by"], "centre")).as_py() or 0
    found.several_faces += len(np.unique(rows[faces > 1]))
    found.turned_faces += len(np.unique(turned))


def _join_columns(tasks: Sequence[ShardTask], counts: Sequence[int], path: pathlib.Path) -> None:
    first, *others = [(task, count) for task, count in zip(tasks, counts, strict=True) if count]
    group = [_columns_of(*first)]
    schema, held = group[0].schema, first[1]
    with files.replacing(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for task, count in others:
            if held >= _GROUP_ROWS or sum(table.nbytes for table in group) >= _GROUP_BYTES:
                writer.write_table(pa.concat_tables(group))
                group, held = [], 0
            group.append(_columns_of(task, count))
            held += count
            if group[-1].schema != schema:
                raise InputError(
                    f"{task.columns_path} has other columns than {first[0].columns_path}: remove {task.path} and"
                    f" {first[0].path}, and run the same command again"
                )
        writer.write_table(pa.concat_tables(group))


def _columns_of(task: ShardTask, count: int) -> pa.Table:
    return parquet.read_columns(task.columns_path, count, _again(task))


def _rejected(tasks: Sequence[ShardTask], rejected: Iterable[tuple[str, str]]) -> Iterator[Sequence[str]]:
    """The rows that the reader refused, then those that each shard did, which have ages."""
    yield from rejected
    for task in tasks:
        yield from task.part()["rejected"]


def _doubled(columns_path: pathlib.Path, doubled: np.ndarray) -> Iterator[tuple[str, str]]:
    """Name and reason of the rows (sorted) that were removed from their split."""
    if not len(doubled):
        return
    first = 0
    with pq.ParquetFile(columns_path) as file:
        for batch in file.iter_batches(_GROUP_ROWS, columns=["name", "split"]):
            begin, end = np.searchsorted(doubled, [first, first + batch.num_rows])
            for row in batch.take(pa.array(doubled[begin:end] - first)).to_pylist():
                yield row["name"], f"removed from split {row['split']}: another split holds the same file"
            first += batch.num_rows


def _write_splits(folder: pathlib.Path, splits: Mapping[str, np.ndarray]) -> None:
    folder.mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:  # none of the files of an earlier split is replaced before all are written
        for name, rows in splits.items():
            with open(stack.enter_context(files.replacing(folder / f"{name}.npz")), "wb") as file:
                np.savez(file, rows=np.asarray(rows, np.int64))
    for name in layout.contents(folder):
        if name.removesuffix(".npz") not in splits:
            (folder / name).unlink()


def _remove(tasks: Sequence[ShardTask]) -> None:
    """Removes everything that `plan` and `write_shard` made."""
    for task in tasks:
        task.path.unlink(missing_ok=True)  # the shard may be in a bucket
        task.columns_path.unlink()
        task.part_path.unlink()
    out = tasks[0].out
    (out / "recipe.json").unlink()
    source_path(out).unlink()
    if not layout.contents(out / "parts"):
        shutil.rmtree(out / "parts")


def _write_tfds_metadata(out: pathlib.Path, shards: list[dict], crop: dict) -> None:
    # TFDS expects a shard beside its metadata. The shards may be in a bucket, so an empty file takes their place.
    with tempfile.TemporaryDirectory(prefix=".lae_jax-", dir=out / "parts", ignore_cleanup_errors=True) as folder:
        folder = pathlib.Path(folder)
        (folder / shards[0]["file"]).touch()
        info = tfds.core.SplitInfo(
            name="images",
            shard_lengths=[shard["count"] for shard in shards],
            num_bytes=sum(shard["bytes"] for shard in shards),
            filename_template=template(folder),
        )
        tfds.folder_dataset.write_metadata(
            data_dir=str(folder),
            features=tfds.features.FeaturesDict(_FEATURES),
            split_infos=[info],
            check_data=False,
            version="1.0.0",
            description="Faces prepared by lae_jax; columns.parquet holds the ages and splits/ the splits.",
            metadata=tfds.core.MetadataDict({"crop": crop}),
        )
        for path in folder.glob("*.json"):
            files.write_bytes(out / path.name, path.read_bytes())
