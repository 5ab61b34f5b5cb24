"""Seconds from the start of a process to the end of a run's first step: of a first start, and of later ones.

    python -m benchmarks.first_step --model efficientnet_v2_tiny --image_size 64 --batch_size 64
    python -m benchmarks.first_step --model efficientnet_v2_m --image_size 64 --batch_size 4

Each start is a process of its own that trains as `lae_jax.main` does and stops after a few steps. The first has an
empty compile cache, the others the one that it filled. "step" is what the cache is about: tracing, compiling or
loading, and running the first step.
"""

import argparse
import itertools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from benchmarks import harness
from lae_jax import prepare

ROOT = pathlib.Path(__file__).parent.parent
STEPS = 3


def child(args: argparse.Namespace) -> None:
    """Trains; prints [label, wall seconds since the parent started it, CPU seconds] of each part as JSON."""
    marks = []

    def mark(label: str) -> None:
        marks.append([label, time.time() - args.started, time.process_time()])

    def marked(owner, name: str, label: str) -> None:
        function = getattr(owner, name)

        def call(*words, **named):
            result = function(*words, **named)
            mark(label)
            return result

        setattr(owner, name, call)

    import jax

    from lae_jax.runtime import start

    start.devices()
    from lae_jax.runtime import parallel
    from lae_jax.train import loop, steps

    mark("Python, imports")
    marked(loop, "make_plan", "plan, data set")
    marked(steps, "create_state", "initial values")
    marked(parallel.Parallel, "place", "state on the devices")

    def map_train(par, step, *rest, mapped=parallel.Parallel.map_train):
        inner, count = mapped(par, step, *rest), itertools.count(1)

        def call(state, batch):
            number = next(count)
            if number == 1:
                mark("first batch")
            result = inner(state, batch)
            if number == 1:
                mark("step: trace, compile or load")
            jax.block_until_ready(result)
            mark(f"step {number} run")
            if number == STEPS:
                print(json.dumps(marks), flush=True)
                os._exit(0)
            return result

        return call

    parallel.Parallel.map_train = map_train
    from lae_jax.configs import represent

    config = represent.get_config()
    config.workdir, config.data.path, config.data.split = args.workdir, args.data, ""
    config.model.name, config.data.image_size, config.batch_size = args.model, args.image_size, args.batch_size
    config.init_from, config.epochs = "scratch", 100.0
    loop.train(config)


def begin(args: argparse.Namespace, folder: pathlib.Path, number: int) -> dict[str, tuple[float, float]]:
    """Label -> seconds of wall and CPU time that the part took."""
    words = [f"--{name}={getattr(args, name)}" for name in ("model", "image_size", "batch_size")]
    words += [f"--data={folder / 'drawn'}", f"--workdir={folder / f'run{number}'}", f"--started={time.time()}"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.first_step", *words],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    parts, before = {}, (0.0, 0.0)
    for label, *now in json.loads(run.stdout.splitlines()[-1]):
        parts[label] = (now[0] - before[0], now[1] - before[1])
        before = now
    return parts


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--model", default="efficientnet_v2_tiny")
    parser.add_argument("--image_size", type=int, default=64)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--starts", type=int, default=3, help="after the first")
    parser.add_argument("--started", type=float, default=0.0, help=argparse.SUPPRESS)
    parser.add_argument("--data", help=argparse.SUPPRESS)
    parser.add_argument("--workdir", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.started:
        child(args)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        source = {"train": str(args.batch_size)}
        prepare.prepare(source, folder / "drawn", reader="synthetic", size=64, workers=1)
        first, *later = [begin(args, folder, number) for number in range(args.starts + 1)]
    labels = list(first)[: list(first).index("step 1 run") + 1]
    second = {label: tuple(statistics.median(run[label][i] for run in later) for i in (0, 1)) for label in labels}

    def added(parts: dict, start: str) -> tuple[float, float]:
        return tuple(sum(parts[label][i] for label in labels if label.startswith(start)) for i in (0, 1))

    totals = {"step": "step", "process": ""}
    ratios = {
        name: [a / b for a, b in zip(added(first, prefix), added(second, prefix), strict=True)]
        for name, prefix in totals.items()
    }
    rows = [[label, *first[label], *second[label]] for label in labels]
    rows += [[f"all of the {name}", *added(first, prefix), *added(second, prefix)] for name, prefix in totals.items()]
    content = {**vars(args), "first": first, "later": later, "ratios": ratios}
    harness.show(content, ["seconds", "first start", "CPU", "later start", "CPU"], rows)
    for name, (wall, own) in ratios.items():
        print(f"{name}: {wall:.1f} x sooner, {own:.1f} x less CPU time")


if __name__ == "__main__":
    harness.run(main)
