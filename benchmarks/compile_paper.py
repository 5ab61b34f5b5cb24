"""Compiles the paper's settings for accelerators, one after the other, and prints the table of docs/scaling.md.

    make setup-tpu setup-gpu
    python -m benchmarks.compile_paper --out build/compile_paper             # hours on two cores
    python -m benchmarks.compile_paper --out build/compile_paper --show      # the table of what is there

The settings: EfficientNetV2-M at 224 px, 32 images a device, stages 1 to 3. A step whose result is in the folder is not
compiled again.
"""

import itertools
import json
import pathlib
import subprocess
import time

from benchmarks import harness

PEOPLE = 85_742  # of MS1MV2, the cleaned MS-Celeb-1M
STAGES = {"classify": "3", "represent": "2", "pretrain": "1"}
KINDS = {"gpu": ("h100-8",), "tpu": ("v5e-8", "v4-8", "v6e-256")}  # the compiler of TPUs takes longer
HEADER = (
    "machine", "stage", "peak, GiB", "parameters", "optimiser", "activations", "GFLOP", "GB moved", "exchanged, MB",
    "collectives", "least ms (bound by)", "images/s at most, a device", "share of peak", "compiled in, min",
)  # fmt: skip


def command(kind: str, machine: str, stage: str, out: pathlib.Path) -> list[str]:
    """Returns the command line that compiles a step of the paper."""
    people = ["--people", str(PEOPLE)] if stage == "pretrain" else []
    python = f".venv-{kind}/bin/python"
    words = ["--config", f"configs/{stage}.py", "--topology", machine, "--per-device", "32", *people]
    return [python, "-m", "lae_jax.compile", *words, "--out", str(out)]


def row(machine: str, stage: str, known: dict) -> list[str]:
    """Returns the row of a compiled step."""
    one = known["stages"][stage]["as configured"]
    gib = [one["peak_bytes"], one["parts"]["parameters"], one["parts"]["optimiser"], one["activations"]]
    return [
        machine,
        STAGES[stage],
        *(f"{size / 2**30:.3g}" for size in gib),
        f"{one['flops'] / 1e9:.4g}",
        f"{one['traffic'] / 1e9:.3g}",
        f"{sum(each['bytes'] for each in one['exchanges']) / 1e6:.4g}",
        str(sum(each["count"] for each in one["exchanges"])),
        f"{one['seconds'] * 1e3:.3g} ({one['bound']})",
        f"{one['images_per_second']:,.0f}",
        f"{one['utilisation']:.0%}",
        f"{one['compile_seconds'] / 60:.0f}",
    ]


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--out", required=True, metavar="FOLDER", help="folder of the results, a file a step")
    parser.add_argument("--show", action="store_true", help="compile nothing, show what is in the folder")
    args = parser.parse_args()
    folder = pathlib.Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    steps = [(kind, *each) for kind, machines in KINDS.items() for each in itertools.product(STAGES, machines)]
    for kind, stage, machine in steps:
        out = folder / f"{machine}-{stage}.json"
        if not out.exists() and not args.show:
            begun = time.perf_counter()
            ended = subprocess.run(command(kind, machine, stage, out), check=False).returncode
            print(f"{machine}, {stage}: status {ended} after {time.perf_counter() - begun:.0f} s", flush=True)
        if out.exists():
            rows.append(row(machine, stage, json.loads(out.read_text())))
    for line in (HEADER, ["---"] * len(HEADER), *rows):
        print(f"| {' | '.join(line)} |")


if __name__ == "__main__":
    harness.run(main)
