"""Random numbers of tf.random's stateless functions, the same numbers where XLA compiles them.

XLA reads negative words of a seed differently and makes floats of other bits, so both steps are written out here, from
the operation whose bits agree: Philox with an explicit key and counter.
"""

from __future__ import annotations

from collections.abc import Sequence

from lae_jax.faces.tensorflow import tf

_PHILOX = 1
_SCRAMBLE = 0x02461E293EC8F720  # the key with which TensorFlow scrambles a seed


def _words(shape: Sequence[int], key: tf.Tensor, counter: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    return tf.raw_ops.StatelessRandomUniformFullIntV2(shape=shape, key=key, counter=counter, alg=_PHILOX, dtype=dtype)


def _full_range(shape: Sequence[int], seed: tf.Tensor) -> tf.Tensor:
    counter = tf.bitcast(tf.cast(seed, tf.int64), tf.uint64)
    scrambled = _words([4], tf.constant([_SCRAMBLE], tf.uint64), counter, tf.uint32)
    key, counter = tf.unstack(tf.bitcast(tf.reshape(scrambled, [2, 2]), tf.uint64))
    return _words(shape, key[None], tf.stack([tf.zeros([], tf.uint64), counter]), tf.int32)


def split(seed: tf.Tensor, count: int) -> tf.Tensor:
    """Returns int32 (count, 2), the seeds of tf.random.split; `seed` is int32 (2,)."""
    return _full_range([count, 2], seed)


def uniform(shape: Sequence[int], seed: tf.Tensor) -> tf.Tensor:
    """Returns float32 numbers in [0, 1), those of tf.random.stateless_uniform; `seed` is int32 (2,)."""
    mantissa = _full_range(shape, seed) & 0x7FFFFF
    return tf.bitcast(mantissa | 0x3F800000, tf.float32) - 1.0
