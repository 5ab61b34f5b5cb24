"""Networks of others in float64 with random weights, and the files that they come in: the yardstick of
`lae_jax.models.pretrained`, for tests/models/test_pretrained.py and benchmarks/pretrained_parity.py.

EfficientNetV2 is Keras' own. timm and torchvision are not requirements here, so their ResNet is stated below in
TensorFlow's operations, and their names in `timm_state` and `resnet_shapes`.

All weights are float32 values, so that nothing is lost in a file of float32.
"""

import contextlib
import json
import pathlib
import re
import warnings
from collections.abc import Iterator, Mapping

import jax
import numpy as np

from lae_jax import models
from lae_jax.faces.tensorflow import tf

BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}


def rounded(array: np.ndarray) -> np.ndarray:
    return np.asarray(array, np.float32).astype(np.float64)


@contextlib.contextmanager
def keras_in_float64() -> Iterator:
    import keras

    before = keras.config.floatx(), keras.config.dtype_policy()
    # Both: each alone leaves the other as it was.
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    try:
        with warnings.catch_warnings():
            # When it saves, Keras 3.15 asks TensorFlow's variables for arrays in a way that NumPy 2 calls old.
            warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
            yield keras
    finally:
        keras.config.set_floatx(before[0])
        keras.config.set_dtype_policy(before[1])


def draw(rng: np.random.Generator, shape: tuple[int, ...], what: str) -> np.ndarray:
    """Values under which activations neither vanish nor explode: kernels of variance 1 / fan-in."""
    if what == "gamma":
        return rounded(rng.uniform(0.7, 1.3, shape))
    if what in ("beta", "bias"):
        return rounded(rng.normal(0, 0.1, shape))
    inputs = np.prod(shape[:2]) * (1 if what == "depthwise" else shape[2])
    return rounded(rng.normal(0, inputs**-0.5, shape))


def keras_model(keras, size: str, images: np.ndarray, seed: int = 0):
    """EfficientNetV2 `size` of keras.applications without its top, statistics as of the pixels `images`."""
    model = getattr(keras.applications, f"EfficientNetV2{size.upper()}")(
        weights=None, include_top=False, pooling="avg", input_shape=(None, None, 3)
    )
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        for variable in layer.trainable_variables:
            depthwise = layer.__class__.__name__ == "DepthwiseConv2D"
            variable.assign(draw(rng, variable.shape, "depthwise" if depthwise else variable.name))
    for layer in model.layers:
        if layer.__class__.__name__ == "Dropout":
            # Statistics of branches that were dropped or scaled up do not fit inference, where activations would grow.
            layer.rate = 0.0
    before = [variable.numpy() for variable in model.non_trainable_variables]
    model(images, training=True)
    for variable, old in zip(model.non_trainable_variables, before, strict=True):
        if "moving" in variable.name:  # the others are random states
            variable.assign(rounded((variable.numpy() - 0.9 * old) / 0.1))
    return model


def timm_state(model) -> dict[str, np.ndarray]:
    """The weights of a Keras EfficientNetV2 under timm's names and in its shapes, as a state dict has them."""
    around = {"stem_conv": "conv_stem", "stem_bn": "bn1", "top_conv": "conv_head", "top_bn": "bn2"}
    state = {}
    names = {layer.name for layer in model.layers}
    for layer in model.layers:
        weights = [variable.numpy() for variable in layer.variables if "seed" not in variable.name]
        if not weights:
            continue
        if layer.name in around:
            name = around[layer.name]
        else:
            stage, letter, part = re.fullmatch(r"block(\d)([a-z])_(\w+)", layer.name).groups()
            block = f"block{stage}{letter}_"
            if f"{block}dwconv2" in names:
                parts = dict(expand_conv="conv_pw", expand_bn="bn1", dwconv2="conv_dw", bn="bn2",
                             se_reduce="se.conv_reduce", se_expand="se.conv_expand",
                             project_conv="conv_pwl", project_bn="bn3")  # fmt: skip
            elif f"{block}expand_conv" in names:
                parts = dict(expand_conv="conv_exp", expand_bn="bn1", project_conv="conv_pwl", project_bn="bn2")
            else:
                parts = dict(project_conv="conv", project_bn="bn1")
            name = f"blocks.{int(stage) - 1}.{ord(letter) - ord('a')}.{parts[part]}"
        if len(weights) == 4:
            for leaf, array in zip(("weight", "bias", "running_mean", "running_var"), weights, strict=True):
                state[f"{name}.{leaf}"] = array
            state[f"{name}.num_batches_tracked"] = np.array(1, np.int64)
        else:
            depthwise = layer.__class__.__name__ == "DepthwiseConv2D"
            state[f"{name}.weight"] = weights[0].transpose((2, 3, 0, 1) if depthwise else (3, 2, 0, 1))
            if len(weights) == 2:
                state[f"{name}.bias"] = weights[1]
    state["classifier.weight"] = np.zeros((1000, 1280))
    state["classifier.bias"] = np.zeros(1000)
    return state


