"""Models: published sizes, masks of a split batch, freezing, dtypes, initial values."""

import itertools
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trees import equal

from lae_jax import models
from lae_jax.models.layers import Compute, Conv, StochasticDepth

PICO = "efficientnet_v2_pico"
BATCH, SIZE, AGES = 8, 16, 5


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def images_of(size, batch=1):
    return jax.ShapeDtypeStruct((batch, size, size, 3), jnp.float32)


def shapes_of(module, size=32):
    return jax.eval_shape(lambda x: module.init(jax.random.key(0), x), images_of(size))


def assert_close(a, b, rtol, atol):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=rtol, atol=atol), a, b)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).standard_normal((BATCH, SIZE, SIZE, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def pico_variables():
    return models.initialise(models.create(PICO, AGES), SIZE, seed=0)


def gradient_step(module, train_backbone=True):
    """(variables, images, key) -> gradients of a loss of all parameters, and the new statistics."""

    def loss(params, batch_stats, images, key):
        logits, new = module.apply(
            {"params": params, "batch_stats": batch_stats},
            images,
            train=True,
            train_backbone=train_backbone,
            rngs={"dropout": key},
            mutable=["batch_stats"],
        )
        return jnp.mean(jnp.square(logits - 1)), new["batch_stats"]

    return jax.jit(jax.grad(loss, has_aux=True))


@pytest.fixture(scope="module")
def pico_step(pico_variables, images):
    """Gradients and new statistics."""
    step = gradient_step(models.create(PICO, AGES))
    return step(pico_variables["params"], pico_variables["batch_stats"], images, jax.random.key(3))


@pytest.mark.parametrize(
    ("name", "params", "statistics", "features"),
    [
        ("efficientnet_v2_s", 20_177_488, 153_872, 1280),
        ("efficientnet_v2_m", 52_858_356, 292_032, 1280),
        ("efficientnet_v2_l", 117_746_848 - 512_576, 512_576, 1280),
        ("efficientnet_lite0", 4_652_008 - 1281 * 1000, 42_016, 1280),
        ("resnet18", 11_176_512, 9_600, 512),
        ("resnet50", 23_508_032, 53_120, 2048),
    ],
)
def test_backbones_have_the_published_numbers_of_parameters(name, params, statistics, features):
    shapes = shapes_of(models.create(name, 101))
    assert count(shapes["params"]["backbone"]) == params
    assert count(shapes["batch_stats"]) == statistics
    assert count(shapes["params"]["head"]) == (features + 1) * 101
    assert sorted(itertools.chain(*models.layer_order(name))) == sorted(shapes["params"]["backbone"])


def test_every_model_names_its_layers_in_order():
    """The large ones in the test above."""
    assert {len(models.layer_order(name)) > 2 for name in models.BACKBONES} == {True}
    for name in (PICO, "efficientnet_v2_nano", "efficientnet_v2_tiny"):
        shapes = shapes_of(models.create(name, 0, convolutions="xla"))
        assert sorted(itertools.chain(*models.layer_order(name))) == sorted(shapes["params"])
    assert models.layer_order(PICO) == (("stem_conv", "stem_bn"), ("block1_0",), ("block2_0", "top_conv", "top_bn"))


def test_small_models_are_small_and_divide_as_they_say():
    assert count(shapes_of(models.create("efficientnet_v2_tiny", 0))["params"]) < 1_000_000
    assert count(shapes_of(models.create(PICO, 0))["params"]) < 10_000
    assert intermediate_shapes("efficientnet_v2_tiny", 96)["top_conv"] == (1, 6, 6, 640)


def intermediate_shapes(name, size):
    module = models.create(name, 0)
    variables = shapes_of(module)
    apply = partial(module.apply, capture_intermediates=True, mutable=["intermediates"])
    _, state = jax.eval_shape(apply, variables, images_of(size))
    return {key: value["__call__"][0].shape for key, value in state["intermediates"].items() if isinstance(value, dict)}


@pytest.mark.parametrize("size", [64, 65, 97])
def test_resnet_shapes_follow_the_formula_of_torch(size):
    def torch_size(n, kernel, stride, padding):
        return (n + 2 * padding - kernel) // stride + 1

    shapes = intermediate_shapes("resnet18", size)
    n = torch_size(size, 7, 2, 3)
    assert shapes["conv1"] == (1, n, n, 64)
    n = torch_size(n, 3, 2, 1)
    assert shapes["layer1_0"] == (1, n, n, 64)
    for layer in (2, 3, 4):
        n = torch_size(n, 3, 2, 1)
        assert shapes[f"layer{layer}_1"] == (1, n, n, 64 * 2 ** (layer - 1))


def test_variables_have_a_backbone_and_a_head():
    age = shapes_of(models.create(PICO, AGES))
    assert set(age["params"]) == {"backbone", "head"} and set(age["batch_stats"]) == {"backbone"}
    identity = shapes_of(models.create(PICO, 7, head="identity", embedding_size=4))
    assert set(identity["params"]) == set(identity["batch_stats"]) == {"backbone", "head"}
    assert identity["params"]["head"]["class_weights"].shape == (7, 4)
    alone = shapes_of(models.create(PICO, 0))
    for kind in ("params", "batch_stats"):
        assert alone[kind] == age[kind]["backbone"] == identity[kind]["backbone"]


def test_identity_head_gives_class_weights_in_training_alone():
    module = models.create(PICO, 7, head="identity", embedding_size=4)
    variables = shapes_of(module)
    assert jax.eval_shape(module.apply, variables, images_of(SIZE, 3)).shape == (3, 4)
    train = partial(module.apply, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)})
    outputs, _ = jax.eval_shape(train, variables, images_of(SIZE, 3))
    assert isinstance(outputs, models.IdentityOutputs)
    assert outputs.embeddings.shape == (3, 4) and outputs.class_weights.shape == (7, 4)


