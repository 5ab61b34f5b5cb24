"""Layers that several families of backbones are built from.

Shapes: B = batch, H and W = rows and columns of pixels or features, C = channels, always in the order (B, H, W, C).
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

# Largest number of output pixels for which `gathered` is used on a CPU. On 2x2 it is needed; on 3x3 and 4x4 XLA's
# convolution takes 0.9 of its time (forward and both gradients, batch 64).
SMALL_MAP = 4


@dataclasses.dataclass(frozen=True)
class Compute:
    """How a model computes, as opposed to what. Equal settings compare equal, so that modules stay cheap jit keys.

    Attributes:
      dtype: Dtype of activations. Parameters and statistics are float32, or wider if this is.
      axis_name: Mapped axis over which BatchNorm is synchronised while training; None: each device on its own.
      convolutions: 'xla' (XLA's convolution for all) or 'cpu' (depthwise and 1x1 in the forms that are fast there).
      parts: Parts of a batch that the model sees one after the other in training (gradient accumulation).
      precision: Precision of the backbone's products and convolutions of float32.
    """

    dtype: Any = jnp.dtype("float32")
    axis_name: str | None = None
    convolutions: str = "xla"
    parts: int = 1
    precision: jax.lax.Precision = jax.lax.Precision.DEFAULT

    @property
    def param_dtype(self) -> Any:
        """Dtype of parameters and statistics."""
        return jnp.promote_types(self.dtype, jnp.float32)


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's 'same' padding of one axis: (before, after), an odd pixel at the end.

    A convolution with it has ceil(size / stride) output pixels on this axis.
    """
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def output_pixels(x: jax.Array, kernel: int, stride: int, padding: Sequence[tuple[int, int]]) -> int:
    """Number of output pixels, H' W', of the convolution of x (B, H, W, C) with a (kernel, kernel) window."""
    sizes = [n + sum(pads) for n, pads in zip(x.shape[1:3], padding, strict=True)]
    return math.prod((n - kernel) // stride + 1 for n in sizes)


def xla_convolution(
    x: jax.Array,
    kernel: jax.Array,
    stride: int,
    padding: Sequence[tuple[int, int]],
    precision: jax.lax.Precision = jax.lax.Precision.DEFAULT,
) -> jax.Array:
    """XLA's convolution: (B, H, W, C), (kh, kw, C / groups, C') -> (B, H', W', C').

    The number of groups follows from the shapes.
    """
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1] // kernel.shape[2],
        precision=precision,
    )


def _windows(x: jax.Array, size: int, stride: int) -> list[jax.Array]:
    """Slices of the padded x (B, H, W, C): one (B, H', W', C) for each of a convolution's size^2 taps, row by row."""
    batch, height, width, channels = x.shape
    rows = (height - size) // stride * stride + 1
    cols = (width - size) // stride * stride + 1
    return [
        jax.lax.slice(x, (0, i, j, 0), (batch, i + rows, j + cols, channels), (1, stride, stride, 1))
        for i in range(size)
        for j in range(size)
    ]


