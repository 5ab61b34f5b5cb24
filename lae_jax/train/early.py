"""Checks of a config that need no data set and, but for `check_names`, no JAX: a wrong word ends a start at once."""

import contextlib
import re
from collections.abc import Collection, Iterator

from etils import epath
from ml_collections import ConfigDict

from lae_jax.configs import common
from lae_jax.runs import preflight
from lae_jax.runtime import files, layout, model_file
from lae_jax.runtime.errors import Diverged, InputError

_HUB = "hf:"
# stage -> the shipped config that trains the stage it starts from
_FOLLOWS = {"represent": "pretrain", "classify": "represent"}


def check_stage(config: ConfigDict, workdir: str, before: Collection[str] = ()) -> None:
    """Checks the paths and the splits of a stage's config before JAX is loaded.

    Args:
      config: Config of a stage.
      workdir: Its folder.
      before: Folders of the runs that the same recipe makes before this stage.

    Raises:
      InputError: A path does not exist or holds something else, the workdir cannot be used, or there is no such split.
    """
    layout.require_workdir(workdir)
    if (epath.Path(workdir) / "summary.json").exists():
        return  # a run that is done needs nothing
    begun = (epath.Path(workdir) / layout.CONFIG).exists()
    if not begun:
        _check_sources(config, before)
        if config.data.age_weights:
            from lae_jax.data import age_weights

            age_weights.read(config.data.age_weights)
    _check_teacher(config, before)
    data = config.data.path
    if begun and not files.is_remote(data) and not layout.is_dataset(data):
        raise InputError(
            f"{data}, the data set of {workdir}, is not there{layout.hint(data)}. If it was moved, name its new place"
            " with --config.data.path=PATH"
        )
    layout.require_dataset(data)
    for name in filter(None, (config.data.train, config.data.split)):
        preflight.require_split(data, preflight.split_of(config, name))


def _check_sources(config: ConfigDict, before: Collection[str]) -> None:
    """Checks that what a fresh run starts from is named and exists; a resumed run does not need it."""
    if not before:
        layout.require_start(config.init_from, config.stage)
    for field in ("init_from", "mae_from"):
        source = config[field]
        if source.startswith(_HUB):
            preflight.require_extra("hub", ("huggingface_hub",), f"config.{field}={source}")
            continue
        if source in {"", "scratch", *before}:
            continue
        if model_file.is_model_file(source):
            model_file.read_header(source)
            continue
        place, follows = epath.Path(source), _FOLLOWS.get(config.stage)
        if not place.exists() and (place.suffix or not follows):
            raise InputError(f"config.{field}: no such file or folder: {source}{layout.hint(source)}")
        if place.is_dir() or not place.exists():  # a file is weights, and is read later
            layout.require_run(source, f"python -m lae_jax.main --config configs/{follows}.py" if follows else "")


def _check_teacher(config: ConfigDict, before: Collection[str]) -> None:
    """Checks that the teacher, which a resumed run needs too, is a model of ages."""
    if not config.teacher or not config.loss.teacher_weight or config.teacher in before:
        return
    try:
        preflight.require_model(config.teacher, None)
    except InputError as error:
        raise InputError(f"config.teacher: {error}") from error


def check_names(config: ConfigDict) -> None:
    """Checks the names of the model, the stage, the method and the like before TensorFlow is loaded; it needs JAX.

    Raises:
      InputError: One of them does not exist, or the method's setting does not fit.
    """
    from lae_jax import stages
    from lae_jax.runs import build
    from lae_jax.runtime import parallel
    from lae_jax.train import teacher

    stage = stages.get(config.stage)
    method = stages.with_method(stage, config.classify.method, config.classify.setting)
    cured = stages.with_cure(stage, config.cure, 1)
    if teacher.is_set(config):
        stages.with_teacher(method)
        stages.with_teacher(cured)
    build.require_in_range(config)
    build.require_optimiser(config, stage.trains)
    parallel.require_form(config.parallel)
    stages.with_classes(stage, config.model.class_weights, config.model.class_sampling, build.NUM_AGES)
    stages.classes.require_form(config.loss.margin_form)
    build.model(config, stage, build.NUM_AGES)
    build.schedules(config, 100, 1000)


@contextlib.contextmanager
def naming(name: str, config: ConfigDict) -> Iterator[None]:
    """Makes errors about a stage of a recipe name the fields as the recipe does: config.stages.<name>.<field>.

    Args:
      name: Name of the stage; '' for a config of one stage, whose errors stay as they are.
      config: The config or the recipe.
    """
    data = "people" if name == "pretrain" else "faces"

    def renamed(match: re.Match) -> str:
        field = match[1].partition(".")[0]
        if match[1] == "data.path" and data in config:
            return f"config.{data}"
        return match[0] if field == "workdir" or field not in _FIELDS else f"config.stages.{name}.{match[1]}"

    try:
        yield
    except (InputError, Diverged) as error:
        if not name:
            raise
        raise type(error)(re.sub(r"\bconfig\.([a-z_]+(?:\.[a-z_]+)*)", renamed, str(error))) from error


def next_commands(config: ConfigDict) -> list[str]:
    """Returns the command lines that can follow a finished run."""
    following = {stage: name for name, stage in _FOLLOWS.items()}.get(config.stage)
    train = f"python -m lae_jax.main --config configs/{following}.py --config.init_from={config.workdir}"
    if config.stage == "pretrain":
        return [f"{train} --config.model.name={config.model.name} --config.data.path=FACES"]
    commands = [f"python -m lae_jax.predict --run {config.workdir} PHOTOGRAPHS"]
    if following:
        commands.append(f"{train} --config.model.name={config.model.name} --config.data.path={config.data.path}")
    return commands


def all_fields() -> list[str]:
    """Returns the names of all fields of a config, such as 'epochs' and 'data.path'."""

    def walk(config: ConfigDict, prefix: str) -> Iterator[str]:
        for name, value in config.items():
            if isinstance(value, ConfigDict):
                yield from walk(value, f"{prefix}{name}.")
            else:
                yield prefix + name

    return [*walk(common.get_config(), "")]


_FIELDS = {*common.get_config()}
