"""Parts of the losses of long-tail methods: priors, weights of examples, Balanced MSE.

B = batch, K = 101 ages, n_k = training images of age k (`counts`). As in `losses`, a loss returns one value for each
example. An age without an image would get an infinite weight; it counts as an age with one image, since nothing is
known about how rare it is.
"""

from collections.abc import Callable
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np

from lae_jax import losses, metrics

# From DIR's code (Yang et al., ICML 2021): a kernel of 5 ages, sigma 2.
LDS_SIZE, LDS_SIGMA = 5, 2.0
_BLOCK = 8192  # rows of features


def count_ages(classes: np.ndarray, num_ages: int = 101) -> np.ndarray:
    """Returns the images of each whole age: (N,) int -> (num_ages,) float64. Ages outside count as the nearest age."""
    return np.bincount(np.clip(classes, 0, num_ages - 1), minlength=num_ages).astype(np.float64)


def images_by_age(targets: np.ndarray, num_ages: int = 101) -> np.ndarray:
    """Returns the images of each whole age: (N,) years or (N, 2) ranges -> (num_ages,) float64.

    A range counts at its ages as `metrics.range_weights` says.
    """
    if targets.ndim == 2:
        return metrics.images_by_age(targets)
    return count_ages(metrics.age_class(targets), num_ages)


