"""Estimates the ages of the faces in photographs.

    python -m lae_jax.predict photo.jpg
    python -m lae_jax.predict --run runs/classify photographs/ 'more/*.png' list.csv --out ages.csv --draw drawn/
    python -m lae_jax.predict --run runs/classify --aligned crops/ --interval 0.9 --threshold 18
    python -m lae_jax.predict --run runs/classify --contest foo_test.csv --images foo_test/ --out out.csv

Photographs are turned upright; faces are found, aligned and cut by the crop contract of the run. `--out` ends in .csv
or .jsonl (JSON lines); without it a table is printed. The last form is that of Guess The Age: it writes a line
`name,age` for each name, in order.
"""

import argparse
import contextlib
import logging
import os
import pathlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, get_args

from lae_jax import predict
from lae_jax.faces import Faces, search
from lae_jax.runtime import console, files, flags, layout, start
from lae_jax.runtime.errors import InputError, NothingPredicted, saving
from lae_jax.runtime.foreign import spreadsheets
from lae_jax.runtime.model_file import builtin

if TYPE_CHECKING:
    from lae_jax.predict.estimator import AgeEstimator
    from lae_jax.predict.photographs import Found, Named

logger = logging.getLogger("lae_jax")

_ENOUGH = 50  # images that a reported speed needs


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads and checks the flags (`argv`, or the command line).

    Raises:
      InputError: A flag cannot be used, or two flags exclude each other.
    """
    parser = flags.Parser("predict", __doc__)
    add, common = parser.add_argument, parser.add_common
    add("inputs", nargs="*", metavar="FILE|FOLDER|GLOB|CSV", help="photographs")
    common("run", help=f"folder of a run of stage 2 or 3 or of an export, or {flags.MODEL_FILE}")
    common("step")
    common("aligned")
    add("--faces", choices=get_args(Faces), help="which of several faces in a photograph to take (default: all; with"
        " --contest: largest)")  # fmt: skip
    common("smallest_face")
    common("rotate")
    common("allow_other_crop")
    common("flip")
    common("interval")
    common("threshold")
    add("--distribution", action="store_true", help="with .jsonl: also write the probabilities of the ages 0 to 100")
    common("out", required=False, metavar="FILE", help="file to write, .csv or .jsonl (default: print a table)")
    add("--draw", metavar="DIR", help="folder for copies of the photographs with boxes and ages")
    common("images")
    add("--contest", metavar="CSV", help="list of file names, as in Guess The Age")
    common("devices")
    args = parser.parse_args(argv)
    predict.check(args.interval, args.threshold)
    search.check(not args.aligned, args.smallest_face, args.rotate)
    if bool(args.inputs) == bool(args.contest):
        raise InputError("name photographs, or a list of names with --contest")
    if args.contest and not (args.out or "").endswith(".csv"):
        raise InputError("--contest needs --out FILE.csv")
    if args.contest and (args.distribution or args.threshold is not None):
        raise InputError("--contest writes names and ages: omit --distribution and --threshold")
    if args.out and not args.out.endswith((".csv", ".jsonl")):
        raise InputError(f"--out {args.out}: the name must end in .csv or .jsonl")
    if args.contest:
        layout.require_regular(args.contest, f"--contest {args.contest}")
    lists = [word for word in (*args.inputs, args.contest) if word and os.path.isfile(word)]
    if args.out and os.path.exists(args.out) and any(os.path.samefile(args.out, each) for each in lists):
        raise InputError(f"--out {args.out} is the list of the images itself: name another file")
    if args.distribution and not (args.out or "").endswith(".jsonl"):
        raise InputError("--distribution needs --out NAME.jsonl")
    if args.contest and args.draw:
        raise InputError("--draw and --contest exclude each other: omit one of them")
    if args.draw and args.aligned:
        raise InputError("--draw draws boxes into photographs: omit --aligned")
    if args.out:
        layout.require_file_place(args.out)
    if args.draw:
        layout.require_writable(args.draw, f"--draw {args.draw}")
    return args


def found(args: argparse.Namespace, estimator: "AgeEstimator", items: "Iterator[Named]") -> "Iterator[Found]":
    """Finds the faces in each image (`photographs.found`)."""
    from lae_jax.predict import answers, photographs

    recipe = None  # crops are ready
    if not args.aligned:
        recipe = answers.recipe_of(
            args.run,
            estimator,
            args.allow_other_crop,
            faces=args.faces or ("largest" if args.contest else "all"),
            undetected="centre" if args.contest else "reject",
            smallest_face=args.smallest_face,
            rotate=args.rotate,
        )
    return photographs.found(items, recipe, estimator.input.pixels)


def count(args: argparse.Namespace) -> int:
    """Counts the images that the command line names, before a model is loaded.

    Raises:
      InputError: There is none.
    """
    from lae_jax.data.sources.image_files import IMAGE_SUFFIXES
    from lae_jax.predict import photographs

    if args.contest:
        return sum(1 for _ in photographs.in_csv(args.contest, args.images))
    named = sum(1 for _ in photographs.named(args.inputs, args.images))
    if not named:
        raise InputError(f"{', '.join(args.inputs)}: no image found ({', '.join(IMAGE_SUFFIXES)})")
    return named


def run(args: argparse.Namespace, estimator: "AgeEstimator", total: int) -> None:
    """Writes the rows to a table or a file, and the drawings to a folder.

    Raises:
      NothingPredicted: No image gave an age.
    """
    from lae_jax.faces import crops
    from lae_jax.predict import annotate, answers, photographs

    if args.draw:
        with saving(args.draw):
            pathlib.Path(args.draw).mkdir(parents=True, exist_ok=True)
        drawings = annotate.Drawings(pathlib.Path(args.draw))
    if not estimator.is_calibrated:
        logger.info("the intervals may be too narrow or too wide: calibrate the run with evaluate --calibrate")
    images, faces, without, warm, counts = 0, 0, 0, None, crops.Counts()
    fields = answers.Fields.of(estimator, args.interval, args.threshold, args.distribution)
    results = answers.predicted(
        estimator, found(args, estimator, photographs.named(args.inputs, args.images, tell=False)), fields
    )
    place = files.growing(args.out) if args.out else contextlib.nullcontext()
    with saving(args.out or ""), place as out, answers.opened(out, fields) as write:
        for one, rows in console.progress(results, total=total, what="predict", unit="images", leave=bool(args.out)):
            write(rows)
            counts.add(one.crops, one.reason)
            images, faces, without = images + 1, faces + len(one.inputs), without + (not one.inputs)
            if warm is None and faces >= estimator.sizes[-1]:
                warm = images, time.perf_counter()  # everything is compiled, and a full batch is done
            if args.draw and one.inputs:
                with saving(args.draw):
                    drawings.save(one.image, [row for row in rows if row.age is not None])
    told = [f"{console.counted(faces, 'face')} in {console.counted(images, 'image')}"]
    if without:
        told.append(f"{console.counted(without, 'image')} without an age")
    if seen := counts.told():
        told.append(seen)
    if warm and images - warm[0] >= _ENOUGH:
        told.append(f"{(images - warm[0]) / (time.perf_counter() - warm[1]):.1f} images a second after the start-up")
    places = [place for place in (args.out, args.draw) if place]
    logger.info("%s%s", "; ".join(told), f" -> {', '.join(places)}" * bool(places))
    if faces:
        logger.info("next: python -m lae_jax.serve --run %s, for a page that shows photographs with ages", args.run)
    if not faces:
        raise NothingPredicted(f"no age was estimated: {args.out or 'the table'} has the reason for each image")


def run_contest(args: argparse.Namespace, estimator: "AgeEstimator", total: int) -> None:
    """Writes `name,age` for each name, in order.

    An image without a face gets the age of its centre crop; an image that cannot be read gets nan.

    Raises:
      NothingPredicted: No image gave an age.
    """
    from lae_jax.faces import crops
    from lae_jax.predict import answers, photographs

    faces, counts = 0, crops.Counts()
    results = answers.predicted(
        estimator, found(args, estimator, photographs.in_csv(args.contest, args.images)), answers.Fields()
    )
    with saving(args.out), files.growing(args.out) as out, open(out, "w", newline="", encoding="utf-8") as file:
        writer = spreadsheets.Writer(file)
        for one, (row, *_) in console.progress(results, total=total, what="predict", unit="images"):
            writer.writerow([row.name, "nan" if row.age is None else repr(row.age)])
            faces += row.age is not None
            counts.add(one.crops, one.reason)
            if row.age is None:
                logger.warning("%s: %s: the age is nan", row.name, one.reason)
            elif row.cut_by == "centre":
                logger.warning("%s: no face found: a centre crop was taken", row.name)
    if not faces:
        raise NothingPredicted(f"no age was estimated: every age in {args.out} is nan, and a warning says why")
    told = [f"{console.counted(faces, 'age')} of {console.counted(total, 'name')}", counts.told()]
    logger.info("%s -> %s", "; ".join(filter(None, told)), args.out)


def main(argv: list[str] | None = None) -> None:
    """Runs the command line."""
    args = parse_args(argv)
    predict.check_inputs(args.run, [args.contest] if args.contest else args.inputs, args.images, args.step)
    builtin.tell(args.run)
    start.devices(args.devices)
    from lae_jax.faces import decoders

    decoders.shared().start()  # while the model is loaded
    total = count(args)  # after the devices: it loads pyarrow
    estimator = predict.AgeEstimator.from_run(args.run, args.step, args.flip)
    (run_contest if args.contest else run)(args, estimator, total)


if __name__ == "__main__":
    start.program(main)
