"""The losses of the three stages: equations 1 to 4, AM-softmax and its successors' margins, distillation.

B = batch, K = 101 ages (labels 0..100), D = embedding, C = identities. Each loss returns one value per example, (B,);
the caller weights and averages them. The arithmetic is float32 or wider for any input; gradients are finite. Shapes are
checked when a function is traced, because ages of shape (B, 1) would otherwise broadcast silently to (B, B).

Labels may be ranges of ages. `ages` is then (B, 2): the first and the last age of each, both inside. Where these are
equal, the age is exact, and its losses are those of (B,) ages, bit for bit. A range that ends at 100 has no upper end.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

# A vector whose squared length is below this counts as zero, which keeps the gradient of its direction finite.
_MIN_SQUARED_NORM = 1e-12
_MIN_SQUARED_SINE = 1e-12
IN_RANGE = ("uniform", "model")  # how a label distribution is spread over a range
# The ages of a range without an upper end are weighted as in a population (`metrics.range_weights` has the same).
OPEN_END, OLD, HALVING = 100, 70, 5.0


def label_distribution(ages: jax.Array, sigma: float | jax.Array = 1.0, num_ages: int = 101) -> jax.Array:
    """Returns the target z of section 2.1, a Gaussian about each age.

    `z_k ~ exp(-(k - y)^2 / (2 sigma^2))` for k = 0..num_ages - 1. The paper writes the density's factor
    1 / (sqrt(2 pi) sigma). Here each row is normalised, which differs only near 0 and 100, where the Gaussian is cut
    off. The target of a range is the mean of the targets of its whole ages, weighted by `range_weights`.

    Args:
      ages: (B,) years, or (B, 2) ranges.
      sigma: Standard deviation in years, of all labels or (B,) of each.
      num_ages: Number of ages.

    Returns:
      (B, num_ages) probabilities; each row sums to 1.

    Raises:
      ValueError: `ages` has another shape.
    """
    ages = _labels(ages)
    if ages.ndim == 1:
        return jnp.exp(_log_label_distribution(ages, sigma, num_ages))
    exact = jnp.exp(_log_label_distribution(ages[:, 0], sigma, num_ages))
    return jnp.where(_is_exact(ages)[:, None], exact, _blurred(range_weights(ages, num_ages), sigma))


def range_weights(ranges: jax.Array, num_ages: int = 101) -> jax.Array:
    """Returns how likely each whole age is under the label alone.

    All ages of a range are equally likely. In a range without an upper end they are as likely as in a population, in
    which, roughly as in the world's, from 70 on each five years halve the number of people.

    Args:
      ranges: (B, 2), first and last age; a range without a whole age inside stands for the whole age nearest its
        middle.
      num_ages: Number of ages.

    Returns:
      (B, num_ages); each row sums to 1.
    """
    ages = jnp.arange(num_ages, dtype=ranges.dtype)[None, :]
    low, high = ranges[:, :1], ranges[:, 1:]
    inside = (ages >= low) & (ages <= high)
    inside |= ~inside.any(axis=1, keepdims=True) & (ages == jnp.floor((low + high) / 2 + 0.5))
    population = jnp.where(high >= OPEN_END, 0.5 ** (jnp.maximum(ages - OLD, 0.0) / HALVING), 1.0)
    weights = jnp.where(inside, population, 0.0)
    return weights / weights.sum(axis=1, keepdims=True)


def expected_age(logits: jax.Array) -> jax.Array:
    """Returns the predicted age `y_hat = sum_k k p_k`, with p = softmax(logits) and k from 0.

    Args:
      logits: (B, K).

    Returns:
      (B,) years, not rounded.

    Raises:
      ValueError: `logits` does not have two dimensions.
    """
    probabilities = jax.nn.softmax(_matrix(logits, "logits"), axis=-1)
    ages = jnp.arange(probabilities.shape[-1], dtype=probabilities.dtype)
    # Not a dot product: accelerators compute one in bfloat16 or TF32, which costs a tenth of a year.
    return jnp.sum(probabilities * ages[None, :], axis=-1)


def label_divergence(
    logits: jax.Array, ages: jax.Array, label_sigma: float | jax.Array = 1.0, in_range: str = "uniform"
) -> jax.Array:
    """Returns equation 1, `L_ld = sum_k z_k log(z_k / p_k)`.

    0 log 0 = 0: z underflows about 14 years from y, but log z and log p stay finite, so the product is 0 there, and so
    is its gradient.

    Args:
      logits: (B, K).
      ages: (B,) years, or (B, 2) ranges.
      label_sigma: Standard deviation of the label distribution in years, 1 in the paper; (B,) if each image has its
        own.
      in_range: How z is spread over the ages of a range, before the Gaussian blurs it: 'uniform' (`range_weights`), or
        'model': as the model's own p inside the range, which counts as a constant. That is the E step of expectation
        maximisation, and the gradient is the M step's.

    Returns:
      (B,) nats.

    Raises:
      ValueError: The shapes do not match, or `in_range` is unknown.
    """
    logits = _matrix(logits, "logits")
    ages, num_ages = _aligned(ages, logits), logits.shape[-1]
    log_p = jax.nn.log_softmax(logits, axis=-1)
    log_z = _log_label_distribution(ages if ages.ndim == 1 else ages[:, 0], label_sigma, num_ages)
    exact = jnp.sum(jnp.exp(log_z) * (log_z - log_p), axis=-1)
    if in_range not in IN_RANGE:
        raise ValueError(f"in_range is {in_range!r}: it must be one of {', '.join(IN_RANGE)}")
    if ages.ndim == 1:
        return exact
    weights = range_weights(ages, num_ages)
    if in_range == "model":
        # The softmax of the logits inside: p itself may be 0 on the whole range.
        weights = jax.lax.stop_gradient(jax.nn.softmax(logits, axis=-1, where=weights > 0))
    z = _blurred(weights, label_sigma)
    entropy = jnp.sum(z * jnp.log(jnp.where(z > 0, z, 1.0)), axis=-1)
    return jnp.where(_is_exact(ages), exact, entropy - jnp.sum(z * log_p, axis=-1))


def regression_error(logits: jax.Array, ages: jax.Array) -> jax.Array:
    """Returns equation 2, `L_er = |y - y_hat|`; its gradient at 0 is 0. For a range: the distance to it, 0 inside.

    Args:
      logits: (B, K).
      ages: (B,) years, or (B, 2) ranges.

    Returns:
      (B,) years.

    Raises:
      ValueError: The shapes do not match.
    """
    predictions = expected_age(logits)
    ages = _aligned(ages, predictions)
    if ages.ndim == 2:
        # The age of the range that is nearest to the prediction: where it is exact, the age itself.
        ages = jnp.where(_is_exact(ages), ages[:, 0], jnp.clip(predictions, ages[:, 0], ages[:, 1]))
    return jnp.abs(ages - predictions)


def representation_loss(
    logits: jax.Array,
    ages: jax.Array,
    er_weight: float = 1.0,
    label_sigma: float | jax.Array = 1.0,
    in_range: str = "uniform",
) -> jax.Array:
    """Returns equation 3, the loss of stage 2: `L_fe = L_ld + lambda L_er`.

    Args:
      logits: (B, K).
      ages: (B,) years, or (B, 2) ranges.
      er_weight: The paper's lambda, 1 in all its experiments.
      label_sigma: As in `label_divergence`.
      in_range: As in `label_divergence`.

    Returns:
      (B,).

    Raises:
      ValueError: The shapes do not match.
    """
    return label_divergence(logits, ages, label_sigma, in_range) + er_weight * regression_error(logits, ages)


def classification_loss(
    logits: jax.Array,
    ages: jax.Array,
    mae: float | jax.Array,
    label_sigma: float | jax.Array = 1.0,
    in_range: str = "uniform",
) -> jax.Array:
    """Returns equation 4, the loss of stage 3: `L_cl = L_ld + (L_er - mae)^2`.

    The square is taken for each image, before any mean. It therefore pulls the error of every image towards `mae`:
    small errors up and large ones down.

    Args:
      logits: (B, K).
      ages: (B,) years, or (B, 2) ranges.
      mae: Equation 5, a scalar in years: the mean of `L_er` of stage 2 on the validation set.
      label_sigma: As in `label_divergence`.
      in_range: As in `label_divergence`.

    Returns:
      (B,).

    Raises:
      ValueError: The shapes do not match.
    """
    return label_divergence(logits, ages, label_sigma, in_range) + (regression_error(logits, ages) - mae) ** 2


def distillation(logits: jax.Array, teacher_logits: jax.Array, temperature: float = 1.0) -> jax.Array:
    """Returns T^2 KL(q || p), with q and p the softmax of the teacher's and the model's logits / T.

    Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, section 2: with T^2 the gradient
    T (p - q) keeps its size when T changes. The teacher gets no gradient.

    Args:
      logits: (B, K).
      teacher_logits: (B, K).
      temperature: T, above 0.

    Returns:
      (B,) nats times T^2.

    Raises:
      ValueError: The shapes do not match.
    """
    logits, teacher_logits = _matrix(logits, "logits"), _matrix(teacher_logits, "teacher_logits")
    if logits.shape != teacher_logits.shape:
        raise ValueError(
            f"logits and teacher_logits should have one shape, not {logits.shape} and {teacher_logits.shape}"
        )
    log_q = jax.lax.stop_gradient(jax.nn.log_softmax(teacher_logits / temperature, axis=-1))
    log_p = jax.nn.log_softmax(logits / temperature, axis=-1)
    return temperature**2 * jnp.sum(jnp.exp(log_q) * (log_q - log_p), axis=-1)


def am_softmax_loss(
    embeddings: jax.Array, class_weights: jax.Array, labels: jax.Array, scale: float = 64.0, margin: float = 0.35
) -> jax.Array:
    """Returns the AM-softmax loss of stage 1, in CosFace form (Wang et al. 2018, reference 20).

    Cross-entropy of `s (cos(theta_y) - m)` for the true class and `s cos(theta_j)` for all other classes. A zero vector
    has cosine 0 with every vector and a finite gradient.

    Args:
      embeddings: (B, D) of any length; they are scaled to unit length here.
      class_weights: (C, D), scaled in the same way.
      labels: (B,) integers below C; a label of C or more gives NaN.
      scale: s.
      margin: m.

    Returns:
      (B,).

    Raises:
      ValueError: The shapes do not match.
    """
    return margin_loss(embeddings, class_weights, labels, lambda cosines: cosines - margin, scale)


def margin_loss(
    embeddings: jax.Array, class_weights: jax.Array, labels: jax.Array, with_margin: Callable, scale: float = 64.0
) -> jax.Array:
    """Returns the cross-entropy of cosines times `scale`, where that of the true class gets a margin.

    Args:
      embeddings: As in `am_softmax_loss`.
      class_weights: As in `am_softmax_loss`.
      labels: As in `am_softmax_loss`.
      with_margin: Cosines of the true classes, (B,) -> (B,).
      scale: s.

    Returns:
      (B,).

    Raises:
      ValueError: The shapes do not match.
    """
    embeddings, class_weights = _matrix(embeddings, "embeddings"), _matrix(class_weights, "class_weights")
    labels = jnp.asarray(labels)
    if embeddings.shape[1] != class_weights.shape[1] or labels.shape != embeddings.shape[:1]:
        raise ValueError(
            "the shapes of embeddings (B, D), class_weights (C, D) and labels (B,) do not match: "
            f"{embeddings.shape}, {class_weights.shape}, {labels.shape}"
        )
    # With s = 64 the rounding of a bfloat16 or TF32 product would become a tenth of a nat.
    cosines = jnp.matmul(unit(embeddings), unit(class_weights).T, precision=jax.lax.Precision.HIGHEST)
    is_true = labels[:, None] == jnp.arange(class_weights.shape[0])[None, :]
    target = with_margin(jnp.sum(jnp.where(is_true, cosines, 0.0), axis=-1))
    log_p = jax.nn.log_softmax(scale * jnp.where(is_true, target[:, None], cosines), axis=-1)
    return -jnp.take_along_axis(log_p, labels[:, None], axis=-1)[:, 0]


def arc_margin(cosines: jax.Array, margin: float) -> jax.Array:
    """Returns cos(theta + m) of ArcFace (Deng et al., "ArcFace", CVPR 2019, equation 3), with theta = arccos(cosine).

    Where theta + m is above pi, it is cos(theta) - m sin(m), as in the authors' code: the cosine would rise again.

    Args:
      cosines: (B,).
      margin: m, radians.

    Returns:
      (B,); gradients are finite, also at -1 and 1.
    """
    return jnp.where(cosines > -math.cos(margin), _turned(cosines, margin), cosines - margin * math.sin(margin))


def ada_margin(cosines: jax.Array, margin: float, quality: jax.Array) -> jax.Array:
    """Returns cos(theta + g_angle) - g_add of AdaFace (Kim et al., "AdaFace", CVPR 2022, equations 13 and 14).

    g_angle = -m quality and g_add = m quality + m: images of high quality, whose embeddings are long, get a margin of
    the angle that makes hard examples count more, and images of low quality one that makes them count less. As in the
    authors' code, theta + g_angle is kept between 0 and pi.

    Args:
      cosines: (B,).
      margin: m.
      quality: (B,), from -1 to 1: the length of an embedding beside all others; it counts as a constant.

    Returns:
      (B,); gradients are finite, also at -1 and 1.
    """
    quality = jax.lax.stop_gradient(quality)
    angle = -margin * quality
    turned = _turned(cosines, angle)
    turned = jnp.where((angle < 0) & (cosines > jnp.cos(angle)), 1.0, turned)
    turned = jnp.where((angle > 0) & (cosines < -jnp.cos(angle)), -1.0, turned)
    return turned - (margin * quality + margin)


def _turned(cosines: jax.Array, angle: float | jax.Array) -> jax.Array:
    """Returns cos(theta + angle). Where the sine is nearly 0, its gradient counts as 0 instead of infinite."""
    sine = jnp.sqrt(jnp.maximum((1.0 - cosines) * (1.0 + cosines), _MIN_SQUARED_SINE))
    return cosines * jnp.cos(angle) - sine * jnp.sin(angle)


def _labels(ages: jax.Array) -> jax.Array:
    ages = _wide(ages)
    if ages.ndim != 1 and ages.shape[1:] != (2,):
        raise ValueError(f"ages should have shape (B,), or (B, 2) for ranges, not {ages.shape}")
    return ages


def _is_exact(ranges: jax.Array) -> jax.Array:
    return ranges[:, 0] == ranges[:, 1]


def _blurred(weights: jax.Array, sigma: float | jax.Array) -> jax.Array:
    """Returns the mean, weighted by (B, K), of the label distributions of the whole ages."""
    num_ages = weights.shape[1]
    ages = jnp.arange(num_ages, dtype=weights.dtype)
    if jnp.ndim(sigma):
        bells = jax.vmap(lambda one: jnp.exp(_log_label_distribution(ages, one, num_ages)))(sigma)
        return jnp.einsum("bj,bjk->bk", weights, bells, precision=jax.lax.Precision.HIGHEST)
    bells = jnp.exp(_log_label_distribution(ages, sigma, num_ages))
    return jnp.matmul(weights, bells, precision=jax.lax.Precision.HIGHEST)


def _log_label_distribution(ages: jax.Array, sigma: float | jax.Array, num_ages: int) -> jax.Array:
    """Returns the logarithm of `label_distribution` for (B,) years."""
    labels = jnp.arange(num_ages, dtype=ages.dtype)
    sigma = sigma[:, None] if jnp.ndim(sigma) else sigma
    return jax.nn.log_softmax(-((labels[None, :] - ages[:, None]) ** 2) / (2 * sigma**2), axis=-1)


def unit(vectors: jax.Array) -> jax.Array:
    """Returns vectors (N, D) scaled to length 1; a zero vector stays zero, and its gradient is finite."""
    squared = jnp.sum(vectors**2, axis=-1, keepdims=True)
    return vectors * jax.lax.rsqrt(jnp.maximum(squared, _MIN_SQUARED_NORM))


def _wide(x: jax.Array) -> jax.Array:
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _matrix(x: jax.Array, name: str) -> jax.Array:
    x = _wide(x)
    if x.ndim != 2:
        raise ValueError(f"{name} should have two dimensions, not shape {x.shape}")
    return x


def _aligned(ages: jax.Array, batch: jax.Array) -> jax.Array:
    ages = _wide(ages)
    if ages.shape not in (batch.shape[:1], (*batch.shape[:1], 2)):
        raise ValueError(
            f"ages should have shape {batch.shape[:1]}, one value per example, or {(*batch.shape[:1], 2)} for ranges,"
            f" not {ages.shape}"
        )
    return ages
