"""Exports: write a run as a SavedModel, StableHLO or ONNX model, check it and read it.

`folder.open_export` reads a folder that `export` wrote. It needs only the runtime of the format.
"""

import os
from typing import Literal, get_args

from lae_jax.runs import preflight
from lae_jax.runtime import layout
from lae_jax.runtime.errors import InputError, require_whole_numbers, saving, unknown
from lae_jax.runtime.files import is_remote

Format = Literal["saved_model", "stablehlo", "onnx"]


def export(
    run: str | os.PathLike, format: Format, out: str | os.PathLike, *, step: int | None = None, flip: bool = False
) -> dict:
    """Exports a run of stage 2 or 3 into a new folder, reads the export back and compares it with the run.

    The comparison is exact enough only on the CPU: let JAX use no accelerator (JAX_PLATFORMS=cpu).

    Args:
      run: Folder of the run.
      format: 'saved_model' (TensorFlow), 'stablehlo' (jax.export) or 'onnx'.
      out: Folder to create.
      step: Step of the checkpoint (default: the best one).
      flip: Average each estimate with that of the mirror image.

    Returns:
      The content of `out`/export.json.

    Raises:
      InputError: An argument or the run cannot be used.
      ExportDiffers: The outputs of the export differ from those of the run. The export is deleted.
      SaveFailed: `out` could not be written.
    """
    check(run, format, out, step)
    from lae_jax.export import convert

    with saving(out):
        return convert.export(run, format, out, step, flip)


def check(run: str | os.PathLike, format: Format, out: str | os.PathLike, step: int | None) -> None:
    """Checks arguments of `export` without loading anything.

    Raises:
      InputError: There is no such run, step or format, a package is missing, `out` exists or cannot be written, or
        other files are where it is written first.
    """
    if format not in get_args(Format):
        raise InputError(unknown("format", str(format), get_args(Format)))
    if format == "onnx":
        preflight.require_extra("onnx", ("onnx", "onnxruntime"), "ONNX")
    require_whole_numbers(step=step)
    layout.require_run(run)
    preflight.require_ages(run)
    preflight.require_step(run, step)
    if is_remote(out):
        raise InputError(f"--out {out}: export to a local disk, where the check reads it back, then copy the folder")
    layout.require_new(out)
    layout.place_of_export(out)
