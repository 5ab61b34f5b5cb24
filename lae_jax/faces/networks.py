"""MTCNN's three networks, with the weights of the `mtcnn` package (1.0.0).

Zhang et al., "Joint Face Detection and Alignment Using Multitask Cascaded Convolutional Networks", 2016. All three
take pixels as (v - 127.5) / 128.
"""

import functools
import hashlib
import importlib.metadata
import importlib.util
import io
import pathlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from lae_jax.runtime.errors import InputError

# The weights are pickles: only files with these checksums are opened.
_WEIGHTS = {
    "pnet.lz4": "ea6b0c3e685ebee3165326ad6484acc95f2ef78f1c94fbf40a55704fa989f7b5",
    "rnet.lz4": "cb00e6460f3c98b0bfafaba3c0a0ded4bdf6e62cee7174d969e8670d7e757fee",
    "onet.lz4": "94f6ea2f4cf985275ee958cdd762d17b6009348a4fb9d8c6be39ba73ffd22ca3",
}
WINDOW, STRIDE = 12, 2  # pixels of an output of the first network: its side, and the distance to the next one
REFINED, FINAL = 24, 48  # sides of the patches that the other two networks take
_POOLED = 2  # side of the first network's pooling windows
_PRECISION = jax.lax.Precision.HIGHEST  # bfloat16 and TF32 products would move landmarks and lose faces

Weights = Mapping[str, tuple[np.ndarray, ...]]


def contract() -> dict[str, str]:
    """The detector and its weights, for the crop contract."""
    weights = hashlib.sha256("".join(_WEIGHTS.values()).encode()).hexdigest()[:12]
    return {"detector": f"mtcnn {importlib.metadata.version('mtcnn')}", "weights": weights}


def load() -> Weights:
    """Returns the weights in the form that the networks here take: 'proposal', 'refined' and 'final'.

    Raises:
      InputError: The installed files are not those of mtcnn 1.0.0.
    """
    pnet, rnet, onet = (_read(name) for name in _WEIGHTS)
    return {"proposal": _proposal_weights(pnet), "refined": tuple(rnet), "final": tuple(onet)}


def _read(name: str) -> list[np.ndarray]:
    """Reads a file of weights of the package. The bytes that are unpickled are those whose checksum is checked."""
    import joblib

    # The package itself imports TensorFlow, which takes seconds.
    (package,) = importlib.util.find_spec("mtcnn").submodule_search_locations
    content = (pathlib.Path(package) / "assets" / "weights" / name).read_bytes()
    if hashlib.sha256(content).hexdigest() != _WEIGHTS[name]:
        raise InputError(
            f"the weights {name} of the mtcnn package are not those of version 1.0.0 and are not opened: install it"
            " again (pip install --force-reinstall mtcnn==1.0.0)"
        )
    return [np.asarray(array, np.float32) for array in joblib.load(io.BytesIO(content))]


def _proposal_weights(weights: list[np.ndarray]) -> tuple[np.ndarray, ...]:
    """The first network's weights, for exchanged axes, its first layer as one that gives a pooling window at a time.

    A layer with 3 input and 10 output channels is too narrow for the vectors of a CPU: giving the 2x2 outputs that are
    pooled together as 40 channels takes 1.8 times the products and a fifth of the time. The two heads become one, whose
    last output is the logarithm of the odds of a face.
    """
    first, *rest = weights
    size = first.shape[0]
    wide = np.zeros((size + 1, size + 1, first.shape[2], _POOLED, _POOLED, first.shape[3]), np.float32)
    for i in range(_POOLED):
        for j in range(_POOLED):
            wide[i : i + size, j : j + size, :, i, j] = first.transpose(1, 0, 2, 3)
    bias1, slope1, conv2, bias2, slope2, conv3, bias3, slope3, boxes, box_bias, faces, face_bias = rest
    head = np.concatenate([boxes[0, 0], faces[0, 0, :, 1:] - faces[0, 0, :, :1]], axis=1)
    head_bias = np.concatenate([box_bias, face_bias[1:] - face_bias[:1]])
    return (
        wide.reshape(*wide.shape[:3], -1), np.tile(bias1, _POOLED**2), np.tile(slope1.ravel(), _POOLED**2),
        conv2.transpose(1, 0, 2, 3), bias2, slope2.ravel(), conv3.transpose(1, 0, 2, 3), bias3, slope3.ravel(),
        head, head_bias,
    )  # fmt: skip


