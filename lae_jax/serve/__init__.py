"""The page and the API of a run: uploads (limits), shared batches (batching, ages), answers (app), sockets (listen)."""

import math
import os
from collections.abc import Collection

from lae_jax.faces import MAX_PIXELS
from lae_jax.runtime.errors import InputError


def application(
    run: str | os.PathLike,
    *,
    step: int | None = None,
    aligned: bool = False,
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
):
    """The ASGI application that answers requests with a run's ages.

    Args:
      run: Folder of a run of stage 2 or 3, or of an export.
      step: Step of the checkpoint to take (default: the best one).
      aligned: The images are face crops, cut as the run's own were.
      allow_other_crop: Go on although faces are cut otherwise than the run's own.
      flip: Average each estimate with that of the mirror image.
      interval: Share of a predicted distribution that its interval holds; told of calibrated runs.
      hosts: Names that clients may call the server by; None: any.
      max_mb: Megabytes of a request (more: status 413).
      max_files: Images in a request (more: 413).
      max_pixels: Pixels of an image (more: 413).
      max_requests: Requests worked on at once (more: 429).
      max_held_mb: Megabytes of all uploads in memory (more: 429).
      upload_seconds: Seconds for an upload to arrive (later: 408).
      max_batch: Faces that the model takes together.
      max_wait: Milliseconds that a face waits for others.

    Raises:
      InputError: An argument or the run cannot be used.
    """
    limited = {
        "max_mb": max_mb,
        "max_files": max_files,
        "max_pixels": max_pixels,
        "max_requests": max_requests,
        "max_held_mb": max_held_mb,
        "upload_seconds": upload_seconds,
        "max_batch": max_batch,
    }
    for name, value in limited.items():
        if not 0 < value < math.inf:
            raise InputError(f"{name} is {value:g}: it must be more than 0")
    if max_pixels > MAX_PIXELS:
        raise InputError(f"max_pixels is {max_pixels}: it must be at most {MAX_PIXELS}")
    if max_held_mb < max_mb:
        raise InputError(f"max_held_mb is {max_held_mb:g}: it must be at least max_mb, {max_mb:g}")
    if not 0 <= max_wait <= 10_000:
        raise InputError(f"max_wait is {max_wait:g}: it must lie between 0 and 10000 milliseconds")
    if not 0 < interval < 1:
        raise InputError(f"interval is {interval}: it must lie between 0 and 1")
    # Here and not above: a program tells its flags without loading all this.
    from lae_jax.predict import AgeEstimator, answers
    from lae_jax.serve import about, ages, app, limits

    estimator = AgeEstimator.from_run(run, step, flip)
    limit = limits.Limits(
        bytes=int(max_mb * 1e6),
        files=max_files,
        pixels=max_pixels,
        requests=max_requests,
        held=int(max_held_mb * 1e6),
        upload_seconds=upload_seconds,
    )
    given = ages.Ages(
        estimator,
        None if aligned else answers.recipe_of(os.fspath(run), estimator, allow_other_crop, faces="all"),
        limits=limit,
        batch=max_batch,
        wait=max_wait / 1000,
        interval=interval,
    )
    level = interval if given.calibrated else None
    told = about.about(run, estimator, limit, step=step, flip=flip, aligned=aligned, level=level)
    return app.create(given, told, None if hosts is None else {*hosts})
