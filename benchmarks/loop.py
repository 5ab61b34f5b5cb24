"""The training loop against its compiled step alone: images a second on synthetic batches in memory.

    python -m benchmarks.loop
    python -m benchmarks.loop --model efficientnet_v2_m --image_size 224 --batch_size 256 --dtype bfloat16 --steps 40

The loop is `lae_jax.train`'s own, with journal, TensorBoard, progress line, watchdog and a checkpoint at its end; the
batches come from a list. Both sides take turns with one compiled step. The first few steps of a turn do not count, nor
does the checkpoint at its end. On a loaded machine the CPU time of the process tells more.
"""

import argparse
import dataclasses
import itertools
import pathlib
import tempfile
import time

from benchmarks import harness
from lae_jax.runtime import start

if __name__ == "__main__":
    start.devices()  # as `lae_jax.main` does, before the imports that start threads

import jax
import numpy as np

from lae_jax import models, prepare
from lae_jax.configs import represent
from lae_jax.runs import build
from lae_jax.runtime import checkpoints, watch
from lae_jax.train import loop as train
from lae_jax.train import profiling, steps
from lae_jax.train.plan import make_plan

WARM_UP = 3  # steps of a turn before its clock starts


def make_loop(args: argparse.Namespace, folder: pathlib.Path, saved: checkpoints.Checkpoints):
    """The loop of a run, and its first state."""
    config = represent.get_config()
    config.workdir, config.data.path, config.data.split = str(folder / "run"), str(folder / "drawn"), ""
    config.model.name, config.model.dtype, config.data.image_size = args.model, args.dtype, args.image_size
    config.batch_size, config.save_steps, config.log_steps = args.batch_size, 10**9, args.log_steps
    config.init_from = "scratch"
    plan = make_plan(config)
    module = build.model(config, plan.stage, plan.num_outputs)
    variables = models.initialise(module, args.image_size, 0)
    tx = build.optimiser(config, plan.schedule, variables["params"], plan.stage.trains)
    state = plan.par.place(steps.create_state(variables, tx))
    trace = profiling.Trace(plan.workdir, None, 0, plan.durations.total)
    return train._Loop(plan, module, tx, saved, watch.Signals(), trace), state


class Clock:
    """Gives batches without end or number and notes when each is asked for."""

    def __init__(self, batches: list[dict], count: int):
        self.batches, self.count, self.asked = batches, count, []

    def __iter__(self):
        for batch in itertools.islice(itertools.cycle(self.batches), self.count):
            self.asked.append(harness.now())
            yield batch

    def seconds(self) -> np.ndarray:
        """A step, of those between two requests: at each of them all steps but the last that was asked for are done."""
        return (self.asked[-1] - self.asked[WARM_UP]) / (self.count - 1 - WARM_UP)


def of_loop(loop: train._Loop, state: steps.TrainState, clock: Clock, turn: int) -> np.ndarray:
    steps_now = (turn + 1) * clock.count
    durations = dataclasses.replace(loop.plan.durations, total=steps_now, between_evaluations=steps_now)
    loop.plan = dataclasses.replace(loop.plan, durations=durations)
    loop.batches = lambda start: iter(clock)
    loop.run(state, scored=True, began=time.perf_counter())
    return clock.seconds()


def of_step(loop: train._Loop, state: steps.TrainState, batches: list[dict], count: int) -> np.ndarray:
    for number in range(count):
        if number == WARM_UP:
            jax.block_until_ready(state)
            start = harness.now()
        state, metrics = loop.step(state, batches[number % len(batches)])
    jax.block_until_ready((state, metrics))
    return (harness.now() - start) / (count - WARM_UP)


def measure(args: argparse.Namespace, folder: pathlib.Path) -> dict:
    source = {"train": str(args.batch_size)}
    prepare.prepare(source, folder / "drawn", reader="synthetic", size=32, workers=1)
    random = np.random.default_rng(0)
    shape = (args.batch_size, args.image_size, args.image_size, 3)
    batches = [
        {
            "image": random.integers(0, 256, shape, np.uint8),
            "target": random.uniform(0, 100, args.batch_size).astype(np.float32),
        }
        for _ in range(4)
    ]
    seconds = {"loop": [], "step": []}
    with checkpoints.Checkpoints(folder / "run", asynchronous=False) as saved:
        loop, state = make_loop(args, folder, saved)
        first = jax.tree.map(np.asarray, state)
        loop.step(state, batches[0])  # compiles
        for turn in range(args.turns):
            at = first.replace(step=np.int32(turn * args.steps))
            sides = [
                ("step", lambda state=at: of_step(loop, loop.plan.par.place(state), batches, args.steps)),
                ("loop", lambda s=at, t=turn: of_loop(loop, loop.plan.par.place(s), Clock(batches, args.steps), t)),
            ]
            for name, side in sides[:: 1 if turn % 2 else -1]:
                seconds[name].append(side())
    medians = {name: np.median(found, axis=0) for name, found in seconds.items()}
    return {
        **vars(args),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "jax": jax.__version__,
        "images_per_second": {name: args.batch_size / wall for name, (wall, _) in medians.items()},
        "cpu_seconds_per_step": {name: own for name, (_, own) in medians.items()},
        "ratio": medians["step"][0] / medians["loop"][0],
        "ratio_of_cpu_time": medians["step"][1] / medians["loop"][1],
        "seconds_per_step": {name: [wall for wall, _ in found] for name, found in seconds.items()},
    }


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--model", default="efficientnet_v2_tiny")
    parser.add_argument("--image_size", type=int, default=64)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--log_steps", type=int, default=10)
    parser.add_argument("--steps", type=int, default=30, help="of a turn, of each side")
    parser.add_argument("--turns", type=int, default=7)
    args = parser.parse_args()
    if args.steps < WARM_UP + 2:
        parser.error(f"--steps {args.steps}: at least {WARM_UP + 2}, of which {WARM_UP} warm up")
    with tempfile.TemporaryDirectory() as folder:
        found = measure(args, pathlib.Path(folder))
    rows = [[name, rate, found["cpu_seconds_per_step"][name]] for name, rate in found["images_per_second"].items()]
    rows.append(["loop / step", found["ratio"], found["ratio_of_cpu_time"]])
    harness.show(found, ["", "images/s", "s of CPU time a step"], rows)


if __name__ == "__main__":
    harness.run(main)
