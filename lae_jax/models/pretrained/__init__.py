"""Pretrained backbones: `load('hf:timm/tf_efficientnetv2_m.in21k_ft_in1k', 'efficientnet_v2_m')`.

A source is a file (`.safetensors` in the layout of timm, torchvision, EfficientNet-PyTorch or OpenAI's CLIP; `.keras`
or `.h5` of Keras' EfficientNetV2), a safetensors file on the Hub (`hf:owner/name[@revision]`), a run, or a model file
of lae_jax. Pickles (`.pth`, `.bin`) are refused, because they can run code when they are read.
"""

import dataclasses
import functools
import os
from collections.abc import Mapping

import jax
from etils import epath

from lae_jax.models import BACKBONES, create, shapes
from lae_jax.models.pretrained import hub, naming, safetensors_file, tensors
from lae_jax.models.pretrained.naming import Statistics
from lae_jax.models.pretrained.tensors import Expected, Tensor
from lae_jax.runtime import files, layout, model_file
from lae_jax.runtime.errors import InputError

SAFETENSORS, KERAS = (".safetensors",), (".keras", ".h5", ".hdf5")
PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".pkl", ".pickle", ".tar")


@dataclasses.dataclass(frozen=True)
class Weights:
    """A backbone and its origin.

    Attributes:
      source: The source; on the Hub with its commit.
      variables: {'params': ..., 'batch_stats': ...}, float32.
      statistics: Statistics that its training images were normalised with.
      origin: Where the statistics come from.
      assumed: Whether the source does not say them, so that others may be right.
      sha256: Checksum of the file; '' for a run, whose checkpoints have their own checksums.
    """

    source: str
    variables: dict
    statistics: Statistics
    origin: str
    assumed: bool
    sha256: str


def load(source: os.PathLike | str, model_name: str) -> dict:
    """Reads the variables of a backbone.

    Args:
      source: A file, a run's folder, hf:owner/name[@revision], or the name of a model of the package.
      model_name: Key of `naming.ARCHITECTURES`, such as 'efficientnet_v2_m' or 'vit_b16'; from a run or a model file,
        any model.

    Returns:
      {'params': ..., 'batch_stats': ...} of `models.create(model_name, 0)`; numpy, float32.

    Raises:
      InputError: The source does not exist, is a pickle or damaged, belongs to another model (the message lists
        missing, unexpected and misshapen tensors), or holds NaN or infinite values.
    """
    return read(source, model_name).variables


def is_weights(source: os.PathLike | str) -> bool:
    """Whether a source is a file or on the Hub, as opposed to a run."""
    path = epath.Path(source)
    if os.fspath(source).startswith(hub.PREFIX):
        return True
    return not path.is_dir() and (path.suffix.lower() in (*SAFETENSORS, *KERAS, *PICKLES) or path.is_file())


def require(source: os.PathLike | str) -> None:
    """Checks that a source can be read. Whether it fits a model is only known once it is read.

    Raises:
      InputError: The file, the run or the package huggingface_hub is missing, or the file's kind is not supported.
    """
    if model_file.is_model_file(source):
        model_file.read_header(source)
    elif os.fspath(source).startswith(hub.PREFIX):
        hub.parse(os.fspath(source))
        hub.require()
    elif is_weights(source):
        _check_kind(epath.Path(source))
    else:
        layout.require_run(source)


def read(source: os.PathLike | str, model_name: str) -> Weights:
    """Like `load`, with the backbone's origin."""
    name = os.fspath(source)
    if model_name not in BACKBONES:
        create(model_name, 0)  # raises the error that lists the known models
    if model_file.is_model_file(source):
        return _from_model_file(source, model_name)
    if not is_weights(source):
        return _from_run(source, model_name)
    on_hub = name.startswith(hub.PREFIX)
    if not on_hub:
        _check_kind(epath.Path(source))
    if model_name not in naming.ARCHITECTURES:
        known = ", ".join(naming.ARCHITECTURES)
        raise InputError(
            f"{name}: {model_name} exists only in this project, so no weight file fits it: start from a run, or set"
            f" config.model.name to one of {known}"
        )
    if not on_hub:
        return _from_file(epath.Path(source), name, model_name, _config_beside(epath.Path(source)))
    fetched = hub.fetch(name)
    return _from_file(epath.Path(fetched.path), fetched.name, model_name, fetched.config)


def _check_kind(path: epath.Path) -> None:
    """Raises InputError unless `path` is a file whose suffix is supported."""
    suffix = path.suffix.lower()
    if not path.exists():
        raise InputError(f"there is no file {path}")
    if suffix in PICKLES:
        raise InputError(
            f"{path} is a pickle, which can run any code when it is read. With torch and safetensors installed, convert"
            " it:  state_dict = torch.load(path, map_location='cpu', weights_only=True);"
            "  safetensors.torch.save_file(state_dict, 'model.safetensors')  and use that file (docs/training.md)"
        )
    with files.open_regular(path):  # a pipe would block the library that opens it
        pass
    if suffix not in (*SAFETENSORS, *KERAS):
        known = ", ".join((*SAFETENSORS, *KERAS))
        raise InputError(f"{path}: weights are read from {known} files: give a file with one of these suffixes")


def _from_file(path: epath.Path, name: str, model_name: str, config: Mapping) -> Weights:
    if path.suffix.lower() in KERAS:
        if model_name not in naming.IN_KERAS:
            raise InputError(
                f"{name}: keras.applications has no network equal to {model_name}: give a .safetensors file"
            )
        from lae_jax.models.pretrained import keras_file  # loads h5py

        with keras_file.opened(path) as file:
            variables = _take(file.tensors, model_name, _Keras, name)
            statistics, origin, assumed = file.statistics, file.origin, file.assumed
    else:
        statistics, origin, assumed = _torch_statistics(config, model_name, name)
        with safetensors_file.opened(path) as found:
            variables = _take(found, model_name, _Torch, name)
    return Weights(name, variables, statistics, origin, assumed, files.sha256_of(path))


