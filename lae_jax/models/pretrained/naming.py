"""Names of our layers in weight files of other libraries, and the statistics that these libraries normalise with.

The names are timm's for tf_efficientnetv2_{s,m,l}, torchvision's (and timm's) for resnet18 and resnet50, and Keras' for
keras.applications.EfficientNetV2{S,M,L}.
"""

import string
from collections.abc import Mapping
from typing import NamedTuple

from lae_jax.models import BACKBONES
from lae_jax.models.efficientnet_v2 import EfficientNetV2
from lae_jax.models.pretrained.tensors import Expected


class Statistics(NamedTuple):
    """Mean and standard deviation by channel of images in [0, 1], as config.data.mean and config.data.std."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


IMAGENET = Statistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = Statistics((0.5,) * 3, (0.5,) * 3)
KERAS = Statistics((128 / 255,) * 3, (128 / 255,) * 3)  # Rescaling(1 / 128, offset=-1) of pixels in [0, 255]

ARCHITECTURES = {
    **{f"efficientnet_v2_{size}": f"tf_efficientnetv2_{size}" for size in "sml"},
    **{f"resnet{depth}": f"resnet{depth}" for depth in (18, 50)},
}
"""Our name -> timm's name of the network. (Its efficientnetv2_s, without tf_, pads and normalises differently.)"""

# Our layer -> (timm's name, Keras' name).
_ENDS = {
    "stem_conv": ("conv_stem", "stem_conv"),
    "stem_bn": ("bn1", "stem_bn"),
    "top_conv": ("conv_head", "top_conv"),
    "top_bn": ("bn2", "top_bn"),
}
_SINGLE = {"project_conv": ("conv", "project_conv"), "project_bn": ("bn1", "project_bn")}
_FUSED = {
    "expand_conv": ("conv_exp", "expand_conv"),
    "expand_bn": ("bn1", "expand_bn"),
    "project_conv": ("conv_pwl", "project_conv"),
    "project_bn": ("bn2", "project_bn"),
}
_MBCONV = {
    "expand_conv": ("conv_pw", "expand_conv"),
    "expand_bn": ("bn1", "expand_bn"),
    "depthwise_conv": ("conv_dw", "dwconv2"),
    "depthwise_bn": ("bn2", "bn"),
    "se_reduce": ("se.conv_reduce", "se_reduce"),
    "se_expand": ("se.conv_expand", "se_expand"),
    "project_conv": ("conv_pwl", "project_conv"),
    "project_bn": ("bn3", "project_bn"),
}
_DOWNSAMPLE = {"downsample_conv": "downsample.0", "downsample_bn": "downsample.1"}
# Our leaf of a layer -> its name in the file. A layer with a `scale` is a BatchNorm.
_TORCH = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
_KERAS = {"kernel": "kernel", "bias": "bias"}
_KERAS_NORM = {"scale": "gamma", "bias": "beta", "mean": "moving_mean", "var": "moving_variance"}

Shapes = Mapping[tuple[str, ...], tuple[int, ...]]


def torch_layout(model_name: str, shapes: Shapes) -> dict[str, Expected]:
    """Maps names in a torch state dict to the expected tensors. Kernels are OIHW, depthwise kernels (C, 1, kh, kw).

    Args:
      model_name: Key of `ARCHITECTURES`.
      shapes: Shapes of the backbone's variables by path, such as ('params', 'stem_conv', 'kernel').
    """
    result = {}
    for path, shape in shapes.items():
        name = f"{_torch_layer(model_name, path[1:-1])}.{_TORCH[path[-1]]}"
        if path[-1] == "kernel":
            height, width, inputs, outputs = shape
            result[name] = Expected(path, (outputs, inputs, height, width), (2, 3, 1, 0))
        else:
            result[name] = Expected(path, shape, (0,))
    return result


def torch_spare(name: str) -> bool:
    """Whether a tensor is not part of the backbone: the classifier's, or torch's count of batches."""
    return name in ("classifier.weight", "classifier.bias", "fc.weight", "fc.bias") or name.endswith(
        ".num_batches_tracked"
    )


def keras_layout(model_name: str, shapes: Shapes) -> dict[str, Expected]:
    """Maps 'layer/variable' to the expected tensors. Kernels are HWIO, depthwise kernels (kh, kw, C, 1)."""
    result = {}
    for path, shape in shapes.items():
        norm = path[-2].endswith("_bn")
        name = f"{_keras_layer(model_name, path[1:-1])}/{(_KERAS_NORM if norm else _KERAS)[path[-1]]}"
        axes = tuple(range(len(shape)))
        if path[-2] == "depthwise_conv":
            axes = (0, 1, 3, 2)
        result[name] = Expected(path, tuple(shape[axis] for axis in axes), axes)
    return result


def keras_spare(name: str) -> bool:
    """Whether a variable is the classifier's, an input layer's (`keras_file` reads those), or a random state."""
    layer, _, variable = name.rpartition("/")
    return layer == "predictions" or variable in ("mean", "variance", "count", "seed_generator_state")


def _block(model_name: str, block: str) -> tuple[int, int, dict]:
    """'block3_1' -> (3, 1, the names of its layers)."""
    stage, number = (int(n) for n in block.removeprefix("block").split("_"))
    group = BACKBONES[model_name][1].stages[stage - 1]
    layers = _MBCONV if not group.fused else _SINGLE if group.expand == 1 else _FUSED
    return stage, number, layers


def _torch_layer(model_name: str, path: tuple[str, ...]) -> str:
    if BACKBONES[model_name][0] is not EfficientNetV2:
        block, layer = path if len(path) == 2 else ("", path[0])
        return f"{block.replace('_', '.')}.{_DOWNSAMPLE.get(layer, layer)}".removeprefix(".")
    if len(path) == 1:
        return _ENDS[path[0]][0]
    stage, number, layers = _block(model_name, path[0])
    return f"blocks.{stage - 1}.{number}.{layers[path[1]][0]}"


def _keras_layer(model_name: str, path: tuple[str, ...]) -> str:
    if len(path) == 1:
        return _ENDS[path[0]][1]
    stage, number, layers = _block(model_name, path[0])
    return f"block{stage}{string.ascii_lowercase[number]}_{layers[path[1]][1]}"
