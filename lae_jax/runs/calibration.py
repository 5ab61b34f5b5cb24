"""The temperature of a run's distributions, fitted to its validation split: read and write its file in the run."""

from etils import epath

from lae_jax.runtime.errors import InputError
from lae_jax.runtime.files import read_json, write_json

CALIBRATION = "calibration.json"


def read_temperature(workdir: epath.Path, step: int) -> float:
    """Returns the temperature of a run if it was fitted for this step, else 1.

    Raises:
      InputError: The file of the calibration is damaged.
    """
    path = workdir / CALIBRATION
    if not path.exists():
        return 1.0
    content = read_json(path)
    try:
        return float(content["temperature"]) if content["step"] == step else 1.0
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error!r}): calibrate again with evaluate --calibrate") from error


def write_calibration(workdir: epath.Path, content: dict) -> None:
    """Writes a calibration into the run."""
    write_json(workdir / CALIBRATION, content)
