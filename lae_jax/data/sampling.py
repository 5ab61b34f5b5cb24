"""Sample orders: the row at place r of batch b is a pure function of (seed, b, r).

An order is a function step -> (batch_size,) int64 positions. It consists of TensorFlow's stateless ops, so it runs
inside tf.data (where the step is a tensor) and eagerly with a Python int.
"""

import logging
from collections.abc import Callable, Mapping

import numpy as np

from lae_jax import metrics
from lae_jax.data import age_weights
from lae_jax.faces.tensorflow import tf

logger = logging.getLogger("lae_jax")

_WORD = 2**31

Order = Callable[[int | tf.Tensor], tf.Tensor]


def _check(num_examples: int, batch_size: int) -> None:
    if num_examples < 1:
        raise ValueError("an order needs at least one example")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}: it must be at least 1")


def seed_words(seed: int, purpose: str) -> tuple[int, int]:
    """Returns two 31-bit words, a seed for TensorFlow's stateless ops. Each purpose has different words."""
    words = np.random.SeedSequence([seed, *purpose.encode()]).generate_state(2) >> 1
    return int(words[0]), int(words[1])


def step_key(words: tuple[int, int], step: tf.Tensor) -> tf.Tensor:
    """Returns the key (2,) int64 of a step's draws. Each step has its own: there are 2**62 pairs of words."""
    step = tf.cast(step, tf.int64)
    return tf.stack([(words[0] + step // _WORD) % _WORD, (words[1] + step) % _WORD])


def shuffled(num_examples: int, batch_size: int, seed: int) -> Order:
    """Returns the order of epochs, each a seeded permutation of the `num_examples` examples.

    The places of all batches form one stream. Places e * num_examples up to (e + 1) * num_examples are the permutation
    of epoch e, so the next epoch fills the last batch of an epoch.
    """
    _check(num_examples, batch_size)
    words = seed_words(seed, "shuffled")
    epochs_in_batch = -(-batch_size // num_examples) + 1

    def order(step):
        place = tf.cast(step, tf.int64) * batch_size + tf.range(batch_size, dtype=tf.int64)
        epoch = place // num_examples
        # RandomIndexShuffle is a cipher of few rounds. Keys that differ by a counter give far too few permutations (the
        # places of an example fail a chi-square test), so each epoch draws its own key.
        keys = tf.stack([_full_range(3, step_key(words, epoch[0] + i)) for i in range(epochs_in_batch)])
        return tf.raw_ops.RandomIndexShuffle(
            index=place % num_examples,
            seed=tf.gather(keys, epoch - epoch[0]),
            max_index=tf.constant(num_examples - 1, tf.int64),
            rounds=4,
        )

    return order


def _full_range(count: int, key: tf.Tensor) -> tf.Tensor:
    return tf.random.stateless_uniform([count], key, minval=None, maxval=None, dtype=tf.int32)


def class_balanced(
    labels: np.ndarray, batch_size: int, seed: int, power: float = 0.0, weights: Mapping[int, float] | None = None
) -> Order:
    """Returns an order that draws a class, then one of its examples uniformly, with replacement.

    Classes without an example do not occur. Source: two-stage sampling of Shen et al., Relay backpropagation, ECCV 2016
    (power 0).

    Args:
        labels: (N,) integer classes.
        batch_size: Positions per step.
        seed: Seed of the draws.
        power: A class with n examples is drawn with probability in proportion to n**power: 0 makes classes equally
            likely, 1 as frequent as they are in `labels`.
        weights: Class -> factor of that probability, finite and at least 0; None: 1 for each.

    Raises:
        ValueError: `labels` are empty or not integers, `batch_size` is below 1, `power` is outside 0 to 1, or `weights`
            lack a class, are negative or not finite, or are all 0.
    """
    labels = np.asarray(labels)
    _check(len(labels), batch_size)
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels must be integer classes, not {labels.dtype}")
    if not 0 <= power <= 1:
        raise ValueError(f"power is {power}: it must be from 0 to 1")
    words = seed_words(seed, "class_balanced")
    classes, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    by_class = tf.constant(np.argsort(inverse, kind="stable"), tf.int64)
    first = tf.constant(np.cumsum(counts) - counts, tf.int64)
    weight = counts.astype(np.float64) ** power
    if weights is not None:
        weight = weight * _factors(classes, weights)
    # Divided by its own last value, so that the last classes are never drawn where their weights are 0.
    total = np.cumsum(weight)
    edges = tf.constant((total / total[-1])[:-1], tf.float64)
    counts = tf.constant(counts, tf.int64)

    def order(step):
        uniform = tf.random.stateless_uniform([2, batch_size], step_key(words, step), dtype=tf.float64)
        drawn = tf.searchsorted(edges, uniform[0], side="right", out_type=tf.int64)
        among = tf.gather(counts, drawn)
        # A float64 below 1 times a count can round up to the count.
        within = tf.minimum(tf.cast(uniform[1] * tf.cast(among, tf.float64), tf.int64), among - 1)
        return tf.gather(by_class, tf.gather(first, drawn) + within)

    return order


def _factors(classes: np.ndarray, weights: Mapping[int, float]) -> np.ndarray:
    """Returns the weights of the classes, (C,) float64, of which the largest is 1."""
    if missing := {*classes.tolist()} - {*weights}:
        raise ValueError(f"weights lack the classes {sorted(missing)}")
    factors = np.array([weights[label] for label in classes.tolist()], np.float64)
    if not (np.isfinite(factors).all() and (factors >= 0).all() and factors.any()):
        raise ValueError("weights must be finite and at least 0, and one of them above 0")
    return factors / factors.max()


def balanced_ages(
    targets: np.ndarray, batch_size: int, seed: int, power: float = 0.0, weights: age_weights.AgeWeights | None = None
) -> Order:
    """Returns the class-balanced order of labels of ages.

    Each different label is a class. Where labels are ranges, ages and not labels are equally likely at power 0
    (`metrics.class_factors`); where all are exact, the order is that of the whole ages.

    Args:
      targets: (N,) years, or (N, 2) ranges.
      batch_size: Examples in a batch.
      seed: Seed of the draws.
      power: From 0 (ages are equally likely) to 1 (as frequent as they are).
      weights: Weights of ages; None: all are 1.

    Raises:
      InputError: An age has no weight, or all weights are 0.
    """
    if targets.ndim == 1:
        classes = metrics.age_class(targets)
        _tell_absent(sorted({*range(1, 82)} - {*classes.tolist()}))
        if weights:
            weights.require(classes)
        return class_balanced(classes, batch_size, seed, power, weights.by_age if weights else None)
    labels, classes, counts = metrics.label_classes(targets)
    _tell_absent(np.flatnonzero(counts @ metrics.range_weights(labels) == 0).tolist())
    factors = metrics.class_factors(labels, counts, power)
    if weights:
        factors = factors * weights.of_ranges(labels)
    return class_balanced(classes, batch_size, seed, power, dict(enumerate(factors.tolist())))


def _tell_absent(ages: list[int]) -> None:
    if ages := [age for age in ages if 1 <= age <= 81]:
        logger.info("the class-balanced order omits these ages, which have no image: %s", ages)


def sequential(num_examples: int, batch_size: int) -> Order:
    """Returns the positions in order. Places after the last example repeat it; the caller drops them by position."""
    _check(num_examples, batch_size)

    def order(step):
        place = tf.cast(step, tf.int64) * batch_size + tf.range(batch_size, dtype=tf.int64)
        return tf.minimum(place, num_examples - 1)

    return order
