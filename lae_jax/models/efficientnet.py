"""EfficientNetV2 and EfficientNet-Lite0.

V2: Tan and Le, "EfficientNetV2: Smaller Models and Faster Training", arXiv:2104.00298. S, M and L are as published;
`tiny`, `nano` and `pico` are smaller relatives for CPUs. Lite0: EfficientNet-B0 (Tan and Le, arXiv:1905.11946) without
squeeze-excite and with ReLU6, as Google publishes it. All have TensorFlow's 'same' padding.
Block j (from 0) of stage i (from 1) is `block{i}_{j}`: Keras' block{i}{letter j}, timm's blocks.{i-1}.{j}.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax

from lae_jax.models.layers import Compute, Conv, StochasticDepth, batch_norm, pool, prepare

EPSILON = 1e-3


class BlockGroup(NamedTuple):
    """Consecutive equal blocks; the first block has the stride. `kernel` is the side of the depthwise convolution."""

    fused: bool
    blocks: int
    stride: int
    expand: int
    features: int
    kernel: int = 3


class Architecture(NamedTuple):
    """The widths of a member of the family, the dropout before its classifier and its stochastic depth.

    `lite`: ReLU6 in place of swish, and no squeeze-excite.
    """

    stem: int
    stages: tuple[BlockGroup, ...]
    top: int
    dropout: float
    stochastic_depth: float = 0.2
    lite: bool = False

    @property
    def activation(self) -> Callable[[jax.Array], jax.Array]:
        """The function after each convolution except a projection's."""
        return nn.relu6 if self.lite else nn.swish


ARCHITECTURES = {
    # A few thousand parameters, total stride 4: for tests. Its last block is residual, so that stochastic depth acts.
    "v2_pico": Architecture(8, (BlockGroup(True, 1, 2, 2, 12), BlockGroup(False, 1, 1, 2, 12)), 32, 0.2),
    # 0.05 million parameters, total stride 8: for the demo, which trains at 32 to 48 pixels in minutes.
    "v2_nano": Architecture(16, (BlockGroup(True, 1, 2, 2, 24), BlockGroup(False, 2, 2, 4, 48)), 128, 0.2),
    # 0.6 million parameters, total stride 16: for CPUs at 32 to 96 pixels.
    "v2_tiny": Architecture(
        16,
        (
            BlockGroup(True, 1, 1, 1, 16),
            BlockGroup(True, 2, 2, 4, 32),
            BlockGroup(True, 2, 2, 4, 48),
            BlockGroup(False, 3, 2, 4, 80),
            BlockGroup(False, 2, 1, 4, 96),
        ),
        640,
        0.2,
    ),
    "v2_s": Architecture(
        24,
        (
            BlockGroup(True, 2, 1, 1, 24),
            BlockGroup(True, 4, 2, 4, 48),
            BlockGroup(True, 4, 2, 4, 64),
            BlockGroup(False, 6, 2, 4, 128),
            BlockGroup(False, 9, 1, 6, 160),
            BlockGroup(False, 15, 2, 6, 256),
        ),
        1280,
        0.2,
    ),
    "v2_m": Architecture(
        24,
        (
            BlockGroup(True, 3, 1, 1, 24),
            BlockGroup(True, 5, 2, 4, 48),
            BlockGroup(True, 5, 2, 4, 80),
            BlockGroup(False, 7, 2, 4, 160),
            BlockGroup(False, 14, 1, 6, 176),
            BlockGroup(False, 18, 2, 6, 304),
            BlockGroup(False, 5, 1, 6, 512),
        ),
        1280,
        0.3,
    ),
    "v2_l": Architecture(
        32,
        (
            BlockGroup(True, 4, 1, 1, 32),
            BlockGroup(True, 7, 2, 4, 64),
            BlockGroup(True, 7, 2, 4, 96),
            BlockGroup(False, 10, 2, 4, 192),
            BlockGroup(False, 19, 1, 6, 224),
            BlockGroup(False, 25, 2, 6, 384),
            BlockGroup(False, 7, 1, 6, 640),
        ),
        1280,
        0.4,
    ),
    "lite0": Architecture(
        32,
        (
            BlockGroup(False, 1, 1, 1, 16),
            BlockGroup(False, 2, 2, 6, 24),
            BlockGroup(False, 2, 2, 6, 40, kernel=5),
            BlockGroup(False, 3, 2, 6, 80),
            BlockGroup(False, 3, 1, 6, 112, kernel=5),
            BlockGroup(False, 4, 2, 6, 192, kernel=5),
            BlockGroup(False, 1, 1, 6, 320),
        ),
        1280,
        0.2,
        lite=True,
    ),
}


