"""Vision transformers (Dosovitskiy et al., arXiv:2010.11929), as timm has them: S/16, B/16, and B/16 of CLIP.

The features are the class token after the last LayerNorm. Block b (from 0) is `block{b}`, timm's blocks.{b}.

The position embeddings are those of the grid that the published weights have, 14 x 14 patches. For images of another
size they are interpolated in the forward pass, bicubic and antialiased, as timm does when it loads weights. So the
parameters have the same shapes at every image size.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lae_jax.models.layers import Compute, Conv, StochasticDepth, prepare
from lae_jax.models.tokens import Dense, attention, gelu, layer_norm, quick_gelu

MLP_RATIO = 4


class Architecture(NamedTuple):
    """The size of a member of the family, the dropout before its classifier and its stochastic depth.

    `patch` is the side of a patch in pixels, `grid` the patches on a side at the size of the published weights.
    `clip`: as OpenAI's CLIP (arXiv:2103.00020), with a LayerNorm before the blocks, QuickGELU and patches without bias.
    """

    width: int
    blocks: int
    heads: int
    patch: int = 16
    grid: int = 14
    clip: bool = False
    dropout: float = 0.0
    stochastic_depth: float = 0.0

    @property
    def epsilon(self) -> float:
        """Of LayerNorm."""
        return 1e-5 if self.clip else 1e-6

    def wrong_size(self, height: int, width: int) -> str:
        """What is wrong with images of this size, with the sizes that are right; '' if nothing is."""
        if height == width and height % self.patch == 0 and height > 0:
            return ""
        below = max(1, height // self.patch) * self.patch
        return (
            f"takes square images whose side is a multiple of {self.patch} pixels, such as {below} or"
            f" {below + self.patch}, not {height} x {width}"
        )


ARCHITECTURES = {
    "s16": Architecture(384, 12, 6),
    "b16": Architecture(768, 12, 12),
    "b16_clip": Architecture(768, 12, 12, clip=True),
}


def interpolation(old: int, new: int) -> np.ndarray:
    """Weights of bicubic, antialiased interpolation along one axis, (new, old), float64; each row's sum is 1.

    They are those of Pillow, of torch and of `jax.image.resize`, which would be compiled to find them.
    """
    step = old / new
    distance = np.abs(np.arange(old) - ((np.arange(new) + 0.5) * step - 0.5)[:, None]) / max(step, 1)
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    weights = np.where(distance < 1, near, np.where(distance < 2, far, 0))
    return weights / weights.sum(1, keepdims=True)


def resized(positions: jax.Array, old: int, new: int) -> jax.Array:
    """Interpolates position embeddings of a square grid, by `interpolation`: (old^2, C) -> (new^2, C)."""
    if old == new:
        return positions
    weights = jnp.asarray(interpolation(old, new), positions.dtype)
    square = positions.reshape(old, old, -1)
    highest = jax.lax.Precision.HIGHEST
    return jnp.einsum("ai,bj,ijc->abc", weights, weights, square, precision=highest).reshape(new * new, -1)


class Block(nn.Module):
    """A pre-norm block, attention then two dense layers, each on a residual branch: (B, N, C) -> (B, N, C)."""

    compute: Compute
    architecture: Architecture
    drop_rate: float

    @nn.compact
    def __call__(self, x: jax.Array, rows: jax.Array | None, train: bool) -> jax.Array:
        """Returns the block's output; `rows` and `train` as in `Model`."""
        compute, architecture = self.compute, self.architecture
        (batch, tokens, width), heads = x.shape, architecture.heads

        y = layer_norm(compute, architecture.epsilon, "norm1")(x)
        y = Dense(compute, 3 * width, name="qkv")(y)
        query, key, value = jnp.split(y.reshape(batch, tokens, 3 * heads, width // heads), 3, axis=2)
        y = attention(compute, query, key, value).reshape(batch, tokens, width)
        y = Dense(compute, width, name="proj")(y)
        x = x + StochasticDepth(self.drop_rate, name="stochastic_depth1")(y, rows, train)

        y = layer_norm(compute, architecture.epsilon, "norm2")(x)
        y = (quick_gelu if architecture.clip else gelu)(Dense(compute, MLP_RATIO * width, name="fc1")(y))
        y = Dense(compute, width, name="fc2")(y)
        return x + StochasticDepth(self.drop_rate, name="stochastic_depth2")(y, rows, train)


class ViT(nn.Module):
    """The backbone: images (B, S, S, 3), S a multiple of the patch -> the class token (B, C), float32 or wider.

    Attributes:
      stochastic_depth: Block b (from 0) of n drops each of its branches with probability
        stochastic_depth * b / (n - 1), as in timm.
      remat: Recompute each block in the backward pass instead of keeping its activations.
    """

    compute: Compute
    architecture: Architecture
    stochastic_depth: float = 0.0
    remat: bool = False

    @staticmethod
    def layer_order(architecture: Architecture) -> tuple[tuple[str, ...], ...]:
        """Returns the names of the parameters of each layer: tokens and blocks (the last has the norm, as in timm)."""
        *blocks, last = (f"block{index}" for index in range(architecture.blocks))
        tokens = ("patches", "class_token", "positions", *(["norm_pre"] if architecture.clip else []))
        return (tokens, *((block,) for block in blocks), (last, "norm"))

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        train: bool = False,
        rows: jax.Array | None = None,
        train_backbone: bool = True,
    ) -> jax.Array:
        """Returns the features; the arguments are those of `Model`.

        Raises:
          ValueError: The images are not square, or their side is not a multiple of the patch.
        """
        train = train and train_backbone
        compute, architecture = self.compute, self.architecture
        # `train` is the third argument after self. It decides what is traced, so remat must not make it an array.
        block = nn.remat(Block, static_argnums=(3,)) if self.remat else Block
        x = prepare(images, compute)
        if wrong := architecture.wrong_size(*x.shape[1:3]):
            raise ValueError(f"a ViT {wrong}")
        width, patch, grid = architecture.width, architecture.patch, architecture.grid
        x = Conv(compute, width, patch, patch, padding=0, use_bias=not architecture.clip, name="patches")(x)
        batch, side = x.shape[:2]
        x = x.reshape(batch, side * side, width)

        token = self.param("class_token", nn.initializers.normal(1e-6), (width,), compute.param_dtype)
        positions = self.param("positions", nn.initializers.normal(0.02), (1 + grid**2, width), compute.param_dtype)
        token = jnp.asarray(token + positions[0], compute.dtype)
        x = x + jnp.asarray(resized(positions[1:], grid, side), compute.dtype)
        x = jnp.concatenate([jnp.broadcast_to(token, (batch, 1, width)), x], axis=1)
        if architecture.clip:
            x = layer_norm(compute, architecture.epsilon, "norm_pre")(x)
        for index in range(architecture.blocks):
            rate = self.stochastic_depth * index / max(1, architecture.blocks - 1)
            x = block(compute, architecture, rate, name=f"block{index}")(x, rows, train)
        wide = Compute(compute.param_dtype)
        features = layer_norm(wide, architecture.epsilon, "norm")(x[:, 0])
        return features if train_backbone else jax.lax.stop_gradient(features)
