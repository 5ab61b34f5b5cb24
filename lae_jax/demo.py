"""The whole method on drawn faces, in minutes: prepare, train three stages, evaluate, compare.

    python -m lae_jax.demo --out build/demo --seed 0

Runs the programs that a user runs and prints each command. It ends with a comparison on a balanced test set. The exit
status is 1 if the comparison does not show the paper's effect. To resume a stopped demo, run the same command again;
`make demo` starts from scratch.
"""

import argparse
import concurrent.futures
import math
import os
import pathlib
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence

from lae_jax.runtime import console, cpu, files, flags, start, typed
from lae_jax.runtime.errors import InputError
from lae_jax.runtime.foreign import spreadsheets

SPLITS = {"train": 5000, "validation": 1200, "test": 480}
ROWS = ("represent", "classify")
# Scores that classification must improve, named as in the comparison's report. The 95 % interval of each difference,
# over the same test faces, must lie below 0. A limit measured on one machine would not suit another.
EFFECT = ("sigma", "MAE 1-10", "MAE 71-81")
_COMMON = "MAE 31-40"  # ages with many training images
# Measured on the machine of docs/results.md: seconds of the demo on two cores and on one, and seconds to draw a face.
# The last value is the number of faces to draw for a comparison with that machine.
_SECONDS, _SECONDS_ON_ONE_CORE, _SECONDS_A_FACE, _FACES = 175, 260, 0.0075, 60
_SCORED = typed.fields({"scores": typed.fields({"mae": typed.number(0)})})  # a summary.json


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the flags."""
    parser = flags.Parser("demo", __doc__)
    parser.add_common("out", required=False, default="build/demo", help="folder to write faces and runs to")
    parser.add_common("seed", help="seed of faces and training (default: 0)")
    parser.add_common("devices", default=8, help="number of simulated devices on a CPU")
    return parser.parse_args(argv)


def call(out: pathlib.Path, *commands: Sequence[str]) -> None:
    """Runs programs of the package in parallel. If one fails, the demo exits with its status.

    Args:
      out: Folder that holds the compile cache.
      commands: The name and the arguments of each program. The output of several programs is printed in this order,
        each after its program ends.
    """
    # Later programs load what earlier programs compiled.
    cache = {"JAX_COMPILATION_CACHE_DIR": str(out.absolute() / "compiled")}
    cache["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

    def run(command: Sequence[str]) -> subprocess.CompletedProcess:
        program, *words = command
        console.write(f"$ python -m {shlex.join([f'lae_jax.{program}', *words])}")
        together = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} if len(commands) > 1 else {}
        return subprocess.run(
            [sys.executable, "-m", f"lae_jax.{program}", *words], env={**cache, **os.environ}, text=True, **together
        )

    with concurrent.futures.ThreadPoolExecutor(cpu.cores()) as pool:
        ended = []
        for command, done in zip(commands, pool.map(run, commands), strict=True):
            if done.stdout:
                console.write("", f"{shlex.join(command[:3])}:", *done.stdout.splitlines(), "")
            ended.append(done.returncode)
    if any(ended):
        sys.exit(next(filter(None, ended)))


def estimated_minutes() -> int:
    """Estimates the minutes of the demo: its time on a known machine, scaled by the time to draw a face."""
    from lae_jax.data.sources import synthetic

    seconds = []
    for face in range(_FACES):
        begun = time.perf_counter()
        synthetic.draw_face(face, 30.0, 0, 36)
        seconds.append(time.perf_counter() - begun)
    known = _SECONDS if cpu.cores() > 1 else _SECONDS_ON_ONE_CORE
    return math.ceil(known / 60 * sorted(seconds)[_FACES // 4] / _SECONDS_A_FACE)


def difference(line: Mapping[str, str] | None) -> str:
    """Describes a line of differences.csv from `lae_jax.report`; None stands for a missing line."""
    if line is None:
        return "missing from the comparison"
    value, low, high = (line[name] for name in ("difference", "difference low", "difference high"))
    interval = f"95 %: {float(low):+.2f} to {float(high):+.2f}" if low and high else "no interval"
    return f"{float(value):+.2f} years ({interval}), {line['verdict']}"


def conclusion(lines: Iterable[Mapping[str, str]], validation: Mapping[str, float]) -> tuple[bool, str]:
    """Decides whether a comparison shows the paper's effect.

    Args:
      lines: Lines of differences.csv, for runs named as in ROWS.
      validation: Validation MAE in years of each run in ROWS.

    Returns:
      Whether it does, and a text that explains the result.
    """
    found = {line["score"]: line for line in lines if line["run"] == "classify"}
    shown = all(found.get(score, {}).get("verdict") == "better" for score in EFFECT)
    told = ["Classification minus representation, one run each, on the balanced test set (intervals over its people):"]
    told += [f"  {score:9}  {difference(found.get(score))}" for score in (*EFFECT, _COMMON)]
    told += [
        f"On the long-tailed validation set the MAE goes from {validation['represent']:.2f} to"
        f" {validation['classify']:.2f} years."
    ]
    if shown:
        told += [
            "This is the paper's effect: the rarest ages improve, and the errors become more even across ages (sigma)."
        ]
    else:
        told += [
            f"This does not show the paper's effect: {', '.join(EFFECT)} should be better, with intervals below 0.",
            "If an interval contains 0, the two stages are not distinguishable on the test faces. If it lies above 0,"
            " classification is worse there.",
            "On every seed and machine tested, all three intervals lay far below 0 (docs/results.md). If you"
            " changed nothing,",
            "run `make test`, and compare the versions in each run's provenance.json with requirements.txt. The runs"
            " and reports are kept.",
        ]
    return shown, "\n".join(told)


def next_commands() -> list[str]:
    """Returns the commands to run next on your own photographs."""
    python = os.path.relpath(sys.executable)
    python = sys.executable if python.startswith("..") else python
    return [
        f"{python} -m lae_jax.prepare --reader csv --source faces.csv --out data/faces   # columns path and age",
        f"{python} -m lae_jax.main --config configs/finetune.py                          # trains stages 2 and 3",
        f"{python} -m lae_jax.predict --run runs/finetune/classify photo.jpg",
    ]


def main(argv: list[str] | None = None) -> None:
    """Runs the demo; exits with status 1 if the comparison does not show the paper's effect.

    Raises:
      InputError: A flag is wrong.
    """
    args = parse_args(argv)
    if args.devices < 1 or args.seed < 0:
        raise InputError("--devices must be at least 1 and --seed at least 0")
    started = time.perf_counter()
    out = pathlib.Path(args.out) / f"seed{args.seed}"
    faces, runs, comparison = out / "faces", out / "runs", out / "report"
    if not runs.exists():
        minutes = estimated_minutes()
        console.write(f"The demo takes about {minutes} to {2 * minutes} minutes on this machine if nothing else runs.")
    sources = [word for name, count in SPLITS.items() for word in ("--source", f"{name}={count}")]
    drawing = ["--reader", "synthetic", *sources, "--size", "36", "--seed", str(args.seed), "--out", str(faces)]
    call(out, ["prepare", *drawing])
    overrides = {"workdir": runs, "faces": faces, "seed": args.seed}
    fields = [f"--config.{name}={value}" for name, value in overrides.items()]
    call(out, ["main", "--config", "demo", "--devices", str(args.devices), *fields])
    on_test = ["--split", "test", "--devices", str(args.devices)]
    call(out, *(["evaluate", "--run", str(runs / row), *on_test] for row in ROWS))
    call(out, ["report", *(str(runs / row) for row in ROWS), "--split", "test", "--out", str(comparison)])

    # The report writes no such file if it has no differences.
    path = comparison / "differences.csv"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    validation = {row: files.read_json(runs / row / "summary.json", _SCORED)["scores"]["mae"] for row in ROWS}
    shown, told = conclusion(spreadsheets.records(lines), validation)
    minutes = (time.perf_counter() - started) / 60
    console.write("", *told.splitlines(), "")
    console.write(f"The demo took {minutes:.1f} minutes. Open {comparison}/report.html to see the comparison.")
    if not shown:
        sys.exit(1)
    console.write("To use your own photographs, run:", *(f"  {command}" for command in next_commands()))


if __name__ == "__main__":
    start.program(main)
