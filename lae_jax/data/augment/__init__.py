"""Training and evaluation images in TensorFlow: decode, patch, resize, flip, colour jitter, RandAugment.

Every function is pure: its random choices depend only on `seed`, an int32 (2,) tensor. Images therefore do not depend
on the number of threads, on earlier images, or on where a run was resumed. Another CPU may round colour jitter and the
place of a patch differently. All functions work in eager mode, in tf.function and in tf.data. Images are uint8
(H, W, 3); words are images packed as in `packing.py`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

from lae_jax.data.augment import patches, stateless
from lae_jax.data.augment.jitter import (
    STEPS,
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_offset,
    adjust_saturation,
    check_jitter,
    color_jitter,
    drawing,
    jittered,
    require,
    require_between,
)
from lae_jax.data.augment.operations import OPS
from lae_jax.data.augment.packing import as_words, case, compiled, on_image, on_words, size_of, to_image
from lae_jax.data.augment.patches import draw_patch, random_patch
from lae_jax.data.augment.resizing import METHODS, resized
from lae_jax.faces.tensorflow import tf

__all__ = [
    "OPS",
    "Augmentation",
    "adjust_brightness",
    "adjust_contrast",
    "adjust_hue",
    "adjust_offset",
    "adjust_saturation",
    "centre_crop",
    "color_jitter",
    "decode",
    "draw_ops",
    "draw_patch",
    "op_strengths",
    "rand_augment",
    "random_crop",
    "random_flip",
    "random_patch",
    "resize",
    "translate_pixels",
]

_PATCHES = ("area", "crop", "none")


# From bytes to an image of the right size


def decode(encoded: tf.Tensor) -> tf.Tensor:
    """Decodes JPEG or PNG bytes, () string -> uint8 (H, W, 3), the pixels that Pillow's convert('RGB') gives.

    Grey becomes three equal channels, alpha is dropped.

    Raises:
        tf.errors.InvalidArgumentError: The bytes are not an image.
    """
    # This op also decodes PNG. Its default transform differs from Pillow's by up to 5 levels.
    image = tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE")
    return tf.ensure_shape(image, [None, None, 3])


@on_image
def resize(image: tf.Tensor, size: int, method: str = "bicubic") -> tf.Tensor:
    """Resizes the whole image as Pillow does: uint8 (H, W, 3) -> uint8 (size, size, 3).

    If `size` is at least 48 and no side exceeds 4 times `size` (bilinear 2.25 times), every level is that of Pillow
    when it resizes the width, then the height; else it is within 1.

    Args:
        image: The image.
        size: Side of the result, pixels.
        method: 'bilinear' or 'bicubic'.

    Raises:
        ValueError: The method is unknown.
    """
    require(method in METHODS, f"resize: method is {method!r}: it must be one of {METHODS}")
    same = tf.reduce_all(tf.shape(image)[:2] == size)
    result = tf.cond(same, lambda: image, lambda: to_image(resized(image, size, method)))
    return tf.ensure_shape(result, [size, size, 3])


def _crop(image: tf.Tensor, top, left, size: int) -> tf.Tensor:
    return tf.ensure_shape(tf.slice(image, [top, left, 0], [size, size, 3]), [size, size, 3])


def _room(image: tf.Tensor, size: int, what: str) -> tuple:
    """(H - size, W - size); ValueError if a static side is too small (a dynamic one makes tf.slice raise)."""
    for side in image.shape[:2]:
        require(side is None or side >= size, f"{what}: no {size} x {size} patch fits into shape {image.shape}")
    height, width = size_of(image)
    return height - size, width - size


@on_image
def random_crop(image: tf.Tensor, seed: tf.Tensor, size: int) -> tf.Tensor:
    """Cuts a patch at a uniform random place: uint8 (H, W, 3) -> uint8 (size, size, 3).

    Raises:
        ValueError: H or W is below `size`.
    """
    corner = _corner(stateless.uniform([2], seed), *_room(image, size, "random_crop"))
    return _crop(image, corner[0], corner[1], size)


def _corner(uniform: tf.Tensor, rows: int | tf.Tensor, columns: int | tf.Tensor) -> tf.Tensor:
    return tf.cast(uniform * (tf.cast(tf.stack([rows, columns]), tf.float32) + 1.0), tf.int32)


@on_image
def centre_crop(image: tf.Tensor, size: int) -> tf.Tensor:
    """Cuts the middle: uint8 (H, W, 3) -> uint8 (size, size, 3).

    Raises:
        ValueError: H or W is below `size`.
    """
    rows, columns = _room(image, size, "centre_crop")
    return _crop(image, rows // 2, columns // 2, size)


@on_words
def random_flip(words: tf.Tensor, seed: tf.Tensor, probability: float = 0.5) -> tf.Tensor:
    """Returns the mirror image (left and right exchanged) with `probability`, else the image; also of words."""
    return _flipped(words, stateless.uniform([], seed) < probability)


def _flipped(words: tf.Tensor, mirrored: tf.Tensor) -> tf.Tensor:
    return tf.ensure_shape(tf.cond(mirrored, lambda: tf.reverse(words, [1]), lambda: words), words.shape)


# RandAugment

_SIGNED = ("rotate", "color", "contrast", "brightness", "sharpness", "shear_x", "shear_y", "translate_x", "translate_y")
_ENHANCE = ("color", "contrast", "brightness", "sharpness")


def _check_rand_augment(num_ops: int, magnitude: int, num_levels: int) -> None:
    require(num_ops >= 0, f"num_ops is {num_ops}: it must be 0 or more")
    require(num_levels >= 2, f"num_levels is {num_levels}: it must be 2 or more")
    require_between("magnitude", magnitude, 0, num_levels - 1)


def op_strengths(magnitude: int = 9, num_levels: int = 31) -> dict[str, float]:
    """Returns the strength of each operation at a level, as in torchvision.transforms.RandAugment.

    Degrees for rotate, shear, bits for posterize, a threshold for solarize, the distance of the factor from 1 for the
    enhancements; 0 for operations without a strength. translate_* depends on the image: see `translate_pixels`.
    """
    share = magnitude / (num_levels - 1)
    strengths = dict.fromkeys(OPS, 0.0)
    strengths |= dict.fromkeys(_ENHANCE, 0.9 * share)
    strengths |= {"shear_x": 0.3 * share, "shear_y": 0.3 * share, "rotate": 30.0 * share}
    strengths |= {"solarize": 255.0 * (1.0 - share), "posterize": 8.0 - round(magnitude / ((num_levels - 1) / 4))}
    return strengths


def translate_pixels(side: int | tf.Tensor, magnitude: int = 9, num_levels: int = 31) -> int | tf.Tensor:
    """Returns int(150 / 331 * side * magnitude / (num_levels - 1)) in integers. A tensor `side` is int32."""
    return 150 * side * magnitude // (331 * (num_levels - 1))


def draw_ops(seed: tf.Tensor, num_ops: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Draws operations, uniform with replacement, and signs.

    Returns:
        Places in OPS, int32 (num_ops,); signs, -1.0 or 1.0, float32 (num_ops,).
    """
    return _ops_of(stateless.uniform([2, num_ops], seed))


