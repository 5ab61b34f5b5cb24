"""Files of weights that are damaged or lie: each is one sentence, and none makes the reader allocate what it claims."""

import json
import pickle
import tracemalloc
import zipfile

import h5py
import numpy as np
import pytest
from etils import epath

from benchmarks import foreign_models as foreign
from lae_jax.models import pretrained
from lae_jax.models.pretrained import keras_file, naming, safetensors_file
from lae_jax.runtime.errors import InputError

S = "efficientnet_v2_s"


@pytest.fixture(scope="module", autouse=True)
def traced():
    """The models' shapes, which are found once; while memory is traced it would take ten times as long."""
    for name in naming.ARCHITECTURES:
        pretrained._shapes(name)


@pytest.fixture(autouse=True)
def no_allocation(traced):
    """Nothing that a file claims is allocated: not one of these tests needs 64 MB."""
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20


def safetensors(path, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_a_small_file_is_read(tmp_path):
    values = np.array([1.5, -2.0])
    foreign.write_safetensors(tmp_path / "a.safetensors", {"a": values, "n": np.array(7), "none": np.zeros((0, 3))})
    with safetensors_file.opened(epath.Path(tmp_path / "a.safetensors")) as tensors:
        assert np.array_equal(tensors["a"].read(), values) and tensors["n"].read() == 7
        assert tensors["none"].read().shape == (0, 3)
        assert [(t.shape, t.dtype) for t in tensors.values()] == [((2,), "float32"), ((), "int64"), ((0, 3), "float32")]


def test_files_of_the_reference_writer_are_read(tmp_path):
    writer = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")
    import ml_dtypes

    rng = np.random.default_rng(0)
    kinds = (np.float64, np.float32, np.float16, ml_dtypes.bfloat16, np.int64, np.uint8, np.bool_)
    arrays = {f"layer.{i}": rng.uniform(0, 9, (2, i + 1)).astype(kind) for i, kind in enumerate(kinds)}
    writer.save_file(arrays, tmp_path / "a.safetensors", metadata={"format": "np"})
    with safetensors_file.opened(epath.Path(tmp_path / "a.safetensors")) as tensors:
        assert tensors.keys() == arrays.keys()
        for name, array in arrays.items():
            assert tensors[name].dtype == array.dtype.name and np.array_equal(tensors[name].read(), array)


@pytest.mark.parametrize(("header", "data", "length"), [
    ({"a": entry()}, b"", 100 * 10**9),
    ({"a": entry()}, b"\0" * 7, None),
    ({"a": entry()}, b"\0" * 9, None),
    ({"a": entry(shape=(10**10,), offsets=(0, 4 * 10**10))}, b"\0" * 8, None),
    ({"a": entry(shape=(3,))}, b"\0" * 8, None),
    ({"a": entry(shape=(-2,), offsets=(8, 0))}, b"\0" * 8, None),
    ({"a": {"shape": [2]}}, b"\0" * 8, None),
    ({"a": entry(), "b": entry(offsets=(4, 12))}, b"\0" * 12, None),
    (b"[" * 100_000, b"", None),
    (b"\xff\xfe{}", b"", None),
])  # fmt: skip
def test_a_damaged_safetensors_is_refused_in_one_line(tmp_path, header, data, length):
    path = safetensors(tmp_path / "a.safetensors", header, data, length)
    with pytest.raises(InputError, match="is damaged or not a safetensors file .*: get it again") as caught:
        pretrained.load(path, "resnet18")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_header_of_a_million_tensors_is_not_read(tmp_path):
    path = safetensors(tmp_path / "a.safetensors", b" " * (17 << 20))
    with pytest.raises(InputError, match="a header of 17,825,792 bytes; more than 16,777,216 are not read"):
        pretrained.load(path, S)


def test_numbers_of_eight_bits_are_not_weights(tmp_path):
    path = safetensors(tmp_path / "a.safetensors", {"conv1.weight": entry(dtype="F8_E4M3", offsets=(0, 2))}, b"\0" * 2)
    with pytest.raises(InputError, match="conv1.weight"):
        pretrained.load(path, "resnet18")


def test_a_file_that_is_no_safetensors_at_all(tmp_path):
    path = tmp_path / "a.safetensors"
    for content in (b"", b"1234567", pickle.dumps({"a": 1}), b"<html><body>404 Not Found</body></html>"):
        path.write_bytes(content)
        with pytest.raises(InputError, match="not a safetensors file"):
            pretrained.load(path, "resnet18")


def stem(path, **kwargs):
    """An HDF5 file with one array, of the name of Keras' first."""
    with h5py.File(path, "w") as file:
        file.create_dataset("stem_conv/stem_conv/kernel:0", **kwargs)
    return path


def test_an_hdf5_file_that_claims_40_gb_is_compared_and_not_read(tmp_path):
    path = stem(tmp_path / "a.h5", shape=(10**10,), dtype="f4")
    assert path.stat().st_size < 10_000
    with pytest.raises(
        InputError, match=r"1 of another shape: stem_conv/kernel \[10000000000\] instead of \[3, 3, 3, 24\]"
    ):
        pretrained.load(path, S)


@pytest.mark.parametrize("kwargs", [
    {"shape": (3, 3, 3, 24), "dtype": "f4"},
    {"data": np.zeros((3, 3, 3, 24), "f4"), "compression": "gzip"},
    {"shape": (3, 3, 3, 24), "maxshape": (None, 3, 3, 24), "chunks": (10**6, 3, 3, 24), "dtype": "f4"},
])  # fmt: skip
def test_arrays_that_hold_no_plain_values_are_refused(tmp_path, kwargs):
    with keras_file.opened(epath.Path(stem(tmp_path / "a.h5", **kwargs))) as file:
        with pytest.raises(InputError, match="kernel:0 is compressed or was never written"):
            file.tensors["stem_conv/kernel"].read()


def link(file, secret):
    file["stem_conv/stem_conv/kernel"] = h5py.ExternalLink(secret, "/data")


def soft(file, secret):
    file["stem_conv/stem_conv/kernel"] = h5py.SoftLink("/elsewhere")


def external(file, secret):
    file.create_dataset("stem_conv/stem_conv/kernel", (3, 3, 3, 24), "u1", external=[(secret, 0, 648)])


def virtual(file, secret):
    layout = h5py.VirtualLayout((3, 3, 3, 24), "f4")
    layout[...] = h5py.VirtualSource(secret, "data", (3, 3, 3, 24))
    file.create_virtual_dataset("stem_conv/stem_conv/kernel", layout)


def loop(file, secret):
    group = file.create_group("stem_conv")
    group["again"] = group


@pytest.mark.parametrize(("make", "message"), [
    (link, "stem_conv/stem_conv/kernel is a link to elsewhere"),
    (soft, "stem_conv/stem_conv/kernel is a link to elsewhere"),
    (external, "stem_conv/stem_conv/kernel lies in another file"),
    (virtual, "stem_conv/stem_conv/kernel lies in another file"),
    (loop, "is nested more than 16 deep"),
])  # fmt: skip
def test_an_hdf5_file_that_leads_elsewhere_is_refused(tmp_path, make, message):
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["data"] = np.zeros((3, 3, 3, 24), "f4")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        make(file, str(secret))
    with pytest.raises(InputError, match=message):
        pretrained.load(tmp_path / "a.h5", S)


def test_a_file_with_too_many_arrays_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(keras_file, "OBJECTS", 5)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for number in range(7):
            file[f"stem_conv/{number}"] = 0.0
    with pytest.raises(InputError, match="holds more than 5 arrays and groups"):
        pretrained.load(tmp_path / "a.h5", S)


def test_a_few_groups_with_billions_of_paths_are_refused(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        group = file.create_group("stem_conv")
        for _ in range(12):
            below = group.create_group("0")
            for number in range(1, 10):
                group[str(number)] = below
            group = below
    with pytest.raises(InputError, match="holds more than 50000 arrays and groups"):
        pretrained.load(tmp_path / "a.h5", S)


def test_a_config_of_many_layers_is_searched_once(tmp_path, monkeypatch):
    searched, search = [], keras_file._by_group
    monkeypatch.setattr(keras_file, "_by_group", lambda node: searched.append(node) or search(node))
    with h5py.File(tmp_path / "a.tmp", "w") as file:
        for number in range(1, 20):
            file[f"layers/conv2d_{number}/vars/0"] = np.zeros((3, 3, 3, 24), "f4")
    layers = [layer("Conv2D", name=f"{'stem_conv' if number == 9 else number}") for number in range(20)]
    path = keras(tmp_path / "a.keras", model(*layers), (tmp_path / "a.tmp").read_bytes())
    with keras_file.opened(epath.Path(path)) as file:
        assert "stem_conv/kernel" in file.tensors
    assert len(searched) == 1


def test_a_keras_file_of_another_model_is_told_apart(tmp_path):
    with h5py.File(tmp_path / "b0.h5", "w") as file:  # EfficientNetV2-B0 begins so
        file["stem_conv/stem_conv/kernel:0"] = np.zeros((3, 3, 3, 32), "f4")
        file["block1a_project_conv/block1a_project_conv/kernel:0"] = np.zeros((3, 3, 32, 16), "f4")
        file["block9z_bn/block9z_bn/gamma:0"] = np.zeros(3, "f4")
        file["predictions/predictions/bias:0"] = np.zeros(10, "f4")
    with pytest.raises(InputError, match="does not fit efficientnet_v2_s: .* 1 unexpected: block9z_bn/gamma; 2 of "
                       r"another shape: block1a_project_conv/kernel \[3, 3, 32, 16\] instead of"):  # fmt: skip
        pretrained.load(tmp_path / "b0.h5", S)
    with h5py.File(tmp_path / "resnet.h5", "w") as file:
        file["conv1_conv/conv1_conv/kernel:0"] = np.zeros((7, 7, 3, 64), "f4")
    with pytest.raises(InputError, match="holds 0 models with a layer stem_conv"):
        pretrained.load(tmp_path / "resnet.h5", S)


def keras(path, config, weights=None, **members):
    """A .keras file with the given config and nearly no weights."""
    if weights is None:
        weights = stem(path.with_suffix(".tmp"), data=np.zeros((3, 3, 3, 24), "f4")).read_bytes()
    members = {"model.weights.h5": weights, "config.json": json.dumps(config), **members}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            if content is not None:
                archive.writestr(name, content)
    return path


def layer(kind, **config):
    return {"class_name": kind, "config": config}


def model(*layers):
    return layer("Functional", name="m", layers=list(layers))


def test_a_keras_zip_is_read_by_two_members_and_its_code_is_not_run(tmp_path):
    code = {"class_name": "__lambda__", "config": {"code": "4wEAAAAAAAAAAAAAAAAAAA=="}}
    layers = [layer("Lambda", name="f", function=code), layer("Rescaling", name="r", scale=1 / 255, offset=0.0)]
    path = keras(tmp_path / "a.keras", model(*layers), **{"../../evil": b"x", "assets/a": b"y"})
    with keras_file.opened(epath.Path(path)) as file:
        assert file.tensors["stem_conv/kernel"].read().shape == (3, 3, 3, 24)
        assert np.allclose(file.statistics, [[0] * 3, [1] * 3], atol=1e-15)
        # What the code does to the pixels is unknown.
        assert (
            file.assumed
            and file.origin == "from Rescaling inside the model: its layer Lambda may change the pixels too"
        )
    assert not (tmp_path.parent.parent / "evil").exists()


@pytest.mark.parametrize(("layers", "factor", "told"), [
    ([layer("RandomFlip"), layer("Rescaling", scale=1 / 128, offset=-1)], 128 / 255, "from Rescaling inside the model"),
    ([model(layer("Rescaling", scale=1 / 64), layer("Conv2D", name="stem_conv"))], 64 / 255, "from Rescaling"),
    ([layer("InputLayer"), layer("Conv2D", name="stem_conv"), layer("Rescaling", scale=9)], 128 / 255, "none of its"),
    ([layer("TrueDivide"), layer("Conv2D", name="stem_conv")], 128 / 255, "its layer TrueDivide may change the pixels"),
])  # fmt: skip
def test_the_layers_in_front_of_a_keras_network_say_its_statistics(tmp_path, layers, factor, told):
    with keras_file.opened(epath.Path(keras(tmp_path / "a.keras", model(*layers)))) as file:
        assert np.allclose(file.statistics.std, factor) and told in file.origin
        assert file.assumed == (not told.startswith("from"))


@pytest.mark.parametrize(("config", "members", "message"), [
    (model(), {"model.weights.h5": None}, "has no model.weights.h5"),
    (model(), {"config.json": None}, "has no config.json"),
    (model(), {"model.weights.h5": b"no HDF5"}, "truncated, damaged or not a Keras file"),
    (model(), {"config.json": b"[" * 200_000}, "its model config is damaged"),
    (model(), {"config.json": b"{"}, "its model config is damaged"),
    (model(), {"config.json": b" " * (17 << 20)}, "claims 17825792 bytes of config.json"),
    (model(layer("Rescaling", scale="x")), {}, "its layer Rescaling cannot be understood"),
    (model(layer("Rescaling", scale=0.0)), {}, "its layers Rescaling scale by"),
    (model(layer("Normalization", name="n", mean=[0, 0], variance=[1, 1])), {}, "Normalization cannot be understood"),
    (model(layer("Normalization", name="n")), {}, "Normalization cannot be understood .'n/mean'"),
])  # fmt: skip
def test_a_keras_zip_that_is_none_is_refused(tmp_path, config, members, message):
    path = keras(tmp_path / "a.keras", config, **members)
    with pytest.raises(InputError, match=message):
        with keras_file.opened(epath.Path(path)):
            pass


def test_a_keras_zip_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(keras_file, "WEIGHTS_LIMIT", 1000)
    with pytest.raises(InputError, match="claims .* bytes of model.weights.h5; more than 1000 are not read"):
        pretrained.load(keras(tmp_path / "a.keras", model()), S)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_a_keras_zip_with_damaged_members_is_refused(tmp_path, method):
    path = keras(tmp_path / "a.keras", model(*[layer("Conv2D", name=str(number)) for number in range(100)]))
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    content = bytearray(path.read_bytes())
    content[60:300] = b"\xff" * 240
    path.write_bytes(content)
    with pytest.raises(InputError, match="truncated, damaged or not a Keras file"):
        pretrained.load(path, S)


@pytest.mark.parametrize("name", ["a.keras", "a.h5"])
def test_a_truncated_keras_file_is_refused(tmp_path, name):
    path = tmp_path / name
    if name.endswith(".keras"):
        keras(path, model())
    else:
        stem(path, data=np.zeros((3, 3, 3, 24), "f4"))
    whole = path.read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 30):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match="truncated, damaged or not a Keras file"):
            pretrained.load(path, S)
