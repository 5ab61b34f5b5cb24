"""Compares what lae_jax.compile says of the memory of a step with what a process takes that runs it, on this CPU.

    python -m benchmarks.compile_check                      a minute on two cores
    python -m benchmarks.compile_check --model efficientnet_v2_nano --per-device 64

The step runs on one device. Measured is the growth of the process's resident memory, from before its arguments are made
to the peak while it runs for the second time; the first time warms up.
"""

import pathlib

import jax
import jax.numpy as jnp

from benchmarks import harness
from lae_jax.compile import forecast, lowering, topologies
from lae_jax.configs import common
from lae_jax.runtime import parallel

STAGES = ("represent", "classify")


def resident(field: str) -> int:
    """Bytes of a field of /proc/self/status: VmRSS is now, VmHWM the peak since the last reset."""
    (line,) = [line for line in pathlib.Path("/proc/self/status").read_text().splitlines() if line.startswith(field)]
    return int(line.split()[1]) * 1024


def zeros(shapes):
    """Arrays on the device, whose pages are there: 0 is written, not promised."""
    make = jax.jit(lambda: jax.tree.map(lambda x: jnp.full(x.shape, 0, x.dtype), shapes))
    return jax.block_until_ready(make())


def measured(step: lowering.Lowering, per_device: int) -> int:
    """Bytes that the process grows by when it runs the step."""
    lowered, _ = step.lower(per_device, "shard_map")
    program = lowered.compile()
    before = resident("VmRSS")
    state, batch = zeros(step.state), zeros(step.batch(per_device))
    for _ in range(2):
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
        state, metrics = jax.block_until_ready(program(state, batch))
    return resident("VmHWM") - before


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--per-device", type=int, default=64)
    args = parser.parse_args()
    parallel.simulate_devices(1)
    target, found = topologies.target("cpu-1"), {}
    for stage in STAGES:
        config = common.get_config()
        config.stage, config.model.name, config.data.image_size = stage, args.model, args.image_size
        step = lowering.Lowering(config, target.load())
        predicted = forecast.compile_step(step, target, args.per_device, "shard_map").peak_bytes
        found[stage] = {"predicted": predicted, "measured": measured(step, args.per_device)}
    rows = [
        [stage, *(f"{one[name] / 2**20:.4g}" for name in one), f"{one['measured'] / one['predicted']:.2f}"]
        for stage, one in found.items()
    ]
    harness.show(found, ["stage", "predicted MiB", "measured MiB", "ratio"], rows)


if __name__ == "__main__":
    harness.run(main)
