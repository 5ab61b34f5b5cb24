"""AdamW, warm-up and cosine, weight decay by kind, learning rates by layer, against torch 2.14.1 and timm 1.0.31."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lae_jax import models, optim, stages
from lae_jax.configs import classify, represent
from lae_jax.runs import build, fields
from lae_jax.runtime.errors import InputError

# 50 steps in float64 on 0.5 sum(h (x - c)^2), x = kernel and bias together, with torch.optim.AdamW and SGD.
START = {
    "backbone": {"conv1": {"kernel": np.array([[3.0], [-1.0], [2.0]])}},
    "head": {"fc": {"bias": np.array([-0.5])}},
}
CURVATURE, CENTRE = np.array([0.2, 1.0, 3.0, 0.5]), np.array([1.0, -2.0, 0.5, 4.0])
ADAMW = [1.0892016977698267, -2.0304123569461274, 0.40943746080127014, 1.775039151126696]
# With OneCycleLR(max_lr=0.05, total_steps=50), which cycles beta1 too.
CYCLED = [1.9429756887010152, -1.8645005660577534, 1.0028870463365538, 0.6013869132349794]
# With betas (0.8, 0.95), eps 1e-3 and clip_grad_norm_(0.5) before each step.
CLIPPED = [0.9573317399093426, -2.002653673849537, 0.5117373289089486, 2.2068177123593054]
# With LinearLR(1 / 25, total_iters=10), then CosineAnnealingLR(40, 0.05 / 25 / 1e4).
WARMED = [1.8276576593865266, -1.955192480458813, 0.8925167326303513, 0.7159606568347593]
# With two groups: the kernel has 0.1 x the rate and decay 0.1, the bias 2 x the rate and no decay.
ADAMW_GROUPS = [2.6840804646904872, -1.2150198732859385, 1.7100560871948405, 3.4571679553961046]
SGD_GROUPS = [1.8306374909381153, -1.8393053473443886, 0.5295009072990615, 4.00348685625571]
# SequentialLR of both from 0.005, 12 steps of which 4 rise; and CosineAnnealingLR alone from 0.4 (5 steps).
WARM_UP_12 = [
    0.0002, 0.0014, 0.0026, 0.0037999999999999996, 0.005, 0.0048096995924828915, 0.004267769881898556,
    0.0034567147540784005, 0.0025000099999999996, 0.0015433052459215993, 0.0007322501181014432, 0.00019032040751710825,
]  # fmt: skip
COSINE_5 = [0.4, 0.3618415954761145, 0.2619415954761145, 0.13845840452388553, 0.038558404523885516]


def descend(tx, steps=50):
    params = jax.tree.map(jnp.asarray, START)
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        x = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(params)])
        g = jnp.asarray(CURVATURE, x.dtype) * (x - jnp.asarray(CENTRE, x.dtype))
        grads = jax.tree.unflatten(jax.tree.structure(params), [g[:3, None], g[3:]])
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)]), state


def by_group(path):
    return {"backbone": 0.1, "head": 2.0}[path[0]]


CASES = {
    "adamw": (lambda: optim.adamw(0.05), ADAMW),
    "cycled": (lambda: optim.adamw(optim.one_cycle(0.05, 50), optim.one_cycle_momentum(50)), CYCLED),
    "clipped": (lambda: optim.adamw(0.05, 0.8, 0.95, 1e-3, clip_norm=0.5), CLIPPED),
    "warmed": (lambda: optim.adamw(optim.warmup_cosine(0.05, 50, 10)), WARMED),
    "adamw by group": (
        lambda: optim.adamw(0.05, weight_decay=0.1, decay_all=False, factor=by_group),
        ADAMW_GROUPS,
    ),
    "sgd by group": (lambda: optim.sgd(0.05, weight_decay=0.1, decay_all=False, factor=by_group), SGD_GROUPS),
}


@pytest.mark.parametrize("name", CASES)
def test_optimisers_equal_torch_over_50_steps(name):
    make, expected = CASES[name]
    with jax.enable_x64(True):
        np.testing.assert_allclose(descend(make())[0], expected, rtol=1e-9 if name == "cycled" else 1e-12)
    params, state = descend(optim.trainable(make(), START, ("backbone", "head")))
    np.testing.assert_allclose(params, expected, rtol=2e-4)
    assert not any(leaf.dtype == jnp.float64 or leaf.weak_type for leaf in jax.tree.leaves(state))


def test_warm_up_and_cosine_equal_torch_and_optax():
    found = [float(optim.warmup_cosine(0.005, 12, 4)(step)) for step in range(12)]
    np.testing.assert_allclose(found, WARM_UP_12, rtol=1e-6)
    cosine = optim.warmup_cosine(0.4, 5, 0, 10.0, 100.0)
    np.testing.assert_allclose(jax.jit(cosine)(np.arange(5)), COSINE_5, rtol=1e-6)
    assert float(cosine(5)) == float(cosine(1000)) == float(cosine(4)) and isinstance(cosine(3), np.ndarray)
    optaxs = optax.warmup_cosine_decay_schedule(0.1 / 25, 0.1, 30, 200, 0.1 / 25 / 1e4)
    with jax.enable_x64(True):
        steps = np.arange(200)
        ours = jax.jit(optim.warmup_cosine(0.1, 200, 30))(steps)
        assert ours.dtype == jnp.float64
        np.testing.assert_allclose(ours, [float(optaxs(step)) for step in steps], rtol=1e-9)
        np.testing.assert_allclose(jax.jit(optim.warmup_cosine(0.005, 12, 4))(np.arange(12)), WARM_UP_12, rtol=1e-12)


@pytest.mark.parametrize(
    "make",
    [
        lambda: optim.warmup_cosine(-0.1, 10, 2),
        lambda: optim.warmup_cosine(0.1, 10, 10),
        lambda: optim.warmup_cosine(0.1, 10, -1),
        lambda: optim.warmup_cosine(0.1, 10, 2, div_factor=0),
        lambda: optim.adamw(-1.0),
        lambda: optim.adamw(0.1, beta1=1.0),
        lambda: optim.adamw(0.1, beta2=-0.1),
        lambda: optim.adamw(0.1, epsilon=0.0),
        lambda: optim.adamw(0.1, weight_decay=-1e-4),
    ],
)
def test_bad_numbers_are_refused(make):
    with pytest.raises(InputError, match="should"):
        make()


def ones_of(name):
    """The parameters of a model, with one element each."""
    params: dict = {}
    for (kind, *path, last), shape in models.shapes(models.create(name, 101, convolutions="xla")).items():
        place = params
        for key in path if kind == "params" else ():
            place = place.setdefault(key, {})
        if kind == "params":
            place[last] = np.ones([1] * len(shape), np.float32)
    return params


# Of timm.optim.param_groups_layer_decay(create_model(name, num_classes=101), 0.05, layer_decay=0.5): the exponent of
# the stem's factor, which is the number of layers of the backbone; the parameters that have weight decay, and all.
@pytest.mark.parametrize(
    ("name", "layers", "decayed", "count"),
    [
        ("resnet18", 9, 21, 62),
        ("resnet50", 17, 54, 161),
        ("efficientnet_lite0", 17, 50, 149),
        ("efficientnet_v2_s", 41, 171, 452),
        ("vit_s16", 13, 50, 152),
        ("vit_b16_clip", 13, 50, 153),
        ("convnext_tiny", 19, 59, 182),
    ],
)
def test_layers_and_decay_are_timms(name, layers, decayed, count):
    assert len(models.layer_order(name)) == layers
    found = jax.tree.leaves(optim.decayed(ones_of(name)))
    assert (sum(found), len(found)) == (decayed, count)


def unit_updates(config, stage=stages.REPRESENT):
    """The factor of the learning rate of each parameter, by path: gradients are 1, the rate is 1."""
    config.optim.schedule, config.optim.base_learning_rate, config.optim.weight_decay = "constant", 1.0, 0.0
    config.optim.nesterov, config.optim.momentum = False, 0.0
    params = ones_of(config.model.name)
    build.require_optimiser(config, stage.trains)
    tx = build.optimiser(config, build.schedules(config, 10, 100), params, stage)
    updates, _ = tx.update(params, tx.init(params), params)
    found = jax.tree_util.tree_flatten_with_path(updates)[0]
    return {tuple(key.key for key in path): -leaf.item() for path, leaf in found}


def test_layers_have_the_learning_rates_of_timm_and_the_head_its_own():
    config = represent.get_config()
    config.model.name, config.optim.layer_decay, config.optim.head_factor = "resnet18", 0.5, 3.0
    found = unit_updates(config)
    expected = {"conv1": 0.5**9, "bn1": 0.5**9, "layer1_0": 0.5**8, "layer4_0": 0.25, "layer4_1": 0.5}
    for name, factor in expected.items():
        assert {value for path, value in found.items() if path[1] == name} == {factor}, name
    assert {value for path, value in found.items() if path[0] == "head"} == {3.0}
    # What is frozen stays as it is, and has no factor to set.
    config = classify.get_config()
    config.model.name, config.optim.head_factor = "resnet18", 3.0
    found = unit_updates(config, stages.CLASSIFY)
    assert {value for path, value in found.items() if path[0] == "head"} == {3.0}
    assert {value for path, value in found.items() if path[0] == "backbone"} == {0.0}
    config.optim.layer_decay = 0.5
    with pytest.raises(InputError, match="layer_decay is 0.5, and stage classify trains the head alone"):
        build.require_optimiser(config, stages.CLASSIFY.trains)


def test_stage_3_with_adamw_moves_the_head_alone():
    config = classify.get_config()
    config.optim.name, config.optim.decay_all = "adamw", False
    params = {"backbone": {"conv": {"kernel": np.ones((2, 2), np.float32)}}, "head": {"fc": {"bias": np.ones(2)}}}
    tx = build.optimiser(config, build.schedules(config, 10, 100), params, stages.CLASSIFY)
    state = tx.init(params)
    assert {leaf.shape for leaf in jax.tree.leaves(state)} == {(), (2,)}
    updates, _ = jax.jit(tx.update)(params, state, params)
    assert not updates["backbone"]["conv"]["kernel"].any() and (updates["head"]["fc"]["bias"] < 0).all()


def test_the_papers_optimiser_is_the_same_program_as_before_there_were_others():
    config = represent.get_config()
    schedule = build.schedules(config, 10, 240)
    params = jax.tree.map(lambda leaf: leaf.astype(np.float32), START)
    before = optax.chain(
        optax.stateless(lambda grads, _: jax.tree.map(optim._widened, grads)),
        optax.identity(),
        optax.add_decayed_weights(5e-4),
        optim._momentum(schedule.momentum, nesterov=True),
        optax.scale_by_learning_rate(schedule.learning_rate),
    )
    texts, states = [], []
    for tx in (
        optim.trainable(before, params, ("backbone", "head")),
        build.optimiser(config, schedule, params, stages.REPRESENT),
    ):
        states.append(tx.init(params))
        texts.append(str(jax.make_jaxpr(tx.update)(params, states[-1], params)))
    assert texts[0] == texts[1]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])


def test_every_added_field_has_the_value_of_older_runs_as_its_default():
    values = fields.flat(fields.as_json(represent.get_config()))
    assert {name: values[name] for name in fields.ADDED} == fields.ADDED


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("ema_decay", 1.0, "ema_decay is 1.0: it must be at least 0 and below 1"),
        ("ema_decay", float("nan"), "at least 0 and below 1"),
        ("optim.name", "adam", "config.optim.name: unknown optimiser 'adam'; did you mean 'adamw'"),
        ("optim.beta2", 1.0, "beta2 is 1.0: it must be at least 0 and below 1"),
        ("optim.epsilon", 0.0, "a number above 0"),
        ("optim.head_factor", -1.0, "a number above 0"),
        ("optim.layer_decay", 1.5, "above 0 and at most 1"),
        ("optim.warmup_epochs", -1.0, "a number of at least 0"),
        ("optim.weight_decay", -1.0, "weight_decay should be"),
    ],
)
def test_a_field_out_of_range_is_named(field, value, message):
    config = represent.get_config()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(InputError, match=message):
        build.require_optimiser(config, ("backbone", "head"))


def test_a_warm_up_longer_than_the_run_is_refused():
    config = represent.get_config()
    config.optim.schedule, config.optim.warmup_epochs = "warmup_cosine", 30.0
    with pytest.raises(InputError, match="warmup_epochs is 30.0, 300 steps, and the run has 240"):
        build.schedules(config, 10, 240)
    config.optim.warmup_epochs = 5.0
    rate = build.schedules(config, 10, 240).learning_rate
    assert float(rate(50)) == pytest.approx(0.005) and float(rate(0)) == pytest.approx(0.0002)
