"""The forward step: a pure function that `parallel` maps over devices."""

from collections.abc import Callable, Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from lae_jax import losses


def normalise(images: jax.Array, mean: Sequence[float], std: Sequence[float], dtype: jnp.dtype) -> jax.Array:
    """Returns (images / 255 - mean) / std in the model's dtype: uint8 (B, H, W, 3) -> (B, H, W, 3)."""
    wide = jnp.promote_types(dtype, jnp.float32)
    images = images.astype(wide) / 255
    return ((images - jnp.asarray(mean, wide)) / jnp.asarray(std, wide)).astype(dtype)


def age_and_distribution(logits: jax.Array) -> jax.Array:
    """Returns the expected age and the probabilities of the ages, (B, K) -> (B, 1 + K).

    The age is the one that the stages of age are scored by while they train (`losses.expected_age`), wherever it is
    computed.
    """
    return jnp.concatenate([losses.expected_age(logits)[:, None], jax.nn.softmax(logits, axis=-1)], axis=-1)


def forward_step(
    variables: Mapping,
    images: jax.Array,
    *,
    model: nn.Module,
    output: Callable,
    dtype: jnp.dtype,
    mean: Sequence[float],
    std: Sequence[float],
    flip: bool,
) -> jax.Array:
    """Returns output(model's outputs), (B, ...), in inference mode.

    Args:
      variables: The model's variables.
      images: (B, H, W, 3) uint8.
      model: The model.
      output: Applied to the model's outputs, (B, ...) -> (B, ...).
      dtype: The model's dtype.
      mean: Subtracted from images in [0, 1].
      std: Divides them after that.
      flip: Average the outputs of the images and of their mirror images.
    """
    images = normalise(images, mean, std, dtype)
    outputs = output(model.apply(variables, images, train=False))
    if flip:
        outputs = (outputs + output(model.apply(variables, images[:, :, ::-1], train=False))) / 2
    return outputs
