"""The dtype 'auto': what it stands for on a device, and that a run keeps the dtype of its first start."""

import json
import logging
import pathlib
import types

import jax
import pytest

from lae_jax.configs import common
from lae_jax.runs import fields, precision
from lae_jax.runtime.errors import InputError
from lae_jax.train import loop

TPU = types.SimpleNamespace(platform="tpu", device_kind="TPU v5 lite")


def gpu(capability):
    return types.SimpleNamespace(platform="gpu", device_kind="a GPU", compute_capability=capability)


@pytest.fixture
def device(monkeypatch):
    """A function that makes `runs.precision` see another device; no model is run on it."""
    real = jax.local_devices()[0]

    def see(device=real):
        monkeypatch.setattr(precision, "_device", lambda: device)

    return see


@pytest.mark.parametrize(
    ("seen", "dtype"),
    [
        (TPU, "bfloat16"),
        (gpu("8.0"), "bfloat16"),
        (gpu("9.0"), "bfloat16"),
        (gpu("12.0"), "bfloat16"),
        (gpu("7.5"), "float32"),
        (gpu("gfx90a"), "float32"),  # of another maker, which we know nothing of
        (types.SimpleNamespace(platform="cpu", device_kind="cpu"), "float32"),
    ],
)
def test_auto_is_bfloat16_where_a_device_has_it(device, seen, dtype):
    device(seen)
    config = common.get_config()
    assert config.model.dtype == "auto" and precision.dtype_of(config).name == dtype
    assert precision.resolved(config, None).model.dtype == dtype and config.model.dtype == "auto"
    config.model.dtype = "float32"
    assert precision.resolved(config, None).model.dtype == "float32", "what was asked for stays"


def test_a_run_keeps_the_dtype_of_its_first_start(device):
    device(TPU)
    config = common.get_config()
    for dtype in ("float32", "bfloat16"):
        before = fields.as_json(config) | {"model": {**fields.as_json(config)["model"], "dtype": dtype}}
        assert precision.resolved(config, before).model.dtype == dtype
    config.model.dtype = "float32"
    assert precision.resolved(config, before).model.dtype == "float32", "which is then refused, with both values"


class Begun(Exception):
    """A run has come as far as its first step."""


def test_a_run_that_a_tpu_began_goes_on_in_bfloat16_on_a_cpu(small_config, device, caplog, monkeypatch):
    def run(self, state, **_):
        raise Begun(str(self.plan.config.model.dtype))

    monkeypatch.setattr(loop._Loop, "run", run)
    caplog.set_level(logging.INFO, "lae_jax")
    config = small_config("represent")
    workdir = pathlib.Path(config.workdir)
    device(TPU)
    with pytest.raises(Begun, match="bfloat16"):
        loop.train(config)
    assert json.loads((workdir / "config.json").read_text())["model"]["dtype"] == "bfloat16"
    known = json.loads((workdir / "provenance.json").read_text())
    assert known["dtype"] == {"backbone": "bfloat16", "head and loss": "float32"}
    assert "the backbone computes in bfloat16, the rest in float32 (TPU v5 lite)" in caplog.text
    assert "simulates" not in caplog.text

    device()  # the CPU of this machine
    with pytest.raises(Begun, match="bfloat16"):
        loop.train(config)
    assert "is a run in bfloat16, which this device (cpu) only simulates" in caplog.text
    config.model.dtype = "float32"
    with pytest.raises(InputError, match="model.dtype: 'bfloat16' there, 'float32' now"):
        loop.train(config)


def test_a_finished_run_in_bfloat16_is_used_in_float32_where_there_is_no_bfloat16(device, caplog):
    caplog.set_level(logging.INFO, "lae_jax")
    config = common.get_config()
    config.model.dtype = "bfloat16"
    device(gpu("8.6"))
    assert precision.for_inference(config).model.dtype == "bfloat16" and not caplog.text
    device()
    assert precision.for_inference(config).model.dtype == "float32" and config.model.dtype == "bfloat16"
    assert "the run was trained in bfloat16; this device (cpu) computes in float32" in caplog.text
    config.model.dtype = "float32"
    assert precision.for_inference(config) is config
