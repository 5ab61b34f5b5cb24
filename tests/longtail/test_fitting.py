"""Heads on cached features: the same as a real stage 3's, the same alone as beside others, and they learn."""

import numpy as np
import pytest

from lae_jax.longtail import extraction, fitting
from lae_jax.runtime import checkpoints
from lae_jax.stages.methods import METHODS
from lae_jax.train import loop


def bare(config):
    """Without augmentation, so that a stage 3 sees the very features that are cached."""
    config.data.augment.patch, config.data.augment.flip, config.data.augment.num_ops = "none", 0.0, 0
    for name in ("brightness", "contrast", "saturation", "hue"):
        config.data.augment[name] = 0.0
    return config


@pytest.fixture(scope="module")
def extractor(make_config, tmp_path_factory):
    """Of a short stage 2."""
    folder = tmp_path_factory.mktemp("stage2")
    before = bare(make_config("represent", folder))
    before.epochs = 0.4
    loop.train(before)
    return extraction.open_run(before.workdir, before.data.path, folder / "features")


@pytest.mark.parametrize(
    "name, dropout, setting, rate",
    [
        ("lae", 0.3, None, 0.1),
        ("effective_number", 0.0, 0.9, 0.1),
        ("two_layers_c_mixup", 0.2, 3.0, 0.1),
    ],
)
def test_a_cached_head_is_that_of_a_real_stage_3(extractor, small_config, name, dropout, setting, rate):
    method = METHODS[name]
    third = bare(small_config("classify"))
    third.init_from, third.data.split = str(extractor.checkpoint.workdir), ""
    third.model.dropout, third.seed, third.optim.base_learning_rate = dropout, 7, rate
    third.classify.method, third.classify.setting = name, setting
    summary = loop.train(third)
    with checkpoints.Checkpoints(third.workdir, read_only=True) as saved:
        real = saved.arrays(summary["last_step"])["params"]["head"]
    assert loop.train(third) == summary, "what the method settled is no other config"

    features = extractor.features("train")
    mae = extractor.checkpoint.meta["scores"]["mae"]
    bench = fitting.Bench(features.values, features.ages, extractor.own_head(), mae, third, dropout)
    peak = third.optim.base_learning_rate * third.batch_size / 256
    heads, bad = bench.train(method, [setting or 0.0] * 2, [peak / 2, peak], [3, 7])
    assert bad.shape == (2, 2) and not bad.any()
    assert {layer: set(leaves) for layer, leaves in real.items()} == {n: {"kernel", "bias"} for n in heads}
    start = bench.own if method.start == "kept" else bench._start(method, 7)
    for layer, leaf in [(layer, leaf) for layer in heads for leaf in ("kernel", "bias")]:
        got, expected = heads[layer][leaf][1], real[layer][leaf]
        moved = np.abs(expected - start[layer][leaf]).max()
        assert moved > 1e-3
        np.testing.assert_allclose(got[1], expected, atol=1e-4 * moved)
        assert np.abs(got[0] - expected).max() > 1e-2 * moved
