"""Losses and weights against the papers' closed forms, written out in numpy or taken from scipy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage
from scipy import stats as distributions
from scipy.special import softmax

from lae_jax import losses
from lae_jax.stages import method_losses

AGES = np.array([0.0, 7.3, 25.0, 25.4, 63.0, 100.0])


def case(seed=0):
    rng = np.random.default_rng(seed)
    counts = np.floor(300 * np.exp(-((np.arange(101) - 28) ** 2) / 400))
    logits = rng.normal(size=(len(AGES), 101)) * 2
    return logits, counts


def targets():
    z = np.exp(-((np.arange(101) - AGES[:, None]) ** 2) / 2)
    return z / z.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
def test_balanced_softmax_and_logit_adjustment_are_the_papers(tau):
    logits, counts = case()
    n, z = np.maximum(counts, 1), targets()
    p = n**tau * np.exp(logits)
    p /= p.sum(axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = np.where(z > 0, z * np.log(z / p), 0.0).sum(axis=1)
    got = method_losses.adjusted_divergence(jnp.asarray(logits), jnp.asarray(AGES), jnp.asarray(counts), tau)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    if tau == 0:
        np.testing.assert_allclose(got, losses.label_divergence(jnp.asarray(logits), jnp.asarray(AGES)), rtol=1e-5)


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_power_weights_are_inverse_frequencies_of_mean_one(power):
    _, counts = case()
    weights = np.asarray(method_losses.power_weights(jnp.asarray(counts), power))
    assert (counts * weights).sum() / counts.sum() == pytest.approx(1, rel=1e-5)
    assert weights[28] / weights[50] == pytest.approx((counts[50] / counts[28]) ** power, rel=1e-4)
    assert weights[100] == weights.max() and np.isfinite(weights).all()
    if power == 1:  # every age that is there has the same share
        there = counts > 0
        np.testing.assert_allclose((counts * weights)[there], counts.sum() / there.sum(), rtol=1e-4)


@pytest.mark.parametrize("beta", [0.9, 0.999, 0.99999])
def test_effective_number_is_cui_et_al(beta):
    _, counts = case()
    n = np.maximum(counts, 1)
    expected = (1 - beta) / (1 - np.float64(beta) ** n)
    expected *= counts.sum() / (counts * expected).sum()
    got = method_losses.effective_weights(jnp.asarray(counts), beta)
    np.testing.assert_allclose(got, expected, rtol=3e-3 if beta > 0.9999 else 1e-4)


def test_lds_is_a_convolution_with_a_gaussian():
    _, counts = case()
    kernel = distributions.norm.pdf(np.arange(-2, 3), scale=2.0)
    expected = ndimage.convolve1d(counts, kernel / kernel.sum(), mode="constant")
    smoothed = method_losses.smoothed_counts(counts)
    np.testing.assert_allclose(smoothed, expected)
    weights = np.asarray(method_losses.lds_weights(jnp.asarray(counts), jnp.asarray(smoothed), 0.5))
    assert weights[28] / weights[45] == pytest.approx((smoothed[45] / smoothed[28]) ** 0.5, rel=1e-4)
    assert (counts * weights).sum() / counts.sum() == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("noise", [1.0, 5.0])
def test_balanced_mse_is_the_negative_log_of_the_papers_ratio(noise):
    _, counts = case()
    predictions = np.array([3.0, 10.0, 24.0, 31.0, 60.0, 85.0])
    frequency = counts / counts.sum()
    density = distributions.norm.pdf(np.arange(101)[None, :], predictions[:, None], noise)
    # Logarithms of scipy's, whose densities underflow.
    log_ratio = distributions.norm.logpdf(AGES, predictions, noise) - np.log(density @ frequency)
    inputs = (jnp.asarray(predictions), jnp.asarray(AGES), jnp.asarray(counts, jnp.float32))
    got = method_losses.balanced_mse(*inputs, noise)
    np.testing.assert_allclose(got, -2 * noise**2 * log_ratio, rtol=1e-4, atol=1e-3)
    gradient = jax.grad(lambda p: method_losses.balanced_mse(p, *inputs[1:], noise).sum())(inputs[0])
    assert np.isfinite(gradient).all()


def test_balanced_mse_of_a_flat_prior_is_the_squared_error_up_to_a_constant():
    ages, predictions = jnp.array([40.0, 50.0, 60.0]), jnp.array([45.0, 50.0, 52.0])
    got = method_losses.balanced_mse(predictions, ages, jnp.ones(101), 2.0)
    np.testing.assert_allclose(got - got[1], (predictions - ages) ** 2, atol=1e-3)


def test_features_get_the_smoothed_mean_and_variance_of_their_age():
    rng = np.random.default_rng(0)
    classes = np.repeat([20, 21, 22, 40, 60], [50, 5, 50, 30, 1])
    features = rng.normal(size=(len(classes), 3)) * (1 + classes[:, None] / 20) + classes[:, None]
    tables = method_losses.smooth_statistics(features, classes)
    changed = features * tables["scale"][classes] + tables["shift"][classes]

    weights = np.exp(-((np.arange(101)[:, None] - np.arange(101)) ** 2) / 8)
    weights[np.abs(np.arange(101)[:, None] - np.arange(101)) > 2] = 0
    known = [20, 21, 22]
    mean = np.array([features[classes == k].mean(axis=0) for k in known])
    variance = np.array([features[classes == k].var(axis=0, ddof=1) for k in known])
    share = weights[21, known] / weights[21, known].sum()
    np.testing.assert_allclose(changed[classes == 21].mean(axis=0), share @ mean, rtol=1e-4)
    np.testing.assert_allclose(changed[classes == 21].var(axis=0, ddof=1), share @ variance, rtol=1e-4)
    for alone in (40, 60):
        np.testing.assert_allclose(changed[classes == alone], features[classes == alone], rtol=1e-4)


def test_a_class_by_itself_is_counted_inside_the_table():
    counts = method_losses.count_ages(np.array([-1, 0, 5, 5, 130]))
    assert counts[0] == 2 and counts[5] == 2 and counts[100] == 1 and counts.sum() == 5
    np.testing.assert_array_equal(
        method_losses.of_age(jnp.arange(101), jnp.array([-3.0, 4.5, 4.4, 200.0])), [0, 5, 4, 100]
    )


def test_softmax_of_the_prior_is_the_frequency():
    _, counts = case()
    n = np.maximum(counts, 1)
    np.testing.assert_allclose(softmax(method_losses.log_prior(jnp.asarray(counts))), n / n.sum(), rtol=1e-4)
