"""The step with cures of stage 2: the same on any number of devices and in both forms, skipped, stopped and resumed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from halted import state_of, train_until
from trees import equal

from lae_jax import evaluate, models, optim, stages
from lae_jax.compile import lowering
from lae_jax.configs import common
from lae_jax.models import efficientnet
from lae_jax.models.layers import Compute
from lae_jax.runs import lineage
from lae_jax.runtime import checkpoints, parallel
from lae_jax.runtime.errors import InputError
from lae_jax.stages import method_losses
from lae_jax.train import loop, steps
from lae_jax.train.plan import make_plan

BATCH, PIXELS, BAD = 16, 8, 2
# One block: it compiles in a second or two.
TINY = efficientnet.Architecture(4, (efficientnet.BlockGroup(True, 1, 1, 1, 4),), 8, 0.3)
COUNTS = method_losses.of_training(np.floor(200 * np.exp(-((np.arange(101) - 30) ** 2) / 300)))
CONSTANTS = {"er_weight": 1.0, "label_sigma": 1.0, "in_range": "uniform", **COUNTS}


def cured(name):
    config = common.get_config().cure
    config.name = name
    return stages.with_cure(stages.REPRESENT, config, 2)


def step_of(stage, accumulate=1, dtype="float64"):
    compute = Compute(jnp.dtype(dtype), axis_name=parallel.AXIS, parts=accumulate)
    model = models.Model(efficientnet.EfficientNet(compute, TINY, 0.5), models.AgeHead(compute, 101, 0.3))
    variables = models.initialise(model, PIXELS, seed=0)
    variables = jax.tree.map(lambda x: x.astype(jnp.promote_types(dtype, jnp.float32)), variables)
    tx = optim.trainable(optim.sgd(0.001), variables["params"], stage.trains)
    settings = steps.Settings(1, jnp.dtype(dtype), (0.5,) * 3, (0.25,) * 3, accumulate)
    step = functools.partial(steps.train_step, stage=stage, constants=CONSTANTS, model=model, tx=tx, settings=settings)
    return step, steps.create_state(variables, tx, (), stage.cure)


def batches(count):
    rng = np.random.default_rng(0)
    for number in range(count):
        ages = rng.integers(20, 40, BATCH).astype(np.float64)
        image = rng.integers(0, 256, (BATCH, PIXELS, PIXELS, 3), np.uint8)
        if number == BAD:
            ages[3] = np.nan
        yield {"image": image, "target": ages}


def trained(step, first, devices, form="pmap", count=5):
    par = parallel.Parallel(tuple(jax.local_devices()[:devices]), form)
    mapped, state, history = par.map_train(step), par.place(first), []
    for batch in batches(count):
        state, metrics = mapped(state, batch)
        history.append(jax.tree.map(np.asarray, (state.cure, metrics)))
    return jax.tree.map(np.asarray, state), history


def bits(tree):
    return [leaf.tobytes() for leaf in jax.tree.leaves(tree)]


def test_eight_devices_train_as_one_in_both_forms_and_a_skipped_step_leaves_what_the_cures_remember():
    """All cures but balanced_mse, which does not go with lds. In float64, so that rounding does not change a rank."""
    with jax.enable_x64(True):
        step, first = step_of(cured("lds+fds+rank_sim+dist_loss+conr"))
        eight, history = trained(step, first, 8)
        others = trained(step, first, 8, "shard_map")[0], trained(step, first, 1)[0]
    for other in others:
        for found, expected in zip(jax.tree.leaves(eight), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-11)
    assert not np.allclose(eight.params["head"]["fc"]["kernel"], first.params["head"]["fc"]["kernel"], atol=1e-6)
    skipped = [bool(metrics["skipped"]) for _, metrics in history]
    assert skipped == [number == BAD for number in range(5)]
    # The bad step is the first of an epoch: its statistics change as at any other, and no image of it counts.
    statistics = [memory["fds"] for memory, _ in history]
    assert [one["images"].sum() for one in statistics] == [16, 32, 0, 16, 16]
    assert not statistics[1]["known"].any() and statistics[2]["known"].sum() == 32
    assert np.isfinite(statistics[2]["running_mean"]).all() and np.abs(statistics[2]["shift"]).max() > 0


def test_ranges_pass_through_the_step():
    """Traces it, without compiling."""
    step, first = step_of(cured("lds+dist_loss"), dtype="float32")
    batch = {"image": jnp.zeros((1, 8, PIXELS, PIXELS, 3), jnp.uint8), "target": jnp.zeros((1, 8, 2))}
    mapped = jax.vmap(step, axis_name=parallel.AXIS, in_axes=(None, 0), out_axes=None)
    state, metrics = jax.eval_shape(mapped, first, batch)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(lambda x: (x.shape, x.dtype), first)
    assert metrics["loss"][0].dtype == jnp.float32


def test_a_step_in_bfloat16_is_that_in_float32_up_to_its_rounding():
    moves, sums = {}, {}
    for dtype in ("float32", "bfloat16"):
        step, first = step_of(cured("lds+fds+rank_sim+dist_loss+conr"), dtype=dtype)
        state, [(memory, metrics)] = trained(step, first, 1, count=1)
        sums[dtype] = metrics["loss"][0], memory["fds"]["mean"]
        for part in ("backbone", "head"):
            pairs = zip(*(jax.tree.leaves(one.params[part]) for one in (state, first)), strict=True)
            moves[dtype, part] = np.concatenate([np.ravel(after - before) for after, before in pairs])
            assert moves[dtype, part].dtype == np.float32
    np.testing.assert_allclose(sums["bfloat16"][0], sums["float32"][0], rtol=0.02)
    np.testing.assert_allclose(sums["bfloat16"][1], sums["float32"][1], atol=0.02)
    for part in ("backbone", "head"):
        distance = np.linalg.norm(moves["bfloat16", part] - moves["float32", part])
        assert 0 < distance < 0.05 * np.linalg.norm(moves["float32", part])


@pytest.mark.long
def test_a_run_with_cures_goes_on_bit_for_bit_and_hands_on_a_plain_model(small_config, tmp_path):
    """With parts of a batch and an EMA, over the end of an epoch of three steps."""
    config = small_config("represent")
    config.cure.name, config.accumulate, config.ema_decay = "fds+balanced_mse", 2, 0.75
    config.cure.fds_momentum = 0.75
    config.epochs, config.save_steps, config.eval_epochs = 2.0, 1, 2.0
    config.workdir = str(tmp_path / "whole")
    loop.train(config)
    config.workdir = str(tmp_path / "parts")
    train_until(config, 3, of=6)
    loop.train(config)
    whole, parts = (state_of(tmp_path / name, 6) for name in ("whole", "parts"))
    assert equal(whole, parts)
    assert whole["cure"]["fds"]["images"].sum() == whole["cure"]["fds"]["known"].sum() == 96
    assert 9.9 < whole["cure"]["learned"]["noise"] < 10.1 and whole["cure"]["learned"]["noise"] != 10

    run = checkpoints.load_run(tmp_path / "whole")
    assert {*run.variables["params"]} == {"backbone", "head"} and {*run.variables} == {"params", "batch_stats"}
    assert evaluate.evaluate(tmp_path / "whole", split="test") is not None
    third = small_config("classify")
    third.init_from = str(tmp_path / "whole")
    assert make_plan(third).constants["mae"] == run.meta["scores"]["mae"]
    cures = [{"name": "fds+balanced_mse", "settings": {"fds_momentum": 0.75}}]
    assert run.meta["cures"] == make_plan(third).history.cures == make_plan(config, run.meta).history.cures == cures
    told = "the cure `fds+balanced_mse` of stage 2 (fds_momentum 0.75, other settings as published)."
    assert f"Trained with {told}" in lineage.run_card(tmp_path / "whole")[0].replace("\\", "")
    config.cure.balanced_mse_noise = 5.0
    with pytest.raises(InputError, match=r"another config \(cure.balanced_mse_noise: 10.0 there, 5.0 now\)"):
        make_plan(config, run.meta)


def test_the_model_card_of_stage_3_names_its_method_and_the_cures_of_the_runs_before(trained):
    checkpoint = checkpoints.load_run(trained("classify"))
    card = lineage.card_of(checkpoint, [])
    assert "Trained with the method `lae` of stage 3." in card
    checkpoint.meta["cures"] = [{"name": "lds+conr", "settings": {}}]
    told = "Trained with the method `lae` of stage 3, the cure `lds+conr` of stage 2 (settings as published)."
    assert told in lineage.card_of(checkpoint, [])
    del checkpoint.meta["cures"]  # written before
    assert lineage.card_of(checkpoint, []) == card
    assert "Trained without a cure of stage 2." in lineage.card_of(checkpoints.load_run(trained("represent")), [])


def test_a_cure_that_compares_the_images_of_a_batch_does_not_go_with_parts_of_one(small_config):
    config = small_config("represent")
    config.cure.name, config.accumulate = "lds+rank_sim+conr", 2
    mixing = small_config("classify")
    mixing.classify.method, mixing.classify.setting, mixing.accumulate = "c_mixup", 1.0, 2
    told = "rank_sim, conr compares the images of a whole batch.*config.accumulate is 2"
    for check in (make_plan, lambda c: lowering.Lowering(c, tuple(jax.local_devices()[:1]))):
        with pytest.raises(InputError, match=told):
            check(config)
        with pytest.raises(InputError, match="'c_mixup' mixes the examples of a whole batch.*config.accumulate is 2"):
            check(mixing)
    lowering.Lowering(config, tuple(jax.local_devices()[:1]), forward=True)  # an evaluation has no parts
    config.cure.name = "lds"
    assert make_plan(config).stage.cure.epoch == 3
