"""What a run will do, checked and settled before its first step."""

import dataclasses
import functools
import logging
import math

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from lae_jax import metrics, stages
from lae_jax.data import records, sampling
from lae_jax.runs import agreement, build, fields, inputs, leaks
from lae_jax.runtime import checkpoints, parallel
from lae_jax.runtime.errors import InputError
from lae_jax.stages import method_losses, methods
from lae_jax.train import handover

logger = logging.getLogger("lae_jax")


@dataclasses.dataclass(frozen=True)
class Durations:
    """In steps."""

    epoch: int
    total: int
    between_evaluations: int


@dataclasses.dataclass(frozen=True)
class History:
    """What a run and those before it were trained on; it stands in checkpoints and reports."""

    trained_on: list[dict]  # the splits that they learnt from
    leaks: list[dict]  # that it is trained with
    identities: dict | None  # hashed people that its backbone was pre-trained on


@dataclasses.dataclass(frozen=True)
class Plan:
    """All of a run that is settled before its first step."""

    config: ConfigDict
    stage: stages.Stage
    par: parallel.Parallel
    dataset: records.Dataset
    training: inputs.Examples
    validation: inputs.Examples | None
    order: sampling.Order  # of positions in `training`
    num_outputs: int
    durations: Durations
    constants: dict  # what the loss is given beside outputs and targets
    history: History
    init: checkpoints.Checkpoint | None  # what a fresh run starts from; None when an earlier start is gone on with

    @property
    def workdir(self) -> epath.Path:
        return epath.Path(self.config.workdir)

    @functools.cached_property
    def selected_by(self) -> str | None:
        """The score that the kept checkpoint minimises; None: the newest is kept."""
        return None if self.validation is None else self.stage.select(self.validation.targets)

    @functools.cached_property
    def schedule(self) -> build.Schedules:
        return build.schedules(self.config, self.durations.epoch, self.durations.total)


# Fields and their lower bounds; True: the bound itself is allowed.
_BOUNDS = {
    "epochs": (0, False),
    "eval_epochs": (0, False),
    "batch_size": (1, True),
    "eval_batch_size": (1, True),
    "accumulate": (1, True),
    "log_steps": (1, True),
    "save_steps": (1, True),
    "max_skipped_steps": (1, True),
    "seed": (0, True),
    "stall_minutes": (0, False),
}


def settled(config: ConfigDict) -> ConfigDict:
    """The config with what follows from its method: a new head, a hidden layer. It may be settled already."""
    if config.stage != "classify":
        return config
    method = methods.get(config.classify.method)
    config = config.copy_and_resolve_references()
    config.reinit_head = config.reinit_head or method.start == "new"
    if method.trains == "two_layers":
        config.model.hidden = config.model.hidden or methods.HIDDEN
    return config


def make_plan(config: ConfigDict, resumed: dict | None = None) -> Plan:
    """Checks everything that can be checked before work begins. Raises InputError that says what to do.

    Args: resumed: meta of the run's own newest checkpoint, where there is one; it then needs no other run.
    """
    config = settled(config)
    c = config.classify
    stage = stages.with_method(stages.get(config.stage), c.method, c.setting, config.data.power)
    par = parallel.Parallel()
    _check_numbers(config, par)
    init = None if resumed else handover.load(config, stage)
    before = resumed or (init and init.meta)
    config = handover.with_statistics(config, before, tell=init is not None)
    if init is not None:
        handover.check_features(config, stage, init)
    constants = resumed["constants"] if resumed else handover.constants(config, stage, init)
    dataset = records.open_dataset(config.data.path, config.data.verify)
    _check_data(config, dataset, stage, init, resumed)
    leaking = leaks.check(config, dataset, before)
    training, num_outputs = _training(config, dataset, stage)
    if resumed and resumed["num_outputs"] != num_outputs:
        raise InputError(
            f"{config.workdir} was begun with {resumed['num_outputs']} outputs, {dataset.path} asks for {num_outputs}"
        )
    if stage.target == "age":
        constants = {**constants, **method_losses.of_training(metrics.age_class(training.targets), num_outputs)}
    epoch = math.ceil(len(training.rows) / config.batch_size)
    plan = Plan(
        config=config,
        stage=stage,
        par=par,
        dataset=dataset,
        training=training,
        validation=_validation(config, dataset, stage),
        order=_order(config, stage, training.targets),
        num_outputs=num_outputs,
        durations=Durations(
            epoch=epoch,
            total=max(1, round(config.epochs * epoch)),
            between_evaluations=max(1, round(config.eval_epochs * epoch)),
        ),
        constants={**config.loss, **constants},
        history=History(
            trained_on=leaks.trained_on(config, dataset, before),
            leaks=leaking,
            identities=leaks.known_people(dataset, training.rows, before, stage.target == "identity"),
        ),
        init=init,
    )
    # Wrong ones are told now and not after an epoch.
    _ = plan.selected_by, plan.schedule, inputs.augmentation(config)
    return plan


