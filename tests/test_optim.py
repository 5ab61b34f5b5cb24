"""Schedules and SGD against torch 2.13.0, whose values are stored here, and against a float64 closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lae_jax import optim

# torch 2.13.0, SGD(momentum=0.9), OneCycleLR(max_lr=0.005, total_steps=10): rate and momentum of every step.
RATES_10 = [
    0.00019999999999999966, 0.0026, 0.005, 0.004752423160067369, 0.0040587282697488155, 0.0030563101096814462,
    0.001943709890318554, 0.000941291730251185, 0.0002475968399326314, 2e-08,
]  # fmt: skip
MOMENTA_10 = [
    0.95, 0.8999999999999999, 0.85, 0.854951556604879, 0.8688255099070633, 0.8888739533021842, 0.9111260466978157,
    0.9311744900929366, 0.945048443395121, 0.95,
]  # fmt: skip
# The same with total_steps=100, every 9th step.
RATES_100 = [
    0.00019999999999999966, 0.0012531510431302816, 0.0034883315728157947, 0.004943889333704208, 0.004877641780172721,
    0.0043826811342943675, 0.003584715008956504, 0.002612171627227984, 0.001621576453544884, 0.0007723602881593283,
    0.00020119976389909908, 2e-08,
]  # fmt: skip
MOMENTA_100 = [
    0.95, 0.9280593532681191, 0.8814930922330042, 0.8511689722144956, 0.8524471741852423, 0.8623464266998194,
    0.878305813044122, 0.8977567584824742, 0.9175687412040671, 0.9345531324493432, 0.9459763886275725, 0.95,
]  # fmt: skip
# The same for short runs and other shapes: keywords, rates, momenta.
SHAPES = [
    (dict(peak=0.005, total_steps=1), [2e-08], [0.95]),
    (dict(peak=0.005, total_steps=2), [0.004058728269748815, 2e-08], [0.8688255099070633, 0.95]),
    (
        dict(peak=0.005, total_steps=3),
        [0.004972077177254559, 0.002313185513334875, 2e-08],
        [0.8505584586887436, 0.9037365046793212, 0.95],
    ),
    (
        dict(peak=0.005, total_steps=4),
        [0.00019999999999999966, 0.004058728269748815, 0.0014153049910434962, 2e-08],
        [0.95, 0.8688255099070633, 0.9216941869558779, 0.95],
    ),
    (
        dict(peak=1.0, total_steps=5, pct_start=0.0),
        [0.904508879153485, 0.654509879153485, 0.3454941208465151, 0.09549512084651508, 4e-06],
        [0.8595491502812526, 0.8845491502812526, 0.9154508497187474, 0.9404508497187474, 0.95],
    ),
    (
        dict(peak=1.0, total_steps=5, pct_start=1.0),
        [0.040000000000000036, 0.1805887450304573, 0.52, 0.8594112549695427, 1.0],
        [0.95, 0.9353553390593273, 0.8999999999999999, 0.8646446609406726, 0.85],
    ),
    (
        dict(peak=0.4, total_steps=7, pct_start=0.25, div_factor=10.0, final_div_factor=100.0),
        [0.03999999999999998, 0.3977683990797807, 0.3466637639915993, 0.24465968260447163, 0.12720486333159428,
         0.03511749289166426, 0.0004],
        [0.95, 0.8505584586887436, 0.8633474064085087, 0.8888739533021842, 0.9182670512183198, 0.9413119387157997,
         0.95],
    ),
]  # fmt: skip

# torch 2.13.0, float64, 50 steps on 0.5 sum(h (x - c)^2), x = w and b together, decay 0.01, rate 0.05, momentum 0.9.
START = {"w": np.array([3.0, -1.0, 2.0]), "b": np.array([-0.5])}
CURVATURE, CENTRE = np.array([0.2, 1.0, 3.0, 0.5]), np.array([1.0, -2.0, 0.5, 4.0])
NESTEROV = [0.8666351521219006, -1.9797673411319074, 0.49907063260857176, 3.8469820896406373]
HEAVY_BALL = [0.854007427493609, -1.9701011315515662, 0.5483640909531651, 3.814849055523551]
# With OneCycleLR(max_lr=0.05, total_steps=50), which cycles the momentum too.
CYCLED = [1.001473298739443, -1.9276180257538442, 0.5174374634740864, 4.101474883578025]
# With clip_grad_norm_(0.5) before each step.
CLIPPED = [0.8239566486380343, -1.961780192032424, 0.5010958440856905, 4.094677445999646]


def values(schedule, steps):
    return np.asarray(jax.jit(schedule)(np.asarray(steps, np.int32)))


def closed_form(start, middle, end, total_steps, pct_start=0.3):
    """Section 3 of torch's documentation in float64, with the cosine that float32 cannot afford."""
    n, turn, last = np.arange(total_steps), pct_start * total_steps - 1, total_steps - 1
    down = end + (middle - end) / 2 * (1 + np.cos(np.pi * (n - turn) / (last - turn)))
    return np.where(n <= turn, middle + (start - middle) / 2 * (1 + np.cos(np.pi * n / turn)), down)


