"""ONNX: written by a graph of our own, read by ONNX Runtime. Both are packages of the extra `onnx`."""

import importlib
import pathlib

from lae_jax.export.form import Readable, rows
from lae_jax.runtime.errors import InputError

FILE = "model.onnx"


def required(name: str):
    """The package of the extra. Raises InputError, with the command, where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f"ONNX needs the package {name} ({error}): install the extra, pip install 'lae-jax[onnx]' (in a checkout"
            " pip install -e .[onnx])"
        ) from error


def write(folder: pathlib.Path, program) -> None:
    """Args: program: program.Program. The file is checked with the shapes of all that it computes."""
    onnx = required("onnx")
    required("onnxruntime")  # what is written is read back
    from lae_jax.export import onnx_graph

    onnx.save_model(onnx_graph.model_of(program), folder / FILE)
    onnx.checker.check_model(str(folder / FILE), full_check=True)


def read(folder: pathlib.Path) -> Readable:
    """On the CPU."""
    runtime = required("onnxruntime")
    session = runtime.InferenceSession(str(folder / FILE), providers=["CPUExecutionProvider"])
    (image,) = session.get_inputs()

    def forward(images):
        return rows(*session.run(["age", "distribution"], {"image": images}))

    shape = tuple(size if isinstance(size, int) else None for size in image.shape)
    dtypes = {"tensor(uint8)": "uint8"}
    return Readable(forward, shape, dtypes.get(image.type, image.type))
