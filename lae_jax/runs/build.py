"""What is built from a config: the model, the mapped forward step, the schedules, the optimiser."""

import dataclasses
import functools
import os

import jax.numpy as jnp
from ml_collections import ConfigDict

from lae_jax import models, optim, stages
from lae_jax.runs import fields
from lae_jax.runs.forward import forward_step
from lae_jax.runtime import checkpoints, parallel
from lae_jax.runtime.errors import InputError

NUM_AGES = 101


def model(config: ConfigDict, stage: stages.Stage, num_outputs: int):
    """The linen module of a config. Raises InputError for an unknown name or a bad rate."""
    c = config.model
    if c.dtype not in ("float32", "bfloat16", "float64"):
        raise InputError(f"config.model.dtype {c.dtype!r}: 'float32' or 'bfloat16'")
    try:
        return models.create(
            c.name,
            num_outputs,
            jnp.dtype(c.dtype),
            head=stage.head,
            embedding_size=c.embedding_size,
            hidden=c.hidden,
            dropout=c.dropout,
            stochastic_depth=c.stochastic_depth,
            axis_name=parallel.AXIS if c.sync_batch_norm else None,
            remat=c.remat,
        )
    except ValueError as error:
        raise InputError(f"config.model: {error}") from error


def forward(config: ConfigDict, stage: stages.Stage, module, par: parallel.Parallel, flip: bool = False):
    """The mapped inference step (variables, uint8 images) -> what the stage gathers."""
    step = functools.partial(
        forward_step,
        model=module,
        output=stage.output,
        dtype=jnp.dtype(config.model.dtype),
        mean=tuple(config.data.mean),
        std=tuple(config.data.std),
        flip=flip,
    )
    return par.map_forward(step)


def forward_features(config: ConfigDict, stage: stages.Stage, par: parallel.Parallel):
    """The mapped inference step (variables of the backbone, uint8 images) -> pooled features (B, F)."""
    plain = dataclasses.replace(stage, output=lambda features: features)
    return forward(config, plain, model(config, stage, 0), par)


@dataclasses.dataclass(frozen=True)
class Schedules:
    """Learning rate and momentum by the number of optimiser steps."""

    learning_rate: optim.Schedule
    momentum: optim.Schedule | float


def schedules(config: ConfigDict, steps_per_epoch: int, total_steps: int) -> Schedules:
    """The learning rate is base x batch / 256, on the schedule that the config names."""
    c, peak = config.optim, config.optim.base_learning_rate * config.batch_size / 256
    if c.schedule == "one_cycle":
        rate = optim.one_cycle(peak, total_steps, c.pct_start, c.div_factor, c.final_div_factor)
        momentum = optim.one_cycle_momentum(total_steps, c.pct_start) if c.cycle_momentum else c.momentum
        return Schedules(rate, momentum)
    if c.schedule == "multi_step":
        return Schedules(
            optim.multi_step(peak, [round(m * steps_per_epoch) for m in c.milestones], c.gamma), c.momentum
        )
    if c.schedule == "constant":
        return Schedules(optim.multi_step(peak, []), c.momentum)
    raise InputError(f"config.optim.schedule {c.schedule!r}: 'one_cycle', 'multi_step' or 'constant'")


def optimiser(config: ConfigDict, schedule: Schedules, params, trains: tuple[str, ...]):
    """SGD for the parts of the parameters that train."""
    c = config.optim
    sgd = optim.sgd(schedule.learning_rate, schedule.momentum, c.weight_decay, c.nesterov, c.clip_norm)
    return optim.trainable(sgd, params, trains)


def load_ages(path: os.PathLike | str, step: int | None = None):
    """The checkpoint (checkpoints.Checkpoint), config and stage of a run that estimates ages. Raises InputError."""
    checkpoint = checkpoints.load_run(path, step)
    stage = stages.get(checkpoint.meta["stage"])
    if stage.target != "age":
        raise InputError(f"{path} is a run of stage {stage.name}, which estimates no ages: name one of stage 2 or 3")
    return checkpoint, fields.from_json(checkpoint.meta["config"]), stage
