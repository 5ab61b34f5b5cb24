"""Training in bfloat16 beside float32: the small recipe on drawn faces, the same seeds, on one core of a CPU.

    python -m benchmarks.bfloat16 --out build/bfloat16

A CPU simulates bfloat16: it rounds the activations of the backbone as an accelerator does. Trains stages 2 and 3 of
`configs/small.py:tuned` for each seed and dtype, scores each on a balanced test split in float32, and prints the
difference of the MAE with its 95 % interval: of each seed over the people of the test split, and of the mean over the
seeds (Student's t). A run that is done is not repeated. Writes OUT/bfloat16.json.
"""

import argparse
import json
import os
import pathlib

import numpy as np
from etils import epath
from scipy import stats

DTYPES = ("float32", "bfloat16")
STAGES = ("represent", "classify")


def train_recipe(workdir: pathlib.Path, faces: pathlib.Path, seed: int, dtype: str, image_size: int) -> None:
    """Trains stages 2 and 3 in `workdir`."""
    from lae_jax import train
    from lae_jax.configs import small

    config = small.get_config("tuned")
    config.workdir, config.faces, config.seed = str(workdir), str(faces), seed
    for name in STAGES:
        stage = config.stages[name]
        stage.model.dtype, stage.data.threads = dtype, 1
        stage.data.image_size, stage.data.resize = image_size, image_size * 9 // 8
    train.train(config)


def compare(out: pathlib.Path, seeds: int) -> list[dict]:
    """Returns a row for each stage and seed, and one of the mean over the seeds."""
    from lae_jax import evaluate
    from lae_jax.report import loading, scores

    def scored(stage: str, seed: int, dtype: str) -> scores.Scored:
        done = evaluate.evaluate(out / f"{dtype}-{seed}" / stage, split="test")
        return scores.score(loading.read(epath.Path(done.folder)).sample)

    mae, rows = next(score for score in scores.MAIN if score.name == "mae"), []
    for stage in STAGES:
        found = []
        for seed in range(seeds):
            wide, narrow = (scored(stage, seed, dtype) for dtype in DTYPES)
            difference = narrow.difference(wide, mae)
            row = {"stage": stage, "seed": seed, "float32": wide.values["mae"], "bfloat16": narrow.values["mae"]}
            row |= {"difference": difference.value, "interval": [difference.low, difference.high]}
            found.append(row)
        means = {name: float(np.mean([row[name] for row in found])) for name in (*DTYPES, "difference")}
        spread = np.std([row["difference"] for row in found], ddof=1) / seeds**0.5
        half = float(stats.t.ppf(0.975, seeds - 1) * spread)
        interval = [means["difference"] - half, means["difference"] + half]
        rows += [*found, {"stage": stage, "seed": "mean", **means, "interval": interval}]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--faces", type=int, default=1200, help="training images")
    parser.add_argument("--image-size", type=int, default=64, help="pixels, a multiple of 8")
    parser.add_argument("--seeds", type=int, default=3, help="2 or more")
    args = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    from lae_jax import prepare
    from lae_jax.runtime import start

    start.devices(0, False)
    faces = args.out / "faces"
    if not (faces / "dataset.json").exists():
        source = {"train": str(args.faces), "validation": str(args.faces // 4), "test": str(args.faces)}
        prepare.prepare(source, faces, reader="synthetic", size=args.image_size * 9 // 8, workers=1)
    for seed in range(args.seeds):
        for dtype in DTYPES:
            train_recipe(args.out / f"{dtype}-{seed}", faces, seed, dtype, args.image_size)
    rows = compare(args.out, args.seeds)
    (args.out / "bfloat16.json").write_text(json.dumps(rows, indent=1))
    for row in rows:
        print(
            f"{row['stage']:<10} seed {row['seed']!s:<5} float32 {row['float32']:.3f}  bfloat16 {row['bfloat16']:.3f}"
            f"  difference {row['difference']:+.3f} ({row['interval'][0]:+.3f} to {row['interval'][1]:+.3f})"
        )


if __name__ == "__main__":
    main()
