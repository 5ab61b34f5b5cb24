"""What a training step exchanges between devices, read off the compiled step, and what that costs on given links.

    python benchmarks/collectives.py                                            four minutes on two cores
    python benchmarks/collectives.py --steps resnet18:represent --devices 8     half a minute

The real step is compiled for simulated devices and never runs. Sizes are those of the results: what a device ends up
with. The images are small: neither sizes nor numbers of collectives depend on that.
"""

import dataclasses
import math
import os

# Only what XLA's passes make of the step is read, not how fast the machine code is: half the time to compile.
os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"

import jax

from benchmarks import harness
from lae_jax import stages
from lae_jax.compile import hlo, lowering
from lae_jax.configs import common
from lae_jax.runtime import console, parallel
from lae_jax.train import steps

STEPS = ("efficientnet_v2_m:represent", "efficientnet_v2_m:classify", "resnet18:represent")
IMAGE_SIZE = 64
# Images a second of V2-M at 224 px, lowest and highest assumed: half and all of the most that the compiled step allows
# (docs/scaling.md). A core decodes and augments the first number when loaded, the second when quiet (docs/results.md).
H100_RATES = (1080, 2160)
V5E_RATES = (325, 650)
CORE_RATES = (474, 620)
DEVICE_COUNTS = (8, 16, 32, 64, 128, 256, 512, 1024)


@dataclasses.dataclass(frozen=True)
class Exchange:
    """Result bytes of a step's collectives on one device, and how many there are."""

    gradients: int
    forward: int  # statistics of synchronised BatchNorm: (sum, sum of squares) of each channel
    backward: int  # their gradients
    running: int  # running statistics, averaged once more
    metrics: int
    count: int
    chained: int  # collectives that carry BatchNorm's statistics or gradients: each waits for the one before

    @property
    def total(self) -> int:
        return self.gradients + self.forward + self.backward + self.running + self.metrics


def size(tree) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def compiled_step(model: str, stage_name: str, device_count: int) -> tuple[str, steps.TrainState]:
    """The optimised HLO of the train step that `train` maps, and the shapes of its state."""
    config = common.get_config()
    config.stage, config.model.name, config.data.image_size = stage_name, model, IMAGE_SIZE
    step = lowering.Lowering(config, tuple(jax.local_devices()[:device_count]))
    lowered, _ = step.lower(2, "pmap")
    return lowered.compile().as_text(), step.state


def exchange(text: str, state: steps.TrainState, trains: tuple[str, ...]) -> Exchange:
    """Adds up the collectives of a compiled step. Raises ValueError where the state does not explain them.

    XLA merges collectives, so the parts are told apart by their shapes: BatchNorm exchanges (2, channels), metrics are
    scalars, and the rest must be the gradients of what is trained and its running statistics, each of them once.
    """
    forward = backward = metrics = rest = count = chained = 0
    for one in hlo.instructions(text):
        if one.operation not in hlo.COLLECTIVES:
            continue
        if one.operation != "all-reduce":
            raise ValueError(f"data parallelism needs no {one.operation}: {one.name}")
        count += 1
        chains = False
        for array, shape in hlo.arrays(one.type):
            if not shape:
                metrics += hlo.size(array)
            elif len(shape) == 2 and shape[0] == 2:
                chains = True
                # XLA names an operation of the backward pass after the transposed forward pass.
                if "transpose(" in one.rest:
                    backward += hlo.size(array)
                else:
                    forward += hlo.size(array)
            else:
                rest += hlo.size(array)
        chained += chains
    trained = size({k: v for k, v in state.params.items() if k in trains})
    running = size({k: v for k, v in state.batch_stats.items() if k in trains})
    # XLA exchanges equal gradients once: those of two BatchNorm biases whose outputs are added (ResNet).
    if not 0.999 * trained <= rest - running <= trained:
        raise ValueError(f"{rest} bytes are exchanged beside BatchNorm: not {trained} of gradients and {running}")
    return Exchange(rest - running, forward, backward, running, metrics, count, chained)


