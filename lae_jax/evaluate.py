"""Scores a run on a split of a prepared data set.

    python -m lae_jax.evaluate --run runs/classify --data data/faces --split validation

Writes RUN/evaluation/<data set>-<split>/: report.json, predictions.csv, histogram.png, groups.png, scatter.png.
"""

import argparse
import csv
import io
import logging
import signal

import numpy as np
from etils import epath

from lae_jax import checkpoints, console, files
from lae_jax.errors import InputError

logger = logging.getLogger("lae_jax")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m lae_jax.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--run", required=True, help="folder of a run")
    add("--data", help="prepared data set (default: the run's)")
    add("--split", help="name of the split, 'all' for every row (default: the run's validation split)")
    add("--step", type=int, help="checkpoint (default: the best)")
    add("--flip", action="store_true", help="average with the mirror image")
    add("--allow-other-crop", action="store_true", help="score on faces that were cut otherwise; the report says so")
    add("--batch-size", type=int, default=256, help="images at a time over all devices (default 256)")
    add("--devices", type=int, default=0, help="simulated devices on a CPU (default: what the platform has)")
    return parser.parse_args(argv)


def predict_split(
    handed: checkpoints.Handed,
    data: str | None,
    split: str | None,
    *,
    flip: bool,
    batch_size: int,
    allow_other_crop: bool = False,
):
    """Outputs of a run's checkpoint on a split -> (stage, data set, rows with a target, targets, outputs, name)."""
    from lae_jax import parallel, runs, stages
    from lae_jax.data import records

    config, stage, par = runs.from_json(handed.meta["config"]), stages.get(handed.meta["stage"]), parallel.Parallel()
    dataset = records.open_dataset(data or config.data.path, config.data.verify)
    if not split:
        if not config.data.split:
            raise InputError(f"{handed.workdir} was trained without a validation split: name one with --split")
        split = runs.split_name(config, config.data.split)
    if handed.meta["crop"] != dataset.crop:
        told = f"{handed.workdir} was trained on crops {handed.meta['crop']}, {dataset.path} holds {dataset.crop}"
        if not allow_other_crop:
            raise InputError(f"{told}: prepare the data alike, or say --allow-other-crop (the errors may be large)")
        logger.warning("%s: the errors may be large", told)
    if handed.meta["data"] == str(dataset.path) and handed.meta["data_hash"] != dataset.hash:
        logger.warning("%s was prepared again after the run: the split may hold what it was trained on", dataset.path)
    examples = runs.examples(dataset, split, stage)
    module = runs.model(config, stage, handed.meta["num_outputs"])
    forward = runs.forward(config, stage, module, par, flip=flip)
    batch_size = -(-batch_size // par.device_count) * par.device_count
    variables = par.place(handed.variables)
    outputs = runs.outputs_of(config, dataset, examples.rows, forward, variables, par, batch_size)
    return stage, dataset, examples, outputs, split


def evaluate(args: argparse.Namespace) -> tuple[dict, epath.Path]:
    """Predicts, scores, writes; returns the report and its folder."""
    handed = checkpoints.load_run(args.run, args.step)
    stage, dataset, examples, outputs, split = predict_split(
        handed,
        args.data,
        args.split,
        flip=args.flip,
        batch_size=args.batch_size,
        allow_other_crop=args.allow_other_crop,
    )
    from lae_jax import leaks

    scores = stage.score({stage.target: examples.targets}, outputs)
    suffix = f"-step{args.step}" * (args.step is not None) + "-flip" * args.flip
    folder = handed.workdir / "evaluation" / f"{dataset.path.resolve().name}-{split}{suffix}"
    folder.mkdir(parents=True, exist_ok=True)
    report = {
        **scores,
        "run": str(handed.workdir),
        "step": handed.step,
        "stage": stage.name,
        "model": handed.meta["model"],
        "data": str(dataset.path),
        "data_hash": dataset.hash,
        "same_data_as_training": handed.meta["data_hash"] == dataset.hash,
        "split": split,
        "flip": args.flip,
        "protocol": dataset.manifest["protocol"],
        "crop": dataset.crop,
        "other_crop_than_training": handed.meta["crop"] != dataset.crop,
        **leaks.of_evaluation(handed.meta, dataset, split),
    }
    files.write_json(folder / "report.json", report)
    if stage.target == "age":
        _write_predictions(folder / "predictions.csv", dataset.column("name")[examples.rows], examples.targets, outputs)
        _draw(folder, handed, dataset, split, examples.targets, outputs)
    return report, folder


def _write_predictions(path: epath.Path, names, ages, predictions) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["name", "age", "prediction"])
    writer.writerows((n, repr(float(a)), f"{p:.6f}") for n, a, p in zip(names, ages, predictions, strict=True))
    path.write_bytes(text.getvalue().encode())


