"""Scores a run on a split of a prepared data set.

    python -m lae_jax.evaluate --run runs/classify --data data/faces --split validation

Writes RUN/evaluation/<data set>-<split>/: report.html, one file to look at that needs nothing else; report.json,
predictions.csv, model_card.md, and report/ with each picture (SVG) and its numbers (CSV).
"""

import argparse
import signal

from lae_jax import evaluate
from lae_jax.runtime import console, flags, layout, start


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = flags.Parser("evaluate", __doc__)
    add, common = parser.add_argument, parser.add_common
    common("run", help="folder of a run")
    common("data", help="folder of a prepared data set (default: the run's own)")
    common("split", help="name of a split, 'all' for every row (default: the run's validation split)")
    common("step")
    common("flip")
    common("interval")
    common("threshold", help="age in years: tell how P(age >= AGE) decides, such as 18")
    add("--baseline", metavar="RUN", help="run that the page compares this one with, evaluated on the same split")
    add("--slice", action="append", default=[], metavar="COLUMN", dest="slices",
        help="tell the scores by a column of the source too, such as sex; may be repeated")  # fmt: skip
    add("--spread", metavar="[MEAN,]STD", help="columns of the labels' mean and standard deviation, for the"
        " epsilon-error")  # fmt: skip
    add("--show-faces", action="store_true", help="show the best, a typical and the worst face of each age group")
    add("--calibrate", action="store_true", help="fit the distributions' temperature on the run's validation split")
    common("allow_other_crop")
    add("--batch-size", type=int, default=256, metavar="N", help="images at a time, over all devices")
    common("devices")
    return parser.parse_args(argv)


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
    args = vars(parse_args(argv))
    layout.require_run(args["run"])
    start.devices(args.pop("devices"))
    report, folder = evaluate.evaluate(**args)
    print(tell(report))
    print(f"{folder}/: " + ", ".join(sorted(path.name for path in folder.iterdir())))


if __name__ == "__main__":
    # A Ctrl-C ends it at once, also where the exception would come up inside a callback of JAX and be lost.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    start.program(main)
