"""Where the wall time of a run goes: each moment has one cause, and what a restart repeats is lost."""

import json
import pathlib

import pytest
from etils import epath
from ml_collections import ConfigDict

from lae_jax.runs import build
from lae_jax.runtime.errors import SaveFailed
from lae_jax.runtime.typed.declared import CAUSES
from lae_jax.train import journal, wall_time

CONFIG = ConfigDict({"log_steps": 1, "batch_size": 4})
SCHEDULE = build.Schedules(lambda step: 0.1, 0.9)


class Clock:
    """A clock that stands until it is set on."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def seconds(row):
    return {cause: row[cause] * row["seconds"] for cause in CAUSES if row[cause] > 1e-12}


@pytest.fixture
def clock(monkeypatch):
    found = Clock()
    monkeypatch.setattr(journal.time, "perf_counter", found)
    return found


def start(folder, clock, step):
    """A start of a run after `step`."""
    return journal.Journal(epath.Path(folder), step, SCHEDULE, CONFIG, active=True, began=clock())


def kill(made):
    """Ends a start that has no time to write anything."""
    made._metrics.close()
    made._events.close()


def train(made, clock, steps, each=10.0):
    for step in steps:
        clock.now += each
        made.wall.count("goodput")
        made.stepped(step, {"loss": (1.0, 1.0), "grad_norm": 1.0, "skipped": False, "skipped_steps": 0})


def lines(folder, kind):
    found = [json.loads(line) for line in (pathlib.Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["kind"] == kind]


def test_the_shares_are_those_of_the_clock_and_add_up_to_one():
    clock = Clock()
    wall = wall_time.WallTime(clock, clock())
    counted = {"start": 3, "compile": 5, "data": 1, "goodput": 60, "skipped": 2, "evaluation": 8}
    for cause, passed in counted.items():
        clock.now += passed
        assert wall.count(cause) == passed
    clock.now += 1  # nobody has counted this one
    assert wall.seconds == 80 and wall.goodput == 60 / 80
    row = wall.row()
    assert row["seconds"] == 80 and sum(row[cause] for cause in CAUSES) == pytest.approx(1)
    assert seconds(row) == pytest.approx({**counted, "other": 1})


def test_a_run_that_was_killed_counts_the_repeated_steps_as_lost(tmp_path, clock):
    killed = start(tmp_path, clock, 0)
    clock.now += 4
    killed.wall.count("start")
    train(killed, clock, range(1, 4))
    killed.publish()  # a checkpoint of step 3
    clock.now += 2
    killed.wall.count("saving")
    train(killed, clock, range(4, 6))
    clock.now += 7  # in step 6: nothing tells of it
    kill(killed)
    clock.now += 1000  # nobody runs
    with start(tmp_path, clock, 3) as again:
        clock.now += 6
        again.wall.count("start")
        train(again, clock, range(4, 7))
    assert [line["goodput"] for line in lines(tmp_path, "train")][-1] == pytest.approx(60 / 92)
    last = lines(tmp_path, "time")[-1]
    assert last["step"] == 6 and last["seconds"] == pytest.approx(4 + 30 + 2 + 20 + 6 + 30)
    # The steps 4 and 5 and the saving before them came after the line of the checkpoint.
    assert seconds(last) == pytest.approx({"goodput": 60, "start": 10, "lost": 22})
    assert sum(last[cause] for cause in CAUSES) == pytest.approx(1)


def test_what_was_lost_is_known_after_a_second_kill(tmp_path, clock):
    first = start(tmp_path, clock, 0)
    train(first, clock, range(1, 3))
    kill(first)
    clock.now += 50
    kill(start(tmp_path, clock, 0))  # no checkpoint: all is lost; and killed before its first step
    clock.now += 50
    with start(tmp_path, clock, 0) as third:
        train(third, clock, [1])
    assert seconds(lines(tmp_path, "time")[-1]) == pytest.approx({"goodput": 10, "lost": 20})


def test_a_run_that_was_stopped_and_saved_loses_nothing(tmp_path, clock):
    with start(tmp_path, clock, 0) as stopped:
        train(stopped, clock, range(1, 3))
        stopped.publish()
        clock.now += 5
        stopped.wall.count("saving")
    clock.now += 1000
    with start(tmp_path, clock, 2) as again:
        train(again, clock, [3])
    assert seconds(lines(tmp_path, "time")[-1]) == pytest.approx({"goodput": 30, "saving": 5})


def test_a_run_of_an_earlier_version_goes_on(tmp_path, clock):
    old = [{"step": step, "kind": "train", "loss": 1.0, "learning_rate": 0.1, "seconds": 8.0 * step} for step in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in old))
    with start(tmp_path, clock, 1) as again:
        train(again, clock, [2])
    assert seconds(lines(tmp_path, "time")[-1]) == pytest.approx({"goodput": 10, "other": 8, "lost": 8})


def test_no_line_follows_one_that_a_full_disk_has_cut_off(tmp_path, clock):
    with pytest.raises(SaveFailed), start(tmp_path, clock, 0) as made:
        train(made, clock, [1])
        with open(tmp_path / "metrics.jsonl", "a") as file:
            file.write('{"step": 2, "kind": "tr')
        raise SaveFailed("disk full")
    assert (tmp_path / "metrics.jsonl").read_text().endswith('{"step": 2, "kind": "tr')