Padding = tuple[tuple[int, int], tuple[int, int]]  # (before, after) of rows and of columns


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def shifted_depthwise(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    """A depthwise convolution as one multiply-add per tap: (B, H, W, C), (k, k, 1, C) -> (B, H', W', C).

    On a CPU it is 20 to 100 times faster than XLA's convolution in C groups, forward and backward.
    """
    return _shifted(x, kernel, stride, padding)


def _shifted(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    size = kernel.shape[0]
    windows = _windows(jnp.pad(x, ((0, 0), *padding, (0, 0))), size, stride)
    # A convolution accumulates in float32 whatever the dtype of its inputs; a chain of bfloat16 sums would round at
    # every tap.
    wide = jnp.promote_types(x.dtype, jnp.float32)
    taps = kernel.astype(wide).reshape(size * size, 1, 1, 1, -1)
    out = windows[0].astype(wide) * taps[0]
    for window, tap in zip(windows[1:], taps[1:], strict=True):
        out = out + window.astype(wide) * tap
    return out.astype(x.dtype)


def _depthwise_forward(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding):
    return _shifted(x, kernel, stride, padding), (x, kernel)


def _depthwise_backward(stride: int, padding: Padding, saved, grad: jax.Array):
    x, kernel = saved
    if kernel.shape[0] == 3:
        grad_x = jax.vjp(lambda x: _shifted(x, kernel, stride, padding), x)[1](grad)[0]
    else:  # the 25 shifted sums of a 5x5 window take 2 to 4 times as long as this
        grad_x = _transposed(grad, kernel, stride, padding, x.shape)
    return grad_x, _kernel_gradient(jnp.pad(x, ((0, 0), *padding, (0, 0))), grad, stride, kernel)


shifted_depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def _transposed(grad: jax.Array, kernel: jax.Array, stride: int, padding: Padding, shape: tuple[int, ...]) -> jax.Array:
    """The gradient of x, (B, H, W, C), as a depthwise convolution of the output's gradient with the turned kernel."""
    size, spread = kernel.shape[0], [(0, 0, 0)]
    for length, outputs, (before, _) in zip(shape[1:3], grad.shape[1:3], padding, strict=True):
        first = size - 1 - before
        spread.append((first, length + size - 1 - ((outputs - 1) * stride + 1) - first, stride - 1))
    spread = jax.lax.pad(grad, jnp.zeros((), grad.dtype), [*spread, (0, 0, 0)])
    return _shifted(spread, kernel[::-1, ::-1], 1, ((0, 0), (0, 0)))


def _kernel_gradient(padded: jax.Array, grad: jax.Array, stride: int, kernel: jax.Array) -> jax.Array:
    """The gradient of the kernel, (k, k, 1, C).

    A loop over all rows of the batch adds k^2 products of rows, and the columns are summed at the end. XLA's reduction
    of whole products takes one element at a time, 2 to 7 times as long on one core.
    """
    size, width = kernel.shape[0], padded.shape[2]
    batch, rows, columns, channels = grad.shape
    last = (columns - 1) * stride + 1
    wide = jnp.promote_types(grad.dtype, jnp.float32)

    def add_row(number, sums):
        image, row = number // rows, number % rows
        of_grad = jax.lax.dynamic_slice(grad, (image, row, 0, 0), (1, 1, columns, channels))[0].astype(wide)
        of_x = jax.lax.dynamic_slice(padded, (image, row * stride, 0, 0), (1, size, width, channels))[0].astype(wide)
        return tuple(
            total + jax.lax.slice(of_x, (0, j, 0), (size, j + last, channels), (1, stride, 1)) * of_grad
            for j, total in enumerate(sums)
        )

    # Zeros of this batch, so that the loop's values vary over the mapped axis as its products do.
    none = jnp.zeros((size, columns, channels), wide) + 0 * grad[0, :1].astype(wide)
    sums = jax.lax.fori_loop(0, batch * rows, add_row, (none,) * size)
    return jnp.stack([total.sum(axis=1) for total in sums], axis=1)[:, :, None].astype(kernel.dtype)


def rows_times(x: jax.Array, matrix: jax.Array, precision: jax.lax.Precision) -> jax.Array:
    """(B, H, W, C), (C, C') -> (B, H, W, C'), as a product of two matrices.

    XLA transposes an array of more axes before it multiplies it, which makes the gradient of the matrix 1.5 to 3 times
    as slow.
    """
    return jnp.matmul(x.reshape(-1, x.shape[-1]), matrix, precision=precision).reshape(*x.shape[:-1], -1)


def gathered(
    x: jax.Array,
    kernel: jax.Array,
    stride: int,
    padding: Sequence[tuple[int, int]],
    precision: jax.lax.Precision = jax.lax.Precision.DEFAULT,
) -> jax.Array:
    """A dense convolution as one matrix product with the windows of x: (B, H, W, C), (k, k, C, C') -> (B, H', W', C').

    For small feature maps on a CPU: where the kernel is larger than the map (3x3 on 2x2: ResNet's last layer at 64
    pixels), XLA's convolution takes 80 times as long.
    """
    windows = _windows(jnp.pad(x, ((0, 0), *padding, (0, 0))), kernel.shape[0], stride)
    return rows_times(jnp.concatenate(windows, -1), kernel.reshape(-1, kernel.shape[3]), precision)


def pointwise(
    x: jax.Array, kernel: jax.Array, stride: int, precision: jax.lax.Precision = jax.lax.Precision.DEFAULT
) -> jax.Array:
    """A 1x1 convolution as a matrix product: (B, H, W, C), (1, 1, C, C') -> (B, H', W', C').

    It is about twice as fast on a CPU.
    """
    if stride > 1:
        x = x[:, ::stride, ::stride]
    return rows_times(x, kernel[0, 0], precision)


def _pool_windows(x: jax.Array) -> list[jax.Array]:
    return _windows(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf), 3, 2)


@jax.custom_vjp
def windowed_max_pool(x: jax.Array) -> jax.Array:
    """`max_pool` as a maximum over its windows; the gradient goes to the first pixel with the maximum, as in torch.

    On a CPU, forward and backward take 9 ms for (64, 32, 32, 64). They take 57 ms with the gradient of `jnp.maximum`,
    which is halved at every tie, and about 340 ms with XLA's select-and-scatter.
    """
    return functools.reduce(jnp.maximum, _pool_windows(x))


def _pool_forward(x: jax.Array):
    first, *others = _pool_windows(x)
    best, place = first, jnp.zeros(first.shape, jnp.int8)
    for tap, window in enumerate(others, start=1):
        place = jnp.where(window > best, jnp.int8(tap), place)
        best = jnp.maximum(best, window)  # keeps a NaN, which a choice by place would lose
    return best, (place, x.shape)


def _pool_backward(saved, grad: jax.Array):
    """Row 2r of the pixels is the middle row of window r; row 2r + 1 is its last row and the first of window r + 1."""
    place, (batch, height, width, channels) = saved

    def part(row: int, col: int) -> jax.Array:
        """Gradient of the pixel (row, col), each 0 to 2, of all windows; row or col 0: of the windows one further."""
        taken = jnp.where(place == 3 * row + col, grad, 0)
        down, right = int(row == 0), int(col == 0)
        return jnp.pad(taken[:, down:, right:], ((0, 0), (0, down), (0, right), (0, 0)))

    even = jnp.stack([part(1, 1), part(1, 2) + part(1, 0)], 3)
    odd = jnp.stack([part(2, 1) + part(0, 1), part(2, 2) + part(2, 0) + part(0, 2) + part(0, 0)], 3)
    rows, cols = grad.shape[1:3]
    whole = jnp.stack([even, odd], 2).reshape(batch, 2 * rows, 2 * cols, channels)
    return (whole[:, :height, :width],)


windowed_max_pool.defvjp(_pool_forward, _pool_backward)


def max_pool(x: jax.Array, compute: Compute) -> jax.Array:
    """The 3x3 max-pool of torchvision, stride 2, padding 1: (B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), C)."""
    if compute.convolutions == "cpu":
        return windowed_max_pool(x)
    return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))


