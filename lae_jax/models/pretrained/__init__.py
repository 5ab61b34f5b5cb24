"""Backbones that others trained: `load('hf:timm/tf_efficientnetv2_m.in21k_ft_in1k', 'efficientnet_v2_m')`.

A source is a file (`.safetensors` in timm's or torchvision's layout; `.keras` or `.h5` of Keras' EfficientNetV2), the
same on the Hub (`hf:owner/name[@revision]`), or a run. Pickles (`.pth`, `.bin`) run code when read, and are not read.
"""

import dataclasses
import functools
import os
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from etils import epath

from lae_jax.models import BACKBONES, create
from lae_jax.models.efficientnet_v2 import EfficientNetV2
from lae_jax.models.pretrained import hub, keras_file, naming, safetensors_file, tensors
from lae_jax.models.pretrained.naming import Statistics
from lae_jax.models.pretrained.tensors import Expected, Tensor
from lae_jax.runtime import checkpoints, files, layout
from lae_jax.runtime.errors import InputError

SAFETENSORS, KERAS = (".safetensors",), (".keras", ".h5", ".hdf5")
PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".pkl", ".pickle", ".tar")


@dataclasses.dataclass(frozen=True)
class Weights:
    """A backbone and what is known of it."""

    source: str  # on the Hub with the commit
    variables: dict  # {'params': ..., 'batch_stats': ...}, float32
    statistics: Statistics  # that the images it was trained on were normalised with
    told: str  # where the statistics are known from
    sha256: str  # of the file; '': of a run, whose checkpoints have their own


def load(source: os.PathLike | str, model_name: str) -> dict:
    """{'params', 'batch_stats'} of the backbone alone, as `models.create(model_name, 0)` takes them; numpy, float32.

    Args:
      source: a file, a run's folder, or hf:owner/name[@revision].
      model_name: 'efficientnet_v2_{s,m,l}', 'resnet18', 'resnet50'; from a run any model.

    Raises:
      InputError: there is no such source, it is damaged, of another model (missing, extra and misshapen tensors are
        listed) or holds NaN or infinite values; it is a pickle.
    """
    return read(source, model_name).variables


def is_weights(source: os.PathLike | str) -> bool:
    """Whether a source is a file or on the Hub, and no run."""
    path = epath.Path(source)
    if os.fspath(source).startswith(hub.PREFIX):
        return True
    return not path.is_dir() and (path.suffix.lower() in (*SAFETENSORS, *KERAS, *PICKLES) or path.is_file())


def require(source: os.PathLike | str) -> None:
    """Raises InputError where there is no such file, run or library; whether it fits is only known once it is read."""
    if os.fspath(source).startswith(hub.PREFIX):
        hub.parse(os.fspath(source))
        hub.require()
    elif is_weights(source):
        _check_kind(epath.Path(source))
    else:
        layout.require_run(source)


def read(source: os.PathLike | str, model_name: str) -> Weights:
    """As `load`, with what else is known."""
    name = os.fspath(source)
    if model_name not in BACKBONES:
        create(model_name, 0)  # says which there are
    if not is_weights(source):
        return _from_run(source, model_name)
    on_hub = name.startswith(hub.PREFIX)
    if not on_hub:
        _check_kind(epath.Path(source))
    if model_name not in naming.ARCHITECTURES:
        known = ", ".join(naming.ARCHITECTURES)
        raise InputError(
            f"{name}: {model_name} is a model of this project alone, for which no file has weights: start it from a"
            f" run, or set config.model.name to one of {known}"
        )
    if not on_hub:
        return _from_file(epath.Path(source), name, model_name, {})
    fetched = hub.fetch(name)
    return _from_file(epath.Path(fetched.path), fetched.name, model_name, fetched.config)


def _check_kind(path: epath.Path) -> None:
    """Raises InputError unless there is a file whose name says that it is of a kind that is read."""
    suffix = path.suffix.lower()
    if not path.exists():
        raise InputError(f"there is no file {path}")
    if suffix in PICKLES:
        raise InputError(
            f"{path} is a pickle, which can run any code when it is read: where you have torch and safetensors, convert"
            " it with  torch.load(path, map_location='cpu', weights_only=True)  and "
            " safetensors.torch.save_file(state_dict, 'model.safetensors')  and name that file (docs/training.md)"
        )
    if not path.is_file():
        raise InputError(f"{path} is no file")
    if suffix not in (*SAFETENSORS, *KERAS):
        raise InputError(f"{path}: weights are read from {', '.join((*SAFETENSORS, *KERAS))}, by the file's name")


