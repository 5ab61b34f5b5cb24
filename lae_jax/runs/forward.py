"""The forward step: a pure function, to be mapped over devices by `parallel`."""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp


def normalise(images: jax.Array, mean: Sequence[float], std: Sequence[float], dtype) -> jax.Array:
    """uint8 (B, H, W, 3) -> in [0, 1], minus mean, over std, in the model's dtype."""
    wide = jnp.promote_types(dtype, jnp.float32)
    images = images.astype(wide) / 255
    return ((images - jnp.asarray(mean, wide)) / jnp.asarray(std, wide)).astype(dtype)


def forward_step(
    variables: Mapping, images: jax.Array, *, model, output: Callable, dtype, mean, std, flip: bool
) -> jax.Array:
    """uint8 (B, H, W, 3) -> output(model's outputs), (B, ...), in inference mode.

    Args: flip: average with the outputs of the mirror images.
    """
    images = normalise(images, mean, std, dtype)
    outputs = output(model.apply(variables, images, train=False))
    if flip:
        outputs = (outputs + output(model.apply(variables, images[:, :, ::-1], train=False))) / 2
    return outputs
