"""StableHLO: write and read a model with jax.export, as one file with the weights, for the CPU, CUDA and TPU."""

import pathlib
from typing import TYPE_CHECKING

import numpy as np

from lae_jax.export.form import Readable
from lae_jax.runtime.errors import InputError

if TYPE_CHECKING:
    from lae_jax.export.program import Program

FILE = "model.stablehlo"


def write(folder: pathlib.Path, program: "Program") -> None:
    """Writes a model into a folder."""
    import jax

    from lae_jax.export.program import PLATFORMS

    function = program.portable()
    exported = jax.export.export(jax.jit(lambda image: function(program.variables, image)), platforms=PLATFORMS)
    (folder / FILE).write_bytes(exported(program.image_spec()).serialize())


def read(folder: pathlib.Path) -> Readable:
    """Reads a model from a folder.

    Raises:
      InputError: It may do more than estimate ages.
    """
    import jax
    import jax.numpy as jnp

    from lae_jax.export import portable

    exported = jax.export.deserialize(bytearray((folder / FILE).read_bytes()))
    if exported.ordered_effects or exported.unordered_effects or exported.nr_devices != 1:
        raise InputError(
            f"{folder / FILE} has effects or is for several devices, as no export of lae_jax: export again"
        )
    portable.require_only_computes(folder / FILE, exported.mlir_module_serialized)
    (image,) = exported.in_avals

    @jax.jit
    def rows(image):
        age, distribution = exported.call(image)
        return jnp.concatenate([age[:, None], distribution], axis=1)

    return Readable(rows, _numbers(image.shape), str(np.dtype(image.dtype)))


def _numbers(shape) -> tuple[int | None, ...]:
    return tuple(size if isinstance(size, int) else None for size in shape)