class Conv(nn.Module):
    """A convolution: (B, H, W, C) -> (B, H', W', features). Its parameters are `kernel` (HWIO) and optionally `bias`.

    Attributes:
      padding: 'same' as TensorFlow pads, or the number of pixels added on every side, as torch pads.
      depthwise: One filter per channel; the kernel is (k, k, 1, C) and features must be C.
    """

    compute: Compute
    features: int
    kernel_size: int = 1
    stride: int = 1
    padding: str | int = "same"
    depthwise: bool = False
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Convolves x in the dtype of `compute`."""
        size, channels = self.kernel_size, x.shape[-1]
        if self.depthwise and self.features != channels:
            raise ValueError(
                f"a depthwise convolution has as many features as channels, {channels}: got {self.features}"
            )
        shape = (size, size, 1 if self.depthwise else channels, self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, self.compute.param_dtype)
        kernel = jnp.asarray(kernel, self.compute.dtype)
        x = jnp.asarray(x, self.compute.dtype)
        if self.padding == "same":
            padding = tuple(same_padding(n, size, self.stride) for n in x.shape[1:3])
        else:
            padding = ((self.padding, self.padding),) * 2
        fast, precision = self.compute.convolutions == "cpu", self.compute.precision
        if fast and self.depthwise:
            x = shifted_depthwise(x, kernel, self.stride, padding)
        elif fast and size == 1 and padding == ((0, 0), (0, 0)):
            x = pointwise(x, kernel, self.stride, precision)
        elif fast and not self.depthwise and output_pixels(x, size, self.stride, padding) <= SMALL_MAP:
            x = gathered(x, kernel, self.stride, padding, precision)
        else:
            x = xla_convolution(x, kernel, self.stride, padding, precision)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), self.compute.param_dtype)
            x = x + jnp.asarray(bias, self.compute.dtype).reshape(1, 1, 1, -1)
        return x


def batch_norm(compute: Compute, train: bool, epsilon: float, name: str) -> nn.BatchNorm:
    """Flax's BatchNorm with momentum 0.9 (torch's 0.1).

    In inference mode it neither updates statistics nor communicates.

    A batch in parts updates the statistics once for each part, with momentum 0.9^(1 / parts): they look back over as
    many images as without parts.

    Statistics follow `param_dtype`. Flax keeps them in float32 unless `force_float32_reductions` is off, and a float64
    run would then change the dtype of its state at the first step.
    """
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9 ** (1 / compute.parts),
        epsilon=epsilon,
        dtype=compute.dtype,
        param_dtype=compute.param_dtype,
        axis_name=compute.axis_name,
        force_float32_reductions=compute.param_dtype == jnp.float32,
        name=name,
    )


def drop(x: jax.Array, key: jax.Array, rows: jax.Array | None, rate: float, shape: tuple[int, ...]) -> jax.Array:
    """Zeroes parts of x (B, ...) with probability `rate` and scales the rest by 1 / (1 - rate).

    Row r draws its mask from (key, r) alone, so a batch that is split over devices draws the same masks as the whole.

    Args:
      x: Activations, (B, ...).
      key: Random key, the same on all devices.
      rows: Positions of the rows in the global batch, (B,) integers; None: 0 to B - 1.
      rate: Probability of zero, at least 0 and below 1.
      shape: Shape of a row's mask, which is broadcast against a row of x.

    Raises:
      ValueError: `rows` has another shape than (B,).
    """
    if rows is None:
        rows = jnp.arange(x.shape[0])
    if rows.shape != x.shape[:1]:
        raise ValueError(f"rows must hold one number for each of the {x.shape[0]} images, got shape {rows.shape}")
    # The probability's dtype decides which bits are drawn. It is fixed, so that 64-bit mode draws the same masks.
    keep = jnp.float32(1 - rate)
    mask = jax.vmap(lambda row: jax.random.bernoulli(jax.random.fold_in(key, row), keep, shape))(rows)
    return jnp.where(mask, x / (1 - rate), jnp.zeros_like(x))


class Dropout(nn.Module):
    """Dropout by element (Srivastava et al., JMLR 2014), with masks drawn by row: see `drop`. Random stream: 'dropout'.

    `flax.linen.Dropout` draws one mask for the array it sees, which differs with the number of devices.
    """

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, rows: jax.Array | None = None, train: bool = False) -> jax.Array:
        """Returns x, with elements dropped if `train`; `rows` as in `drop`."""
        if not train or self.rate == 0:
            return x
        return drop(x, self.make_rng("dropout"), rows, self.rate, x.shape[1:])


class StochasticDepth(nn.Module):
    """Drops a residual branch for whole images (Huang et al., arXiv:1603.09382), drawn by row: see `drop`."""

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, rows: jax.Array | None = None, train: bool = False) -> jax.Array:
        """Returns x, with whole images dropped if `train`; `rows` as in `drop`."""
        if not train or self.rate == 0:
            return x
        return drop(x, self.make_rng("dropout"), rows, self.rate, (1,) * (x.ndim - 1))


def prepare(images: jax.Array, compute: Compute) -> jax.Array:
    """Checks a backbone's input, (B, H, W, 3) normalised floats, and casts it to the dtype of `compute`.

    Raises:
      ValueError: The images have another shape, or are integers (pixels that are not normalised).
    """
    if images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"images must be (B, H, W, 3), got {images.shape}")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images must be normalised floats, got {images.dtype}: cast and normalise them first")
    return jnp.asarray(images, compute.dtype)


def pool(x: jax.Array) -> jax.Array:
    """Mean over the pixels, in float32 or wider: (B, H, W, C) -> (B, C)."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32)).mean((1, 2))
