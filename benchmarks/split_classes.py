"""Stage 1 with class weights that are split over several processes: the same as with copies on one.

    python -m benchmarks.split_classes

Trains a tiny model for three steps in float64, with clipped gradients and in two parts, on 2 processes of 4 simulated
devices with split class weights, saves and restores a checkpoint after the second step, and compares the state with
that of one process of 8 devices, each of which has all class weights. Prints JSON: the largest difference, and the
largest change of a parameter in training.
"""

import argparse
import functools
import json
import pathlib
import socket
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

from lae_jax import models, optim, stages
from lae_jax.models import efficientnet
from lae_jax.models.layers import Compute
from lae_jax.runtime import origin, parallel
from lae_jax.runtime.checkpoints import Checkpoints
from lae_jax.runtime.parallel import rows
from lae_jax.stages import classes
from lae_jax.train import steps

PROCESSES, DEVICES = 2, 4
HOW = {"accumulate": 2}
BATCH, PIXELS, PEOPLE, WIDTH = 32, 8, 1500, 4
TINY = efficientnet.Architecture(4, (efficientnet.BlockGroup(True, 1, 1, 1, 4),), 8, 0.3)


def make(
    devices,
    where,
    form="am_softmax",
    share=1.0,
    dtype="float64",
    accumulate=1,
    clip=0.5,
    people=PEOPLE,
    optimiser=optim.sgd,
    ema_decay=0.0,
):
    """The parallel form, the mapped step and the first state."""
    stage = stages.with_classes(stages.PRETRAIN, where, share, people)
    par = parallel.Parallel(tuple(jax.local_devices()[:devices]), split=stage.split)
    compute = Compute(jnp.dtype(dtype), parallel.AXIS, parts=accumulate)
    count = rows.padded(people) if stage.split else people
    head = models.IdentityHead(compute, count, WIDTH, form in classes.ADAPTIVE)
    model = models.Model(efficientnet.EfficientNet(compute, TINY, 0.0), head)
    variables = models.initialise(model, PIXELS, seed=0, split=stage.split)
    norm = functools.partial(rows.norm, names=stage.split)
    tx = optim.trainable(optimiser(0.2, clip_norm=clip, norm=norm), variables["params"], stage.trains)
    constants = {"scale": 16.0, "margin": 0.35, "margin_form": form, "num_classes": people}
    settings = steps.Settings(1, jnp.dtype(dtype), (0.5,) * 3, (0.25,) * 3, accumulate, ema_decay)
    step = functools.partial(
        steps.train_step, stage=stage, constants=constants, model=model, tx=tx, settings=settings
    )  # fmt: skip
    return par, par.map_train(step), steps.create_state(variables, tx, stage.trains if ema_decay else ())


def batches(count, people=PEOPLE):
    rng = np.random.default_rng(0)
    for _ in range(count):
        target = rng.integers(0, people, BATCH).astype(np.int32)
        target[:2] = people - 1  # beside the padding, and twice
        yield {"image": rng.integers(0, 256, (BATCH, PIXELS, PIXELS, 3), np.uint8), "target": target}


def run(count, *args, **kwargs):
    """The state as numpy arrays without padding, and the metrics of each step."""
    par, step, first = make(*args, **kwargs)
    state, told = par.place(first), []
    for batch in batches(count):
        state, metrics = step(state, batch)
        told.append(jax.tree.map(float, metrics))
    return state, jax.tree.map(lambda leaf: np.asarray(leaf)[:PEOPLE] if leaf.ndim else np.asarray(leaf), state), told


def furthest(a, b):
    return max(jax.tree.leaves(jax.tree.map(lambda x, y: float(np.max(np.abs(x - y), initial=0.0)), a, b)))


def without_padding(state):
    """The state as NumPy arrays, gathered from all hosts, without the padding of class weights."""

    def one(path, leaf):
        if rows.is_split(path, (classes.LEAF,)):
            shards = {shard.index[0].start or 0: np.asarray(shard.data) for shard in leaf.addressable_shards}
            mine = np.concatenate([shards[start] for start in sorted(shards)])
            return parallel.gather_hosts(mine)[:PEOPLE]
        return np.asarray(leaf if isinstance(leaf, np.ndarray) else leaf.addressable_data(0))

    return jax.tree_util.tree_map_with_path(one, state)


def _of_process(number: int, port: int, folder: str) -> None:
    jax.distributed.initialize(f"localhost:{port}", PROCESSES, number)
    place = pathlib.Path(folder)
    if parallel.is_first_host():
        origin.give_id(place)
    parallel.wait_for_hosts("begun")
    par, step, first = make(DEVICES, "split", **HOW)
    state = par.place(first)
    with Checkpoints(place, asynchronous=False) as saved:
        for done, batch in enumerate(batches(3), 1):
            begin, count = par.local_places(BATCH)
            state, _ = step(state, {name: array[begin : begin + count] for name, array in batch.items()})
            if done == 2:
                saved.save(state, {"selected": None, "scores": None, "step": done})
                saved.wait()
                state = par.place(saved.restore(done, par.targets(first)))
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(without_padding(state))]
    if parallel.is_first_host():
        np.savez(place / "state.npz", *leaves)


def _in_processes(folder: str) -> list[np.ndarray]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "benchmarks.split_classes", f"--port={port}", f"--folder={folder}"]
    started = [subprocess.Popen([*command, f"--process={number}"]) for number in range(PROCESSES)]
    try:
        if any(statuses := [one.wait() for one in started]):
            sys.exit(f"the processes ended with {statuses}")
    finally:
        for one in started:
            one.kill()
    with np.load(pathlib.Path(folder) / "state.npz") as found:
        return [found[name] for name in found.files]


def main() -> None:
    """Starts the processes and compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("process", "port"):
        parser.add_argument(f"--{name}", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    parallel.simulate_devices(DEVICES if args.folder else DEVICES * PROCESSES)
    jax.config.update("jax_enable_x64", True)
    if args.folder:
        _of_process(args.process, args.port, args.folder)
        return
    with tempfile.TemporaryDirectory() as folder:
        split = _in_processes(folder)
    copied, first = run(3, DEVICES * PROCESSES, "copied", **HOW)[1], make(DEVICES, "copied", **HOW)[2]
    apart = max(float(np.abs(a - b).max()) for a, b in zip(split, jax.tree.leaves(copied), strict=True))
    print(json.dumps({"largest_difference": apart, "largest_change": furthest(copied.params, first.params)}))


if __name__ == "__main__":
    main()
