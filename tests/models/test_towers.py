"""ViT and ConvNeXt: equal to NumPy's statement of them, at any size, read under every name, by all doors."""

import json
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import TOWERS

from benchmarks import foreign_models as foreign
from lae_jax import export, models, predict
from lae_jax.models import pretrained, tokens, vit
from lae_jax.models.layers import StochasticDepth
from lae_jax.models.pretrained import naming
from lae_jax.runtime.errors import InputError
from lae_jax.train import costs, loop

SIZE = 24


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    for name, entry in TOWERS.items():
        monkeypatch.setitem(models.BACKBONES, name, entry)


def random_of(shapes, seed=0):
    """Values away from the initial ones, in the shapes of a tree."""
    rng = np.random.default_rng(seed)

    def leaf(path, value):
        spread = value.shape[0] ** -0.5 if path[-1].key == "kernel" else 0.3
        return spread * rng.standard_normal(value.shape) + (path[-1].key in ("scale", "layer_scale"))

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def variables_of(name):
    module = models.create(name, 0)
    return random_of(jax.eval_shape(lambda x: module.init(jax.random.key(0), x), jnp.ones((1, SIZE, SIZE, 3))))


def normed(x, layer, epsilon):
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + epsilon) * layer["scale"] + layer["bias"]


def dense(x, layer):
    return x @ layer["kernel"] + layer["bias"]


def bent(x):
    from scipy.special import erf

    return 0.5 * x * (1 + erf(x / np.sqrt(2)))


