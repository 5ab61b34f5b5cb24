"""The other side of `benchmarks.train_step`: timm's model under PyTorch, as its documentation advises to train.

Channels last, bfloat16 by autocast on an accelerator, SGD with Nesterov momentum, eagerly or through torch.compile. Its
environment needs torch and timm alone (benchmarks/requirements-peers.txt).
"""

import contextlib
import functools
import time
import warnings

import timm
import torch
import torch.nn.functional as F
from timm.models import efficientnet
from timm.models._efficientnet_builder import decode_arch_def

from benchmarks import sides

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
AGES = 101
VERSIONS = f"torch {torch.__version__}, timm {timm.__version__}"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def backbone(architecture: dict | None, timm_name: str | None) -> torch.nn.Module:
    """timm's own model, or one of its layers; called with images it gives pooled features."""
    if timm_name:
        rates = {"effic": 0.2, "convn": 0.1}  # as our models have them
        rate = rates.get(timm_name.removeprefix("tf_")[:5])
        return timm.create_model(timm_name, num_classes=0, **({"drop_path_rate": rate} if rate else {}))
    return efficientnet.EfficientNet(
        decode_arch_def(architecture["blocks"]), num_classes=0, num_features=architecture["top"],
        stem_size=architecture["stem"], round_chs_fn=round, act_layer=torch.nn.SiLU, pad_type="same",
        norm_layer=functools.partial(torch.nn.BatchNorm2d, eps=1e-3), drop_path_rate=architecture["drop_path"],
    )  # fmt: skip


class Network(torch.nn.Module):
    """A backbone and this project's head of a stage, normalisation and loss: uint8 (B, 3, H, W) -> a loss, or ages."""

    def __init__(self, case: dict):
        super().__init__()
        self.mode = case["mode"]
        self.backbone = backbone(case["architecture"], case["timm"])
        width = self.backbone.num_features
        self.dropout = torch.nn.Dropout(case["dropout"])
        if self.mode == "stage 1":
            self.embedding = torch.nn.Linear(width, 512, bias=False)
            self.norm = torch.nn.BatchNorm1d(512)
            self.classes = torch.nn.Parameter(torch.randn(case["identities"], 512) * 512**-0.5)
        else:
            self.fc = torch.nn.Linear(width, AGES)
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1))
        self.register_buffer("ages", torch.arange(AGES, dtype=torch.float32))

    def features(self, images):
        return self.backbone((images.float() / 255 - self.mean) / self.std).float()

    def forward(self, images, target):
        if self.mode == "inference":
            return self.fc(self.features(images)).softmax(-1) @ self.ages
        if self.mode == "stage 1":
            cosines = F.normalize(self.norm(self.embedding(self.features(images)))) @ F.normalize(self.classes).T
            return F.cross_entropy(64 * (cosines - 0.35 * F.one_hot(target, len(self.classes))), target)
        if self.mode == "stage 3":
            with torch.no_grad():
                features = self.features(images)
            probabilities = self.fc(self.dropout(features)).softmax(-1)
            return (probabilities @ self.ages - target).abs().mean()
        logits = self.fc(self.dropout(self.features(images)))
        wanted = (-0.5 * (self.ages - target[:, None]) ** 2).softmax(-1)
        return F.cross_entropy(logits, wanted) + (logits.softmax(-1) @ self.ages - target).abs().mean()


class Theirs:
    """One case at a time."""

    def start(self, case: dict) -> dict:
        self.stop()
        torch.manual_seed(0)
        layout = torch.channels_last if case["channels_last"] else torch.contiguous_format
        self._network = Network(case).to(DEVICE, memory_format=layout)
        self._trains = case["mode"] != "inference"
        self._network.train(self._trains)
        if case["mode"] == "stage 3":
            self._network.backbone.eval().requires_grad_(False)
        parameters = [p for p in self._network.parameters() if p.requires_grad]
        self._optimiser = torch.optim.SGD(parameters, 0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
        size = case["image_size"]
        images = torch.randint(0, 256, (case["batch"], 3, size, size), dtype=torch.uint8)
        self._images = images.to(DEVICE).contiguous(memory_format=layout)
        if case["mode"] == "stage 1":
            self._target = torch.randint(0, case["identities"], (case["batch"],)).to(DEVICE)
        else:
            self._target = torch.rand(case["batch"]).to(DEVICE) * 100
        self._cast = functools.partial(torch.autocast, DEVICE.type, torch.bfloat16)
        if case["dtype"] != "bfloat16":
            self._cast = contextlib.nullcontext
        self._forward = torch.compile(self._network) if case["compile"] else self._network
        if DEVICE.type == "cuda":
            torch.backends.cudnn.benchmark = True
            torch.backends.cuda.matmul.allow_tf32 = True
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        self.turn(1)
        return {
            "device": torch.cuda.get_device_name() if DEVICE.type == "cuda" else "cpu",
            "versions": VERSIONS,
            "threads": torch.get_num_threads(),
            "parameters": sum(p.numel() for p in self._network.backbone.parameters()),
            "compile_seconds": time.perf_counter() - start,
            "peak_bytes": torch.cuda.max_memory_allocated() if DEVICE.type == "cuda" else None,
        }

    def turn(self, steps: int) -> dict:
        start, cpu = time.perf_counter(), time.process_time()
        for _ in range(steps):
            if not self._trains:
                with torch.inference_mode(), self._cast():
                    out = self._forward(self._images, self._target)
                continue
            with self._cast():
                out = self._forward(self._images, self._target)
            self._optimiser.zero_grad(set_to_none=True)
            out.backward()
            self._optimiser.step()
        out.sum().item()  # waits
        return sides.per_step(steps, start, cpu)

    def versions(self) -> dict:
        return {"versions": VERSIONS}

    def stop(self) -> dict:
        """Gives the device's memory back, also what the allocator keeps."""
        self._network = self._forward = self._optimiser = self._images = self._target = None
        torch.compiler.reset()
        if DEVICE.type == "cuda":
            torch.cuda.empty_cache()
        return {}


def is_full(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    theirs = Theirs()
    can = (theirs.start, theirs.turn, theirs.versions, theirs.stop)
    sides.serve({method.__name__: method for method in can}, is_full)
