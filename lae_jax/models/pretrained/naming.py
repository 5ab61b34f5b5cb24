"""Names of our layers in weight files of other libraries, and the statistics that these libraries normalise with.

The names are timm's for tf_efficientnetv2_{s,m,l}, tf_efficientnet_lite0, the ViTs and convnext_tiny, torchvision's
(and timm's) for resnet18 and resnet50, Keras' for keras.applications.EfficientNetV2{S,M,L}, EfficientNet-PyTorch's for
EfficientNet-Lite0, and OpenAI's for CLIP's ViT. EfficientNet-PyTorch numbers the blocks from the first to the last,
without stages.
"""

import string
from collections.abc import Callable, Mapping
from typing import NamedTuple

from lae_jax.models import BACKBONES
from lae_jax.models.convnext import ConvNeXt
from lae_jax.models.efficientnet import EfficientNet
from lae_jax.models.pretrained import tower_names
from lae_jax.models.pretrained.tensors import Expected
from lae_jax.models.vit import ViT


class Statistics(NamedTuple):
    """Mean and standard deviation by channel of images in [0, 1], as config.data.mean and config.data.std."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


IMAGENET = Statistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = Statistics((0.5,) * 3, (0.5,) * 3)
LITE = Statistics((127 / 255,) * 3, (128 / 255,) * 3)  # (pixel - 127) / 128 of pixels in [0, 255]
CLIP = Statistics((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
KERAS = Statistics((128 / 255,) * 3, (128 / 255,) * 3)  # Rescaling(1 / 128, offset=-1) of pixels in [0, 255]

ARCHITECTURES = {
    **{f"efficientnet_v2_{size}": f"tf_efficientnetv2_{size}" for size in "sml"},
    "efficientnet_lite0": "tf_efficientnet_lite0",
    **{f"resnet{depth}": f"resnet{depth}" for depth in (18, 50)},
    "vit_s16": "vit_small_patch16_224",
    "vit_b16": "vit_base_patch16_224",
    "vit_b16_clip": "vit_base_patch16_clip_quickgelu_224",
    "convnext_tiny": "convnext_tiny",
}
"""Our name -> timm's name of the network. (Its efficientnetv2_s, without tf_, pads and normalises differently.)"""


def assumed(model_name: str) -> tuple[Statistics, str]:
    """The statistics of a torch state dict that comes without them, and whose they are."""
    network = ARCHITECTURES[model_name]
    if model_name == "efficientnet_lite0":
        return LITE, f"as Google trains {network.removeprefix('tf_')}"
    backbone, architecture = BACKBONES[model_name]
    if backbone is ViT and architecture.clip:
        return CLIP, "as OpenAI has them for CLIP"
    if backbone in (EfficientNet, ViT):
        return HALF, f"as timm has them for {network}"
    if backbone is ConvNeXt:
        return IMAGENET, f"as timm has them for {network}"
    return IMAGENET, f"as timm and torchvision have them for {network}"


IN_KERAS = tuple(f"efficientnet_v2_{size}" for size in "sml")
NUMBERED = ("efficientnet_lite0",)
"""Our names of the networks that EfficientNet-PyTorch's layout is read for."""


class _Names(NamedTuple):
    """A layer's name in other libraries; '' where the library has no network with such a layer."""

    timm: str
    keras: str = ""
    numbered: str = ""


_ENDS = {
    "stem_conv": _Names("conv_stem", "stem_conv", "_conv_stem"),
    "stem_bn": _Names("bn1", "stem_bn", "_bn0"),
    "top_conv": _Names("conv_head", "top_conv", "_conv_head"),
    "top_bn": _Names("bn2", "top_bn", "_bn1"),
}
_SINGLE = {"project_conv": _Names("conv", "project_conv"), "project_bn": _Names("bn1", "project_bn")}
_FUSED = {
    "expand_conv": _Names("conv_exp", "expand_conv"),
    "expand_bn": _Names("bn1", "expand_bn"),
    "project_conv": _Names("conv_pwl", "project_conv"),
    "project_bn": _Names("bn2", "project_bn"),
}
_MBCONV = {
    "expand_conv": _Names("conv_pw", "expand_conv", "_expand_conv"),
    "expand_bn": _Names("bn1", "expand_bn", "_bn0"),
    "depthwise_conv": _Names("conv_dw", "dwconv2", "_depthwise_conv"),
    "depthwise_bn": _Names("bn2", "bn", "_bn1"),
    "se_reduce": _Names("se.conv_reduce", "se_reduce"),
    "se_expand": _Names("se.conv_expand", "se_expand"),
    "project_conv": _Names("conv_pwl", "project_conv", "_project_conv"),
    "project_bn": _Names("bn3", "project_bn", "_bn2"),
}
# An MBConv block without an expansion.
_SEPARABLE = {
    "depthwise_conv": _Names("conv_dw", numbered="_depthwise_conv"),
    "depthwise_bn": _Names("bn1", numbered="_bn1"),
    "project_conv": _Names("conv_pw", numbered="_project_conv"),
    "project_bn": _Names("bn2", numbered="_bn2"),
}
_DOWNSAMPLE = {"downsample_conv": "downsample.0", "downsample_bn": "downsample.1"}
# Our leaf of a layer -> its name in the file. A layer with a `scale` is a BatchNorm.
_TORCH = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
_KERAS = {"kernel": "kernel", "bias": "bias"}
_KERAS_NORM = {"scale": "gamma", "bias": "beta", "mean": "moving_mean", "var": "moving_variance"}

