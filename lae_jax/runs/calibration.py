"""The temperature of a run's distributions, fitted to its validation split: read and write its file in the run."""

from etils import epath

from lae_jax.runtime import files, origin
from lae_jax.runtime.typed import declared

CALIBRATION = "calibration.json"


def temperature_of(checkpoint: origin.Checkpoint) -> float:
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
    path = workdir / CALIBRATION
    if not path.exists():
        return 1.0
    content = files.read_json(path, declared.CALIBRATION, "calibrate again with evaluate --calibrate")
    return float(content["temperature"]) if content["step"] == step else 1.0


def write_calibration(workdir: epath.Path, content: dict) -> None:
    """Writes a calibration into the run."""
    files.write_json(workdir / CALIBRATION, content)
