"""The other side of `benchmarks.pretrained_parity`: timm's network with random weights, in the peers' environment.

    .venv-peers/bin/python -m benchmarks.timm_features tf_efficientnet_lite0 FOLDER

Reads FOLDER/images.npy (B, H, W, 3). Writes features.npy, pooled features (B, F) in float64, and the weights in float32
under timm's names (timm.safetensors) and, of some networks, under those of another library: EfficientNet-PyTorch's of
networks of MBConv blocks without squeeze-excite (EfficientNet-PyTorch.safetensors), OpenAI's of CLIP's ViT
(OpenAI.safetensors).
"""

import pathlib
import sys
import unittest.mock

import numpy as np
import safetensors.torch
import timm
import torch
from timm.models import vision_transformer

ENDS = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1", "classifier": "_fc"}
SEPARABLE = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
EXPANDED = {
    "conv_pw": "_expand_conv",
    "bn1": "_bn0",
    "conv_dw": "_depthwise_conv",
    "bn2": "_bn1",
    "conv_pwl": "_project_conv",
    "bn3": "_bn2",
}


def randomise(model: torch.nn.Module, images: torch.Tensor) -> None:
    """Float32 values under which activations neither vanish nor explode; the statistics are those of `images`."""
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
        elif isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.7, 1.3)
            torch.nn.init.normal_(module.bias, std=0.1)
            module.momentum = 1.0  # one batch gives the statistics
    with torch.no_grad():
        model.train()(images.float())
    model.eval()


def randomise_tower(model: torch.nn.Module) -> None:
    """The same for ViT and ConvNeXt, which have no statistics of a batch. Every parameter leaves its initial value."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in ("cls_token", "pos_embed"):
                torch.nn.init.normal_(parameter, std=0.5)
            elif parameter.ndim >= 2:
                torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
            elif name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.1)
            else:  # of LayerNorm, and ConvNeXt's scales of channels
                torch.nn.init.uniform_(parameter, 0.7, 1.3)
    model.eval()


def numbered(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The state dict under EfficientNet-PyTorch's names."""
    names = dict(ENDS)
    blocks = [(f"blocks.{i}.{j}", block) for i, stage in enumerate(model.blocks) for j, block in enumerate(stage)]
    for number, (name, block) in enumerate(blocks):
        parts = EXPANDED if hasattr(block, "conv_pwl") else SEPARABLE
        names |= {f"{name}.{theirs}": f"_blocks.{number}.{other}" for theirs, other in parts.items()}
    state = {}
    for name, tensor in model.state_dict().items():
        layer, _, leaf = name.rpartition(".")
        state[f"{names[layer]}.{leaf}"] = tensor
    return state


def of_openai(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The state dict of CLIP's ViT under OpenAI's names, with tensors of the texts.

    Raises:
      AssertionError: timm reads it as other weights.
    """
    words = {
        "patch_embed.proj": "conv1",
        "norm_pre": "ln_pre",
        "blocks.": "transformer.resblocks.",
        "norm1": "ln_1",
        "norm2": "ln_2",
        "attn.qkv.": "attn.in_proj_",
        "attn.proj": "attn.out_proj",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
    }
    state = {}
    for name, tensor in model.state_dict().items():
        if name in ("cls_token", "pos_embed"):
            name = {"cls_token": "class_embedding", "pos_embed": "positional_embedding"}[name]
            tensor = tensor.squeeze()
        elif name.startswith("norm."):
            name = name.replace("norm", "ln_post")
        for ours, theirs in words.items():
            name = name.replace(ours, theirs)
        state[f"visual.{name}"] = tensor.clone()
    read = vision_transformer.checkpoint_filter_fn(dict(state), model)
    assert all(torch.equal(tensor, read[name]) for name, tensor in model.state_dict().items())
    texts = {"visual.proj": (768, 512), "text_projection": (512, 512), "logit_scale": (), "ln_final.weight": (512,)}
    return state | {name: torch.zeros(shape) for name, shape in texts.items()}


def main() -> None:
    torch.set_num_threads(1)  # more threads wait for each other where others use the cores too
    torch.manual_seed(0)
    name, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    images = torch.from_numpy(np.load(folder / "images.npy")).permute(0, 3, 1, 2)
    states = {}
    if name.startswith(("vit", "convnext")):
        sizes = {"dynamic_img_size": True} if name.startswith("vit") else {}
        model = timm.create_model(name, num_classes=0, **sizes)
        randomise_tower(model)
        if "clip" in name:
            states["OpenAI"] = of_openai(model)
    else:
        model = timm.create_model(name)
        randomise(model, images)
        states["EfficientNet-PyTorch"] = numbered(model)
    for library, state in {**states, "timm": model.state_dict()}.items():
        safetensors.torch.save_file(state, folder / f"{library}.safetensors")
    model.double()
    # timm interpolates position embeddings in float32 in any case.
    with torch.no_grad(), unittest.mock.patch.object(torch.Tensor, "float", torch.Tensor.double):
        features = model.forward_head(model.forward_features(images), pre_logits=True)
    np.save(folder / "features.npy", features.numpy())


if __name__ == "__main__":
    main()
