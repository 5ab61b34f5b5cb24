"""Bilinear resizing to at least the size that a patch has: TensorFlow's and Pillow's result in two compiled passes."""

from __future__ import annotations

import numpy as np

from lae_jax.data.tensorflow import tf
from lae_jax.data.words import COMPILED_PIXELS, clip, from_image, fused, join, round_to_uint8


def enlarge(patch: tf.Tensor, size: int) -> tf.Tensor:
    """uint8 (h, w, 3), h and w in 1..size -> int32 words (size, size), half a level rounded up. Bilinear.

    tf.image.resize, rounding and packing take 1.5 times as long at 224 pixels.
    """
    if size * size < COMPILED_PIXELS:
        return from_image(tf.ensure_shape(round_to_uint8(tf.image.resize(patch, [size, size])), [size, size, 3]))
    height, width = tf.unstack(tf.shape(patch)[:2])
    # On a canvas of one size for all, since a function is compiled for each shape; as rows, which are copied whole.
    rows = tf.pad(tf.reshape(patch, [height, 3 * width]), [[0, size - height], [0, 3 * (size - width)]])
    canvas = tf.ensure_shape(rows, [size, 3 * size])
    above, below, down = _between(height, size)
    left, right, across = _between(width, size)
    return _columns(_lines(canvas, above, below, down), left, right, across)


def _between(side: tf.Tensor, size: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """For each of `size` pixels the two that it lies between among `side` ones, int32, and how far from the first."""
    # One product with a constant: several are put together in a graph and not in eager mode, which rounds otherwise.
    centre = np.float32((np.arange(size) + 0.5) / size) * tf.cast(side, tf.float32) - 0.5
    last = tf.cast(side - 1, tf.float32)
    centre = clip(centre, 0.0, last)
    first = tf.floor(centre)
    return tf.cast(first, tf.int32), tf.cast(tf.minimum(first + 1.0, last), tf.int32), centre - first


@fused
def _lines(canvas: tf.Tensor, above: tf.Tensor, below: tf.Tensor, share: tf.Tensor) -> tf.Tensor:
    """uint8 (size, 3 size) -> float32 of that shape."""
    upper, lower = (tf.cast(tf.gather(canvas, rows), tf.float32) for rows in (above, below))
    return upper + (lower - upper) * share[:, None]


@fused
def _columns(lines: tf.Tensor, left: tf.Tensor, right: tf.Tensor, share: tf.Tensor) -> tf.Tensor:
    """float32 (size, 3 size) -> words."""
    size = lines.shape[0]
    flat, starts = tf.reshape(lines, [-1]), (np.arange(size, dtype=np.int32) * 3 * size)[:, None]
    levels = []
    for channel in range(3):
        near, far = (tf.gather(flat, starts + (3 * columns + channel)[None]) for columns in (left, right))
        levels.append(near + (far - near) * share + 0.5)
    return join(levels)
