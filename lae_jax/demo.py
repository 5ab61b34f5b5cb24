"""The whole method on drawn faces, in minutes: prepare, train three stages, evaluate, compare.

    python -m lae_jax.demo --out build/demo --seed 0

Runs the programs that a user runs and prints each command. It ends with a comparison on a balanced test set. The exit
status is 1 if the comparison does not show the paper's effect. To resume a stopped demo, start it again (`make demo`
starts afresh).
"""

import argparse
import concurrent.futures
import csv
import os
import pathlib
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence

from lae_jax import console, cpu, files
from lae_jax.errors import InputError

SPLITS = {"train": 5000, "validation": 1200, "test": 480}
ROWS = ("represent", "classify")
# Scores that classification must improve, named as in the comparison's report. The 95 % interval of each difference,
# over the same test faces, must lie below 0: a limit measured on one machine would not suit another.
EFFECT = ("sigma", "MAE 1-10", "MAE 71-81")
# Measured on the machine of docs/results.md: seconds of the demo on two cores and on one, and seconds to draw a face.
# Then the number of faces that are drawn to compare this machine with it.
_SECONDS, _SECONDS_ON_ONE_CORE, _SECONDS_A_FACE, _FACES = 175, 280, 0.008, 100


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m lae_jax.demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", default="build/demo", help="folder of faces and runs (default build/demo)")
    parser.add_argument("--seed", type=int, default=0, help="of faces and training (default 0)")
    parser.add_argument("--devices", type=int, default=8, help="simulated devices (default 8)")
    return parser.parse_args(argv)


def call(out: pathlib.Path, *commands: Sequence[str]) -> None:
    """Runs programs of the package in parallel. If one fails, the demo exits with its status.

    Args:
      out: Folder that holds the compile cache.
      commands: The name and the arguments of each program. The output of several programs is printed in this order,
        each after its program ends.
    """
    # Each program loads what earlier programs compiled.
    cache = {"JAX_COMPILATION_CACHE_DIR": str(out.absolute() / "compiled")}
    cache["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    for program, *words in commands:
        print("$ python -m", shlex.join([f"lae_jax.{program}", *words]), flush=True)

    def run(command: Sequence[str]) -> subprocess.CompletedProcess:
        program, *words = command
        together = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} if len(commands) > 1 else {}
        return subprocess.run(
            [sys.executable, "-m", f"lae_jax.{program}", *words], env={**cache, **os.environ}, text=True, **together
        )

    with concurrent.futures.ThreadPoolExecutor(cpu.cores()) as pool:
        for done in pool.map(run, commands):
            if done.stdout:
                print(done.stdout, end="", flush=True)
            if done.returncode:
                sys.exit(done.returncode)


def estimated_minutes() -> float:
    """Estimates the demo's minutes on this machine: its time on another one, scaled by the time to draw a few faces."""
    from lae_jax.data import synthetic

    synthetic.draw_face(0, 30.0, 0, 36)  # the first call builds tables
    begun = time.perf_counter()
    for face in range(_FACES):
        synthetic.draw_face(face, 30.0, 0, 36)
    speed = _FACES * _SECONDS_A_FACE / (time.perf_counter() - begun)
    return (_SECONDS if cpu.cores() > 1 else _SECONDS_ON_ONE_CORE) / speed / 60


def shortfalls(differences: Iterable[Mapping[str, str]]) -> list[str]:
    """Lists the parts of the paper's effect that a comparison does not show, with their numbers.

    Args:
      differences: Lines of differences.csv, as `lae_jax.report` writes them for runs named as in ROWS.
    """
    found = {(line["run"], line["score"]): line for line in differences}
    missing = []
    for score in EFFECT:
        line = found.get(("classify", score))
        if line is None:
            missing.append(f"{score}: missing from the comparison")
        elif line["verdict"] != "better":
            value, low, high = (float(line[name]) for name in ("difference", "difference low", "difference high"))
            missing.append(f"{score}: {value:+.2f} years (95 %: {low:+.2f} to {high:+.2f})")
    return missing


def conclusion(missing: Sequence[str], validation: Mapping[str, float]) -> str:
    """Explains the comparison in words.

    Args:
      missing: The result of `shortfalls`.
      validation: Validation MAE in years of each run in ROWS.
    """
    before, after = validation["represent"], validation["classify"]
    if not missing:
        return (
            "As in the paper, classification reduces the errors at the rarest ages and makes the errors of all age"
            f" groups more alike (sigma).\nOn the long-tailed validation set its MAE is {after:.2f} years, that of"
            f" representation {before:.2f}" + (": the common ages pay for the rare ones." if after > before else ".")
        )
    return (
        "This demo does not show the paper's effect. Differences on the balanced test set (classification minus"
        " representation):\n  "
        + "\n  ".join(missing)
        + "\nIf an interval contains 0, the test faces cannot tell the two stages apart. If it lies above 0,"
        " classification makes that score worse.\nOn the machines of docs/results.md the intervals lie far below 0, so"
        " the cause is probably this machine's libraries or this version of\nthe code. Run `make test`, then compare"
        " the versions in each run's provenance.json with requirements.txt. The runs and reports are kept."
    )


def next_commands() -> list[str]:
    """Returns the commands to run next on your own photographs."""
    python = os.path.relpath(sys.executable)
    python = sys.executable if python.startswith("..") else python
    return [
        f"{python} -m lae_jax.prepare --reader csv --source faces.csv --out data/faces   # columns path and age",
        f"{python} -m lae_jax.main --config configs/small.py:tuned                       # trains stages 2 and 3",
        f"{python} -m lae_jax.predict --run runs/tuned/classify photo.jpg",
    ]


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.devices < 1 or args.seed < 0:
        raise InputError("--devices must be at least 1 and --seed at least 0")
    started = time.perf_counter()
    out = pathlib.Path(args.out) / f"seed{args.seed}"
    print(f"The demo takes about {estimated_minutes():.0f} minutes on this machine if nothing else runs.", flush=True)
    faces, runs, comparison = out / "faces", out / "runs", out / "report"
    sources = [word for name, count in SPLITS.items() for word in ("--source", f"{name}={count}")]
    drawing = ["--reader", "synthetic", *sources, "--size", "36", "--seed", str(args.seed), "--out", str(faces)]
    call(out, ["prepare", *drawing])
    overrides = {"workdir": runs, "faces": faces, "seed": args.seed}
    fields = [f"--config.{name}={value}" for name, value in overrides.items()]
    call(out, ["main", "--config", "demo", "--devices", str(args.devices), *fields])
    # The batch size of the evaluations during training: its program is already compiled.
    on_test = ["--split", "test", "--batch-size", "400", "--devices", str(args.devices)]
    call(out, *(["evaluate", "--run", str(runs / row), *on_test] for row in ROWS))
    call(out, ["report", *(str(runs / row) for row in ROWS), "--split", "test", "--out", str(comparison)])

    with open(comparison / "differences.csv", newline="", encoding="utf-8") as file:
        missing = shortfalls(csv.DictReader(file))
    validation = {row: files.read_json(runs / row / "summary.json")["scores"]["mae"] for row in ROWS}
    print(f"\n{conclusion(missing, validation)}\n")
    minutes = (time.perf_counter() - started) / 60
    print(f"The demo took {minutes:.1f} minutes. Open {comparison}/report.html to see the comparison.")
    if missing:
        sys.exit(1)
    print("To use your own photographs, run:\n  " + "\n  ".join(next_commands()))


if __name__ == "__main__":
    console.door(main)
