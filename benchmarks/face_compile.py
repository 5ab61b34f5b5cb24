"""Compiles the search for faces for an accelerator, on a machine without one: that its compiler takes the program.

    make compile-faces                                # installs the compilers (make setup-tpu setup-gpu)
    .venv-tpu/bin/python -m benchmarks.face_compile v5e-4
    .venv-gpu/bin/python -m benchmarks.face_compile h100-1

The program is the one that `lae_jax.faces.detect` runs on an accelerator, for each of its caps. It is compiled for one
device and never runs. Memory is what the compiler plans; a GPU's libraries take more.
"""

import time

from lae_jax.compile import environment

environment.prepare()

import jax
import numpy as np

from benchmarks import harness
from lae_jax.compile import topologies
from lae_jax.faces import canvases, cascade, detect, networks


def compiled(topology: str, caps_number: int) -> dict:
    """Compiles the program of a cap; its seconds, megabytes and, where the compiler tells them, operations."""
    where = jax.sharding.SingleDeviceSharding(topologies.target(topology).load()[0])
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
    parser.add_argument("topology", help="machine to compile for, as lae_jax.compile names it")
    args = parser.parse_args()
    found = {}
    for number, name in enumerate(("few", "more", "most")):
        found[name] = compiled(args.topology, number)
        print(f"{name} candidates: compiled in {found[name]['seconds']:.0f} s", flush=True)
    harness.show(found, ["candidates", *found["few"]], [[name, *row.values()] for name, row in found.items()])


if __name__ == "__main__":
    harness.run(main)
