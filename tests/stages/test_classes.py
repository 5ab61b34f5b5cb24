"""The margins of stage 1 against their equations, and the classes that a step draws."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from lae_jax import losses, stages
from lae_jax.models.heads import IdentityOutputs, LengthQuality
from lae_jax.models.layers import Compute
from lae_jax.runtime import parallel
from lae_jax.runtime.errors import InputError
from lae_jax.runtime.parallel import rows
from lae_jax.stages import classes

COSINES = np.array([-1.0, -0.999, -0.9, -0.5, 0.0, 0.3, 0.8, 0.95, 0.9999, 1.0])
QUALITY = np.linspace(-1, 1, len(COSINES))


def plain(form, cosine, margin, quality):
    """The equations of the papers."""
    angle = math.acos(cosine)
    if form == "am_softmax":
        return cosine - margin
    if form == "arcface":
        return math.cos(angle + margin) if angle + margin < math.pi else cosine - margin * math.sin(margin)
    turned = min(max(angle - margin * quality, 0.0), math.pi)
    return math.cos(turned) - (margin * quality + margin)


@pytest.mark.parametrize("form", classes.MARGINS)
def test_margins_are_those_of_their_papers(form):
    expected = [plain(form, c, 0.45, q) for c, q in zip(COSINES, QUALITY, strict=True)]
    with jax.enable_x64(True):
        found = classes.MARGINS[form](jnp.asarray(COSINES), margin=0.45, quality=jnp.asarray(QUALITY))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)  # a sine is at least 1e-6
    single = classes.MARGINS[form](jnp.asarray(COSINES, jnp.float32), 0.45, jnp.asarray(QUALITY, jnp.float32))
    np.testing.assert_allclose(single, expected, rtol=0, atol=5e-4)
    inner = slice(1, -1)
    with jax.enable_x64(True):
        slope = jax.vmap(jax.grad(lambda c, q: classes.MARGINS[form](c, 0.45, q)))(COSINES[inner], QUALITY[inner])
    step = 1e-7
    for got, c, q in zip(slope, COSINES[inner], QUALITY[inner], strict=True):
        numeric = (plain(form, c + step, 0.45, q) - plain(form, c - step, 0.45, q)) / (2 * step)
        assert got == pytest.approx(numeric, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("form", classes.MARGINS)
def test_gradients_are_finite_where_an_embedding_lies_on_a_class_or_opposite_to_it(form):
    weights = jnp.eye(3, 4)
    embeddings = jnp.array([[1.0, 0, 0, 0], [0, -2, 0, 0], [0, 0, 1 - 1e-7, 1e-4], [0, 0, 0, 0]])
    constants = {"scale": 64.0, "margin": 0.5, "margin_form": form}

    def loss(embeddings, weights, quality):
        outputs = IdentityOutputs(embeddings, weights, jnp.full(4, quality))
        return classes.whole_loss(outputs, jnp.array([0, 1, 2, 1]), constants).sum()

    for quality in (-1.0, 0.0, 1.0):
        value, gradients = jax.value_and_grad(loss, (0, 1))(embeddings, weights, quality)
        assert np.isfinite(value) and all(np.isfinite(one).all() for one in gradients)
        assert np.abs(gradients[0][:3]).max() < 1e3  # the last one is zero, and has no direction


def test_the_am_softmax_of_the_stage_is_that_of_losses():
    rng = np.random.default_rng(0)
    embeddings, weights = rng.normal(size=(6, 4)), rng.normal(size=(9, 4))
    labels = np.array([0, 8, 3, 3, 1, 9])
    found = classes.whole_loss(
        IdentityOutputs(embeddings, weights), labels, {"scale": 30.0, "margin": 0.2, "margin_form": "am_softmax"}
    )
    np.testing.assert_array_equal(found, losses.am_softmax_loss(embeddings, weights, labels, 30.0, 0.2))
    assert np.isnan(found[-1])


def test_quality_is_the_length_of_an_embedding_beside_the_moving_statistics():
    module = LengthQuality(Compute())
    embeddings = jnp.array([[3.0, 4.0], [0.0, 1.0], [0.0, 300.0]])
    variables = module.init(jax.random.key(0), embeddings, True)
    assert variables == {"batch_stats": {"mean": 20.0, "std": 100.0}}
    quality, updated = module.apply(variables, embeddings, True, mutable=["batch_stats"])
    lengths = np.array([5.0, 1.0, 100.0])  # at most 100
    mean, std = 0.99 * 20 + 0.01 * lengths.mean(), 0.99 * 100 + 0.01 * lengths.std(ddof=1)
    assert float(updated["batch_stats"]["mean"]) == pytest.approx(mean)
    assert float(updated["batch_stats"]["std"]) == pytest.approx(std)
    np.testing.assert_allclose(quality, np.clip((lengths - mean) / (std + 1e-3) * 0.333, -1, 1), rtol=1e-5)


def chosen(people, share, labels, devices=8, seeds=(0,), steps=(0,)):
    """The classes that take part, for each seed and step, as sets."""
    mesh = Mesh(np.array(jax.local_devices()[:devices]), (parallel.AXIS,))
    held = rows.padded(people) // devices

    def draw(labels, seed, step):
        places = classes.choose(people, share, labels, seed, step)
        return jax.lax.axis_index(parallel.AXIS) * held + places

    spec = PartitionSpec(parallel.AXIS)
    mapped = jax.jit(
        jax.shard_map(draw, mesh=mesh, in_specs=(spec, None, None), out_specs=spec, check_vma=False)
    )  # fmt: skip
    return [np.asarray(mapped(labels, seed, step)) for seed in seeds for step in steps]


def test_people_of_the_batch_always_take_part_and_others_are_drawn_uniformly_and_once():
    people, rng = 3000, np.random.default_rng(0)
    labels = np.concatenate([rng.integers(0, people, 14), [0, people - 1]]).astype(np.int32)
    draws = chosen(people, 0.25, labels, steps=range(400))
    counts = np.zeros(rows.padded(people), int)
    for one in draws:
        assert len({*one.tolist()}) == len(one) == 0.25 * rows.padded(people)
        assert {*labels.tolist()} <= {*one.tolist()}
        counts[one] += 1
    assert counts[people:].sum() == 0
    first = counts[:384]  # of the first device, whose 96 places are for its people of the batch and 96 - n others
    others = np.setdiff1d(np.arange(384), labels)
    share = (96 - (384 - len(others))) / len(others)
    spread = (first[others] - 400 * share) / math.sqrt(400 * share * (1 - share))
    assert abs(first[others].mean() / 400 - share) < 1e-9
    assert 0.85 < spread.std() < 1.15 and np.abs(spread).max() < 4.5
    # Two classes are drawn together as often as independent draws without replacement are.
    both = np.mean([np.isin(others[:2], one).all() for one in draws])
    assert both == pytest.approx(share**2, abs=4 * share / math.sqrt(400))


def test_draws_are_a_function_of_seed_and_step_and_of_the_class():
    labels = np.arange(16, dtype=np.int32)
    first, again, step, seed = (
        chosen(3000, 0.25, labels, seeds=(seed,), steps=(step,))[0] for seed, step in ((1, 2), (1, 2), (1, 3), (2, 2))
    )
    assert first.tolist() == again.tolist()
    assert first.tolist() != step.tolist() and first.tolist() != seed.tolist()
    # The random number of a class does not depend on the devices: nearly the same classes are the largest.
    four = chosen(3000, 0.25, labels, devices=4, seeds=(1,), steps=(2,))[0]
    assert len(np.intersect1d(first, four)) > 0.9 * len(first)


def test_the_sum_over_others_is_an_unbiased_estimate():
    people, held = 2048, 256
    labels = np.zeros(8, np.int32)
    values = np.exp(np.random.default_rng(0).normal(size=people))
    exact, taken = values[held:].sum(), round(0.25 * held)  # of devices without a person of the batch
    draws = chosen(people, 0.25, labels, steps=range(300))
    estimates = [values[one[one >= held]].sum() * held / taken for one in draws]
    error = np.std(estimates) / math.sqrt(len(estimates))
    assert abs(np.mean(estimates) - exact) < 4 * error and error < 0.01 * exact


@pytest.mark.parametrize(
    ("where", "share", "people", "split"),
    [("auto", 1.0, 299_999, False), ("auto", 1.0, 300_000, True), ("auto", 0.1, 5, True), ("split", 1.0, 5, True),
     ("copied", 1.0, 10**7, False)],
)  # fmt: skip
def test_class_weights_are_split_for_many_people(where, share, people, split):
    stage = stages.with_classes(stages.PRETRAIN, where, share, people)
    assert (stage.split == ("class_weights",)) is split and (stage.choose is not None) is (share < 1)
    assert stages.with_classes(stages.REPRESENT, where, share, people) is stages.REPRESENT


@pytest.mark.parametrize(
    ("where", "share", "told"),
    [("copied", 0.1, "class_sampling is 0.1, which needs"), ("auto", 0.0, "must be above 0"),
     ("auto", 1.5, "at most 1"), ("splitt", 1.0, "did you mean 'split'")],
)  # fmt: skip
def test_what_cannot_be_is_refused(where, share, told):
    with pytest.raises(InputError, match=told):
        stages.with_classes(stages.PRETRAIN, where, share, 1000)
    with pytest.raises(InputError, match="config.loss.margin_form: unknown margin 'arcfac'; did you mean 'arcface'"):
        classes.require_form("arcfac")


def test_devices_that_cannot_hold_equal_parts_and_pmap_are_refused():
    split = functools.partial(parallel.Parallel, split=("class_weights",))
    with pytest.raises(InputError, match="cannot be split over 3 devices: use a divisor of 1024, such as 2"):
        split(tuple(jax.local_devices()[:3]))
    with pytest.raises(InputError, match="config.parallel is pmap, which cannot split"):
        split(form="pmap")
