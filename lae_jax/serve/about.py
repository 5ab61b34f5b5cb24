"""The answer of /v1/model: the model, its card, its contract and the limits of the server."""

import os
import pathlib
from typing import TYPE_CHECKING

from lae_jax.export import folder
from lae_jax.report import wording
from lae_jax.runs import lineage
from lae_jax.runtime import files, layout, model_file
from lae_jax.runtime.foreign.places import without_places
from lae_jax.runtime.model_file import builtin
from lae_jax.runtime.versions import version
from lae_jax.serve import schema

if TYPE_CHECKING:
    from lae_jax.predict.estimator import AgeEstimator
    from lae_jax.serve.limits import Limits

_PACKAGES = ("lae-jax", "jax", "tensorflow", "mtcnn", "pillow", "fastapi", "uvicorn")


def about(
    run: os.PathLike | str,
    estimator: "AgeEstimator",
    limit: "Limits",
    *,
    step: int | None,
    flip: bool,
    aligned: bool,
    levels: schema.Levels,
) -> schema.About:
    """Returns the answer of /v1/model.

    Args:
      run: As in `serve.application`.
      estimator: The model.
      limit: Limits of requests.
      step: As in `serve.application`.
      flip: As in `serve.application`.
      aligned: As in `serve.application`.
      levels: Levels of the intervals.
    """
    card, doubts = described(run, step, flip)
    note = builtin.MODELS[run].told if builtin.is_name(run) else None
    run = os.path.abspath(run)
    return schema.About(
        model=without_places(estimator.source, run),
        note=note,
        card=without_places(card, run),
        doubts=[without_places(doubt, run) for doubt in doubts],
        crop=estimator.crop,
        aligned=aligned,
        input={"image_size": estimator.input.image_size, "resize": estimator.input.resize},
        temperature=estimator.temperature,
        interval=levels.interval,
        conformal=levels.conformal,
        versions={package: version(package) or "not installed" for package in _PACKAGES},
        limits={"bytes": limit.bytes, "files": limit.files, "pixels": limit.pixels},
    )


def described(run: os.PathLike | str, step: int | None, flip: bool) -> tuple[str, list[str]]:
    """Returns the model card and the warnings of its evaluations.

    The cards of exports and of the models of the package have the warnings already.
    """
    if builtin.is_name(run):
        return files.read_text(builtin.MODELS[run].card), []
    if not model_file.is_named(run) and layout.is_export(run):
        return files.read_text(pathlib.Path(run, folder.CARD)), []
    card, evaluations = lineage.run_card(run, step, flip)
    doubts = [
        f"On {report['split']} of {report['data']}: {line}."
        for report in evaluations
        for line in wording.doubts(report)
    ]
    return card, doubts
