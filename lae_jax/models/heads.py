"""Heads on a backbone: ages in stages 2 and 3, identities in stage 1.

B = batch, F = features of the backbone, K = ages, D = embedding, C = identities. Heads are small and feed losses, so
they compute in float32 or wider, whatever the backbone's dtype and precision: accelerators would otherwise round the
factors of a float32 product to bfloat16 or TF32.
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from lae_jax.models.layers import Compute, Dropout, batch_norm

_Dense = functools.partial(nn.Dense, precision=jax.lax.Precision.HIGHEST)


class IdentityOutputs(NamedTuple):
    """Inputs of the losses of stage 1: embeddings (B, D) and class weights (C, D), neither normalised.

    `quality`, (B,), is that of the images as AdaFace sees it (`LengthQuality`); None if the head does not tell it.
    """

    embeddings: jax.Array
    class_weights: jax.Array
    quality: jax.Array | None = None


class AgeHead(nn.Module):
    """Dropout and a fully connected layer `fc`: features (B, F) -> logits (B, K), float32 or wider.

    If `hidden` is not 0, a layer of that many units with ReLU precedes them.
    """

    compute: Compute
    num_outputs: int
    dropout: float = 0.0
    hidden: int = 0

    @nn.compact
    def __call__(self, features: jax.Array, train: bool = False, rows: jax.Array | None = None) -> jax.Array:
        """Returns the logits; `rows` and `train` as in `Model`."""
        dtype = self.compute.param_dtype
        x = features.astype(dtype)
        if self.hidden:
            x = nn.relu(_Dense(self.hidden, dtype=dtype, param_dtype=dtype, name="hidden")(x))
        x = Dropout(self.dropout, name="dropout")(x, rows, train)
        return _Dense(self.num_outputs, dtype=dtype, param_dtype=dtype, name="fc")(x)


class IdentityHead(nn.Module):
    """A linear embedding without bias, then BatchNorm; and the class weights (CosFace, arXiv:1801.09414).

    Features (B, F) -> `IdentityOutputs` while training, embeddings (B, D) alone otherwise. The head has no dropout: the
    margin is the regulariser. Only training needs the class weights, and takes the rows that it is given: a device may
    have a part of them. If `tells_quality`, training keeps moving statistics of the lengths of embeddings.
    """

    compute: Compute
    num_outputs: int
    embedding_size: int = 512
    tells_quality: bool = False

    @nn.compact
    def __call__(
        self, features: jax.Array, train: bool = False, rows: jax.Array | None = None
    ) -> IdentityOutputs | jax.Array:
        """Returns the head's outputs; `rows` is not used."""
        del rows
        dtype = self.compute.param_dtype
        if self.is_initializing():  # in both modes, so that a model initialised for inference can be trained
            shape = (self.num_outputs, self.embedding_size)
            self.param("class_weights", nn.initializers.normal(1.0), shape, dtype)
        x = _Dense(self.embedding_size, use_bias=False, dtype=dtype, param_dtype=dtype, name="embedding")(features)
        wide = Compute(dtype, self.compute.axis_name)
        x = batch_norm(wide, train, 1e-5, "bn")(x)
        if not (train or self.is_initializing()):
            return x
        quality = LengthQuality(wide, name="lengths")(x, train) if self.tells_quality else None
        return IdentityOutputs(x, self.get_variable("params", "class_weights"), quality) if train else x


class LengthQuality(nn.Module):
    """Quality of images by the lengths of their embeddings, (B, D) -> (B,), from -1 to 1.

    Kim et al., "AdaFace", CVPR 2022, equation 12, with the constants of the authors' code.
    """

    compute: Compute
    momentum: float = 0.99  # of the moving statistics
    concentration: float = 0.333  # the paper's h

    @nn.compact
    def __call__(self, embeddings: jax.Array, train: bool) -> jax.Array:
        """Returns the quality; the statistics are those of the images of all devices, those of this batch included."""
        dtype = self.compute.dtype
        mean = self.variable("batch_stats", "mean", lambda: jnp.full((), 20.0, dtype))
        std = self.variable("batch_stats", "std", lambda: jnp.full((), 100.0, dtype))
        lengths = jnp.clip(jnp.linalg.norm(jax.lax.stop_gradient(embeddings), axis=-1), 0.001, 100.0)
        if train and not self.is_initializing():
            axis = self.compute.axis_name
            every = lengths if axis is None else jax.lax.all_gather(lengths, axis, tiled=True)
            for statistic, now in ((mean, every.mean()), (std, every.std(ddof=1))):
                statistic.value = self.momentum * statistic.value + (1 - self.momentum) * now
        return jnp.clip((lengths - mean.value) / (std.value + 1e-3) * self.concentration, -1.0, 1.0)