def patches(x, layer):
    """A convolution whose stride is its kernel's side."""
    side = layer["kernel"].shape[0]
    b, h, w, c = x.shape
    x = x.reshape(b, h // side, side, w // side, side, c).transpose(0, 1, 3, 2, 4, 5)
    return np.einsum("bhwijc,ijco->bhwo", x, layer["kernel"]) + layer.get("bias", 0)


def vit_in_numpy(p, x, architecture):
    clip = architecture.clip
    epsilon, activation = (1e-5, lambda x: x / (1 + np.exp(-1.702 * x))) if clip else (1e-6, bent)
    x = patches(x, p["patches"])
    b, side, _, c = x.shape
    w = np.asarray(jax.image.resize(jnp.eye(architecture.grid), (side, architecture.grid), "bicubic", antialias=True))
    grid = p["positions"][1:].reshape(architecture.grid, architecture.grid, c)
    grid = np.einsum("ai,bj,ijc->abc", w, w, grid).reshape(-1, c)
    x = np.concatenate([np.tile(p["class_token"] + p["positions"][0], (b, 1, 1)), x.reshape(b, -1, c) + grid], 1)
    if clip:
        x = normed(x, p["norm_pre"], epsilon)
    for block in (p["block0"], p["block1"]):
        y = dense(normed(x, block["norm1"], epsilon), block["qkv"]).reshape(b, -1, 3, architecture.heads, 4)
        heads = []
        for head in range(architecture.heads):
            q, k, v = (y[:, :, part, head] for part in range(3))
            scores = np.exp(q @ k.transpose(0, 2, 1) / 2)  # the root of the 4 channels of a head
            heads.append(scores / scores.sum(-1, keepdims=True) @ v)
        x = x + dense(np.concatenate(heads, -1), block["proj"])
        x = x + dense(activation(dense(normed(x, block["norm2"], epsilon), block["fc1"])), block["fc2"])
    return normed(x, p["norm"], epsilon)[:, 0]


def convnext_in_numpy(p, x, _):
    x = normed(patches(x, p["stem"]), p["stem_norm"], 1e-6)
    for name in ("block1_0", "", "block2_0", "block2_1"):
        if not name:
            x = patches(normed(x, p["downsample2_norm"], 1e-6), p["downsample2"])
            continue
        block, (_, h, w, _) = p[name], x.shape
        padded = np.pad(x, ((0, 0), (3, 3), (3, 3), (0, 0)))
        kernel = block["conv"]["kernel"][:, :, 0]
        y = sum(kernel[i, j] * padded[:, i : i + h, j : j + w] for i in range(7) for j in range(7))
        y = dense(bent(dense(normed(y + block["conv"]["bias"], block["norm"], 1e-6), block["fc1"])), block["fc2"])
        x = x + block["layer_scale"] * y
    return normed(x.mean((1, 2)), p["norm"], 1e-6)


@pytest.mark.parametrize("convolutions", ["xla", "cpu"])
@pytest.mark.parametrize("name", TOWERS)
def test_features_are_those_of_the_papers_stated_in_numpy(name, convolutions):
    with jax.enable_x64(True):
        module, variables = models.create(name, 0, "float64", convolutions=convolutions), variables_of(name)
        images = np.random.default_rng(1).standard_normal((2, SIZE, SIZE, 3))
        backbone, architecture = TOWERS[name]
        in_numpy = vit_in_numpy if backbone is models.ViT else convnext_in_numpy
        expected = in_numpy(variables["params"], images, architecture)
        ours = jax.jit(module.apply)(variables, images)
        assert ours.dtype == jnp.float64 and ours.shape == (2, 12)
        np.testing.assert_allclose(ours, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("name", "params"), [
    ("vit_s16", 21_665_664), ("vit_b16", 85_798_656), ("vit_b16_clip", 85_799_424), ("convnext_tiny", 27_820_128),
])  # fmt: skip
def test_towers_have_timms_numbers_of_parameters_and_no_statistics(name, params):
    shapes = models.shapes(models.create(name, 0, convolutions="xla"))
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == params
    assert {path[0] for path in shapes} == {"params"}


def test_gelu_in_float32_and_its_gradient_are_those_of_the_error_function():
    x = jnp.linspace(-7, 7, 1401, dtype=jnp.float32)
    np.testing.assert_allclose(tokens.gelu(x), bent(np.float64(x)), atol=2e-6)
    slope = jax.vmap(jax.grad(tokens.gelu))(x)
    np.testing.assert_allclose(slope, jax.vmap(jax.grad(partial(jax.nn.gelu, approximate=False)))(x), atol=2e-6)


@pytest.mark.parametrize(("old", "new"), [(14, 6), (14, 15), (14, 1), (5, 40)])
def test_positions_are_interpolated_as_jax_resizes_images(old, new):
    with jax.enable_x64(True):
        positions = np.random.default_rng(0).standard_normal((old * old, 3))
        expected = jax.image.resize(positions.reshape(old, old, 3), (new, new, 3), "bicubic", antialias=True)
        resized = vit.resized(jnp.asarray(positions), old, new)
        np.testing.assert_allclose(resized, expected.reshape(new * new, 3), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("name", "height", "width", "message"), [
    ("vit_b16", 100, 100, "takes square images whose side is a multiple of 16 pixels, such as 96 or 112, not 100 x 10"),
    ("vit_s16", 8, 8, "takes square images .* such as 16 or 32, not 8 x 8"),
    ("vit_s16", 32, 48, "takes square images .* not 32 x 48"),
    ("convnext_tiny", 31, 31, "takes images of at least 32 x 32 pixels, not 31 x 31"),
])  # fmt: skip
def test_images_of_a_size_that_a_model_does_not_take_are_named(name, height, width, message):
    module = models.create(name, 0, convolutions="xla")
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(partial(module.init, jax.random.key(0)), jnp.ones((1, height, width, 3)))
    if height == width:
        with pytest.raises(InputError, match=f"config.data.image_size: {name} {message}"):
            models.require_size(name, height)
        models.require_size(name, 224)
    models.require_size("resnet18", height)


def test_a_run_with_such_a_size_is_refused(small_config):
    config = small_config("represent")
    config.model.name, config.data.image_size = "vit_pico", 22
    with pytest.raises(InputError, match="config.data.image_size: vit_pico .* such as 20 or 24, not 22 x 22"):
        loop.train(config)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", TOWERS)
def test_parameters_norms_and_features_are_float32_and_activations_the_dtype(name, dtype):
    module = models.create(name, 0, dtype)
    images = jax.ShapeDtypeStruct((2, SIZE, SIZE, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x), images)
    found = {}

    def watch(call, args, kwargs, context):
        out = call(*args, **kwargs)
        if context.method_name == "__call__":
            found["/".join(context.module.path)] = out.dtype
        return out

    with nn.intercept_methods(watch):
        features = jax.eval_shape(module.apply, variables, images)
    assert {leaf.dtype for leaf in jax.tree.leaves((variables, features))} == {jnp.dtype("float32")}
    assert {found.pop(path).name for path in ("", "norm")} == {"float32"}
    assert {each.name for each in found.values()} == {dtype}


@pytest.mark.parametrize("name", TOWERS)
def test_stochastic_depth_grows_linearly_to_its_rate(name):
    rates = {}

    def watch(call, args, kwargs, context):
        if isinstance(context.module, StochasticDepth):
            rates["/".join(context.module.path)] = context.module.rate
        return call(*args, **kwargs)

    module = models.create(name, 0, stochastic_depth=0.4)
    with nn.intercept_methods(watch):
        models.shapes(module)
    if name == "convnext_pico":
        expected = {"block1_0/stochastic_depth": 0, "block2_0/stochastic_depth": 0.2, "block2_1/stochastic_depth": 0.4}
    else:
        expected = {f"block{b}/stochastic_depth{branch}": 0.4 * b for b in (0, 1) for branch in (1, 2)}
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize("name", ["vit_pico", "convnext_pico"])
def test_remat_and_a_split_batch_change_nothing(name):
    with jax.enable_x64(True):
        images = np.random.default_rng(1).standard_normal((4, SIZE, SIZE, 3))
        variables = random_of(models.initialise(models.create(name, 5, "float64"), SIZE, 0))

        def gradients(remat, parts):
            module = models.create(name, 5, "float64", dropout=0.5, stochastic_depth=0.3, remat=remat)

            @jax.jit
            def step(images, rows):
                def loss(params):
                    rngs = {"dropout": jax.random.key(5)}
                    return jnp.square(module.apply({"params": params}, images, True, rows, rngs=rngs)).sum()

                return jax.grad(loss)(variables["params"])

            rows = np.arange(4)
            found = [step(*part) for part in zip(np.split(images, parts), np.split(rows, parts), strict=True)]
            return jax.tree.map(lambda *parts: sum(parts), *found)

        whole = gradients(False, 1)
        assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(whole))
        for other in (gradients(True, 1), gradients(False, 2)):
            jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-10), other, whole)


