"""ONNX: write a model with `onnx_graph`, read it with ONNX Runtime. Both need packages of the extra `onnx`."""

import importlib
import math
import pathlib
from types import ModuleType
from typing import TYPE_CHECKING

from lae_jax.export.form import MAX_BATCH, Readable, most_held, require_known, require_needs, rows
from lae_jax.runtime.errors import InputError, missing_extra

if TYPE_CHECKING:
    from lae_jax.export.program import Program

FILE = "model.onnx"
# Operations in the exports of all models, with and without flip, temperature and hidden layer.
OPERATIONS = frozenset(
    {
        "Add", "Cast", "Clip", "Conv", "Erf", "Flatten", "Gemm", "GlobalAveragePool", "Identity", "LayerNormalization",
        "Log", "MatMul", "Max", "MaxPool", "Mul", "Pad", "Relu", "Reshape", "Sigmoid", "Slice", "Softmax", "Squeeze",
        "Transpose",
    }
)  # fmt: skip
# Fields of the messages that a model consists of. Others hold functions, training, settings of a session, quantisation
# and the names of other files.
_FIELDS = {
    "ModelProto": {"ir_version", "opset_import", "producer_name", "producer_version", "graph"},
    "OperatorSetIdProto": {"domain", "version"},
    "GraphProto": {"node", "name", "initializer", "input", "output"},
    "NodeProto": {"input", "output", "name", "op_type", "attribute"},
    "AttributeProto": {"name", "type", "f", "i", "ints"},
    "TensorProto": {"dims", "data_type", "name", "raw_data"},
}


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
    """Reads a model from a folder. It runs on the CPU.

    Raises:
      InputError: It holds what no export of lae_jax holds.
    """
    onnx, runtime = required("onnx"), required("onnxruntime")
    content = (folder / FILE).read_bytes()
    model = onnx.load_model_from_string(content)
    for message in (model, *model.opset_import, model.graph, *model.graph.node, *model.graph.initializer):
        _require_fields(folder / FILE, message)
    for node in model.graph.node:
        for attribute in node.attribute:
            _require_fields(folder / FILE, attribute)
    require_known(folder / FILE, "operations", {node.op_type for node in model.graph.node}, OPERATIONS)
    require_known(folder / FILE, "sets of operations", {repr(one.domain) for one in model.opset_import}, {"''"})
    require_needs(folder / FILE, *_needs(onnx, model))
    # The bytes that were checked: a path would let the runtime look for files beside it.
    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (image,) = session.get_inputs()

    def forward(images):
        return rows(*session.run(["age", "distribution"], {"image": images}))

    shape = tuple(size if isinstance(size, int) else None for size in image.shape)
    dtypes = {"tensor(uint8)": "uint8"}
    return Readable(forward, shape, dtypes.get(image.type, image.type))


def _needs(onnx: ModuleType, model) -> tuple[float, float]:
    """Returns the most bytes of tensors that exist at once for the largest batch, and the work; infinite if unknown.

    It writes that batch into the model in place of the open one.
    """
    for image in model.graph.input:
        image.type.tensor_type.shape.dim[0].dim_value = MAX_BATCH
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")  # as it follows from the nodes
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    known = {value.name: value.type.tensor_type for value in (*graph.input, *graph.value_info, *graph.output)}
    shapes = {name: _shape(tensor) for name, tensor in known.items()}
    shapes |= {tensor.name: [*map(float, tensor.dims)] for tensor in graph.initializer}
    sizes = {name: _width(onnx, tensor) * math.prod(shapes[name]) for name, tensor in known.items()}
    memory = most_held(
        (node.input, {name: sizes.get(name, math.inf) for name in node.output}, 0) for node in graph.node
    )
    return memory, sum(_work(node, shapes) for node in graph.node)


def _shape(tensor) -> list[float]:
    if not tensor.HasField("shape"):
        return [math.inf]
    return [float(one.dim_value) if one.HasField("dim_value") else math.inf for one in tensor.shape.dim]


def _width(onnx: ModuleType, tensor) -> int:
    return onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).itemsize


def _work(node, shapes: dict[str, list[float]]) -> float:
    """Returns the number of multiplications and of numbers that are moved."""
    given = [shapes.get(name, [math.inf]) for name in node.input if name]
    moved, made = sum(map(math.prod, given)), sum(math.prod(shapes.get(name, [math.inf])) for name in node.output)
    each = 1.0  # for each number of the result
    if node.op_type == "Conv":
        each = math.prod(given[1][1:])
    elif node.op_type == "MatMul":
        each = given[0][-1]
    elif node.op_type == "Gemm":  # of matrices that may be transposed
        each = math.prod(given[0]) / max(1.0, shapes[node.output[0]][0])
    elif node.op_type == "MaxPool":
        each = math.prod(size for one in node.attribute if one.name == "kernel_shape" for size in one.ints)
    return moved + each * made


def _require_fields(path: pathlib.Path, message) -> None:
    kind = message.DESCRIPTOR.name
    require_known(path, f"fields of {kind}", {field.name for field, _ in message.ListFields()}, _FIELDS[kind])
