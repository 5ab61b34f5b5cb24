"""The 14 operations of RandAugment in TensorFlow, each as Pillow does it.

Pillow's C code is the definition (ImageOps, ImageEnhance, Image.rotate, Image.transform); the forms here are the
fastest of those that agree with it. Two-dimensional (H, 3W) views are quicker than (H, W, 3) in TensorFlow's kernels.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np

from lae_jax.data.tensorflow import tf

# Above this many pixels a 3 x 65536 table that maps two bytes at once pays for being built.
_PAIR_TABLE_PIXELS = 96 * 96
# ITU-R 601 grey as Pillow's convert('L'): integers over 2**16. All sums stay below 2**24, so float32 is exact.
_GREY = np.array([19595, 38470, 7471], np.float32) / np.float32(65536)


def on_image(function: Callable) -> Callable:
    """`function` of a uint8 tensor (H, W, 3), for arrays as well; another type of level is an error."""

    @tf.autograph.experimental.do_not_convert  # nothing to convert, and looking for it takes seconds
    @functools.wraps(function)
    def call(image, *args, **kwargs):
        return function(tf.convert_to_tensor(image, tf.uint8), *args, **kwargs)

    return call


def size_of(image: tf.Tensor) -> tuple:
    """(H, W): Python ints where the shape is static, int32 scalars where it is not."""
    static = image.shape[:2].as_list()
    if None not in static:
        return tuple(static)
    dynamic = tf.shape(image)
    return tuple(dynamic[i] if side is None else side for i, side in enumerate(static))


def in_rows(values, width):
    """(3,) -> (3 `width`,): a value for each channel, for a row of (H, 3W)."""
    if isinstance(width, int) and isinstance(values, np.ndarray):
        return np.tile(values, width)
    return tf.tile(values, [width])


def clip(values: tf.Tensor, low: float, high: float) -> tf.Tensor:
    """As tf.clip_by_value, without its checks; raw_ops.ClipByValue, in one pass, is slower than these two."""
    return tf.minimum(tf.maximum(values, low), high)


def _rows(image: tf.Tensor, dtype: tf.DType = tf.float32) -> tf.Tensor:
    """uint8 (H, W, 3) -> (H, 3W) of `dtype`."""
    height, width = size_of(image)
    return tf.cast(tf.reshape(image, [height, 3 * width]), dtype)


def _finish(values: tf.Tensor, image: tf.Tensor) -> tf.Tensor:
    """Truncate to uint8, as a C cast does, in the shape of `image`."""
    height, width = size_of(image)
    result = tf.reshape(tf.cast(values, tf.uint8), [height, width, 3])
    result.set_shape(image.shape)
    return result


def _scalar(value) -> tf.Tensor:
    return tf.cast(value, tf.float32)


# Grey levels


@on_image
def identity(image: tf.Tensor, value=0.0) -> tf.Tensor:
    """The image itself."""
    del value
    return image


@on_image
def auto_contrast(image: tf.Tensor, value=0.0) -> tf.Tensor:
    """ImageOps.autocontrast: each channel stretched to 0..255; `value` is ignored."""
    del value
    _, width = size_of(image)
    channels = tf.transpose(tf.reshape(image, [-1, 3]))
    # float64 as in Pillow's table: whether 255 * (x - low) / (high - low) is truncated to 254 hangs on its rounding.
    low = tf.cast(tf.reduce_min(channels, axis=1), tf.float64)
    high = tf.cast(tf.reduce_max(channels, axis=1), tf.float64)
    flat = high <= low
    one, zero = tf.ones_like(low), tf.zeros_like(low)
    scale = tf.where(flat, one, 255.0 / tf.where(flat, one, high - low))
    offset = tf.where(flat, zero, -low * scale)
    values = _rows(image, tf.float64) * in_rows(scale, width) + in_rows(offset, width)
    return _finish(values, image)


@on_image
def equalize(image: tf.Tensor, value=0.0) -> tf.Tensor:
    """ImageOps.equalize: each channel's histogram made flat; `value` is ignored."""
    del value
    _, width = size_of(image)
    indices = _rows(image, tf.int32) + in_rows(np.array([0, 256, 512], np.int32), width)
    counts = tf.reshape(tf.raw_ops.Bincount(arr=indices, size=768, weights=tf.constant([], tf.int32)), [3, 256])
    before = tf.cumsum(counts, axis=1, exclusive=True)
    # Pillow leaves the last level that occurs out of the step: what stands before it is the largest sum that a level
    # with pixels has.
    step = tf.reduce_max(tf.where(counts > 0, before, 0), axis=1, keepdims=True) // 255
    levels = tf.minimum((step // 2 + before) // tf.maximum(step, 1), 255)
    table = tf.where(step > 0, levels, tf.range(256))
    pixels = image.shape[:2].num_elements()
    if pixels is None or pixels < _PAIR_TABLE_PIXELS:
        return _finish(tf.gather_nd(tf.reshape(tf.cast(table, tf.uint8), [768]), indices[..., None]), image)
    return _finish(_map_pairs(image, tf.cast(table, tf.uint16)), image)


def _map_pairs(image: tf.Tensor, table: tf.Tensor) -> tf.Tensor:
    """Look two bytes up at once: two pixels are the pairs (R, G), (B, R), (G, B), the first byte being the low one."""
    height, width = size_of(image)
    pairs_in_row = 3 * (width + width % 2) // 2
    even = tf.pad(image, [[0, 0], [0, width % 2], [0, 0]])
    pairs = tf.cast(tf.bitcast(tf.reshape(even, [height, pairs_in_row, 2]), tf.uint16), tf.int32)
    low, high = tf.gather(table, [0, 2, 1]), tf.gather(table, [1, 0, 2])
    both = tf.reshape(high[:, :, None] * 256 + low[:, None, :], [3 * 65536])
    indices = pairs + in_rows(np.array([0, 65536, 131072], np.int32), pairs_in_row // 3)
    mapped = tf.bitcast(tf.gather_nd(both, indices[..., None]), tf.uint8)
    return tf.reshape(mapped, [height, -1])[:, : 3 * width]


@on_image
def solarize(image: tf.Tensor, value) -> tf.Tensor:
    """ImageOps.solarize: levels of at least `value` (0..256) are inverted."""
    values = _rows(image)
    # A float threshold: 256, which inverts nothing, does not fit into uint8.
    inverted = tf.cast(values >= tf.math.ceil(_scalar(value)), tf.float32)
    return _finish(tf.abs(values - 255.0 * inverted), image)


@on_image
def posterize(image: tf.Tensor, value) -> tf.Tensor:
    """ImageOps.posterize: the upper `value` bits (1..8) of each level."""
    dropped = 8 - tf.cast(value, tf.int32)
    mask = 255 - (tf.bitwise.left_shift(1, dropped) - 1)
    return tf.bitwise.bitwise_and(image, tf.cast(mask, tf.uint8))


@on_image
def color(image: tf.Tensor, value) -> tf.Tensor:
    """ImageEnhance.Color: factor 0 is grey, 1 the image."""
    values, matrix = pixel_blocks(tf.cast(image, tf.float32), _GREY)
    grey = tf.floor(tf.matmul(values, matrix) + 0.5)
    return _finish(clip(grey + _scalar(value) * (values - grey), 0.0, 255.0), image)


def pixel_blocks(image: tf.Tensor, weights: np.ndarray) -> tuple[tf.Tensor, np.ndarray]:
    """float32 (H, W, 3) -> (H W / k, 3k), and the (3k, 3k) matrix that gives each pixel's grey in all its channels.

    k is 8 where H W allows it: a product with a 24 x 24 matrix takes a third of the time of one with a 3 x 3 matrix.
    """
    block = math.gcd(image.shape[:2].num_elements() or 1, 8)
    matrix = np.kron(np.eye(block), np.repeat(weights[:, None], 3, axis=1)).astype(np.float32)
    return tf.reshape(image, [-1, 3 * block]), matrix


def mean_grey(rows: tf.Tensor, weights: np.ndarray, height, width) -> tf.Tensor:
    """The mean over all pixels of float32 (H, 3W) `rows`, with `weights` (3,) for the channels."""
    # Down the columns first: a product of the whole with the weights takes four times as long.
    sums = tf.reduce_sum(rows, axis=0) * in_rows(weights, width)
    return tf.reduce_sum(sums) / tf.cast(height * width, tf.float32)


@on_image
def contrast(image: tf.Tensor, value) -> tf.Tensor:
    """ImageEnhance.Contrast: factor 0 is the mean grey, 1 the image."""
    values = _rows(image)
    grey = tf.floor(mean_grey(values, _GREY, *size_of(image)) + 0.5)
    return _finish(clip(grey + _scalar(value) * (values - grey), 0.0, 255.0), image)


@on_image
def brightness(image: tf.Tensor, value) -> tf.Tensor:
    """ImageEnhance.Brightness: factor 0 is black, 1 the image."""
    return _finish(clip(_rows(image) * _scalar(value), 0.0, 255.0), image)


@on_image
def sharpness(image: tf.Tensor, value) -> tf.Tensor:
    """ImageEnhance.Sharpness: factor 0 is ImageFilter.SMOOTH (the outermost pixels stay), 1 the image; H, W >= 2."""
    values = _rows(image)
    columns = values[:-2] + values[1:-1] + values[2:]
    box = columns[:, :-6] + columns[:, 3:-3] + columns[:, 6:]
    centre = values[1:-1, 3:-3]
    smooth = tf.floor((box + 4.0 * centre) * (1.0 / 13.0) + 0.5)
    detail = tf.pad(centre - smooth, [[1, 1], [3, 3]])
    # In Pillow's order of rounding: smooth + factor * (image - smooth).
    return _finish(clip((values - detail) + _scalar(value) * detail, 0.0, 255.0), image)


# Geometry: nearest pixel, black outside. Pillow steps through the source in 16.16 fixed point.


def _fixed(value: tf.Tensor) -> tf.Tensor:
    """float64 -> 16.16 fixed point, int32."""
    return tf.cast(tf.floor(value * 65536.0 + 0.5), tf.int32)


def _pixels(fixed: tf.Tensor) -> tf.Tensor:
    return tf.cast(fixed, tf.float32) / 65536.0


def _whole(fixed: tf.Tensor) -> tf.Tensor:
    return tf.bitwise.right_shift(fixed, 16)


def _take(padded: tf.Tensor, indices: tf.Tensor, image: tf.Tensor) -> tf.Tensor:
    """Pixels of `padded` (any shape of pixels, 3) at flat `indices`. gather_nd is quicker than gather for this copy."""
    return _finish(tf.gather_nd(tf.reshape(padded, [-1, 3]), tf.reshape(indices, [-1, 1])), image)


@on_image
def rotate(image: tf.Tensor, value) -> tf.Tensor:
    """Image.rotate about the centre by `value` degrees, counter-clockwise."""
    height, width = size_of(image)
    angle = tf.cast(value, tf.float64) * (-math.pi / 180.0)
    cos, sin = tf.cos(angle), tf.sin(angle)
    half_width, half_height = tf.cast(width, tf.float64) / 2.0, tf.cast(height, tf.float64) / 2.0
    # The source of the first pixel's centre, moved by one for the black border.
    left = half_width + cos * (0.5 - half_width) + sin * (0.5 - half_height) + 1.0
    top = half_height - sin * (0.5 - half_width) + cos * (0.5 - half_height) + 1.0
    x, y = tf.range(width), tf.range(height)[:, None]
    cos, sin = _fixed(cos), _fixed(sin)
    # float32 holds these integers exactly up to 256 pixels, and its floor is quicker than an integer shift.
    source_x = tf.floor(_pixels(_fixed(left) + cos * x) + _pixels(sin * y))
    source_y = tf.floor(_pixels(_fixed(top) - sin * x) + _pixels(cos * y))
    source_x = clip(tf.cast(source_x, tf.int32), 0, width + 1)
    source_y = clip(tf.cast(source_y, tf.int32), 0, height + 1)
    return _take(tf.pad(image, [[1, 1], [1, 1], [0, 0]]), source_y * (width + 2) + source_x, image)


@on_image
def shear_x(image: tf.Tensor, value) -> tf.Tensor:
    """Image.transform, affine (1, value, 0, 0, 1, 0): x_in = x + value * y."""
    height, width = size_of(image)
    slope = tf.cast(value, tf.float64)
    y = tf.range(height)
    shift = _whole(_fixed(slope * 0.5 + 0.5) + _fixed(slope) * y) + 1
    source = clip(tf.range(width) + shift[:, None], 0, width + 1) + (y * (width + 2))[:, None]
    return _take(tf.pad(image, [[0, 0], [1, 1], [0, 0]]), source, image)


@on_image
def shear_y(image: tf.Tensor, value) -> tf.Tensor:
    """Image.transform, affine (1, 0, 0, value, 1, 0): y_in = y + value * x."""
    height, width = size_of(image)
    slope = tf.cast(value, tf.float64)
    x = tf.range(width)
    shift = _whole(_fixed(slope * 0.5 + 0.5) + _fixed(slope) * x) + 1
    # Whole rows as multiples of the width: clipping them keeps the column.
    source = clip((tf.range(height) * width)[:, None] + shift * width, 0, (height + 1) * width) + x
    return _take(tf.pad(image, [[1, 1], [0, 0], [0, 0]]), source, image)


def _shift(value, side) -> tuple[tf.Tensor, tf.Tensor]:
    """Whole pixels to leave out at the start and at the end of an axis of `side` pixels."""
    pixels = clip(tf.cast(tf.floor(_scalar(value) + 0.5), tf.int32), -side, side)
    return tf.maximum(pixels, 0), tf.maximum(-pixels, 0)


@on_image
def translate_x(image: tf.Tensor, value) -> tf.Tensor:
    """Image.transform, affine (1, 0, value, 0, 1, 0): x_in = x + value."""
    height, width = size_of(image)
    start, end = _shift(value, width)
    rows = tf.reshape(image, [height, 3 * width])[:, 3 * start : 3 * (width - end)]
    return _finish(tf.pad(rows, [[0, 0], [3 * end, 3 * start]]), image)


@on_image
def translate_y(image: tf.Tensor, value) -> tf.Tensor:
    """Image.transform, affine (1, 0, 0, 0, 1, value): y_in = y + value."""
    height, width = size_of(image)
    start, end = _shift(value, height)
    rows = tf.reshape(image, [height, 3 * width])[start : height - end]
    return _finish(tf.pad(rows, [[end, start], [0, 0]]), image)


OPS: dict[str, Callable[[tf.Tensor, float], tf.Tensor]] = {
    operation.__name__: operation
    for operation in (
        identity,
        auto_contrast,
        equalize,
        rotate,
        solarize,
        color,
        posterize,
        contrast,
        brightness,
        sharpness,
        shear_x,
        shear_y,
        translate_x,
        translate_y,
    )
}
