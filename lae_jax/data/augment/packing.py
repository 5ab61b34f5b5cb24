"""Images as words, and compiled functions of them. A word is a pixel in one int32: red + 256 green + 65536 blue.

A `picture` is an image or its words. XLA makes one vectorised loop of a whole chain of steps if every element of the
result is one pixel. TensorFlow's kernels read the picture once per step, and XLA's loops over interleaved channels do
not vectorise.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from lae_jax.faces.tensorflow import tf

# Pixels from which compiling pays: it takes half a second per function, once per process and shape.
COMPILED_PIXELS = 96 * 96


def size_of(picture: tf.Tensor) -> tuple:
    """Returns (H, W): Python ints where the shape is static, int32 scalars where it is not."""
    static = picture.shape[:2].as_list()
    if None not in static:
        return tuple(static)
    dynamic = tf.shape(picture)
    return tuple(dynamic[i] if side is None else side for i, side in enumerate(static))


def is_large(picture: tf.Tensor) -> bool:
    """Whether functions of this picture are compiled: its size is known and not small."""
    return (picture.shape[:2].num_elements() or 0) >= COMPILED_PIXELS


def compiled(function: Callable) -> Callable:
    """Returns `function`, of tensors of known shapes, compiled by XLA once for each set of shapes."""

    @functools.lru_cache(maxsize=64)
    def traced(*specs: tf.TensorSpec) -> tf.types.experimental.ConcreteFunction:
        with tf.init_scope():
            return tf.function(function, specs, autograph=False, jit_compile=True).get_concrete_function()

    @functools.wraps(function)
    def call(*args):
        tensors = [tf.convert_to_tensor(arg) for arg in args]
        return traced(*(tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in tensors))(*tensors)

    return call


def fused(function: Callable) -> Callable:
    """Returns `function`, of a picture and further tensors, compiled for large pictures and unchanged for others."""
    quick = compiled(function)

    @functools.wraps(function)
    def call(*args):
        tensors = [tf.convert_to_tensor(arg) for arg in args]
        return (quick if is_large(tensors[0]) else function)(*tensors)

    return call


def case(index: tf.Tensor, branches: Sequence[tf.types.experimental.ConcreteFunction], *inputs: tf.Tensor) -> tf.Tensor:
    """Runs only branch `index`. Each branch returns one tensor, with the type and shape of the first one's.

    tf.switch_case would be lowered to a graph that visits the nodes of all branches.
    """
    (spec,) = branches[0].outputs
    call = dict(branch_index=index, input=inputs, branches=branches)
    (result,) = tf.raw_ops.StatelessCase(**call, Tout=[spec.dtype], output_shapes=[spec.shape])
    return tf.ensure_shape(result, spec.shape)


def packed(image: tf.Tensor) -> tf.Tensor:
    """Packs an image within a compiled function: uint8 (H, W, 3) -> int32 (H, W)."""
    return tf.bitcast(tf.pad(image, [[0, 0], [0, 0], [0, 1]]), tf.int32)


from_image = fused(packed)


def as_words(picture: tf.Tensor) -> tf.Tensor:
    """Returns the words of a picture."""
    return picture if picture.dtype == tf.int32 else from_image(picture)


@fused
def to_image(words: tf.Tensor) -> tf.Tensor:
    """Unpacks words: int32 (H, W) -> uint8 (H, W, 3)."""
    return tf.bitcast(words, tf.uint8)[..., :3]


def channel(words: tf.Tensor, number: int) -> tf.Tensor:
    """Returns the levels of red (0), green (1) or blue (2), int32."""
    return tf.bitwise.right_shift(words, 8 * number) & 255


def channels(words: tf.Tensor, dtype: tf.DType = tf.float32) -> list[tf.Tensor]:
    """Returns the levels of red, green and blue."""
    return [tf.cast(channel(words, number), dtype) for number in range(3)]


def join(levels: Sequence[tf.Tensor]) -> tf.Tensor:
    """Packs levels of red, green and blue in 0..255 into words; fractions are truncated."""
    red, green, blue = (tf.cast(level, tf.int32) for level in levels)
    return red + 256 * green + 65536 * blue


def clip(values: tf.Tensor, low: tf.Tensor | float, high: tf.Tensor | float) -> tf.Tensor:
    """Clips as tf.clip_by_value, without its checks. raw_ops.ClipByValue, in one pass, is slower than these two."""
    return tf.minimum(tf.maximum(values, low), high)


def rounded(product: tf.Tensor) -> tf.Tensor:
    """The product, rounded. XLA would round a product and the sum that it is part of once, together."""
    return tf.minimum(product, tf.constant(1e30, product.dtype))


def round_to_uint8(image: tf.Tensor) -> tf.Tensor:
    """Rounds float32 levels in 0..255; half a level is rounded up."""
    return tf.cast(image + 0.5, tf.uint8)


def on_image(function: Callable) -> Callable:
    """Returns `function`, of a uint8 tensor (H, W, 3), for arrays too. Levels of another type are an error."""

    @tf.autograph.experimental.do_not_convert  # nothing to convert, and looking for it takes seconds
    @functools.wraps(function)
    def call(image, *args, **kwargs):
        return function(tf.convert_to_tensor(image, tf.uint8), *args, **kwargs)

    return call


def on_words(function: Callable) -> Callable:
    """Returns `function`, of words, for images too: uint8 (H, W, 3) -> uint8 (H, W, 3)."""

    @tf.autograph.experimental.do_not_convert
    @functools.wraps(function)
    def call(picture, *args, **kwargs):
        if tf.is_tensor(picture) and picture.dtype == tf.int32:  # words already
            return function(picture, *args, **kwargs)
        image = tf.convert_to_tensor(picture, tf.uint8)
        words = from_image(image)
        result = function(words, *args, **kwargs)
        return image if result is words else tf.ensure_shape(to_image(result), image.shape)

    return call
