"""Colour jitter as torchvision defines it on float tensors: brightness, contrast, saturation, hue, and an offset.

It has two forms. The definition runs step after step, for images that are small or of unknown size. Large images use a
compiled chain of all steps that reads the image once, or twice if contrast is a step.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from lae_jax.data.augment import stateless
from lae_jax.data.augment.packing import (
    case,
    channels,
    clip,
    fused,
    is_large,
    join,
    on_image,
    on_words,
    round_to_uint8,
    rounded,
    size_of,
    to_image,
)
from lae_jax.data.augment.packing import from_image as to_words
from lae_jax.faces.tensorflow import tf

# torchvision's grey of a tensor; Pillow's convert('L') has more digits.
_GREY = np.array([0.2989, 0.587, 0.114], np.float32)


def require(condition: bool, message: str) -> None:
    """Raises ValueError with `message` unless the condition holds."""
    if not condition:
        raise ValueError(message)


def require_between(name: str, value: float, low: float, high: float) -> None:
    """Raises ValueError that names the value and its range unless `low` <= `value` <= `high`."""
    require(low <= value <= high, f"{name} is {value!r}: it must be in {low}..{high}")


# Colour jitter: each step on float32 (H, W, 3) of grey levels, clipped to 0..255


def _brightness_step(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    return tf.minimum(image * factor, 255.0)


def _contrast_step(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    height, width = size_of(image)
    # Sums the columns first: a product of the whole image with the weights takes four times as long.
    columns = tf.reduce_sum(image, axis=0)
    grey = tf.reduce_sum(columns * _GREY) / tf.cast(height * width, tf.float32)
    return clip(image * factor + (1.0 - factor) * grey, 0.0, 255.0)


def _pixel_blocks(image: tf.Tensor) -> tuple[tf.Tensor, np.ndarray]:
    """float32 (H, W, 3) -> (H W / k, 3k), and the (3k, 3k) matrix that gives each pixel's grey in all its channels.

    k is 8 if 8 divides H W: a product with a 24 x 24 matrix takes a third of the time of one with a 3 x 3 matrix.
    """
    block = math.gcd(image.shape[:2].num_elements() or 1, 8)
    matrix = np.kron(np.eye(block), np.repeat(_GREY[:, None], 3, axis=1)).astype(np.float32)
    return tf.reshape(image, [-1, 3 * block]), matrix


def _saturation_step(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    values, matrix = _pixel_blocks(image)
    blend = factor * np.eye(len(matrix), dtype=np.float32) + (1.0 - factor) * matrix
    return tf.reshape(clip(tf.matmul(values, blend), 0.0, 255.0), [*size_of(image), 3])


def _hue_step(image: tf.Tensor, shift: tf.Tensor) -> tf.Tensor:
    return tf.raw_ops.AdjustHue(images=image, delta=shift)


def _offset_step(image: tf.Tensor, levels: tf.Tensor) -> tf.Tensor:
    return clip(image + levels, 0.0, 255.0)


def _on_uint8(step: Callable, image: tf.Tensor, value) -> tf.Tensor:
    return round_to_uint8(step(tf.cast(image, tf.float32), tf.cast(value, tf.float32)))


@on_image
def adjust_brightness(image: tf.Tensor, factor: tf.Tensor | float) -> tf.Tensor:
    """uint8 (H, W, 3): factor >= 0 times the image, clipped; as torchvision does it on a float tensor."""
    return _on_uint8(_brightness_step, image, factor)


@on_image
def adjust_contrast(image: tf.Tensor, factor: tf.Tensor | float) -> tf.Tensor:
    """uint8 (H, W, 3): factor * image + (1 - factor) * mean grey, clipped; as torchvision does it on a float tensor."""
    return _on_uint8(_contrast_step, image, factor)


@on_image
def adjust_saturation(image: tf.Tensor, factor: tf.Tensor | float) -> tf.Tensor:
    """uint8 (H, W, 3): factor * image + (1 - factor) * grey, clipped; as torchvision does it on a float tensor."""
    return _on_uint8(_saturation_step, image, factor)


@on_image
def adjust_hue(image: tf.Tensor, shift: tf.Tensor | float) -> tf.Tensor:
    """uint8 (H, W, 3): hue of HSV moved by `shift` turns (-0.5..0.5); as torchvision does it on a float tensor."""
    return _on_uint8(_hue_step, image, shift)


@on_image
def adjust_offset(image: tf.Tensor, levels: tf.Tensor | float) -> tf.Tensor:
    """uint8 (H, W, 3): `levels` grey levels added, clipped."""
    return _on_uint8(_offset_step, image, levels)


STEPS = dict(brightness=_brightness_step, contrast=_contrast_step, saturation=_saturation_step)
STEPS |= dict(hue=_hue_step, offset=_offset_step)


def check_jitter(strengths: dict[str, float]) -> None:
    """Raises ValueError that names the first strength that is negative or too large."""
    for name, strength in strengths.items():
        require_between(name, strength, 0.0, {"hue": 0.5, "offset": 255.0}.get(name, math.inf))


@on_words
def color_jitter(
    words: tf.Tensor,
    seed: tf.Tensor,
    brightness: float = 0.125,
    contrast: float = 0.125,
    saturation: float = 0.125,
    hue: float = 0.05,
    offset: float = 0.0,
) -> tf.Tensor:
    """ColorJitter of torchvision: uint8 (H, W, 3) -> uint8 (H, W, 3), or words -> words.

    The steps run in random order. A strength of 0 omits its step. Levels are rounded once, after the last step.

    Args:
        words: Words or an image.
        seed: int32 (2,).
        brightness: The factor is uniform in [max(0, 1 - brightness), 1 + brightness].
        contrast: Likewise.
        saturation: Likewise.
        hue: The shift, in turns, is uniform in [-hue, hue]; at most 0.5.
        offset: The grey levels added are uniform in [-offset, offset]; at most 255.

    Raises:
        ValueError: A strength is negative or too large.
    """
    strengths = dict(brightness=brightness, contrast=contrast, saturation=saturation, hue=hue, offset=offset)
    check_jitter(strengths)
    count, draw = drawing(strengths)
    return jittered(words, strengths, *draw(stateless.uniform([count], seed)))


def _steps_of(strengths: Mapping[str, float]) -> tuple[str, ...]:
    return tuple(name for name, strength in strengths.items() if strength > 0)


def drawing(strengths: Mapping[str, float]) -> tuple[int, Callable]:
    """Returns how many uniform numbers a jitter of these strengths takes, and the function that reads them.

    The function returns what `jittered` takes: factors, float32 (n,); order of the steps, int32 (n,); place of hue or
    0, int32. Its numbers are the same where XLA compiles it.
    """
    names = _steps_of(strengths)
    pairs = [(name, float(strengths[name])) for name in names]
    low = np.array([-x if name in ("hue", "offset") else max(0.0, 1.0 - x) for name, x in pairs], np.float32)
    high = np.array([x if name in ("hue", "offset") else 1.0 + x for name, x in pairs], np.float32)
    orders = np.array(list(itertools.permutations(range(len(names)))), np.int32)
    hue = (
        np.argsort(orders, axis=1).astype(np.int32)[:, names.index("hue")]
        if "hue" in names
        else np.zeros(len(orders), np.int32)
    )

    def draw(uniform: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        number = tf.cast(uniform[-1] * len(orders), tf.int32)
        return low + rounded((high - low) * uniform[:-1]), tf.gather(orders, number), tf.gather(hue, number)

    return len(names) + 1, draw


def jittered(
    words: tf.Tensor, strengths: Mapping[str, float], factors: tf.Tensor, order: tf.Tensor, hue: tf.Tensor
) -> tf.Tensor:
    """Applies the steps that a function of `drawing` has drawn: words -> words."""
    names = _steps_of(strengths)
    if not names:
        return words
    if is_large(words):
        return _chained(words, names, factors, order, hue)
    return to_words(_one_by_one(to_image(words), names, factors, order))


def _one_by_one(image: tf.Tensor, names: Sequence[str], factors: tf.Tensor, order: tf.Tensor) -> tf.Tensor:
    values = tf.cast(image, tf.float32)
    for place in range(len(names)):
        # switch_case visits the nodes of all branches. While these are few, a call of StatelessCase costs more.
        # The factor is sliced within its branch; otherwise every factor would be passed to every branch.
        steps = [lambda step=STEPS[n], x=values, i=i: step(x, factors[i]) for i, n in enumerate(names)]
        values = tf.switch_case(order[place], steps) if len(steps) > 1 else steps[0]()
    return round_to_uint8(tf.ensure_shape(values, image.shape))


# The chain: every step except hue is level -> clip(a * level + b * grey + c), so a row (a, b, c) defines it


def _rows(names: Sequence[str], factors: tf.Tensor) -> tf.Tensor:
    """(a, b, c) of each step, (n, 3); contrast's c without its factor, the mean grey. Hue: sixths, 0, 0."""
    rows = {
        "brightness": lambda factor: (factor, 0.0, 0.0),
        "contrast": lambda factor: (factor, 0.0, 1.0 - factor),
        "saturation": lambda factor: (factor, 1.0 - factor, 0.0),
        "hue": lambda shift: (6.0 * shift, 0.0, 0.0),
        "offset": lambda levels: (1.0, 0.0, levels),
    }
    return tf.stack([tf.stack(rows[name](factors[i])) for i, name in enumerate(names)])


