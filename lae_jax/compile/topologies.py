"""Machines to compile for: the topology of each, and the published figures of its devices.

What joins the hosts of a GPU cluster is assumed: a 400 Gb/s port for each GPU.
"""

import dataclasses
import math
import re

import jax
from jax.experimental import topologies

from lae_jax.runtime import parallel
from lae_jax.runtime.errors import InputError
from lae_jax.train import costs

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published figures of a device. Its peak is in `train.costs`.

    Attributes:
      device_kind: Its name in JAX.
      memory: Bytes.
      bandwidth: Of the memory, bytes a second.
      link: Bytes a second that a device sends to others of its host or slice.
      source: Where the figures are published.
      float32: Speed of products of float32 at JAX's default precision, as a share of those of bfloat16: TF32 on GPUs;
        TPUs compute them in bfloat16.
    """

    device_kind: str
    memory: float
    bandwidth: float
    link: float
    source: str
    float32: float = 1.0

    @property
    def peak(self) -> float:
        """Of products of bfloat16, FLOP a second, dense."""
        return costs.peak_flops(self.device_kind)

    def peak_of(self, dtype: str) -> float:
        """Returns the peak of products of a dtype, FLOP a second."""
        return self.peak if dtype == "bfloat16" else self.peak * self.float32


_GOOGLE = "docs.cloud.google.com/tpu/docs/"
_NVIDIA = "NVIDIA's data sheet of the SXM part"
CHIPS = {
    "v4": Chip("TPU v4", 32 * GIB, 1228e9, 300e9, f"{_GOOGLE}v4"),
    "v5e": Chip("TPU v5 lite", 16 * GIB, 819e9, 200e9, f"{_GOOGLE}v5e"),
    "v5p": Chip("TPU v5", 95 * GIB, 2765e9, 600e9, f"{_GOOGLE}v5p"),
    "v6e": Chip("TPU v6 lite", 32 * GIB, 1640e9, 400e9, f"{_GOOGLE}v6e"),
    "a100": Chip("NVIDIA A100-SXM4-80GB", 85_094_825_984, 2039e9, 300e9, _NVIDIA, 0.5),
    "h100": Chip("NVIDIA H100 80GB HBM3", 84_929_347_584, 3352e9, 450e9, _NVIDIA, 0.5),
    "h200": Chip("NVIDIA H200", 150_754_820_096, 4800e9, 450e9, _NVIDIA, 0.5),
}
_PER_HOST, _BETWEEN_HOSTS = 8, 50e9  # GPUs of a host; bytes a second that a GPU sends to another host
# Chips of a slice -> its shape.
_FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_DEEP = {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8", 512: "8x8x8"}
_SHAPES = {"v4": _DEEP, "v5p": _DEEP, "v5e": _FLAT, "v6e": _FLAT}
_CORES = ("v4", "v5p")  # the number in their names is that of cores, two a chip
# What XLA knows of a GPU, whose kernels depend on it: (multiprocessors, shared memory of one in bytes, and of a block
# that asks for it, L2 cache in bytes, GHz, compute capability).
_GPUS = {
    "a100": (108, 167936, 166912, 41943040, 1.41, (8, 0)),
    "h100": (132, 233472, 232448, 52428800, 1.98, (9, 0)),
    "h200": (132, 233472, 232448, 52428800, 1.98, (9, 0)),
}
KNOWN = "v4-8, v5e-8, v5p-64, v6e-256, a100-8, h100-8, h200-16 or, for this machine, cpu-8"


@dataclasses.dataclass(frozen=True)
class Target:
    """A machine to compile for.

    Attributes:
      name: As people call it, such as 'v5e-8'.
      kind: Key of CHIPS, or 'cpu'.
      devices: Number of devices.
      hosts: Number of processes that train on it.
    """

    name: str
    kind: str
    devices: int
    hosts: int

    @property
    def chip(self) -> Chip | None:
        """The figures of a device; None for a CPU, of which nothing is published."""
        return CHIPS.get(self.kind)

    @property
    def link(self) -> float:
        """Bytes a second that a device sends in an exchange of all devices."""
        return _BETWEEN_HOSTS if self.kind in _GPUS and self.hosts > 1 else self.chip.link

    def load(self) -> tuple:
        """Returns the devices, which can compile and not run.

        Raises:
          InputError: The compiler is not installed.
        """
        if self.kind == "cpu":
            parallel.simulate_devices(self.devices)
            return tuple(jax.local_devices())
        jax.devices()  # loads the plugins
        try:
            found = topologies.get_topology_desc(**self._description())
        except (RuntimeError, ValueError, NotImplementedError) as error:
            setup, folder = ("gpu", ".venv-gpu") if self.kind in _GPUS else ("tpu", ".venv-tpu")
            reason = str(error).splitlines()[0].rstrip(".")
            raise InputError(
                f"--topology {self.name}: its compiler is not here ({reason}): make setup-{setup}, then"
                f" {folder}/bin/python -m lae_jax.compile ..."
            ) from error
        return tuple(found.devices)

    def _description(self) -> dict:
        if self.kind in _GPUS:
            shape = (1, self.hosts, self.devices // self.hosts)  # slices, hosts, GPUs of a host
            config = _gpu_config(self.kind)
            return {
                "platform": "cuda",
                "topology_name": self.kind,
                "target_config": config,
                "topology": "x".join(map(str, shape)),
            }
        named = {"platform": "tpu", "topology_name": f"{self.kind}:{_SHAPES[self.kind][self.devices]}"}
        if self.kind == "v4":  # otherwise a device is half a chip
            named["chip_config_name"] = "megacore"
        if self.kind in ("v5e", "v6e") and self.devices == 256:  # a whole pod is closed to a torus
            named["wrap"] = (True, True, False)
        if self.devices == 1:  # otherwise a host has 4 chips at least
            named["chips_per_host_bounds"] = (1, 1, 1)
        return named


def target(name: str) -> Target:
    """Returns the machine of a name such as 'v5e-8', 'h100-16' or 'cpu-8'.

    Raises:
      InputError: There is no such machine.
    """
    found = re.fullmatch(r"([a-z]\w*)-(\d{1,5})", name)
    kind, count = (found[1], int(found[2])) if found else ("", 0)
    if kind == "cpu" and 1 <= count <= 64:
        return Target(name, kind, count, 1)
    if kind in _GPUS and count:
        hosts = math.ceil(count / _PER_HOST)
        if count % hosts == 0 and (hosts == 1 or count // hosts == _PER_HOST):
            return Target(name, kind, count, hosts)
        raise InputError(f"--topology {name}: a host has {_PER_HOST} GPUs, so more than that is a multiple of it")
    if kind in _SHAPES:
        chips = count // 2 if kind in _CORES else count
        if chips in _SHAPES[kind] and (kind not in _CORES or count % 2 == 0):
            return Target(name, kind, chips, _hosts(kind, chips))
        known = ", ".join(f"{kind}-{n * (1 + (kind in _CORES))}" for n in _SHAPES[kind])
        raise InputError(f"--topology {name}: there is no slice of that size: {known}")
    raise InputError(f"--topology {name}: an unknown machine: name one such as {KNOWN}")


def _hosts(kind: str, chips: int) -> int:
    """A host of v4 and v5p has 4 chips. One of v5e and v6e has 8 where the slice has no more, else 4."""
    return 1 if chips <= (4 if kind in _CORES else 8) else chips // 4


def _gpu_config(kind: str) -> str:
    count, shared, per_block, cache, clock, (major, minor) = _GPUS[kind]
    chip = CHIPS[kind]
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: {shared}
  threads_per_core_limit: 2048 core_count: {count} fpus_per_core: {64 if major == 8 else 128}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {int(chip.bandwidth)} l2_cache_size: {cache} clock_rate_ghz: {clock}
  device_memory_size: {int(chip.memory)} shared_memory_per_block_optin: {per_block}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 2 }}
runtime_version {{ major: 12 minor: 9 patch: 0 }}
device_description_str: "{chip.device_kind}"
"""