def _from_file(path: epath.Path, name: str, model_name: str, config: Mapping) -> Weights:
    if path.suffix.lower() in KERAS:
        if BACKBONES[model_name][0] is not EfficientNetV2:
            raise InputError(f"{name}: the ResNets of Keras are other networks; {model_name} is read from safetensors")
        with keras_file.opened(path) as file:
            variables = _take(file.tensors, model_name, _Keras, name)
            statistics, told = file.statistics, file.told
    else:
        statistics, told = _torch_statistics(config, model_name, name)
        with safetensors_file.opened(path) as found:
            variables = _take(found, model_name, _Torch, name)
    return Weights(name, variables, statistics, told, files.sha256_of(path))


class _Torch:
    lay_out, spare = staticmethod(naming.torch_layout), staticmethod(naming.torch_spare)


class _Keras:
    lay_out, spare = staticmethod(naming.keras_layout), staticmethod(naming.keras_spare)


def _take(found: Mapping[str, Tensor], model_name: str, kind: type[_Torch] | type[_Keras], where: str) -> dict:
    found = {name: tensor for name, tensor in found.items() if not kind.spare(name)}
    wanted = kind.lay_out(model_name, _shapes(model_name))
    if wrong := tensors.misfit(found, wanted):
        for other in naming.ARCHITECTURES:
            same_family = BACKBONES[other][0] is BACKBONES[model_name][0]
            if same_family and other != model_name and not tensors.misfit(found, kind.lay_out(other, _shapes(other))):
                raise InputError(
                    f"{where} is {other} and not {model_name}: set config.model.name, or name another file"
                )
        raise InputError(f"{where} does not fit {model_name}: {wrong}")
    return tensors.take(found, wanted, where)


@functools.cache
def _shapes(model_name: str) -> dict[tuple[str, ...], tuple[int, ...]]:
    """('params', 'stem_conv', 'kernel') -> shape, of all of a backbone's variables."""
    module = create(model_name, 0, convolutions="xla")  # the form that is traced soonest
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(lambda x: module.init(jax.random.key(0), x), images)
    return {
        tuple(key.key for key in path): leaf.shape for path, leaf in jax.tree_util.tree_flatten_with_path(shapes)[0]
    }


def _torch_statistics(config: Mapping, model_name: str, name: str) -> tuple[Statistics, str]:
    """By the repository's config.json, which timm writes, else as timm and torchvision have them for the model."""
    expected, architecture = naming.ARCHITECTURES[model_name], config.get("architecture")
    if isinstance(architecture, str) and architecture != expected and not architecture.startswith(f"{expected}_"):
        raise InputError(f"{name} is timm's {architecture}, and {model_name} is {expected}: name a repository of that")
    given = config.get("pretrained_cfg", config)
    if isinstance(given, Mapping) and "mean" in given and "std" in given:
        try:
            mean, std = (tuple(float(value) for value in given[key]) for key in ("mean", "std"))
            if len(mean) != 3 or len(std) != 3 or not (min(std) > 0 and max(*mean, *std) < 1e3 and min(mean) > -1e3):
                raise ValueError(f"mean {mean}, std {std}")
        except (TypeError, ValueError) as error:
            raise InputError(f"{name}: its config.json gives no mean and std of three channels ({error})") from error
        return Statistics(mean, std), "from its config.json"
    efficientnet = BACKBONES[model_name][0] is EfficientNetV2
    statistics = naming.HALF if efficientnet else naming.IMAGENET
    return statistics, f"as {'timm' if efficientnet else 'torchvision'} trains {expected}"


def _from_run(source: os.PathLike | str, model_name: str) -> Weights:
    checkpoint = checkpoints.load_run(source)
    found, wanted = {}, {}
    for collection, tree in checkpoint.variables.items():
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree.get("backbone", {}))[0]:
            name = "/".join([collection, *(key.key for key in path)])
            found[name] = Tensor(leaf.shape, leaf.dtype.name, lambda leaf=leaf: leaf)
    for path, shape in _shapes(model_name).items():
        wanted["/".join(path)] = Expected(path, shape, tuple(range(len(shape))))
    where = f"{source} step {checkpoint.step}"
    if wrong := tensors.misfit(found, wanted):
        raise InputError(f"{where} is a run of {checkpoint.meta.get('model')} and does not fit {model_name}: {wrong}")
    data = checkpoint.meta["config"]["data"]
    statistics = Statistics(tuple(data["mean"]), tuple(data["std"]))
    return Weights(where, tensors.take(found, wanted, where), statistics, "from its config", "")
