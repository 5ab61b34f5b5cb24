"""Equations of the cures of stage 2 that look at a whole batch: RankSim, ConR, Dist Loss.

B = images of the global batch, b = images of this device, F = features, K = 101 ages.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from lae_jax import losses
from lae_jax.stages import method_losses

_HIGHEST = jax.lax.Precision.HIGHEST


def ranks(scores: jax.Array, present: jax.Array) -> jax.Array:
    """Returns the rank of each score in its row, divided by their number: 1/n for the largest.

    The rank is 1 + the number of present scores that are larger, so equal scores share the better rank.

    Args:
      scores: (R, N).
      present: (N,), whether a column counts.

    Returns:
      (R, N); columns that do not count have a rank too.
    """
    larger = (scores[:, None, :] > scores[:, :, None]) & present[None, None, :]
    return (1 + jnp.sum(larger, axis=-1)).astype(scores.dtype) / jnp.maximum(jnp.sum(present), 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def blackbox_ranks(scores: jax.Array, present: jax.Array, strength: float) -> jax.Array:
    """Returns `ranks`, with the gradient of a black-box solver.

    The gradient is (rk(a + strength g) - rk(a)) / strength, where g is the gradient of the ranks (Vlastelica et al.,
    Differentiation of blackbox combinatorial solvers, ICLR 2020, algorithm 1; rk(a) is the permutation with the
    smallest product with a). The ranks are divided by their number, as in RankSim's code.

    Args:
      scores: (R, N).
      present: (N,) booleans.
      strength: The papers' lambda, above 0.
    """
    return ranks(scores, present)


def _blackbox_forward(scores, present, strength):
    found = ranks(scores, present)
    return found, (scores, present, found)


def _blackbox_backward(strength, kept, gradient):
    scores, present, found = kept
    moved = (ranks(scores + strength * gradient, present) - found) / strength
    return jnp.where(present[None, :], moved, 0.0), None


blackbox_ranks.defvjp(_blackbox_forward, _blackbox_backward)


def rank_similarity(
    features: jax.Array, ages: jax.Array, priority: jax.Array, strength: float, num_ages: int = 101
) -> jax.Array:
    """Returns RankSim's regulariser, a scalar.

    For each image i of a batch, the ranks of the cosines of its features with those of all images should be the ranks
    of -|y_i - y_j|: the sum over i of the mean squared difference of the ranks, each divided by their number (Gong et
    al., RankSim, ICML 2022, section 3). As published, one image of each age takes part.

    Args:
      features: (B, F).
      ages: (B,) years. Duplicates are those of one whole age.
      priority: (B,); of the images of an age, the one with the largest takes part.
      strength: Lambda of `blackbox_ranks`.
      num_ages: K.
    """
    same = method_losses.place_of(ages, num_ages)[None, :] == jnp.arange(num_ages)[:, None]
    chosen, present = jnp.argmax(jnp.where(same, priority[None, :], -jnp.inf), axis=1), jnp.any(same, axis=1)
    directions, years = losses.unit(features[chosen]), ages[chosen]
    cosines = jnp.matmul(directions, directions.T, precision=_HIGHEST)
    of_labels = ranks(-jnp.abs(years[:, None] - years[None, :]), present)
    squares = jnp.where(present[None, :], (blackbox_ranks(cosines, present, strength) - of_labels) ** 2, 0.0)
    means = jnp.sum(squares, axis=1) / jnp.maximum(jnp.sum(present), 1)
    return jnp.sum(jnp.where(present, means, 0.0))


def contrast(
    here: tuple[jax.Array, jax.Array, jax.Array],
    every: tuple[jax.Array, jax.Array, jax.Array],
    places: jax.Array,
    weights: jax.Array,
    window: float,
    temperature: float,
    eta: float,
) -> jax.Array:
    """Returns ConR, the contrastive regulariser of Keramati et al. (ICLR 2024, section 3), for each anchor.

    An anchor's positives are the other images whose ages are at most `window` years away; its negatives are further
    away, but their predictions are not. The loss is the mean over the positives p of
    -log(e_p / (sum of e over the positives + sum of s e over the negatives)), e = exp(cosine / temperature), with the
    pushing weight s = weight of the anchor x exp(eta |y_i - y_j|), all times the anchor's weight. An anchor without
    positives or without negatives has none.

    Args:
      here: Features (b, F), ages (b,) and predictions (b,) of the anchors.
      every: Features (B, F), ages (B,) and predictions (B,) of the global batch. Predictions count as constants.
      places: (b,), the anchors' places in it.
      weights: (b,), of the anchors: 1, or those of a re-weighting.
      window: Years.
      temperature: Of the cosines.
      eta: A year's factor in the exponent of the pushing weights.

    Returns:
      (b,).
    """
    features, ages, predictions = here
    keys, of_keys, predicted = every
    apart = jnp.abs(ages[:, None] - of_keys[None, :])
    confused = jnp.abs(jax.lax.stop_gradient(predictions[:, None] - predicted[None, :])) <= window
    near = apart <= window
    positive, negative = near & (places[:, None] != jnp.arange(len(of_keys))[None, :]), ~near & confused
    scores = jnp.matmul(losses.unit(features), losses.unit(keys).T, precision=_HIGHEST) / temperature
    factors = jnp.where(positive, 1.0, jnp.where(negative, weights[:, None] * jnp.exp(eta * apart), 0.0))
    counts = jnp.sum(positive, axis=1)
    is_anchor = (counts > 0) & jnp.any(negative, axis=1)
    total = jax.nn.logsumexp(scores, axis=1, b=jnp.where(is_anchor[:, None], factors, 1.0))
    pulled = jnp.sum(jnp.where(positive, scores, 0.0), axis=1) / jnp.maximum(counts, 1)
    return jnp.where(is_anchor, weights * (total - pulled), 0.0)


def pseudo_labels(counts: np.ndarray, size: int, bandwidth: float) -> np.ndarray:
    """Returns the ages that a batch of the label distribution has, sorted: those of Dist Loss.

    The distribution is a Gaussian kernel density of the training ages, whose standard deviation is `bandwidth` times
    theirs, at the whole ages (Nie et al., Dist Loss, ICLR 2025, section 3; scipy's `gaussian_kde` with that factor).
    The labels are its quantiles at (i + 1/2) / size, so each age occurs as often as expected, up to rounding.

    Args:
      counts: (K,), training images of each whole age.
      size: Number of labels.
      bandwidth: Share of the standard deviation.

    Returns:
      (size,) float32 years.
    """
    counts, years = np.asarray(counts, np.float64), np.arange(len(counts))
    mean = (counts * years).sum() / counts.sum()
    variance = (counts * (years - mean) ** 2).sum() / max(counts.sum() - 1, 1)
    if not variance:
        return np.full(size, mean, np.float32)
    density = np.exp(-((years[:, None] - years[None, :]) ** 2) / (2 * bandwidth**2 * variance)) @ counts
    cumulative = np.cumsum(density) / density.sum()
    found = np.searchsorted(cumulative, (np.arange(size) + 0.5) / size)
    return np.minimum(found, len(counts) - 1).astype(np.float32)


def distribution_distance(predictions: jax.Array, every: jax.Array, places: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the distance of each prediction to the pseudo-label of its rank: (b,) years.

    Its mean over the batch is that of |sorted predictions - pseudo-labels| (Nie et al., ICLR 2025, section 3). The
    gradient is that of sorting. The authors' fast soft sort of strength 0.1 gives the same values unless two
    neighbouring predictions are more than 10 years apart.

    Args:
      predictions: (b,) years.
      every: (B,) years, the predictions of the global batch.
      places: (b,), the places of `predictions` in it.
      labels: (B,), `pseudo_labels`.
    """
    order = jnp.argsort(jnp.argsort(jax.lax.stop_gradient(every)))
    return jnp.abs(predictions - jnp.asarray(labels, predictions.dtype)[order[places]])
