"""The folder of an export: the model, `model_card.md`, and `export.json`, which describes it and is written last."""

import dataclasses
import os
from collections.abc import Callable, Mapping

import numpy as np
from etils import epath

from lae_jax.export import onnx_model, saved_model, stablehlo
from lae_jax.export.form import Readable
from lae_jax.runs.conformal import Conformal, from_json
from lae_jax.runtime import checksums, files, layout, typed
from lae_jax.runtime.errors import InputError, unknown
from lae_jax.runtime.typed import declared

FILE, CARD = layout.EXPORT, "model_card.md"
VERSION = 1  # of export.json
FORMATS = {"saved_model": saved_model, "stablehlo": stablehlo, "onnx": onnx_model}
_AGAIN = "export it again (python -m lae_jax.export ...)"
_FORM = typed.fields(
    {
        "format": typed.text(),
        "version": typed.one_of((VERSION,)),
        "source": typed.fields({"run": typed.text(), "step": typed.whole(0)}),
        "input": typed.fields({"image_size": typed.whole(*declared.SIDE), "resize": typed.whole(0, declared.SIDE[1])}),
        "crop": declared.CROP,
        "temperature": declared.TEMPERATURE,
        "conformal": typed.optional(declared.CONFORMAL),
        "files": checksums.FORM,
    }
)


@dataclasses.dataclass(frozen=True, eq=False)
class Export:
    """An export that was opened.

    Attributes:
      forward: The model, as in `form.Readable`.
      image_size: Pixels, as in `preprocessing.Input`.
      resize: Pixels, as in `preprocessing.Input`.
      crop: Crop contract.
      temperature: Temperature of the distributions.
      conformal: Conformal intervals; None: the run has none.
      source: The folder, its format and the run, as text.
      content: The content of export.json.
    """

    forward: Callable[[np.ndarray], object]
    image_size: int
    resize: int
    crop: dict
    temperature: float
    conformal: Conformal | None
    source: str
    content: Mapping


def close(path: os.PathLike | str, content: Mapping) -> None:
    """Writes export.json: the content, the version, and size and SHA-256 of each file in the folder."""
    path = epath.Path(path)
    files.write_json(path / FILE, {**content, "version": VERSION, "files": checksums.entries(path, FILE)})


def open_export(path: os.PathLike | str) -> Export:
    """Checks the files of an export and reads its model with the runtime of the format.

    Args:
      path: Folder that `lae_jax.export` wrote, on a local disk.

    Returns:
      The export.

    Raises:
      InputError: The folder is damaged or not an export of lae_jax, or the runtime is not installed. The message names
        the folder.
    """
    if files.is_remote(path):
        raise InputError(
            f"{path}: an export is read from a local disk: copy it there (gcloud storage cp -r {path} DIR)"
        )
    path = epath.Path(path)
    if not (path / FILE).exists():
        raise InputError(f"{path} has no {FILE}: it was not finished, or is not an export of lae_jax; {_AGAIN}")
    content = files.read_json(path / FILE, _FORM, _AGAIN)
    name, size, resize = content["format"], content["input"]["image_size"], content["input"]["resize"]
    source = f"{path} ({name} of {content['source']['run']} step {content['source']['step']})"
    if damage := checksums.difference(path, content["files"], FILE):
        raise InputError(f"{path} is damaged ({damage}): restore it, or {_AGAIN}")
    if name not in FORMATS:
        raise InputError(f"{path / FILE}: " + unknown("format", str(name), FORMATS))
    readable = read(name, path)
    if readable.dtype != "uint8" or tuple(readable.shape) != (None, size, size, 3):
        raise InputError(
            f"{path}: its model takes {readable.dtype} {readable.shape}, but {FILE} says uint8 (None, {size}, {size},"
            f" 3): {_AGAIN}"
        )
    fitted = content.get("conformal") and from_json(content["conformal"])
    return Export(
        readable.forward, size, resize, content["crop"], float(content["temperature"]), fitted, source, content
    )


def read(name: str, path: os.PathLike) -> Readable:
    """Reads the model in a folder without checking the files.

    Args:
      name: A key of `FORMATS`.
      path: The folder.

    Returns:
      The model.

    Raises:
      InputError: The model cannot be read, or the runtime is not installed.
    """
    try:
        return FORMATS[name].read(path)
    except InputError:
        raise
    except Exception as error:  # each runtime raises errors of different types
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"{path}: its {name} cannot be read here ({reason[0]}): {_AGAIN}") from error
