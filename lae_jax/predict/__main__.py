"""Estimates the ages of the faces in photographs.

    python -m lae_jax.predict --run runs/classify photo.jpg
    python -m lae_jax.predict --run runs/classify photographs/ 'more/*.png' list.csv --out ages.csv --draw drawn/
    python -m lae_jax.predict --run runs/classify --aligned crops/ --interval 0.9 --threshold 18
    python -m lae_jax.predict --run runs/classify --data foo_test.csv --images foo_test/ --results out.csv

Photographs are read upright, faces found and aligned as the run's own were. `--out` ends in .csv or .jsonl (JSON
lines); without it a table is printed. The last form is the contest's: a line `name,age` for each name, in order.
"""

import argparse
import csv
import logging
import pathlib
import time
from collections.abc import Iterator

from lae_jax.runtime import console, cpu, layout

if __name__ == "__main__":
    cpu.prepare()  # before the imports that start threads, so also before `--devices` is known

from lae_jax.data.sources import interface
from lae_jax.export import folder as exported
from lae_jax.faces import crops
from lae_jax.predict import annotate, answers, photographs
from lae_jax.predict.estimator import AgeEstimator
from lae_jax.runtime.errors import InputError, NothingPredicted

__all__ = ["AgeEstimator"]

logger = logging.getLogger("lae_jax")

_ENOUGH = 50  # images that a rate is told of


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m lae_jax.predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("inputs", nargs="*", metavar="FILE|FOLDER|GLOB|CSV", help="photographs")
    add("--run", required=True, help="folder of a run of stage 2 or 3, or of an export")
    add("--step", type=int, help="checkpoint (default: the best)")
    add("--aligned", action="store_true", help="the images are face crops, cut as the run's own were")
    add("--faces", choices=crops.FACES, help="of several in a photograph (default all; with --data largest)")
    add(
        "--allow-other-crop",
        action="store_true",
        help="cut faces as this version does, though the run's were cut otherwise",
    )
    add("--flip", action="store_true", help="average with the mirror image")
    add("--interval", type=float, default=0.9, help="share of the distribution between lower and upper (default 0.9)")
    add("--threshold", type=float, help="also P(age >= THRESHOLD), years")
    add("--distribution", action="store_true", help="with .jsonl: also the probabilities of the ages 0..100")
    add("--out", help="ages.csv or ages.jsonl (default: a table)")
    add("--draw", metavar="DIR", help="write the photographs with boxes and ages there")
    add("--data", help="the contest's list of names, CSV")
    add("--images", help="folder of the names of a CSV (default: the CSV's own)")
    add("--results", help="the contest's results, CSV of name,age")
    add("--devices", type=int, default=0, help="simulated devices on a CPU (default: what the platform has)")
    args = parser.parse_args(argv)
    if (args.data is None) != (args.results is None):
        raise InputError("--data and --results belong together")
    if bool(args.inputs) == bool(args.data):
        raise InputError("name photographs, or the contest's --data and --results")
    if not 0 < args.interval < 1:
        raise InputError(f"--interval {args.interval}: between 0 and 1")
    if args.threshold is not None and not 0 <= args.threshold <= 100:
        raise InputError(f"--threshold {args.threshold}: 0 to 100 years")
    if args.out and not args.out.endswith((".csv", ".jsonl")):
        raise InputError(f"--out {args.out}: a name that ends in .csv or .jsonl")
    if args.distribution and not (args.out or "").endswith(".jsonl"):
        raise InputError("--distribution needs --out NAME.jsonl")
    if args.data and (args.out or args.draw):
        raise InputError("--out and --draw do not go with the contest's --data")
    if args.draw and args.aligned:
        raise InputError("--draw draws boxes into photographs: leave --aligned away")
    for flag, path in (("--out", args.out), ("--results", args.results)):
        if path and not pathlib.Path(path).absolute().parent.is_dir():
            raise InputError(f"{flag} {path}: there is no folder {pathlib.Path(path).parent}")
    if args.draw and pathlib.Path(args.draw).exists() and not pathlib.Path(args.draw).is_dir():
        raise InputError(f"--draw {args.draw} is a file: name a folder")
    if args.devices < 0:
        raise InputError("--devices must be at least 0")
    return args


