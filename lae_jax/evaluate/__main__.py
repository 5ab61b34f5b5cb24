"""Scores a run on a split of a prepared data set.

    python -m lae_jax.evaluate --run runs/classify --data data/faces --split validation

Writes RUN/evaluation/<data set>-<split>/: report.html, one file to look at that needs nothing else; report.json,
predictions.csv, model_card.md, and report/ with each picture (SVG) and its numbers (CSV).
"""

import argparse
import signal

from etils import epath

from lae_jax.runtime import console, layout
from lae_jax.runtime.errors import InputError


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
    add("--baseline", default="", help="run to stand beside this one in the report, evaluated on the same split")
    add("--threshold", type=float, help="years: tell how P(age >= THRESHOLD) decides, such as 18")
    add("--slice", action="append", default=[], metavar="COLUMN",
        help="tell the scores by a further column of the source, such as sex; may be given again")  # fmt: skip
    add("--spread", default="", metavar="STD", help="column of the labels' standard deviation (or MEAN,STD), for the"
        " epsilon-error")  # fmt: skip
    add("--faces", action="store_true", help="show the best, a typical and the worst face of each age group")
    add("--calibrate", action="store_true", help="fit the distributions' temperature on the run's validation split")
    add("--allow-other-crop", action="store_true", help="score on faces that were cut otherwise; the report says so")
    add("--batch-size", type=int, default=256, help="images at a time over all devices (default 256)")
    add("--devices", type=int, default=0, help="simulated devices on a CPU (default: what the platform has)")
    return parser.parse_args(argv)


def evaluate(args: argparse.Namespace) -> tuple[dict, epath.Path]:
    """Predicts, scores, writes; returns the report and its folder."""
    from lae_jax.evaluate import measure, results
    from lae_jax.runtime import checkpoints

    wanted = results.Wanted(
        interval=args.interval,
        threshold=args.threshold,
        slices=tuple(dict.fromkeys(args.slice)),
        spread=args.spread,
        faces=args.faces,
        baseline=args.baseline,
    )
    handed = checkpoints.load_run(args.run, args.step)
    results.check(wanted, handed, args.data, args.split, args.flip)
    done = measure.predict(
        handed,
        args.data,
        args.split,
        flip=args.flip,
        batch_size=args.batch_size,
        allow_other_crop=args.allow_other_crop,
    )
    if args.calibrate:
        measure.calibrate(done, args.interval)
    suffix = f"-step{args.step}" * (args.step is not None) + "-flip" * args.flip
    folder = results.place(done, suffix)
    return results.write(done, folder, wanted, flip=args.flip), folder


def tell(report: dict) -> str:
    """The report as text for a terminal."""
    from lae_jax.metrics import GROUPS
    from lae_jax.report import wording

    if "group_mae" not in report:
        scores = [f"{title}: {number}" for title, number in wording.of_identities(report)]
        return "\n".join([*scores, *wording.warnings(report)])

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
    lines += wording.warnings(report)
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.batch_size < 1 or args.devices < 0:
        raise InputError("--batch-size must be at least 1 and --devices at least 0")
    if not 0 < args.interval < 1:
        raise InputError(f"--interval {args.interval}: between 0 and 1")
    if args.threshold is not None and not 0 < args.threshold <= 100:
        raise InputError(f"--threshold {args.threshold}: an age above 0, at most 100")
    layout.require_run(args.run)
    if args.data:
        layout.require_dataset(args.data)
    from lae_jax.runtime import compile_cache, cpu, parallel

    compile_cache.keep()
    cpu.prepare()
    if args.devices:
        parallel.simulate_devices(args.devices)
    report, folder = evaluate(args)
    print(tell(report))
    print(f"{folder}/: " + ", ".join(sorted(path.name for path in folder.iterdir())))


if __name__ == "__main__":
    # A Ctrl-C ends it at once, also where the exception would come up inside a callback of JAX and be lost.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    console.door(main)
