"""Names of the tensors of ViT and ConvNeXt in other libraries: timm's, and for CLIP's ViT OpenAI's.

FaRL (arXiv:2112.03109) and OpenCLIP have OpenAI's names too.
"""

import re

_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}
_VIT = {
    "patches": "patch_embed.proj",
    "class_token": "cls_token",
    "positions": "pos_embed",
    "qkv": "attn.qkv",
    "proj": "attn.proj",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
}
_CONVNEXT = {
    "stem": "stem.0",
    "stem_norm": "stem.1",
    "conv": "conv_dw",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
    "layer_scale": "gamma",
}
_CLIP = {
    "patches": "conv1",
    "class_token": "class_embedding",
    "positions": "positional_embedding",
    "norm_pre": "ln_pre",
    "norm": "ln_post",
    "norm1": "ln_1",
    "norm2": "ln_2",
    "proj": "attn.out_proj",
    "fc1": "mlp.c_fc",
    "fc2": "mlp.c_proj",
}
# Tensors of CLIP that are not of its visual tower, or come after the features that are used here.
_CLIP_SPARE = re.compile(
    r"(transformer|token_embedding|ln_final)\..*|visual\.proj|positional_embedding|text_projection|logit_scale"
    r"|input_resolution|context_length|vocab_size"
)
EXTRA = {"cls_token": 2, "pos_embed": 1}
"""Name in timm -> leading axes of length 1 in the file."""


def of_vit(path: tuple[str, ...]) -> str:
    """Name in timm of a ViT's variable: ('block3', 'qkv', 'kernel') -> 'blocks.3.attn.qkv.weight'."""
    return _joined(path, _VIT, "blocks.{}")


def of_clip(path: tuple[str, ...]) -> str:
    """Name in CLIP: ('block3', 'qkv', 'kernel') -> 'visual.transformer.resblocks.3.attn.in_proj_weight'."""
    if path[-2:-1] == ("qkv",):  # torch's attention has no layer for them
        return f"visual.transformer.resblocks.{path[0].removeprefix('block')}.attn.in_proj_{_LEAVES[path[-1]]}"
    return "visual." + _joined(path, _CLIP, "transformer.resblocks.{}")


def of_convnext(path: tuple[str, ...]) -> str:
    """Name in timm of a ConvNeXt's variable: ('block3_1', 'fc1', 'kernel') -> 'stages.2.blocks.1.mlp.fc1.weight'."""
    first, *rest = path
    if found := re.fullmatch(r"block(\d+)_(\d+)", first):
        return f"stages.{int(found[1]) - 1}.blocks.{found[2]}." + _joined(tuple(rest), _CONVNEXT)
    if found := re.fullmatch(r"downsample(\d+)(_norm)?", first):
        return f"stages.{int(found[1]) - 1}.downsample.{0 if found[2] else 1}.{_LEAVES[path[-1]]}"
    return _joined(path, {**_CONVNEXT, "norm": "head.norm"})


def is_spare(name: str) -> bool:
    """Whether a tensor is a classifier's, or of CLIP outside the visual tower."""
    return name in ("head.weight", "head.bias", "head.fc.weight", "head.fc.bias") or bool(_CLIP_SPARE.fullmatch(name))


def _joined(path: tuple[str, ...], names: dict[str, str], block: str = "") -> str:
    """Each part of a path in the words of another library."""
    words = []
    for part in path:
        number = re.fullmatch(r"block(\d+)", part)
        words.append(block.format(number[1]) if number else names.get(part, _LEAVES.get(part, part)))
    return ".".join(words)
