"""Reads the backbones in Keras' files without Keras: `.keras`, `.weights.h5` and the older `.h5`.

A small HDF5 file can claim 40 GB, or name other files to read from. Therefore soft and external links and storage
outside the file are refused, and an array is read only after its shape and dtype match the model's. A config in the
file is only searched for the layers that normalise. No model is built from it, so no code in it can run.
"""

import contextlib
import itertools
import json
import math
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from typing import NamedTuple

import h5py
import numpy as np
from etils import epath

from lae_jax.models.pretrained.naming import KERAS, Statistics
from lae_jax.models.pretrained.tensors import Tensor
from lae_jax.runtime.errors import InputError
from lae_jax.runtime.foreign import zips

OBJECTS, DEPTH = 50_000, 16  # an EfficientNetV2-L with its optimiser has 8,000 arrays, 5 levels deep
CONFIG_LIMIT = 16 << 20  # bytes; EfficientNetV2-L's config has 1 million
WEIGHTS_LIMIT = 4 << 30  # bytes; EfficientNetV2-L in float64 with two moments of Adam has 2.9 GB
_MEMBER, _CONFIG = "model.weights.h5", "config.json"
# Number of a layer's variables -> their names, in the order in which Keras creates them.
_VARIABLES = {
    1: ("kernel",),
    2: ("kernel", "bias"),
    3: ("mean", "variance", "count"),
    4: ("gamma", "beta", "moving_mean", "moving_variance"),
}
# Layers in front of a network that keep the values of pixels when it predicts, besides those named Random...
_KEEPS_PIXELS = ("InputLayer", "Functional", "Model", "Sequential", "Resizing", "CenterCrop", "Dropout", "Identity")
_OLD_NAMES = {"depthwise_kernel": "kernel"}


class KerasFile(NamedTuple):
    """The backbone in a file.

    Attributes:
      tensors: Tensors of the backbone by name, such as 'stem_conv/kernel'.
      statistics: Statistics that its training images were normalised with.
      origin: Where the statistics come from.
      assumed: Whether the file may have been trained with others.
    """

    tensors: dict[str, Tensor]
    statistics: Statistics
    origin: str
    assumed: bool


class _Variable(NamedTuple):
    model: str  # where in the file its model is
    name: str  # 'layer/variable'
    tensor: Tensor


@contextlib.contextmanager
def opened(path: epath.Path) -> Iterator[KerasFile]:
    """Opens a file, whose tensors can be read until the context ends.

    Yields:
      The file's backbone.

    Raises:
      InputError: The file is damaged, does not hold one EfficientNetV2, or holds something that Keras never writes.
    """
    try:
        with _hdf5(path) as (file, config):
            if config is None and (text := _attribute(file, "model_config")) is not None:
                config = _parsed(text, path)
            variables = list(_variables(file, config, path))
            models = {variable.model for variable in variables if variable.name.startswith("stem_conv/")}
            if len(models) != 1:
                raise InputError(
                    f"{path} holds {len(models)} models with a layer stem_conv: it must hold one EfficientNetV2 of"
                    " keras.applications"
                )
            tensors: dict[str, Tensor] = {}
            for variable in variables:
                if variable.model in models:
                    if variable.name in tensors:
                        raise InputError(f"{path} holds {variable.name} twice")
                    tensors[variable.name] = variable.tensor
            yield KerasFile(tensors, *_statistics(config, {v.name: v.tensor for v in variables}, path))
    except InputError:
        raise
    except (RuntimeError, *zips.ERRORS) as error:  # the first is of HDF5
        raise InputError(f"{path} is truncated, damaged or not a Keras file ({error}); get it again") from error


@contextlib.contextmanager
def _hdf5(path: epath.Path) -> Iterator[tuple[h5py.File, dict | None]]:
    """The HDF5 file, and the config from a `.keras`, which is a zip of both. Its other members are not read."""
    if path.suffix.lower() != ".keras":
        with path.open("rb") as raw, h5py.File(raw, "r") as file:
            yield file, None
        return
    with path.open("rb") as raw, zipfile.ZipFile(raw) as archive, tempfile.TemporaryFile() as weights:
        limits = {_MEMBER: WEIGHTS_LIMIT, _CONFIG: CONFIG_LIMIT}
        for name, limit in limits.items():
            if name not in archive.namelist():
                raise InputError(f"{path} has no {name}: save the model with Keras 3, or with Keras 2.12 or newer")
            zips.require_plain(archive, name, limit)
        config = _parsed(archive.read(_CONFIG), path)
        with archive.open(_MEMBER) as member:
            shutil.copyfileobj(member, weights, 1 << 20)
        with h5py.File(weights, "r") as file:
            yield file, config


