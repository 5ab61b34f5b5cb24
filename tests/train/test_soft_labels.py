"""Labels with a spread of their own, from the table to the step."""

import csv
import dataclasses
import json
import logging

import jax
import numpy as np
import pytest
from etils import epath
from sources import make_source, run

from lae_jax import evaluate
from lae_jax.longtail import extraction, setup
from lae_jax.runs import build
from lae_jax.runtime import checkpoints, origin, parallel
from lae_jax.stages.methods import METHODS
from lae_jax.train import loop, plan


def spread_of(i):
    """By the number of a picture: none, 0, or above the paper's 1."""
    return (None, 0.0, 2.0 + i / 16)[i % 3]


@pytest.fixture(scope="module")
def spread_faces(tmp_path_factory):
    """96 pictures, of which 64 are trained on."""
    folder = tmp_path_factory.mktemp("spread")
    rows = []
    for i in range(96):
        spread = "" if spread_of(i) is None else spread_of(i)
        rows.append((f"{i}.png", 10 + i % 70, f"p{i},{'validation' if i >= 64 else 'train'},{spread}"))
    table = make_source(folder / "source", rows, "path,age,identity,split,std")
    run(folder / "faces", "--source", table, "--size", 32, "--shards", 1, "--label-spread", "std")
    return folder / "faces"


@pytest.fixture(scope="module")
def configs(spread_faces, make_config, tmp_path_factory):
    """(stage, name) -> a config of a run on these, of two steps of 32."""
    folder = tmp_path_factory.mktemp("runs")

    def config(stage, name=""):
        c = make_config(stage, folder)
        c.data.path = str(spread_faces)
        c.data.augment.update(patch="none", flip=0.0, num_ops=0, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0)
        c.model.dropout = c.model.stochastic_depth = 0.0
        c.workdir += name
        return c

    return config


def test_a_plan_has_the_spread_of_each_label_from_label_sigma_on(configs, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("lae_jax"), "propagate", True)
    caplog.set_level("INFO")
    made = plan.make_plan(configs("represent"))
    numbers = [int(name.split(".")[0]) for name in made.dataset.column("name")[made.training.rows]]
    expected = np.float32([max(spread_of(i) or 0.0, 1.0) for i in numbers])
    np.testing.assert_array_equal(made.training.label_sigma, expected)
    assert "21 of 64 labels have a spread above config.loss.label_sigma (1)" in caplog.text
    config = configs("represent")
    config.loss.label_sigma = 3.0
    made = plan.make_plan(config)
    np.testing.assert_array_equal(made.training.label_sigma, np.maximum(expected, 3))
    config.loss.label_sigma = 10.0
    assert plan.make_plan(config).training.label_sigma is None
    config = configs("represent")
    config.loss.label_spread = False
    assert plan.make_plan(config).training.label_sigma is None


@pytest.fixture(scope="module")
def represented(configs):
    """Stage 2 on them."""
    loop.train(configs("represent"))


def logits_of(made, images):
    """The logits of a plan's model before its first step, in inference mode."""
    module, _, state = loop._initial(made)
    whole = dataclasses.replace(made.stage, output=lambda logits: logits)
    outputs = build.forward(made.config, whole, module, made.par)(made.par.place(origin.variables(vars(state))), images)
    return np.float64(made.par.collect(outputs))


def by_hand(logits, ages, sigma, mae):
    """L_ld + (L_er - mae)^2 of Gaussians of these widths."""
    z = np.exp(-((np.arange(101) - np.float64(ages)[:, None]) ** 2) / (2 * np.float64(sigma)[:, None] ** 2))
    z /= z.sum(axis=1, keepdims=True)
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    divergence = np.where(z > 0, z * (np.log(np.where(z > 0, z, 1)) - np.log(p)), 0).sum(axis=1)
    return divergence + (np.abs(p @ np.arange(101) - ages) - mae) ** 2


def test_a_run_trains_on_the_spreads_and_on_none_if_they_are_ignored(represented, configs):
    """The loss of its first step, by hand. The backbone is frozen, so the logits are those of inference."""
    for name in ("", "-ignored"):
        config = configs("classify", name)
        config.loss.label_spread = not name
        made = plan.make_plan(config)
        fed = next(loop._Loop(made, *loop._initial(made)[:2], None, None, None).batches(0))
        sigma = np.ones(32) if name else made.training.label_sigma[made.order(0).numpy()]
        assert ("label_sigma" in fed) == (not name)
        expected = by_hand(logits_of(made, fed["image"]), fed["target"], sigma, made.constants["mae"])
        loop.train(config)
        first = json.loads((epath.Path(config.workdir) / "metrics.jsonl").read_text().splitlines()[0])
        assert first["loss"] == pytest.approx(expected.mean(), rel=1e-5), name


def test_c_mixup_mixes_the_spreads_as_it_mixes_the_ages(represented, configs):
    config = configs("classify", "-mixed")
    config.classify.method, config.classify.setting = "c_mixup", 3.0
    seen = []

    def loss(outputs, target, constants):
        jax.debug.callback(lambda *values: seen.append(values), target, constants["label_sigma"])
        return outputs.sum(axis=1)

    made = plan.make_plan(config)
    made = dataclasses.replace(
        made, stage=dataclasses.replace(made.stage, loss=loss), par=parallel.Parallel(made.par.devices[:1])
    )
    module, tx, state = loop._initial(made)
    fed = {"image": np.zeros((32, 24, 24, 3), np.uint8), "target": np.linspace(10, 79, 32, dtype=np.float32)}
    fed["label_sigma"] = fed["target"] / 10
    step = made.par.map_train(plan.train_step(made.config, made.stage, made.constants, module, tx))
    jax.block_until_ready(step(made.par.place(state), fed))
    ((ages, sigma),) = seen
    np.testing.assert_allclose(sigma, ages / 10, rtol=1e-5)
    assert np.abs(ages - fed["target"]).max() > 0.5


def test_the_bench_trains_heads_on_the_spreads_as_stage_3_does(represented, configs, spread_faces, tmp_path):
    config = configs("classify", "-bench")
    config.epochs, config.classify.method = 2.0, "lae_no_mse"
    extractor = extraction.open_run(config.init_from, spread_faces, tmp_path)
    made = setup.prepare(extractor, config, 0, "", False)
    loop.train(config)
    with checkpoints.Checkpoints(config.workdir, read_only=True) as saved:
        real = saved.arrays(saved.latest())["params"]["head"]["fc"]
    method, peak = METHODS["lae_no_mse"], config.optim.base_learning_rate * config.batch_size / 256
    moved = np.abs(real["kernel"] - made.bench.own["fc"]["kernel"]).max()
    heads, _ = made.bench.train(method, [0.0], [peak], [config.seed])
    np.testing.assert_allclose(heads["fc"]["kernel"][0, 0], real["kernel"], atol=1e-3 * moved)
    others, _ = dataclasses.replace(made.bench, label_sigma=None).train(method, [0.0], [peak], [config.seed])
    assert np.abs(others["fc"]["kernel"][0, 0] - real["kernel"]).max() > 1e-2 * moved
    assert setup.recipe(extractor, [], {}).loss.label_spread


def test_the_epsilon_error_takes_the_spreads(represented, configs):
    folder = evaluate.evaluate(configs("represent").workdir, spread="age_spread")[1]
    rows = list(csv.DictReader((folder / "predictions.csv").read_text().splitlines()))
    expected = {f"{i}.png": spread_of(i) for i in range(64, 96)}
    assert {row["name"]: float(row["label_spread"]) if row["label_spread"] else None for row in rows} == expected
