"""Exports: write a run as a SavedModel, StableHLO or ONNX model, check it and read it.

`folder.open_export` reads a folder that `export` wrote. It needs only the runtime of the format.
"""

import os
from typing import Literal

from lae_jax.runtime import layout

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
    """
    layout.require_run(run)
    layout.require_new(out)
    from lae_jax.export import convert

    return convert.export(run, format, out, step, flip)
