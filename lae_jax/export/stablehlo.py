"""StableHLO by jax.export: one file with the weights in it, for the CPU, CUDA and TPU."""

import pathlib

import numpy as np

from lae_jax.export.form import Readable

FILE = "model.stablehlo"


def write(folder: pathlib.Path, program) -> None:
    """Args: program: program.Program."""
    import jax

    from lae_jax.export.program import PLATFORMS

    function = program.portable()
    exported = jax.export.export(jax.jit(lambda image: function(program.variables, image)), platforms=PLATFORMS)
    (folder / FILE).write_bytes(exported(program.image_spec()).serialize())


def read(folder: pathlib.Path) -> Readable:
    import jax
    import jax.numpy as jnp

    exported = jax.export.deserialize(bytearray((folder / FILE).read_bytes()))
    (image,) = exported.in_avals

    @jax.jit
    def rows(image):
        age, distribution = exported.call(image)
        return jnp.concatenate([age[:, None], distribution], axis=1)

    return Readable(rows, _numbers(image.shape), str(np.dtype(image.dtype)))


def _numbers(shape) -> tuple[int | None, ...]:
    return tuple(size if isinstance(size, int) else None for size in shape)
