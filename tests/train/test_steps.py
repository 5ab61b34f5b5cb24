"""The step: the same on any number of devices, guarded against what is not finite, and silent about what is frozen."""

import contextlib
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lae_jax import models, optim, stages
from lae_jax.runs.forward import normalise
from lae_jax.runtime import parallel
from lae_jax.runtime.errors import InputError
from lae_jax.train import steps

BATCH, PIXELS = 16, 16


def batches(count, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        ages = rng.uniform(1, 80, BATCH).astype(np.float32)
        # Brightness tells the age, so that there is something to learn and shards differ.
        noise = rng.normal(0, 20, (BATCH, PIXELS, PIXELS, 3))
        yield {"image": np.clip(ages[:, None, None, None] * 2.5 + noise, 0, 255).astype(np.uint8), "target": ages}


class Setup:
    """A stage's step on the first `devices` devices."""

    def __init__(
        self, devices=8, stage=stages.REPRESENT, dtype="float32", rate=0.01, sync=True, accumulate=1, **changed
    ):
        self.par = parallel.Parallel(tuple(jax.local_devices()[:devices]))
        stage = dataclasses.replace(stage, **changed)
        self.model = models.create(
            "efficientnet_v2_pico",
            101,
            dtype,
            dropout=0.3,
            stochastic_depth=0.5,
            axis_name=parallel.AXIS if sync else None,
            parts=accumulate,
        )
        variables = models.initialise(self.model, PIXELS, seed=0)
        variables = jax.tree.map(lambda x: x.astype(jnp.promote_types(dtype, jnp.float32)), variables)
        tx = optim.trainable(optim.sgd(rate), variables["params"], stage.trains)
        step = functools.partial(
            steps.train_step,
            stage=stage,
            constants={"er_weight": 1.0, "label_sigma": 1.0, "in_range": "uniform", "mae": 5.0},
            model=self.model,
            tx=tx,
            settings=steps.Settings(1, jnp.dtype(dtype), (0.5,) * 3, (0.25,) * 3, accumulate),
        )
        self.first = steps.create_state(variables, tx)
        self.traces = 0

        def counted(state, batch):
            self.traces += 1
            return step(state, batch)

        self.step = self.par.map_train(counted)

    def run(self, given):
        state, history = self.par.place(self.first), []
        for batch in given:
            state, metrics = self.step(state, batch)
            history.append(jax.tree.map(float, metrics))
        return state, history


def poisoned(outputs, target, constants):
    """The loss of stage 2, but not finite for an image of age 99."""
    return stages.REPRESENT.loss(outputs, target, constants) * jnp.where(target == 99.0, jnp.nan, 1.0)


GUARDED = {"dtype": "float32", "rate": 0.01, "loss": poisoned}


@functools.cache
def setup(*args, **kwargs) -> Setup:
    """A Setup that tests share, since its compilation is what takes time."""
    return Setup(*args, **kwargs)


def distance(a, b):
    """Relative norm of the difference of two trees."""
    difference = jax.tree.map(lambda x, y: np.asarray(x, np.float64) - np.asarray(y, np.float64), a, b)
    return float(optax.tree.norm(difference) / optax.tree.norm(jax.tree.map(lambda x: np.asarray(x, np.float64), b)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "rate", "close", "momentum_close"), [("float32", 0.01, 1e-4, 1e-3), ("float64", 0.1, 1e-9, 1e-9)]
)
def test_eight_devices_train_as_one_with_dropout_and_stochastic_depth_on(dtype, rate, close, momentum_close):
    with jax.enable_x64(True) if dtype == "float64" else contextlib.nullcontext():
        given = list(batches(20))
        single = setup(1, dtype=dtype, rate=rate)
        one, one_history = single.run(given)
        eight, _ = setup(8, dtype=dtype, rate=rate, loss=poisoned).run(given)
        assert one_history[-1]["loss"][0] < one_history[0]["loss"][0]
        assert distance(eight.params, one.params) < close
        assert distance(eight.batch_stats, one.batch_stats) < close
        assert distance(eight.opt_state, one.opt_state) < momentum_close
        assert distance(one.params, single.first.params) > 100 * close


@pytest.mark.slow
@pytest.mark.parametrize("sync", [True, False])
def test_replicas_are_equal_after_a_step_on_unequal_shards(sync):
    state, _ = setup(8, **GUARDED, **({} if sync else {"sync": False})).run(batches(2))
    for leaf in jax.tree.leaves(state):
        shards = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        assert len(shards) == 8
        for shard in shards[1:]:
            np.testing.assert_array_equal(shard, shards[0])


def test_stage_3_moves_the_head_and_not_one_bit_of_the_backbone():
    shared = setup(8, stage=stages.CLASSIFY)
    state, history = shared.run(batches(5))
    before, after = jax.tree.map(np.asarray, shared.first), jax.tree.map(np.asarray, state)
    for part in ("params", "batch_stats"):
        old, new = getattr(before, part)["backbone"], getattr(after, part)["backbone"]
        assert all(a.tobytes() == b.tobytes() for a, b in zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True))
    assert distance(after.params["head"], before.params["head"]) > 1e-3
    # Frozen leaves have no optimiser state.
    assert {leaf.shape for leaf in jax.tree.leaves(after.opt_state)} == {(), (101,), (32, 101)}
    assert np.isfinite(history[-1]["grad_norm"])


