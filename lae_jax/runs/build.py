"""Builds the parts of a config: the model, the mapped forward step, the schedules, the optimiser."""

import contextlib
import dataclasses
import functools
import math
import os
from collections.abc import Callable, Iterator, Mapping

import flax.linen as nn
import numpy as np
import optax
from flax.errors import FlaxError
from ml_collections import ConfigDict

from lae_jax import losses, models, optim, stages
from lae_jax.configs import common
from lae_jax.models.pretrained import safetensors_file, tensors
from lae_jax.runs import fields, precision
from lae_jax.runs.forward import forward_step
from lae_jax.runtime import model_file, origin, parallel
from lae_jax.runtime.errors import InputError, unknown
from lae_jax.runtime.model_file import builtin
from lae_jax.runtime.parallel import rows

NUM_AGES = 101
OPTIMISERS = ("sgd", "adamw")


def model(config: ConfigDict, stage: stages.Stage, num_outputs: int, convolutions: str = "auto") -> models.Model:
    """Returns the linen module of a config.

    Args:
      config: The config.
      stage: The stage, whose head it has.
      num_outputs: Number of ages or people; 0: the backbone alone.
      convolutions: Their form, as in `models.create`.

    Raises:
      InputError: A field of config.model has a value that is not allowed, or the model takes no images of this size.
    """
    c, dtype = config.model, precision.dtype_of(config)
    try:
        module = models.create(
            c.name,
            rows.padded(num_outputs) if stage.split else num_outputs,
            dtype,
            head=stage.head,
            embedding_size=c.embedding_size,
            hidden=c.hidden,
            dropout=c.dropout,
            stochastic_depth=c.stochastic_depth,
            axis_name=parallel.AXIS if c.sync_batch_norm else None,
            remat=c.remat,
            convolutions=convolutions,
            parts=config.accumulate,
            precision=c.precision,
            tells_quality=stage.head == "identity" and config.loss.margin_form in stages.classes.ADAPTIVE,
        )
    except ValueError as error:
        raise InputError(f"config.model: {error}") from error
    models.require_size(c.name, config.data.image_size)
    return module


def require_in_range(config: ConfigDict) -> None:
    """Checks how the label distribution of a range is spread.

    Raises:
      InputError: config.loss.in_range is not one of `losses.IN_RANGE`.
    """
    if config.loss.in_range not in losses.IN_RANGE:
        raise InputError("config.loss.in_range: " + unknown("distribution", str(config.loss.in_range), losses.IN_RANGE))


def forward(
    config: ConfigDict, stage: stages.Stage, module: nn.Module, par: parallel.Parallel, flip: bool = False
) -> Callable:
    """Returns the mapped inference step, (variables, uint8 images) -> the stage's output.

    Args:
      config: The config.
      stage: The stage, whose `output` is applied.
      module: The model.
      par: The devices.
      flip: Average the outputs of the images and of their mirror images.
    """
    mapped = par.map_forward(plain_forward(config, stage, module, flip))

    def fitting(variables: Mapping, images: np.ndarray) -> object:
        with fits(config.workdir):
            return mapped(variables, images)

    return fitting


def plain_forward(config: ConfigDict, stage: stages.Stage, module: nn.Module, flip: bool = False) -> Callable:
    """Returns the inference step of one device, as `forward` maps it."""
    return functools.partial(
        forward_step,
        model=module,
        output=stage.output,
        dtype=precision.dtype_of(config),
        mean=tuple(config.data.mean),
        std=tuple(config.data.std),
        flip=flip,
    )


@contextlib.contextmanager
def fits(workdir: os.PathLike | str) -> Iterator[None]:
    """Turns an error of Flax into an InputError: the checkpoint does not fit the model of its config.

    Args:
      workdir: The run, for the message.
    """
    try:
        yield
    except FlaxError as error:
        reason = str(error).split(" (http")[0]
        raise InputError(
            f"{workdir} is damaged (its checkpoint does not fit the model of its config: {reason}): restore it, or name"
            " another run"
        ) from error


def forward_features(config: ConfigDict, stage: stages.Stage, par: parallel.Parallel) -> Callable:
    """Returns the mapped inference step, (variables of the backbone, uint8 images) -> pooled features (B, F)."""
    plain = dataclasses.replace(stage, output=lambda features: features)
    return forward(config, plain, model(config, stage, 0), par)


