"""What was fitted to a run's validation split, the temperature and the conformal intervals: its file in the run."""

import logging
from typing import TYPE_CHECKING

from etils import epath

from lae_jax.runs import conformal
from lae_jax.runtime import files
from lae_jax.runtime.typed import declared

if TYPE_CHECKING:  # it imports JAX, which exports run without
    from lae_jax.runtime import origin

logger = logging.getLogger("lae_jax")

CALIBRATION = "calibration.json"


def temperature_of(checkpoint: "origin.Checkpoint") -> float:
    """Returns the temperature of a run at this checkpoint, or of a model file.

    Raises:
      InputError: The file of the calibration is damaged.
    """
    if checkpoint.file is not None:
        return float(checkpoint.file["temperature"])
    return read_temperature(checkpoint.workdir, checkpoint.step)


def read_temperature(workdir: epath.Path, step: int) -> float:
    """Returns the temperature of a run if it was fitted for this step, else 1.

    Raises:
      InputError: The file of the calibration is damaged.
    """
    return float(_read(workdir, step).get("temperature", 1.0))


def conformal_of(checkpoint: "origin.Checkpoint", flip: bool) -> conformal.Conformal | None:
    """Returns the conformal intervals of a run at this checkpoint, or of a model file; None: there are none.

    They were fitted to estimates with or without `flip`, and a warning says so if these are made otherwise.

    Raises:
      InputError: The file of the calibration is damaged.
    """
    content = stored_conformal(checkpoint, flip)
    return content and conformal.from_json(content)


def stored_conformal(checkpoint: "origin.Checkpoint", flip: bool | None = None) -> dict | None:
    """Returns the content of `conformal_of` for a file; with `flip` None, whatever estimates it was fitted to."""
    if checkpoint.file is not None:
        content = checkpoint.file.get("conformal")
    else:
        content = _read(checkpoint.workdir, checkpoint.step).get("conformal")
    if content is None or flip in (None, content["flip"]):
        return content
    logger.warning(
        "no conformal intervals are given: those of %s were fitted %s --flip. Fit them again with evaluate --calibrate"
        " conformal%s (of a model file: calibrate its run and export it again)",
        checkpoint.workdir,
        "with" if content["flip"] else "without",
        " --flip" * flip,
    )
    return None


def _read(workdir: epath.Path, step: int) -> dict:
    """The calibration of a run at a step; {} without one."""
    path = workdir / CALIBRATION
    if not path.exists():
        return {}
    content = files.read_json(path, declared.CALIBRATION, "calibrate again with evaluate --calibrate")
    return content if content["step"] == step else {}


def write_calibration(workdir: epath.Path, content: dict) -> None:
    """Writes a calibration into the run."""
    files.write_json(workdir / CALIBRATION, content)
