"""The yardstick against PyTorch: configs/small.py:yardstick, and the same recipe in PyTorch, from the same faces.

    make setup-peers
    python -m benchmarks.yardstick --data data/faces --out build/yardstick --runs lae_jax torch torch:fc_default
    python -m benchmarks.yardstick --data data/faces --out build/yardstick --runs torch@bilinear torch:patches@wide

A run named `torch` makes the choices that we make where the recipe leaves them open; `torch:SWITCH,...` makes others
(`benchmarks.yardstick_torch.SWITCHES`). `@...` is another way from 200 to 72 pixels; `@wide` keeps 100 for patches. A
run takes eight minutes of one core in PyTorch. It goes on where it was stopped, and is not done twice. The test split
is read once a run. That the steps themselves are the same is shown by `benchmarks.yardstick_steps`.
"""

import argparse
import io
import json
import pathlib
import statistics

import numpy as np
from PIL import Image

from benchmarks import harness, yardstick_steps
from lae_jax import evaluate, metrics, train
from lae_jax.configs import small
from lae_jax.data import records
from lae_jax.faces.tensorflow import tf

SPLITS = ("validation", "test")
# Pixels of a side, and Pillow's way there; it filters, except for the nearest pixel.
RESIZED = {
    "bicubic": (72, Image.Resampling.BICUBIC),  # ours
    "bilinear": (72, Image.Resampling.BILINEAR),
    "nearest": (72, Image.Resampling.NEAREST),
    "unfiltered": (72, None),  # bilinear between four pixels, as in OpenCV and torch's interpolate
    "wide": (100, Image.Resampling.BICUBIC),
}
COLUMNS = ("val MAE", "val sigma", "test MAE", "test sigma", "test MAE^1", "test MAE^8")


def write_faces(data: pathlib.Path, how: str, path: pathlib.Path) -> None:
    """Writes images (N, side, side, 3) and ages of each split, for PyTorch."""
    dataset, (side, method), found = records.open_dataset(data), RESIZED[how], {}
    for split in ("train", *SPLITS):
        rows, images = dataset.rows(split), []
        for encoded in dataset.encoded(rows):
            image = Image.open(io.BytesIO(encoded)).convert("RGB")
            if method is None:
                images.append(np.round(tf.image.resize(np.asarray(image), (side, side)).numpy()).astype(np.uint8))
            else:
                images.append(np.asarray(image.resize((side, side), method)))
        found |= {f"{split}_images": np.stack(images), f"{split}_ages": dataset.column("age")[rows]}
    np.savez(path, **found)


def of_torch(name: str, seed: int, args: argparse.Namespace) -> dict[str, list[dict]]:
    """Trains in PyTorch what is not trained yet: {stage and choice: the reports on validation and test}."""
    switches, _, how = name.partition("@")
    switches, how = switches.removeprefix("torch").removeprefix(":"), how or "bicubic"
    faces, out = args.out / f"{how}.npz", args.out / f"{name.replace(':', '-')}-{seed}"
    if not faces.exists():
        write_faces(args.data, how, faces)
    if not (out / "results.json").exists():
        job = {"data": str(faces), "out": str(out), "seed": seed, "switches": switches.split(",") if switches else []}
        yardstick_steps.in_torch({**job, "epochs": args.epochs, "threads": 1}, args.out / "job.json", args.python)
    with np.load(faces) as data:
        ages = {split: data[f"{split}_ages"] for split in SPLITS}
    found = {}
    for stage in json.loads((out / "results.json").read_text())["stages"]:
        with np.load(out / stage["file"]) as predictions:
            reports = [metrics.age_report(ages[split], predictions[split]).to_dict() for split in SPLITS]
        found[stage["name"]] = reports
    return found


def of_ours(name: str, seed: int, args: argparse.Namespace) -> dict[str, list[dict]]:
    """Trains and scores configs/small.py:yardstick."""
    config = small.get_config("yardstick")
    config.seed, config.faces, config.workdir = seed, str(args.data), str(args.out / f"{name}-{seed}")
    config.stages.represent.epochs = float(args.epochs)
    for stage in config.stages.values():
        stage.data.allow_leak = True  # UTKFace holds copies of some pictures
    train.train(config)
    return {
        stage: [evaluate.evaluate(pathlib.Path(config.workdir) / stage, split=split).report for split in SPLITS]
        for stage in config.order
    }


def scores(validation: dict, test: dict) -> tuple[float, ...]:
    groups = test["group_mae"]
    return validation["mae"], validation["sigma"], test["mae"], test["sigma"], groups[0], groups[-1]


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--data", type=pathlib.Path, required=True, help="data set prepared as docs/results.md says")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--python", default=yardstick_steps.PYTHON, help="of the environment with torch")
    parser.add_argument("--runs", nargs="*", default=["lae_jax", "torch"])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--epochs", type=int, default=12, help="of stage 2")
    args = parser.parse_args()
    args.data, args.out = args.data.absolute(), args.out.absolute()
    args.out.mkdir(parents=True, exist_ok=True)
    found: dict[tuple[str, str], list[tuple[float, ...]]] = {}
    for seed in args.seeds:
        for name in args.runs:
            for stage, reports in (of_ours if name == "lae_jax" else of_torch)(name, seed, args).items():
                found.setdefault((name, stage), []).append(scores(*reports))
    table = [
        (run, stage, len(of), *(f"{statistics.mean(column):.2f}" for column in zip(*of, strict=True)))
        for (run, stage), of in found.items()
    ]
    harness.show(
        {f"{run} {stage}": of for (run, stage), of in found.items()}, ("run", "stage", "seeds", *COLUMNS), table
    )


if __name__ == "__main__":
    harness.run(main)
