"""The benchmark of what a step costs the host."""

import jax
import numpy as np
import pytest

from benchmarks import host_cost


def test_both_forms_take_turns_on_a_state_with_the_leaves_of_the_model():
    found = host_cost.measure("efficientnet_v2_pico", steps=2, turns=3)
    state = host_cost.small_state("efficientnet_v2_pico")
    assert found["leaves"] == len(jax.tree.leaves(state)) > 2 * len(jax.tree.leaves(state.params)) > 20
    assert max(leaf.size for leaf in jax.tree.leaves(state)) == host_cost.SIZE
    medians = found["seconds_of_main_thread_per_step"]
    for form in host_cost.FORMS:
        assert len(found["turns"][form]) == 3 and min(found["turns"][form]) > 0
        assert medians[form] == np.median(found["turns"][form])
    assert found["ratio"] == pytest.approx(medians["shard_map"] / medians["pmap"])