def test_dropout_is_as_published_unless_given():
    names = (
        "efficientnet_v2_s",
        "efficientnet_v2_m",
        "efficientnet_v2_l",
        "efficientnet_lite0",
        "resnet18",
        "resnet50",
    )
    assert [models.create(name, 2).head.dropout for name in names] == [0.2, 0.3, 0.4, 0.2, 0, 0]
    assert models.create("efficientnet_v2_m", 2, dropout=0.0).head.dropout == 0
    assert models.create("efficientnet_v2_m", 2, stochastic_depth=0.1).backbone.stochastic_depth == 0.1


def test_stochastic_depth_grows_linearly_on_residual_blocks_alone():
    rates = {}

    def watch(call, args, kwargs, context):
        if isinstance(context.module, StochasticDepth):
            rates[context.module.path[0]] = context.module.rate
        return call(*args, **kwargs)

    with nn.intercept_methods(watch):
        shapes_of(models.create("efficientnet_v2_m", 0))
    blocks = [f"block{i}_{j}" for i, n in enumerate((3, 5, 5, 7, 14, 18, 5), start=1) for j in range(n)]
    without_shortcut = {f"block{i}_0" for i in range(2, 8)}
    assert rates == {
        name: pytest.approx(0.2 * b / len(blocks)) for b, name in enumerate(blocks) if name not in without_shortcut
    }
    assert rates["block1_0"] == 0 and rates["block7_4"] == pytest.approx(0.1965, abs=1e-4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "efficientnet_v2_xs"}, r"efficientnet_v2_xs.*did you mean 'efficientnet_v2_.*resnet50"),
        ({"head": "agee"}, "did you mean 'age'"),
        ({"convolutions": "gpu"}, "known: auto, cpu, xla"),
        ({"dropout": 1.0}, "dropout must be"),
        ({"stochastic_depth": -0.1}, "stochastic_depth must be"),
        ({"dtype": jnp.int32}, "int32"),
        ({"num_outputs": -1}, "num_outputs"),
    ],
)
def test_wrong_arguments_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        models.create(**({"name": PICO, "num_outputs": 1} | arguments))


def test_images_must_be_normalised_floats(pico_variables):
    apply = partial(models.create(PICO, AGES).apply, pico_variables)
    with pytest.raises(ValueError, match="uint8"):
        apply(np.zeros((1, SIZE, SIZE, 3), np.uint8))
    with pytest.raises(ValueError, match=r"\(B, H, W, 3\)"):
        apply(np.zeros((SIZE, SIZE, 3), np.float32))


