"""Measures all that needs one GPU in ten minutes: steps beside PyTorch, predicted memory and time, faces.

First, on a machine without a GPU, make the predictions (--topology names the GPU):

    for s in represent classify; do .venv-gpu/bin/python -m lae_jax.compile --config configs/$s.py --topology h200-1 \\
      --per-device 128 --out build/predicted/$s.json; done

On the GPU, with JAX's extra for it, torch and timm (without TensorFlow, TFDS and ml_collections):

    python -m benchmarks.on_a_gpu --out build/gpu --predicted build/predicted [--photographs photographs.npy]

Steps: `benchmarks.train_step`, EfficientNetV2-M at 224 px, stages 2 and 3 and inference. Predicted: the peak memory and
least time of a step by `lae_jax.compile`, beside the measured ones. Faces: photographs a second, of a uint8 array (N,
height, width, 3). Each part writes its JSON into OUT as soon as it is done; if a part fails, the others still run.
"""

import json
import os
import pathlib
import subprocess
import sys
import time

import numpy as np

from benchmarks import harness
from lae_jax.runtime import console

STAGES = {"stage 2": "represent", "stage 3": "classify"}


def steps(args, out: pathlib.Path) -> list[dict]:
    """The rows of `benchmarks.train_step`."""
    flags = ["--model", args.model, "--image_size", args.image_size, "--batch", args.batch, "--minutes", args.minutes]
    modes = ["--modes", *STAGES, "inference"]
    command = [sys.executable, "-m", "benchmarks.train_step", "--out", out, *flags, *modes]
    subprocess.run([str(word) for word in command], check=False)  # its rows are kept one by one
    kept = out / "train_step.json"
    return json.loads(kept.read_text())["rows"] if kept.exists() else []


def beside_predictions(rows: list[dict], folder: pathlib.Path) -> list[list[str]]:
    """Lines of a table: predicted and measured peak memory and time of a step, and their ratios."""
    lines = []
    for row in rows:
        file = folder / f"{STAGES.get(row['mode'])}.json"
        if row["side"] != "lae_jax" or not file.exists():
            continue
        (known,) = json.loads(file.read_text())["stages"].values()
        one = known["as configured"]
        if one["per_device"] != row["batch"]:
            print(f"{file} is of {one['per_device']} images, and {row['batch']} were measured", file=sys.stderr)
            continue
        milliseconds = [1e3 * (one["seconds"] or np.nan), 1e3 * row["batch"] / row["images_s"]]
        gigabytes = [1e-9 * one["peak_bytes"], 1e-9 * (row.get("peak_bytes") or np.nan)]
        cells = [f"{value:.3g}" for pair in (gigabytes, milliseconds) for value in (*pair, pair[1] / pair[0])]
        lines.append([row["mode"], *cells])
    return lines


def faces(file: pathlib.Path | None, turns: int) -> dict:
    """Photographs a second in which faces are found, the median of `turns`, and how many faces."""
    from PIL import Image

    from lae_jax.faces import detect

    if file is None:
        pictures = np.random.default_rng(0).integers(0, 256, (32, 480, 640, 3), np.uint8)
    else:
        pictures = np.load(file, allow_pickle=False)
    photographs = [Image.fromarray(each) for each in pictures]
    begun = time.perf_counter()
    found = detect.detect(photographs)
    first = time.perf_counter() - begun
    taken = harness.take_turns({"faces": lambda: detect.detect(photographs)}, turns)["faces"]
    rate = len(photographs) / np.median(taken[:, 0])
    return {
        "photographs": len(photographs),
        "faces": sum(map(len, found)),
        "first_seconds": first,
        "photographs_s": rate,
    }


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--predicted", type=pathlib.Path, default=pathlib.Path("build/predicted"), metavar="FOLDER")
    parser.add_argument("--photographs", type=pathlib.Path, metavar="NPY", help="(default: 32 of noise)")
    parser.add_argument("--model", default="efficientnet_v2_m")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=128, help="images a step; --per-device of the predictions")
    parser.add_argument("--minutes", type=float, default=6, help="no new row of steps is begun after so many")
    parser.add_argument("--turns", type=int, default=5, help="timed turns of the search for faces")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    # The steps are other processes, which need the memory that JAX would take here at its start.
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    try:
        found = faces(args.photographs, args.turns)
        (args.out / "faces.json").write_text(json.dumps(found))
        print(console.table(list(found), [[f"{value:.4g}" for value in found.values()]]), flush=True)
    except Exception as error:  # the steps are still to be measured
        print(f"faces left out: {error!r}", file=sys.stderr)
    lines = beside_predictions(steps(args, args.out), args.predicted)
    header = ["", "GB, predicted", "GB, measured", "ratio", "ms, at least", "ms, measured", "ratio"]
    (args.out / "predicted.json").write_text(json.dumps([header, *lines]))
    print(console.table(header, lines))


if __name__ == "__main__":
    harness.run(main)
