"""`--profile`: which steps it names, and a trace that viewers can read."""

import gzip
import json
import pathlib

import pytest
from etils import epath

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
