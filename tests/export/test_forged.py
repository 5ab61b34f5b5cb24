"""Exports of strangers: what our own exports do not have is refused before a runtime loads it."""

import re
import shutil

import jax
import numpy as np
import pytest
from programs import TOWERS, program_of

from lae_jax import models
from lae_jax.export import convert, folder, form, portable, program, saved_model, stablehlo
from lae_jax.predict import estimator
from lae_jax.runtime.errors import InputError


def variables_as_shapes(made):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), made.variables)


def test_no_batch_of_an_export_is_larger_than_the_one_whose_memory_is_checked():
    assert max(estimator._PER_DEVICE[-1], *convert.BATCHES) == form.MAX_BATCH


def test_the_known_operations_are_those_of_the_exports_and_no_others(monkeypatch):
    found = {"operations": set(), "custom calls": set()}
    monkeypatch.setattr(portable, "require_known", lambda path, what, names, known: found[what].update(names))
    pico = ("efficientnet_v2_pico", {"flip": True, "temperature": 0.7, "hidden": 16})
    family, smallest = models.BACKBONES["efficientnet_v2_pico"]
    # With the activation of Lite0, which itself takes seconds to trace.
    monkeypatch.setitem(models.BACKBONES, "lite", (family, smallest._replace(lite=True)))
    for name, tower in TOWERS.items():
        monkeypatch.setitem(models.BACKBONES, name, tower)
    for name, fields in (pico, ("lite", {}), ("resnet18", {}), ("vit_pico", {}), ("convnext_pico", {})):
        made = program_of(name, 32, **fields)
        exported = jax.export.export(jax.jit(made.portable()), platforms=program.PLATFORMS)
        module = exported(variables_as_shapes(made), made.image_spec()).mlir_module_serialized
        portable.require_only_computes("", module)
    assert found == {"operations": portable.OPERATIONS, "custom calls": portable.CUSTOM_CALLS}


@pytest.mark.parametrize("target", ["xla_ffi_python_cpu_callback", "shape_assertion_of_mine"])
def test_a_stablehlo_with_a_custom_call_is_refused(target, tmp_path):
    def function(image):
        age = jax.ffi.ffi_call(target, jax.ShapeDtypeStruct((1,), np.float32))(image)
        return age, age[:, None]

    checks = [jax.export.DisabledSafetyCheck.custom_call(target)]
    exported = jax.export.export(jax.jit(function), platforms=["cpu"], disabled_checks=checks)
    spec = jax.ShapeDtypeStruct((1, 24, 24, 3), np.uint8)
    (tmp_path / stablehlo.FILE).write_bytes(exported(spec).serialize())
    with pytest.raises(InputError, match=f"custom calls that no export of lae_jax holds .{target}"):
        folder.read("stablehlo", tmp_path)


def serialised(text):
    """A StableHLO module that is written in MLIR."""
    from jax.extend.mlir.dialects import stablehlo as dialect

    return dialect.serialize_portable_artifact_str(text, dialect.get_minimum_version())


HUGE = "tensor<99999x99999xf32>"
# Each function calls the next one twice.
CALLS = [f"func.func private @f{i}() {{ {2 * f'func.call @f{i + 1}() : () -> () '} return }}" for i in range(40)]


SQUARE = "tensor<4000x4000xf32>"
# Products that take 6e10 multiplications each, in 400 MB.
PRODUCTS = [
    f"func.func private @f{i}(%x: {SQUARE}) -> {SQUARE} {{ %0 = func.call @f{i + 1}(%x) : ({SQUARE}) -> {SQUARE}"
    f" %1 = func.call @f{i + 1}(%0) : ({SQUARE}) -> {SQUARE} return %1 : {SQUARE} }}"
    for i in range(9)
]
PRODUCT = f"%0 = stablehlo.dot_general %x, %x, contracting_dims = [1] x [0] : ({SQUARE}, {SQUARE}) -> {SQUARE}"


