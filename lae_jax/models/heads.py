"""Heads on a backbone: ages in stages 2 and 3, identities in stage 1.

B = batch, F = features of the backbone, K = ages, D = embedding, C = identities. Heads are small and feed losses, so
they compute in float32 or wider, whatever the backbone's dtype and precision: accelerators would otherwise round the
factors of a float32 product to bfloat16 or TF32.
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax

from lae_jax.models.layers import Compute, Dropout, batch_norm

_Dense = functools.partial(nn.Dense, precision=jax.lax.Precision.HIGHEST)


class IdentityOutputs(NamedTuple):
    """Inputs of `losses.am_softmax_loss`: embeddings (B, D) and class weights (C, D), neither normalised."""

    embeddings: jax.Array
    class_weights: jax.Array


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
    margin is the regulariser.
    """

    compute: Compute
    num_outputs: int
    embedding_size: int = 512

    @nn.compact
    def __call__(
        self, features: jax.Array, train: bool = False, rows: jax.Array | None = None
    ) -> IdentityOutputs | jax.Array:
        """Returns the head's outputs; `rows` is not used."""
        del rows
        dtype = self.compute.param_dtype
        # Created in both modes, so that a model initialised for inference can be trained.
        class_weights = self.param(
            "class_weights", nn.initializers.normal(1.0), (self.num_outputs, self.embedding_size), dtype
        )
        x = _Dense(self.embedding_size, use_bias=False, dtype=dtype, param_dtype=dtype, name="embedding")(features)
        wide = Compute(dtype, self.compute.axis_name)
        x = batch_norm(wide, train, 1e-5, "bn")(x)
        return IdentityOutputs(x, class_weights) if train else x
