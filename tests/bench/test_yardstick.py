"""The yardstick's benchmark, as far as it goes without PyTorch."""

import argparse
import json

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import yardstick, yardstick_steps
from lae_jax import models
from lae_jax.train.loop import _Loop
from lae_jax.train.plan import make_plan


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


def test_the_batches_for_pytorch_are_those_of_our_run(drawn, tmp_path):
    yardstick.write_batches(drawn, 3, 1, tmp_path / "batches")
    images, ages = (np.load(tmp_path / "batches" / f"{name}.npy") for name in ("images", "ages"))
    config = yardstick_steps.settings_of("represent")
    config.data.path, config.workdir, config.seed, config.epochs = str(drawn), str(tmp_path / "run"), 3, 1.0
    config.init_from, config.data.allow_leak = "scratch", True
    plan = make_plan(config)
    assert len(images) == plan.durations.total
    last = len(images) - 1
    loop = _Loop(plan, None, None, None, None, None)
    for step, batch in zip((0, last), (next(loop.batches(0)), next(loop.batches(last))), strict=True):
        np.testing.assert_array_equal(images[step], batch["image"])
        np.testing.assert_array_equal(ages[step], batch["target"])
