"""Every method is what its record says; what finishes a head or its ages is the papers' closed form."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lae_jax import losses, stages
from lae_jax.configs import classify
from lae_jax.longtail import fitting
from lae_jax.runtime.errors import InputError
from lae_jax.stages import method_losses, methods, mixing
from lae_jax.stages.methods import METHODS


def head(seed, width=7):
    rng = np.random.default_rng(seed)
    return {"fc": {"kernel": rng.normal(size=(width, 101)), "bias": rng.normal(size=101)}}


@pytest.fixture
def bench():
    """Features that tell the age, with few people of 70; stage 2's head knows nothing."""
    rng = np.random.default_rng(0)
    ages = np.concatenate([rng.integers(20, 40, 280), rng.integers(60, 80, 40)]).astype(np.float64)
    features = np.stack([np.cos(np.pi * ages / 100 * k) for k in range(8)], axis=1) + rng.normal(0, 0.1, (320, 8))
    config = classify.get_config()
    config.batch_size, config.epochs = 32, 4.0
    own = {"fc": {"kernel": np.zeros((8, 101), np.float32), "bias": np.zeros(101, np.float32)}}
    return fitting.Bench(features[None].astype(np.float32), ages, own, 3.0, config, 0.0)


def test_tau_normalisation_divides_by_the_norm_to_tau():
    own, features = head(0), np.random.default_rng(1).normal(size=(5, 7))
    for tau in (0.0, 0.5, 1.0):
        kernel = methods.normalised(own, own, tau)["fc"]["kernel"]
        paper = own["fc"]["kernel"] / np.linalg.norm(own["fc"]["kernel"], axis=0) ** tau
        ratio = np.asarray(kernel) / paper
        np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-5)
        np.testing.assert_array_equal(np.argmax(features @ np.asarray(kernel), 1), np.argmax(features @ paper, 1))
    np.testing.assert_allclose(np.linalg.norm(kernel, axis=0), np.linalg.norm(kernel, axis=0)[0], rtol=1e-5)
    np.testing.assert_allclose(methods.normalised(own, own, 0.0)["fc"]["kernel"], own["fc"]["kernel"], rtol=1e-6)


def test_interpolation_and_adjustment_end_in_what_they_lie_between():
    own, trained = head(0), head(1)
    for share, end in ((0.0, own), (1.0, trained)):
        np.testing.assert_allclose(
            methods.interpolated(own, trained, share)["fc"]["kernel"], end["fc"]["kernel"], atol=1e-6
        )
    logits, counts = np.random.default_rng(2).normal(size=(4, 101)), np.arange(1.0, 102.0)
    constants = {"counts": jnp.asarray(counts), "smoothed": jnp.asarray(counts)}
    p = np.exp(logits) / counts**0.5
    expected = (p / p.sum(axis=1, keepdims=True)) @ np.arange(101)
    np.testing.assert_allclose(methods.adjusted(logits, logits, constants, 0.5), expected, rtol=1e-5)


def test_routing_keeps_stage_2_where_the_ages_are_frequent():
    """Logits that are certain of an age, so that the ages can be read off."""

    def sure(ages):
        return 50.0 * jnp.asarray(np.eye(101)[ages])

    smoothed = np.zeros(101)
    smoothed[30], smoothed[70] = 100.0, 10.0
    constants = {"smoothed": jnp.asarray(smoothed)}
    got = methods.routed(sure([25, 60]), sure([30, 70]), constants, 0.2)
    np.testing.assert_allclose(got, [25, 70], atol=1e-3)
    np.testing.assert_allclose(methods.routed(sure([25, 60]), sure([30, 70]), constants, 0.05), [25, 60], atol=1e-3)


def test_c_mixup_mixes_near_ages_as_the_paper_draws_them():
    ages = jnp.array([10.0, 10.0, 12.0, 60.0])
    # Each example's features say which one it is.

    def draw(seed):
        partner, share = mixing.c_mixup(ages, mixing.key_of(seed, 5), 2.0)
        return [mixing.mixed(x, x[partner], share) for x in (jnp.eye(4), ages)]

    mixed, of_ages = (np.asarray(part) for part in jax.vmap(draw)(jnp.arange(400)))
    np.testing.assert_allclose(mixed.sum(-1), 1, atol=1e-6)
    np.testing.assert_allclose(mixed @ np.asarray(ages), of_ages, rtol=1e-6)
    own = mixed[:, np.arange(4), np.arange(4)]
    np.testing.assert_allclose(own[:, 3], 1)  # nobody is near 60
    # exp(-0), exp(-0) and exp(-4 / 8) are the odds of the first example's partners.
    share = 1 - own[:, 0]
    assert (share > 0).mean() == pytest.approx(1 - 1 / (2 + np.exp(-0.5)), abs=0.08)
    assert (mixed[:, 0, 2] > 0).mean() == pytest.approx(np.exp(-0.5) / (2 + np.exp(-0.5)), abs=0.07)
    of_two = share[share > 0]
    assert of_two.mean() == pytest.approx(0.5, abs=0.05) and of_two.var() == pytest.approx(1 / 20, abs=0.015)