def test_one_cycle_equals_torch_at_every_step_of_10():
    np.testing.assert_allclose(values(optim.one_cycle(0.005, 10), range(10)), RATES_10, rtol=1e-6)
    np.testing.assert_allclose(values(optim.one_cycle_momentum(10), range(10)), MOMENTA_10, rtol=1e-6)


def test_one_cycle_equals_torch_at_every_9th_step_of_100():
    np.testing.assert_allclose(values(optim.one_cycle(0.005, 100), range(0, 100, 9)), RATES_100, rtol=1e-6)
    np.testing.assert_allclose(values(optim.one_cycle_momentum(100), range(0, 100, 9)), MOMENTA_100, rtol=1e-6)
    np.testing.assert_allclose(closed_form(2e-4, 5e-3, 2e-8, 100)[::9], RATES_100, rtol=1e-9)


@pytest.mark.parametrize(("keywords", "rates", "momenta"), SHAPES)
def test_one_cycle_of_other_shapes_equals_torch(keywords, rates, momenta):
    steps = range(len(rates))
    np.testing.assert_allclose(values(optim.one_cycle(**keywords), steps), rates, rtol=1e-6)
    momentum = optim.one_cycle_momentum(keywords["total_steps"], pct_start=keywords.get("pct_start", 0.3))
    np.testing.assert_allclose(values(momentum, steps), momenta, rtol=1e-6)


@pytest.mark.parametrize("total_steps", [1000, 12_345, 1_000_000])
def test_one_cycle_holds_1e_5_in_float32_at_every_step(total_steps):
    rates = values(optim.one_cycle(0.005, total_steps), np.arange(total_steps))
    momenta = values(optim.one_cycle_momentum(total_steps), np.arange(total_steps))
    assert rates.dtype == momenta.dtype == jnp.float32
    np.testing.assert_allclose(rates, closed_form(2e-4, 5e-3, 2e-8, total_steps), rtol=1e-5)
    np.testing.assert_allclose(momenta, closed_form(0.95, 0.85, 0.95, total_steps), rtol=1e-5)


def test_one_cycle_is_float64_under_x64():
    with jax.enable_x64(True):
        rates = values(optim.one_cycle(0.005, 10), range(10))
        assert rates.dtype == jnp.float64
        np.testing.assert_allclose(rates, RATES_10, rtol=1e-12)


def test_schedules_hold_their_ends_and_take_traced_steps():
    schedules = [optim.one_cycle(0.005, 10), optim.one_cycle_momentum(10), optim.multi_step(0.1, [3, 9])]
    for schedule in schedules:
        assert float(schedule(10)) == float(schedule(1000)) == float(schedule(9))
        assert float(schedule(-1)) == float(schedule(0))
        np.testing.assert_allclose(jax.jit(schedule)(jnp.int32(4)), schedule(4), rtol=1e-6)
        assert schedule(4).shape == () and schedule(np.int64(4)).dtype == jnp.float32


def test_one_cycle_where_torch_divides_by_zero_starts_at_the_peak():
    assert float(optim.one_cycle(0.005, 10, pct_start=0.1)(0)) == pytest.approx(0.005)
    assert float(optim.one_cycle(0.005, 1, pct_start=1.0)(0)) == pytest.approx(0.005)
    assert values(optim.one_cycle(0.005, 10, pct_start=0.1), range(10))[-1] == pytest.approx(2e-8)


def test_multi_step_equals_torch():
    # torch 2.13.0: MultiStepLR(milestones=[2, 5, 5, 7], gamma=0.1) and [0, 2] from 0.1.
    expected = [0.1, 0.1, 0.01, 0.01, 0.01, 0.0001, 0.0001, 1e-05, 1e-05, 1e-05]
    np.testing.assert_allclose(values(optim.multi_step(0.1, [2, 5, 5, 7]), range(10)), expected, rtol=1e-6)
    np.testing.assert_allclose(values(optim.multi_step(0.1, (0, 2)), range(4)), [0.01, 0.01, 0.001, 0.001], rtol=1e-6)
    np.testing.assert_allclose(values(optim.multi_step(0.1, (), gamma=0.5), [0, 10**6]), 0.1, rtol=1e-6)
    np.testing.assert_allclose(values(optim.multi_step(8.0, [1, 2, 3], gamma=0.5), range(5)), [8, 4, 2, 1, 1])


