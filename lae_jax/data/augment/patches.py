"""Random patches: a box as torchvision's RandomResizedCrop draws it, cut out and resized."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

from lae_jax.data.augment import stateless
from lae_jax.data.augment.jitter import require
from lae_jax.data.augment.packing import compiled, on_image, size_of, to_image
from lae_jax.data.augment.resizing import resized
from lae_jax.faces.tensorflow import tf

AREA, ASPECT = (0.5, 1.0), (3 / 4, 4 / 3)
_TRIES = 10


def require_range(name: str, value: Sequence[float], high: float) -> None:
    """Raises ValueError that names the value unless it is a range within 0..`high`."""
    good = len(value) == 2 and 0 < value[0] <= value[1] <= high
    require(good, f"{name} is {value!r}: it must be (low, high) with 0 < low <= high <= {high}")


def draw_patch(
    height: int | tf.Tensor,
    width: int | tf.Tensor,
    seed: tf.Tensor,
    area: Sequence[float] = AREA,
    aspect: Sequence[float] = ASPECT,
) -> tf.Tensor:
    """Draws a patch as torchvision's RandomResizedCrop does.

    The first of ten tries that fits is used; else the largest centred patch whose aspect is in the range.

    Args:
        height: Height of the image, pixels.
        width: Width of the image, pixels.
        seed: int32 (2,).
        area: Range of the patch's share of the image, uniform.
        aspect: Range of width / height, log-uniform.

    Returns:
        int32 (4,): top, left, height, width.
    """
    return _patch_drawing(tuple(area), tuple(aspect))(seed, height, width)


@functools.cache
def _patch_drawing(area: tuple[float, float], aspect: tuple[float, float]) -> Callable:
    # Compiled for images of any size: 30 operations on a few numbers cost more than one call.
    return compiled(functools.partial(draw_box, area=area, aspect=aspect))


def draw_box(seed: tf.Tensor, height: tf.Tensor, width: tf.Tensor, area: tuple, aspect: tuple) -> tf.Tensor:
    """Draws as `draw_patch`, within a compiled function."""
    uniform = stateless.uniform([2 * _TRIES + 2], seed)
    image_sides = tf.cast(tf.stack([height, width]), tf.float32)
    share = area[0] + (area[1] - area[0]) * uniform[:_TRIES]
    log_low, log_high = math.log(aspect[0]), math.log(aspect[1])
    half_log = 0.5 * (log_low + (log_high - log_low) * uniform[_TRIES : 2 * _TRIES])
    side = tf.sqrt(share * (image_sides[0] * image_sides[1]))
    tries = tf.round(tf.stack([side * tf.exp(-half_log), side * tf.exp(half_log)], axis=1))
    fits = tf.reduce_all((tries >= 1.0) & (tries <= image_sides), axis=1)
    largest = tf.round(tf.minimum(image_sides, image_sides[::-1] * tf.constant([1 / aspect[0], aspect[1]], tf.float32)))
    # The fallback follows the tries and always fits: the first that fits is chosen.
    chosen = tf.argmax(tf.concat([fits, [True]], 0), output_type=tf.int32)
    sides = tf.gather(tf.concat([tries, largest[None]], 0), chosen)
    room = image_sides - sides
    corner = tf.where(chosen < _TRIES, tf.floor(uniform[2 * _TRIES :] * (room + 1.0)), tf.floor(room / 2.0))
    return tf.cast(tf.concat([corner, sides], 0), tf.int32)


@on_image
def random_patch(
    image: tf.Tensor,
    seed: tf.Tensor,
    size: int,
    area: Sequence[float] = AREA,
    aspect: Sequence[float] = ASPECT,
    words: bool = False,
) -> tf.Tensor:
    """Cuts a patch that `draw_patch` draws and resizes it bilinearly: uint8 (H, W, 3) -> uint8 (size, size, 3).

    Where the patch is larger than the result, it is filtered against aliasing, as in Pillow.

    Args:
        image: The image.
        seed: int32 (2,).
        size: Side of the result, pixels.
        area: As for `draw_patch`.
        aspect: As for `draw_patch`.
        words: Whether to return the patch as words, int32 (size, size).

    Raises:
        ValueError: `area` or `aspect` is not an allowed range.
    """
    require_range("area", area, 1.0)
    require_range("aspect", aspect, math.inf)
    result = cut(image, draw_patch(*size_of(image), seed, area, aspect), size)
    return result if words else to_image(result)


def cut(image: tf.Tensor, box: tf.Tensor, size: int, mirrored: tf.Tensor | bool = False) -> tf.Tensor:
    """Cuts a box (top, left, height, width) and resizes it bilinearly into words, int32 (size, size)."""
    patch = tf.slice(image, tf.pad(box[:2], [[0, 1]]), tf.concat([box[2:], [3]], 0))
    return resized(patch, size, "bilinear", mirrored)
