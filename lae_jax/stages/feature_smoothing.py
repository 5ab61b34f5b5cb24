"""Feature distribution smoothing (FDS) while a model trains: statistics of the features of each age.

Yang et al., Delving into deep imbalanced regression, ICML 2021, section 3.2. The statistics of an epoch are those of
the features that its steps computed; at its end they enter the running ones. K = 101 ages, F = features, B = images.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from lae_jax.stages import method_losses

# images, mean, squares: of this epoch, squares summed about the mean. known, running_mean, running_variance: of the
# epochs before. scale, shift: the calibration that follows from these.
Statistics = Mapping[str, jax.Array]


def first(num_ages: int, num_features: int, dtype: np.dtype) -> dict[str, np.ndarray]:
    """Returns the statistics before the first step, with which nothing is calibrated."""
    zeros, ages = np.zeros((num_ages, num_features), dtype), np.zeros(num_ages, dtype)
    epoch = {"images": ages, "mean": zeros, "squares": zeros}
    running = {"known": ages, "running_mean": zeros, "running_variance": zeros}
    return {**epoch, **running, "scale": np.ones_like(zeros), "shift": zeros}


def observed(statistics: Statistics, features: jax.Array, ages: jax.Array) -> dict[str, jax.Array]:
    """Returns the statistics with the images of a batch: (B, F), (B,) years.

    Means and squares are merged, not summed up, so that no digits are lost (Chan et al. 1983).
    """
    before, mean, squares = (statistics[name] for name in ("images", "mean", "squares"))
    features, num_ages = features.astype(mean.dtype), len(before)
    place = method_losses.place_of(ages, num_ages)
    is_of = (place[None, :] == jnp.arange(num_ages)[:, None]).astype(mean.dtype)

    def sums(values):
        return jnp.matmul(is_of, values, precision=jax.lax.Precision.HIGHEST)

    new = jnp.sum(is_of, axis=1)
    of_batch = sums(features) / jnp.maximum(new, 1)[:, None]
    within = sums((features - of_batch[place]) ** 2)
    share, moved = (new / jnp.maximum(before + new, 1))[:, None], of_batch - mean
    return {
        **statistics,
        "images": before + new,
        "mean": mean + share * moved,
        "squares": squares + within + before[:, None] * share * moved**2,
    }


def after_epoch(statistics: Statistics, momentum: float) -> dict[str, jax.Array]:
    """Returns the statistics at the end of an epoch: running ones with it, their calibration, and an empty epoch.

    Args:
      statistics: Those with all images of the epoch.
      momentum: Weight of the running values; an age that had none takes those of the epoch.
    """
    images, known = statistics["images"], statistics["known"]

    def moved(old: jax.Array, new: jax.Array, least: int) -> jax.Array:
        weight = jnp.where(known >= least, momentum, 0.0)[:, None]
        return jnp.where((images >= least)[:, None], weight * old + (1 - weight) * new, old)

    of_epoch = statistics["squares"] / jnp.maximum(images - 1, 1)[:, None]
    mean = moved(statistics["running_mean"], statistics["mean"], 1)
    variance = moved(statistics["running_variance"], of_epoch, 2)
    known = jnp.maximum(known, images)
    calibration = method_losses.calibration(known, mean, variance, jnp)
    empty = {name: jnp.zeros_like(statistics[name]) for name in ("images", "mean", "squares")}
    return {**empty, "known": known, "running_mean": mean, "running_variance": variance, **calibration}


def calibrated(statistics: Statistics, features: jax.Array, ages: jax.Array) -> jax.Array:
    """Returns features (b, F) with the smoothed mean and variance of their ages, (b,) years."""
    scale, shift = (method_losses.of_age(statistics[name], ages) for name in ("scale", "shift"))
    return features * scale + shift
