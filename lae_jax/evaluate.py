"""Scores a run on a split of a prepared data set.

    python -m lae_jax.evaluate --run runs/classify --data data/faces --split validation

Writes RUN/evaluation/<data set>-<split>/: report.json, predictions.csv, histogram.png, groups.png, scatter.png.
"""

import argparse
import csv
import io
import signal

import numpy as np
from etils import epath

from lae_jax import console, files, folders
from lae_jax.errors import InputError


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
    add("--interval", type=float, default=0.9, help="share of the distribution whose coverage is told (default 0.9)")
    add("--calibrate", action="store_true", help="fit the distributions' temperature on the run's validation split")
    add("--allow-other-crop", action="store_true", help="score on faces that were cut otherwise; the report says so")
    add("--batch-size", type=int, default=256, help="images at a time over all devices (default 256)")
    add("--devices", type=int, default=0, help="simulated devices on a CPU (default: what the platform has)")
    return parser.parse_args(argv)


def evaluate(args: argparse.Namespace) -> tuple[dict, epath.Path]:
    """Predicts, scores, writes; returns the report and its folder."""
    from lae_jax import checkpoints, estimator, evaluation, leaks

    handed = checkpoints.load_run(args.run, args.step)
    done = evaluation.predict(
        handed,
        args.data,
        args.split,
        flip=args.flip,
        batch_size=args.batch_size,
        allow_other_crop=args.allow_other_crop,
    )
    if args.calibrate:
        evaluation.calibrate(done, args.interval)
    suffix = f"-step{args.step}" * (args.step is not None) + "-flip" * args.flip
    folder = handed.workdir / "evaluation" / f"{done.dataset.path.resolve().name}-{done.split}{suffix}"
    folder.mkdir(parents=True, exist_ok=True)
    report = {
        **done.scores(),
        "run": str(handed.workdir),
        "step": handed.step,
        "stage": done.stage.name,
        "model": handed.meta["model"],
        "data": str(done.dataset.path),
        "data_hash": done.dataset.hash,
        "same_data_as_training": done.same_data,
        "split": done.split,
        "flip": args.flip,
        "protocol": done.dataset.manifest["protocol"],
        "crop": done.dataset.crop,
        "other_crop_than_training": not done.same_crop,
        **leaks.of_evaluation(handed.meta, done.dataset, done.split),
    }
    if done.probabilities is not None:
        temperature = estimator.read_temperature(handed.workdir, handed.step)
        report["interval"] = evaluation.sureness(done, args.interval, temperature)
        names = done.dataset.column("name")[done.rows]
        _write_predictions(folder / "predictions.csv", names, done.targets, done.outputs)
        _draw(folder, done)
    files.write_json(folder / "report.json", report)
    return report, folder


def _write_predictions(path: epath.Path, names, ages, predictions) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["name", "age", "prediction"])
    writer.writerows((n, repr(float(a)), f"{p:.6f}") for n, a, p in zip(names, ages, predictions, strict=True))
    path.write_bytes(text.getvalue().encode())


def _draw(folder: epath.Path, done) -> None:
    from lae_jax import figures, inputs, metrics, runs

    config, dataset = runs.from_json(done.handed.meta["config"]), done.dataset
    histogram_of = inputs.split_name(config, config.data.train) if done.same_data else done.split
    counted = dataset.column("age")[dataset.rows(histogram_of)]
    counted = counted[~np.isnan(counted)]
    of_run = f"{done.handed.workdir.name} step {done.handed.step} ({done.handed.meta['model']})"
    title = f"{of_run} on {dataset.path.resolve().name}, {done.split}"
    figures.histogram(folder / "histogram.png", counted, done.targets, done.outputs, title, histogram_of)
    figures.group_errors(folder / "groups.png", metrics.age_report(done.targets, done.outputs), title)
    figures.scatter(folder / "scatter.png", done.targets, done.outputs, title)


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
    if sure := report.get("interval"):
        held = f"{sure['level']:.0%} intervals hold {sure['coverage']:.1%} of the ages"
        lines.append(f"{held}; they are {sure['mean_width']:.1f} years wide in the mean")
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
    if not 0 < args.interval < 1:
        raise InputError(f"--interval {args.interval}: between 0 and 1")
    folders.require_run(args.run)
    if args.data:
        folders.require_dataset(args.data)
    from lae_jax import compiled, parallel

    compiled.keep()
    if args.devices:
        parallel.simulate_devices(args.devices)
    report, folder = evaluate(args)
    print(tell(report))
    print(f"{folder}/: " + ", ".join(sorted(path.name for path in folder.iterdir())))


if __name__ == "__main__":
    # A Ctrl-C ends it at once, also where the exception would come up inside a callback of JAX and be lost.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    console.door(main)