def _chained(
    words: tf.Tensor, names: tuple[str, ...], factors: tf.Tensor, order: tf.Tensor, hue: tf.Tensor
) -> tf.Tensor:
    if "hue" not in names:
        return _chain(names, None)(words, factors, order)
    return case(hue, _chains(names, *words.shape), words, factors, order)


@functools.lru_cache(maxsize=16)
def _chains(names: tuple[str, ...], height: int, width: int) -> list[tf.types.experimental.ConcreteFunction]:
    """The chains with hue at each place, traced for words of this size."""
    steps = len(names)
    signature = tf.TensorSpec([height, width], tf.int32), tf.TensorSpec([steps]), tf.TensorSpec([steps], tf.int32)
    with tf.init_scope():
        traced = [tf.function(_chain(names, place), signature, autograph=False) for place in range(steps)]
        return [chain.get_concrete_function() for chain in traced]


@functools.cache
def _chain(names: tuple[str, ...], hue: int | None) -> Callable:
    """(words, factors, order) -> words. `hue` is the place of hue, whose step has a separate loop body."""

    def chain(words: tf.Tensor, factors: tf.Tensor, order: tf.Tensor) -> tf.Tensor:
        rows = tf.gather(_rows(names, factors), order)
        if "contrast" in names:
            here = order == names.index("contrast")
            place = tf.reduce_sum(tf.where(here, np.arange(len(names), dtype=np.int32), 0))
            # The mean of the image before contrast: branch n runs the first n steps.
            means = [
                lambda n=n: tf.reduce_mean(_grey(_steps(channels(words), rows[:n], hue))) for n in range(len(names))
            ]
            mean = tf.switch_case(place, means)
            rows *= tf.where(here[:, None], tf.stack([1.0, 1.0, mean]), 1.0)
        return join([level + 0.5 for level in _steps(channels(words), rows, hue)])

    return fused(chain)


