"""Equations 1 to 4 and AM-softmax against hand-worked numbers, numpy statements and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lae_jax import losses

# Compiled whole: operation by operation, compiling takes most of this file's time.
label_distribution = jax.jit(losses.label_distribution, static_argnames="num_ages")
expected_age, label_divergence = jax.jit(losses.expected_age), jax.jit(losses.label_divergence)
regression_error, am_softmax = jax.jit(losses.regression_error), jax.jit(losses.am_softmax_loss)
representation_loss, classification_loss = jax.jit(losses.representation_loss), jax.jit(losses.classification_loss)

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(6, 101)) * 2
AGES = np.array([0.0, 0.25, 37.25, 50.0, 99.75, 100.0])  # exact in float32


def gaussian(ages, sigma=1.0, num_ages=101):
    z = np.exp(-((np.arange(num_ages) - np.asarray(ages, np.float64)[:, None]) ** 2) / (2 * sigma**2))
    return z / z.sum(axis=1, keepdims=True)


def softmax(logits):
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def numpy_parts(logits, ages, sigma=1.0):
    """L_ld with 0 log 0 = 0, and L_er, as the paper writes them."""
    z, p = gaussian(ages, sigma), softmax(logits)
    terms = np.where(z > 0, z * (np.log(np.where(z > 0, z, 1)) - np.log(p)), 0)
    return terms.sum(axis=1), np.abs(ages - (np.arange(101) * p).sum(axis=1))


def numeric_gradient(f, x, eps=1e-5):
    """Fourth-order central differences of a scalar function, every entry in one call."""
    steps = eps * np.eye(x.size).reshape(-1, *x.shape)
    far_below, below, above, far_above = jax.jit(jax.vmap(jax.vmap(f)))(
        np.stack([x - 2 * steps, x - steps, x + steps, x + 2 * steps])
    )
    return ((far_below - far_above + 8 * (above - below)) / (12 * eps)).reshape(x.shape)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 3.0])
def test_label_rows_are_a_gaussian_that_sums_to_one(sigma):
    z = np.asarray(label_distribution(AGES, sigma=sigma))
    assert z.shape == (6, 101) and z.dtype == np.float32
    np.testing.assert_allclose(z.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(z, gaussian(AGES, sigma), atol=1e-6)


def test_label_distribution_by_hand():
    # e^-0.5 = 0.60653, e^-2 = 0.13534: y = 0 keeps one side of the bell, y = 1 of three labels is symmetric.
    z = label_distribution(jnp.array([0.0, 1.0]), num_ages=3)
    first = np.array([1, 0.60653066, 0.13533528]) / 1.74186594
    second = np.array([0.60653066, 1, 0.60653066]) / 2.21306132
    np.testing.assert_allclose(z, [first, second], atol=1e-6)


def test_label_distribution_far_outside_the_labels_still_sums_to_one():
    z = np.asarray(label_distribution(np.array([-40.0, 150.0])))
    np.testing.assert_allclose(z.sum(axis=1), 1, atol=1e-6)
    assert z[0].argmax() == 0 and z[1].argmax() == 100


def test_expected_age_by_hand_and_never_rounded():
    logits = np.log([[0.2, 0.3, 0.5], [1.0, 1.0, 2.0]])
    np.testing.assert_allclose(expected_age(logits), [1.3, 1.25], atol=1e-6)
    assert expected_age(jnp.zeros((1, 101)))[0] == pytest.approx(50.0, abs=1e-4)


def test_losses_by_hand_with_two_labels():
    # y = 0: z = (1, e^-0.5) / 1.60653 = (0.622459, 0.377541); p = (1/4, 3/4): y_hat = 0.75.
    # L_ld = 0.622459 ln(0.622459 / 0.25) + 0.377541 ln(0.377541 / 0.75) = 0.567818 - 0.259142 = 0.308676.
    logits, ages = np.log([[1.0, 3.0]]), np.array([0.0])
    np.testing.assert_allclose(label_divergence(logits, ages), [0.308676], atol=1e-5)
    np.testing.assert_allclose(regression_error(logits, ages), [0.75], atol=1e-6)
    np.testing.assert_allclose(representation_loss(logits, ages, 1.0), [1.058676], atol=1e-5)
    np.testing.assert_allclose(representation_loss(logits, ages, 2.0), [1.808676], atol=1e-5)
    np.testing.assert_allclose(classification_loss(logits, ages, 0.25), [0.558676], atol=1e-5)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 3.0])
def test_losses_equal_a_numpy_statement(sigma):
    divergence, error = numpy_parts(LOGITS, AGES, sigma)
    with jax.enable_x64(True):
        logits, ages = jnp.asarray(LOGITS), jnp.asarray(AGES)
        loss = representation_loss(logits, ages, er_weight=0.7, label_sigma=sigma)
        assert loss.dtype == jnp.float64
        np.testing.assert_allclose(loss, divergence + 0.7 * error, rtol=1e-12)
        loss = classification_loss(logits, ages, 1.71, label_sigma=sigma)
        np.testing.assert_allclose(loss, divergence + (error - 1.71) ** 2, rtol=1e-12)
    divergence, error = numpy_parts(LOGITS, AGES)
    loss = representation_loss(jnp.asarray(LOGITS), jnp.asarray(AGES))
    assert loss.shape == (6,) and loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, divergence + error, rtol=1e-5)


def test_divergence_is_zero_at_the_target_and_positive_elsewhere():
    z = gaussian(AGES)
    at_target = np.log(np.maximum(z, 1e-300))
    with jax.enable_x64(True):
        np.testing.assert_allclose(label_divergence(jnp.asarray(at_target), jnp.asarray(AGES)), 0, atol=1e-12)
        ages = jnp.asarray(RNG.uniform(0, 100, size=200))
        assert (label_divergence(jnp.asarray(RNG.normal(size=(200, 101))), ages) > 0).all()


def test_stage_3_is_least_where_the_error_is_mae():
    # A bell about 30 + shift: the error is the shift.
    shifts = np.linspace(0, 6, 601)
    with jax.enable_x64(True):
        ages = jnp.full(len(shifts), 30.0)
        logits = jnp.asarray(-((np.arange(101) - 30.0 - shifts[:, None]) ** 2) / 2)
        loss = classification_loss(logits, ages, 1.7) - label_divergence(logits, ages)
        loss = np.asarray(loss)
    assert shifts[np.argmin(loss)] == pytest.approx(1.7, abs=1e-6)
    assert loss[0] == pytest.approx(1.7**2, abs=1e-6)  # an error of 0 costs mae^2: it is pulled up
    assert np.min(loss) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("name", ["representation_loss", "classification_loss"])
def test_gradients_equal_finite_differences(name):
    logits, ages = RNG.normal(size=(4, 12)) * 2, np.array([0.0, 4.25, 7.0, 11.0])

    def total(x):
        return getattr(losses, name)(x, ages, 1.71).sum()

    with jax.enable_x64(True):
        expected = numeric_gradient(total, logits)
        np.testing.assert_allclose(jax.jit(jax.grad(total))(logits), expected, rtol=1e-6, atol=1e-8)


def test_divergence_gradient_is_p_minus_z():
    with jax.enable_x64(True):
        gradient = jax.jit(jax.grad(lambda x, y: label_divergence(x, y).sum()))(LOGITS, AGES)
        np.testing.assert_allclose(gradient, softmax(LOGITS) - gaussian(AGES), atol=1e-12)


def test_extreme_logits_and_underflow_stay_finite():
    logits, ages = np.zeros((4, 101), np.float32), np.array([97.0, 97.0, 0.0, 100.0], np.float32)
    logits[0, 3], logits[1, 97], logits[2], logits[3, 0] = 1e4, -1e4, 1e4, 1e4
    assert (gaussian(ages).astype(np.float32) == 0).any()  # z does underflow

    def total(x, y):
        values = losses.representation_loss(x, y) + losses.classification_loss(x, y, 1.71)
        return values.sum(), values

    gradients, values = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))(logits, ages)
    for result in (values, *gradients):
        assert np.isfinite(result).all()


def test_half_precision_is_widened():
    half = jax.ShapeDtypeStruct((6, 101), jnp.bfloat16)
    one_each = jax.ShapeDtypeStruct((6,), jnp.bfloat16), jax.ShapeDtypeStruct((6,), jnp.int32)
    for result in (
        jax.eval_shape(losses.label_distribution, one_each[0]),
        jax.eval_shape(losses.expected_age, half),
        jax.eval_shape(losses.representation_loss, half, one_each[0]),
        jax.eval_shape(losses.classification_loss, half, one_each[1], 1.71),
        jax.eval_shape(losses.am_softmax_loss, half, half, one_each[1]),
    ):
        assert result.dtype == jnp.float32


def test_shapes_that_would_broadcast_are_refused():
    with pytest.raises(ValueError, match=r"shape \(6,\)"):
        losses.representation_loss(LOGITS, AGES[:, None])
    with pytest.raises(ValueError, match=r"\(B,\)"):
        losses.label_distribution(AGES[:, None])
    with pytest.raises(ValueError, match="two dimensions"):
        losses.expected_age(LOGITS[0])
    with pytest.raises(ValueError, match="do not match"):
        losses.am_softmax_loss(np.ones((2, 3)), np.ones((5, 4)), np.array([0, 1]))


EMBEDDINGS, WEIGHTS, LABELS = RNG.normal(size=(5, 8)) * 3, RNG.normal(size=(7, 8)), np.array([0, 6, 3, 3, 2], np.int32)


def numpy_am_softmax(embeddings, weights, labels, scale, margin):
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (embeddings, weights)]
    logits = unit[0] @ unit[1].T
    logits[np.arange(len(labels)), labels] -= margin
    return -np.log(softmax(scale * logits)[np.arange(len(labels)), labels])


@pytest.mark.parametrize(("scale", "margin"), [(64.0, 0.35), (30.0, 0.2), (1.0, 0.0)])
def test_am_softmax_equals_a_numpy_statement(scale, margin):
    expected = numpy_am_softmax(EMBEDDINGS, WEIGHTS, LABELS, scale, margin)
    loss = am_softmax(EMBEDDINGS, WEIGHTS, LABELS, scale, margin)
    assert loss.shape == (5,) and loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-5)
    with jax.enable_x64(True):
        wide = am_softmax(EMBEDDINGS, WEIGHTS, LABELS, scale, margin)
        np.testing.assert_allclose(wide, expected, rtol=1e-10)


def test_am_softmax_by_hand():
    # cos = (1, 0), s = 2, m = 0.5: logits (1, 0), loss = ln(1 + e^-1) = 0.313262; the other label: (2, -1), 3.048587.
    loss = am_softmax(np.array([[5.0, 0.0]] * 2), np.eye(2) * 0.1, np.array([0, 1], np.int32), 2.0, 0.5)
    np.testing.assert_allclose(loss, [0.313262, 3.048587], atol=1e-5)


def test_am_softmax_without_margin_is_a_scaled_softmax_and_a_margin_costs():
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (EMBEDDINGS, WEIGHTS)]
    expected = -np.log(softmax(10 * unit[0] @ unit[1].T))[np.arange(5), LABELS]
    plain = am_softmax(EMBEDDINGS, WEIGHTS, LABELS, 10.0, 0.0)
    np.testing.assert_allclose(plain, expected, rtol=1e-5)
    assert np.all(am_softmax(EMBEDDINGS, WEIGHTS, LABELS, 10.0, 0.1) > np.asarray(plain))


def test_am_softmax_does_not_see_lengths():
    loss = am_softmax(EMBEDDINGS, WEIGHTS, LABELS, 64.0, 0.35)
    np.testing.assert_allclose(am_softmax(EMBEDDINGS * 100, WEIGHTS / 100, LABELS, 64.0, 0.35), loss, rtol=1e-4)


@pytest.mark.parametrize("place", [0, 1])
def test_am_softmax_gradients_equal_finite_differences(place):
    inputs = [EMBEDDINGS.copy(), WEIGHTS.copy()]  # jax keeps the float64 form of an array that a jit closed over

    def total(x):
        return losses.am_softmax_loss(*inputs[:place], x, *inputs[place + 1 :], LABELS, scale=8.0).sum()

    with jax.enable_x64(True):
        gradient = jax.jit(jax.grad(total))(inputs[place])
        np.testing.assert_allclose(gradient, numeric_gradient(total, inputs[place]), rtol=1e-6, atol=1e-8)


def test_am_softmax_of_zero_vectors_has_a_finite_gradient():
    embeddings, weights = np.zeros((5, 8), np.float32), WEIGHTS.astype(np.float32)
    weights[0] = 0
    gradient = jax.jit(jax.grad(lambda e, w: losses.am_softmax_loss(e, w, LABELS).sum(), argnums=(0, 1)))
    for g in gradient(embeddings, weights):
        assert np.isfinite(g).all()
