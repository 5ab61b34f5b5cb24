"""The 14 operations of RandAugment in TensorFlow, each as in Pillow, on words (see `packing.py`) or on images.

Pillow's C code is the definition (ImageOps, ImageEnhance, Image.rotate, Image.transform). The forms here are the
fastest that agree with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from lae_jax.data.augment.packing import channel, channels, clip, compiled, fused, join, on_words, rounded, size_of
from lae_jax.faces.tensorflow import tf


def _grey(words: tf.Tensor) -> tf.Tensor:
    """convert('L'): ITU-R 601 in 16 bits, rounded; int32."""
    red, green, blue = channels(words, tf.int32)
    return tf.bitwise.right_shift(19595 * red + 38470 * green + 7471 * blue + 32768, 16)


def _blend(other, level: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Image.blend: `other` where the factor is 0, the level where it is 1. float32."""
    # Pillow rounds the product and the sum.
    return clip(other + rounded(factor * (level - other)), 0.0, 255.0)


# Grey levels


@on_words
def identity(words: tf.Tensor, value: tf.Tensor | float = 0.0) -> tf.Tensor:
    """Returns the image; `value` is ignored."""
    del value
    return words


@on_words
def auto_contrast(words: tf.Tensor, value: tf.Tensor | float = 0.0) -> tf.Tensor:
    """ImageOps.autocontrast: each channel stretched to 0..255; `value` is ignored."""
    del value
    return _look_up(words, _stretched(words))


# Tables have compiled functions of their own: within `_look_up`, XLA would compute them again for each pixel.


@fused
def _stretched(words: tf.Tensor) -> tf.Tensor:
    """auto_contrast's table, int32 (3, 256)."""
    height, width = size_of(words)
    # Reduces over the rows first: 32 bytes of long rows are compared at a time.
    rows = tf.reshape(tf.bitcast(words, tf.uint8), [height, 4 * width])
    columns = [tf.reshape(reduce(rows, axis=0), [-1, 4]) for reduce in (tf.reduce_min, tf.reduce_max)]
    low = tf.cast(tf.reduce_min(columns[0], axis=0)[:3], tf.float64)
    high = tf.cast(tf.reduce_max(columns[1], axis=0)[:3], tf.float64)
    # float64 as in Pillow's table: its rounding decides whether 255 * (x - low) / (high - low) is truncated to 254.
    spread = high - low
    scale = 255.0 / tf.where(spread > 0.0, spread, tf.constant(255.0, tf.float64))
    offset = tf.where(spread > 0.0, -rounded(low * scale), tf.zeros_like(low))
    table = rounded(tf.range(256.0, dtype=tf.float64) * scale[:, None]) + offset[:, None]
    return tf.cast(clip(table, 0.0, 255.0), tf.int32)


@on_words
def equalize(words: tf.Tensor, value: tf.Tensor | float = 0.0) -> tf.Tensor:
    """ImageOps.equalize: each channel's histogram made flat; `value` is ignored."""
    del value
    # XLA counts one pixel after the other and takes three times as long.
    counts = tf.raw_ops.Bincount(arr=_places(words), size=4 * 768, weights=tf.constant([], tf.int32))
    return _look_up(words, _flat(counts))


@fused
def _places(words: tf.Tensor) -> tf.Tensor:
    """Level + 256 * channel + 768 * column modulo 4, int32 (3, H, W)."""
    # A count that follows one of the same level waits for it, and neighbours are alike: each of four has its own count.
    columns = tf.range(size_of(words)[1]) % 4 * 768
    return tf.stack([channel(words, number) + (columns + 256 * number) for number in range(3)])


