"""A page and an API for a run.

Sockets (listen, connection), answers (guard, app), uploads (limits, multipart), shared batches (lanes, batching, ages),
another model (swap), and what those who run it need (operating).
"""

import os
from collections.abc import Collection
from typing import TYPE_CHECKING

from lae_jax.faces import MAX_PIXELS, search
from lae_jax.runtime import layout
from lae_jax.runtime.errors import InputError, require_numbers

if TYPE_CHECKING:
    from starlette.types import ASGIApp

# Most seconds between a signal and the end of the server: less than the 10 that Docker waits before it kills.
# Kubernetes waits 30 and systemd 90.
STOP_SECONDS = 8.0
_LARGEST = 1_000_000_000  # of any limit


def application(
    run: str | os.PathLike,
    *,
    step: int | None = None,
    aligned: bool = False,
    smallest_face: int | None = None,
    rotate: bool = False,
    allow_other_crop: bool = False,
    flip: bool = False,
    interval: float = 0.9,
    hosts: Collection[str] | None = None,
    max_mb: float = 32,
    max_files: int = 32,
    max_pixels: int = MAX_PIXELS,
    max_requests: int = 64,
    max_held_mb: float = 512,
    upload_seconds: float = 60,
    max_batch: int = 32,
    max_wait: float = 5,
    keys: Collection[str] = (),
    metrics: bool = False,
) -> "ASGIApp":
    """Returns the ASGI application that answers requests with ages by a run.

    Its method `reload`, which any thread may call, loads the model that the run has now and uses it from the next
    request on. If that fails, the log says why and the model before goes on.

    Args:
      run: Folder of a run of stage 2 or 3 or of an export, a model file, or 'faces-lite0', the model of the package.
      step: Step of the checkpoint (default: the best one).
      aligned: The images are face crops, cut by the crop contract of the run.
      smallest_face: Side in pixels of the smallest face to find in a photograph, at least 20 (default: a twentieth
        of its longer side). Small faces in large photographs take time (docs/data.md).
      rotate: Search a photograph in which no face is found for sure again, turned by each of the three other quarter
        turns (docs/data.md).
      allow_other_crop: Continue if this version cuts faces by another contract than the run's.
      flip: Average each estimate with that of the mirror image.
      interval: Share of a predicted distribution that its interval holds; answers of a calibrated run have intervals.
      hosts: Host names that clients may use for the server; None: any.
      max_mb: Largest request in megabytes (more: status 413).
      max_files: Most images in a request (more: status 413).
      max_pixels: Most pixels of an image (more: the image gets a reason in place of an age).
      max_requests: Most requests that are processed at once (more: status 429).
      max_held_mb: Most megabytes of all uploads in memory (more: status 429).
      upload_seconds: Most seconds that an upload may take (more: status 408).
      max_batch: Most faces in a batch of the model.
      max_wait: Most milliseconds that a face waits for other faces.
      keys: Keys of clients, which they send as `Authorization: Bearer KEY`; none: no client needs a key.
      metrics: Whether /metrics has numbers for Prometheus.

    Raises:
      InputError: An argument or the run cannot be used.
    """
    check(
        interval,
        max_wait,
        max_mb=max_mb,
        max_files=max_files,
        max_pixels=max_pixels,
        max_requests=max_requests,
        max_held_mb=max_held_mb,
        upload_seconds=upload_seconds,
        max_batch=max_batch,
    )
    search.check(not aligned, smallest_face, rotate)
    # Imported here, so that a program can print its help at once.
    from lae_jax.predict import AgeEstimator, answers
    from lae_jax.serve import about, ages, app, limits, swap

    limit = limits.Limits(
        bytes=int(max_mb * 1e6),
        files=max_files,
        pixels=max_pixels,
        requests=max_requests,
        held=int(max_held_mb * 1e6),
        upload_seconds=upload_seconds,
    )
    how = {"faces": "all", "smallest_face": smallest_face, "rotate": rotate}

    def load(old: swap.Model | None) -> swap.Model:
        estimator = AgeEstimator.from_run(run, step, flip)
        given = ages.Ages(
            estimator,
            None if aligned else answers.recipe_of(os.fspath(run), estimator, allow_other_crop, **how),
            limits=limit,
            batch=max_batch,
            wait=max_wait / 1000,
            interval=interval,
            lanes=old and old.ages.lanes,
            counts=old and old.ages.counts,
        )
        told = about.about(run, estimator, limit, step=step, flip=flip, aligned=aligned, levels=given.levels)
        return swap.Model(given, told)

    first, named = load(None), None if hosts is None else {*layout.names(hosts)}
    return app.create(first.ages, first.about, named, load=load, keys=keys, metrics=metrics)


def check(interval: float, max_wait: float, **limits: float) -> None:
    """Checks numbers of `application` without loading anything.

    Raises:
      InputError: One of them cannot be used.
    """
    require_numbers(interval=interval, max_wait=max_wait, **limits)
    for name, value in limits.items():
        smallest = 0 if name in ("max_mb", "max_held_mb", "upload_seconds") else 1
        if not (smallest <= value <= _LARGEST and value > 0):
            least = "at least 1" if smallest else "more than 0"
            raise InputError(f"{name} is {str(value)[:20]}: it must be {least}, and at most {_LARGEST:,}")
    if limits["max_pixels"] > MAX_PIXELS:
        raise InputError(f"max_pixels is {limits['max_pixels']}: it must be at most {MAX_PIXELS}")
    if limits["max_held_mb"] < limits["max_mb"]:
        raise InputError(f"max_held_mb is {limits['max_held_mb']:g}: it must be at least max_mb, {limits['max_mb']:g}")
    if not 0 <= max_wait <= 10_000:
        raise InputError(f"max_wait is {str(max_wait)[:20]}: it must lie between 0 and 10000 milliseconds")
    if not 0 < interval < 1:
        raise InputError(f"interval is {interval}: it must lie between 0 and 1")