def test_the_form_of_convolutions_is_chosen_when_the_model_is_made():
    assert models.create(PICO, 0).compute.convolutions == ("cpu" if jax.default_backend() == "cpu" else "xla")


def test_a_split_batch_draws_the_masks_of_the_whole_one(images):
    with jax.enable_x64(True):
        module = models.create(PICO, AGES, jnp.float64, dropout=0.5, stochastic_depth=0.9, axis_name="batch")
        variables = models.initialise(module, SIZE, seed=0)

        # vmap with an axis name synchronises BatchNorm as pmap does.
        @jax.jit
        @partial(jax.vmap, axis_name="batch")
        def forward(images, rows):
            out, _ = module.apply(
                variables, images, train=True, rows=rows, rngs={"dropout": jax.random.key(5)}, mutable=["batch_stats"]
            )
            return out

        rows = np.arange(BATCH) + 40
        whole = forward(images[None], rows[None])[0]
        split = forward(images.reshape(2, -1, SIZE, SIZE, 3), rows.reshape(2, -1)).reshape(whole.shape)
        np.testing.assert_allclose(split, whole, rtol=1e-11, atol=1e-11)
        other = forward(images[None], rows[None] + 1)[0]
        assert np.abs(other - whole).max() > 1e-3


def test_training_moves_all_statistics_and_reaches_all_parameters(pico_variables, pico_step):
    gradients, stats = pico_step
    assert jax.tree.structure(stats) == jax.tree.structure(pico_variables["batch_stats"])
    for old, new in zip(jax.tree.leaves(pico_variables["batch_stats"]), jax.tree.leaves(stats), strict=True):
        assert not np.array_equal(old, new)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradients))


def test_a_frozen_backbone_keeps_its_statistics_and_gets_no_gradient(pico_variables, images):
    step = gradient_step(models.create(PICO, AGES, dropout=0.5), train_backbone=False)
    params, stats = pico_variables["params"], pico_variables["batch_stats"]
    gradients, new = step(params, stats, images, jax.random.key(0))
    assert equal(new, stats)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradients["backbone"]))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradients["head"]))
    # The dropout before the layer still acts.
    again, _ = step(params, stats, images, jax.random.key(1))
    assert not np.array_equal(gradients["head"]["fc"]["kernel"], again["head"]["fc"]["kernel"])


def test_remat_gives_the_same_gradients(pico_variables, pico_step, images):
    module = models.create(PICO, AGES, remat=True)
    assert shapes_of(module) == shapes_of(models.create(PICO, AGES))
    gradients, stats = gradient_step(module)(
        pico_variables["params"], pico_variables["batch_stats"], images, jax.random.key(3)
    )
    # The same masks too: stochastic depth acts inside a block.
    assert_close(gradients, pico_step[0], rtol=1e-4, atol=1e-6)
    assert_close(stats, pico_step[1], rtol=1e-5, atol=1e-6)


def test_inference_does_not_communicate():
    # There is no such axis here, so a collective would raise.
    module = models.create(PICO, AGES, axis_name="batch")
    assert jax.eval_shape(module.apply, shapes_of(module), images_of(SIZE)).shape == (1, AGES)


@pytest.mark.parametrize("name", [PICO, "resnet18"])
@pytest.mark.parametrize("head", ["age", "identity"])
@pytest.mark.parametrize(("dtype", "wide"), [("bfloat16", "float32"), ("float32", "float32"), ("float64", "float64")])
def test_parameters_statistics_and_outputs_are_float32_or_wider(name, head, dtype, wide):
    with jax.enable_x64(dtype == "float64"):
        module = models.create(name, AGES, dtype, head=head, embedding_size=4)
        variables = shapes_of(module)
        train = partial(
            module.apply,
            train=True,
            rngs={"dropout": jax.random.key(0)},
            capture_intermediates=lambda module, method: isinstance(module, Conv) and method == "__call__",
            mutable=["batch_stats", "intermediates"],
        )
        outputs, state = jax.eval_shape(train, variables, images_of(SIZE, 2))
        assert {leaf.dtype for leaf in jax.tree.leaves((variables, outputs, state["batch_stats"]))} == {jnp.dtype(wide)}
        assert {leaf.dtype for leaf in jax.tree.leaves(state["intermediates"])} == {jnp.dtype(dtype)}