def _steps(levels: list[tf.Tensor], rows: tf.Tensor, hue: int | None) -> list[tf.Tensor]:
    for place in range(rows.shape[0]):
        if place == hue:
            levels = _turned(*levels, rows[place, 0])
        else:
            shift = rows[place, 1] * _grey(levels) + rows[place, 2]
            levels = [clip(rows[place, 0] * level + shift, 0.0, 255.0) for level in levels]
    return levels


def _grey(levels: list[tf.Tensor]) -> tf.Tensor:
    return sum(weight * level for weight, level in zip(_GREY, levels, strict=True))


def _turned(red: tf.Tensor, green: tf.Tensor, blue: tf.Tensor, sixths: tf.Tensor) -> list[tf.Tensor]:
    """Hue moved by `sixths` of a turn (-3..3), without HSV's divisions: hue is kept as a multiple of the chroma."""
    high = tf.maximum(tf.maximum(red, green), blue)
    chroma = high - tf.minimum(tf.minimum(red, green), blue)
    sector = tf.where(
        high == red, green - blue, tf.where(high == green, blue - red + 2.0 * chroma, red - green - 2.0 * chroma)
    )
    hue, half = sector + sixths * chroma, 3.0 * chroma
    # Into -half..half, so that the value folded below is within a turn of 0.
    hue = tf.where(hue > half, hue - 2.0 * half, tf.where(hue < -half, hue + 2.0 * half, hue))
    turned = []
    for centre in (0.0, 2.0, -2.0):
        # A channel is high up to a sixth of a turn away from its own hue, low from two sixths on.
        away = half - tf.abs(tf.abs(hue - centre * chroma) - half)
        turned.append(high - clip(away - chroma, 0.0, chroma))
    return turned
