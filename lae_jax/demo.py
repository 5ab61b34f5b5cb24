"""The whole method on drawn faces in minutes: prepares, trains three stages and the baseline, evaluates, compares.

    python -m lae_jax.demo --out build/demo --seed 0

Runs the programs that a user runs, prints each command, ends with a table like the paper's Table 2 on a balanced test
set, and fails if the table does not show what the paper's does. A demo that was
stopped goes on when started again (`make demo` starts afresh).
"""

import argparse
import json
import os
import pathlib
import shlex
import subprocess
import sys
import time

from lae_jax import console
from lae_jax.errors import InputError

SPLITS = {"train": 5000, "validation": 1200, "test": 480}
ROWS = ("baseline", "represent", "classify")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m lae_jax.demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", default="build/demo", help="folder of faces and runs (default build/demo)")
    parser.add_argument("--seed", type=int, default=0, help="of faces and training (default 0)")
    parser.add_argument("--devices", type=int, default=8, help="simulated devices (default 8)")
    return parser.parse_args(argv)


def call(out: pathlib.Path, module: str, *words: str) -> None:
    """Runs one of the programs; a failure ends the demo with its status."""
    command = [sys.executable, "-m", f"lae_jax.{module}", *words]
    print("$ python -m", shlex.join(command[2:]), flush=True)
    # Training and evaluating compile the same forward pass: the cache saves the second time.
    environment = {"JAX_COMPILATION_CACHE_DIR": str(out.absolute() / "compiled"), **os.environ}
    status = subprocess.run(command, env=environment).returncode
    if status:
        sys.exit(status)


def shortfalls(represent: dict, classify: dict, validation: dict[str, float]) -> list[str]:
    """What of the paper's effect is not there.

    Args: represent, classify: reports on the balanced test set; validation: MAE of both on the long-tailed one.
    """

    def tails(report: dict) -> float:
        return (report["group_mae"][0] + report["group_mae"][7]) / 2

    missing = []
    if not classify["sigma"] <= 0.75 * represent["sigma"]:
        missing.append(f"sigma {classify['sigma']:.2f} is not at most 0.75 of {represent['sigma']:.2f}")
    if not tails(classify) < tails(represent):
        missing.append(f"the mean of MAE^1 and MAE^8, {tails(classify):.2f}, is not below {tails(represent):.2f}")
    if not validation["classify"] <= 1.25 * validation["represent"]:
        missing.append(
            f"validation MAE {validation['classify']:.2f} is more than 25 % above {validation['represent']:.2f}"
        )
    return missing


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.devices < 1 or args.seed < 0:
        raise InputError("--devices must be at least 1 and --seed at least 0")
    started = time.perf_counter()
    out = pathlib.Path(args.out) / f"seed{args.seed}"
    faces, runs = out / "faces", out / "runs"
    sources = [word for name, count in SPLITS.items() for word in ("--source", f"{name}={count}")]
    call(
        out, "prepare", "--reader", "synthetic", *sources, "--size", "40", "--seed", str(args.seed), "--out", str(faces)
    )
    overrides = {"workdir": runs, "faces": faces, "seed": args.seed}
    call(out, "main", "--config", "demo", "--devices", str(args.devices),
         *(f"--config.{name}={value}" for name, value in overrides.items()))  # fmt: skip
    for row in ROWS:
        call(out, "evaluate", "--run", str(runs / row), "--split", "test", "--devices", str(args.devices))

    reports, validation = {}, {}
    for row in ROWS:
        folder = runs / row
        reports[row] = json.loads((folder / "evaluation" / "faces-test" / "report.json").read_text())
        validation[row] = json.loads((folder / "summary.json").read_text())["scores"]["mae"]
    header = ["drawn faces, balanced test", "MAE", "MAE^1", "MAE^3", "MAE^8", "sigma", "mMAE", "validation MAE"]
    lines = []
    for row, report in reports.items():
        groups = report["group_mae"]
        lines.append(
            [row, report["mae"], groups[0], groups[2], groups[7], report["sigma"], report["mmae"], validation[row]]
        )
    print(f"\n{console.table(header, lines)}\n\nreports: {runs}/*/evaluation/faces-test/report.html")
    print(f"{time.perf_counter() - started:.0f} seconds")
    missing = shortfalls(reports["represent"], reports["classify"], validation)
    if missing:
        print("the demo does not show the paper's effect: " + "; ".join(missing), file=sys.stderr)
        sys.exit(1)
    print(
        "as in the paper, the classification stage trades MAE where faces are many for far smaller errors at the tails"
    )


if __name__ == "__main__":
    console.door(main)