def _training(config: ConfigDict, dataset: records.Dataset, stage: stages.Stage) -> tuple[inputs.Examples, int]:
    """The training examples, with targets that the loss takes, and the model's number of outputs."""
    training = inputs.examples(dataset, inputs.split_name(config, config.data.train), stage)
    if stage.target == "identity":
        classes, codes = np.unique(training.targets.astype(str), return_inverse=True)
        return inputs.Examples(training.rows, codes.astype(np.int32)), len(classes)
    return inputs.Examples(training.rows, training.targets.astype(np.float32)), build.NUM_AGES


def _validation(config: ConfigDict, dataset: records.Dataset, stage: stages.Stage) -> inputs.Examples | None:
    if not config.data.split:
        return None
    return inputs.examples(dataset, inputs.split_name(config, config.data.split), stage)


def _check_numbers(config: ConfigDict, par: parallel.Parallel) -> None:
    for name, (bound, allowed) in _BOUNDS.items():
        if config[name] < bound or (config[name] == bound and not allowed):
            raise InputError(
                f"config.{name} is {config[name]}: it must be {'at least' if allowed else 'above'} {bound}"
            )
    if par.per_device(config.batch_size) % config.accumulate:
        raise InputError(
            f"accumulate {config.accumulate} does not divide the {par.per_device(config.batch_size)} images of a device"
        )
    par.per_device(config.eval_batch_size)


def _check_data(config: ConfigDict, dataset: records.Dataset, stage: stages.Stage, init, resumed) -> None:
    """The data must be the same on all hosts, what the run began with, and what a model that is taken whole saw."""
    if not parallel.hosts_agree(dataset.hash):
        raise InputError(
            f"the hosts have different data sets in {dataset.path} (here {dataset.hash[:12]}): copy it to all of them"
        )
    if resumed and (differing := fields.differences(resumed["config"], fields.as_json(config))):
        raise InputError(f"the checkpoint in {config.workdir} is of another config: {'; '.join(differing)}")
    if resumed and resumed["data_hash"] != dataset.hash:
        raise InputError(
            f"{dataset.path} is not the data set that {config.workdir} was begun with: its hash is {dataset.hash[:12]},"
            f" that of the checkpoint {resumed['data_hash'][:12]}; restore it, or choose another --config.workdir"
        )
    if init is None:
        return
    if "head" not in stage.loads:
        if told := agreement.other_crops(init, dataset):
            logger.warning("%s: its features may fit less well", told)
        return
    agreement.require_same_crops(init, dataset)
    if agreement.was_prepared_again(init, dataset):
        raise InputError(
            f"{dataset.path} was prepared again after {init.workdir} was trained, so its validation split may hold what"
            " that run trained on: train that run again, or restore the data set"
        )


def _order(config: ConfigDict, stage: stages.Stage, targets: np.ndarray) -> sampling.Order:
    """The stage's order of the training examples."""
    if stage.order == "shuffled":
        return sampling.shuffled(len(targets), config.batch_size, config.seed)
    classes = metrics.age_class(targets)
    absent = sorted({*range(1, 82)} - {*classes.tolist()})
    if absent:
        logger.info("ages without an image, which the class-balanced order leaves out: %s", absent)
    if not 0 <= config.data.power <= 1:
        raise InputError(f"config.data.power is {config.data.power}: it must be from 0 to 1")
    return sampling.class_balanced(classes, config.batch_size, config.seed, config.data.power)