def test_methods_share_a_trained_head_where_they_train_alike_and_no_other():
    alike = {}
    for name, method in METHODS.items():
        alike.setdefault(method.training, set()).add(name)
    assert [group for group in alike.values() if len(group) > 1] == [
        {"stage2", "tau_norm", "logit_adjustment"},
        {"lae", "routing", "interpolation"},
        {"crt", "crt_routing"},
        {"two_layers", "two_layers_routing"},
    ]


@pytest.mark.parametrize(("name", "setting", "message"), [
    ("effective_number", 1.0, r"setting is 1: the beta of method 'effective_number' must be .* above 0 and below 1"),
    ("c_mixup", 0.0, r"the bandwidth in years of method 'c_mixup' must be a number above 0$"),
    ("logit_adjusted_loss", float("nan"), "setting is nan: the tau"),
    ("balanced_mse", -2.0, "the noise in years of method 'balanced_mse'"),
    ("lae_new_head_mae", -0.5, r"the factor of mae of method 'lae_new_head_mae' must be a number of at least 0$"),
    ("efective_number", 0.9, "did you mean 'effective_number'"),
])  # fmt: skip
def test_a_setting_that_its_method_cannot_use_is_refused(name, setting, message):
    for method in METHODS.values():
        assert not method.setting or all(map(method.takes_setting, method.settings)), method.name
    with pytest.raises(InputError, match=message):
        stages.with_method(stages.CLASSIFY, name, setting)


def test_a_method_without_a_setting_is_not_swept_and_an_unknown_one_is_told_the_nearest():
    swept = {name for name, method in METHODS.items() if len(method.settings) > 1}
    assert swept == {name for name, method in METHODS.items() if method.setting}
    for name in swept:
        assert list(METHODS[name].settings) == sorted({*METHODS[name].settings}), name
    with pytest.raises(InputError, match="unknown method 'lea'; did you mean 'lae'"):
        methods.get("lea")


TRAINED = {n: m for n, m in METHODS.items() if m.loss is not None and m.sets != "finish"}
# Of all that have the same machinery, the last one.
MACHINERY = {(m.order, m.start, m.trains, m.smooth_features, m.mix, m.sets): n for n, m in TRAINED.items()}


def test_every_loss_with_a_label_distribution_takes_the_configured_sigma():
    counts = method_losses.of_training(np.ones(101))
    constants = {"mae": 2.0, "er_weight": 0.0, **jax.tree.map(jnp.asarray, counts)}
    logits, ages = jnp.zeros((2, 101)), jnp.array([20.0, 50.0])
    for name, method in TRAINED.items():
        setting = method.settings[-1]
        one, three = (
            method.loss(logits, ages, {**constants, "label_sigma": s, "in_range": "uniform"}, setting)
            for s in (1.0, 3.0)
        )
        # The divergence from an even distribution falls by log 3. Two losses have no label distribution.
        expected = 0.0 if name in ("balanced_mse", "absolute_error") else np.log(3)
        np.testing.assert_allclose(one - three, expected, rtol=1e-3, err_msg=name)


@pytest.mark.parametrize("ages", [np.array([3.0, 40.0, 81.0]), np.array([[0.0, 9.0], [40.0, 40.0], [70.0, 100.0]])])
def test_the_square_of_heads_and_losses_is_complete(ages):
    """New or kept head; L_ld, L_er, stage 2's sum of both, LAE's square about a share of mae: in numpy."""
    logits = np.random.default_rng(4).normal(size=(3, 101)) * 2
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    predicted, low, high = p @ np.arange(101), *(ages.reshape(3, -1)[:, [0, -1]].T)
    error = np.maximum(np.maximum(low - predicted, predicted - high), 0)
    assert (error > 1).sum() >= 2
    constants = {"mae": 4.0, "er_weight": 1.0, "label_sigma": 1.0, "in_range": "uniform"}
    divergence = np.asarray(losses.label_divergence(jnp.asarray(logits), jnp.asarray(ages)))
    expected = {
        ("absolute_error", 0.0): error,
        ("lae_no_mse", 0.0): divergence,
        ("crt_kept_head", 0.0): divergence + error,
        ("crt", 0.0): divergence + error,
        ("lae", 0.0): divergence + (error - 4) ** 2,
        ("lae_new_head_mae", 0.0): divergence + error**2,
        ("lae_new_head_mae", 0.5): divergence + (error - 2) ** 2,
        ("lae_new_head_mae", 2.0): divergence + (error - 8) ** 2,
    }
    for (name, setting), value in expected.items():
        got = METHODS[name].loss(jnp.asarray(logits), jnp.asarray(ages), constants, setting)
        np.testing.assert_allclose(got, value, rtol=1e-4, err_msg=name)
    starts = {name: METHODS[name].start for name, _ in expected}
    new = {"crt": "new", "lae_new_head_mae": "new"}
    assert starts == {**dict.fromkeys(starts, "kept"), **new}
    assert {METHODS[name].order for name, _ in expected} == {"class_balanced"}


