"""Resizing as in Pillow, into words: two passes down the rows, one for each axis, compiled together.

Pillow's C code (Resample.c, 8 bits a channel) is the definition: weights in whole 2^-22ths, levels rounded and clipped
after each pass, the width before the height (Pillow 13 reverses this order where the height shrinks by more than twice
the pixels). The compiled form gives Pillow's levels. TensorFlow's kernels, used for small results and for images far
larger than the result, are within 1 level.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np

from lae_jax.data.augment.packing import case, clip, compiled, from_image, packed, round_to_uint8
from lae_jax.faces.tensorflow import tf

METHODS = ("bilinear", "bicubic")
# Side of the result from which compiling pays: it takes half a second, once per process and entry of `_REACHES`.
_COMPILED_SIDE = 48
# Largest ratio of a side to that of the result. Each entry has separate compiled functions, which lengthen every start.
_REACHES = {"bilinear": (1.0, 1.5, 2.0, 2.25), "bicubic": (1.0, 1.5, 2.25, 4.0)}
_SUPPORT = {"bilinear": 1, "bicubic": 2}  # of the filter, to each side, in pixels of the smaller of image and result
_BITS = 22
_SHIFTS = np.array([0, 8, 16], np.int32).reshape(3, 1, 1)


def resized(image: tf.Tensor, size: int, method: str, mirrored: tf.Tensor | bool = False) -> tf.Tensor:
    """Resizes uint8 (h, w, 3) -> int32 words (size, size), filtered against aliasing.

    Args:
        image: The image.
        size: Side of the result, pixels.
        method: One of METHODS.
        mirrored: Whether left and right of the result are exchanged, bool ().
    """
    mirrored = tf.convert_to_tensor(mirrored)
    if size < _COMPILED_SIDE:
        return _by_kernels(image, mirrored, size, method)
    longest = tf.reduce_max(tf.shape(image)[:2])
    too_large = tf.cast(longest > _canvases(size, method), tf.int32)
    return case(tf.reduce_sum(too_large), _branches(size, method), image, mirrored)


def _canvases(size: int, method: str) -> list[int]:
    return [int(reach * size) for reach in _REACHES[method]]


@functools.cache
def _branches(size: int, method: str) -> list[tf.types.experimental.ConcreteFunction]:
    """One for each reach and one for larger images, traced once for all graphs and loops."""
    ways = [functools.partial(_compiled, size=size, canvas=n, method=method) for n in _canvases(size, method)]
    ways += [functools.partial(_by_kernels, size=size, method=method, larger=True)]
    signature = [tf.TensorSpec([None, None, 3], tf.uint8), tf.TensorSpec([], tf.bool)]
    with tf.init_scope():
        return [tf.function(way, signature, autograph=False).get_concrete_function() for way in ways]


def _by_kernels(image: tf.Tensor, mirrored: tf.Tensor, size: int, method: str, larger: bool = False) -> tf.Tensor:
    """Resizes with TensorFlow's kernels. `larger`: a side is known to be larger than `size`.

    Branches of a case need `larger`: called eagerly on a single core, a tf.cond inside a branch waits for ever.
    """
    filtered = functools.partial(tf.image.resize, method=method, antialias=True)
    if method == "bilinear" and larger:
        values = filtered(image, [size, size])
    elif method == "bilinear":
        longest = tf.reduce_max(tf.shape(image)[:2])
        # Without the filter it is three times as fast. The result is the same unless the image is larger.
        quick = functools.partial(tf.image.resize, image, [size, size])
        values = tf.cond(longest > size, lambda: filtered(image, [size, size]), quick)
    else:
        # Pillow rounds and clips between width and height. Overshoot at hard edges, if clipped late, is 9 levels off.
        values = filtered(tf.cast(image, tf.float32)[:, None], [1, size])
        values = tf.floor(clip(values, 0.0, 255.0) + 0.5)
        values = clip(filtered(tf.reshape(values, [1, -1, 1, 3 * size]), [size, 1]), 0.0, 255.0)
    words = from_image(round_to_uint8(tf.reshape(values, [size, size, 3])))
    return tf.where(mirrored, tf.reverse(words, [1]), words)


def _compiled(image: tf.Tensor, mirrored: tf.Tensor, size: int, canvas: int, method: str) -> tf.Tensor:
    # One canvas for all images, as a function is compiled for each shape. Padded as rows, which are copied whole.
    height, width = tf.unstack(tf.shape(image)[:2])
    rows = tf.pad(tf.reshape(image, [height, 3 * width]), [[0, canvas - height], [0, 3 * (canvas - width)]])
    return _passes(size, canvas, method)(tf.ensure_shape(rows, [canvas, 3 * canvas]), height, width, mirrored)


@functools.cache
def _passes(size: int, canvas: int, method: str) -> Callable:
    """uint8 (canvas, 3 canvas), of which an image counts; its height, width, `mirrored` -> words (size, size)."""
    # The largest number of pixels under the filter of a pixel of the result.
    taps = math.ceil(2 * _SUPPORT[method] * canvas / size)

    def passes(rows: tf.Tensor, height: tf.Tensor, width: tf.Tensor, mirrored: tf.Tensor) -> tf.Tensor:
        words = packed(tf.reshape(rows, [canvas, canvas, 3]))
        # XLA transposes as it packs and as it stores. TensorFlow's transpose takes as long as both passes.
        columns = [tf.where(mirrored, part[::-1], part) for part in _filters(width, size, taps, method)]
        narrow = _down(tf.transpose(words), *columns)
        return _down(tf.transpose(narrow), *_filters(height, size, taps, method))

    return compiled(passes)


def _down(words: tf.Tensor, rows: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """(canvas, m) words -> (size, m): sums of rows with weights. Rows and weights are (size, taps)."""
    levels = tf.bitwise.right_shift(words, _SHIFTS) & 255
    total = 2 ** (_BITS - 1)
    # One tap after the other: for some numbers of taps, a sum over an axis in XLA takes up to thirty times as long.
    for row, weight in zip(tf.unstack(rows, axis=1), tf.unstack(weights[..., None], axis=1), strict=True):
        total += tf.gather(levels, row, axis=1) * weight
    return tf.reduce_sum(tf.bitwise.left_shift(clip(tf.bitwise.right_shift(total, _BITS), 0, 255), _SHIFTS), axis=0)


def _filters(side: tf.Tensor, size: int, taps: int, method: str) -> tuple[tf.Tensor, tf.Tensor]:
    """int32 (size, taps) each: the rows of an image of `side` that make a row of the result, and their weights."""
    twice_centre = (2 * tf.range(size)[:, None] + 1) * side  # in size-ths of a pixel, as `larger`
    larger = tf.maximum(side, size)
    # In integers: XLA computes this once for the rows and once for the weights, and floats would round differently.
    first = (twice_centre - 2 * _SUPPORT[method] * larger + size) // (2 * size)
    rows = tf.maximum(tf.minimum(first, side - taps), 0) + tf.range(taps)
    scale, centre = tf.cast(larger, tf.float64) / size, tf.cast(twice_centre, tf.float64) / (2 * size)
    weights = _KERNELS[method](tf.abs((tf.cast(rows, tf.float64) - centre + 0.5) / scale))
    weights *= tf.cast(rows < side, tf.float64)
    weights /= tf.reduce_sum(weights, axis=1, keepdims=True)
    return rows, tf.cast(tf.round(weights * 2.0**_BITS), tf.int32)


def _triangle(x: tf.Tensor) -> tf.Tensor:
    return tf.maximum(1.0 - x, 0.0)


def _cubic(x: tf.Tensor) -> tf.Tensor:
    """Keys (1981), a = -0.5."""
    near, far = (1.5 * x - 2.5) * x * x + 1.0, (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
    return tf.where(x < 1.0, near, tf.where(x < 2.0, far, 0.0))


_KERNELS = {"bilinear": _triangle, "bicubic": _cubic}