@compiled
def _flat(counts: tf.Tensor) -> tf.Tensor:
    """Equalize's table, int32 (3, 256)."""
    counts = tf.reduce_sum(tf.reshape(counts, [4, 3, 256]), axis=0)
    before = tf.cumsum(counts, axis=1, exclusive=True)
    # Pillow's step excludes the last level that occurs. The count before it is the largest of all levels with pixels.
    step = tf.reduce_max(tf.where(counts > 0, before, 0), axis=1, keepdims=True) // 255
    levels = tf.minimum((before + step // 2) // tf.maximum(step, 1), 255)
    return tf.where(step > 0, levels, tf.range(256)[None])


@fused
def _look_up(words: tf.Tensor, table: tf.Tensor) -> tf.Tensor:
    """Replaces the levels of red, green and blue by those of `table`, int32 (3, 256)."""
    return join([tf.gather(table[number], channel(words, number)) for number in range(3)])


@on_words
def solarize(words: tf.Tensor, value: tf.Tensor | float) -> tf.Tensor:
    """ImageOps.solarize: levels of at least `value` (0..256) are inverted."""
    return _solarize(words, tf.cast(value, tf.float32))


@fused
def _solarize(words: tf.Tensor, value: tf.Tensor) -> tf.Tensor:
    return join([tf.where(levels >= value, 255.0 - levels, levels) for levels in channels(words)])


@on_words
def posterize(words: tf.Tensor, value: tf.Tensor | float) -> tf.Tensor:
    """ImageOps.posterize: the upper `value` bits (1..8) of each level."""
    dropped = 8 - tf.cast(value, tf.int32)
    return words & ((256 - tf.bitwise.left_shift(1, dropped)) * 0x010101)


@on_words
def color(words: tf.Tensor, value: tf.Tensor | float) -> tf.Tensor:
    """ImageEnhance.Color: factor 0 is grey, 1 the image."""
    return _color(words, tf.cast(value, tf.float32))


@fused
def _color(words: tf.Tensor, value: tf.Tensor) -> tf.Tensor:
    grey = tf.cast(_grey(words), tf.float32)
    return join([_blend(grey, levels, value) for levels in channels(words)])


@on_words
def contrast(words: tf.Tensor, value: tf.Tensor | float) -> tf.Tensor:
    """ImageEnhance.Contrast: factor 0 is the mean grey, 1 the image."""
    return _contrast(words, tf.cast(value, tf.float32))


@fused
def _contrast(words: tf.Tensor, value: tf.Tensor) -> tf.Tensor:
    height, width = size_of(words)
    # In two steps: the sum of a column fits into int32.
    total = tf.reduce_sum(tf.cast(tf.reduce_sum(_grey(words), axis=0), tf.float64))
    mean = tf.cast(tf.floor(total / tf.cast(height * width, tf.float64) + 0.5), tf.float32)
    return join([_blend(mean, levels, value) for levels in channels(words)])


@on_words
def brightness(words: tf.Tensor, value: tf.Tensor | float) -> tf.Tensor:
    """ImageEnhance.Brightness: factor 0 is black, 1 the image."""
    return _brightness(words, tf.cast(value, tf.float32))


@fused
def _brightness(words: tf.Tensor, value: tf.Tensor) -> tf.Tensor:
    return join([clip(levels * value, 0.0, 255.0) for levels in channels(words)])


@on_words
def sharpness(words: tf.Tensor, value: tf.Tensor | float) -> tf.Tensor:
    """ImageEnhance.Sharpness: factor 0 is ImageFilter.SMOOTH (the outermost pixels stay), 1 the image; H, W >= 2."""
    return _sharpness(words, tf.cast(value, tf.float32))


@fused
def _sharpness(words: tf.Tensor, value: tf.Tensor) -> tf.Tensor:
    centre = words[1:-1, 1:-1]
    # Sums of 13 levels have 12 bits: red and blue are summed in one word.
    red_blue, green = _box(words & 0xFF00FF), _box(channel(words, 1))
    sums = [red_blue & 0xFFFF, green, tf.bitwise.right_shift(red_blue, 16)]
    smooth = [tf.floor(tf.cast(levels, tf.float32) * (1.0 / 13.0) + 0.5) for levels in sums]
    sharp = join([_blend(s, levels, value) for s, levels in zip(smooth, channels(centre), strict=True)])
    middle = tf.concat([words[1:-1, :1], sharp, words[1:-1, -1:]], axis=1)
    return tf.concat([words[:1], middle, words[-1:]], axis=0)


def _box(words: tf.Tensor) -> tf.Tensor:
    """3 x 3 sums with a weight of 5 for the centre."""
    rows = words[:-2] + words[1:-1] + words[2:]
    return rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * words[1:-1, 1:-1]


# Geometry: nearest pixel, black outside. Pillow steps through the source in 16.16 fixed point.


def _fixed(value: tf.Tensor) -> tf.Tensor:
    """float64 -> 16.16 fixed point, int32."""
    return tf.cast(tf.floor(value * 65536.0 + 0.5), tf.int32)


def _whole(fixed: tf.Tensor) -> tf.Tensor:
    return tf.bitwise.right_shift(fixed, 16)


def _take(bordered: tf.Tensor, source_y: tf.Tensor, source_x: tf.Tensor) -> tf.Tensor:
    """The pixels at int32 (H, W) coordinates, black outside; `bordered`, (H + 2, W + 2), has a black border."""
    height, width = size_of(bordered)
    places = clip(source_y + 1, 0, height - 1) * width + clip(source_x + 1, 0, width - 1)
    return tf.gather(tf.reshape(bordered, [-1]), places)


def _border(words: tf.Tensor) -> tf.Tensor:
    # Outside the compiled function: inside, XLA tests every pixel for the border and takes three times as long.
    return tf.pad(words, [[1, 1], [1, 1]])


def _grid(bordered: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Row and column of each pixel, int32 (H, 1) and (1, W)."""
    height, width = size_of(bordered)
    return tf.range(height - 2)[:, None], tf.range(width - 2)[None]


@on_words
def rotate(words: tf.Tensor, value: tf.Tensor | float) -> tf.Tensor:
    """Image.rotate about the centre by `value` degrees, counter-clockwise."""
    height, width = size_of(words)
    angle = tf.cast(value, tf.float64) * (-math.pi / 180.0)
    cos, sin = tf.cos(angle), tf.sin(angle)
    half_width, half_height = tf.cast(width, tf.float64) / 2.0, tf.cast(height, tf.float64) / 2.0
    # The source of the first pixel's centre.
    left = half_width + cos * (0.5 - half_width) + sin * (0.5 - half_height)
    top = half_height - sin * (0.5 - half_width) + cos * (0.5 - half_height)
    return _rotate(_border(words), _fixed(tf.stack([left, top, cos, sin])))


@fused
def _rotate(bordered: tf.Tensor, fixed: tf.Tensor) -> tf.Tensor:
    left, top, cos, sin = tf.unstack(fixed)
    y, x = _grid(bordered)
    return _take(bordered, _whole(top - sin * x + cos * y), _whole(left + cos * x + sin * y))


def _shear(value) -> tf.Tensor:
    """Start and slope of the source's coordinate, fixed."""
    slope = tf.cast(value, tf.float64)
    return _fixed(tf.stack([slope * 0.5 + 0.5, slope]))


@on_words
def shear_x(words: tf.Tensor, value: tf.Tensor | float) -> tf.Tensor:
    """Image.transform, affine (1, value, 0, 0, 1, 0): x_in = x + value * y."""
    return _shear_x(_border(words), _shear(value))


@fused
def _shear_x(bordered: tf.Tensor, fixed: tf.Tensor) -> tf.Tensor:
    y, x = _grid(bordered)
    return _take(bordered, y, x + _whole(fixed[0] + fixed[1] * y))


@on_words
def shear_y(words: tf.Tensor, value: tf.Tensor | float) -> tf.Tensor:
    """Image.transform, affine (1, 0, 0, value, 1, 0): y_in = y + value * x."""
    return _shear_y(_border(words), _shear(value))


@fused
def _shear_y(bordered: tf.Tensor, fixed: tf.Tensor) -> tf.Tensor:
    y, x = _grid(bordered)
    return _take(bordered, y + _whole(fixed[0] + fixed[1] * x), x)


def _shift(value, side) -> tuple[tf.Tensor, tf.Tensor]:
    """Whole pixels to drop at the start and at the end of an axis of `side` pixels."""
    pixels = clip(tf.cast(tf.floor(tf.cast(value, tf.float32) + 0.5), tf.int32), -side, side)
    return tf.maximum(pixels, 0), tf.maximum(-pixels, 0)


@on_words
def translate_x(words: tf.Tensor, value: tf.Tensor | float) -> tf.Tensor:
    """Image.transform, affine (1, 0, value, 0, 1, 0): x_in = x + value."""
    width = size_of(words)[1]
    start, end = _shift(value, width)
    return tf.ensure_shape(tf.pad(words[:, start : width - end], [[0, 0], [end, start]]), words.shape)


@on_words
def translate_y(words: tf.Tensor, value: tf.Tensor | float) -> tf.Tensor:
    """Image.transform, affine (1, 0, 0, 0, 1, value): y_in = y + value."""
    height = size_of(words)[0]
    start, end = _shift(value, height)
    return tf.ensure_shape(tf.pad(words[start : height - end], [[end, start], [0, 0]]), words.shape)


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