def _ops_of(uniform: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    return tf.cast(uniform[0] * len(OPS), tf.int32), tf.where(uniform[1] < 0.5, -1.0, 1.0)


def _draw_values(
    uniform: tf.Tensor, height: int | tf.Tensor, width: int | tf.Tensor, magnitude: int, num_levels: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """(2, n) uniform numbers, sides of the image -> places in OPS, int32 (n,); their values, float32 (n,)."""
    strengths: dict = op_strengths(magnitude, num_levels)
    strengths["translate_x"] = tf.cast(translate_pixels(width, magnitude, num_levels), tf.float32)
    strengths["translate_y"] = tf.cast(translate_pixels(height, magnitude, num_levels), tf.float32)
    base = tf.constant([float(name in _ENHANCE) for name in OPS])
    signed = tf.constant([name in _SIGNED for name in OPS])
    chosen, signs = _ops_of(uniform)
    strength = tf.gather(tf.stack(list(strengths.values())), chosen)
    return chosen, tf.gather(base, chosen) + strength * tf.where(tf.gather(signed, chosen), signs, 1.0)


@functools.lru_cache(maxsize=16)
def _op_branches(height: int | None, width: int | None) -> list[tf.types.experimental.ConcreteFunction]:
    """The operations traced for words of this shape: once for all graphs and loops."""
    signature = (tf.TensorSpec([height, width], tf.int32), tf.TensorSpec([], tf.float32))
    with tf.init_scope():
        return [tf.function(op, signature, autograph=False).get_concrete_function() for op in OPS.values()]


@on_words
def rand_augment(
    words: tf.Tensor, seed: tf.Tensor, num_ops: int = 2, magnitude: int = 9, num_levels: int = 31
) -> tf.Tensor:
    """RandAugment (Cubuk et al. 2020): uint8 (H, W, 3) -> uint8 (H, W, 3), or words -> words.

    Applies `num_ops` of the 14 operations one after the other, each drawn uniformly, with a random sign where the
    operation has one.

    Args:
        words: Words or an image.
        seed: int32 (2,).
        num_ops: Number of operations.
        magnitude: Level of the operations, from 0.
        num_levels: Number of levels.

    Raises:
        ValueError: `num_ops` is negative, `num_levels` is below 2, or `magnitude` is not one of the levels.
    """
    _check_rand_augment(num_ops, magnitude, num_levels)
    if num_ops == 0:
        return words
    uniform = stateless.uniform([2, num_ops], seed)
    return _operated(words, *_draw_values(uniform, *size_of(words), magnitude, num_levels))


def _operated(words: tf.Tensor, chosen: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    branches = _op_branches(*words.shape)
    for place, value in zip(tf.unstack(chosen), tf.unstack(values), strict=True):
        words = case(place, branches, words, value)
    return words


# The whole of it


@dataclass(frozen=True)
class Augmentation:
    """The transforms of a stored image in training and in evaluation.

    Raises:
        ValueError: A field is wrong. The message names the field and its allowed values.
    """

    image_size: int = 224  # side of the result, pixels
    patch: str = "area"  # 'area': random patch, resized; 'crop': resize, random crop; 'none': resize, centre crop
    resize: int = 0  # side the whole image is resized to for 'crop', 'none' and evaluation; 0: image_size
    area: tuple[float, float] = patches.AREA  # range of a random patch's share of the image
    aspect: tuple[float, float] = patches.ASPECT  # range of a random patch's width / height
    flip: float = 0.5  # probability of the mirror image
    brightness: float = 0.125  # factor 1 +- this
    contrast: float = 0.125  # factor 1 +- this
    saturation: float = 0.125  # factor 1 +- this
    hue: float = 0.05  # turns, +- this
    offset: float = 0.0  # grey levels added, +- this
    num_ops: int = 2  # operations of RandAugment; 0: none
    magnitude: int = 9  # level of RandAugment, 0..num_levels - 1
    num_levels: int = 31  # levels of RandAugment
    resize_method: str = "bicubic"  # of the whole image; a random patch is resized bilinearly

    def __post_init__(self) -> None:
        require(self.image_size >= 1, f"image_size is {self.image_size}: it must be 1 or more")
        require(self.patch in _PATCHES, f"patch is {self.patch!r}: it must be one of {_PATCHES}")
        good = self.resize == 0 or self.resize >= self.image_size
        require(good, f"resize is {self.resize}: it must be 0 or at least image_size ({self.image_size})")
        for name, high in (("area", 1.0), ("aspect", math.inf)):
            patches.require_range(name, getattr(self, name), high)
            object.__setattr__(self, name, tuple(getattr(self, name)))  # configs hold lists
        require_between("flip", self.flip, 0.0, 1.0)
        check_jitter(self._jitter())
        _check_rand_augment(self.num_ops, self.magnitude, self.num_levels)
        good = self.resize_method in METHODS
        require(good, f"resize_method is {self.resize_method!r}: it must be one of {METHODS}")

    def _jitter(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in STEPS}

    @tf.autograph.experimental.do_not_convert  # nothing to convert, and looking for it takes seconds
    def train(self, encoded: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Makes a training image: JPEG or PNG bytes, () string -> uint8 (image_size, image_size, 3).

        Args:
            encoded: The bytes.
            seed: int32 (2,).
        """
        image = decode(encoded) if self.patch == "area" else self._whole(encoded)
        box, mirrored, jitter, ops = _drawing(self)(seed, *size_of(image))
        if self.patch == "area":
            words = patches.cut(image, box, self.image_size, mirrored)
        else:
            words = as_words(_crop(image, box[0], box[1], self.image_size))
            words = _flipped(words, mirrored) if self.flip > 0 else words
        words = jittered(words, self._jitter(), *jitter)
        return to_image(_operated(words, *ops))

    def _draw(self, seed: tf.Tensor, height: tf.Tensor, width: tf.Tensor) -> tuple:
        """Draws for an image: box (top, left, ...), whether it is mirrored, of the jitter, of the operations."""
        patch, flip, jitter, ops = tf.unstack(stateless.split(seed, 4))
        room = height - self.image_size, width - self.image_size
        if self.patch == "area":
            box = patches.draw_box(patch, height, width, self.area, self.aspect)
        elif self.patch == "crop":
            box = _corner(stateless.uniform([2], patch), *room)
        else:
            box = tf.stack(room) // 2
        uniform = stateless.uniform([2, self.num_ops], ops)
        chosen = _draw_values(uniform, self.image_size, self.image_size, self.magnitude, self.num_levels)
        count, draw_jitter = drawing(self._jitter())
        return box, stateless.uniform([], flip) < self.flip, draw_jitter(stateless.uniform([count], jitter)), chosen

    @tf.autograph.experimental.do_not_convert
    def evaluate(self, encoded: tf.Tensor) -> tf.Tensor:
        """Resizes, cuts the centre (not random): JPEG or PNG bytes, () string -> uint8 (image_size, image_size, 3)."""
        return centre_crop(self._whole(encoded), self.image_size)

    def _whole(self, encoded: tf.Tensor) -> tf.Tensor:
        return resize(decode(encoded), self.resize or self.image_size, self.resize_method)


@functools.lru_cache(maxsize=16)
def _drawing(recipe: Augmentation) -> Callable:
    """The draws of a recipe. Compiled for images of any size: two hundred operations on a few numbers are one call."""
    return compiled(recipe._draw)
