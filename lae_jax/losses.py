"""The losses of the three stages: equations 1 to 4 of the paper, and AM-softmax.

B = batch, K = 101 ages (labels 0..100), D = embedding, C = identities. Each loss gives one value an example, (B,), so
that the caller weighs and averages. Whatever comes in, the arithmetic is float32 or wider; gradients are finite.
Shapes are checked when a function is traced: a (B, 1) of ages would otherwise broadcast to (B, B) without a word.
"""

import jax
import jax.numpy as jnp

# Under this squared length a vector counts as zero and keeps its direction's gradient finite.
_MIN_SQUARED_NORM = 1e-12


def label_distribution(ages: jax.Array, sigma: float = 1.0, num_ages: int = 101) -> jax.Array:
    """The target z of section 2.1: a Gaussian about each age, (B,) years -> (B, num_ages), rows sum to 1.

    `z_k ~ exp(-(k - y)^2 / (2 sigma^2))` for k = 0..num_ages - 1. The paper writes the density's factor
    1 / (sqrt(2 pi) sigma); we normalise, which differs only where the bell is cut off, near 0 and 100.
    `sigma` is in years. Raises ValueError unless `ages` has shape (B,).
    """
    return jnp.exp(_log_label_distribution(ages, sigma, num_ages))


def expected_age(logits: jax.Array) -> jax.Array:
    """The predicted age `y_hat = sum_k k p_k`, p = softmax(logits), k from 0: (B, K) -> (B,) years, never rounded.

    Raises ValueError unless `logits` has two dimensions.
    """
    probabilities = jax.nn.softmax(_matrix(logits, "logits"), axis=-1)
    ages = jnp.arange(probabilities.shape[-1], dtype=probabilities.dtype)
    # Not a dot product: accelerators would do that in bfloat16 or TF32 and lose a tenth of a year.
    return jnp.sum(probabilities * ages[None, :], axis=-1)


def label_divergence(logits: jax.Array, ages: jax.Array) -> jax.Array:
    """Equation 1, `L_ld = sum_k z_k log(z_k / p_k)`: (B, K) and (B,) years -> (B,), in nats.

    0 log 0 = 0: z underflows some 14 years from y, but log z and log p stay finite, so their product with 0 is 0, and
    so is its gradient. Raises ValueError for shapes that do not belong together.
    """
    logits = _matrix(logits, "logits")
    log_z = _log_label_distribution(_aligned(ages, logits, "ages"), 1.0, logits.shape[-1])
    return jnp.sum(jnp.exp(log_z) * (log_z - jax.nn.log_softmax(logits, axis=-1)), axis=-1)


def regression_error(logits: jax.Array, ages: jax.Array) -> jax.Array:
    """Equation 2, `L_er = |y - y_hat|`: (B, K) and (B,) years -> (B,) years; its gradient at 0 is 0."""
    predictions = expected_age(logits)
    return jnp.abs(_aligned(ages, predictions, "ages") - predictions)


def representation_loss(logits: jax.Array, ages: jax.Array, er_weight: float = 1.0) -> jax.Array:
    """Equation 3, stage 2's `L_fe = L_ld + lambda L_er`: (B, K) and (B,) years -> (B,).

    `er_weight` is the paper's lambda, 1 in all its experiments. Raises ValueError as `label_divergence` does.
    """
    return label_divergence(logits, ages) + er_weight * regression_error(logits, ages)


def classification_loss(logits: jax.Array, ages: jax.Array, mae: float | jax.Array) -> jax.Array:
    """Equation 4, stage 3's `L_cl = L_ld + (L_er - mae)^2`: (B, K) and (B,) years -> (B,).

    `mae` (years, a scalar) is equation 5: stage 2's mean absolute error on the validation set. The square is taken for
    each image, before any mean, so that it pulls every image's error to `mae`, small errors up and large ones down.
    Raises ValueError as `label_divergence` does.
    """
    return label_divergence(logits, ages) + (regression_error(logits, ages) - mae) ** 2


def am_softmax_loss(
    embeddings: jax.Array, class_weights: jax.Array, labels: jax.Array, scale: float = 64.0, margin: float = 0.35
) -> jax.Array:
    """Stage 1's AM-softmax in CosFace form (Wang et al. 2018, reference 20): (B, D), (C, D), (B,) int -> (B,).

    Cross-entropy of `s (cos(theta_y) - m)` for the true class and `s cos(theta_j)` for the others. Embeddings and class
    weights are brought to unit length here; a zero vector has cosine 0 with everything and a finite gradient. A label
    of C or more gives NaN. Raises ValueError for shapes that do not belong together.
    """
    embeddings, class_weights = _matrix(embeddings, "embeddings"), _matrix(class_weights, "class_weights")
    labels = jnp.asarray(labels)
    if embeddings.shape[1] != class_weights.shape[1] or labels.shape != embeddings.shape[:1]:
        raise ValueError(
            "embeddings (B, D), class_weights (C, D) and labels (B,) do not belong together: "
            f"{embeddings.shape}, {class_weights.shape}, {labels.shape}"
        )
    # s = 64 would turn the rounding of a bfloat16 or TF32 product into a tenth of a nat.
    cosines = jnp.matmul(_unit(embeddings), _unit(class_weights).T, precision=jax.lax.Precision.HIGHEST)
    is_true = labels[:, None] == jnp.arange(class_weights.shape[0])[None, :]
    log_p = jax.nn.log_softmax(scale * jnp.where(is_true, cosines - margin, cosines), axis=-1)
    return -jnp.take_along_axis(log_p, labels[:, None], axis=-1)[:, 0]


def _log_label_distribution(ages: jax.Array, sigma: float, num_ages: int) -> jax.Array:
    ages = _wide(ages)
    if ages.ndim != 1:
        raise ValueError(f"ages should have shape (B,), not {ages.shape}")
    labels = jnp.arange(num_ages, dtype=ages.dtype)
    return jax.nn.log_softmax(-((labels[None, :] - ages[:, None]) ** 2) / (2 * sigma**2), axis=-1)


def _unit(vectors: jax.Array) -> jax.Array:
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


def _aligned(x: jax.Array, batch: jax.Array, name: str) -> jax.Array:
    x = _wide(x)
    if x.shape != batch.shape[:1]:
        raise ValueError(f"{name} should have shape {batch.shape[:1]}, one value an example, not {x.shape}")
    return x