@dataclasses.dataclass(frozen=True)
class Schedules:
    """Learning rate and momentum (of AdamW beta1) as functions of the optimiser step."""

    learning_rate: optim.Schedule
    momentum: optim.Schedule | float


def schedules(config: ConfigDict, steps_per_epoch: int, total_steps: int) -> Schedules:
    """Returns the schedules that the config names; their learning rate is base x batch / 256.

    Raises:
      InputError: There is no schedule of that name.
    """
    c, peak = config.optim, config.optim.base_learning_rate * config.batch_size / 256
    momentum = c.beta1 if c.name == "adamw" else c.momentum
    if c.schedule == "one_cycle":
        rate = optim.one_cycle(peak, total_steps, c.pct_start, c.div_factor, c.final_div_factor)
        momentum = optim.one_cycle_momentum(total_steps, c.pct_start) if c.cycle_momentum else momentum
        return Schedules(rate, momentum)
    if c.schedule == "multi_step":
        return Schedules(optim.multi_step(peak, [round(m * steps_per_epoch) for m in c.milestones], c.gamma), momentum)
    if c.schedule == "warmup_cosine":
        warmup = round(c.warmup_epochs * steps_per_epoch)
        if warmup >= total_steps:
            raise InputError(
                f"config.optim.warmup_epochs is {c.warmup_epochs}, {warmup} steps, and the run has {total_steps}: lower"
                " it, or raise config.epochs"
            )
        return Schedules(optim.warmup_cosine(peak, total_steps, warmup, c.div_factor, c.final_div_factor), momentum)
    if c.schedule == "constant":
        return Schedules(optim.multi_step(peak, []), momentum)
    raise InputError(
        f"config.optim.schedule is {c.schedule!r}: set it to 'one_cycle', 'warmup_cosine', 'multi_step' or 'constant'"
    )


def optimiser(
    config: ConfigDict, schedule: Schedules, params: Mapping, stage: stages.Stage
) -> optax.GradientTransformation:
    """Returns the optimiser of the config for the parts of the parameters that train in a stage."""
    norm = functools.partial(rows.norm, names=stage.split)
    return optim.trainable(rule(config, schedule, _factor(config), norm), params, stage.trains)


def rule(
    config: ConfigDict, schedule: Schedules, factor: optim.Factor | None, norm: optim.Norm = optax.tree.norm
) -> optax.GradientTransformation:
    """Returns the optimiser that config.optim names.

    Args:
      config: The config.
      schedule: Learning rate and momentum.
      factor: Path of a parameter -> factor of its learning rate.
      norm: The global norm of the gradients.

    Raises:
      InputError: There is no optimiser of that name.
    """
    c = config.optim
    shared = {"clip_norm": c.clip_norm, "decay_all": c.decay_all, "factor": factor, "norm": norm}
    rate, momentum = schedule.learning_rate, schedule.momentum
    if c.name == "adamw":
        return optim.adamw(rate, momentum, c.beta2, c.epsilon, c.weight_decay, **shared)
    if c.name == "sgd":
        return optim.sgd(rate, momentum, c.weight_decay, c.nesterov, **shared)
    raise InputError("config.optim.name: " + unknown("optimiser", str(c.name), OPTIMISERS))


def _factor(config: ConfigDict) -> optim.Factor | None:
    """Returns the factor of each parameter's learning rate, by layer; None: all are 1."""
    c = config.optim
    if c.head_factor == 1 and c.layer_decay == 1:
        return None
    layers = models.layer_order(config.model.name)
    # As in timm and in BEiT (arXiv:2106.08254): the head is the last layer, and each one before has one factor more.
    power = {name: len(layers) - depth for depth, names in enumerate(layers) for name in names}
    return lambda path: c.head_factor if path[0] == "head" else c.layer_decay ** power[path[1]]


_SHARE = ("at least 0 and below 1", lambda value: 0 <= value < 1)
_POSITIVE = ("a number above 0", lambda value: 0 < value < math.inf)
_LIMITS = {
    "ema_decay": _SHARE,
    "loss.teacher_weight": ("from 0 to 1", lambda value: 0 <= value <= 1),
    "loss.teacher_temperature": _POSITIVE,
    "optim.beta1": _SHARE,
    "optim.beta2": _SHARE,
    "optim.epsilon": _POSITIVE,
    "optim.head_factor": _POSITIVE,
    "optim.layer_decay": ("above 0 and at most 1", lambda value: 0 < value <= 1),
    "optim.warmup_epochs": ("a number of at least 0", lambda value: 0 <= value < math.inf),
}