def squeeze_excite(compute: Compute, x: jax.Array, width: int) -> jax.Array:
    """Multiplies x (B, H, W, C) by a gate per image and channel: two 1x1 convolutions of the channels' means.

    Called inside a compact module. `width`, of the first convolution, is a quarter of the channels of the block's
    input, not of x.
    """
    gate = Conv(compute, width, use_bias=True, name="se_reduce")(x.mean((1, 2), keepdims=True))
    return x * nn.sigmoid(Conv(compute, x.shape[-1], use_bias=True, name="se_expand")(nn.swish(gate)))


class Block(nn.Module):
    """An MBConv block, or a fused one: (B, H, W, C) -> (B, H / stride, W / stride, features).

    MBConv: 1x1 expansion (if anything is expanded), depthwise, squeeze-excite (unless lite), 1x1 projection. Fused: a
    dense 3x3 expansion replaces the first three; if nothing is expanded, the block is a single 3x3 convolution. The
    activation follows each convolution except a 1x1 projection.
    """

    compute: Compute
    architecture: Architecture
    group: BlockGroup
    stride: int
    drop_rate: float

    @nn.compact
    def __call__(self, x: jax.Array, rows: jax.Array | None, train: bool) -> jax.Array:
        """Returns the block's output; `rows` and `train` as in `Model`."""

        def step(x, features, size, stride, name, depthwise=False):
            x = Conv(self.compute, features, size, stride, depthwise=depthwise, name=f"{name}_conv")(x)
            return batch_norm(self.compute, train, EPSILON, f"{name}_bn")(x)

        group, activation = self.group, self.architecture.activation
        shortcut, channels, features = x, x.shape[-1], group.features
        expanded = channels * group.expand
        if group.fused and group.expand == 1:
            x = activation(step(x, features, 3, self.stride, "project"))
        else:
            if group.fused:
                x = activation(step(x, expanded, 3, self.stride, "expand"))
            else:
                if group.expand > 1:
                    x = activation(step(x, expanded, 1, 1, "expand"))
                x = activation(step(x, expanded, group.kernel, self.stride, "depthwise", depthwise=True))
                if not self.architecture.lite:
                    x = squeeze_excite(self.compute, x, max(1, channels // 4))
            x = step(x, features, 1, 1, "project")
        if self.stride == 1 and channels == features:
            x = shortcut + StochasticDepth(self.drop_rate, name="stochastic_depth")(x, rows, train)
        return x


class EfficientNet(nn.Module):
    """The backbone: images (B, H, W, 3) -> pooled features (B, F), float32 or wider.

    Attributes:
      stochastic_depth: Rate that grows linearly from 0, as published: block b (from 0) of n drops its branch, where it
        has a shortcut, with probability stochastic_depth * b / n.
      remat: Recompute each block in the backward pass instead of keeping its activations.
    """

    compute: Compute
    architecture: Architecture
    stochastic_depth: float = 0.2
    remat: bool = False

    @staticmethod
    def layer_order(architecture: Architecture) -> tuple[tuple[str, ...], ...]:
        """Returns the names of each layer's parameters: the stem, and each block (as in timm, the last has the top)."""
        groups = enumerate(architecture.stages, start=1)
        *blocks, last = (f"block{i}_{j}" for i, group in groups for j in range(group.blocks))
        return ("stem_conv", "stem_bn"), *((block,) for block in blocks), (last, "top_conv", "top_bn")

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        train: bool = False,
        rows: jax.Array | None = None,
        train_backbone: bool = True,
    ) -> jax.Array:
        """Returns the pooled features; the arguments are those of `Model`."""
        train = train and train_backbone
        # `train` is the third argument after self. It decides what is traced, so remat must not make it an array.
        block = nn.remat(Block, static_argnums=(3,)) if self.remat else Block
        activation = self.architecture.activation
        x = prepare(images, self.compute)
        x = Conv(self.compute, self.architecture.stem, 3, 2, name="stem_conv")(x)
        x = activation(batch_norm(self.compute, train, EPSILON, "stem_bn")(x))
        total = sum(group.blocks for group in self.architecture.stages)
        index = 0
        for i, group in enumerate(self.architecture.stages, start=1):
            for j in range(group.blocks):
                rate = self.stochastic_depth * index / total
                stride = group.stride if j == 0 else 1
                x = block(self.compute, self.architecture, group, stride, rate, name=f"block{i}_{j}")(x, rows, train)
                index += 1
        x = Conv(self.compute, self.architecture.top, name="top_conv")(x)
        x = activation(batch_norm(self.compute, train, EPSILON, "top_bn")(x))
        features = pool(x)
        return features if train_backbone else jax.lax.stop_gradient(features)
