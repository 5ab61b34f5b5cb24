"""The other side of `benchmarks.pretrained_parity`: timm's network with random weights, in the peers' environment.

    .venv-peers/bin/python -m benchmarks.timm_features tf_efficientnet_lite0 FOLDER

Reads FOLDER/images.npy (B, H, W, 3). Writes features.npy, pooled features (B, F) in float64, and the weights in float32
under timm's names (timm.safetensors) and under those of EfficientNet-PyTorch (EfficientNet-PyTorch.safetensors). Works
with networks of MBConv blocks without squeeze-excite.
"""

import pathlib
import sys

import numpy as np
import safetensors.torch
import timm
import torch

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


def main() -> None:
    torch.set_num_threads(1)  # more threads wait for each other where others use the cores too
    torch.manual_seed(0)
    folder = pathlib.Path(sys.argv[2])
    images = torch.from_numpy(np.load(folder / "images.npy")).permute(0, 3, 1, 2)
    model = timm.create_model(sys.argv[1])
    randomise(model, images)
    safetensors.torch.save_file(model.state_dict(), folder / "timm.safetensors")
    safetensors.torch.save_file(numbered(model), folder / "EfficientNet-PyTorch.safetensors")
    with torch.no_grad():
        features = model.double().forward_features(images).mean((2, 3))
    np.save(folder / "features.npy", features.numpy())


if __name__ == "__main__":
    main()