@pytest.mark.parametrize(
    "make",
    [
        lambda: optim.one_cycle(0.1, 0),
        lambda: optim.one_cycle(0.1, -5),
        lambda: optim.one_cycle(0.1, 10.5),
        lambda: optim.one_cycle(0.1, True),
        lambda: optim.one_cycle(0.1, 2**31),
        lambda: optim.one_cycle(-0.1, 10),
        lambda: optim.one_cycle(float("nan"), 10),
        lambda: optim.one_cycle(0.1, 10, pct_start=1.5),
        lambda: optim.one_cycle(0.1, 10, pct_start=-0.1),
        lambda: optim.one_cycle(0.1, 10, div_factor=0),
        lambda: optim.one_cycle(0.1, 10, final_div_factor=-1),
        lambda: optim.one_cycle_momentum(0),
        lambda: optim.one_cycle_momentum(10, max_momentum=1.0),
        lambda: optim.multi_step(0.1, [5, 2]),
        lambda: optim.multi_step(0.1, [-1]),
        lambda: optim.multi_step(0.1, [1.5]),
        lambda: optim.multi_step(0.1, [1], gamma=0),
        lambda: optim.multi_step(float("inf"), [1]),
        lambda: optim.sgd(-1.0),
        lambda: optim.sgd(0.1, momentum=1.0),
        lambda: optim.sgd(0.1, weight_decay=-1e-4),
        lambda: optim.sgd(0.1, clip_norm=float("nan")),
    ],
)
def test_bad_numbers_are_refused(make):
    with pytest.raises(ValueError, match="should"):
        make()


def gradient(params):
    x = jnp.concatenate([params["w"], params["b"]])
    g = jnp.asarray(CURVATURE, x.dtype) * (x - jnp.asarray(CENTRE, x.dtype))
    return {"w": g[:3], "b": g[3:]}


def descend(tx, steps=50, decoupled=0.0):
    params = jax.tree.map(jnp.asarray, START)
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        updates, state = tx.update(gradient(params), state, params)
        return optax.apply_updates(jax.tree.map(lambda p: p * (1 - decoupled), params), updates), state

    for _ in range(steps):
        params, state = step(params, state)
    return np.concatenate([params["w"], params["b"]]), state


def buffer(state) -> optim.MomentumState:
    return next(part for part in state if isinstance(part, optim.MomentumState))


