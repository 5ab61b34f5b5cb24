"""Ages of the faces in photographs and in face crops: `predict` and `AgeEstimator`."""

import glob
import itertools
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from lae_jax.faces import Faces, search
from lae_jax.runs import preflight
from lae_jax.runtime import layout
from lae_jax.runtime.errors import InputError, require_numbers, require_whole_numbers

if TYPE_CHECKING:
    from lae_jax.predict.answers import Row
    from lae_jax.predict.estimator import AgeEstimator

__all__ = ["AgeEstimator", "predict"]


def __getattr__(name: str):
    # Loaded on first use, so that a program can print its help at once.
    if name == "AgeEstimator":
        from lae_jax.predict.estimator import AgeEstimator

        return AgeEstimator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def predict(
    run: str | os.PathLike,
    photographs: str | os.PathLike | Sequence[str | os.PathLike],
    *,
    step: int | None = None,
    flip: bool = False,
    aligned: bool = False,
    faces: Faces = "all",
    smallest_face: int | None = None,
    rotate: bool = False,
    images: str | os.PathLike | None = None,
    interval: float = 0.9,
    threshold: float | None = None,
    distribution: bool = False,
    allow_other_crop: bool = False,
) -> "Iterator[Row]":
    """Estimates the ages of the faces in photographs, one photograph after the other.

    Args:
      run: Folder of a run of stage 2 or 3 or of an export, a model file, or 'faces-lite0', the model of the package.
      photographs: Files, folders (at any depth), globs and CSVs of paths.
      step: Step of the checkpoint (default: the best one).
      flip: Average each estimate with that of the mirror image.
      aligned: The images are face crops, cut by the crop contract of the run.
      faces: Which of several faces in a photograph to take.
      smallest_face: Side in pixels of the smallest face to find in a photograph, at least 20 (default: a twentieth
        of its longer side). Small faces in large photographs take time (docs/data.md).
      rotate: Search a photograph in which no face is found for sure again, turned by each of the three other quarter
        turns (docs/data.md).
      images: Folder that the paths in a CSV start from (default: the CSV's own).
      interval: Share of a predicted distribution that its interval holds, between 0 and 1; also the level of the
        conformal intervals, where the run has them.
      threshold: Age in years; the rows then have P(age >= threshold).
      distribution: The rows have the probabilities of the ages 0 to 100.
      allow_other_crop: Continue if this version cuts faces by another contract than the run's.

    Returns:
      An iterator: a row for each face, and for each image without an age a row with the reason.

    Raises:
      InputError: An argument or the run cannot be used, or a glob matches nothing.
    """
    check(interval, threshold)
    search.check(not aligned, smallest_face, rotate)
    check_inputs(run, layout.names(photographs), images, step)
    from lae_jax.predict import answers
    from lae_jax.predict import photographs as named
    from lae_jax.predict.estimator import AgeEstimator

    items = named.named(layout.names(photographs), None if images is None else os.fspath(images))
    estimator = AgeEstimator.from_run(run, step, flip)
    how = {"faces": faces, "smallest_face": smallest_face, "rotate": rotate}
    recipe = None if aligned else answers.recipe_of(os.fspath(run), estimator, allow_other_crop, **how)
    fields = answers.Fields.of(estimator, interval, threshold, distribution)
    found = named.found(items, recipe, estimator.input.pixels)
    return itertools.chain.from_iterable(rows for _, rows in answers.predicted(estimator, found, fields))


def check(interval: float, threshold: float | None) -> None:
    """Checks the share of an interval and the age of a threshold.

    Raises:
      InputError: `interval` does not lie between 0 and 1, or `threshold` is not an age from 0 to 100.
    """
    require_numbers(interval=interval, threshold=threshold)
    if not 0 < interval < 1:
        raise InputError(f"interval is {interval}: it must lie between 0 and 1")
    if threshold is not None and not 0 <= threshold <= 100:
        raise InputError(f"threshold is {threshold}: it must be an age from 0 to 100")


def check_inputs(
    run: str | os.PathLike, photographs: Sequence[str], images: str | os.PathLike | None, step: int | None
) -> None:
    """Checks what `predict` reads, without loading anything.

    Args:
      run: As in `predict`.
      photographs: Files, folders, globs and CSVs.
      images: Folder of the paths in a CSV.
      step: Step of the checkpoint.

    Raises:
      InputError: There is no such run or step, a CSV or the folder of images is missing, or nothing that is named
        exists.
    """
    require_whole_numbers(step=step)
    preflight.require_model(run, step, may_be_export=True)
    preflight.require_images(images)
    found = [word for word in photographs if os.path.exists(word) or glob.has_magic(word)]
    for word in photographs:
        if word.lower().endswith(".csv"):
            layout.require_regular(word, word)
        # One of several photographs that is missing gets a row with the reason.
        if word not in found and (word.lower().endswith(".csv") or not found):
            raise InputError(f"{word}: no such file or folder{layout.hint(word)}")
        if glob.has_magic(word) and not os.path.exists(word) and next(preflight.matching(word), None) is None:
            raise InputError(f"{word}: no file matches")
