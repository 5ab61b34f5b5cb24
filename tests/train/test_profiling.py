"""`--profile`: which steps it names, and a trace that viewers can read."""

import gzip
import json
import pathlib
import tempfile

import jax
import pytest
from etils import epath
from etils.epath import backend, gpath

from lae_jax.runtime import files
from lae_jax.runtime.errors import InputError
from lae_jax.train import loop, profiling


@pytest.mark.parametrize("text", ["0", "-3", "ten", "5:4", "0:4", "1:2:3", "3:", ":3", "1:1001", "1001", " 4"])
def test_a_bad_value_is_an_error_that_says_what_is_meant(text):
    with pytest.raises(InputError, match="--profile"):
        profiling.parse(text)


def test_a_number_leaves_the_steps_out_that_compile():
    assert profiling.parse("20").of_start(100) == (103, 122)
    assert profiling.parse("5:9").of_start(0) == (5, 9) and profiling.parse("7:7").of_start(0) == (7, 7)


def test_steps_that_are_not_to_come_are_an_error_before_any_is_taken(small_config):
    config = small_config("represent")
    with pytest.raises(InputError, match="steps 3 to 4 are not among the remaining steps, 1 to 3"):
        loop.train(config, profile=profiling.Steps(3, 4))
    assert not (pathlib.Path(config.workdir) / "metrics.jsonl").exists()
    with pytest.raises(InputError, match="steps 4 to 4 .*, 5 to 9"):
        profiling.Trace(epath.Path(config.workdir), profiling.Steps(4, 4), 4, 9)


@pytest.mark.parametrize("is_bucket", [False, True], ids=["disk", "bucket"])
def test_a_trace_is_written_to_a_disk_and_to_a_bucket(tmp_path, is_bucket, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(files, "is_remote", lambda path: is_bucket)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    if is_bucket:
        monkeypatch.setattr(gpath._GPath, "_backend", property(lambda self: backend.tf_backend))

    def start(folder, **_):
        place = pathlib.Path(folder, "plugins", "profile", "2000")
        place.mkdir(parents=True)
        (place / "host.trace.json.gz").write_bytes(b"trace")

    monkeypatch.setattr(jax.profiler, "start_trace", start)
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: None)
    with profiling.Trace(epath.Path(tmp_path), profiling.Steps(3, 3), 0, 9) as trace:
        trace.begin(3)
        trace.end(3)
    (written,) = (tmp_path / "profile" / "host0").rglob("*.gz")
    assert written.read_bytes() == b"trace" and "the trace is written: open" in caplog.text
    assert not [*(tmp_path / "temporary").iterdir()]


def test_the_trace_of_a_run_has_its_steps_and_what_they_compute(small_config):
    config = small_config("represent")
    config.epochs = 2.0
    loop.train(config, profile=profiling.Steps(3, 4))
    folder = pathlib.Path(config.workdir) / "profile" / "host0" / "plugins" / "profile"
    (trace,) = folder.glob("*/*.trace.json.gz")
    (plane,) = folder.glob("*/*.xplane.pb")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    steps = {event["args"]["step_num"] for event in events if event.get("name") == "train"}
    assert steps >= {"3", "4"} and not steps & {"1", "2", "6"} and plane.stat().st_size
    assert any("dot" in event.get("name", "") for event in events)