def found(args: argparse.Namespace, estimator: AgeEstimator, items: Iterator[photographs.Named]):
    recipe = None  # crops are ready
    if not args.aligned:
        recipe = answers.recipe_of(
            args.run,
            estimator,
            args.allow_other_crop,
            faces=args.faces or ("largest" if args.data else "all"),
            undetected="centre" if args.data else "reject",
        )
    return photographs.found(items, recipe, estimator.input.pixels, threads=cpu.cores())


def count(args: argparse.Namespace) -> int:
    """Images that are named. Raises InputError where there is none: before a model is loaded."""
    if args.data:
        return sum(1 for _ in photographs.in_csv(args.data, args.images))
    named = sum(1 for _ in photographs.named(args.inputs, args.images))
    if not named:
        raise InputError(f"{', '.join(args.inputs)}: no image there ({', '.join(interface.IMAGE_SUFFIXES)})")
    return named


def run(args: argparse.Namespace, estimator: AgeEstimator, total: int) -> None:
    """Rows to a table or a file, drawings to a folder."""
    if args.draw:
        pathlib.Path(args.draw).mkdir(parents=True, exist_ok=True)
    if not estimator.is_calibrated:
        logger.info("the intervals are not calibrated, so they may be too narrow or too wide (evaluate --calibrate)")
    images, faces, without, warm = 0, 0, 0, None
    wanted = answers.Wanted(args.interval, args.threshold, args.distribution)
    results = answers.predicted(estimator, found(args, estimator, photographs.named(args.inputs, args.images)), wanted)
    with answers.opened(args.out, args.threshold) as write:
        for one, rows in console.progress(results, total=total, what="predict", unit="images", leave=bool(args.out)):
            write(rows)
            images, faces, without = images + 1, faces + len(one.inputs), without + (not one.inputs)
            if warm is None and faces >= estimator.sizes[-1]:
                warm = images, time.perf_counter()  # networks built, the step compiled, a full batch through
            if args.draw and one.inputs:
                annotate.save(pathlib.Path(args.draw), one.image, rows)
    told = [f"{console.counted(faces, 'face')} in {console.counted(images, 'image')}"]
    if without:
        told.append(f"{console.counted(without, 'image')} without an age")
    if warm and images - warm[0] >= _ENOUGH:
        told.append(f"{(images - warm[0]) / (time.perf_counter() - warm[1]):.1f} images a second after the start-up")
    places = [place for place in (args.out, args.draw) if place]
    logger.info("%s%s", "; ".join(told), f" -> {', '.join(places)}" * bool(places))
    if not faces:
        raise NothingPredicted(
            f"no age was estimated: the reasons stand beside the names{f' in {args.out}' * bool(args.out)}"
        )


def run_contest(args: argparse.Namespace, estimator: AgeEstimator, total: int) -> None:
    """`name,age` for each name, in order; a face that is not found is a centre crop, what cannot be read is nan."""
    faces = 0
    results = answers.predicted(
        estimator, found(args, estimator, photographs.in_csv(args.data, args.images)), answers.Wanted()
    )
    with open(args.results, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        for one, (row, *_) in console.progress(results, total=total, what="predict", unit="images"):
            writer.writerow([row.name, "nan" if row.age is None else repr(row.age)])
            faces += row.age is not None
            if row.age is None:
                logger.warning("%s: %s: its age is nan", row.name, one.reason)
            elif row.cut_by == "centre":
                logger.warning("%s: no face found: a centre crop was taken", row.name)
    if not faces:
        raise NothingPredicted(f"no age was estimated; {args.results} holds nan alone")
    logger.info("%s of %s -> %s", console.counted(faces, "age"), console.counted(total, "name"), args.results)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if not exported.is_export(args.run):
        layout.require_run(args.run)
    total = count(args)
    from lae_jax.runtime import compile_cache, parallel

    if args.devices:
        parallel.simulate_devices(args.devices)
    compile_cache.keep()
    estimator = AgeEstimator.from_run(args.run, args.step, args.flip)
    (run_contest if args.data else run)(args, estimator, total)


if __name__ == "__main__":
    console.door(main)