def of_training(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the loss constants `counts` and `smoothed`, (K,) float32, of the images of each whole age, (K,)."""
    return {"counts": counts.astype(np.float32), "smoothed": smoothed_counts(counts).astype(np.float32)}


def log_prior(counts: jax.Array) -> jax.Array:
    """Returns log(n_k / N): (K,) -> (K,)."""
    counts = jnp.maximum(counts, 1.0)
    return jnp.log(counts) - jnp.log(jnp.sum(counts))


def adjusted_divergence(
    logits: jax.Array,
    ages: jax.Array,
    counts: jax.Array,
    tau: float | jax.Array,
    label_sigma: float = 1.0,
    in_range: str = "uniform",
) -> jax.Array:
    """Returns `L_ld` of softmax(logits + tau log prior): (B, K), (B,) years or (B, 2) ranges, (K,) -> (B,).

    With tau = 1 this is balanced softmax, p_k = n_k e^(l_k) / sum_j n_j e^(l_j) (Ren et al., NeurIPS 2020, equation 3),
    with any tau the logit-adjusted loss (Menon et al., ICLR 2021, equation 10). Our label distribution replaces their
    one-hot target.
    """
    return losses.label_divergence(logits + tau * log_prior(counts)[None, :], ages, label_sigma, in_range)


def power_weights(counts: jax.Array, power: float | jax.Array) -> jax.Array:
    """Returns weights by age, proportional to n_k^-power, with mean 1 over the examples: (K,) -> (K,).

    power 1 is the inverse frequency, 1/2 its square root (Mahajan et al., ECCV 2018).
    """
    return _mean_one(jnp.maximum(counts, 1.0) ** -power, counts)


def effective_weights(counts: jax.Array, beta: float | jax.Array) -> jax.Array:
    """Returns weights proportional to (1 - beta) / (1 - beta^n_k), with mean 1 over the examples: (K,) -> (K,).

    They are the inverse of the effective number of examples (Cui et al., CVPR 2019, equation 2), 0 < beta < 1.
    """
    # Computed directly, 1 - beta^n loses its digits where beta is near 1.
    effective = -jnp.expm1(jnp.maximum(counts, 1.0) * jnp.log(beta))
    return _mean_one(1.0 / effective, counts)


def lds_weights(counts: jax.Array, smoothed: jax.Array, power: float | jax.Array) -> jax.Array:
    """Returns weights proportional to smoothed^-power, with mean 1 over the examples: (K,), (K,) -> (K,).

    Yang et al. (ICML 2021) re-weight with power 1 and 1/2. Smoothed counts below 1 count as 1.
    """
    return _mean_one(jnp.maximum(smoothed, 1.0) ** -power, counts)


def smoothed_counts(counts: np.ndarray, size: int = LDS_SIZE, sigma: float = LDS_SIGMA) -> np.ndarray:
    """Returns the smoothed counts of LDS, under a Gaussian kernel of `size` ages and sum 1: (K,) -> (K,).

    Counts beyond the ends are 0. Yang et al., ICML 2021, equation 1.
    """
    return np.convolve(np.asarray(counts, np.float64), _kernel(size, sigma), mode="same")


def smooth_statistics(features: np.ndarray, classes: np.ndarray, num_ages: int = 101) -> dict[str, np.ndarray]:
    """Returns the `calibration` of FDS by these features: (N, F), (N,) int -> two of (num_ages, F) float32."""
    classes = np.clip(classes, 0, num_ages - 1)
    counts = count_ages(classes, num_ages)
    mean = _sums_by_class(features, classes, num_ages) / np.maximum(counts, 1)[:, None]
    squares = _sums_by_class(features, classes, num_ages, lambda block, of: (block - mean[of]) ** 2)
    found = calibration(counts, mean, squares / np.maximum(counts - 1, 1)[:, None], np)
    return {name: table.astype(np.float32) for name, table in found.items()}


def calibration(counts: jax.Array, mean: jax.Array, variance: jax.Array, xp: ModuleType) -> dict[str, jax.Array]:
    """Returns FDS as a `scale` and a `shift` for each age: (K,), (K, F), (K, F) -> two of (K, F).

    FDS whitens an age's features with their mean and variance, and colours them with the mean and variance smoothed
    over the ages that have images: z' = sqrt(v~ / v) (z - m) + m~ = scale z + shift (Yang et al., ICML 2021, equations
    3 to 5; diagonal covariance, and the ratio of variances clipped to 0.1..10, as in their code). Ages with fewer than
    two images have no known variance and keep the spread of their features.

    Args:
      counts: Images of each age.
      mean: Of the features of each age.
      variance: Likewise.
      xp: `numpy` or `jax.numpy`, which computes it.
    """
    num_ages, half, kernel = len(counts), LDS_SIZE // 2, _kernel(LDS_SIZE, LDS_SIGMA)
    distance = np.arange(num_ages)[:, None] - np.arange(num_ages)[None, :]
    near = np.where(np.abs(distance) <= half, kernel[np.clip(distance + half, 0, LDS_SIZE - 1)], 0.0)
    near = xp.asarray(near, mean.dtype)

    def smooth(values, known):
        weights = near * known[None, :]
        total = weights.sum(axis=1, keepdims=True)
        mixed = xp.matmul(weights, values, **precision)
        return xp.where(total > 0, mixed / xp.maximum(total, 1e-12), values)

    precision = {} if xp is np else {"precision": jax.lax.Precision.HIGHEST}
    known = (counts > 1) & (variance > 0).any(axis=1)
    is_known = known[:, None] & (variance > 0)
    ratio = xp.where(is_known, smooth(variance, known) / xp.where(variance > 0, variance, 1.0), 1.0)
    scale = xp.sqrt(xp.clip(ratio, 0.1, 10.0))
    return {"scale": scale, "shift": smooth(mean, counts > 0) - scale * mean}


def _sums_by_class(
    features: np.ndarray,
    classes: np.ndarray,
    num_ages: int,
    change: Callable[[np.ndarray, np.ndarray], np.ndarray] = lambda block, of: block,
) -> np.ndarray:
    """Returns float64 sums by class, (num_ages, F), of (N, F) after `change`; only a block is ever in float64."""
    sums = np.zeros((num_ages, features.shape[1]))
    for start in range(0, len(features), _BLOCK):
        of = classes[start : start + _BLOCK]
        block = change(features[start : start + _BLOCK].astype(np.float64), of)
        order = np.argsort(of, kind="stable")
        present, first = np.unique(of[order], return_index=True)
        sums[present] += np.add.reduceat(block[order], first)
    return sums


def balanced_mse(predictions: jax.Array, ages: jax.Array, counts: jax.Array, noise: float | jax.Array) -> jax.Array:
    """Returns Balanced MSE by numerical integration (BNI): (B,) and (B,) years, (K,) -> (B,).

    `2 s^2 (-log N(y; y_hat, s^2) + log sum_k p_k N(k; y_hat, s^2))`, with the training ages' frequencies p and
    s = `noise` in years (Ren et al., CVPR 2022, equation 3.7 with the ages as buckets); the Gaussians' factors cancel.
    Where s is learned, the factor 2 s^2 counts as a constant, as in their code. Unlike in the batch-based form, the
    loss of an example does not depend on the rest of its batch.
    """
    exponents = -((jnp.arange(counts.shape[0], dtype=predictions.dtype)[None, :] - predictions[:, None]) ** 2)
    evidence = jax.nn.logsumexp(exponents / (2 * noise**2), axis=-1, b=(counts / jnp.sum(counts))[None, :])
    return 2 * jax.lax.stop_gradient(noise**2) * ((predictions - ages) ** 2 / (2 * noise**2) + evidence)


def of_age(table: jax.Array, ages: jax.Array) -> jax.Array:
    """Returns the rows of a table at each age: (K, ...) and (B,) years -> (B, ...).

    Of ranges, (B, 2), it returns the means over the ages of each, weighted by `losses.range_weights`.
    """
    if ages.ndim == 2:
        return jnp.tensordot(losses.range_weights(ages, table.shape[0]), table, 1, precision=jax.lax.Precision.HIGHEST)
    return table[place_of(ages, table.shape[0])]


def place_of(ages: jax.Array, num_ages: int) -> jax.Array:
    """Returns the whole ages, (B,) years -> (B,) int32; ages outside count as the nearest age."""
    return jnp.clip(jnp.floor(ages + 0.5).astype(jnp.int32), 0, num_ages - 1)


def _kernel(size: int, sigma: float) -> np.ndarray:
    kernel = np.exp(-((np.arange(size) - size // 2) ** 2) / (2 * sigma**2))
    return kernel / kernel.sum()


def _mean_one(weights: jax.Array, counts: jax.Array) -> jax.Array:
    return weights * jnp.sum(counts) / jnp.sum(counts * weights)
