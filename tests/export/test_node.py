"""ONNX exports in Node, by onnxruntime-node. `make test-node` fails where `make test` skips."""

import json
import os
import shutil
import subprocess

import jax
import numpy as np
import pytest
from conftest import ROOT
from programs import TOWERS, needs_onnx, program_of

from lae_jax import models
from lae_jax.export import onnx_model

PACKAGE = ROOT / ".venv-node" / "node_modules" / "onnxruntime-node"
pytestmark = [
    needs_onnx,
    pytest.mark.skipif(
        os.environ.get("NODE") != "required" and not (shutil.which("node") and PACKAGE.is_dir()),
        reason="no onnxruntime-node (make test-node installs it)",
    ),
]
# The bytes of the images come by standard input; the outputs leave as JSON.
CODE = """
const { InferenceSession, Tensor } = require(process.argv[1]);
const [, , file, count, side] = process.argv;
const chunks = [];
process.stdin.on("data", (chunk) => chunks.push(chunk)).on("end", async () => {
  const session = await InferenceSession.create(file);
  const image = new Tensor("uint8", Uint8Array.from(Buffer.concat(chunks)), [+count, +side, +side, 3]);
  const { age, distribution } = await session.run({ image });
  console.log(JSON.stringify([[...age.data], [...distribution.data]]));
});
"""


@pytest.mark.parametrize(("name", "side", "fields"), [
    ("efficientnet_v2_pico", 24, {"flip": True, "temperature": 0.7, "hidden": 16}),
    ("efficientnet_lite0", 33, {}),
    ("resnet18", 32, {"temperature": 1.5}),
    ("vit_pico", 24, {}),
    ("convnext_pico", 27, {}),
])  # fmt: skip
def test_node_gives_the_ages_of_the_model(name, side, fields, tmp_path, monkeypatch):
    for tower, entry in TOWERS.items():
        monkeypatch.setitem(models.BACKBONES, tower, entry)
    made = program_of(name, side, **fields)
    onnx_model.write(tmp_path, made)
    rng = np.random.default_rng(1)
    images = rng.integers(0, 100, (5, side, side, 3)) + rng.integers(0, 156, (5, 1, 1, 3))
    images = images.astype(np.uint8)
    words = ["node", "-e", CODE, str(PACKAGE), str(tmp_path / onnx_model.FILE), str(len(images)), str(side)]
    done = subprocess.run(words, input=images.tobytes(), capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr.decode()
    ages, distributions = map(np.array, json.loads(done.stdout))
    expected, expected_distributions = jax.jit(made.function("xla"))(made.variables, images)
    assert np.ptp(expected) > 0.01, "the images must be told apart"
    np.testing.assert_allclose(ages, expected, atol=1e-3)
    np.testing.assert_allclose(distributions.reshape(len(images), -1), expected_distributions, atol=1e-4)
