"""ConvNeXt (Liu et al., "A ConvNet for the 2020s", arXiv:2201.03545), as timm has it: T.

Block j (from 0) of stage i (from 1) is `block{i}_{j}`, timm's stages.{i-1}.blocks.{j}. The LayerNorm and the
convolution that halve the size before stage i are `downsample{i}_norm` and `downsample{i}`.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from lae_jax.models.layers import Compute, Conv, StochasticDepth, pool, prepare
from lae_jax.models.tokens import Dense, gelu, layer_norm

EPSILON = 1e-6
KERNEL, MLP_RATIO = 7, 4


class Architecture(NamedTuple):
    """Blocks and channels of each stage, the dropout before the classifier, and the stochastic depth.

    `patch` is the side of the first convolution and its stride.
    """

    blocks: tuple[int, ...]
    widths: tuple[int, ...]
    patch: int = 4
    dropout: float = 0.0
    stochastic_depth: float = 0.1

    def wrong_size(self, height: int, width: int) -> str:
        """What is wrong with images of this size, with the sizes that are right; '' if nothing is."""
        least = self.patch * 2 ** (len(self.blocks) - 1)
        if min(height, width) >= least:
            return ""
        return f"takes images of at least {least} x {least} pixels, not {height} x {width}"


ARCHITECTURES = {"tiny": Architecture((3, 3, 9, 3), (96, 192, 384, 768))}


class Block(nn.Module):
    """A depthwise 7x7 convolution, LayerNorm and two dense layers, with a scale for each channel, on a residual branch.

    (B, H, W, C) -> (B, H, W, C).
    """

    compute: Compute
    drop_rate: float

    @nn.compact
    def __call__(self, x: jax.Array, rows: jax.Array | None, train: bool) -> jax.Array:
        """Returns the block's output; `rows` and `train` as in `Model`."""
        compute, width = self.compute, x.shape[-1]
        y = Conv(compute, width, KERNEL, padding=KERNEL // 2, depthwise=True, use_bias=True, name="conv")(x)
        y = layer_norm(compute, EPSILON, "norm")(y)
        y = gelu(Dense(compute, MLP_RATIO * width, name="fc1")(y))
        y = Dense(compute, width, name="fc2")(y)
        y = y * jnp.asarray(
            self.param("layer_scale", nn.initializers.constant(1e-6), (width,), compute.param_dtype), compute.dtype
        )
        return x + StochasticDepth(self.drop_rate, name="stochastic_depth")(y, rows, train)


class ConvNeXt(nn.Module):
    """The backbone: images (B, H, W, 3) -> pooled and normalised features (B, C), float32 or wider.

    Attributes:
      stochastic_depth: Block b (from 0) of n drops its branch with probability stochastic_depth * b / (n - 1), as in
        timm.
      remat: Recompute each block in the backward pass instead of keeping its activations.
    """

    compute: Compute
    architecture: Architecture
    stochastic_depth: float = 0.1
    remat: bool = False

    @staticmethod
    def layer_order(architecture: Architecture) -> tuple[tuple[str, ...], ...]:
        """Returns the names of each layer's parameters: the stem, and each block.

        As in timm, what halves the size belongs to the block after it. The last norm is of the last block; timm has it
        in the head.
        """
        layers = [["stem", "stem_norm"]]
        for i, blocks in enumerate(architecture.blocks, start=1):
            layers += [[f"block{i}_{j}"] for j in range(blocks)]
            if i > 1:
                layers[-blocks] += [f"downsample{i}_norm", f"downsample{i}"]
        layers[-1].append("norm")
        return tuple(map(tuple, layers))

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
          ValueError: The images are so small that the last stage has no pixel.
        """
        train = train and train_backbone
        compute, architecture = self.compute, self.architecture
        # `train` is the third argument after self. It decides what is traced, so remat must not make it an array.
        block = nn.remat(Block, static_argnums=(3,)) if self.remat else Block
        x = prepare(images, compute)
        if wrong := architecture.wrong_size(*x.shape[1:3]):
            raise ValueError(f"a ConvNeXt {wrong}")
        total, index = sum(architecture.blocks), 0
        for i, (blocks, width) in enumerate(zip(architecture.blocks, architecture.widths, strict=True), start=1):
            if i == 1:
                patch = architecture.patch
                x = Conv(compute, width, patch, patch, padding=0, use_bias=True, name="stem")(x)
                x = layer_norm(compute, EPSILON, "stem_norm")(x)
            else:
                x = layer_norm(compute, EPSILON, f"downsample{i}_norm")(x)
                x = Conv(compute, width, 2, 2, padding=0, use_bias=True, name=f"downsample{i}")(x)
            for j in range(blocks):
                rate = self.stochastic_depth * index / max(1, total - 1)
                x = block(compute, rate, name=f"block{i}_{j}")(x, rows, train)
                index += 1
        features = layer_norm(Compute(compute.param_dtype), EPSILON, "norm")(pool(x))
        return features if train_backbone else jax.lax.stop_gradient(features)
