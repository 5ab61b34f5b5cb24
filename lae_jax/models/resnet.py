"""ResNet-18 and -50 (He et al., "Deep Residual Learning for Image Recognition", arXiv:1512.03385).

As in torchvision: the stride on the 3x3 convolution, equal padding on all sides, a max-pool padded with -inf.
Block j of layer i is `layer{i}_{j}`, torchvision's layer{i}.{j}; its `downsample_conv` and `downsample_bn` are
torchvision's downsample.0 and downsample.1.
"""

from typing import NamedTuple

import flax.linen as nn
import jax

from lae_jax.models.layers import Compute, Conv, StochasticDepth, batch_norm, max_pool, pool, prepare

EPSILON = 1e-5


class Architecture(NamedTuple):
    """Blocks in each of the four layers; each is a bottleneck (1x1, 3x3, 1x1) or two 3x3 convolutions."""

    layers: tuple[int, int, int, int]
    bottleneck: bool
    dropout: float = 0.0
    stochastic_depth: float = 0.0


ARCHITECTURES = {
    "18": Architecture((2, 2, 2, 2), bottleneck=False),
    "50": Architecture((3, 4, 6, 3), bottleneck=True),
}


class Block(nn.Module):
    """A residual block: (B, H, W, C) -> (B, H / stride, W / stride, features), 4 features in a bottleneck."""

    compute: Compute
    bottleneck: bool
    features: int
    stride: int
    drop_rate: float

    @nn.compact
    def __call__(self, x: jax.Array, rows: jax.Array | None, train: bool) -> jax.Array:
        """Returns the block's output; `rows` and `train` as in `Model`."""

        def step(x, features, size, stride, conv, norm):
            x = Conv(self.compute, features, size, stride, padding=size // 2, name=conv)(x)
            return batch_norm(self.compute, train, EPSILON, norm)(x)

        shortcut = x
        if self.bottleneck:
            out = 4 * self.features
            x = nn.relu(step(x, self.features, 1, 1, "conv1", "bn1"))
            x = nn.relu(step(x, self.features, 3, self.stride, "conv2", "bn2"))
            x = step(x, out, 1, 1, "conv3", "bn3")
        else:
            out = self.features
            x = nn.relu(step(x, out, 3, self.stride, "conv1", "bn1"))
            x = step(x, out, 3, 1, "conv2", "bn2")
        if shortcut.shape[-1] != out or self.stride != 1:
            shortcut = step(shortcut, out, 1, self.stride, "downsample_conv", "downsample_bn")
        return nn.relu(shortcut + StochasticDepth(self.drop_rate, name="stochastic_depth")(x, rows, train))


class ResNet(nn.Module):
    """The backbone: images (B, H, W, 3) -> pooled features (B, 512), or (B, 2048) with bottlenecks; float32 or wider.

    Attributes:
      stochastic_depth: Block b (from 0) of n drops its branch with probability stochastic_depth * b / n.
      remat: Recompute each block in the backward pass instead of keeping its activations.
    """

    compute: Compute
    architecture: Architecture
    stochastic_depth: float = 0.0
    remat: bool = False

    @staticmethod
    def layer_order(architecture: Architecture) -> tuple[tuple[str, ...], ...]:
        """Returns the names of the parameters of each layer: the stem and each block."""
        layers = enumerate(architecture.layers, start=1)
        return ("conv1", "bn1"), *((f"layer{i}_{j}",) for i, blocks in layers for j in range(blocks))

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
        x = prepare(images, self.compute)
        x = Conv(self.compute, 64, 7, 2, padding=3, name="conv1")(x)
        x = nn.relu(batch_norm(self.compute, train, EPSILON, "bn1")(x))
        x = max_pool(x, self.compute)
        total = sum(self.architecture.layers)
        index = 0
        for i, blocks in enumerate(self.architecture.layers, start=1):
            for j in range(blocks):
                stride = 2 if j == 0 and i > 1 else 1
                rate = self.stochastic_depth * index / total
                x = block(
                    self.compute, self.architecture.bottleneck, 64 * 2 ** (i - 1), stride, rate, name=f"layer{i}_{j}"
                )(x, rows, train)
                index += 1
        features = pool(x)
        return features if train_backbone else jax.lax.stop_gradient(features)
