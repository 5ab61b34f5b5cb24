"""What a step costs: operations that can be counted by hand, peaks that are published, lines of a real run."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lae_jax import losses, models
from lae_jax.models.layers import xla_convolution
from lae_jax.report import evaluation_page
from lae_jax.runtime import parallel
from lae_jax.runtime.typed.declared import CAUSES
from lae_jax.train import costs


@pytest.mark.parametrize(
    ("kind", "tflops"),
    [
        ("TPU v4", 275), ("TPU v5 lite", 197), ("TPU v5p", 459), ("TPU v5", 459), ("TPU v6 lite", 918),
        ("NVIDIA A100-SXM4-40GB", 312), ("NVIDIA A100 80GB PCIe", 312), ("NVIDIA H100 80GB HBM3", 989.5),
        ("NVIDIA H100 PCIe", 756.5), ("NVIDIA H200", 989.5), ("NVIDIA L4", 121), ("NVIDIA L40S", 362),
        ("Tesla T4", 65), ("Tesla V100-SXM2-16GB", 125), ("Tesla V100-PCIE-32GB", 112),
    ],
)  # fmt: skip
def test_the_peak_of_a_device_is_the_published_one(kind, tflops):
    assert costs.peak_flops(kind) == tflops * 1e12


@pytest.mark.parametrize(
    "kind", ["cpu", "", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA GeForce RTX 4090", "TPU v9", "NVIDIA L40"]
)
def test_no_peak_is_made_up(kind):
    assert costs.peak_flops(kind) is None


def product(state, batch, parts):
    """A step of one matrix product in `parts`, one after the other."""
    rows = batch["image"].reshape(parts, -1, batch["image"].shape[-1])
    return state, jax.lax.pmax(jax.lax.map(lambda part: part @ state, rows).max(), parallel.AXIS)


@pytest.mark.parametrize("parts", [1, 4])
def test_a_product_on_eight_devices_has_two_operations_for_each_multiply_add(parts):
    par, cost, traced = parallel.Parallel(), costs.StepCost(8, "NVIDIA L4"), []

    def step(state, batch):
        traced.append(1)
        return product(state, batch, parts)

    mapped = par.map_train(cost.counted(step))
    state, batch = par.place(np.ones((40, 50), np.float32)), {"image": np.ones((8 * 32, 40), np.float32)}
    for _ in range(2):
        state, highest = mapped(state, batch)
    assert float(highest) == 40 and len(traced) == 1
    assert cost.flops == 2 * 8 * 32 * 40 * 50
    row = cost.row(seconds_per_step=0.5)
    assert row == {"flops_per_step": cost.flops, "utilisation": pytest.approx(cost.flops / 0.5 / (8 * 121e12))}


def counted(function, *arguments):
    return costs.flops(jax.make_jaxpr(function)(*arguments).jaxpr)


@pytest.mark.parametrize(("stride", "groups"), [(1, 1), (2, 1), (1, 8), (2, 8)])
def test_a_convolution_and_its_gradients_have_the_operations_of_their_taps(stride, groups):
    images, kernel = jnp.ones((4, 16, 16, 8)), jnp.ones((3, 3, 8 // groups, 8))

    def convolved(images, kernel):
        padding = [(1, 1), (1, 1)]
        return xla_convolution(images, kernel, stride, padding)

    taps = 4 * (16 // stride) ** 2 * 8 * 9 * (8 // groups)
    assert counted(convolved, images, kernel) == 2 * taps
    out, pull = jax.vjp(convolved, images, kernel)
    assert counted(pull, out) == 2 * 2 * taps


def test_elementwise_arithmetic_of_floats_counts_once():
    assert counted(lambda x: (x * x - 1.0) / 2.0, jnp.ones((5, 7))) == 3 * 35
    assert counted(lambda x: x * x + 1, jnp.ones((5, 7), jnp.int32)) == 0


@pytest.mark.parametrize("name", ["efficientnet_v2_nano", "resnet18"])
def test_the_operations_of_a_model_are_those_that_xla_counts(name):
    module = models.create(name, 101)
    images, ages = jax.ShapeDtypeStruct((2, 256, 256, 3), jnp.float32), jnp.ones(2)
    variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x), images)

    def loss(params, batch_stats, images):
        rngs = {"dropout": jax.random.key(0)}
        variables = {"params": params, "batch_stats": batch_stats}
        logits, _ = module.apply(variables, images, train=True, mutable=["batch_stats"], rngs=rngs)
        return losses.representation_loss(logits, ages).mean()

    traced = jax.jit(jax.grad(loss)).trace(variables["params"], variables["batch_stats"], images)
    xla = traced.lower().cost_analysis()["flops"]
    # XLA counts further operations, and no taps on the padding, which are few in large images.
    assert costs.flops(traced.jaxpr.jaxpr) == pytest.approx(xla, rel=0.07)


def test_a_run_logs_what_its_steps_cost_and_where_its_time_went(trained):
    rows = [json.loads(line) for line in (trained("represent") / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if row["kind"] == "train"]
    # 32 images of 24 px: forward and backward of a model of 3,000 parameters at 1 to 144 places.
    (found,) = {row["flops_per_step"] for row in steps}
    assert found == pytest.approx(2.5e7, rel=0.2)
    assert not any("utilisation" in row for row in steps), "the peak of a CPU is unknown"
    assert all(0 < row["goodput"] < 1 for row in steps)
    last = rows[-1]
    assert last["kind"] == "time" and last["step"] == steps[-1]["step"]
    assert sum(last[cause] for cause in CAUSES) == pytest.approx(1)
    assert all(last[cause] > 0 for cause in CAUSES if cause not in ("skipped", "lost"))
    assert last["skipped"] == last["lost"] == 0 and last["seconds"] >= steps[-1]["seconds"]


def test_the_page_of_a_run_shows_its_cost(trained):
    (cost,) = [section for section in evaluation_page.of_run(trained("represent")).sections if section.title == "Cost"]
    assert [name for name, _ in cost.facts] == ["a step", "images a second"]
    (table,) = cost.tables
    rows = {row[0]: float(row[1].rstrip("%")) for row in table.rows}
    assert sum(rows.values()) == pytest.approx(100, abs=0.5) and rows["steps that counted (goodput)"] > 0
