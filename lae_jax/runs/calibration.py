"""The temperature of a run's distributions, fitted to its validation split and kept beside its checkpoints."""

import json

from etils import epath

from lae_jax.runtime.errors import InputError
from lae_jax.runtime.files import read_json

CALIBRATION = "calibration.json"


def read_temperature(workdir: epath.Path, step: int) -> float:
    """Of a run's calibration, where it was made for this step; else 1."""
    path = workdir / CALIBRATION
    if not path.exists():
        return 1.0
    content = read_json(path)
    try:
        return float(content["temperature"]) if content["step"] == step else 1.0
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error!r}): calibrate again (evaluate --calibrate)") from error


def write_calibration(workdir: epath.Path, content: dict) -> None:
    (workdir / CALIBRATION).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
