"""Class weights that are split over the devices: the same loss, gradients and runs as with copies."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lae_jax import losses, models, optim, stages
from lae_jax.models import efficientnet
from lae_jax.models.layers import Compute
from lae_jax.runtime import parallel
from lae_jax.runtime.checkpoints import Checkpoints
from lae_jax.runtime.parallel import rows
from lae_jax.stages import classes
from lae_jax.train import steps

BATCH, PIXELS, PEOPLE, WIDTH = 32, 8, 1500, 4
TINY = efficientnet.Architecture(4, (efficientnet.BlockGroup(True, 1, 1, 1, 4),), 8, 0.3)


def make(devices, where, form="am_softmax", share=1.0, dtype="float64", accumulate=1, clip=0.5, people=PEOPLE):
    """The parallel form, the mapped step and the first state."""
    stage = stages.with_classes(stages.PRETRAIN, where, share, people)
    par = parallel.Parallel(tuple(jax.local_devices()[:devices]), split=stage.split)
    compute = Compute(jnp.dtype(dtype), parallel.AXIS, parts=accumulate)
    count = rows.padded(people) if stage.split else people
    head = models.IdentityHead(compute, count, WIDTH, form in classes.ADAPTIVE)
    model = models.Model(efficientnet.EfficientNet(compute, TINY, 0.0), head)
    variables = models.initialise(model, PIXELS, seed=0, split=stage.split)
    norm = functools.partial(rows.norm, names=stage.split)
    tx = optim.trainable(optim.sgd(0.2, clip_norm=clip, norm=norm), variables["params"], stage.trains)
    constants = {"scale": 16.0, "margin": 0.35, "margin_form": form, "num_classes": people}
    settings = steps.Settings(1, jnp.dtype(dtype), (0.5,) * 3, (0.25,) * 3, accumulate)
    step = functools.partial(
        steps.train_step, stage=stage, constants=constants, model=model, tx=tx, settings=settings
    )  # fmt: skip
    return par, par.map_train(step), steps.create_state(variables, tx)


def batches(count, people=PEOPLE):
    rng = np.random.default_rng(0)
    for _ in range(count):
        target = rng.integers(0, people, BATCH).astype(np.int32)
        target[:2] = people - 1  # beside the padding, and twice
        yield {"image": rng.integers(0, 256, (BATCH, PIXELS, PIXELS, 3), np.uint8), "target": target}


def run(count, *args, **kwargs):
    """The state as numpy arrays without padding, and the metrics of each step."""
    par, step, first = make(*args, **kwargs)
    state, told = par.place(first), []
    for batch in batches(count):
        state, metrics = step(state, batch)
        told.append(jax.tree.map(float, metrics))
    return state, jax.tree.map(lambda leaf: np.asarray(leaf)[:PEOPLE] if leaf.ndim else np.asarray(leaf), state), told


def furthest(a, b):
    return max(jax.tree.leaves(jax.tree.map(lambda x, y: float(np.max(np.abs(x - y), initial=0.0)), a, b)))


@pytest.mark.parametrize(("form", "accumulate"), [("am_softmax", 1), ("am_softmax", 2), ("arcface", 1), ("adaface", 1)])
def test_split_class_weights_train_as_copies_do_in_float64(form, accumulate):
    with jax.enable_x64(True):
        how = {"form": form, "accumulate": accumulate}
        _, copied, before = run(3, 8, "copied", **how)
        split, state, told = run(3, 8, "split", **how)
        assert {leaf.data.shape for leaf in split.params["head"]["class_weights"].addressable_shards} == {(256, WIDTH)}
        assert furthest(state, copied) < 1e-12
        assert furthest(told, before) < 1e-9
        first = make(8, "copied", **how)[2]
        assert furthest(copied.params, first.params) > 1e-3
        assert min(one["grad_norm"] for one in told) > 0.5  # so that gradients are clipped


def test_the_number_of_devices_changes_nothing():
    with jax.enable_x64(True):
        _, one, _ = run(2, 1, "split")
        for devices in (2, 8):
            assert furthest(run(2, devices, "split")[1], one) < 1e-12