def test_initial_values_have_timms_variances():
    leaf = partial(models.initial_values.leaf, dtype=np.float32, seed=0)
    for path, shape, deviation in (
        (("block0", "qkv", "kernel"), (64, 192), 0.02),
        (("block0", "fc2", "kernel"), (64, 64), 0.02),
        (("block1_0", "conv", "kernel"), (7, 7, 1, 96), 0.02),
        (("downsample3", "kernel"), (2, 2, 32, 64), 0.02),
        (("stem", "kernel"), (4, 4, 3, 96), 0.02),
        (("positions",), (197, 64), 0.02),
        (("class_token",), (2000,), 1e-6),
        (("patches", "kernel"), (16, 16, 3, 16), (3 * 16 * 16 * 3) ** -0.5),
    ):
        assert leaf(path, shape).std() == pytest.approx(deviation, rel=0.06)
    assert np.all(leaf(("block1_0", "layer_scale"), (3,)) == np.float32(1e-6))
    for name in ("vit_s16", "convnext_tiny", *TOWERS):
        for path, shape in models.shapes(models.create(name, 0, convolutions="xla")).items():
            assert path[-1] in models.initial_values.CONSTANTS or models.initial_values.standard_deviation(
                path[1:], shape
            )


@pytest.mark.parametrize(("model", "names", "count"), [
    (
        "vit_s16",
        {
            "cls_token": (1, 1, 384), "pos_embed": (1, 197, 384), "patch_embed.proj.weight": (384, 3, 16, 16),
            "patch_embed.proj.bias": (384,), "blocks.11.attn.qkv.weight": (1152, 384),
            "blocks.0.attn.proj.bias": (384,), "blocks.3.mlp.fc1.weight": (1536, 384),
            "blocks.3.norm2.weight": (384,), "norm.bias": (384,),
        },
        150,
    ),
    (
        "vit_b16_clip",
        {"norm_pre.weight": (768,), "patch_embed.proj.weight": (768, 3, 16, 16), "pos_embed": (1, 197, 768)},
        151,
    ),
    (
        "convnext_tiny",
        {
            "stem.0.weight": (96, 3, 4, 4), "stem.1.bias": (96,), "stages.0.blocks.2.conv_dw.weight": (96, 1, 7, 7),
            "stages.1.downsample.0.weight": (96,), "stages.1.downsample.1.weight": (192, 96, 2, 2),
            "stages.2.blocks.8.mlp.fc1.weight": (1536, 384), "stages.2.blocks.8.gamma": (384,),
            "stages.3.blocks.0.norm.weight": (768,), "head.norm.weight": (768,),
        },
        180,
    ),
])  # fmt: skip
def test_names_and_shapes_are_timms(model, names, count):
    layout = naming.torch_layout(model, pretrained._shapes(model))
    assert {name: layout[name].shape for name in names} == names
    assert len(layout) == count, "as timm 1.0.31 has without its classifier"


def state_of(layout, variables):
    """A state dict whose tensors lie as a layout has them."""

    def tensor(want):
        value = variables
        for key in want.path:
            value = value[key]
        return value.transpose(np.argsort(want.axes)).reshape(want.shape)

    return {name: tensor(want) for name, want in layout.items()}


@pytest.fixture
def published(monkeypatch):
    """The tiny models, as if timm had them."""
    monkeypatch.setattr(naming, "ARCHITECTURES", {**naming.ARCHITECTURES, **{name: name for name in TOWERS}})


@pytest.mark.parametrize(("name", "place"), [("vit_pico", 0), ("vit_pico_clip", 0), ("vit_pico_clip", 1),
                                             ("convnext_pico", 0)])  # fmt: skip
