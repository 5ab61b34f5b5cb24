"""Layers that ViT and ConvNeXt are built from: dense layers, LayerNorm, GELU and attention.

Shapes: B = batch, N = tokens, C = channels, which are always the last axis.
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from lae_jax.models.layers import Compute, rows_times


class Dense(nn.Module):
    """A fully connected layer on the last axis: (..., C) -> (..., features). Its parameters are `kernel` and `bias`."""

    compute: Compute
    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the products in the dtype of `compute`."""
        compute = self.compute
        kernel = self.param("kernel", nn.initializers.normal(0.02), (x.shape[-1], self.features), compute.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), compute.param_dtype)
        x = rows_times(jnp.asarray(x, compute.dtype), jnp.asarray(kernel, compute.dtype), compute.precision)
        return x + jnp.asarray(bias, compute.dtype)


def layer_norm(compute: Compute, epsilon: float, name: str) -> nn.LayerNorm:
    """LayerNorm over the last axis. Its statistics are float32, or wider if `compute` is."""
    return nn.LayerNorm(
        epsilon=epsilon,
        dtype=compute.dtype,
        param_dtype=compute.param_dtype,
        force_float32_reductions=compute.param_dtype == jnp.float32,
        # The variance as torch computes it. E[x^2] - E[x]^2 loses digits where the mean is large.
        use_fast_variance=False,
        name=name,
    )


# Eigen's coefficients, which XLA has too: x P(x^2) / Q(x^2) for x from -4 to 4, the highest powers first.
_NUMERATOR = (-2.72614226e-10, 2.77068142e-08, -2.10102402e-06, -5.69250639e-05, -7.34990630e-04, -2.95459981e-03)
_NUMERATOR += (-1.60960333e-02,)
_DENOMINATOR = (-1.45660718e-05, -2.13374055e-04, -1.68282697e-03, -7.37332917e-03, -1.42647391e-02)


@jax.custom_jvp
def erf(x: jax.Array) -> jax.Array:
    """The error function, any shape; in float32 and shorter to 5e-7.

    `jax.lax.erf` is as exact in float32, but in an export it is an operation that TensorFlow 2.21 cannot read.
    """
    if x.dtype == jnp.float64:
        return jax.lax.erf(x)
    wide = jnp.clip(x.astype(jnp.float32), -4, 4)
    square = wide * wide
    above, below = (
        functools.reduce(lambda value, factor: value * square + factor, factors)
        for factors in (_NUMERATOR, _DENOMINATOR)
    )
    return jnp.clip(wide * above / below, -1, 1).astype(x.dtype)


@erf.defjvp
def _erf_jvp(primals, tangents):
    (x,), (change,) = primals, tangents
    return erf(x), change * (2 / math.sqrt(math.pi)) * jnp.exp(-x * x)


def gelu(x: jax.Array) -> jax.Array:
    """GELU with the exact normal distribution (Hendrycks and Gimpel, arXiv:1606.08415), any shape."""
    return x * (0.5 * (1 + erf(x * math.sqrt(0.5))))


def quick_gelu(x: jax.Array) -> jax.Array:
    """CLIP's approximation of GELU: x sigmoid(1.702 x), any shape."""
    return x * nn.sigmoid(1.702 * x)


def attention(compute: Compute, query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Scaled dot-product attention (arXiv:1706.03762); the softmax is float32 or wider.

    Args:
      compute: Gives the dtypes and the precision of the products.
      query: (B, N, heads, C).
      key: Like `query`.
      value: Like `query`.

    Returns:
      The values' weighted means, (B, N, heads, C).
    """
    wide, precision = compute.param_dtype, compute.precision
    query = query * (query.shape[-1] ** -0.5)
    scores = jnp.einsum("bqhc,bkhc->bhqk", query, key, precision=precision, preferred_element_type=wide)
    weights = jax.nn.softmax(scores, axis=-1).astype(compute.dtype)
    return jnp.einsum("bhqk,bkhc->bqhc", weights, value, precision=precision)
