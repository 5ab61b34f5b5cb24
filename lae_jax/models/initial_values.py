"""Initial parameters and statistics, drawn by numpy without tracing or compiling.

Initial values are defined here alone. The modules keep Flax's default initialisers, because only the shapes of
`module.init` are used: for EfficientNetV2-M it takes 29 s to compile, this module takes 3 s.
"""

import dataclasses
import math
import zlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import DTypeLike

from lae_jax.runtime import compile_cache

CONSTANTS = {"scale": 1.0, "bias": 0.0, "mean": 0.0, "var": 1.0, "layer_scale": 1e-6}
# Layers of ViT and ConvNeXt with a kernel that timm draws with a standard deviation of 0.02.
_NARROW = {"qkv", "proj", "fc1", "fc2", "stem", "conv", *(f"downsample{i}" for i in (2, 3, 4))}
_LENGTHS = {"mean": 20.0, "std": 100.0}  # of embeddings, as in AdaFace's code
_BLOCK = 1024


def standard_deviation(path: tuple[str, ...], shape: tuple[int, ...]) -> float:
    """Standard deviation of the normal initial values of the leaf at `path`, such as ('stem_conv', 'kernel').

    | leaf | variance |
    |---|---|
    | convolution (kh, kw, C, C') | 2 / (kh kw C'), as in EfficientNet and torchvision's ResNet (arXiv:1502.01852) |
    | depthwise convolution (kh, kw, 1, C) | 2 / (kh kw) |
    | ViT's patches (16, 16, 3, C) | 1 / (3 * 16 * 16 * 3), that of torch's convolutions |
    | dense layers of ViT and ConvNeXt, other convolutions of ConvNeXt, position embeddings | 0.02^2, as in timm |
    | ViT's class token (C,) | 1e-6^2, as in timm |
    | age head's layer (F, K) | 0.01^2 |
    | age head's hidden layer (F, H) | 2 / F |
    | identity embedding (F, D) | 1 / F |
    | class weights (C, D) | 1 / D: rows of length about 1. Only their direction counts, but a longer row turns slower |

    Raises:
      ValueError: There is no rule for this leaf.
    """
    match path[-2:]:
        case ("depthwise_conv", "kernel"):
            return math.sqrt(2 / (shape[0] * shape[1]))
        case ("patches", "kernel"):
            return math.sqrt(1 / (3 * shape[0] * shape[1] * shape[2]))
        case (name, "kernel") if name in _NARROW:
            return 0.02
        case (*_, "positions"):
            return 0.02
        case (*_, "class_token"):
            return 1e-6
        case ("fc", "kernel"):
            return 0.01
        case ("hidden", "kernel"):
            return math.sqrt(2 / shape[0])
        case ("embedding", "kernel"):
            return math.sqrt(1 / shape[0])
        case (_, "class_weights"):
            return math.sqrt(1 / shape[1])
        case (_, "kernel") if len(shape) == 4:
            return math.sqrt(2 / (shape[0] * shape[1] * shape[3]))
    raise ValueError(f"no initial values are defined for {'/'.join(path)} of shape {shape}: add a rule to {__name__}")


def leaf(path: tuple[str, ...], shape: tuple[int, ...], dtype: DTypeLike, seed: int) -> np.ndarray:
    """Initial values of one leaf. They depend on its path, shape and seed alone; float64 equals float32."""
    if path[-2:-1] == ("lengths",):
        return np.full(shape, _LENGTHS[path[-1]], dtype)
    if path[-1] in CONSTANTS:
        return np.full(shape, CONSTANTS[path[-1]], dtype)
    if path[-1] == "class_weights":
        return np.asarray(Rows(path, shape, np.dtype(dtype), seed))
    scale = standard_deviation(path, shape)
    generator = np.random.default_rng((seed, zlib.crc32("/".join(path).encode())))
    if path[-2:-1] == ("hidden",):
        # Drawn in float64, as for the heads on cached features (longtail.fitting).
        return (scale * generator.standard_normal(shape)).astype(np.float32).astype(dtype)
    return (np.float32(scale) * generator.standard_normal(shape, np.float32)).astype(dtype)


@dataclasses.dataclass(frozen=True)
class Rows:
    """Initial class weights that are drawn when they are asked for: `rows[4:8]`, or `np.asarray(rows)`.

    Each block of rows has its own generator, so that a part of them, and fewer or more of them, have the same values.
    """

    path: tuple[str, ...]
    shape: tuple[int, int]
    dtype: np.dtype
    seed: int

    def __getitem__(self, index: slice | tuple[slice, ...]) -> np.ndarray:
        """Returns the rows of a slice; a slice of the columns may follow."""
        index, *columns = index if isinstance(index, tuple) else (index,)
        start, stop, _ = index.indices(self.shape[0])
        result = np.empty((stop - start, self.shape[1]), self.dtype)
        for block in range(start // _BLOCK, -(-stop // _BLOCK)):
            first = block * _BLOCK
            low, high = max(start, first), min(stop, first + _BLOCK)
            result[low - start : high - start] = self._block(block)[low - first : high - first]
        return result[:, *columns] if columns else result

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        """Returns all rows."""
        return self[:].astype(dtype or self.dtype, copy=False)

    def _block(self, number: int) -> np.ndarray:
        generator = np.random.default_rng((self.seed, zlib.crc32("/".join(self.path).encode()), number))
        scale = np.float32(standard_deviation(self.path, self.shape))
        return scale * generator.standard_normal((_BLOCK, self.shape[1]), np.float32)


def initialise(module: nn.Module, image_size: int, seed: int, split: tuple[str, ...] = ()) -> dict:
    """Returns the initial variables of a module, without compiling anything or touching a device.

    Each leaf has its own generator, seeded by (seed, CRC-32 of its path below 'backbone'). The backbone's values
    therefore do not depend on the head.

    Args:
      module: What `create` returned.
      image_size: Pixels on a side; any that the module accepts, since no shape depends on it.
      seed: Not negative.
      split: Names of leaves that are split over devices, so that no host needs to have all of them: they are `Rows`.

    Returns:
      {'params': ..., 'batch_stats': ...}, nested dicts of numpy arrays, in the shapes and dtypes of `module.init`.
    """
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    with compile_cache.without_collector():
        shapes = jax.eval_shape(lambda x: module.init(jax.random.key(0), x), images)

    def make(keys, struct):
        _, *path = (key.key for key in keys)
        if path[0] == "backbone":
            path = path[1:]
        if path[-1] in split:
            return Rows(tuple(path), struct.shape, np.dtype(struct.dtype), seed)
        return leaf(tuple(path), struct.shape, struct.dtype, seed)

    return jax.tree_util.tree_map_with_path(make, shapes)
