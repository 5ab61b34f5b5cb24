"""ONNX exports of strangers: what our own do not have is refused before a runtime loads it."""

import pytest
from programs import TOWERS, needs_onnx, program_of

from lae_jax import models
from lae_jax.export import folder, onnx_model
from lae_jax.runtime.errors import InputError


def elsewhere(model):
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = 1
    tensor.external_data.add(key="location", value="../../../etc/hostname")


def with_subgraph(model):
    attribute = model.graph.node[0].attribute.add(name="then_branch", type=5)
    attribute.g.SetInParent()


def with_table(model):
    """A product of two vectors that takes 14 GB."""
    for name, dims in (("column", (60_000, 1)), ("row", (1, 60_000))):
        model.graph.initializer.add(name=name, dims=dims, data_type=1, raw_data=bytes(240_000))
    model.graph.node.add(op_type="MatMul", input=["column", "row"], output=["table"])


def with_work(model):
    """Three products of 8e12 multiplications each."""
    for name, dims in (("column", (20_000, 1)), ("row", (1, 20_000))):
        model.graph.initializer.add(name=name, dims=dims, data_type=1, raw_data=bytes(80_000))
    model.graph.node.add(op_type="MatMul", input=["column", "row"], output=["table0"])
    for number in range(3):
        table = f"table{number}"
        model.graph.node.add(op_type="MatMul", input=[table, table], output=[f"table{number + 1}"])


def with_product(model):
    """A product as long as all numbers of a batch: its first dimension is computed, and no name stands for it."""
    model.graph.initializer.add(name="row", dims=(1, 60_000), data_type=1, raw_data=bytes(240_000))
    model.graph.node.add(op_type="Cast", input=["image"], output=["numbers"]).attribute.add(name="to", type=2, i=1)
    model.graph.node.add(op_type="Flatten", input=["numbers"], output=["flat"]).attribute.add(name="axis", type=2, i=4)
    model.graph.node.add(op_type="MatMul", input=["flat", "row"], output=["product"])


@needs_onnx
@pytest.mark.parametrize(
    ("change", "named"),
    [
        (with_table, r"14.\d GB of memory for 32 images, more than 8 GB"),
        (with_work, r"needs 2.4e\+13 multiplications for 32 images, more than 2e\+13"),
        (with_product, r"\d+.\d GB of memory for 32 images, more than 8 GB"),
        (elsewhere, "fields of TensorProto .*data_location, external_data"),
        (with_subgraph, "fields of AttributeProto .*g"),
        (lambda model: model.graph.node.add(op_type="PyOp", domain="com.microsoft.extensions"), "NodeProto .*domain"),
        (lambda model: model.graph.node.add(op_type="Loop"), "operations .*Loop"),
        (lambda model: model.opset_import.add(domain="ai.onnx.contrib", version=1), "ai.onnx.contrib"),
        (lambda model: model.functions.add(name="f"), "fields of ModelProto .*functions"),
        (lambda model: model.metadata_props.add(key="ort_config", value="{}"), "ModelProto .*metadata_props"),
        (lambda model: model.graph.sparse_initializer.add(), "GraphProto .*sparse_initializer"),
    ],
)
def test_an_onnx_model_with_more_than_a_graph_of_known_operations_is_refused(change, named, tmp_path):
    import onnx

    made = program_of("efficientnet_v2_pico", 24)
    onnx_model.write(tmp_path, made)
    model = onnx.load_model(tmp_path / onnx_model.FILE)
    change(model)
    (tmp_path / onnx_model.FILE).write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=named):
        folder.read("onnx", tmp_path)


@needs_onnx
def test_the_known_operations_of_onnx_are_those_of_the_exports_and_no_others(monkeypatch):
    from lae_jax.export import onnx_graph

    for name, tower in TOWERS.items():
        monkeypatch.setitem(models.BACKBONES, name, tower)

    made = [program_of("efficientnet_v2_pico", 24, hidden=16, flip=True, temperature=0.7)]
    made += [program_of("efficientnet_lite0", 32), program_of("resnet18", 32)]
    made += [program_of(name, 24) for name in ("vit_pico", "convnext_pico")]
    nodes = [node for one in made for node in onnx_graph.model_of(one).graph.node]
    assert {node.op_type for node in nodes} == onnx_model.OPERATIONS
