"""Compares methods for a long tail that change only the head, on the features of one backbone.

    python -m lae_jax.longtail --run runs/represent --data data/faces --out runs/longtail
    python -m lae_jax.longtail --run runs/represent --like runs/classify --data data/faces --out runs/longtail

Writes OUT: features/ and heads/ (reused while what they were made from is the same), table.csv, table.md and table.tex
(each method on test, with the setting that validation chose), trials.csv (every setting and rate), head_tail.png,
report.json.
"""

import argparse

from etils import epath

from lae_jax import longtail
from lae_jax.runtime import console, flags, start


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the flags."""
    parser = flags.Parser("longtail", __doc__)
    add, common = parser.add_argument, parser.add_common
    common("run", action="append", dest="runs", required=True, default=None,
        help="folder of a run of stage represent; may be repeated")  # fmt: skip
    common("data", required=True, help="folder of the prepared data set that the runs were trained on")
    common("out", help="folder of the features and the results")
    add("--test", default="test", metavar="NAME", help="name of the split that is only reported on, not used to choose")
    add("--passes", type=int, default=4, metavar="N", help="passes over the augmented training images (default: 4);"
        " 0: plain images")  # fmt: skip
    add("--seeds", type=int, default=5, metavar="N", help="number of seeds of the sample order, dropout and new heads")
    add("--methods", default="", metavar="A,B", help="names of methods (default: all of them)")
    add("--like", action="append", default=[], metavar="RUN", help="run of stage classify that gives batch size,"
        " epochs and optimiser of the heads and is scored too; may be repeated")  # fmt: skip
    add("--epochs", type=float, metavar="N", help="epochs of the heads (default: of --like, else 8)")
    add("--batch-size", type=int, metavar="N", help="batch size of the heads (default: of --like, else the run's)")
    add("--base-learning-rate", type=float, action="append", default=[], dest="base_learning_rates", metavar="RATE",
        help="peak learning rate at batch 256 (default: of --like, else 0.001); may be repeated: validation chooses"
    )  # fmt: skip
    add("--by-fold", action="store_true", help="there is one run for each fold of the data set")
    common("allow_leak")
    common("devices")
    return parser.parse_args(argv)


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
    args["methods"] = [name.strip() for name in args["methods"].split(",") if name.strip()]
    checked = ("runs", "data", "like", "seeds", "passes", "base_learning_rates")
    longtail.check(**{name: args[name] for name in checked})
    longtail.require_place(args["out"])
    start.devices(args.pop("devices"))
    report = longtail.compare(**args)
    console.write(
        *tell(report, args["out"]),
        f"{args['out']}/: table.csv, table.md, table.tex, trials.csv, head_tail.png, report.json",
        f"look at {args['out']}/head_tail.png",
        f"next: python -m lae_jax.report {args['out']} --out reports/longtail",
    )


if __name__ == "__main__":
    start.program(main, interrupt_at_once=True)
