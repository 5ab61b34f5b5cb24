"""What a run writes down: lines that go on after a step, also where nothing can be appended to a file."""

import json
import math

import numpy as np
import pytest
from etils import epath
from etils.epath import backend, gpath
from ml_collections import ConfigDict

from lae_jax.runs import build
from lae_jax.runtime import files
from lae_jax.runtime.errors import InputError
from lae_jax.train.journal import Journal, Lines, told


def metrics(loss, bad=False, in_a_row=0):
    return {"loss": np.array([loss, 4.0]), "grad_norm": np.array(1.0), "skipped": bad, "skipped_steps": in_a_row}


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(params=[False, True], ids=["disk", "bucket"])
def remote(request, monkeypatch):
    monkeypatch.setattr(files, "is_remote", lambda path: request.param)
    if request.param:
        monkeypatch.setattr(gpath._GPath, "_backend", property(lambda self: backend.tf_backend))
    return request.param


def scalars(folder):
    """{name: [(step, value)]} of all event files of a folder, as TensorFlow reads them."""
    import tensorflow as tf

    found = {}
    for path in folder.iterdir():
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def test_lines_after_the_step_are_cut_and_so_is_half_a_line(tmp_path, remote):
    path = epath.Path(tmp_path) / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 4, "lo')
    lines = Lines(path, 2)
    assert lines.rows == [{"step": 1}, {"step": 2}]
    lines.append({"step": 3, "again": True})
    assert len(rows(path)) == (2 if remote else 3)
    assert not Lines(epath.Path(tmp_path) / "divergence.jsonl", 0).rows
    assert not (tmp_path / "divergence.jsonl").exists()
    lines.publish()
    lines.close()
    assert rows(path) == [{"step": 1}, {"step": 2}, {"step": 3, "again": True}]


def test_a_journal_is_whole_after_each_publish(tmp_path, remote):
    config = ConfigDict({"log_steps": 2, "batch_size": 4})
    schedule = build.Schedules(lambda step: 0.1 / (1 + step), 0.9)
    with Journal(epath.Path(tmp_path), 0, schedule, config, active=True) as journal:
        assert journal.stepped(1, metrics(8.0)) == ""
        journal.skipped_step(2, metrics(float("nan"), True, 1), ["a.jpg", "b.jpg"])
        assert "loss 2.0000" in journal.stepped(2, metrics(float("nan"), True, 1))
        journal.evaluated(2, {"mae": 3.0}, 2)
        journal.publish()
        train, validation, spent = rows(tmp_path / "metrics.jsonl")
        assert spent["kind"] == "time" and spent["step"] == 2
        assert train["loss"] == 2.0 and train["skipped_steps"] == 1 and validation["mae"] == 3.0
        # The optimiser did not count the skipped step.
        assert train["learning_rate"] == pytest.approx(0.1)
    (bad,) = rows(tmp_path / "divergence.jsonl")
    assert bad["rows"] == ["a.jpg", "b.jpg"] and bad["loss"] is None and bad["learning_rate"] == pytest.approx(0.05)
    assert scalars(tmp_path / "tensorboard")["validation/mae"] == [(2, 3.0)]
    with Journal(epath.Path(tmp_path), 1, schedule, config, active=True) as journal:
        assert journal.skipped_steps == 0
    assert rows(tmp_path / "divergence.jsonl") == []
    assert {(row["kind"], row["step"]) for row in rows(tmp_path / "metrics.jsonl")} == {("time", 1)}


def test_lines_are_not_added_where_a_link_leads_to(tmp_path):
    (tmp_path / "metrics.jsonl").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="metrics.jsonl is a link, and lines are added to the file"):
        Lines(epath.Path(tmp_path / "metrics.jsonl"), 0)
    assert not (tmp_path / "elsewhere").exists()


def test_prepared_data_in_a_bucket_says_how_to_copy_or_mount_it():
    from lae_jax.data import records

    with pytest.raises(InputError, match="gcloud storage cp -r gs://bucket/faces DIR.*gcsfuse"):
        records.open_dataset("gs://bucket/faces")
    assert files.is_remote("gs://bucket/run") and not files.is_remote("runs/represent")


def test_scores_are_told_once():
    scores = {"mae": 6.0, "mmae": 7.0, "mean_group_mae": 7.0, "n": 12}
    assert told(scores) == "mae 6.000, mmae 7.000"
    assert told({**scores, "mmae": math.nan}) == "mae 6.000, mmae nan, mean_group_mae 7.000"
