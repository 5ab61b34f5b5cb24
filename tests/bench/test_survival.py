"""A few rounds of most faults in `benchmarks/survival.py`; `make check-long` runs all rounds of all faults."""

import numpy as np
import pytest

from benchmarks import rig, survival
from lae_jax.runtime import checksums

ROUNDS = {
    "killed": 1,
    "stopped": 1,
    "damaged": 4,
    "damaged_shard": 5,
    "one_nan": 1,
    "all_nan": 1,
}


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    bench = survival.Bench(tmp_path_factory.mktemp("survival"), steps=18, whole_pair=False)
    bench.prepare()
    return bench


@pytest.mark.parametrize("name", ROUNDS)
def test_a_run_survives(name, bench):
    fault, _ = survival.FAULTS[name]
    try:
        assert fault(bench, ROUNDS[name], np.random.default_rng(7))
    except rig.Skipped as reason:
        pytest.skip(str(reason))


def test_the_bench_sees_what_is_broken(bench, monkeypatch):
    monkeypatch.setattr(checksums, "damage", lambda folder: None)
    with pytest.raises(survival.Broken, match="was taken"):
        survival.damaged(bench, 1, np.random.default_rng(0))
