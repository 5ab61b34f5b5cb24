"""Exports: write a run as a SavedModel, StableHLO or ONNX model or as a model file, check it and read it.

`folder.open_export` reads a folder that `export` wrote. It needs only the runtime of the format.
"""

import os
import pathlib
from typing import Literal, get_args

from lae_jax.runs import preflight
from lae_jax.runtime import layout, model_file
from lae_jax.runtime.errors import InputError, require_whole_numbers, saving, unknown
from lae_jax.runtime.files import is_remote

Format = Literal["saved_model", "stablehlo", "onnx", "safetensors"]


def export(
    run: str | os.PathLike,
    format: Format,
    out: str | os.PathLike,
    *,
    step: int | None = None,
    flip: bool = False,
    page: bool = False,
    onnxruntime_web: str | os.PathLike | None = None,
) -> dict:
    """Exports a run of stage 2 or 3 into a new folder or file, reads the export back and compares it with the run.

    The comparison is exact enough only on the CPU: let JAX use no accelerator (JAX_PLATFORMS=cpu).

    Args:
      run: Folder of the run, a model file, or 'faces-lite0', the model of the package.
      format: 'saved_model' (TensorFlow), 'stablehlo' (jax.export), 'onnx', or 'safetensors' (a model file: the weights
        in half precision, for all programs of lae_jax).
      out: Folder to create; for 'safetensors' the file to create.
      step: Step of the checkpoint (default: the best one).
      flip: Average each estimate with that of the mirror image.
      page: With 'onnx': also write index.html, a page that runs the model in a browser.
      onnxruntime_web: Folder of npm's package onnxruntime-web, for the page (default: node_modules/onnxruntime-web).

    Returns:
      The content of `out`/export.json; for 'safetensors' the same fields, as far as a file has them.

    Raises:
      InputError: An argument or the run cannot be used.
      ExportDiffers: The outputs of the export differ from those of the run. The export is deleted.
      SaveFailed: `out` could not be written.
    """
    check(run, format, out, step, flip, page, onnxruntime_web)
    if format == "safetensors":
        from lae_jax.export import half

        with saving(out):
            return half.export(run, out, step)
    from lae_jax.export import browser, convert

    with saving(out):
        return convert.export(run, format, out, step, flip, (onnxruntime_web or browser.PLACE) if page else None)


def check(
    run: str | os.PathLike,
    format: Format,
    out: str | os.PathLike,
    step: int | None,
    flip: bool = False,
    page: bool = False,
    onnxruntime_web: str | os.PathLike | None = None,
) -> None:
    """Checks arguments of `export` without loading anything.

    Raises:
      InputError: There is no such run, step or format, a package is missing, `out` exists or cannot be written,
        other files are where it is written first, `flip` is set for a model file, or the page is wanted of another
        format than ONNX or without its software.
    """
    if format not in get_args(Format):
        raise InputError(unknown("format", str(format), get_args(Format)))
    if format == "onnx":
        preflight.require_extra("onnx", ("onnx", "onnxruntime"), "ONNX")
    _check_page(format, page, onnxruntime_web)
    require_whole_numbers(step=step)
    preflight.require_model(run, step)
    if is_remote(out):
        raise InputError(f"--out {out}: export to a local disk, where the check reads it back, then copy it")
    if format == "safetensors":
        _check_file(out, flip)
        return
    layout.require_new(out)
    layout.place_of_export(out)


def _check_page(format: Format, page: bool, onnxruntime_web: str | os.PathLike | None) -> None:
    if page and format != "onnx":
        raise InputError(f"--page runs an ONNX model: use --format onnx in place of {format}")
    if onnxruntime_web is not None and not page:
        raise InputError("--onnxruntime-web is for the page: add --page")
    if page:
        from lae_jax.export import browser

        browser.check(onnxruntime_web or browser.PLACE)


def _check_file(out: str | os.PathLike, flip: bool) -> None:
    if flip:
        raise InputError("--flip is chosen when a model file is used: omit it")
    if pathlib.Path(out).suffix != model_file.SUFFIX:
        raise InputError(f"--out {out}: the name of a model file must end in {model_file.SUFFIX}")
    if os.path.lexists(out):
        raise InputError(f"--out {out} exists already: name a new file, or delete this one")
    layout.require_file_place(out)