IMAGES = "tensor<?x8x8x3xui8>"
GROWN = """%b = stablehlo.get_dimension_size %x, dim = 0 : (tensor<?x8x8x3xui8>) -> tensor<i32>
    %k = stablehlo.constant dense<59999999> : tensor<i32>
    %n = stablehlo.multiply %b, %k : tensor<i32>
    %s = stablehlo.reshape %n : (tensor<i32>) -> tensor<1xi32>
    %z = stablehlo.constant dense<0.0> : tensor<f32>"""
BROADCAST = "stablehlo.dynamic_broadcast_in_dim %z, %s, dims = [] : (tensor<f32>, tensor<1xi32>) -> tensor<?xf32>"


def grown(*lines):
    """A function that makes a tensor whose size is computed from the batch."""
    return f"func.func @main(%x: {IMAGES}) {{ {GROWN} {' '.join(lines)} return }}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (grown(f"%1 = {BROADCAST}", "%2 = stablehlo.negate %1 : tensor<?xf32>"), "15.4 GB of memory"),
        # Small tensors that all exist at the end.
        (
            grown(
                *[f"%{i} = {BROADCAST}" for i in range(80)],
                *[f"%e{i} = stablehlo.negate %{i} : tensor<?xf32>" for i in range(80)],
            ).replace("59999999", "999999"),
            "10.4 GB of memory",
        ),
        # Padding, a shape that depends on the pixels, and a shape that wraps round 32 bits.
        (
            f"func.func @main(%x: {IMAGES}) {{ %z = stablehlo.constant dense<0> : tensor<ui8>"
            f" %0 = stablehlo.pad %x, %z, low = [999999999, 0, 0, 0], high = [0, 0, 0, 0], interior = [0, 0, 0, 0]"
            f" : ({IMAGES}, tensor<ui8>) -> {IMAGES} return }}",
            "an unknown amount of memory",
        ),
        (
            f"func.func @main(%x: {IMAGES}, %s: tensor<1xi32>) {{ %z = stablehlo.constant dense<0.0> : tensor<f32>"
            f" %1 = {BROADCAST} return }}",
            "an unknown amount of memory",
        ),
        (
            grown(
                "%m = stablehlo.multiply %n, %n : tensor<i32>",
                "%t = stablehlo.reshape %m : (tensor<i32>) -> tensor<1xi32>",
                f"%1 = {BROADCAST.replace('%s', '%t')}",
            ),
            "an unknown amount of memory",
        ),
        # Results whose types leave open what is known.
        (
            grown(
                "%1 = stablehlo.iota dim = 0 : tensor<1900000000xf32>",
                "%2 = stablehlo.negate %1 : (tensor<1900000000xf32>) -> tensor<?xf32>",
            ),
            "15.2 GB of memory",
        ),
        (
            grown(
                "%1 = stablehlo.constant dense<0.0> : tensor<90000000x1xf32>",
                "%t = stablehlo.constant dense<1> : tensor<1xi32>",
                "%u = stablehlo.reshape %b : (tensor<i32>) -> tensor<1xi32>",
                "%v = stablehlo.concatenate %t, %u, dim = 0 : (tensor<1xi32>, tensor<1xi32>) -> tensor<2xi32>",
                "%4 = stablehlo.dynamic_broadcast_in_dim %z, %v, dims = [] : (tensor<f32>, tensor<2xi32>)"
                " -> tensor<1x?xf32>",
                "%3 = stablehlo.dot_general %1, %4, contracting_dims = [1] x [0] :"
                " (tensor<90000000x1xf32>, tensor<1x?xf32>) -> tensor<?x32xf32>",
            ),
            "11.9 GB of memory",
        ),
        (
            " ".join(
                [
                    f"func.func @main() {{ %0 = stablehlo.constant dense<1.0> : {SQUARE}",
                    f"%1 = func.call @f0(%0) : ({SQUARE}) -> {SQUARE} return }}",
                    *PRODUCTS,
                    f"func.func private @f9(%x: {SQUARE}) -> {SQUARE} {{ {PRODUCT} return %0 : {SQUARE} }}",
                ]
            ),
            r"needs 3.3e\+13 multiplications for 32 images, more than 2e\+13",
        ),
        (
            "func.func @main() { %x = stablehlo.constant dense<1.0> : tensor<100x200x200x100xf32>"
            " %k = stablehlo.constant dense<1.0> : tensor<199x199x100x100xf32>"
            " %0 = stablehlo.convolution(%x, %k) dim_numbers = [b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f],"
            " window = {pad = [[99, 99], [99, 99]]} {batch_group_count = 1 : i64, feature_group_count = 1 : i64} :"
            " (tensor<100x200x200x100xf32>, tensor<199x199x100x100xf32>) -> tensor<100x200x200x100xf32> return }",
            r"needs 1.6e\+15 multiplications",
        ),
        ("func.func public @main() { func.call @main() : () -> () return }", "inf operations"),
        (
            f"func.func @main() -> {HUGE} {{ %0 = stablehlo.constant dense<0.0> : {HUGE} return %0 : {HUGE} }}",
            "40.0 GB of memory for 32 images",
        ),
        (" ".join([*CALLS, "func.func private @f40() { return }"]), r"\d{13} operations"),
        (
            "func.func @main(%x: tensor<f32>) { %0 = stablehlo.optimization_barrier %x : tensor<f32> return }",
            "_barrier",
        ),
    ],
)
def test_a_stablehlo_that_asks_for_endless_work_is_refused(text, message, tmp_path):
    with pytest.raises(InputError, match=message):
        portable.require_only_computes(tmp_path, serialised(text))


