"""SavedModel: write a model with jax2tf, read it with TensorFlow.

Loading it needs TensorFlow 2.20 or newer, and neither JAX nor this package.
"""

import itertools
import math
import os
import pathlib
import re
from typing import TYPE_CHECKING

from lae_jax.export.form import Readable, require_known, rows
from lae_jax.runtime import layout
from lae_jax.runtime.errors import InputError

if TYPE_CHECKING:
    from lae_jax.export.program import Program

FILE = "saved_model"
SIGNATURE = "serving_default"
_FILES = {"saved_model.pb", "fingerprint.pb", "variables/variables.index", "variables/variables.data-00000-of-00001"}
# Operations of each function in the exports of all models; '' is the graph, which only servers run. Those of the saver
# write files: TensorFlow calls it in a server's graph to restore the variables, and no other function calls it.
_CALL, _WRAPPER = "__inference_call", "__inference_signature_wrapper_call"
_SAVE, _RESTORE = "__inference__traced_save", "__inference__traced_restore"
OPERATIONS = {
    _CALL: {"Identity", "NoOp", "PreventGradient", "ReadVariableOp", "XlaCallModule"},
    _WRAPPER: {"Identity", "NoOp", "StatefulPartitionedCall"},
    _RESTORE: {"AssignVariableOp", "Const", "Identity", "NoOp", "RestoreV2"},
    _SAVE: {
        "Const", "DisableCopyOnRead", "Identity", "MergeV2Checkpoints", "NoOp", "Pack", "ReadVariableOp", "SaveV2",
        "Select", "ShardedFilename", "StaticRegexFullMatch", "StringJoin",
    },
    "": {"Const", "NoOp", "Placeholder", "ReadVariableOp", "StatefulPartitionedCall", "VarHandleOp"},
}  # fmt: skip
# Attributes of XlaCallModule: others name functions of TensorFlow that the module may call.
_MODULE = {"Sout", "Tin", "Tout", "_output_shapes", "module", "platforms", "use_shardy_partitioner", "version"}
_OBJECTS = {"variable", "bare_concrete_function", "function"}
_OBJECTS |= {f"user_object {name}" for name in ("_generic_user_object", "trackable_list_wrapper", "signature_map")}


def write(folder: pathlib.Path, program: "Program") -> None:
    """Writes a model into a folder. Its signature takes `image` and returns `age` and `distribution`."""
    # Before jax2tf, which imports TensorFlow too, with all its log lines.
    from lae_jax.export.program import PLATFORMS
    from lae_jax.faces.tensorflow import tf  # isort: split
    from jax.experimental import jax2tf

    function = jax2tf.convert(
        program.portable(),
        polymorphic_shapes=[None, "(batch, ...)"],
        with_gradient=False,
        native_serialization_platforms=PLATFORMS,
    )
    variables = tf.nest.map_structure(lambda value: tf.Variable(value, trainable=False), program.variables)
    side = program.image_size

    def call(image):
        age, distribution = function(variables, image)
        return {"age": age, "distribution": distribution}

    module = tf.Module()
    module.variables_of_model = tf.nest.flatten(variables)  # TensorFlow saves the variables that the module holds
    spec = tf.TensorSpec([None, side, side, 3], tf.uint8, name="image")
    module.call = tf.function(call, input_signature=[spec], autograph=False)
    tf.saved_model.save(module, str(folder / FILE), signatures={SIGNATURE: module.call})


def read(folder: pathlib.Path) -> Readable:
    """Reads a model from a folder.

    Raises:
      InputError: It holds what no export of lae_jax holds.
    """
    from lae_jax.faces.tensorflow import tf

    _require_only_computes(folder / FILE)
    loaded = tf.saved_model.load(str(folder / FILE))
    image = loaded.signatures[SIGNATURE].structured_input_signature[1]["image"]

    def forward(images):
        # Looked up in each call: `loaded` owns the variables, and a signature alone does not keep them alive.
        outputs = loaded.signatures[SIGNATURE](image=tf.constant(images))
        return rows(outputs["age"], outputs["distribution"])

    return Readable(forward, tuple(image.shape), image.dtype.name)