def _config_beside(path: epath.Path) -> dict:
    """The config.json of a repository whose file was downloaded by hand, {} if there is none."""
    beside = path.parent / hub.CONFIG
    if path.name != hub.FILE or not beside.is_file():
        return {}
    try:
        return hub.read_config(beside)
    except ValueError as error:
        raise InputError(f"{beside} cannot be read ({error}): get it again, or move {path.name} elsewhere") from error


class _Torch:
    layouts, spare = staticmethod(naming.torch_layouts), staticmethod(naming.torch_spare)


class _Keras:
    layouts, spare = staticmethod(naming.keras_layouts), staticmethod(naming.keras_spare)


def _take(found: Mapping[str, Tensor], model_name: str, kind: type[_Torch] | type[_Keras], where: str) -> dict:
    found = {name: tensor for name, tensor in found.items() if not kind.spare(name)}
    # Of several layouts, the one that most of the file's names are from.
    wanted = max(kind.layouts(model_name, _shapes(model_name)), key=lambda layout: len(layout.keys() & found.keys()))
    if wrong := tensors.misfit(found, wanted):
        for other in naming.ARCHITECTURES:
            if other == model_name or BACKBONES[other][0] is not BACKBONES[model_name][0]:
                continue
            if any(not tensors.misfit(found, layout) for layout in kind.layouts(other, _shapes(other))):
                raise InputError(f"{where} is {other} and not {model_name}: set config.model.name, or use another file")
        raise InputError(f"{where} does not fit {model_name}: {wrong}")
    return tensors.take(found, wanted, where)


@functools.cache
def _shapes(model_name: str) -> dict[tuple[str, ...], tuple[int, ...]]:
    """`shapes` of a backbone."""
    return shapes(create(model_name, 0, convolutions="xla"))  # the form that traces fastest


def _torch_statistics(config: Mapping, model_name: str, name: str) -> tuple[Statistics, str, bool]:
    """Statistics from the repository's config.json, which timm writes, else those of timm or torchvision.

    Returns:
      The statistics, where they come from, and whether that is an assumption.
    """
    expected, architecture = naming.ARCHITECTURES[model_name], config.get("architecture")
    if isinstance(architecture, str) and architecture != expected and not architecture.startswith(f"{expected}_"):
        raise InputError(f"{name} is timm's {architecture}, and {model_name} is {expected}: use a repository of it")
    given = config.get("pretrained_cfg", config)
    if isinstance(given, Mapping) and "mean" in given and "std" in given:
        try:
            mean, std = (tuple(float(value) for value in given[key]) for key in ("mean", "std"))
            # One by one: min and max pass over NaN.
            plain = all(-1e3 < value < 1e3 for value in mean) and all(0 < value < 1e3 for value in std)
            if len(mean) != 3 or len(std) != 3 or not plain:
                raise ValueError(f"mean {mean}, std {std}")
        except (TypeError, ValueError) as error:
            raise InputError(f"{name}: its config.json gives no mean and std of three channels ({error})") from error
        return Statistics(mean, std), "from its config.json", False
    statistics, whose = naming.assumed(model_name)
    return statistics, f"{whose}, because there is no {hub.CONFIG} with others", True


def _from_model_file(source: os.PathLike | str, model_name: str) -> Weights:
    name, meta = os.fspath(source), model_file.read_header(source)["meta"]
    wanted, place = _own_layout(model_name, "backbone/"), model_file.place_of(source)
    with safetensors_file.opened(place) as file:
        found = {each: tensor for each, tensor in file.items() if each.split("/")[1:2] != ["head"]}
        if wrong := tensors.misfit(found, wanted):
            raise InputError(f"{name} is a model file of {meta['model']} and does not fit {model_name}: {wrong}")
        variables = tensors.take(found, wanted, name)
    data = meta["config"]["data"]
    statistics = Statistics(tuple(data["mean"]), tuple(data["std"]))
    return Weights(name, variables, statistics, "from its header", False, files.sha256_of(place))


def _own_layout(model_name: str, below: str) -> dict[str, Expected]:
    """Maps our own names of a backbone's variables, 'params/' and `below` and a path, to the expected tensors."""
    return {
        f"{path[0]}/{below}{'/'.join(path[1:])}": Expected(path, shape, tuple(range(len(shape))))
        for path, shape in _shapes(model_name).items()
    }


def _from_run(source: os.PathLike | str, model_name: str) -> Weights:
    from lae_jax.runtime import checkpoints  # loads orbax

    checkpoint = checkpoints.load_run(source)
    found = {}
    for collection, tree in checkpoint.variables.items():
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree.get("backbone", {}))[0]:
            name = "/".join([collection, *(key.key for key in path)])
            found[name] = Tensor(leaf.shape, leaf.dtype.name, lambda leaf=leaf: leaf)
    wanted = _own_layout(model_name, "")
    where = f"{source} step {checkpoint.step}"
    if wrong := tensors.misfit(found, wanted):
        raise InputError(f"{where} is a run of {checkpoint.meta.get('model')} and does not fit {model_name}: {wrong}")
    data = checkpoint.meta["config"]["data"]
    statistics = Statistics(tuple(data["mean"]), tuple(data["std"]))
    return Weights(where, tensors.take(found, wanted, where), statistics, "from its config", False, "")
