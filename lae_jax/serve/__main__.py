"""A page and an API that give the ages of faces in photographs, on this machine.

    python -m lae_jax.serve --run runs/classify                       # then open http://127.0.0.1:8000/
    curl -F images=@photo.jpg -F images=@other.jpg http://127.0.0.1:8000/v1/predict

Photographs are worked on in memory: nothing is stored and nothing is sent anywhere. SIGTERM finishes what was accepted
and ends with status 0. It needs the extra: pip install -e .[serve]
"""

import argparse
import importlib.metadata
import ipaddress
import logging
import math
import pathlib

from lae_jax.runs import lineage
from lae_jax.runtime import console

if __name__ == "__main__":
    from lae_jax.runtime import cpu

    cpu.prepare()  # before the imports that start threads, so also before `--devices` is known

from lae_jax.export import folder
from lae_jax.faces import images
from lae_jax.predict import answers
from lae_jax.predict.estimator import AgeEstimator
from lae_jax.runtime.errors import InputError

logger = logging.getLogger("lae_jax")

_PACKAGES = ("lae-jax", "jax", "tensorflow", "mtcnn", "pillow", "fastapi", "uvicorn")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m lae_jax.serve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--run", required=True, help="folder of a run of stage 2 or 3, or of an export")
    add("--step", type=int, help="checkpoint (default: the best)")
    add("--aligned", action="store_true", help="the images are face crops, cut as the run's own were")
    add("--allow-other-crop", action="store_true", help="cut faces as this version does, though the run's were not")
    add("--flip", action="store_true", help="average with the mirror image")
    add("--interval", type=float, default=0.9, help="level of the intervals of a calibrated run (default 0.9)")
    add("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1: this machine alone)")
    add("--port", type=int, default=8000, help="0: a free one (default 8000)")
    add("--allow-host", action="append", default=[], metavar="NAME", help="another name that clients may call it by")
    add("--max-mb", type=float, default=32, help="of a request (default 32; more: 413)")
    add("--max-files", type=int, default=32, help="in a request (default 32; more: 413)")
    add(
        "--max-pixels",
        type=int,
        default=images.MAX_PIXELS,
        help=f"of an image (default, and most, {images.MAX_PIXELS})",
    )
    add("--max-requests", type=int, default=64, help="worked on at once (default 64; more: 429)")
    add("--max-held-mb", type=float, default=512, help="of all uploads in memory (default 512; more: 429)")
    add("--upload-seconds", type=float, default=60, help="that a request may take to arrive (default 60; then 408)")
    add("--max-batch", type=int, default=32, help="faces that the model takes together (default 32)")
    add("--max-wait", type=float, default=5, help="milliseconds that one waits for others (default 5)")
    add("--devices", type=int, default=0, help="simulated devices on a CPU (default: what the platform has)")
    args = parser.parse_args(argv)
    for name in ("max_mb", "max_files", "max_pixels", "max_requests", "max_held_mb", "upload_seconds", "max_batch"):
        if not 0 < getattr(args, name) < math.inf:
            raise InputError(f"--{name.replace('_', '-')} {getattr(args, name):g}: more than 0")
    if args.max_pixels > images.MAX_PIXELS:
        raise InputError(f"--max-pixels {args.max_pixels}: at most {images.MAX_PIXELS}")
    if args.max_held_mb < args.max_mb:
        raise InputError(f"--max-held-mb {args.max_held_mb:g}: at least --max-mb, {args.max_mb:g}")
    if not 0 <= args.max_wait <= 10_000:
        raise InputError(f"--max-wait {args.max_wait:g}: 0 to 10000 milliseconds")
    if not 0 < args.interval < 1:
        raise InputError(f"--interval {args.interval}: between 0 and 1")
    if not 0 <= args.port < 65536:
        raise InputError(f"--port {args.port}: 0 to 65535")
    if args.devices < 0:
        raise InputError("--devices must be at least 0")
    return args


def described(args: argparse.Namespace) -> tuple[str, list[str]]:
    """The model card, and what its evaluations warn of; of an export the card says it."""
    if folder.is_export(args.run):
        return pathlib.Path(args.run, folder.CARD).read_text("utf-8"), []
    from lae_jax.report import wording

    card, evaluations = lineage.run_card(args.run, args.step, args.flip)
    doubts = [
        f"On {report['split']} of {report['data']}: {line}."
        for report in evaluations
        for line in wording.doubts(report)
    ]
    return card, doubts


def hosts_of(args: argparse.Namespace) -> set[str] | None:
    """Names that clients may call the server by: on this machine alone these are known, else any will do."""
    try:
        loopback = args.host == "localhost" or ipaddress.ip_address(args.host).is_loopback
    except ValueError:
        loopback = False
    return {"localhost", "127.0.0.1", "::1", args.host, *args.allow_host} if loopback or args.allow_host else None


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def application_of(args: argparse.Namespace, estimator: AgeEstimator):
    """The ASGI application for an estimator."""
    from lae_jax.serve import ages, app, limits, schema

    limited = limits.Limits(
        bytes=int(args.max_mb * 1e6),
        files=args.max_files,
        pixels=args.max_pixels,
        requests=args.max_requests,
        held=int(args.max_held_mb * 1e6),
        upload_seconds=args.upload_seconds,
    )
    given = ages.Ages(
        estimator,
        None if args.aligned else answers.recipe_of(args.run, estimator, args.allow_other_crop, faces="all"),
        limits=limited,
        batch=args.max_batch,
        wait=args.max_wait / 1000,
        interval=args.interval,
    )
    card, doubts = described(args)
    about = schema.About(
        model=estimator.source,
        card=card,
        doubts=doubts,
        crop=estimator.crop,
        aligned=args.aligned,
        input={"image_size": estimator.input.image_size, "resize": estimator.input.resize},
        temperature=estimator.temperature,
        interval=args.interval if given.calibrated else None,
        versions={package: version(package) for package in _PACKAGES},
        limits={"bytes": limited.bytes, "files": limited.files, "pixels": limited.pixels},
    )
    return app.create(given, about, hosts_of(args))


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    try:
        from lae_jax.serve import app, listen  # noqa: F401  (app: of application_of)
    except ImportError as error:
        raise InputError(f"{error.name} is missing: install the extra with pip install -e .[serve]") from error
    from lae_jax.runtime import compile_cache, parallel

    if args.devices:
        parallel.simulate_devices(args.devices)
    compile_cache.keep()
    # First, since a port that is taken is told at once, and loading takes a while.
    with listen.bind(args.host, args.port) as listening:
        application = application_of(args, AgeEstimator.from_run(args.run, args.step, args.flip))
        logger.info("%s (Ctrl-C ends it); the first answers wait until the model is warm", listen.address(listening))
        listen.serve(application, listening)


if __name__ == "__main__":
    console.door(main)
