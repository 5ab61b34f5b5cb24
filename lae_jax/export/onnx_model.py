"""ONNX: write a model with `onnx_graph`, read it with ONNX Runtime. Both need packages of the extra `onnx`."""

import importlib
import pathlib
from types import ModuleType
from typing import TYPE_CHECKING

from lae_jax.export.form import Readable, rows
from lae_jax.runtime.errors import InputError, missing_extra

if TYPE_CHECKING:
    from lae_jax.export.program import Program

FILE = "model.onnx"


def required(name: str) -> ModuleType:
    """Imports a package of the extra.

    Raises:
      InputError: It is not installed. The message has the command that installs it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(missing_extra("onnx", name, "ONNX")) from error


def write(folder: pathlib.Path, program: "Program") -> None:
    """Writes a model into a folder and checks the file, with the shapes of all its tensors."""
    onnx = required("onnx")
    required("onnxruntime")  # it reads the file back
    from lae_jax.export import onnx_graph

    onnx.save_model(onnx_graph.model_of(program), folder / FILE)
    onnx.checker.check_model(str(folder / FILE), full_check=True)


def read(folder: pathlib.Path) -> Readable:
    """Reads a model from a folder. It runs on the CPU."""
    runtime = required("onnxruntime")
    session = runtime.InferenceSession(str(folder / FILE), providers=["CPUExecutionProvider"])
    (image,) = session.get_inputs()

    def forward(images):
        return rows(*session.run(["age", "distribution"], {"image": images}))

    shape = tuple(size if isinstance(size, int) else None for size in image.shape)
    dtypes = {"tensor(uint8)": "uint8"}
    return Readable(forward, shape, dtypes.get(image.type, image.type))
