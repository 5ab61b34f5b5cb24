"""A few rounds of every fault of `benchmarks/survival.py`; `make check-long` does them all."""

import numpy as np
import pytest

from benchmarks import survival

ROUNDS = {
    "killed": 2,
    "stopped": 1,
    "bereft": 1,
    "frozen": 1,
    "full_disk": 3,
    "damaged": 16,
    "damaged_shard": 20,
    "one_nan": 1,
    "all_nan": 1,
    "other_devices": 1,
}


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    bench = survival.Bench(tmp_path_factory.mktemp("survival"))
    bench.prepare()
    return bench


def test_every_fault_has_a_quick_round():
    assert ROUNDS.keys() == survival.FAULTS.keys()


@pytest.mark.parametrize("name", survival.FAULTS)
def test_a_run_survives(name, bench):
    fault, rounds = survival.FAULTS[name]
    remark = fault(bench, ROUNDS[name], np.random.default_rng(7))
    assert remark


def test_the_bench_sees_what_is_broken(bench, monkeypatch):
    monkeypatch.setattr(survival.seals, "damage", lambda folder: None)
    with pytest.raises(survival.Broken, match="was taken"):
        survival.damaged(bench, 1, np.random.default_rng(0))
