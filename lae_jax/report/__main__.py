"""Compares runs that were evaluated on the same images, or shows what the long-tail bench found.

    python -m lae_jax.report runs/represent runs/classify --out reports/mine
    python -m lae_jax.report runs/longtail --out reports/longtail

Reads folders alone: runs that lae_jax.evaluate (or their own training) evaluated, evaluations, one bench. Writes OUT:
report.html (one file that needs nothing else), table.csv, table.md, table.tex, of several runs differences.* (to the
first, with paired intervals), and report/ with each picture and its numbers.
"""

import argparse

from etils import epath

from lae_jax import report
from lae_jax.runtime import flags, start


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = flags.Parser("report", __doc__)
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="folder of a run or of its evaluation; or one folder of lae_jax.longtail"
    )
    parser.add_common("out")
    parser.add_common("split", help="name of the split that was evaluated (default: the one that the runs share)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    made, table = report.compare(args.runs, args.out, split=args.split)
    from lae_jax.report import comparison_page

    print("\n\n".join(comparison_page.plain(part) for part in comparison_page.cut(table)) + "\n")
    for line in [*made.warnings, *made.verdict]:
        print(line)
    print(f"{args.out}/: " + ", ".join(sorted(path.name for path in epath.Path(args.out).iterdir())))


if __name__ == "__main__":
    start.program(main)
