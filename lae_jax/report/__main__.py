"""Compares runs that were evaluated on the same images, or shows what the long-tail bench found.

    python -m lae_jax.report runs/represent runs/classify --out reports/mine
    python -m lae_jax.report runs/longtail --out reports/longtail

Reads folders alone: runs that lae_jax.evaluate (or their own training) evaluated, evaluations, one bench. Writes OUT:
report.html (one file that needs nothing else), table.csv, table.md, table.tex, of several runs differences.* (to the
first, with paired intervals), and report/ with each picture and its numbers.
"""

import argparse

from etils import epath

from lae_jax.runtime import console
from lae_jax.runtime.errors import InputError


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m lae_jax.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "runs", nargs="+", metavar="RUN", help="folder of a run or of its evaluation; or one folder of lae_jax.longtail"
    )
    add("--out", required=True, help="folder of the report")
    add("--split", help="split that the runs were evaluated on (default: the one that they have in common)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    from lae_jax.report import comparison_page, loading, page

    args = parse_args(argv)
    places, out = [epath.Path(run) for run in args.runs], epath.Path(args.out)
    if any(out == place for place in places):
        raise InputError(f"--out {out} is one of the folders that are read: name another")
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file: name a folder")
    benches = [place for place in places if comparison_page.is_bench(place)]
    if benches and len(places) > 1:
        raise InputError(f"{benches[0]} is a long-tail bench, which has its own methods to compare: name it alone")
    if benches and args.split:
        raise InputError(f"--split is for runs: {benches[0]} is a long-tail bench, which tells of its test split alone")
    if benches:
        made, table = comparison_page.of_bench(places[0])
        named = {"table": table}
    else:
        made, table, differences = comparison_page.of_runs(loading.together(args.runs, args.split))
        named = {"table": table, **({"differences": differences} if differences.rows else {})}
    out.mkdir(parents=True, exist_ok=True)
    comparison_page.write_tables(out, named)
    page.write(out / loading.PAGE, made)
    print("\n\n".join(comparison_page.plain(part) for part in comparison_page.cut(table)) + "\n")
    for line in [*made.warnings, *made.verdict]:
        print(line)
    print(f"{out}/: " + ", ".join(sorted(path.name for path in out.iterdir())))


if __name__ == "__main__":
    console.door(main)