def test_a_step_that_is_not_finite_changes_nothing_but_its_counters():
    shared = setup(8, **GUARDED)
    good = list(batches(3))
    bad = {**good[1], "target": good[1]["target"].copy()}
    bad["target"][3] = 99.0
    after_one, _ = shared.run(good[:1])
    after_one = jax.tree.map(np.asarray, after_one)
    state, history = shared.run([good[0], bad, bad])
    assert [h["skipped"] for h in history] == [0.0, 1.0, 1.0] and history[-1]["skipped_steps"] == 2
    assert int(state.step) == 3
    for name in ("params", "batch_stats", "opt_state"):
        for a, b in zip(jax.tree.leaves(getattr(after_one, name)), jax.tree.leaves(getattr(state, name)), strict=True):
            assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    _, history = shared.run([good[0], bad, good[2]])
    assert history[-1]["skipped_steps"] == 0 and history[-1]["skipped"] == 0


@pytest.mark.slow
def test_accumulation_averages_the_gradients_of_its_parts():
    # Without BatchNorm's coupling the parts would be exactly the whole; head-only training has none.
    given = list(batches(3))
    whole, _ = setup(8, stage=stages.CLASSIFY).run(given)
    parts, _ = setup(2, stage=stages.CLASSIFY, accumulate=4).run(given)
    assert distance(parts.params, whole.params) < 1e-5
    _, history = setup(2, accumulate=2).run(given)
    assert np.isfinite(history[-1]["loss"][0]) and history[-1]["loss"][1] == BATCH


@pytest.mark.slow
def test_statistics_of_a_batch_in_parts_look_back_as_far_as_those_of_a_whole_batch():
    """In the first step the stem sees the same images either way."""
    (batch,) = batches(1)
    start = jax.tree.map(np.asarray, setup(2).first.batch_stats["backbone"])
    found = {}
    for accumulate in (1, 4):
        state, _ = setup(2, accumulate=accumulate).run([batch])
        found[accumulate] = jax.tree.map(lambda a, b: np.asarray(a) - b, state.batch_stats["backbone"], start)
    # The parts are weighted by 1 to 0.9^(3/4).
    whole, parts = (one["stem_bn"]["mean"] for one in (found[1], found[4]))
    assert np.abs(whole).max() > 1e-3
    np.testing.assert_allclose(parts, whole, atol=0.08 * np.abs(whole).max())


def test_one_trace_and_a_source_that_outlives_donation():
    shared = setup(8, **GUARDED)
    before = [np.array(leaf) for leaf in jax.tree.leaves(shared.first)]
    shared.run(batches(4))
    assert shared.traces == 1
    for old, now in zip(before, jax.tree.leaves(shared.first), strict=True):
        np.testing.assert_array_equal(old, np.asarray(now))


def test_loss_and_weight_are_those_of_the_global_batch():
    shared = setup(8, **GUARDED)
    batch = next(batches(1))
    variables = {"params": shared.first.params, "batch_stats": shared.first.batch_stats}
    _, history = shared.run([batch])
    images = normalise(jnp.asarray(batch["image"]), (0.5,) * 3, (0.25,) * 3, jnp.float32)
    key = jax.random.fold_in(jax.random.key(1), 0)
    model = models.create("efficientnet_v2_pico", 101, dropout=0.3, stochastic_depth=0.5)
    apply = jax.jit(lambda v, x: model.apply(v, x, train=True, rngs={"dropout": key}, mutable=["batch_stats"])[0])
    logits = apply(variables, images)
    constants = {"er_weight": 1.0, "label_sigma": 1.0, "in_range": "uniform"}
    expected = stages.REPRESENT.loss(logits, jnp.asarray(batch["target"]), constants).sum()
    np.testing.assert_allclose(history[0]["loss"], [expected, BATCH], rtol=1e-5)


def test_a_batch_that_the_devices_do_not_divide_is_an_error_with_both_numbers():
    with pytest.raises(InputError, match="30 cannot be divided over 8 devices"):
        parallel.Parallel().per_device(30)


def test_normalise_follows_the_papers_statistics():
    image = np.full((1, 1, 1, 3), 255, np.uint8)
    got = normalise(jnp.asarray(image), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), jnp.float32)
    np.testing.assert_allclose(got[0, 0, 0], [2.2489083, 2.4285715, 2.64], rtol=1e-6)
