"""The yardstick against PyTorch: configs/small.py:yardstick, and the same recipe in PyTorch, from the same faces.

    make setup-peers
    python -m benchmarks.yardstick --data data/faces --out build/yardstick --runs lae_jax torch torch:fc_default
    python -m benchmarks.yardstick --data data/faces --out build/yardstick --runs torch@bilinear torch:patches@wide
    python -m benchmarks.yardstick --data data/faces --out build/yardstick --runs torch:our_weights,our_batches

A run named `torch` makes the choices that we make where the recipe leaves them open; `torch:SWITCH,...` makes others
(`benchmarks.yardstick_torch.SWITCHES`). `@...` is another way from 200 to 72 pixels; `@wide` keeps 100 for patches.
With `our_batches` and `our_weights`, stage 2 gets the batches and the initial weights of our run of that seed; the
batches take 0.9 GB until the run ends. A run takes 8 to 30 minutes of one core in PyTorch. It goes on where it was
stopped, and is not done twice. The test split is read once a run. That the steps themselves are the same is shown by
`benchmarks.yardstick_steps`.
"""

import argparse
import json
import pathlib
import shutil
import statistics

import numpy as np

from benchmarks import harness, yardstick_steps
from lae_jax import evaluate, metrics, train
from lae_jax.configs import small
from lae_jax.data import records

SPLITS = ("validation", "test")
COLUMNS = ("val MAE", "val sigma", "test MAE", "test sigma", "test MAE^1", "test MAE^8")


def write_faces(data: pathlib.Path, how: str, path: pathlib.Path) -> None:
    """Writes images (N, side, side, 3) and ages of each split, for PyTorch."""
    dataset, found = records.open_dataset(data), {}
    for split in ("train", *SPLITS):
        rows = dataset.rows(split)
        found |= {f"{split}_images": yardstick_steps.resized(dataset, rows, how)}
        found |= {f"{split}_ages": dataset.column("age")[rows]}
    np.savez(path, **found)


def write_batches(data: pathlib.Path, seed: int, epochs: int, folder: pathlib.Path) -> None:
    """Writes the batches of our stage 2: images.npy (steps, 64, 64, 64, 3) uint8 and ages.npy (steps, 64)."""
    config, dataset = yardstick_steps.settings_of("represent"), records.open_dataset(data)
    steps, side = epochs * -(-len(dataset.rows("train")) // config.batch_size), config.data.image_size
    incomplete = folder.with_name(folder.name + ".incomplete")
    incomplete.mkdir(parents=True, exist_ok=True)
    shape = (steps, config.batch_size, side, side, 3)
    images = np.lib.format.open_memmap(incomplete / "images.npy", "w+", np.uint8, shape)
    ages = np.empty(shape[:2], np.float32)
    for step, batch in enumerate(yardstick_steps.our_batches(config, dataset, seed, steps, threads=1)):
        images[step], ages[step] = batch["image"], batch["target"]
    images.flush()
    np.save(incomplete / "ages.npy", ages)
    incomplete.rename(folder)


def of_torch(name: str, seed: int, args: argparse.Namespace) -> dict[str, list[dict]]:
    """Trains in PyTorch what is not trained yet: {stage and choice: the reports on validation and test}."""
    switches, _, how = name.partition("@")
    switches, how = switches.removeprefix("torch").removeprefix(":"), how or "bicubic"
    faces, out = args.out / f"{how}.npz", args.out / f"{name.replace(':', '-')}-{seed}"
    if not faces.exists():
        write_faces(args.data, how, faces)
    if not (out / "results.json").exists():
        train_in_torch(faces, out, seed, switches.split(",") if switches else [], args)
    with np.load(faces) as data:
        ages = {split: data[f"{split}_ages"] for split in SPLITS}
    found = {}
    for stage in json.loads((out / "results.json").read_text())["stages"]:
        with np.load(out / stage["file"]) as predictions:
            reports = [metrics.age_report(ages[split], predictions[split]).to_dict() for split in SPLITS]
        found[stage["name"]] = reports
    return found


def train_in_torch(
    faces: pathlib.Path, out: pathlib.Path, seed: int, switches: list[str], args: argparse.Namespace
) -> None:
    job = {"data": str(faces), "out": str(out), "seed": seed, "switches": switches, "epochs": args.epochs}
    batches, weights = args.out / f"batches-{seed}", args.out / f"weights-{seed}.npz"
    if "our_batches" in switches:
        job["batches"] = str(batches)
        if not batches.exists():
            write_batches(args.data, seed, args.epochs, batches)
    if "our_weights" in switches:
        job["weights"] = str(weights)
        initial = yardstick_steps.initial_weights(yardstick_steps.settings_of("represent"), seed)
        np.savez(weights, **yardstick_steps.torch_names(initial))
    yardstick_steps.in_torch({**job, "threads": 1}, args.out / "job.json", args.python)
    shutil.rmtree(batches, ignore_errors=True)
    weights.unlink(missing_ok=True)


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
