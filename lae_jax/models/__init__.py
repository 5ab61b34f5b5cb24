"""Models by name: `create` returns a linen module, `initialise` its initial variables.

    module = models.create('efficientnet_v2_m', 101)
    variables = models.initialise(module, image_size=224, seed=0)
    logits = module.apply(variables, images)

'params' and 'batch_stats' each have the top keys 'backbone' and 'head'; 'batch_stats' omits a head without statistics.
An age head's parameters are 'fc' and, if it has a hidden layer, 'hidden'.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lae_jax.models import convnext, efficientnet, resnet, vit
from lae_jax.models.convnext import ConvNeXt
from lae_jax.models.efficientnet import EfficientNet
from lae_jax.models.heads import AgeHead, IdentityHead, IdentityOutputs
from lae_jax.models.initial_values import initialise
from lae_jax.models.layers import Compute
from lae_jax.models.resnet import ResNet
from lae_jax.models.vit import ViT
from lae_jax.runtime.errors import InputError, unknown

__all__ = [
    "AgeHead",
    "BACKBONES",
    "ConvNeXt",
    "EfficientNet",
    "IdentityHead",
    "IdentityOutputs",
    "Model",
    "ResNet",
    "ViT",
    "create",
    "initialise",
    "require_size",
]

BACKBONES = {
    **{f"efficientnet_{member}": (EfficientNet, widths) for member, widths in efficientnet.ARCHITECTURES.items()},
    **{f"resnet{depth}": (ResNet, blocks) for depth, blocks in resnet.ARCHITECTURES.items()},
    **{f"vit_{size}": (ViT, architecture) for size, architecture in vit.ARCHITECTURES.items()},
    **{f"convnext_{size}": (ConvNeXt, architecture) for size, architecture in convnext.ARCHITECTURES.items()},
}
HEADS = ("age", "identity")
CONVOLUTIONS = ("auto", "xla", "cpu")
PRECISIONS = {precision.name.lower(): precision for precision in jax.lax.Precision}  # default, high, highest


class Model(nn.Module):
    """A backbone and a head, the two top keys of its parameters."""

    backbone: nn.Module
    head: nn.Module

    def __call__(
        self,
        images: jax.Array,
        train: bool = False,
        rows: jax.Array | None = None,
        train_backbone: bool = True,
        on_features: Callable[[jax.Array], jax.Array] = lambda features: features,
        with_features: bool = False,
    ) -> Any:
        """Returns the output of the head: logits (B, K), or embeddings (B, D).

        Args:
          images: Normalised floats, (B, H, W, 3).
          train: BatchNorm takes the statistics of the batch and updates its own (mutable=['batch_stats']); dropout and
            stochastic depth act (rngs={'dropout': key}, the same key on all devices).
          rows: Position of each image in the global batch, (B,) integers; random masks depend on it. None: 0 to B - 1.
          train_backbone: False (stage 3): the backbone is in inference mode and gets no gradient; the head follows
            `train`.
          on_features: Function (B, F) -> (B, F) between backbone and head.
          with_features: Return (output, features of the backbone (B, F)).
        """
        features = self.backbone(images, train, rows, train_backbone)
        outputs = self.head(on_features(features), train, rows)
        return (outputs, features) if with_features else outputs


def _choose(what: str, name: str, choices) -> None:
    if name not in choices:
        raise InputError(unknown(what, str(name), choices))


def require_size(name: str, image_size: int) -> None:
    """Checks that a model takes square images of a size.

    Args:
      name: Key of `BACKBONES`.
      image_size: Pixels on a side.

    Raises:
      InputError: It does not. The message has sizes that it takes.
    """
    backbone, architecture = BACKBONES[name]
    if backbone in (ViT, ConvNeXt) and (wrong := architecture.wrong_size(image_size, image_size)):
        raise InputError(f"config.data.image_size: {name} {wrong}")


def shapes(module: nn.Module) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Returns the shapes of a model's variables by path, such as ('params', 'backbone', 'stem_conv', 'kernel')."""
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)  # their size changes no variable
    found = jax.eval_shape(lambda x: module.init(jax.random.key(0), x), images)
    return {tuple(key.key for key in path): leaf.shape for path, leaf in jax.tree_util.tree_flatten_with_path(found)[0]}