def test_what_is_no_stablehlo_is_refused_and_does_not_reach_the_terminal(tmp_path, capfd):
    for noise in (b"\x1b[31m noise", b"ML\xefR noise"):
        with pytest.raises(InputError, match="cannot be parsed"):
            portable.require_only_computes(tmp_path, noise)
    assert capfd.readouterr().err == ""


def plant(path, module):
    """Saves a module of TensorFlow as the SavedModel of an export."""
    from lae_jax.faces.tensorflow import tf

    tf.saved_model.save(module, str(path / saved_model.FILE), signatures={saved_model.SIGNATURE: module.call})


@pytest.mark.parametrize("attack", ["WriteFile", "ReadFile", "EagerPyFunc", "HashTableV2"])
def test_a_saved_model_with_other_operations_is_refused_before_it_is_loaded(attack, tmp_path, monkeypatch):
    from lae_jax.faces.tensorflow import tf

    target = tmp_path / "written"
    (tmp_path / "words").write_text("a\nb\n")
    module = tf.Module()

    @tf.function(input_signature=[tf.TensorSpec([None, 24, 24, 3], tf.uint8, name="image")], autograph=False)
    def call(image):
        if attack == "WriteFile":
            with tf.control_dependencies([tf.io.write_file(str(target), "text")]):
                image = tf.identity(image)
        elif attack == "ReadFile":
            image = image + tf.cast(tf.strings.length(tf.io.read_file("/etc/hostname")), tf.uint8)
        elif attack == "EagerPyFunc":
            image = tf.py_function(lambda x: target.touch() or x, [image], tf.uint8)
        else:
            image = image + tf.cast(module.table.lookup(tf.constant(["a"]))[0], tf.uint8)
        age = tf.reduce_mean(tf.cast(image, tf.float32), [1, 2, 3])
        return {"age": age, "distribution": age[:, None]}

    if attack == "HashTableV2":  # a resource, which is initialised from a file when the model is loaded
        words = tf.lookup.TextFileInitializer(
            str(tmp_path / "words"), tf.string, tf.lookup.TextFileIndex.WHOLE_LINE, tf.int64,
            tf.lookup.TextFileIndex.LINE_NUMBER,
        )  # fmt: skip
        module.table = tf.lookup.StaticHashTable(words, -1)
    module.call = call
    plant(tmp_path, module)
    monkeypatch.setattr(tf.saved_model, "load", lambda *_: pytest.fail("it was loaded"))
    with pytest.raises(InputError, match="that no export of lae_jax holds"):
        folder.read("saved_model", tmp_path)
    assert not target.exists()


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A SavedModel of a small model."""
    path = tmp_path_factory.mktemp("own")
    saved_model.write(path, program_of("efficientnet_v2_pico", 24))
    return path


def edited(change):
    """Changes the protocol buffer of a SavedModel."""

    def apply(path):
        from tensorflow.core.protobuf import saved_model_pb2

        model = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
        (meta,) = model.meta_graphs
        change(meta, {re.sub(r"_\d+$", "", one.signature.name): one for one in meta.graph_def.library.function})
        (path / "saved_model.pb").write_bytes(model.SerializeToString())

    return apply


def wrapper_calls_saver(meta, functions):
    (call,) = (n for n in functions["__inference_signature_wrapper_call"].node_def if n.op == "StatefulPartitionedCall")
    call.attr["f"].func.name = functions["__inference__traced_save"].signature.name


def second_function_of_a_name(meta, functions):
    double = meta.graph_def.library.function.add()
    double.CopyFrom(functions["__inference_call"])
    double.node_def.add(name="x", op="WriteFile")


def saver_is_public(meta, functions):
    name = functions["__inference__traced_save"].signature.name
    meta.object_graph_def.concrete_functions[name].SetInParent()


def module_calls_tensorflow(meta, functions):
    (call,) = (node for node in functions["__inference_call"].node_def if node.op == "XlaCallModule")
    call.attr["function_list"].list.func.add(name="f")


def huge_constant(meta, functions):
    (names,) = (n for n in functions["__inference__traced_restore"].node_def if n.name == "RestoreV2/tensor_names")
    names.attr["value"].tensor.CopyFrom(type(names.attr["value"].tensor)(dtype=7, string_val=[b"a"]))
    names.attr["value"].tensor.tensor_shape.dim.add(size=1 << 40)


def one_weight_for_many(meta, functions):
    (first, *_) = (node for node in meta.object_graph_def.nodes if node.WhichOneof("kind") == "variable")
    for _ in range(10_000):
        meta.object_graph_def.nodes.add().CopyFrom(first)


def model_runs_twice(meta, functions):
    nodes = functions["__inference_call"].node_def
    (call,) = (node for node in nodes if node.op == "XlaCallModule")
    nodes.add().CopyFrom(call)


def runs_on_weights(meta, functions):
    (call,) = (node for node in functions["__inference_call"].node_def if node.op == "XlaCallModule")
    call.input[-1] = call.input[0]
    call.attr["Tin"].list.type[-1] = 1


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (edited(huge_constant), r"constants of 1,099,511,627,\d+ numbers"),
        (edited(one_weight_for_many), "variables of .* numbers in"),
        (edited(model_runs_twice), "more than to run one model once"),
        (edited(runs_on_weights), "more than to run one model once"),
        (edited(wrapper_calls_saver), "calls .*__inference__traced_save"),
        (edited(second_function_of_a_name), "operations .*WriteFile"),
        (edited(saver_is_public), "functions that can be called .*__inference__traced_save"),
        (edited(module_calls_tensorflow), "attributes of XlaCallModule .*function_list"),
        (edited(lambda meta, _: meta.object_graph_def.nodes[0].saveable_objects["x"].SetInParent()), "objects"),
        (edited(lambda meta, _: meta.object_graph_def.nodes.add().asset.SetInParent()), "objects .*asset"),
        (edited(lambda meta, _: meta.asset_file_def.add(filename="../../etc/passwd")), "assets"),
        (lambda path: (path / "saved_model.cpb").write_bytes(b""), "files .*saved_model.cpb"),
        (lambda path: (path / "assets" / "words").write_bytes(b""), "files .*assets/words"),
    ],
)
def test_a_saved_model_that_was_changed_is_refused(own, change, named, tmp_path):
    shutil.copytree(own, tmp_path / "copy")
    saved_model._require_only_computes(tmp_path / "copy" / saved_model.FILE)
    change(tmp_path / "copy" / saved_model.FILE)
    with pytest.raises(InputError, match=named):
        folder.read("saved_model", tmp_path / "copy")
