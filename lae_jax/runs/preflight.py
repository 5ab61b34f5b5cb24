"""Checks of a program's inputs before it loads JAX or TensorFlow: splits, steps, stages, folders, extras."""

import glob
import importlib.util
import os
import pathlib
from collections.abc import Collection, Iterator, Mapping

from etils import epath

from lae_jax.data import split_names
from lae_jax.runtime import files, layout, model_file
from lae_jax.runtime.errors import InputError, missing_extra
from lae_jax.runtime.typed import declared


def require_images(folder: os.PathLike | str | None) -> None:
    """Checks that the folder of --images exists.

    Raises:
      InputError: It does not.
    """
    if folder is not None and not epath.Path(folder).is_dir():
        reason = "is a file: name the folder" if epath.Path(folder).exists() else f"does not exist{layout.hint(folder)}"
        raise InputError(f"--images {folder} {reason}")


def require_split(data: os.PathLike | str, split: str) -> None:
    """Checks that a data set has a split. If its dataset.json is damaged, opening it says so.

    Raises:
      InputError: It does not have it.
    """
    try:
        splits = files.read_json(epath.Path(data) / layout.DATASET).get("splits")
    except InputError:
        return
    if isinstance(splits, dict):
        split_names.require(data, split, splits)


def config_of(run: os.PathLike | str) -> Mapping:
    """Returns the config of a run's folder, {} if it is missing, or of a model file.

    Raises:
      InputError: It is damaged.
    """
    if model_file.is_named(run):
        return model_file.read_header(run)["meta"]["config"]
    path = epath.Path(run) / layout.CONFIG
    return files.read_json(path, declared.CONFIG_HEAD) if path.exists() else {}


def require_model(run: os.PathLike | str, step: int | None, *, may_be_export: bool = False) -> None:
    """Checks what --run names: a run of stage 2 or 3 with a checkpoint of a step, a model file, or an export.

    Args:
      run: Folder of a run or of an export, a model file, or the name of a model of the package.
      step: Step of the checkpoint; None: the best one.
      may_be_export: Whether an export is allowed.

    Raises:
      InputError: It is none of them, or has no such step.
    """
    if model_file.is_named(run):
        model_file.read_header(run)
    elif not (may_be_export and layout.is_export(run)):
        layout.require_run(run)
        require_ages(run)
    require_step(run, step)


def require_step(run: os.PathLike | str, step: int | None) -> None:
    """Checks that a run has a checkpoint of a step; None is the best one.

    Raises:
      InputError: It does not, or it is a model file, which has one step.
    """
    if step is not None and model_file.is_named(run):
        raise InputError(f"{os.fspath(run)} is a model file, which holds one step: omit --step")
    if step is None or layout.is_export(run):
        return
    names = [path.name for path in (epath.Path(run) / layout.CHECKPOINTS).iterdir()]
    steps = sorted(int(name) for name in names if name.isdigit())
    if step not in steps:
        raise InputError(f"{run} has no checkpoint of step {step}, only {steps}")


def require_ages(run: os.PathLike | str, what_to_do: str = "name") -> None:
    """Checks that a run is not of stage 1.

    Args:
      run: Folder of the run.
      what_to_do: Words before 'a run of stage 2 or 3', for the message.

    Raises:
      InputError: It is.
    """
    if config_of(run).get("stage") == "pretrain":
        raise InputError(
            f"{run} is a run of stage pretrain, which does not estimate ages: {what_to_do} a run of stage 2 or 3"
        )


def require_stage(run: os.PathLike | str, stage: str, flag: str) -> None:
    """Checks that a run is of a stage.

    Args:
      run: Folder of the run.
      stage: Name of the stage.
      flag: Flag that names the run, for the message.

    Raises:
      InputError: It is of another one.
    """
    found = config_of(run).get("stage", stage)
    if found != stage:
        raise InputError(f"{run} is a run of stage {found}: name one of stage {stage} with {flag}")


def split_of(config: Mapping, name: str) -> str:
    """Returns the data set's name of a split: with `data.fold`, that of the fold's `train` or `validation`.

    Args:
      config: A config, or its JSON.
      name: The name in the config: `data.train` or `data.split`, or 'all'.
    """
    fold = config["data"].get("fold")
    return name if fold is None or name == "all" else f"fold{fold}-{name}"


def validation_split(run: os.PathLike | str) -> str:
    """Returns the data set's name of the split that a run is validated on; '' if it has none."""
    config = config_of(run)
    return split_of(config, config["data"]["split"]) if (config.get("data") or {}).get("split") else ""


def require_data_of(run: os.PathLike | str) -> str:
    """Returns the data set of a run's config.

    Raises:
      InputError: It is not there any longer, or the config is missing.
    """
    data = (config_of(run).get("data") or {}).get("path")
    if not data:
        raise InputError(f"{run} has no {layout.CONFIG} that names its data set: restore the file, or pass --data PATH")
    if not layout.is_dataset(data):
        raise InputError(
            f"{data}, the data set of {run}, is not there{layout.hint(data)}. If it was moved, name its new place with"
            " --data PATH"
        )
    return data


def require_extra(extra: str, packages: Collection[str], what: str) -> None:
    """Checks that the packages of an extra are installed.

    Args:
      extra: Name of the extra in pyproject.toml.
      packages: Names of the modules.
      what: What needs them, for the message.

    Raises:
      InputError: One is missing. The message has the command that installs it.
    """
    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        raise InputError(missing_extra(extra, missing[0], what))


def matching(word: str) -> Iterator[str]:
    """Yields what matches a glob. Links to folders are not followed for `**`, because they can lead in circles.

    Args:
      word: The glob. With `**` at its end it is the folder before.
    """
    parts = pathlib.Path(word).parts
    while parts[-1:] == ("**",):
        parts = parts[:-1]
    if "**" not in parts:
        yield from glob.iglob(os.path.join(*parts) if parts else ".")
        return
    first = next(number for number, part in enumerate(parts) if glob.has_magic(part))
    top, rest = pathlib.Path(*parts[:first]), parts[first:]
    is_open = any(part.startswith(".") for part in rest)  # otherwise hidden files do not match
    for path in top.glob(os.path.join(*rest)):
        if is_open or not any(part.startswith(".") for part in path.relative_to(top).parts):
            yield str(path)
