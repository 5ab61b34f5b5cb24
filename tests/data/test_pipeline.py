"""The pipeline: batches are functions of the step, each host reads its places, and damage names its record."""

import json
import shutil

import hostile
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from etils import epath

from lae_jax.data import pipeline, records, sampling
from lae_jax.data.augment import Augmentation
from lae_jax.runtime import checksums, files
from lae_jax.runtime.errors import InputError

AUGMENT = Augmentation(image_size=24, patch="area", brightness=0.125, num_ops=2)


def train(dataset, start=0, stop=4, first=0, count=16, seed=0, threads=2):
    rows = dataset.rows("train")
    return list(
        pipeline.train_batches(
            dataset, rows, dataset.column("age")[rows].astype(np.float32), sampling.shuffled(len(rows), 16, seed),
            AUGMENT, seed=seed, start=start, stop=stop, places=pipeline.Places(16, first, count), threads=threads,
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def dataset(drawn):
    return records.open_dataset(drawn)


def test_batches_hold_augmented_uint8_images_with_their_own_targets(dataset):
    batches = train(dataset, stop=6)
    assert len(batches) == 6
    for batch in batches:
        assert batch["image"].shape == (16, 24, 24, 3) and batch["image"].dtype == np.uint8
        np.testing.assert_array_equal(batch["target"], dataset.column("age")[batch["row"]].astype(np.float32))
    rows = np.concatenate([batch["row"] for batch in batches])
    np.testing.assert_array_equal(np.sort(rows), np.sort(dataset.rows("train")))


@pytest.mark.slow
def test_a_batch_is_a_function_of_seed_and_step(dataset):
    whole = train(dataset, threads=1)
    late = train(dataset, start=2, threads=4)
    for one, two in zip(whole[2:], late, strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], two[name])
    assert not np.array_equal(train(dataset, stop=1, seed=1)[0]["row"], whole[0]["row"])
    assert not np.array_equal(whole[0]["image"], whole[1]["image"])


@pytest.mark.slow
def test_four_hosts_read_the_places_of_one(dataset):
    whole = train(dataset, stop=2)
    parts = [train(dataset, stop=2, first=4 * host, count=4) for host in range(4)]
    for step in range(2):
        for name in whole[0]:
            np.testing.assert_array_equal(whole[step][name], np.concatenate([part[step][name] for part in parts]))


def test_evaluation_sees_each_row_once_in_order_with_numbered_padding(dataset):
    rows = dataset.rows("test")[:13]
    batches = list(pipeline.eval_batches(dataset, rows, AUGMENT, places=pipeline.Places(8, 0, 8), threads=2))
    assert np.concatenate([batch["position"] for batch in batches]).tolist() == list(range(16))
    np.testing.assert_array_equal(batches[1]["image"][4], batches[1]["image"][7])
    halves = [
        list(pipeline.eval_batches(dataset, rows, AUGMENT, places=pipeline.Places(8, 4 * h, 4), threads=2))
        for h in (0, 1)
    ]
    np.testing.assert_array_equal(batches[0]["image"], np.concatenate([halves[0][0]["image"], halves[1][0]["image"]]))


def claims_more(encoded):
    at = encoded.index(b"\xff\xc0") + 5
    return encoded[:at] + b"\x20\x00\x20\x00" + encoded[at + 4 :]


@pytest.mark.parametrize(("change", "reason"), [
    (lambda encoded: encoded.replace(b"\xff\xd8\xff", b"\xff\x00\xff"), "not a JPEG"),
    (lambda encoded: encoded[:-90], "does not decode, so it is damaged"),
    (lambda encoded: hostile.many_scans(64, 1500), "a JPEG of more than 100 scans"),
    (lambda encoded: hostile.png(1, 200_000), "not a JPEG"),
    (claims_more, "8192 x 8192 pixels are more than 25,000,000"),
])  # fmt: skip
def test_a_record_that_does_not_decode_is_named(dataset, monkeypatch, change, reason):
    row = int(dataset.rows("train")[5])

    def damaged(of, rows, original=pipeline._encoded):
        found = zip(rows.tolist(), original(of, rows), strict=True)
        return [change(encoded) if r == row else encoded for r, encoded in found]

    monkeypatch.setattr(pipeline, "_encoded", damaged)
    named = f"{dataset.shard_of(row)}: row {row} .*{dataset.column('name')[row]}.* does not decode .*{reason}"
    with pytest.raises(InputError, match=named):
        train(dataset, stop=6)


def test_a_row_knows_its_shard(dataset):
    counts = [shard["count"] for shard in dataset.manifest["shards"]]
    shards = [dataset.shard_of(row) for row in range(len(dataset))]
    assert [shards.count(shard["file"]) for shard in dataset.manifest["shards"]] == counts
    assert shards == sorted(shards)


def test_a_loader_that_dies_of_something_else_ends_with_its_own_error(dataset, monkeypatch):
    def broken(self, encoded, seed):
        with tf.control_dependencies([tf.debugging.Assert(seed[0] == 0, ["the augmentation broke"])]):
            return tf.identity(tf.zeros([24, 24, 3], tf.uint8))

    monkeypatch.setattr(Augmentation, "train", broken)
    with pytest.raises(tf.errors.InvalidArgumentError, match="the augmentation broke"):
        train(dataset)


@pytest.mark.parametrize(
    ("repeated", "compression", "reason"),
    [(100, "snappy", "00 rows, and the shards"), (1, "zstd", "another compression"), (1, "snappy", "bytes a row")],
)
def test_columns_whose_few_bytes_stand_for_many_are_not_read(drawn, tmp_path, repeated, compression, reason):
    out = shutil.copytree(drawn, tmp_path / "out")
    table = pq.read_table(out / "columns.parquet")
    if reason == "bytes a row":
        place = table.column_names.index("name")
        table = table.set_column(place, "name", pa.array(["x" * 1_000_000] * len(table)))
    with pq.ParquetWriter(out / "columns.parquet", table.schema, compression=compression) as writer:
        for _ in range(1):
            writer.write_table(pa.concat_tables([table] * repeated))
    manifest = json.loads((out / "dataset.json").read_text())
    manifest["files"]["columns.parquet"] = checksums.entries(epath.Path(out))["columns.parquet"]
    files.write_json(out / "dataset.json", manifest)
    with pytest.raises(InputError, match=f"columns.parquet is damaged .*{reason}"):
        records.open_dataset(out)
