"""The dtype that a model computes in: what 'auto' stands for, in training and where a finished run is used.

Heads, losses, ages and the statistics of BatchNorm are float32, or wider if the dtype is.
"""

import logging
import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from lae_jax.runtime.errors import InputError

logger = logging.getLogger("lae_jax")

AUTO = "auto"
_DTYPES = ("float32", "bfloat16", "float64")  # float64 is for tests: it needs 64-bit mode in JAX
_CAPABILITY = 8.0  # of NVIDIA's GPUs, from which on they multiply in bfloat16: A100 and later


def _device() -> jax.Device:
    return jax.local_devices()[0]


def has_bfloat16(device: jax.Device) -> bool:
    """Whether a device multiplies in bfloat16: a TPU, or a GPU of NVIDIA of compute capability 8.0 or more."""
    capability = str(getattr(device, "compute_capability", ""))
    is_new = bool(re.fullmatch(r"\d+\.\d+", capability)) and float(capability) >= _CAPABILITY
    return device.platform == "tpu" or is_new


def dtype_of(config: ConfigDict, device: jax.Device | None = None) -> jnp.dtype:
    """Returns the dtype of a config's model.

    Args:
      config: The config.
      device: The device that 'auto' is for; None: this process's first one.

    Raises:
      InputError: It is not a dtype that models compute in.
    """
    name = config.model.dtype
    if name == AUTO:
        name = "bfloat16" if has_bfloat16(device or _device()) else "float32"
    if name not in _DTYPES:
        raise InputError(f"config.model.dtype is {name!r}: set it to 'auto', 'float32' or 'bfloat16'")
    return jnp.dtype(name)


def resolved(config: ConfigDict, before: Mapping | None, device: jax.Device | None = None) -> ConfigDict:
    """Returns the config of a run with the dtype in place of 'auto'. Repeating is harmless.

    A run that resumes keeps the dtype that it was started with, on any device.

    Args:
      config: The config.
      before: The config of the run's first start, as JSON; None: this is the first start.
      device: The device that 'auto' is for; None: this process's first one.
    """
    if config.model.dtype != AUTO:
        return config
    config = config.copy_and_resolve_references()
    config.model.dtype = before["model"]["dtype"] if before else dtype_of(config, device).name
    return config


def wide(config: ConfigDict) -> str:
    """Returns the dtype of heads, losses and statistics."""
    return jnp.promote_types(dtype_of(config), jnp.float32).name


def tell(config: ConfigDict) -> None:
    """Logs the dtype that a run trains in, and warns if the device is slow in it."""
    device = _device()
    rest = wide(config)
    logger.info("the backbone computes in %s, the rest in %s (%s)", config.model.dtype, rest, device.device_kind)
    if config.model.dtype == "bfloat16" and not has_bfloat16(device):
        logger.warning(
            "%s is a run in bfloat16, which this device (%s) only simulates: it is slow. To train in float32, choose"
            " another --config.workdir and set --config.model.dtype=float32",
            config.workdir,
            device.device_kind,
        )


def for_inference(config: ConfigDict, device: jax.Device | None = None) -> ConfigDict:
    """Returns the config of a finished run as a device uses it: in float32 where it has no bfloat16.

    Args:
      config: The config.
      device: The device; None: this process's first one.
    """
    device = device or _device()
    if config.model.dtype != "bfloat16" or has_bfloat16(device):
        return config
    logger.info(
        "the run was trained in bfloat16; this device (%s) computes in float32, so its numbers differ by rounding",
        device.device_kind,
    )
    config = config.copy_and_resolve_references()
    config.model.dtype = "float32"
    return config
