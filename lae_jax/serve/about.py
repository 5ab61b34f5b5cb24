"""What a server tells of itself."""

import os
import pathlib

from lae_jax.export import folder
from lae_jax.report import wording
from lae_jax.runs import lineage
from lae_jax.runtime import layout
from lae_jax.runtime.versions import version
from lae_jax.serve import schema

_PACKAGES = ("lae-jax", "jax", "tensorflow", "mtcnn", "pillow", "fastapi", "uvicorn")


def about(
    run: os.PathLike | str, estimator, limit, *, step: int | None, flip: bool, aligned: bool, level: float | None
) -> schema.About:
    """What a server tells of itself.

    Args: run, step, flip, aligned: as `serve.application` has them; estimator: predict.AgeEstimator; limit:
    limits.Limits; level: of the intervals, None where they are not told.
    """
    card, doubts = described(run, step, flip)
    return schema.About(
        model=estimator.source,
        card=card,
        doubts=doubts,
        crop=estimator.crop,
        aligned=aligned,
        input={"image_size": estimator.input.image_size, "resize": estimator.input.resize},
        temperature=estimator.temperature,
        interval=level,
        versions={package: version(package) or "not installed" for package in _PACKAGES},
        limits={"bytes": limit.bytes, "files": limit.files, "pixels": limit.pixels},
    )


def described(run: os.PathLike | str, step: int | None, flip: bool) -> tuple[str, list[str]]:
    """The model card, and what its evaluations warn of; of an export the card says it."""
    if layout.is_export(run):
        return pathlib.Path(run, folder.CARD).read_text("utf-8"), []
    card, evaluations = lineage.run_card(run, step, flip)
    doubts = [
        f"On {report['split']} of {report['data']}: {line}."
        for report in evaluations
        for line in wording.doubts(report)
    ]
    return card, doubts