def resnet_shapes(depth: int) -> dict[str, tuple[int, ...]]:
    """torchvision's names and shapes of the convolutions of ResNet-18 or -50, each with the norm that follows it."""
    shapes, inputs = {"conv1": (64, 3, 7, 7)}, 64
    for layer, blocks in enumerate(BLOCKS[depth], 1):
        width = 64 * 2 ** (layer - 1)
        outputs = width if depth == 18 else 4 * width
        for block in range(blocks):
            name = f"layer{layer}.{block}"
            if depth == 18:
                shapes[f"{name}.conv1"], shapes[f"{name}.conv2"] = (width, inputs, 3, 3), (width, width, 3, 3)
            else:
                shapes[f"{name}.conv1"] = (width, inputs, 1, 1)
                shapes[f"{name}.conv2"], shapes[f"{name}.conv3"] = (width, width, 3, 3), (outputs, width, 1, 1)
            if block == 0 and inputs != outputs:
                shapes[f"{name}.downsample.0"] = (outputs, inputs, 1, 1)
            inputs = outputs
    return shapes


def norm_of(convolution: str) -> str:
    return convolution.replace("downsample.0", "downsample.1").replace("conv", "bn")


def resnet_state(depth: int, images: np.ndarray, seed: int = 0) -> dict[str, np.ndarray]:
    """A state dict as torchvision's, with the statistics of `images` (B, H, W, 3)."""
    rng, state = np.random.default_rng(seed), {}
    for name, shape in resnet_shapes(depth).items():
        outputs, inputs, height, width = shape
        state[f"{name}.weight"] = draw(rng, (height, width, inputs, outputs), "kernel").transpose(3, 2, 0, 1)
        state[f"{norm_of(name)}.weight"] = draw(rng, (outputs,), "gamma")
        state[f"{norm_of(name)}.bias"] = draw(rng, (outputs,), "beta")
        state[f"{norm_of(name)}.num_batches_tracked"] = np.array(1, np.int64)
    resnet_features(depth, state, images, calibrate=True)
    features = 512 if depth == 18 else 2048
    return {**state, "fc.weight": np.zeros((1000, features)), "fc.bias": np.zeros(1000)}


def resnet_features(depth: int, state: dict[str, np.ndarray], images: np.ndarray, calibrate: bool = False):
    """Pooled features (B, F) as torchvision computes them. Args: calibrate: find the running statistics first."""

    def step(x, name, stride=1):
        kernel = state[f"{name}.weight"].transpose(2, 3, 1, 0)
        pad = kernel.shape[0] // 2
        x = tf.nn.conv2d(tf.pad(x, [[0, 0], [pad, pad], [pad, pad], [0, 0]]), kernel, stride, "VALID")
        norm = norm_of(name)
        if calibrate:
            for key, moment in zip(("mean", "var"), tf.nn.moments(x, (0, 1, 2)), strict=True):
                state[f"{norm}.running_{key}"] = rounded(moment.numpy())
        scale = state[f"{norm}.weight"] / np.sqrt(state[f"{norm}.running_var"] + 1e-5)
        return (x - state[f"{norm}.running_mean"]) * scale + state[f"{norm}.bias"]

    x = tf.nn.relu(step(tf.constant(images, tf.float64), "conv1", 2))
    x = tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]], constant_values=-np.inf)
    x = tf.nn.max_pool2d(x, 3, 2, "VALID")
    for layer, blocks in enumerate(BLOCKS[depth], 1):
        for block in range(blocks):
            name, stride = f"layer{layer}.{block}", 2 if layer > 1 and block == 0 else 1
            shortcut = step(x, f"{name}.downsample.0", stride) if f"{name}.downsample.0.weight" in state else x
            if depth == 18:
                x = step(tf.nn.relu(step(x, f"{name}.conv1", stride)), f"{name}.conv2")
            else:
                x = tf.nn.relu(step(x, f"{name}.conv1"))
                x = step(tf.nn.relu(step(x, f"{name}.conv2", stride)), f"{name}.conv3")
            x = tf.nn.relu(x + shortcut)
    return tf.reduce_mean(x, (1, 2)).numpy()


def write_safetensors(path: pathlib.Path, state: Mapping[str, np.ndarray], dtype: str = "F32") -> None:
    """As https://huggingface.co/docs/safetensors has it: floats in `dtype`, integers as they are."""
    header, end, numpy_dtype = {"__metadata__": {"format": "pt"}}, 0, {"F32": "<f4", "F64": "<f8", "F16": "<f2"}[dtype]
    arrays = {name: a.astype(numpy_dtype if a.dtype.kind == "f" else "<i8") for name, a in state.items()}
    for name, array in arrays.items():
        kind = dtype if array.dtype.kind == "f" else "I64"
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [end, end + array.nbytes]}
        end += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in arrays.values():
            file.write(array.tobytes())


def our_features(model_name: str, variables: Mapping, images: np.ndarray) -> np.ndarray:
    """Pooled features (B, F) of our backbone in float64. Args: images: (B, H, W, 3), normalised."""
    with jax.enable_x64(True):
        module = models.create(model_name, 0, "float64")
        variables = jax.tree.map(lambda a: np.asarray(a, np.float64), variables)
        return np.asarray(jax.jit(module.apply)(variables, np.asarray(images, np.float64)))


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.max(np.abs(ours - theirs)) / np.max(np.abs(theirs)))