def _parsed(text: str | bytes, path) -> dict:
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: its model config is damaged ({error}); get it again") from error
    return config if isinstance(config, dict) else {}


def _attribute(thing, name: str) -> str | None:
    """A text among the attributes, or None. Its shape is checked before it is read."""
    if name not in thing.attrs or thing.attrs.get_id(name).shape != ():
        return None
    value = thing.attrs[name]
    value = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    return value if isinstance(value, str) and len(value) <= CONFIG_LIMIT else None


def _datasets(
    group: h5py.Group, path, prefix: tuple[str, ...] = (), counter: Iterator[int] | None = None
) -> Iterator[tuple[tuple[str, ...], h5py.Dataset]]:
    """(path inside the file, HDF5 dataset) of everything except the optimiser's."""
    if len(prefix) > DEPTH:
        raise InputError(f"{path} is nested more than {DEPTH} deep: it is not a Keras file")
    counter = counter or itertools.count(1)
    for name in group:
        # A group may be in several others, and those again: a few groups have billions of paths.
        if next(counter) > OBJECTS:
            raise InputError(f"{path} holds more than {OBJECTS} arrays and groups: it is not a Keras file")
        where = (*prefix, name)
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise InputError(f"{path}: {'/'.join(where)} is a link to elsewhere; links are not followed")
        if where in (("optimizer",), ("optimizer_weights",)):
            continue
        item = group[name]
        if isinstance(item, h5py.Group):
            yield from _datasets(item, path, where, counter)
        elif isinstance(item, h5py.Dataset):
            if item.external or item.is_virtual:
                raise InputError(f"{path}: {'/'.join(where)} lies in another file, which is not read")
            yield where, item


def _variables(file: h5py.File, config: dict | None, path) -> Iterator[_Variable]:
    names: dict[tuple[str, ...], str] = {}
    groups: dict[int, dict] = {}
    for where, data in _datasets(file, path):
        tensor = Tensor(data.shape or (), data.dtype.name, _reader(data, path))
        parent = where[:-1]
        if parent and parent[-1] == "vars":
            group = file["/".join(parent)]
            if parent not in names:
                names[parent] = _attribute(group, "name") or _name_by_order(config, parent, path, groups)
            variables = _VARIABLES.get(len(group), ())
            known = where[-1].isdigit() and int(where[-1]) < len(variables)
            variable = variables[int(where[-1])] if known else where[-1]
            yield _Variable("/".join(parent[:-2]), f"{names[parent]}/{variable}", tensor)
        elif len(where) > 1:
            inner = where[1:] if where[0] == "model_weights" else where
            layer, variable = where[-2], where[-1].partition(":")[0]
            # <layer>/.../<layer>/<variable>, or in a nested model <model>/.../<layer>/<variable>
            model = "" if inner[0] == layer else inner[0]
            yield _Variable(model, f"{layer}/{_OLD_NAMES.get(variable, variable)}", tensor)


def _reader(data: h5py.Dataset, path):
    def read() -> np.ndarray:
        # An array that was never written would read as zeros, and one chunk may claim any size.
        if data.chunks is not None or data.id.get_storage_size() != math.prod(data.shape) * data.dtype.itemsize:
            raise InputError(f"{path}: {data.name} is compressed or was never written: save the model again with Keras")
        return data[()]

    return read


def _name_by_order(config: dict | None, parent: tuple[str, ...], path, groups: dict[int, dict]) -> str:
    """The name of a layer in a file without names: ('layers', 'conv2d_3', 'vars') is the fourth Conv2D of the config.

    '' if there is no layer at this path. `groups` keeps the layers of each model of the config, by its `id`: a config
    may have a million layers.
    """
    names, node = [name for name in parent[:-1] if name not in ("layers", "_layer_checkpoint_dependencies")], config
    if len(names) == 0:
        return ""
    if config is None:
        raise InputError(
            f"{path} does not name its layers, as older releases of Keras saved them: save the whole model as .keras,"
            " or its weights with a newer Keras"
        )
    for name in names:
        if id(node) not in groups:
            groups[id(node)] = _by_group(node)
        node = groups[id(node)].get(name)
        if node is None:
            return ""
    found = node.get("config", {}).get("name", "")
    return found if isinstance(found, str) else ""


