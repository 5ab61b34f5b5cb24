"""What a step costs the host with several processes: pmap against shard_map, CPU time of the main thread.

    python -m benchmarks.host_cost                     # two processes of one simulated device, EfficientNetV2-M
    python -m benchmarks.host_cost --processes 1

The state has the leaves of the model's train state, but each holds a few numbers, and the step only adds to them: what
is left is the time that the main thread takes to hand a step over and to fetch its metrics, as the training loop does.
An accelerator computes meanwhile, and waits if the host takes longer. Both forms take turns in the same processes.
With several processes it ends with status 1 if shard_map takes more than a third of pmap's time.
"""

import argparse
import dataclasses
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

from benchmarks import harness

FORMS = ("pmap", "shard_map")
AT_MOST = 1 / 3  # of pmap's time, with several processes
BATCH = 8  # of a process
SIZE = 8  # numbers in a leaf
WARM_UP = 3  # steps that compile and fill caches


def small_state(model: str):
    """A train state of stage 2 with the leaves of a model, each of a few numbers."""
    import jax

    from lae_jax import models, optim, stages
    from lae_jax.train import steps

    module = models.create(model, 101, convolutions="xla")  # the form that traces fastest
    variables = jax.eval_shape(lambda images: module.init(jax.random.key(0), images), np.zeros((1, 32, 32, 3)))
    tx = optim.trainable(optim.sgd(0.1), variables["params"], stages.REPRESENT.trains)
    state = jax.eval_shape(lambda v: steps.create_state(v, tx), variables)
    return jax.tree.map(lambda leaf: np.zeros(SIZE if leaf.shape else (), leaf.dtype), state)


def trivial_step(state, batch):
    """Adds the mean of the whole batch to every leaf."""
    import jax

    from lae_jax.runtime.parallel import AXIS

    mean = jax.lax.pmean(batch.mean(), AXIS)
    return jax.tree.map(lambda leaf: leaf + mean.astype(leaf.dtype), state), {"loss": mean, "skipped": mean > 1}


@dataclasses.dataclass
class Side:
    """One form, with its own copy of the state."""

    state: object
    step: Callable
    any_host: Callable

    def turn(self, count: int) -> float:
        """Seconds of CPU time of this thread for a step."""
        import jax

        batch, pending = np.ones(BATCH, np.float32), None
        begun = time.thread_time()
        for _ in range(count):
            self.state, metrics = self.step(self.state, batch)
            metrics["stop"] = self.any_host(False)
            if pending is not None:
                jax.device_get(pending)
            pending = metrics
        jax.device_get(pending)
        return (time.thread_time() - begun) / count


def measure(model: str, steps: int, turns: int) -> dict:
    """Measures both forms in this process, which others may do at the same time."""
    import jax

    from lae_jax.runtime import parallel

    state, sides = small_state(model), {}
    for form in FORMS:
        par = parallel.Parallel(form=form)
        sides[form] = Side(par.place(state), par.map_train(trivial_step), par.map_any())
        sides[form].turn(WARM_UP)
    seconds = {form: [] for form in FORMS}
    for turn in range(turns):
        for form in FORMS[:: 1 if turn % 2 else -1]:
            seconds[form].append(sides[form].turn(steps))
    medians = {form: float(np.median(found)) for form, found in seconds.items()}
    return {
        "model": model,
        "leaves": len(jax.tree.leaves(state)),
        "processes": jax.process_count(),
        "jax": jax.__version__,
        "seconds_of_main_thread_per_step": medians,
        "ratio": medians["shard_map"] / medians["pmap"],
        "turns": seconds,
    }


def _of_process(args: argparse.Namespace) -> None:
    """Measures as one of the processes, and prints the result as a line of JSON."""
    from lae_jax.runtime import start

    start.devices(1)
    import jax

    if args.processes > 1:
        jax.distributed.initialize(f"localhost:{args.port}", args.processes, args.process)
    print(json.dumps(measure(args.model, args.steps, args.turns)), flush=True)


def _of_all(args: argparse.Namespace) -> list[dict]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "benchmarks.host_cost", "--model", args.model, f"--port={port}"]
    command += [f"--{name}={vars(args)[name]}" for name in ("processes", "steps", "turns")]
    started = [
        subprocess.Popen([*command, f"--process={number}"], stdout=subprocess.PIPE, text=True)
        for number in range(args.processes)
    ]
    try:
        # Gloo prints before the result that it is connected.
        return [json.loads(one.communicate()[0].splitlines()[-1]) for one in started]
    finally:
        for one in started:
            one.kill()


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--model", default="efficientnet_v2_m")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20, help="of a turn, of each form")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--process", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.process is not None:
        return _of_process(args)
    found = _of_all(args)
    rows = [
        [number, *(1e3 * one["seconds_of_main_thread_per_step"][form] for form in FORMS), one["ratio"]]
        for number, one in enumerate(found)
    ]
    harness.show(
        {**found[0], "ratio": [one["ratio"] for one in found]},
        ["process", *(f"{form}, ms a step" for form in FORMS), "shard_map / pmap"],
        rows,
    )
    if args.processes > 1 and max(one["ratio"] for one in found) > AT_MOST:
        sys.exit(f"shard_map takes more than {AT_MOST:.2f} of pmap's time")


if __name__ == "__main__":
    harness.run(main)
