"""Trains settings x folds x seeds of a config, and says which setting is surely better than which.

    python -m lae_jax.sweep --config represent --seeds 0 1 2 --set config.optim.base_learning_rate=0.01,0.1 --out runs/a
    python -m lae_jax.sweep --config configs/small.py:tuned --fold all --out runs/folds
    python -m lae_jax.sweep --file sweep.toml --out runs/mine

Each run is trained by lae_jax.main in a process of its own and is an ordinary run: OUT/runs/<setting>-fold<k>-seed<s>.
The same command goes on where it stopped. Several may run at the same time on one OUT: each run is trained once.

Writes into OUT: report.html (one self-contained file), table.* (means, spreads and joint intervals), differences.*
(each pair of settings), runs.* (each run), each as CSV, Markdown and LaTeX; sweep.json (the runs), logs/, failed/,
claims/.
"""

import argparse
import dataclasses
import re

from lae_jax import sweep
from lae_jax.runtime import console, flags, start
from lae_jax.runtime.errors import InputError


def _folds(word: str) -> int | str:
    return word if word == "all" else int(word)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the flags (`argv`, or the command line)."""
    parser = flags.Parser("sweep", __doc__)
    add, common = parser.add_argument, parser.add_common
    add("--config", metavar="FILE", help="config file, or the name of a config that the package ships")
    add("--file", metavar="FILE", help="file of the sweep (.toml or .json) with config, seeds, folds, set, settings;"
        " flags replace what it says")  # fmt: skip
    add("--seeds", type=int, nargs="+", metavar="SEED", help="seeds of the runs (default: 0)")
    add("--fold", dest="folds", type=_folds, nargs="+", metavar="K", help="numbers of folds, one model each; all: those"
        " of the data set (default: no folds)")  # fmt: skip
    add("--set", action="append", default=[], metavar="FIELD=VALUE,VALUE", help="values of a field of the config to"
        " compare, or one value for all runs; may be repeated: the settings are all combinations")  # fmt: skip
    common("out", help="folder of the sweep")
    common("split", help="name of a split to score the runs on (default: the validation split of each run)")
    add("--only", metavar="I/N", help="train the I-th of N shares of the runs, from 1 to N (for the tasks of an array)")
    common("allow_leak")
    add("--deterministic", action="store_true", help="make runs on GPUs repeat bit for bit, which makes them slower")
    common("devices")
    return parser.parse_args(argv)


def _wanted(args: argparse.Namespace):
    """Returns the sweep of a file and of the flags."""
    from lae_jax.sweep import grid

    found = grid.read(args.file) if args.file else grid.Sweep()
    changed: dict = {}
    if args.config:
        changed["config"] = args.config
    if args.seeds:
        changed["seeds"] = args.seeds
    if args.folds:
        if "all" in args.folds and len(args.folds) > 1:
            raise InputError("--fold: name numbers, or all")
        changed["folds"] = "all" if "all" in args.folds else args.folds
    pairs = [grid.values_of(word) for word in args.set]
    if len({field for field, _ in pairs}) < len(pairs):
        raise InputError("--set names a field twice: write all its values behind one =, with commas")
    return dataclasses.replace(found, **changed, fields={**found.fields, **dict(pairs)})


def _share(word: str | None) -> tuple[int, int] | None:
    if word is None:
        return None
    if not (match := re.fullmatch(r"(\d+)/(\d+)", word)):
        raise InputError(f"--only {word}: write I/N, the I-th of N shares, such as 1/4")
    return int(match[1]), int(match[2])


def main(argv: list[str] | None = None) -> None:
    """Trains the sweep of the command line and prints its table and verdict."""
    args = parse_args(argv)
    further = ["--allow_leak"] * args.allow_leak + ["--deterministic"] * args.deterministic
    further += [f"--devices={args.devices}"] * bool(args.devices)
    made = sweep.run(_wanted(args), args.out, split=args.split, only=_share(args.only), flags=further)
    if made is None:
        return
    from lae_jax.report import comparison_page

    page, tables = made
    for part in comparison_page.cut(tables["table"]):
        console.write(*comparison_page.plain(part).splitlines(), "")
    console.write(*page.warnings, *page.verdict, f"look at {args.out}/report.html")


if __name__ == "__main__":
    start.program(main)