def layer_order(name: str) -> tuple[tuple[str, ...], ...]:
    """Returns the layers of a backbone from the images to the features: the names of each one's parameters.

    Args:
      name: Key of `BACKBONES`.

    Raises:
      InputError: The name is unknown.
    """
    _choose("model", name, BACKBONES)
    backbone_class, architecture = BACKBONES[name]
    return backbone_class.layer_order(architecture)


def create(
    name: str,
    num_outputs: int,
    dtype: Any = jnp.float32,
    *,
    head: str = "age",
    embedding_size: int = 512,
    hidden: int = 0,
    dropout: float | None = None,
    stochastic_depth: float | None = None,
    axis_name: str | None = None,
    remat: bool = False,
    convolutions: str = "auto",
    parts: int = 1,
    precision: str = "default",
    tells_quality: bool = False,
) -> nn.Module:
    """Returns a model, called as `module.apply(variables, images, train=False, rows=None, train_backbone=True)`.

    Args:
      name: Key of `BACKBONES`.
      num_outputs: Number of ages or identities; 0: the backbone alone, which returns the pooled features (B, F).
      dtype: Dtype of the backbone's activations. Parameters, statistics, features and the head are float32, or float64
        with a dtype of float64 (which needs 64-bit mode in JAX).
      head: 'age' (logits) or 'identity' (embeddings; `IdentityOutputs` while training).
      embedding_size: Size of the identity head's embedding.
      hidden: Units of the age head's hidden layer; 0: no hidden layer.
      dropout: Rate before the age head's last layer; None: as published for the model. The identity head has none.
      stochastic_depth: Rate that the deepest blocks approach, or have (ViT, ConvNeXt); None: as published.
      axis_name: Mapped axis over which BatchNorm is synchronised in training; None: not synchronised.
      remat: Recompute the blocks' activations in the backward pass: less memory, about a third more time.
      convolutions: 'cpu' (depthwise as shifted products, 1x1 as matrix products), 'xla' (all as XLA's convolutions) or
        'auto' ('cpu' if JAX's default backend is a CPU, else 'xla').
      parts: Parts of a batch that the model sees one after the other in training (gradient accumulation).
      precision: Precision of the backbone's products and convolutions of float32: 'default' (the accelerator's: TF32 on
        GPUs, bfloat16 on TPUs), 'high' or 'highest' (float32). Heads always have the highest.
      tells_quality: Whether the identity head tells the quality of images while training, which AdaFace needs.

    Raises:
      ValueError: The name, head, form of convolution or precision is unknown, a rate lies outside [0, 1), the dtype is
        not floating, the number of outputs or hidden units is negative, or an identity head has a hidden layer.
    """
    _choose("model", name, BACKBONES)
    _choose("head", head, HEADS)
    _choose("form of convolution", convolutions, CONVOLUTIONS)
    _choose("precision", precision, PRECISIONS)
    dtype = jnp.dtype(dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"dtype must be a floating dtype, got {dtype}")
    if num_outputs < 0:
        raise ValueError(f"num_outputs must be 0 (the backbone alone) or more, got {num_outputs}")
    if hidden < 0 or (hidden and head != "age"):
        raise ValueError(f"hidden must be 0 or more, and 0 unless head is 'age', got {hidden} with head {head!r}")
    if convolutions == "auto":
        convolutions = "cpu" if jax.default_backend() == "cpu" else "xla"
    backbone_class, architecture = BACKBONES[name]
    dropout = architecture.dropout if dropout is None else dropout
    stochastic_depth = architecture.stochastic_depth if stochastic_depth is None else stochastic_depth
    for label, rate in (("dropout", dropout), ("stochastic_depth", stochastic_depth)):
        if not 0 <= rate < 1:
            raise ValueError(f"{label} must be at least 0 and below 1, got {rate}")
    compute = Compute(dtype, axis_name, convolutions, parts, PRECISIONS[precision])
    backbone = backbone_class(compute, architecture, stochastic_depth, remat)
    if num_outputs == 0:
        return backbone
    if head == "identity":
        return Model(backbone, IdentityHead(compute, num_outputs, embedding_size, tells_quality))
    return Model(backbone, AgeHead(compute, num_outputs, dropout, hidden))
