"""Losses of ranges of ages: closed forms, and exact ages in the form of ranges, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lae_jax import losses, metrics

# Compiled whole: operation by operation, compiling takes most of this file's time.
label_distribution, regression_error = jax.jit(losses.label_distribution), jax.jit(losses.regression_error)
label_divergence = jax.jit(losses.label_divergence, static_argnames="in_range")
slope_of_divergence = jax.jit(jax.grad(lambda x, *rest: losses.label_divergence(x, *rest).sum()), static_argnums=3)

RNG = np.random.default_rng(0)
RANGES = np.array([[20, 29], [0, 2], [70, 100], [34.25, 34.25], [3, 3], [61, 62], [10.2, 10.8]], np.float32)
LOGITS = (RNG.normal(size=(7, 101)) * 2).astype(np.float32)
EXACT = np.array([0.0, 0.25, 37.25, 50.0, 99.75, 100.0], np.float32)


def softmax(logits):
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def bell(age, sigma):
    z = np.exp(-((np.arange(101) - age) ** 2) / (2 * sigma**2))
    return z / z.sum()


def ages_of(low, high):
    """The whole ages of a range and how likely each is, by hand: halved every five years from 70 on, if it is open."""
    inside = [age for age in range(101) if low <= age <= high] or [int(np.floor((low + high) / 2 + 0.5))]
    weights = np.array([0.5 ** (max(0, age - 70) / 5) if high >= 100 else 1.0 for age in inside])
    return inside, weights / weights.sum()


def uniform_target(low, high, sigma):
    if low == high:
        return bell(low, sigma)
    return sum(weight * bell(age, sigma) for age, weight in zip(*ages_of(low, high), strict=True))


@pytest.mark.parametrize("sigma", [0.5, 1.0, 3.0])
def test_the_target_of_a_range_is_uniform_and_blurred(sigma):
    ranges = RANGES.astype(np.float64)
    z = np.stack([uniform_target(*one, sigma) for one in ranges])
    np.testing.assert_allclose(label_distribution(RANGES, sigma), z, atol=1e-6)
    logits = LOGITS.astype(np.float64)
    log_p = np.log(softmax(logits))
    expected = np.sum(np.where(z > 0, z * (np.log(np.where(z > 0, z, 1)) - log_p), 0), axis=1)
    np.testing.assert_allclose(label_divergence(LOGITS, RANGES, sigma), expected, rtol=2e-5, atol=2e-5)
    gradient = slope_of_divergence(LOGITS, RANGES, sigma, "uniform")
    np.testing.assert_allclose(gradient, softmax(logits) - z, atol=2e-6)


def test_the_error_of_a_range_is_the_distance_to_it():
    y = (softmax(LOGITS.astype(np.float64)) * np.arange(101)).sum(axis=1)
    expected = np.maximum(0, np.maximum(RANGES[:, 0] - y, y - RANGES[:, 1]))
    found = regression_error(LOGITS, RANGES)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    inside = np.array([[0, 100], [34, 100]], np.float32)
    logits = np.stack([LOGITS[0], np.where(np.arange(101) == 50, 20, 0).astype(np.float32)])
    value, gradient = jax.jit(jax.value_and_grad(lambda x: losses.regression_error(x, inside).sum()))(logits)
    assert value == 0
    assert (np.asarray(gradient) == 0).all()
    total = jax.jit(losses.classification_loss)(LOGITS, RANGES, 2.0)
    parts = label_divergence(LOGITS, RANGES, 1.0) + (found - 2.0) ** 2
    np.testing.assert_allclose(total, parts, rtol=1e-6)


def test_the_models_own_distribution_inside_a_range_is_expectation_maximisation():
    """The E step by hand; and with a tiny sigma the gradient is that of -log P(range)."""
    wide, narrow = np.array([[20, 29], [70, 100], [0, 0.4]], np.float32), 0.1
    logits = LOGITS[:3].astype(np.float64)
    p = softmax(logits)
    z = []
    for row, (low, high) in zip(p, wide, strict=True):
        inside, _ = ages_of(low, high)
        q = row[inside] / row[inside].sum()
        z.append(sum(share * bell(age, 1.0) for age, share in zip(inside, q, strict=True)))
    expected = np.sum(np.stack(z) * (np.log(np.maximum(z, 1e-300)) - np.log(p)), axis=1)
    found = label_divergence(LOGITS[:3], wide, 1.0, in_range="model")
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)

    def surprise(x):
        log_p = jax.nn.log_softmax(x, axis=-1)
        ages = jnp.arange(101)
        inside = (ages >= wide[:, :1]) & (ages <= wide[:, 1:])
        return -jax.nn.logsumexp(log_p, axis=-1, where=inside).sum()

    of_range = jax.jit(jax.grad(surprise))(LOGITS[:3])
    em = slope_of_divergence(LOGITS[:3], wide, narrow, "model")
    np.testing.assert_allclose(em, of_range, atol=1e-6)
    # All the model's probability outside: finite, and pulled inside.
    far = np.tile(np.where(np.arange(101) == 90, 500, 0).astype(np.float32), (3, 1))
    value, slope = label_divergence(far, wide, 1.0, in_range="model"), slope_of_divergence(far, wide, 1.0, "model")
    assert np.isfinite(value).all() and np.isfinite(slope).all() and (np.asarray(slope)[0, 20:30] < 0).all()


@pytest.mark.parametrize("in_range", losses.IN_RANGE)
@pytest.mark.parametrize("jitted", [False, True])
def test_exact_ages_as_ranges_have_the_losses_of_exact_ages_bit_for_bit(in_range, jitted):
    logits, pairs = LOGITS[:6], np.stack([EXACT, EXACT], axis=1)

    def both(x, ages):
        found = [losses.representation_loss(x, ages, 1.0, 1.0, in_range)]
        if jitted:  # operation by operation, the other one takes as long again
            found.append(losses.classification_loss(x, ages, 1.71, 1.0, in_range))
        return found

    def total(x, ages):
        return sum(part.sum() for part in both(x, ages))

    value, slope = (jax.jit(f) if jitted else f for f in (both, jax.grad(total)))
    for one, other in zip(value(logits, EXACT), value(logits, pairs), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(slope(logits, EXACT), slope(logits, pairs))
    np.testing.assert_array_equal(label_distribution(EXACT), label_distribution(pairs))


def test_weights_of_a_range_are_the_same_on_the_device_and_on_the_host():
    rows = [*RANGES.tolist(), [0, 100], [85, 100], [99, 100], [5, 95], [70, 99]]
    found = losses.range_weights(jnp.asarray(rows, jnp.float32))
    np.testing.assert_allclose(found, metrics.range_weights(np.array(rows)), atol=1e-7)
    for row, (low, high) in zip(np.asarray(found), rows, strict=True):
        by_hand = np.zeros(101)
        inside, weights = ages_of(low, high)
        by_hand[inside] = weights
        np.testing.assert_allclose(row, by_hand, atol=1e-7)


def test_what_is_neither_an_age_nor_a_range_is_refused():
    with pytest.raises(ValueError, match=r"\(6, 2\) for ranges, not \(6, 3\)"):
        losses.representation_loss(LOGITS[:6], np.zeros((6, 3), np.float32))
    with pytest.raises(ValueError, match="in_range is 'models': it must be one of uniform, model"):
        losses.label_divergence(LOGITS, RANGES, 1.0, "models")