def test_weights_are_read_under_every_name(name, place, published, tmp_path):
    layout = naming.torch_layouts(name, pretrained._shapes(name))[place]
    variables = jax.tree.map(lambda a: a.astype(np.float32), variables_of(name))
    state = state_of(layout, variables)
    spare = {"head.fc.weight": 3, "head.bias": 3} if place == 0 else {"visual.proj": 3, "logit_scale": 1,
        "transformer.resblocks.0.ln_1.bias": 3, "token_embedding.weight": 3, "positional_embedding": 3}  # fmt: skip
    foreign.write_safetensors(tmp_path / "a.safetensors", {**state, **{name: np.ones(n) for name, n in spare.items()}})
    read = pretrained.read(tmp_path / "a.safetensors", name)
    jax.tree.map(np.testing.assert_array_equal, read.variables["params"], variables["params"])
    assert read.assumed and read.statistics == {
        "vit_pico": naming.HALF, "vit_pico_clip": naming.CLIP, "convnext_pico": naming.IMAGENET
    }[name]  # fmt: skip
    del state[first := min(state)]
    foreign.write_safetensors(tmp_path / "b.safetensors", state)
    with pytest.raises(InputError, match=f"does not fit {name}: 1 missing: {first}$"):
        pretrained.load(tmp_path / "b.safetensors", name)


def test_the_names_of_clip_are_openais():
    layout = naming.torch_layouts("vit_b16_clip", pretrained._shapes("vit_b16_clip"))[1]
    for name, shape in {
        "visual.class_embedding": (768,), "visual.positional_embedding": (197, 768),
        "visual.conv1.weight": (768, 3, 16, 16), "visual.ln_pre.bias": (768,), "visual.ln_post.weight": (768,),
        "visual.transformer.resblocks.11.attn.in_proj_weight": (2304, 768),
        "visual.transformer.resblocks.0.attn.in_proj_bias": (2304,),
        "visual.transformer.resblocks.0.attn.out_proj.weight": (768, 768),
        "visual.transformer.resblocks.0.ln_2.weight": (768,),
        "visual.transformer.resblocks.0.mlp.c_fc.weight": (3072, 768),
        "visual.transformer.resblocks.0.mlp.c_proj.bias": (768,),
    }.items():  # fmt: skip
        assert layout[name].shape == shape
    assert len(layout) == 151


@pytest.mark.parametrize("name", ["vit_pico", "convnext_pico"])
def test_the_products_of_a_tower_are_counted_with_its_attention(name, monkeypatch):
    monkeypatch.setattr(costs, "_ELEMENTWISE", ())
    module = models.create(name, 0, convolutions="xla")
    images = jax.ShapeDtypeStruct((2, 20, 20, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x), images)
    counted = costs.flops(jax.make_jaxpr(module.apply)(variables, images).jaxpr)
    tokens, width = 26, 12
    block = tokens * width * (3 * width + width + 8 * width) + 2 * tokens**2 * width
    products = 25 * 48 * width + 2 * block
    if name == "convnext_pico":
        first, second = 49 * 8 + 8 * 8**2, 49 * 12 + 8 * 12**2
        products = 100 * 12 * 8 + 100 * first + 25 * 32 * 12 + 2 * 25 * second
    assert counted == 2 * 2 * products


@pytest.fixture(scope="module")
def runs(make_config, tmp_path_factory):
    """name of a model -> the folder of short runs of the three stages, in bfloat16 with remat."""
    done = {}

    def make(name):
        if name not in done:
            folder = tmp_path_factory.mktemp(name)
            for stage in ("pretrain", "represent", "classify"):
                config = make_config(stage, folder)
                config.model.name, config.model.dtype, config.model.remat = name, "bfloat16", True
                config.model.stochastic_depth, config.epochs = 0.1, 0.3
                if stage == "represent":
                    config.init_from = str(folder / "pretrain")
                loop.train(config)
            done[name] = folder
        return done[name]

    return make


@pytest.mark.parametrize("name", ["vit_pico", pytest.param("convnext_pico", marks=pytest.mark.long)])
def test_the_stages_the_exports_and_predict_take_a_tower(name, runs, tmp_path):
    run = runs(name) / "classify"
    assert np.isfinite(json.loads((run / "summary.json").read_text())["scores"]["mae"])
    images = [np.random.default_rng(i).integers(0, 256, (30, 30, 3)).astype(np.uint8) for i in range(3)]
    ages = predict.AgeEstimator.from_run(run).predict(images)
    for form, tolerance in (("stablehlo", 1e-3), ("safetensors", 0.05)):
        out = tmp_path / ("model.safetensors" if form == "safetensors" else form)
        export.export(run, form, out)
        np.testing.assert_allclose(predict.AgeEstimator.from_run(out).predict(images), ages, atol=tolerance)
    assert pretrained.load(run, name)["params"].keys() == pretrained.load(out, name)["params"].keys()