@dataclasses.dataclass(frozen=True)
class Link:
    """What joins the devices of a host, and the hosts. Bandwidths (bytes a second, one way) are the vendors'; the
    delays (seconds until a small all-reduce of all devices is done) are assumed."""

    name: str
    rates: tuple[int, int]  # images a second that a device trains
    per_host: int
    device_rate: float
    delay: float
    host_rate: float = 0.0  # of all devices of a host together; 0: nothing larger than a host
    host_delay: float = 0.0

    def seconds(self, volume: float, devices: int) -> float:
        """Of one ring all-reduce, inside the hosts and then between them, at the links' full rate."""
        inside = min(devices, self.per_host)
        hosts = devices // inside
        within = 2 * volume * (inside - 1) / inside / self.device_rate
        return within + (2 * volume * (hosts - 1) / hosts / self.host_rate if hosts > 1 else 0)


LINKS = (
    Link("H100, NVLink 450 GB/s, InfiniBand 8 x 400 Gb/s a host", H100_RATES, 8, 450e9, 20e-6, 400e9, 40e-6),
    Link("H100, NVLink 450 GB/s, Ethernet 100 Gb/s a host", H100_RATES, 8, 450e9, 20e-6, 12.5e9, 200e-6),
    # One network joins all chips of a slice, which has at most 256.
    Link("TPU v5e, ICI 2 axes x 90 GB/s", V5E_RATES, 256, 180e9, 20e-6),
)


def measured_table(rows: list[tuple[str, int, Exchange]]) -> str:
    header = ["step", "devices", "MB", "gradients", "BN forward", "BN backward", "running", "metrics, B", "all-reduces"]
    return console.table(
        [*header, "chained"],
        [
            [name, n, *(f"{x / 1e6:.3f}" for x in (e.total, e.gradients, e.forward, e.backward, e.running)), e.metrics,
             e.count, e.chained]
            for name, n, e in rows
        ],
    )  # fmt: skip


def link_table(found: Exchange, link: Link, per_device: int) -> str:
    """Time of a step's exchange that nothing hides, and its share of the step at the expected rates."""
    rows = []
    for devices in DEVICE_COUNTS:
        if devices > link.per_host and not link.host_rate:
            break
        bytes_ms = 1e3 * link.seconds(found.total, devices)
        delays_ms = 1e3 * found.chained * (link.delay if devices <= link.per_host else link.host_delay)
        steps_ms = [1e3 * per_device / rate for rate in link.rates]
        shares = [(bytes_ms + delays_ms) / (bytes_ms + delays_ms + step_ms) for step_ms in steps_ms]
        rows.append([devices, per_device * devices, bytes_ms, delays_ms, *(f"{share:.0%}" for share in shares)])
    return console.table(
        ["devices", "batch", "bytes, ms", "delays, ms", *(f"share at {r}/s" for r in link.rates)], rows
    )


def feed_table() -> str:
    """Images that the hosts must make, and the cores for that: fast devices on loaded cores need the most."""
    rows = []
    for devices in DEVICE_COUNTS:
        low, high = (rate * devices for rate in H100_RATES)
        cores = math.ceil(8 * H100_RATES[0] / CORE_RATES[1]), math.ceil(8 * H100_RATES[1] / CORE_RATES[0])
        rows.append([devices, devices // 8, f"{low:,} to {high:,}", f"{cores[0]} to {cores[1]}"])
    return console.table(["H100s", "hosts of 8", "images/s in all", "cores a host"], rows)


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--steps", nargs="+", default=STEPS, metavar="MODEL:STAGE")
    parser.add_argument("--devices", nargs="+", type=int, default=(8, 64))
    parser.add_argument("--per_device", type=int, default=32, help="images, for the share of a step")
    args = parser.parse_args()
    parallel.simulate_devices(max(args.devices))
    rows = []
    for name in args.steps:
        model, _, stage_name = name.partition(":")
        for device_count in args.devices:
            text, state = compiled_step(model, stage_name, device_count)
            rows.append((name, device_count, exchange(text, state, stages.get(stage_name).trains)))
    print(measured_table(rows), end="\n\n")
    for name, device_count, found in rows:
        if (name, device_count) != (STEPS[0], args.devices[0]):
            continue  # the rates above are this model's
        print(f"{name}, {args.per_device} images a device, if nothing of it is hidden behind the backward pass:\n")
        for link in LINKS:
            print(link.name, link_table(found, link, args.per_device), sep="\n", end="\n\n")
    print(feed_table())


if __name__ == "__main__":
    main()
