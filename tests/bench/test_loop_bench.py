"""The benchmark of the training loop."""

import argparse

import numpy as np
import pytest

from benchmarks import loop


def test_the_loop_and_its_bare_step_take_turns(tmp_path):
    words = {"model": "efficientnet_v2_pico", "image_size": 16, "batch_size": 16, "dtype": "float32"}
    args = argparse.Namespace(**words, log_steps=2, steps=6, turns=2)
    found = loop.measure(args, tmp_path)
    assert set(found["seconds_per_step"]) == {"loop", "step"}
    for name, seconds in found["seconds_per_step"].items():
        assert len(seconds) == 2 and min(seconds) > 0
        assert found["images_per_second"][name] == pytest.approx(16 / np.median(seconds))
    assert found["ratio"] == pytest.approx(found["images_per_second"]["loop"] / found["images_per_second"]["step"])


def test_a_clock_leaves_the_first_steps_out():
    clock = loop.Clock([{"image": 0}, {"image": 1}], 6)
    assert [batch["image"] for batch in clock] == [0, 1, 0, 1, 0, 1]
    clock.asked = [np.array([wall, 0.5 * wall]) for wall in (0.0, 9.0, 9.5, 10.0, 12.0, 14.0)]
    assert clock.seconds().tolist() == [2.0, 1.0]
