"""Compares methods for a long tail that change only the head, on the features of one backbone.

    python -m lae_jax.longtail --run runs/represent --data data/faces --out runs/longtail
    python -m lae_jax.longtail --run runs/represent --like runs/classify --data data/faces --out runs/longtail
    python -m lae_jax.longtail --again --out runs/longtail
    python -m lae_jax.longtail --over runs/longtail-a --over runs/longtail-b --out runs/recommended

Writes OUT: features/ and heads/ (reused while what they were made from is the same), predictions.npz, table.csv,
table.md and table.tex (each method on test, with the setting that validation chose), trials.csv (every setting and
rate), head_tail.png, report.json. --again makes the tables, the picture and the sentences from predictions.npz alone.
--over chooses one method for several data sets from the predictions.npz of their benches.
"""

import argparse

from etils import epath

from lae_jax import longtail
from lae_jax.runtime import console, flags, start


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the flags."""
    parser = flags.Parser("longtail", __doc__)
    add, common = parser.add_argument, parser.add_common
    common("run", action="append", dest="runs", default=[],
        help="folder of a run of stage represent; may be repeated")  # fmt: skip
    common("data", help="folder of the prepared data set that the runs were trained on")
    common("out", help="folder of the features and the results")
    add("--test", default="test", metavar="NAME", help="name of the split that is only reported on, not used to"
        " choose; '': none, the results are those on validation")  # fmt: skip
    add("--passes", type=int, default=4, metavar="N", help="passes over the augmented training images (default: 4);"
        " 0: plain images")  # fmt: skip
    add("--seeds", type=int, default=5, metavar="N", help="number of seeds of the sample order, dropout and new heads")
    add("--methods", default="", metavar="A,B", help="names of methods (default: all that the labels allow)")
    add("--like", action="append", default=[], metavar="RUN", help="run of stage classify that gives batch size,"
        " epochs and optimiser of the heads and is scored too; may be repeated")  # fmt: skip
    add("--epochs", type=float, metavar="N", help="epochs of the heads (default: of --like, else 8)")
    add("--batch-size", type=int, metavar="N", help="batch size of the heads (default: of --like, else the run's)")
    add("--base-learning-rate", type=float, action="append", default=[], dest="base_learning_rates", metavar="RATE",
        help="peak learning rate at batch 256; may be repeated: validation chooses one for each method (default: "
        f"{', '.join(map(str, longtail.BASE_LEARNING_RATES))}, and that of --like)")  # fmt: skip
    add("--by-fold", action="store_true", help="there is one run for each fold of the data set")
    add("--again", action="store_true", help="make the tables in --out again from the predictions that are kept there")
    add("--over", action="append", default=[], metavar="BENCH", help="folder of results that this program"
        " wrote before; repeat the flag for each data set: choose one method for all, on validation")  # fmt: skip
    common("allow_leak")
    common("devices")
    args = parser.parse_args(argv)
    given = {name for name, value in vars(args).items() if value != parser.get_default(name)} - {"out"}
    if args.again and given != {"again"}:
        parser.error("--again takes --out alone, the folder of a bench that has ended: omit the other flags")
    if args.over and given != {"over"}:
        parser.error("--over takes --out alone, the folder of the results: omit the other flags")
    if not (args.again or args.over or args.runs and args.data):
        parser.error("--run and --data are required, or --again, or --over")
    return args


def tell(report: dict, out: str) -> list[str]:
    """Returns the results, as lines for a terminal."""
    from lae_jax.report import wording

    seconds = report["seconds"]
    return [
        *(epath.Path(out) / "table.md").read_text("utf-8").splitlines(),
        "",
        *report["sentences"].values(),
        f"features {seconds['features']:.0f} s, heads {seconds['heads']:.0f} s",
        *wording.leaks(report),
    ]


def main(argv: list[str] | None = None) -> None:
    """Runs the program."""
    args = vars(parse_args(argv))
    again, over = args.pop("again"), args.pop("over")
    if again:
        _finish(longtail.again(args["out"]), args["out"])
        return
    if over:
        _recommend(over, args["out"])
        return
    args["methods"] = [name.strip() for name in args["methods"].split(",") if name.strip()]
    checked = ("runs", "data", "like", "seeds", "passes", "base_learning_rates")
    longtail.check(**{name: args[name] for name in checked})
    longtail.require_place(args["out"])
    start.devices(args.pop("devices"))
    _finish(longtail.compare(**args), args["out"])


def _recommend(over: list[str], out: str) -> None:
    content = longtail.recommend(over, out)
    console.write(
        *(epath.Path(out) / "table.md").read_text("utf-8").splitlines(),
        "",
        *content["sentences"].values(),
        f"{out}/: {', '.join(longtail.RECOMMENDED)}",
    )


def _finish(report: dict, out: str) -> None:
    console.write(
        *tell(report, out),
        f"{out}/: {', '.join(longtail.TABLES)}, predictions.npz",
        f"look at {out}/head_tail.png",
        f"next: python -m lae_jax.report {out} --out reports/longtail",
    )


if __name__ == "__main__":
    start.program(main, interrupt_at_once=True)
