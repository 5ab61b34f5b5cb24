"""Models as other programs call them: one file a format, the folder that they lie in, and their checks.

`folder.open_export` reads a folder that `export` wrote; it needs the format's own runtime and no model of ours.
"""

import os
from typing import Literal

from lae_jax.runtime import layout

Format = Literal["saved_model", "stablehlo", "onnx"]


def export(
    run: str | os.PathLike, format: Format, out: str | os.PathLike, *, step: int | None = None, flip: bool = False
) -> dict:
    """Exports a run of stage 2 or 3 into a new folder, reads it back and compares it with the run.

    The comparison is exact enough on CPUs alone: let JAX have no accelerator (JAX_PLATFORMS=cpu).

    Args:
      run: Folder of the run.
      format: Of TensorFlow (SavedModel), of jax.export (StableHLO), or ONNX.
      out: Folder to make.
      step: Step of the checkpoint to take (default: the best one).
      flip: Average each estimate with that of the mirror image.

    Returns:
      What stands in `out`/export.json.

    Raises:
      InputError: An argument or the run cannot be used.
      ExportDiffers: The export computes something else than the run; nothing is left of it.
    """
    layout.require_run(run)
    layout.require_new(out)
    from lae_jax.export import convert

    return convert.export(run, format, out, step, flip)
