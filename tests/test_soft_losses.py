"""Losses of soft labels, a spread for each image and a teacher's distribution: closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lae_jax import losses, stages
from lae_jax.configs import common
from lae_jax.runtime.errors import InputError
from lae_jax.runtime.parallel import AXIS
from lae_jax.stages import method_losses

RNG = np.random.default_rng(0)
LOGITS = (RNG.normal(size=(6, 101)) * 2).astype(np.float32)
AGES = np.array([0.0, 0.25, 37.25, 50.0, 99.75, 100.0], np.float32)
SIGMA = np.array([1.0, 4.5, 2.25, 1.0, 9.75, 100.0], np.float32)

label_divergence = jax.jit(losses.label_divergence)


def softmax(logits):
    e = np.exp(np.float64(logits) - np.float64(logits).max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def bells(ages, sigma):
    z = np.exp(-((np.arange(101) - np.float64(ages)[:, None]) ** 2) / (2 * np.float64(sigma)[:, None] ** 2))
    return z / z.sum(axis=1, keepdims=True)


def divergence(z, p):
    return np.sum(np.where(z > 0, z * (np.log(np.where(z > 0, z, 1)) - np.log(p)), 0), axis=1)


def test_the_divergence_from_a_gaussian_of_each_images_spread():
    z, p = bells(AGES, SIGMA), softmax(LOGITS)
    np.testing.assert_allclose(losses.label_distribution(AGES, SIGMA), z, atol=1e-6)
    np.testing.assert_allclose(label_divergence(LOGITS, AGES, SIGMA), divergence(z, p), rtol=2e-5, atol=2e-5)
    gradient = jax.grad(lambda x: losses.label_divergence(x, AGES, SIGMA).sum())(LOGITS)
    np.testing.assert_allclose(gradient, p - z, atol=2e-6)
    # The losses of both stages and of logit adjustment pass it on.
    error = np.abs(AGES - p @ np.arange(101))
    np.testing.assert_allclose(
        losses.representation_loss(LOGITS, AGES, 2.0, SIGMA), divergence(z, p) + 2 * error, rtol=2e-5
    )
    np.testing.assert_allclose(
        losses.classification_loss(LOGITS, AGES, 3.0, SIGMA), divergence(z, p) + (error - 3) ** 2, rtol=2e-4
    )
    counts = np.arange(1.0, 102.0)
    adjusted = softmax(LOGITS + np.log(counts / counts.sum()))
    found = method_losses.adjusted_divergence(LOGITS, AGES, jnp.asarray(counts, jnp.float32), 1.0, SIGMA, "uniform")
    np.testing.assert_allclose(found, divergence(z, adjusted), rtol=1e-4)


def test_labels_without_a_spread_have_the_same_loss_bit_for_bit_beside_labels_with_one():
    plain = np.asarray(jax.jit(lambda x, y: losses.label_divergence(x, y, 1.0))(LOGITS, AGES))
    mixed = np.asarray(label_divergence(LOGITS, AGES, SIGMA))
    exact = SIGMA == 1
    assert plain[exact].tobytes() == mixed[exact].tobytes() and (plain[~exact] != mixed[~exact]).all()


def test_a_range_is_blurred_by_its_own_spread():
    ranges = np.array([[20, 29], [34.25, 34.25], [70, 100]], np.float32)
    sigma, p = np.array([1.0, 3.0, 6.0], np.float32), softmax(LOGITS[:3])
    weights = [np.ones(10) / 10, None, 0.5 ** (np.arange(31) / 5) / (0.5 ** (np.arange(31) / 5)).sum()]
    z = bells([0, 34.25, 0], [1, 3, 1])
    for row, first, last in ((0, 20, 29), (2, 70, 100)):
        whole = np.arange(first, last + 1)
        z[row] = weights[row] @ bells(whole, np.full(len(whole), sigma[row]))
    np.testing.assert_allclose(losses.label_distribution(ranges, sigma), z, atol=1e-6)
    np.testing.assert_allclose(label_divergence(LOGITS[:3], ranges, sigma), divergence(z, p), rtol=2e-5, atol=2e-5)
    same = label_divergence(LOGITS[:3], ranges, np.full(3, 2.0, np.float32))
    np.testing.assert_allclose(same, label_divergence(LOGITS[:3], ranges, 2.0), rtol=1e-6)


def test_distillation_is_the_divergence_at_the_temperature_times_its_square():
    teacher = (RNG.normal(size=(6, 101)) * 3).astype(np.float32)
    for temperature in (0.5, 1.0, 4.0):
        q, p = softmax(teacher / temperature), softmax(LOGITS / temperature)
        found = losses.distillation(LOGITS, teacher, temperature)
        np.testing.assert_allclose(found, temperature**2 * divergence(q, p), rtol=2e-5)
        slope, to_teacher = jax.grad(lambda x, t: losses.distillation(x, t, temperature).sum(), (0, 1))(LOGITS, teacher)  # noqa: B023
        np.testing.assert_allclose(slope, temperature * (p - q), atol=1e-5)
        assert not np.asarray(to_teacher).any()
    np.testing.assert_allclose(losses.distillation(teacher, teacher, 2.0), 0, atol=1e-5)
    with pytest.raises(ValueError, match=r"one shape, not \(6, 101\) and \(5, 101\)"):
        losses.distillation(LOGITS, teacher[:5])


def test_with_cures_lds_weights_the_teachers_term_and_dist_loss_is_added_outside():
    teacher = (RNG.normal(size=(6, 101)) * 3).astype(np.float32)
    counts = method_losses.of_training(np.arange(1.0, 102.0))
    constants = {"er_weight": 1.0, "label_sigma": 1.0, "in_range": "uniform", **counts}
    constants |= {"teacher_logits": teacher, "teacher_weight": 0.25, "teacher_temperature": 2.0}
    table = method_losses.lds_weights(counts["counts"], counts["smoothed"], 0.5)
    weights = table[np.round(AGES).astype(int)]
    assert weights.max() > 1.5 * weights.min()
    own, also = stages.REPRESENT.loss(LOGITS, AGES, constants), losses.distillation(LOGITS, teacher, 2.0)

    def of(name, stage):
        cure = stages.cures.chosen({**common.get_config().cure, "name": name}, 1)
        features = np.zeros((len(AGES), 4), np.float32)

        def loss(logits, ages, features):
            return cure.losses(stage.loss, logits, features, ages, constants, {}, jax.random.key(0))

        mapped = jax.vmap(loss, axis_name=AXIS)
        return np.asarray(mapped(LOGITS[None], AGES[None], features[None]))[0]

    distilled = stages.with_teacher(stages.REPRESENT)
    np.testing.assert_allclose(of("lds", distilled), weights * (0.75 * own + 0.25 * also), rtol=1e-5)
    distance = of("dist_loss", stages.REPRESENT) - own
    assert np.abs(distance).max() > 0.1
    np.testing.assert_allclose(of("dist_loss", distilled), 0.75 * own + 0.25 * also + distance, rtol=1e-4, atol=1e-4)


def test_a_stage_with_a_teacher_mixes_its_own_loss_with_the_distillation():
    teacher = (RNG.normal(size=(6, 101)) * 3).astype(np.float32)
    constants = {"mae": 4.0, "er_weight": 1.0, "label_sigma": 1.0, "in_range": "uniform"}
    constants |= {"teacher_logits": teacher, "teacher_weight": 0.25, "teacher_temperature": 2.0}
    for stage in (stages.REPRESENT, stages.CLASSIFY):
        found = stages.with_teacher(stage).loss(LOGITS, AGES, constants)
        own, also = stage.loss(LOGITS, AGES, constants), losses.distillation(LOGITS, teacher, 2.0)
        np.testing.assert_allclose(found, 0.75 * own + 0.25 * also, rtol=1e-6)
    with pytest.raises(InputError, match="config.teacher belongs to stages 2 and 3, not to pretrain"):
        stages.with_teacher(stages.PRETRAIN)
    with pytest.raises(InputError, match="config.teacher: config.classify.method mixes the features"):
        stages.with_teacher(stages.with_method(stages.CLASSIFY, "c_mixup", 1.0))
