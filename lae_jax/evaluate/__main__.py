"""Scores a run on a split of a prepared data set, or verifies people on a list of pairs with a run of stage 1.

    python -m lae_jax.evaluate --run runs/classify --data data/faces --split validation
    python -m lae_jax.evaluate --run runs/pretrain --pairs pairs.txt --images lfw/

Writes RUN/evaluation/<data set>-<split>/ (of a model file NAME.safetensors, NAME/evaluation/... in the current folder;
without --run, faces-lite0/evaluation/...): report.html, one self-contained file; report.json, predictions.csv,
model_card.md, and report/ with each picture (SVG) and its numbers (CSV). With --pairs it writes
RUN/evaluation/<name of the list>-pairs/: report.html, report.json, and pairs.csv with the similarity of each pair.
"""

import argparse
from typing import get_args

from lae_jax import evaluate
from lae_jax.runtime import console, flags, start
from lae_jax.runtime.errors import InputError
from lae_jax.runtime.model_file import builtin


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the flags (`argv`, or the command line)."""
    parser = flags.Parser("evaluate", __doc__)
    add, common = parser.add_argument, parser.add_common
    common("run", help=f"folder of a run, or {flags.MODEL_FILE}")
    common("data", help="folder of a prepared data set (default: the run's own)")
    common("split", help="name of a split; 'all' for every row (default: the run's validation split)")
    add(
        "--pairs",
        metavar="FILE",
        help="list of pairs to verify people on, with a run of stage 1: LFW's pairs.txt, a table of two paths and 1 or"
        " 0, or a .bin file of insightface",
    )
    common("images", help="with --pairs, the folder of the images (default: that of the list)")
    common("aligned", help="with --pairs, the images are face crops that match the crop contract of the run")
    common("step")
    common("flip")
    common("interval")
    common("threshold", help="age in years, such as 18: score P(age >= AGE) as a decision")
    add(
        "--challenge",
        type=float,
        metavar="AGE",
        help="estimated age in years from which people pass an age check, such as 25; needs --threshold",
    )
    add(
        "--costs",
        type=_costs,
        metavar="PASS,DENY,REFER",
        help="what it costs in an age check that a person below the threshold passes, that an older one is denied, and"
        " that a person is referred (default: 100,10,1)",
    )
    add(
        "--baseline",
        metavar="RUN",
        help="run to compare with on the page; it must have an evaluation of the same images",
    )
    add("--slice", action="append", default=[], metavar="COLUMN", dest="slices",
        help="also score the images of each value of this column, such as sex; can be repeated")  # fmt: skip
    add("--spread", metavar="[MEAN,]STD", help="columns of the labels' mean and standard deviation, for the"
        " epsilon-error")  # fmt: skip
    add("--show-faces", action="store_true", help="show the best, a typical and the worst face of each age group")
    add("--calibrate", nargs="?", const="temperature", choices=get_args(evaluate.Calibration), help="fit the"
        " distributions' temperature on the run's validation split; 'conformal': also the intervals of each age"
        " group")  # fmt: skip
    common("allow_other_crop")
    add("--batch-size", type=int, metavar="N", help="images in a batch, over all devices (default: the run's"
        " eval_batch_size)")  # fmt: skip
    common("devices")
    return parser.parse_args(argv)


def _costs(text: str) -> list[float]:
    try:
        return [float(number) for number in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not three numbers: write them as 100,10,1") from error


_OF_RANGE = " (of a range: the share of its probability that is in the interval)"


def _of_ranges(report: dict) -> list[str]:
    """The scores by range and over all images, as lines for a terminal."""
    rows = [
        (one["range"], str(one["n"]), f"{one['in_range']:.1%}", f"{one['distance']:.2f}", f"{one['bias']:+.2f}")
        for one in report["ranges"]
    ]
    table = console.table(["range", "images", "in range", "distance", "bias"], rows).splitlines() if rows else []
    sigma = report["distance_sigma"]
    told = f"distance {report['distance']:.2f}   sigma of the distances {'-' if sigma is None else f'{sigma:.2f}'}"
    if report["in_range"] is not None:
        told += f"   in range {report['in_range']:.1%}"
    lines = [*table, "", f"{told}   n {report['n']}"]
    if not report["n_exact"]:
        lines.append("no age of this split is exact, so there is no MAE, AAR and CS")
    elif report["n_exact"] < report["n"]:
        lines.append(f"of the {report['n_exact']} images with an exact age:")
    return lines


def tell(report: dict) -> list[str]:
    """Returns the report, as lines for a terminal."""
    from lae_jax.report import age_groups, wording

    if "group_count" not in report:
        scores = [f"{title}: {number}" for title, number in wording.of_identities(report)]
        return [*scores, *wording.warnings(report)]

    def number(value, digits=2):
        return "-" if value is None else f"{value:.{digits}f}"

    error, title = age_groups.error_of(report)
    between = {name: f"{low:.2f} to {high:.2f}" for name, (low, high) in report.get("intervals", {}).items()}
    rows = [
        (group, str(count), number(mae), between.get(f"{error}_{group}", "-"), "-" if bias is None else f"{bias:+.2f}")
        for group, count, mae, bias in age_groups.rows(report)
    ]
    header = ["age group", "images", title, "95 % interval", "bias"]
    if not between:
        header, rows = [*header[:3], header[4]], [(*row[:3], row[4]) for row in rows]
    lines = [*console.table(header, rows).splitlines(), ""]
    if error == "distance":
        lines += _of_ranges(report)
    if "mae" in report:
        lines.append(
            f"MAE {number(report['mae'])}   sigma {number(report['sigma'])}   AAR (2021) {number(report['aar_2021'])}"
            f"   AAR (2022) {number(report['aar_2022'])}   mMAE {number(report['mmae'])}   CS@5 {report['cs'][5]:.1%}"
            f"   n {report.get('n_exact', report['n'])}"
        )
    if between:
        shown = {"distance": "distance", "mae": "MAE", "sigma": "sigma"}
        told = [f"{title} {between[name]}" for name, title in shown.items() if name in between]
        lines.append(f"95 % intervals over {report['bootstrap']['units']}: {', '.join(told)}")
    if outside := sum(report["outside_count"]):
        lines.append(
            f"{outside} of the {report['n']} images show babies (age 0) or people over 81. They are in none of the"
            f" paper's eight groups: they count in {'MAE and CS@5' if error == 'mae' else title}, not in"
            f" {'sigma, AAR and mMAE' if error == 'mae' else 'its sigma'}"
        )
    if sure := report.get("interval"):
        held = f"{sure['level']:.0%} intervals hold {sure['coverage']:.1%} of the ages{_OF_RANGE * (error != 'mae')}"
        lines.append(f"{held}; they are {sure['mean_width']:.1f} years wide on average")
    if sure := report.get("conformal"):
        held = "" if sure["coverage"] is None else f" hold {sure['coverage']:.1%} of the exact ages and"
        lines.append(
            f"{sure['level']:.0%} conformal intervals{held} are {sure['mean_width']:.1f} years wide on average"
            + "; the page has them by age group" * (sure["coverage"] is not None)
        )
        if sure["on_these"]:
            lines.append("they were fitted to some or all of these images: evaluate on other images")
    return [*lines, *wording.warnings(report)]


_OF_PAIRS = ("run", "pairs", "images", "aligned", "step", "flip", "allow_other_crop", "batch_size")


def _verify(args: dict) -> None:
    """Verifies people on the list of the command line and prints the scores."""
    plain = vars(parse_args([]))
    if given := [name for name in args if name not in (*_OF_PAIRS, "devices") and args[name] != plain[name]]:
        flag = flags.hyphenated({"slices": "slice"}.get(given[0], given[0]))
        raise InputError(f"--{flag} cannot be used with --pairs: omit --{flag}")
    evaluate.check_pairs(*(args[name] for name in ("run", "pairs", "images", "step", "batch_size")))
    start.devices(args["devices"])
    report, folder = evaluate.verify(**{name: args[name] for name in _OF_PAIRS})
    from lae_jax.evaluate import on_pairs

    names = ", ".join(sorted(path.name for path in folder.iterdir()))
    console.write(*on_pairs.tell(report), f"{folder}/: {names}", f"look at {folder}/report.html")


def main(argv: list[str] | None = None) -> None:
    """Evaluates the run of the command line and prints the scores."""
    args = vars(parse_args(argv))
    if args["pairs"] is not None:
        _verify(args)
        return
    for name in ("pairs", "images", "aligned"):
        if args.pop(name):
            raise InputError(f"--{name} needs --pairs: add --pairs FILE, or omit --{name}")
    evaluate.check(*(args[name] for name in ("interval", "threshold", "challenge", "costs", "batch_size", "calibrate")))
    evaluate.check_inputs(args["run"], args["data"], args["split"], args["step"], args["calibrate"])
    builtin.tell(args["run"])
    start.devices(args.pop("devices"))
    report, folder = evaluate.evaluate(**args)
    names = ", ".join(sorted(path.name for path in folder.iterdir()))
    console.write(*tell(report), f"{folder}/: {names}", f"look at {folder}/report.html")
    if "group_count" in report:
        console.write(f"next: python -m lae_jax.predict --run {args['run']} PHOTOGRAPHS")


if __name__ == "__main__":
    start.program(main, interrupt_at_once=True)
