"""The precision of every product and convolution that a step, a head or a loss computes, read from its jaxpr.

Accelerators round the factors of a float32 product unless its precision says otherwise; CPUs never do.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lae_jax import models, optim, stages
from lae_jax.longtail.fitting import Bench
from lae_jax.models.layers import Compute
from lae_jax.runs.build import NUM_AGES
from lae_jax.runtime.parallel import AXIS
from lae_jax.stages import method_losses
from lae_jax.stages.methods import METHODS
from lae_jax.train import steps

BATCH, PIXELS, FEATURES = 4, 16, 32
HIGH, HIGHEST = jax.lax.Precision.HIGH, jax.lax.Precision.HIGHEST
PRODUCTS = ("dot_general", "conv_general_dilated")
AGES = jnp.linspace(1.0, 80.0, BATCH)
CONSTANTS = {
    "er_weight": 1.0,
    "label_sigma": 1.0,
    "in_range": "uniform",
    "mae": 5.0,
    "scale": 64.0,
    "margin": 0.35,
    "margin_form": "am_softmax",
}
CONSTANTS |= method_losses.of_training(np.ones(NUM_AGES))


def precisions(function, *arguments, **options) -> list:
    """The precision of each factor of each product of a function, (factor, factor) or None."""
    found = []

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name in PRODUCTS:
                found.append(equation.params["precision"])
            for inner in jax.extend.core.jaxprs_in_params(equation.params):
                walk(inner)

    walk(jax.make_jaxpr(function, **options)(*arguments).jaxpr)
    return found


@pytest.mark.parametrize("convolutions", ["cpu", "xla"])
@pytest.mark.parametrize("stage", [stages.PRETRAIN, stages.REPRESENT])
def test_a_step_computes_its_backbone_as_configured_and_the_rest_in_float32(stage, convolutions):
    identity = stage is stages.PRETRAIN
    outputs = 7 if identity else NUM_AGES
    options = {"head": stage.head, "embedding_size": 8, "convolutions": convolutions, "axis_name": AXIS}
    model = models.create("efficientnet_v2_pico", outputs, precision="high", **options)
    variables = models.initialise(model, PIXELS, seed=0)
    tx = optim.trainable(optim.sgd(0.1), variables["params"], stage.trains)
    step = functools.partial(
        steps.train_step,
        stage=stage,
        constants=CONSTANTS,
        model=model,
        tx=tx,
        settings=steps.Settings(0, jnp.dtype("float32"), (0.5,) * 3, (0.5,) * 3),
    )
    target = jnp.arange(BATCH) if identity else AGES
    batch = {"image": np.zeros((BATCH, PIXELS, PIXELS, 3), np.uint8), "target": target}
    found = precisions(step, steps.create_state(variables, tx), batch, axis_env=[(AXIS, 1)])
    # The head's layer and its two gradients; in stage 1 also the product with the class weights and its gradients.
    assert found.count((HIGHEST, HIGHEST)) == (6 if identity else 3)
    assert found.count((HIGH, HIGH)) == len(found) - found.count((HIGHEST, HIGHEST)) > 10


@pytest.mark.parametrize("convolutions", ["cpu", "xla"])
def test_every_convolution_of_a_resnet_has_the_configured_precision(convolutions):
    module = models.create("resnet18", 0, precision="highest", convolutions=convolutions)
    shapes = jax.eval_shape(lambda x: module.init(jax.random.key(0), x), jnp.zeros((1, PIXELS, PIXELS, 3)))
    found = precisions(module.apply, shapes, jnp.zeros((1, PIXELS, PIXELS, 3)))
    assert found == [(HIGHEST, HIGHEST)] * 20


@pytest.mark.parametrize("hidden", [0, 5])
def test_an_age_head_computes_in_float32(hidden):
    head = models.AgeHead(Compute(), NUM_AGES, hidden=hidden)
    features = jnp.zeros((BATCH, FEATURES))
    found = precisions(head.apply, jax.eval_shape(head.init, jax.random.key(0), features), features)
    assert found == [(HIGHEST, HIGHEST)] * (2 if hidden else 1)


def test_no_loss_of_ages_has_a_product_of_another_precision():
    for method in METHODS.values():
        if method.loss is not None:
            gradient = jax.grad(lambda x, m=method: m.loss(x, AGES, CONSTANTS, m.settings[0]).sum())
            assert {*precisions(gradient, jnp.zeros((BATCH, NUM_AGES)))} <= {(HIGHEST, HIGHEST)}, method.name


def test_the_bench_computes_its_heads_in_float32():
    own = {"fc": {"kernel": np.zeros((FEATURES, NUM_AGES)), "bias": np.zeros(NUM_AGES)}}
    two = {
        "hidden": {"kernel": np.zeros((FEATURES, 5)), "bias": np.zeros(5)},
        "fc": {**own["fc"], "kernel": np.zeros((5, NUM_AGES))},
    }
    bench = Bench(np.zeros((1, 8, FEATURES), np.float32), np.arange(8.0), own, 5.0, None, 0.0)
    for head, count in ((own, 1), (two, 2)):
        assert precisions(bench.logits, head, jnp.zeros((BATCH, FEATURES))) == [(HIGHEST, HIGHEST)] * count


def test_an_unknown_precision_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ValueError, match="'hihg'.*did you mean 'high'.*default, high, highest"):
        models.create("efficientnet_v2_pico", 1, precision="hihg")
