"""Compares runs that were evaluated on the same images, or shows the results of the long-tail bench.

    python -m lae_jax.report runs/represent runs/classify --out reports/mine
    python -m lae_jax.report runs/longtail --out reports/longtail

Reads folders only: runs that lae_jax.evaluate or their own training evaluated, single evaluations, or one bench. Writes
into OUT: report.html (one self-contained file), table.csv, table.md, table.tex, for several runs differences.* (to the
first run, with paired intervals), and report/ with each picture and its numbers.
"""

import argparse

from etils import epath

from lae_jax import report
from lae_jax.runtime import console, flags, start


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the flags (`argv`, or the command line)."""
    parser = flags.Parser("report", __doc__)
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="folder of a run or of its evaluation; or one folder of lae_jax.longtail"
    )
    parser.add_common("out")
    parser.add_common("split", help="split that the runs were evaluated on (default: the only one that they share)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Writes the comparison of the command line and prints its table and verdict."""
    args = parse_args(argv)
    made, table = report.compare(args.runs, args.out, split=args.split)
    from lae_jax.report import comparison_page

    for part in comparison_page.cut(table):
        console.write(*comparison_page.plain(part).splitlines(), "")
    names = ", ".join(sorted(path.name for path in epath.Path(args.out).iterdir()))
    console.write(*made.warnings, *made.verdict, f"{args.out}/: {names}", f"look at {args.out}/report.html")


if __name__ == "__main__":
    start.program(main)
