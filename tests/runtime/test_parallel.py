"""The two forms of data parallelism, pmap and shard_map: the same bits, whatever is mapped."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lae_jax import models, optim, stages
from lae_jax.models import efficientnet
from lae_jax.models.layers import Compute
from lae_jax.runs import inference
from lae_jax.runs.forward import forward_step
from lae_jax.runtime import parallel
from lae_jax.runtime.errors import InputError
from lae_jax.runtime.parallel import mapping
from lae_jax.train import steps

BATCH, PIXELS, PEOPLE = 16, 8, 5
STATISTICS = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
# Two blocks, of which the second is residual, so that stochastic depth acts; it compiles in a second or two.
TINY = efficientnet.Architecture(
    4, (efficientnet.BlockGroup(True, 1, 2, 1, 4), efficientnet.BlockGroup(True, 1, 1, 1, 4)), 8, 0.3
)
CONSTANTS = {
    "er_weight": 1.0,
    "label_sigma": 1.0,
    "in_range": "uniform",
    "mae": 5.0,
    "scale": 64.0,
    "margin": 0.35,
    "margin_form": "am_softmax",
    "num_classes": 5,
}
MIXING = stages.with_method(stages.CLASSIFY, "c_mixup", 3.0)


def make_model(stage, parts=1):
    compute = Compute(axis_name=parallel.AXIS, parts=parts)
    identity = stage is stages.PRETRAIN
    head = models.IdentityHead(compute, PEOPLE, 4) if identity else models.AgeHead(compute, 101, 0.3)
    return models.Model(efficientnet.EfficientNet(compute, TINY, 0.5), head)


def batches(stage, count, bad=()):
    rng = np.random.default_rng(0)
    for number in range(count):
        target = rng.integers(0, PEOPLE, BATCH).astype(np.int32)
        if stage is not stages.PRETRAIN:
            target = rng.uniform(1, 80, BATCH).astype(np.float32)
        if number in bad:
            target[3] = np.nan
        yield {"image": rng.integers(0, 256, (BATCH, PIXELS, PIXELS, 3), np.uint8), "target": target}


def step_of(stage, accumulate=1):
    model = make_model(stage, accumulate)
    variables = models.initialise(model, PIXELS, seed=0)
    tx = optim.trainable(optim.sgd(0.1, clip_norm=1.0), variables["params"], stage.trains)
    settings = steps.Settings(1, jnp.dtype("float32"), **STATISTICS, accumulate=accumulate)
    step = functools.partial(
        steps.train_step, stage=stage, constants=CONSTANTS, model=model, tx=tx, settings=settings
    )  # fmt: skip
    return step, steps.create_state(variables, tx)


def bits(tree):
    return {
        jax.tree_util.keystr(path): np.asarray(x).tobytes() for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }


@pytest.mark.parametrize(
    ("stage", "accumulate", "bad"),
    [(stages.PRETRAIN, 1, ()), (stages.REPRESENT, 2, (1,)), (MIXING, 1, (2,))],
    ids=["stage 1", "stage 2 in parts, a step skipped", "stage 3 with mixing, a step skipped"],
)
def test_both_forms_train_the_same_bits_on_eight_devices(stage, accumulate, bad):
    step, first = step_of(stage, accumulate)
    found = {}
    for form in ("pmap", "shard_map"):
        par = parallel.Parallel(form=form)
        mapped = par.map_train(step)
        state, told = par.place(first), []
        for batch in batches(stage, 4, bad):
            state, metrics = mapped(state, batch)
            told.append(bits(metrics))
            assert bool(metrics["skipped"]) == (len(told) - 1 in bad)
        assert {len(leaf.addressable_shards) for leaf in jax.tree.leaves(state)} == {8} and int(state.step) == 4
        found[form] = told, bits(state), bits(parallel.one_copy_a_host(state))
    assert found["pmap"] == found["shard_map"]
    assert found["pmap"][1] == found["pmap"][2] and found["pmap"][1] != bits(first)


def test_both_forms_predict_and_gather_the_same_bits_in_the_order_of_the_rows():
    model = make_model(stages.REPRESENT)
    variables = models.initialise(model, PIXELS, seed=0)
    step = functools.partial(
        forward_step, model=model, output=stages.REPRESENT.output, dtype=jnp.float32, flip=False, **STATISTICS
    )
    images = np.random.default_rng(0).integers(0, 256, (2, BATCH, PIXELS, PIXELS, 3), np.uint8)
    outputs = {}
    for form in ("pmap", "shard_map"):
        par = parallel.Parallel(form=form)
        given = ({"image": image, "position": number * BATCH + np.arange(BATCH)} for number, image in enumerate(images))
        outputs[form] = inference.over_batches(par.map_forward(step), par.place(variables), given, 29, par=par)
    assert outputs["pmap"].shape == (29,) and outputs["pmap"].tobytes() == outputs["shard_map"].tobytes()
    assert len({*outputs["pmap"].tolist()}) == 29


@pytest.mark.parametrize("form", ["pmap", "shard_map"])
def test_a_step_is_lowered_from_shapes_alone(form):
    step, first = step_of(stages.CLASSIFY)
    (batch,) = batches(stages.CLASSIFY, 1)
    state, batch = jax.eval_shape(lambda *arrays: arrays, first, batch)
    par = parallel.Parallel(tuple(jax.local_devices()[4:]), form)
    lowered = par.lower_train(step, state, batch)
    assert isinstance(lowered, jax.stages.Lowered)
    text = lowered.as_text()
    # Each of the four devices has a quarter of the batch, and reduces with the three others.
    assert "all_reduce" in text and f"tensor<{BATCH // 4}x{PIXELS}x{PIXELS}x3xui8>" in text
    assert "dense<[[0, 1, 2, 3]]>" in text


@pytest.mark.parametrize("form", ["pmap", "shard_map"])
def test_donation_leaves_the_source_and_takes_the_copy(form):
    par, source = parallel.Parallel(form=form), {"a": np.arange(1024.0)}
    mapped = par.map_train(lambda state, batch: (jax.tree.map(lambda x: x + batch.sum(), state), batch.sum()))
    placed = par.place(source)
    again = par.place(placed)
    for _ in range(2):
        again, _ = mapped(again, np.ones(BATCH, np.float32))
    assert source["a"].tolist() == np.asarray(placed["a"]).tolist() == list(range(1024))
    mapped(placed, np.ones(BATCH, np.float32))
    assert placed["a"].is_deleted()


def test_a_part_of_the_state_may_lie_on_the_devices_in_shards():
    form = mapping.ShardMap(tuple(jax.local_devices()), ("rows",))
    first = {"whole": {"a": np.zeros(3)}, "rows": np.arange(16.0).reshape(16, 1)}

    def step(state, batch):
        rows = state["rows"] + batch.sum()  # of this device alone
        total = jax.lax.psum(rows.sum(), parallel.AXIS)
        return {"whole": {"a": state["whole"]["a"] + total}, "rows": rows}, total

    state = form.place(first)
    assert [shard.data.shape for shard in state["rows"].addressable_shards] == [(2, 1)] * 8
    state, total = form.train(step, 0)(state, form.shard(np.arange(8.0)))
    expected = first["rows"] + np.repeat(np.arange(8.0), 2)[:, None]
    assert np.asarray(state["rows"]).tolist() == expected.tolist() and float(total) == expected.sum()
    assert np.asarray(state["whole"]["a"]).tolist() == [expected.sum()] * 3
    assert {shard.data.shape for shard in state["whole"]["a"].addressable_shards} == {(3,)}


def test_auto_is_pmap_with_one_process_and_shard_map_over_the_hosts_in_their_order_with_several(monkeypatch):
    assert isinstance(parallel.Parallel()._form, mapping.Pmap)
    assert isinstance(parallel.Parallel(form="shard_map")._form, mapping.ShardMap)
    devices = jax.local_devices()
    hosts = devices[4:], devices[:4]
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "local_devices", lambda process_index=1: hosts[process_index])
    par = parallel.Parallel()
    assert par.devices == tuple(hosts[1]) and par.device_count == 8
    assert isinstance(par._form, mapping.ShardMap) and par._form.devices == (*hosts[0], *hosts[1])
    assert isinstance(parallel.Parallel(form="pmap")._form, mapping.Pmap)


def test_a_form_that_does_not_exist_is_named():
    with pytest.raises(InputError, match="config.parallel: unknown form 'pmapp'; did you mean 'pmap'"):
        parallel.Parallel(form="pmapp")