def _by_group(node: dict) -> dict[str, dict]:
    """Layers of a model by Keras' names for their groups: the class in snake case, numbered."""
    counts: dict[str, int] = {}
    result = {}
    for layer in _layers(node):
        name = re.sub(r"\W+", "", str(layer.get("class_name")))
        name = re.sub("([a-z])([A-Z])", r"\1_\2", re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)).lower()
        number = counts[name] = counts.get(name, -1) + 1
        result[f"{name}_{number}" if number else name] = layer
    return result


def _layers(node: dict) -> list[dict]:
    inner = node.get("config")
    layers = inner.get("layers") if isinstance(inner, dict) else None
    return [layer for layer in layers if isinstance(layer, dict)] if isinstance(layers, list) else []


def _statistics(config: dict | None, tensors: dict[str, Tensor], path) -> tuple[Statistics, str, bool]:
    """The Rescaling and Normalization layers of a config as statistics of images in [0, 1].

    Without such layers, the statistics are those that keras.applications trained with.

    Returns:
      The statistics, where they come from, and whether that is an assumption.
    """
    scale, offset, told, unknown = np.ones(3), np.zeros(3), [], []
    for layer in _before_the_network(config or {}):
        kind, inner = layer.get("class_name"), layer.get("config")
        if kind not in ("Rescaling", "Normalization") or not isinstance(inner, dict):
            if kind not in _KEEPS_PIXELS and not str(kind).startswith("Random"):
                unknown.append(str(kind))
            continue
        try:
            if kind == "Rescaling":
                factor, shift = _channels(inner["scale"]), _channels(inner.get("offset", 0.0))
            else:
                mean, variance = (_moment(inner, which, tensors) for which in ("mean", "variance"))
                factor, shift = 1 / np.sqrt(variance), -mean / np.sqrt(variance)
                if inner.get("invert"):
                    factor, shift = np.sqrt(variance), mean
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: its layer {kind} cannot be understood ({error}); get the file again") from error
        scale, offset = scale * factor, offset * factor + shift
        told = [*dict.fromkeys((*told, kind))]
    doubt = f"its layer {unknown[0]:.40} may change the pixels too" if unknown else ""
    if not told:
        doubt = doubt or ("none of its layers normalises" if config else "the file holds weights only")
        return KERAS, f"as keras.applications trains EfficientNetV2: {doubt}", True
    if not (np.all(np.isfinite(offset)) and np.all(np.isfinite(scale)) and np.all(scale > 0)):
        raise InputError(f"{path}: its layers {' and '.join(told)} scale by {scale.tolist()}: get the file again")
    mean, std = -offset / scale / 255, 1 / scale / 255
    source = f"from {' and '.join(told)} inside the model" + f": {doubt}" * bool(doubt)
    return Statistics(tuple(mean.tolist()), tuple(std.tolist())), source, bool(doubt)


def _before_the_network(config: dict) -> Iterator[dict]:
    """The layers of a config, and of the models in it, up to the first convolution of the backbone."""
    return itertools.takewhile(lambda layer: _name(layer) != "stem_conv", _walk(config))


def _name(layer: dict) -> str | None:
    inner = layer.get("config")
    return inner.get("name") if isinstance(inner, dict) else None


def _walk(node: dict) -> Iterator[dict]:
    for layer in _layers(node):
        yield layer
        yield from _walk(layer)


def _moment(config: dict, which: str, tensors: dict[str, Tensor]) -> np.ndarray:
    """Mean or variance of a Normalization: from its config, or from the weights if it was adapted to data."""
    if config.get(which) is not None:
        return _channels(config[which])
    tensor = tensors[f"{config['name']}/{which}"]
    if math.prod(tensor.shape) > 3:
        raise ValueError(f"its {which} has the shape {list(tensor.shape)}")
    return _channels(tensor.read())


def _channels(value) -> np.ndarray:
    """The three channels of a value as Keras writes it: one number, or one for each channel."""
    if isinstance(value, dict):  # {"class_name": "__numpy__", "config": {"value": [...]}}
        value = value["config"]["value"]
    return np.broadcast_to(np.asarray(value, np.float64).ravel(), (3,))