CASES = {
    "nesterov": (lambda: optim.sgd(0.05, weight_decay=0.01), NESTEROV),
    "heavy ball": (lambda: optim.sgd(0.05, weight_decay=0.01, nesterov=False), HEAVY_BALL),
    "clipped": (lambda: optim.sgd(0.05, weight_decay=0.01, clip_norm=0.5), CLIPPED),
    "cycled": (
        lambda: optim.sgd(optim.one_cycle(0.05, 50), optim.one_cycle_momentum(50), weight_decay=0.01),
        CYCLED,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_sgd_equals_torch_over_50_steps(name):
    make, expected = CASES[name]
    params, state = descend(make())
    np.testing.assert_allclose(params, expected, rtol=5e-6)
    assert buffer(state).count == 50 and buffer(state).count.dtype == jnp.int32
    with jax.enable_x64(True):
        np.testing.assert_allclose(descend(make())[0], expected, rtol=1e-12)


def test_the_torch_test_can_tell_the_variants_apart():
    others = {
        "decoupled decay": descend(optim.sgd(0.05, weight_decay=0.0), decoupled=0.05 * 0.01)[0],
        "no nesterov": descend(optim.sgd(0.05, weight_decay=0.01, nesterov=False))[0],
        "no decay": descend(optim.sgd(0.05, weight_decay=0.0))[0],
        "clipped": descend(optim.sgd(0.05, weight_decay=0.01, clip_norm=0.5))[0],
    }
    for name, params in others.items():
        assert np.abs(params / NESTEROV - 1).max() > 1e-3, name


def test_clipping_comes_before_the_decay_and_leaves_small_gradients_alone():
    params, grads = {"w": jnp.array([10.0, 0.0])}, {"w": jnp.array([3.0, 4.0])}
    tx = optim.sgd(1.0, momentum=0.0, weight_decay=0.1, nesterov=False, clip_norm=1.0)
    updates, _ = tx.update(grads, tx.init(params), params)
    np.testing.assert_allclose(updates["w"], [-1.6, -0.8], rtol=1e-5)  # g / 5, plus 0.1 x 10
    tx = optim.sgd(1.0, momentum=0.0, weight_decay=0.0, clip_norm=100.0)
    np.testing.assert_array_equal(tx.update(grads, tx.init(params))[0]["w"], [-3, -4])


def test_the_first_two_steps_by_hand_read_rate_and_momentum_at_the_count():
    # Rates 1, 10 and momenta 0.5, 0.25; gradients 1, then 2. Buffers 1, then 2.25; updates -(1 + 0.5), then
    # -10 (2 + 0.25 x 2.25).
    tx = optim.sgd(lambda n: jnp.array([1.0, 10.0])[n], lambda n: jnp.array([0.5, 0.25])[n], weight_decay=0.0)
    state = tx.init(jnp.zeros(()))
    first, state = tx.update(jnp.float32(1), state)
    assert (float(first), float(buffer(state).trace)) == (-1.5, 1.0)
    second, state = tx.update(jnp.float32(2), state)
    assert (float(second), float(buffer(state).trace), int(buffer(state).count)) == (-25.625, 2.25, 2)


def test_state_keeps_its_types():
    params = {"w": jnp.ones(3, jnp.bfloat16), "b": jnp.ones(2, jnp.float32)}
    for x64 in (False, True):
        with jax.enable_x64(x64):
            tx = optim.sgd(optim.one_cycle(0.1, 10), optim.one_cycle_momentum(10), clip_norm=1.0)
            state = tx.init(params)
            updates, after = jax.jit(tx.update)(params, state, params)
            assert jax.tree.map(lambda x: x.dtype, after) == jax.tree.map(lambda x: x.dtype, state)
            assert {u.dtype for u in jax.tree.leaves(updates)} == {jnp.dtype("float32")}
            assert not any(leaf.weak_type for leaf in jax.tree.leaves(after))


def test_decay_needs_the_parameters():
    tx = optim.sgd(0.1)
    with pytest.raises(ValueError, match="parameters"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))


PARAMS = {
    "backbone": {"stem": {"kernel": jnp.full((2, 3), 2.0)}, "head": jnp.full(2, 3.0)},
    "head": {"kernel": jnp.array([3.0, 4.0])},
}


def test_only_the_named_part_trains_and_clipping_sees_it_alone():
    tx = optim.trainable(optim.sgd(1.0, momentum=0.0, weight_decay=0.0, clip_norm=1.0), PARAMS, ("head",))
    state = tx.init(PARAMS)
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) == 3  # the head's buffer and the count
    updates, state = jax.jit(tx.update)(PARAMS, state, PARAMS)
    np.testing.assert_allclose(updates["head"]["kernel"], [-0.6, -0.8], rtol=1e-5)
    assert jax.tree.structure(updates) == jax.tree.structure(PARAMS)
    for before, after in zip(
        jax.tree.leaves(PARAMS["backbone"]),
        jax.tree.leaves(optax.apply_updates(PARAMS, updates)["backbone"]),
        strict=True,
    ):
        np.testing.assert_array_equal(before, after)


def test_decay_does_not_reach_a_frozen_part_and_both_parts_train_as_plain_sgd():
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    frozen = optim.trainable(optim.sgd(1.0, weight_decay=0.5), PARAMS, ("head",))
    updates, _ = frozen.update(zeros, frozen.init(PARAMS), PARAMS)
    assert all((u == 0).all() for u in jax.tree.leaves(updates["backbone"])) and (updates["head"]["kernel"] < 0).all()
    plain, both = optim.sgd(0.1), optim.trainable(optim.sgd(0.1), PARAMS, ("backbone", "head"))
    expected, _ = plain.update(PARAMS, plain.init(PARAMS), PARAMS)
    got, _ = both.update(PARAMS, both.init(PARAMS), PARAMS)
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_trainable_takes_shapes_and_a_head_alone():
    shapes = jax.eval_shape(lambda: PARAMS)
    state = optim.trainable(optim.sgd(0.1), shapes, ("backbone",)).init(PARAMS)
    assert jax.tree.map(jnp.shape, buffer(state.inner_states["train"].inner_state).trace["backbone"]) == jax.tree.map(
        jnp.shape, PARAMS["backbone"]
    )
    head = {"head": PARAMS["head"]}
    tx = optim.trainable(optim.sgd(0.1), head, ("head",))
    updates, _ = tx.update(head, tx.init(head), head)
    assert updates.keys() == {"head"} and (updates["head"]["kernel"] < 0).all()


@pytest.mark.parametrize(
    ("params", "trains", "message"),
    [
        (PARAMS, (), "trains names the parts"),
        (PARAMS, "head", "trains names the parts"),
        (PARAMS, ("neck",), "neck"),
        ({**PARAMS, "neck": {}}, ("head",), "neck"),
        ({"head": PARAMS["head"]}, ("backbone",), "backbone"),
        ([1.0], ("head",), "top-level keys backbone and head, not list"),
    ],
)
def test_trainable_refuses_unknown_parts(params, trains, message):
    with pytest.raises(ValueError, match=message):
        optim.trainable(optim.sgd(0.1), params, trains)