@pytest.mark.parametrize("head", ["age", "identity"])
def test_initial_values_have_the_form_of_init_and_depend_on_the_seed(head):
    module = models.create(PICO, 7, head=head, embedding_size=4)
    first = models.initialise(module, SIZE, seed=1)
    shapes = shapes_of(module)
    assert jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), first) == shapes
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(first))
    assert equal(first, models.initialise(module, 2 * SIZE, seed=1))
    assert not equal(first, models.initialise(module, SIZE, seed=2))


def test_initial_backbone_does_not_depend_on_the_head():
    alone = models.initialise(models.create(PICO, 0), SIZE, seed=4)
    heads = {"head": "age"}, {"head": "age", "hidden": 8}, {"head": "identity"}
    for module in (models.create(PICO, 9, **head) for head in heads):
        whole = models.initialise(module, SIZE, seed=4)
        assert all(equal(alone[kind], whole[kind]["backbone"]) for kind in ("params", "batch_stats"))


def test_a_hidden_layer_with_relu_stands_before_the_dropout_and_the_last_layer():
    head = models.AgeHead(Compute(), 3, hidden=5)
    features = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    params = jax.eval_shape(head.init, jax.random.key(0), features)["params"]
    assert jax.tree.map(jnp.shape, params) == {
        "hidden": {"kernel": (6, 5), "bias": (5,)},
        "fc": {"kernel": (5, 3), "bias": (3,)},
    }
    params = jax.tree.map(lambda leaf: np.random.default_rng(1).normal(size=leaf.shape).astype(np.float32), params)
    inner = np.maximum(features @ params["hidden"]["kernel"] + params["hidden"]["bias"], 0)
    expected = inner @ params["fc"]["kernel"] + params["fc"]["bias"]
    np.testing.assert_allclose(head.apply({"params": params}, features), expected, rtol=1e-4, atol=1e-5)
    # Every kept unit of an inner layer that is all ones counts double, the others nothing.
    half = models.AgeHead(Compute(), 3, dropout=0.5, hidden=5)
    params["hidden"] = {"kernel": np.zeros((6, 5), np.float32), "bias": np.ones(5, np.float32)}
    params["fc"] = {"kernel": np.eye(5, 3, dtype=np.float32), "bias": np.zeros(3, np.float32)}
    dropped = half.apply({"params": params}, features, True, rngs={"dropout": jax.random.key(0)})
    assert set(np.unique(dropped).tolist()) == {0.0, 2.0}
    for wrong in ({"hidden": -1}, {"hidden": 4, "head": "identity"}):
        with pytest.raises(ValueError, match="hidden must be 0"):
            models.create(PICO, 9, **wrong)


def test_initial_values_have_the_stated_variances():
    leaf = partial(models.initial_values.leaf, dtype=np.float32, seed=0)
    for path, shape, variance in (
        (("block", "depthwise_conv", "kernel"), (3, 3, 1, 4000), 2 / 9),
        (("block", "expand_conv", "kernel"), (3, 3, 30, 120), 2 / (9 * 120)),
        (("block", "se_expand", "kernel"), (1, 1, 1, 9000), 2 / 9000),
        (("head", "fc", "kernel"), (512, 101), 1e-4),
        (("head", "hidden", "kernel"), (512, 64), 2 / 512),
        (("head", "embedding", "kernel"), (256, 64), 1 / 256),
        (("head", "class_weights"), (100, 64), 1 / 64),
    ):
        values = leaf(path, shape)
        assert values.std() == pytest.approx(np.sqrt(variance), rel=0.05)
        assert abs(values.mean()) < 5 * np.sqrt(variance / values.size)
    assert np.all(leaf(("bn", "scale"), (3,)) == 1) and np.all(leaf(("bn", "var"), (3,)) == 1)
    assert not np.any(leaf(("bn", "mean"), (3,))) and not np.any(leaf(("fc", "bias"), (3,)))
    with pytest.raises(ValueError, match="a/b"):
        leaf(("a", "b"), (3,))
