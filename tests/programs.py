"""Programs to export, with weights that no test can mix up, and the software of an export's page."""

import hashlib
import importlib.util
import json

import jax
import numpy as np
import pytest

from lae_jax import models
from lae_jax.export import browser, program
from lae_jax.models import convnext, vit

HAS_ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime"))
needs_onnx = pytest.mark.skipif(not HAS_ONNX, reason="onnx and onnxruntime are not installed (the extra onnx)")


# Small relatives of ViT and ConvNeXt for 24 px, to be put into `models.BACKBONES` by a test.
TOWERS = {
    "vit_pico": (models.ViT, vit.Architecture(12, 2, 3, patch=4, grid=5)),
    "vit_pico_clip": (models.ViT, vit.Architecture(12, 2, 3, patch=4, grid=5, clip=True)),
    "convnext_pico": (models.ConvNeXt, convnext.Architecture((1, 2), (8, 12), patch=2)),
}


def random_variables(name, side, hidden=0, seed=0):
    """Every leaf away from its initial value, so that one that is left out or mixed up is seen."""
    rng = np.random.default_rng(seed)

    def leaf(path, value):
        kind = path[-1].key
        spread = 0.2 if kind != "kernel" else 4 / np.sqrt(len(value)) if "head" in jax.tree_util.keystr(path) else 0.0
        moved = np.asarray(value) + spread * rng.standard_normal(value.shape)
        if kind == "scale" and "resnet" in name:
            moved *= 0.7  # else one age gets all of the probability
        return np.asarray(np.abs(moved) if kind == "var" else moved, np.float32)

    return jax.tree_util.tree_map_with_path(
        leaf, models.initialise(models.create(name, 101, hidden=hidden), side, seed=seed)
    )


def program_of(name, side, hidden=0, **fields):
    return program.Program(
        name, random_variables(name, side, hidden), side, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3), **fields
    )


def npm_package(folder, monkeypatch):
    """A folder like npm's package onnxruntime-web, whose files the page of an export takes for the real ones."""
    (folder / "dist").mkdir(parents=True)
    (folder / "package.json").write_text(json.dumps({"version": browser.VERSION}))
    for name in browser.SHA256:
        text = f"// {name}\n" * 9
        (folder / "dist" / name).write_text(text)
        monkeypatch.setitem(browser.SHA256, name, hashlib.sha256(text.encode()).hexdigest())
    return folder
