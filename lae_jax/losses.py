"""The losses of the three stages: equations 1 to 4 of the paper, and AM-softmax.

B = batch, K = 101 ages (labels 0..100), D = embedding, C = identities. Each loss returns one value per example, (B,);
the caller weights and averages them. The arithmetic is float32 or wider for any input; gradients are finite. Shapes are
checked when a function is traced, because ages of shape (B, 1) would otherwise broadcast silently to (B, B).
"""

import jax
import jax.numpy as jnp

# A vector whose squared length is below this counts as zero, which keeps the gradient of its direction finite.
_MIN_SQUARED_NORM = 1e-12


def label_distribution(ages: jax.Array, sigma: float = 1.0, num_ages: int = 101) -> jax.Array:
    """Returns the target z of section 2.1, a Gaussian about each age.

    `z_k ~ exp(-(k - y)^2 / (2 sigma^2))` for k = 0..num_ages - 1. The paper writes the density's factor
    1 / (sqrt(2 pi) sigma). Here each row is normalised, which differs only near 0 and 100, where the Gaussian is cut
    off.

    Args:
      ages: (B,) years.
      sigma: Standard deviation, in years.
      num_ages: Number of ages.

    Returns:
      (B, num_ages) probabilities; each row sums to 1.

    Raises:
      ValueError: `ages` does not have shape (B,).
    """
    return jnp.exp(_log_label_distribution(ages, sigma, num_ages))


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


def label_divergence(logits: jax.Array, ages: jax.Array, label_sigma: float = 1.0) -> jax.Array:
    """Returns equation 1, `L_ld = sum_k z_k log(z_k / p_k)`.

    0 log 0 = 0: z underflows about 14 years from y, but log z and log p stay finite, so the product is 0 there, and so
    is its gradient.

    Args:
      logits: (B, K).
      ages: (B,) years.
      label_sigma: Standard deviation of the label distribution in years, 1 in the paper.

    Returns:
      (B,) nats.

    Raises:
      ValueError: The shapes do not match.
    """
    logits = _matrix(logits, "logits")
    log_z = _log_label_distribution(_aligned(ages, logits, "ages"), label_sigma, logits.shape[-1])
    return jnp.sum(jnp.exp(log_z) * (log_z - jax.nn.log_softmax(logits, axis=-1)), axis=-1)


def regression_error(logits: jax.Array, ages: jax.Array) -> jax.Array:
    """Returns equation 2, `L_er = |y - y_hat|`; its gradient at 0 is 0.

    Args:
      logits: (B, K).
      ages: (B,) years.

    Returns:
      (B,) years.

    Raises:
      ValueError: The shapes do not match.
    """
    predictions = expected_age(logits)
    return jnp.abs(_aligned(ages, predictions, "ages") - predictions)


def representation_loss(
    logits: jax.Array, ages: jax.Array, er_weight: float = 1.0, label_sigma: float = 1.0
) -> jax.Array:
    """Returns equation 3, the loss of stage 2: `L_fe = L_ld + lambda L_er`.

    Args:
      logits: (B, K).
      ages: (B,) years.
      er_weight: The paper's lambda, 1 in all its experiments.
      label_sigma: As in `label_divergence`.

    Returns:
      (B,).

    Raises:
      ValueError: The shapes do not match.
    """
    return label_divergence(logits, ages, label_sigma) + er_weight * regression_error(logits, ages)


def classification_loss(
    logits: jax.Array, ages: jax.Array, mae: float | jax.Array, label_sigma: float = 1.0
) -> jax.Array:
    """Returns equation 4, the loss of stage 3: `L_cl = L_ld + (L_er - mae)^2`.

    The square is taken for each image, before any mean. It therefore pulls the error of every image towards `mae`:
    small errors up and large ones down.

    Args:
      logits: (B, K).
      ages: (B,) years.
      mae: Equation 5, a scalar in years: the mean absolute error of stage 2 on the validation set.
      label_sigma: As in `label_divergence`.

    Returns:
      (B,).

    Raises:
      ValueError: The shapes do not match.
    """
    return label_divergence(logits, ages, label_sigma) + (regression_error(logits, ages) - mae) ** 2


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
    embeddings, class_weights = _matrix(embeddings, "embeddings"), _matrix(class_weights, "class_weights")
    labels = jnp.asarray(labels)
    if embeddings.shape[1] != class_weights.shape[1] or labels.shape != embeddings.shape[:1]:
        raise ValueError(
            "the shapes of embeddings (B, D), class_weights (C, D) and labels (B,) do not match: "
            f"{embeddings.shape}, {class_weights.shape}, {labels.shape}"
        )
    # With s = 64 the rounding of a bfloat16 or TF32 product would become a tenth of a nat.
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
        raise ValueError(f"{name} should have shape {batch.shape[:1]}, one value per example, not {x.shape}")
    return x