def test_every_loss_pulls_a_head_towards_the_ages():
    ages, middle = jnp.array([3.0, 20.0, 81.0]), 50.0  # of the empty head's logits
    constants = {
        "mae": 2.0,
        "er_weight": 1.0,
        "label_sigma": 1.0,
        **method_losses.of_training(method_losses.count_ages(np.repeat([3, 20, 50, 81], [3, 90, 50, 5]))),
    }
    constants = {**jax.tree.map(jnp.asarray, constants), "in_range": "uniform"}
    for name, method in TRAINED.items():
        slope = jax.grad(lambda x, m=method: m.loss(x, ages, constants, m.settings[-1]).mean())(jnp.zeros((3, 101)))
        assert (np.abs(slope).max(axis=1) > 1e-6).all(), name
        moved = losses.expected_age(-3 * slope / jnp.abs(slope).max(axis=1, keepdims=True))
        assert (np.abs(moved - ages) < np.abs(middle - ages) - 1).all(), (name, moved)


@pytest.mark.parametrize("name", MACHINERY.values())
def test_every_machinery_learns(bench, name):
    method = METHODS[name]
    setting = method.settings[-1]
    peak = {"balanced_mse": 0.02, "two_layers_c_mixup": 0.1}.get(name, 1.0)
    heads, bad = bench.train(method, [setting], [peak], [0])
    assert not bad.any()
    predicted = bench.predict(method, heads, bench.features[0], [setting])[0, 0]
    before = bench.predict(METHODS["stage2"], _alone(bench.own), bench.features[0], [0.0])[0, 0]
    np.testing.assert_allclose(before, 50.0, atol=1e-3)
    if method.trains == "scales":  # there is nothing to scale in an empty head
        np.testing.assert_allclose(predicted, before, atol=1e-3)
    else:
        assert np.abs(predicted - bench.ages).mean() < 0.75 * np.abs(before - bench.ages).mean()


@pytest.mark.parametrize(("name", "setting"), [("lae", 0.0), ("lds", 1.0)])
def test_exact_ages_in_the_form_of_ranges_train_the_same_head(bench, name, setting):
    as_ranges = dataclasses.replace(bench, ages=np.stack([bench.ages] * 2, axis=1))
    (exact, _), (ranges, _) = (one.train(METHODS[name], [setting], [0.5], [0], steps=6) for one in (bench, as_ranges))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max()), ranges, exact)
    orders = [one.orders("class_balanced", 0.5, (0, 1)) for one in (bench, as_ranges)]
    np.testing.assert_array_equal(*orders)
    for constant in ("counts", "smoothed"):
        np.testing.assert_array_equal(bench.constants[constant], as_ranges.constants[constant])


def test_lws_learns_factors_and_no_weights(bench):
    bench.own["fc"]["kernel"][:] = np.random.default_rng(3).normal(size=(8, 101))
    bench.config.optim.weight_decay = 0.0
    heads, _ = bench.train(METHODS["lws"], [0.0], [1.0], [0])
    ratio = heads["fc"]["kernel"][0, 0] / bench.own["fc"]["kernel"]
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:1], ratio.shape), rtol=1e-4)
    assert np.abs(ratio - 1).max() > 0.05
    np.testing.assert_array_equal(heads["fc"]["bias"][0, 0], bench.own["fc"]["bias"])


def test_powers_come_back_in_the_order_that_they_were_asked_in(bench):
    method = METHODS["lae_power"]
    heads, _ = bench.train(method, [0.5, 0.75, 0.25], [0.5, 0.5, 1.0], [0, 1], steps=5)
    alone, _ = bench.train(method, [0.75], [0.5], [1], steps=5)
    np.testing.assert_allclose(heads["fc"]["kernel"][1, 1], alone["fc"]["kernel"][0, 0], atol=1e-5)
    assert np.abs(heads["fc"]["kernel"][0] - heads["fc"]["kernel"][1]).max() > 1e-4


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(bench):
    bench.features[0, :100] = np.nan
    heads, bad = bench.train(METHODS["lae"], [0.0], [1.0], [0])
    assert 0 < bad[0, 0] <= bench.total_steps and np.isfinite(heads["fc"]["kernel"]).all()


def _alone(own):
    return {"fc": {name: leaf[None, None] for name, leaf in own["fc"].items()}}


def test_the_loss_of_lae_is_stage_3s():
    logits, ages = jnp.asarray(np.random.default_rng(0).normal(size=(4, 101))), jnp.array([3.0, 20.0, 50.0, 81.0])
    constants = {"mae": 2.0, "er_weight": 1.0, "label_sigma": 1.0, "in_range": "uniform"}
    np.testing.assert_array_equal(
        METHODS["lae"].loss(logits, ages, constants, 0.0), losses.classification_loss(logits, ages, 2.0)
    )
