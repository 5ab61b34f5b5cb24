"""Heads on cached features: the same as a real stage 3's, the same alone as beside others, and they learn."""

import numpy as np
import pytest

from lae_jax import checkpoints, head_features, head_training, train
from lae_jax.head_methods import METHODS


def bare(config):
    """Without augmentation, so that a stage 3 sees the very features that are cached."""
    config.data.augment.patch, config.data.augment.flip, config.data.augment.num_ops = "none", 0.0, 0
    for name in ("brightness", "contrast", "saturation", "hue"):
        config.data.augment[name] = 0.0
    return config


@pytest.mark.parametrize(
    "name, dropout, setting", [("lae", 0.0, None), ("lae_new_head", 0.3, None), ("effective_number", 0.2, 0.9)]
)
def test_a_cached_head_is_that_of_a_real_stage_3(small_config, tmp_path, name, dropout, setting):
    method = METHODS[name]
    reinit = method.start == "new"
    before = bare(small_config("represent"))
    before.epochs = 0.4
    train.train(before)
    third = bare(small_config("classify"))
    third.model.dropout, third.reinit_head, third.seed, third.optim.base_rate = dropout, reinit, 7, 0.1
    third.classify.method, third.classify.setting = name, setting
    summary = train.train(third)
    with checkpoints.Checkpoints(third.workdir, read_only=True) as saved:
        real = saved.arrays(summary["last_step"])["params"]["head"]["fc"]

    extractor = head_features.open_run(before.workdir, before.data.path, tmp_path / "features")
    features = extractor.features("train")
    mae = extractor.handed.meta["scores"]["mae"]
    bench = head_training.Bench(features.values, features.ages, extractor.own_head(), mae, third, dropout)
    peak = third.optim.base_rate * third.batch_size / 256
    heads, bad = bench.train(method, [setting or 0.0] * 2, [peak / 2, peak], [3, 7])
    assert bad.shape == (2, 2) and not bad.any()
    for name in ("kernel", "bias"):
        start = bench.own["fc"][name] if not reinit else np.zeros_like(real[name])
        moved = np.abs(real[name] - start).max()
        assert moved > 1e-3
        np.testing.assert_allclose(heads["fc"][name][1, 1], real[name], atol=1e-4 * moved)
        assert np.abs(heads["fc"][name][1, 0] - real[name]).max() > 1e-2 * moved