Shapes = Mapping[tuple[str, ...], tuple[int, ...]]


def torch_layouts(model_name: str, shapes: Shapes) -> list[dict[str, Expected]]:
    """The layouts that a torch state dict of a model may have: `torch_layout`, and for some that of another package."""
    layouts = [torch_layout(model_name, shapes)]
    if model_name in NUMBERED:
        layouts.append(numbered_layout(model_name, shapes))
    backbone, architecture = BACKBONES[model_name]
    if backbone is ViT and architecture.clip:
        layouts.append(_state_dict(model_name, shapes, lambda _, path: tower_names.of_clip(path)))
    return layouts


def torch_layout(model_name: str, shapes: Shapes) -> dict[str, Expected]:
    """Maps timm's and torchvision's names to the expected tensors. Kernels are OIHW, depthwise kernels (C, 1, kh, kw).

    Args:
      model_name: Key of `ARCHITECTURES`.
      shapes: Shapes of the backbone's variables by path, such as ('params', 'stem_conv', 'kernel').
    """
    return _state_dict(model_name, shapes, _torch_name)


def numbered_layout(model_name: str, shapes: Shapes) -> dict[str, Expected]:
    """As `torch_layout`, with the names of EfficientNet-PyTorch. The model is one of `NUMBERED`."""
    return _state_dict(model_name, shapes, _numbered_name)


def _state_dict(model_name: str, shapes: Shapes, name_of: Callable[[str, tuple[str, ...]], str]) -> dict[str, Expected]:
    result = {}
    for path, shape in shapes.items():
        name, axes = name_of(model_name, path[1:]), tuple(range(len(shape)))
        if path[-1] == "kernel":
            axes = (2, 3, 1, 0) if len(shape) == 4 else (1, 0)
        extra = tower_names.EXTRA.get(name, 0)
        in_file = tuple(shape[axes.index(axis)] for axis in range(len(axes)))
        result[name] = Expected(path, (1,) * extra + in_file, axes, extra)
    return result


def torch_spare(name: str) -> bool:
    """Whether a tensor is not part of the backbone: the classifier's, CLIP's texts', or torch's count of batches."""
    layer, _, leaf = name.rpartition(".")
    classifier = layer in ("classifier", "fc", "_fc") and leaf in ("weight", "bias")
    return classifier or leaf == "num_batches_tracked" or tower_names.is_spare(name)


def keras_layouts(model_name: str, shapes: Shapes) -> list[dict[str, Expected]]:
    """The layout of a model that is in Keras, as a list; of others an empty list."""
    return [keras_layout(model_name, shapes)] if model_name in IN_KERAS else []


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


def _block(model_name: str, block: str) -> tuple[int, int, dict[str, _Names]]:
    """'block3_1' -> (3, 1, the names of its layers)."""
    stage, number = (int(n) for n in block.removeprefix("block").split("_"))
    group = BACKBONES[model_name][1].stages[stage - 1]
    if group.fused:
        layers = _SINGLE if group.expand == 1 else _FUSED
    else:
        layers = _SEPARABLE if group.expand == 1 else _MBCONV
    return stage, number, layers


def _torch_name(model_name: str, path: tuple[str, ...]) -> str:
    backbone, _ = BACKBONES[model_name]
    if backbone is ViT:
        return tower_names.of_vit(path)
    if backbone is ConvNeXt:
        return tower_names.of_convnext(path)
    *layer, leaf = path
    return f"{_torch_layer(model_name, tuple(layer))}.{_TORCH[leaf]}"


def _torch_layer(model_name: str, path: tuple[str, ...]) -> str:
    if BACKBONES[model_name][0] is not EfficientNet:
        block, layer = path if len(path) == 2 else ("", path[0])
        return f"{block.replace('_', '.')}.{_DOWNSAMPLE.get(layer, layer)}".removeprefix(".")
    if len(path) == 1:
        return _ENDS[path[0]].timm
    stage, number, layers = _block(model_name, path[0])
    return f"blocks.{stage - 1}.{number}.{layers[path[1]].timm}"


def _numbered_name(model_name: str, path: tuple[str, ...]) -> str:
    *layer, leaf = path
    if len(layer) == 1:
        return f"{_ENDS[layer[0]].numbered}.{_TORCH[leaf]}"
    stage, number, layers = _block(model_name, layer[0])
    before = sum(group.blocks for group in BACKBONES[model_name][1].stages[: stage - 1])
    return f"_blocks.{before + number}.{layers[layer[1]].numbered}.{_TORCH[leaf]}"


def _keras_layer(model_name: str, path: tuple[str, ...]) -> str:
    if len(path) == 1:
        return _ENDS[path[0]].keras
    stage, number, layers = _block(model_name, path[0])
    return f"block{stage}{string.ascii_lowercase[number]}_{layers[path[1]].keras}"
