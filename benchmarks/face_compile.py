"""Compiles the search for faces for an accelerator, on a machine without one: that its compiler takes the program.

    make compile-faces                                # installs the compilers into build/, 1.3 GB
    PYTHONPATH=build/tpu python -m benchmarks.face_compile tpu
    PYTHONPATH=build/cuda python -m benchmarks.face_compile cuda

The program is the one that `lae_jax.faces.detect` runs on an accelerator, for each of its caps. It is compiled for one
device and never runs. Memory is what the compiler plans; a GPU's libraries take more.
"""

import argparse
import os
import time

# JAX reads these when it is imported. Without a GPU no kernel can be tried out, and Triton's tiling aborts.
os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
os.environ["XLA_FLAGS"] = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"

import jax
import numpy as np
from jax.experimental import topologies

from benchmarks import harness
from lae_jax.faces import canvases, cascade, detect, networks

TARGETS = ("tpu", "cuda")
# An H100, as XLA describes it: its kernels depend on these numbers.
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: 84929347584 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 } registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 2 }
runtime_version { major: 12 minor: 9 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def device(target: str):
    """A device to compile for."""
    jax.devices()  # loads the plugins
    if target == "tpu":
        return topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices[0]
    named = {"topology_name": "h100", "target_config": _H100, "topology": "1x1x1"}
    return topologies.get_topology_desc(platform="cuda", **named).devices[0]


def compiled(target: str, caps_number: int) -> dict:
    """Compiles the program of a cap; its seconds, megabytes and, where the compiler tells them, operations."""
    where = jax.sharding.SingleDeviceSharding(device(target))
    size, batches = detect._ON_ACCELERATOR

    def placed(array: np.ndarray) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=where)

    region = canvases._region(canvases.INNER, canvases.INNER * 3 // 4)
    caps = detect.CAPS[caps_number]
    squares = jax.ShapeDtypeStruct((size, canvases.CANVAS, canvases.CANVAS, 3), np.uint8, sharding=where)
    begun = time.perf_counter()
    lowered = cascade.find.lower(
        squares, jax.tree.map(placed, networks.load()), region=region, caps=caps, batches=batches
    )
    program = lowered.compile()
    seconds, memory = time.perf_counter() - begun, program.memory_analysis()
    cost = program.cost_analysis() or {}
    return {
        "seconds": seconds,
        "peak MB": memory.peak_memory_in_bytes / 1e6,
        "program MB": memory.generated_code_size_in_bytes / 1e6,
        "GFLOP a canvas": cost.get("flops", np.nan) / size / 1e9,
    }


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("target", choices=TARGETS)
    args: argparse.Namespace = parser.parse_args()
    found = {}
    for number, name in enumerate(("few", "more", "most")):
        found[name] = compiled(args.target, number)
        print(f"{name} candidates: compiled in {found[name]['seconds']:.0f} s", flush=True)
    harness.show(found, ["candidates", *found["few"]], [[name, *row.values()] for name, row in found.items()])


if __name__ == "__main__":
    harness.run(main)