def require_optimiser(config: ConfigDict, trains: tuple[str, ...]) -> None:
    """Checks the fields of the optimiser, the EMA and the teacher.

    Args:
      config: The config.
      trains: Names of the parts that train.

    Raises:
      InputError: A number is out of range, an optimiser is unknown, layer_decay is set where the backbone is frozen,
        or a setting of the teacher where there is none.
    """
    values = fields.flat(fields.as_json(config))
    for name, (wanted, is_allowed) in _LIMITS.items():
        if not is_allowed(values[name]):
            raise InputError(f"config.{name} is {values[name]}: it must be {wanted}")
    defaults = common.get_config().loss
    for name in ("teacher_weight", "teacher_temperature"):
        if not config.teacher and config.loss[name] != defaults[name]:
            raise InputError(
                f"config.loss.{name} is {config.loss[name]}, and config.teacher is '': omit --config.loss.{name}, or"
                " name a teacher"
            )
    c = config.optim
    if "backbone" not in trains and c.layer_decay != 1:
        raise InputError(
            f"config.optim.layer_decay is {c.layer_decay}, and stage {config.stage} trains the head alone, whose"
            " learning rate it does not change: omit it"
        )
    constant = optim.multi_step(c.base_learning_rate, [])
    rule(config, Schedules(constant, c.beta1 if c.name == "adamw" else c.momentum), None)


def load(path: os.PathLike | str, step: int | None = None, how_to_make: str = "") -> origin.Checkpoint:
    """Returns a checkpoint of a run, or the model of a model file.

    Args:
      path: Folder of the run, a model file, or the name of a model of the package.
      step: Step of the run's checkpoint (default: the best one).
      how_to_make: The command that makes the run, for messages.

    Raises:
      InputError: The run or the file cannot be read, or `step` is given for a file.
    """
    if model_file.is_named(path):
        if step is not None:
            raise InputError(f"{os.fspath(path)} is a model file, which holds one step: omit --step")
        return load_file(path)
    from lae_jax.runtime import checkpoints  # orbax takes a second to load

    return checkpoints.load_run(path, step, how_to_make)


def load_file(path: os.PathLike | str) -> origin.Checkpoint:
    """Returns the model of a model file, as `load` does, whatever the name of the file."""
    name, header = os.fspath(path), model_file.read_header(path)
    with safetensors_file.opened(model_file.place_of(path)) as found:
        if not builtin.is_name(path):  # its SHA-256 says that it fits, and the shapes of a model take time
            _require_fit(found, header["meta"], name)
        variables = tensors.take(found, _laid_out({tuple(one.split("/")): found[one].shape for one in found}), name)
    return origin.Checkpoint(name, header["meta"]["step"], variables, header["meta"], header)


def _require_fit(found: Mapping[str, tensors.Tensor], meta: Mapping, name: str) -> None:
    c = fields.from_json(meta["config"]).model
    try:
        # The form that traces fastest.
        module = models.create(c.name, meta["num_outputs"], hidden=c.hidden, convolutions="xla")
    except ValueError as error:
        raise InputError(f"{name}: config.model: {error}") from error
    if wrong := tensors.misfit(found, _laid_out(models.shapes(module))):
        raise InputError(f"{name} does not fit its model {c.name}: {wrong}. {model_file.AGAIN}")


def _laid_out(shapes: Mapping[tuple[str, ...], tuple[int, ...]]) -> dict[str, tensors.Expected]:
    """Returns the tensors of a model file by name, from their shapes by path."""
    return {"/".join(path): tensors.Expected(path, shape, tuple(range(len(shape)))) for path, shape in shapes.items()}


def load_ages(path: os.PathLike | str, step: int | None = None) -> tuple[origin.Checkpoint, ConfigDict, stages.Stage]:
    """Returns the checkpoint, config and stage of a run that estimates ages.

    Raises:
      InputError: The run cannot be read, or does not estimate ages.
    """
    checkpoint = load(path, step)
    stage = stages.get(checkpoint.meta["stage"])
    if stage.target != "age":
        raise InputError(
            f"{path} is a run of stage {stage.name}, which does not estimate ages: name a run of stage 2 or 3"
        )
    return checkpoint, fields.from_json(checkpoint.meta["config"]), stage
