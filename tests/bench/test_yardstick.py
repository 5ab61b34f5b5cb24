"""The yardstick's benchmark, as far as it goes without PyTorch."""

import argparse
import json

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import yardstick, yardstick_steps
from lae_jax import models


def test_our_weights_have_torchvisions_names_and_axes():
    variables = models.initialise(models.create("resnet18", 101, jnp.dtype("float32"), head="age"), 64, 0)
    found = yardstick_steps.torch_names(variables)
    assert len(found) == 102  # torchvision's state dict without the 20 counts of batches
    assert found["conv1.weight"].shape == (64, 3, 7, 7) and found["fc.weight"].shape == (101, 512)
    kernel = variables["params"]["backbone"]["layer2_0"]["downsample_conv"]["kernel"]
    np.testing.assert_array_equal(found["layer2.0.downsample.0.weight"][5, 3], kernel[:, :, 3, 5])


def test_a_run_in_pytorch_that_is_done_is_scored_and_not_repeated(tmp_path):
    ages = np.array([5.0, 15, 25, 35, 45, 55, 65, 75])
    splits = {f"{split}_ages": ages for split in yardstick.SPLITS}
    np.savez(tmp_path / "bilinear.npz", **splits)
    (tmp_path / "torch-half@bilinear-3").mkdir()
    np.savez(tmp_path / "torch-half@bilinear-3" / "a.npz", validation=ages + 1, test=ages + np.arange(8))
    stages = [{"name": "represent, best epoch", "file": "a.npz"}]
    (tmp_path / "torch-half@bilinear-3" / "results.json").write_text(json.dumps({"stages": stages}))
    found = yardstick.of_torch("torch:half@bilinear", 3, argparse.Namespace(out=tmp_path))
    scores = yardstick.scores(*found["represent, best epoch"])
    assert scores == pytest.approx((1, 0, 3.5, np.sqrt(5.25), 0, 7))