def _require_only_computes(path: pathlib.Path) -> None:
    """Compares what TensorFlow would load with what `write` makes: operations of TensorFlow can write any file."""
    from tensorflow.core.protobuf import saved_model_pb2

    from lae_jax.export import portable

    inside = [pathlib.Path(place) / name for place, _, names in os.walk(path) for name in names]
    files = {str(one.relative_to(path)) for one in inside if not layout.is_system(one.name)}
    require_known(path, "files", files, _FILES)
    model = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    if len(model.meta_graphs) != 1:
        raise InputError(f"{path} holds {len(model.meta_graphs)} graphs, and an export of lae_jax holds one")
    (meta,) = model.meta_graphs
    graph, objects = meta.graph_def, meta.object_graph_def
    functions = [(function.signature.name, function.node_def) for function in graph.library.function]
    kinds = {name: re.sub(r"_\d+$", "", name) for name, _ in functions}
    require_known(path, "functions", kinds.values(), {*OPERATIONS} - {""})
    public = {kinds.get(name, name) for name in objects.concrete_functions}
    require_known(path, "functions that can be called", public, {_CALL, _WRAPPER})
    require_known(path, "signatures", meta.signature_def, {SIGNATURE, "__saved_model_init_op"})
    for name, nodes in [("", graph.node), *functions]:
        require_known(path, "operations", {node.op for node in nodes}, OPERATIONS[kinds.get(name, "")])
        called = {node.attr["f"].func.name for node in nodes if node.op == "StatefulPartitionedCall"}
        if name:
            require_known(path, "calls", {kinds.get(other, other) for other in called}, {_CALL})
        for node in nodes:
            if node.op == "XlaCallModule":
                require_known(path, "attributes of XlaCallModule", node.attr, _MODULE)
                portable.require_only_computes(path / "saved_model.pb", node.attr["module"].s)
    require_known(path, "objects", map(_kind, objects.nodes), _OBJECTS)
    if graph.library.gradient or meta.asset_file_def:
        raise InputError(f"{path} holds gradients or assets, and no export of lae_jax does")
    _require_as_large_as_files(path, meta)
    _require_one_batch(path, meta)


def _require_as_large_as_files(path: pathlib.Path, meta) -> None:
    """Compares the sizes of constants and variables with those of the files: a shape of a few bytes can stand for any.

    Raises:
      InputError: They are larger.
    """
    graph = meta.graph_def
    nodes = itertools.chain(graph.node, *(function.node_def for function in graph.library.function))
    tensors = [one.tensor for node in nodes for one in node.attr.values() if one.HasField("tensor")]
    variables = [node.variable for node in meta.object_graph_def.nodes if node.WhichOneof("kind") == "variable"]
    for what, file, shapes in (
        ("constants", "saved_model.pb", [one.tensor_shape for one in tensors]),
        ("variables", "variables/variables.data-00000-of-00001", [one.shape for one in variables]),
    ):
        numbers = sum(math.prod(dim.size for dim in shape.dim) for shape in shapes)
        size = os.path.getsize(path / file)
        if numbers > size or any(dim.size < 0 for shape in shapes for dim in shape.dim):
            raise InputError(f"{path} has {what} of {numbers:,} numbers in {size:,} bytes, so it is not opened")


def _require_one_batch(path: pathlib.Path, meta) -> None:
    """Checks that the model runs once, on the images: its memory was computed for a batch of them.

    Raises:
      InputError: It runs more often or on something else.
    """
    from tensorflow.core.framework import types_pb2

    nodes = [node for function in meta.graph_def.library.function for node in function.node_def]
    modules = [node for node in nodes if node.op == "XlaCallModule"]
    calls = [node for node in nodes if node.op == "StatefulPartitionedCall"]
    kinds = {node.variable.dtype for node in meta.object_graph_def.nodes if node.WhichOneof("kind") == "variable"}
    # Only the images are uint8.
    if (
        (len(modules), len(calls)) != (1, 1)
        or [*modules[0].attr["Tin"].list.type][-1:] != [types_pb2.DT_UINT8]
        or kinds - {types_pb2.DT_FLOAT}
    ):
        raise InputError(
            f"{path} does more than to run one model once on images, as no export of lae_jax: export again"
        )


def _kind(node) -> str:
    """The kind of an object in a SavedModel, with what TensorFlow looks up for it."""
    kind = node.WhichOneof("kind")
    looked_up = [node.registered_name, node.registered_saver, *node.saveable_objects]
    if kind == "user_object":
        looked_up.append(node.user_object.identifier)
    return " ".join(filter(None, [str(kind), *looked_up]))