def cells(pixels: int) -> int:
    """Number of outputs of the first network along an axis of an image."""
    return -(-(pixels - 2) // _POOLED) - 4


def proposal(image: jax.Array, weights: tuple[jax.Array, ...]) -> jax.Array:
    """The first network: (B, W, H, 3) -> (B, cells(W), cells(H), 5).

    An output is the four offsets of a box (left, top, right, bottom; shares of its side) and the logarithm of the odds
    of a face. The axes of the image are exchanged.
    """
    wide, bias1, slope1, conv2, bias2, slope2, conv3, bias3, slope3, head, head_bias = weights
    sizes = [side - 2 for side in image.shape[1:3]]
    pooled = [-(-side // _POOLED) for side in sizes]
    missing = [_POOLED * after - side for side, after in zip(sizes, pooled, strict=True)]
    image = jnp.pad(image, ((0, 0), *((0, count) for count in missing), (0, 0)))
    x = _prelu(_convolution(image, wide, _POOLED) + bias1, slope1)
    x = functools.reduce(jnp.maximum, _window_outputs(x, sizes if any(missing) else None))
    x = _prelu(_convolution(x, conv2) + bias2, slope2)
    x = _prelu(_convolution(x, conv3) + bias3, slope3)
    return _dense(x.reshape(-1, x.shape[-1]), head, head_bias).reshape(*x.shape[:3], -1)


def _window_outputs(x: jax.Array, sizes: list[int] | None) -> list[jax.Array]:
    """The outputs that are pooled together, from their channels; -inf for those of padded pixels, beyond `sizes`."""
    outputs = jnp.split(x, _POOLED**2, axis=-1)
    if sizes is None:
        return outputs
    inside = [
        np.arange(after)[:, None] * _POOLED + np.arange(_POOLED) < side
        for after, side in zip(x.shape[1:3], sizes, strict=True)
    ]
    return [
        jnp.where((inside[0][:, None, i] & inside[1][None, :, j])[..., None], outputs[_POOLED * i + j], -jnp.inf)
        for i in range(_POOLED)
        for j in range(_POOLED)
    ]


def refined(patches: jax.Array, weights: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
    """The second network: (N, 24, 24, 3) -> offsets (N, 4), logarithm of the odds of a face (N,)."""
    x = _max_pool(_layer(patches, *weights[:3]), 3, "SAME")
    x = _max_pool(_layer(x, *weights[3:6]), 3, "VALID")
    x = _flat(_layer(x, *weights[6:9]))
    x = _prelu(_dense(x, *weights[9:11]), weights[11])
    return _dense(x, *weights[12:14]), _log_odds(_dense(x, *weights[14:16]))


def final(patches: jax.Array, weights: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The third network: (N, 48, 48, 3) -> offsets (N, 4), landmarks (N, 10: x's, y's), log of the odds (N,)."""
    x = _max_pool(_layer(patches, *weights[:3]), 3, "SAME")
    x = _max_pool(_layer(x, *weights[3:6]), 3, "VALID")
    x = _max_pool(_layer(x, *weights[6:9]), 2, "SAME")
    x = _flat(_layer(x, *weights[9:12]))
    x = _prelu(_dense(x, *weights[12:14]), weights[14])
    return _dense(x, *weights[15:17]), _dense(x, *weights[17:19]), _log_odds(_dense(x, *weights[19:21]))


def _convolution(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    order = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), "VALID", dimension_numbers=order, precision=_PRECISION
    )


def _layer(x: jax.Array, kernel: jax.Array, bias: jax.Array, slope: jax.Array) -> jax.Array:
    return _prelu(_convolution(x, kernel) + bias, slope.reshape(-1))


def _dense(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    return jnp.matmul(x, kernel, precision=_PRECISION) + bias


def _prelu(x: jax.Array, slope: jax.Array) -> jax.Array:
    return jnp.maximum(x, 0) + slope * jnp.minimum(x, 0)


def _max_pool(x: jax.Array, side: int, padding: str) -> jax.Array:
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, side, side, 1), (1, 2, 2, 1), padding)


def _flat(x: jax.Array) -> jax.Array:
    return x.transpose(0, 2, 1, 3).reshape(x.shape[0], -1)  # the order in which the weights were trained


def _log_odds(scores: jax.Array) -> jax.Array:
    return scores[:, 1] - scores[:, 0]