def _draw(folder: epath.Path, handed: checkpoints.Handed, dataset, split: str, ages, predictions) -> None:
    from lae_jax import figures, metrics, runs

    config = runs.from_json(handed.meta["config"])
    trained_on = runs.split_name(config, config.data.train)
    same = handed.meta["data_hash"] == dataset.hash
    histogram_of = trained_on if same else split
    histogram_ages = dataset.column("age")[dataset.rows(histogram_of)]
    title = (
        f"{handed.workdir.name} step {handed.step} ({handed.meta['model']}) on {dataset.path.resolve().name}, {split}"
    )
    predictions = predictions.astype(np.float64)
    figures.histogram(
        folder / "histogram.png", histogram_ages[~np.isnan(histogram_ages)], ages, predictions, title, histogram_of
    )
    figures.group_errors(folder / "groups.png", metrics.age_report(ages, predictions), title)
    figures.scatter(folder / "scatter.png", ages, predictions, title)


def tell(report: dict) -> str:
    """The report as text for a terminal."""
    from lae_jax import leaks

    if "group_mae" not in report:
        scores = [f"{name:18} {value}" for name, value in report.items() if isinstance(value, (int, float))]
        return "\n".join([*scores, *leaks.tell(report)])
    from lae_jax.metrics import GROUPS

    def number(value, digits=2):
        return "-" if value is None else f"{value:.{digits}f}"

    rows = [
        (group, str(count), number(mae), "-" if bias is None else f"{bias:+.2f}")
        for group, count, mae, bias in zip(
            GROUPS, report["group_count"], report["group_mae"], report["bias"], strict=True
        )
    ]
    lines = [console.table(["age group", "images", "MAE", "bias"], rows), ""]
    lines.append(
        f"MAE {number(report['mae'])}   sigma {number(report['sigma'])}   AAR (2021) {number(report['aar_2021'])}"
        f"   AAR (2022) {number(report['aar_2022'])}   mMAE {number(report['mmae'])}   CS@5 {report['cs'][5]:.1%}"
        f"   n {report['n']}"
    )
    if outside := report["n"] - sum(report["group_count"]):
        lines.append(f"{outside} of them older than 81 or younger than 1: they count in MAE, not in a group")
    if report.get("other_crop_than_training"):
        lines.append("the model was trained on faces that were cut otherwise: these errors are not its own")
    if report["missing_groups"]:
        lines.append(f"sigma and AAR are undefined: no image of age {', '.join(report['missing_groups'])}")
    lines += leaks.tell(report)
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.batch_size < 1 or args.devices < 0:
        raise InputError("--batch-size must be at least 1 and --devices at least 0")
    if args.devices:
        from lae_jax import parallel

        parallel.simulate_devices(args.devices)
    report, folder = evaluate(args)
    print(tell(report))
    print(f"{folder}/: " + ", ".join(sorted(path.name for path in folder.iterdir())))


if __name__ == "__main__":
    # A Ctrl-C ends it at once, also where the exception would come up inside a callback of JAX and be lost.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    console.door(main)
