"""The plan of a run: all that is checked and settled before its first step."""

import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Mapping

import flax.linen as nn
import numpy as np
import optax
from etils import epath
from ml_collections import ConfigDict

from lae_jax import stages
from lae_jax.data import age_weights, records, sampling
from lae_jax.runs import agreement, build, fields, inputs, leaks, precision
from lae_jax.runtime import origin, parallel
from lae_jax.runtime.errors import InputError
from lae_jax.stages import method_losses, methods
from lae_jax.train import demands, handover, steps
from lae_jax.train import teacher as teachers

logger = logging.getLogger("lae_jax")


@dataclasses.dataclass(frozen=True)
class Durations:
    """Durations in steps."""

    epoch: int
    total: int
    between_evaluations: int


@dataclasses.dataclass(frozen=True)
class History:
    """Training data of a run and of the runs before it, for checkpoints and reports."""

    trained_on: list[dict]  # the splits that they were trained on
    leaks: list[dict]  # leaks that the run is trained with
    identities: dict | None  # hashed people that its backbone was pre-trained on
    teachers: list[dict]  # records of its teacher and of those of the runs before it
    cures: list[dict]  # records of its cures of stage 2 and of those of the runs before it


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that is settled before the first step of a run."""

    config: ConfigDict
    stage: stages.Stage
    par: parallel.Parallel
    dataset: records.Dataset
    training: inputs.Examples
    validation: inputs.Examples | None
    order: sampling.Order  # of positions in `training`
    age_weights: age_weights.AgeWeights | None  # of the class-balanced order; None: all are 1
    num_outputs: int
    durations: Durations
    constants: dict  # the loss constants: arguments of the loss besides outputs and targets
    history: History
    init: origin.Checkpoint | None  # what a fresh run starts from; None if the run resumes
    teacher: teachers.Teacher | None

    @property
    def workdir(self) -> epath.Path:
        """The workdir of the run."""
        return epath.Path(self.config.workdir)

    @functools.cached_property
    def selection(self) -> stages.Selection:
        """Which checkpoint is kept, and why."""
        if self.validation is None:
            return stages.Selection(None, "there is no validation split")
        return self.stage.select(self.validation.targets, self.config.select_images)

    @functools.cached_property
    def scored_rows(self) -> np.ndarray:
        """The validation rows that an evaluation predicts; there must be a validation split."""
        return self.validation.rows[self.stage.scored(self.validation.targets)]

    @functools.cached_property
    def schedule(self) -> build.Schedules:
        """The schedules of learning rate and momentum."""
        return build.schedules(self.config, self.durations.epoch, self.durations.total)

    def tell_ema(self) -> None:
        """Logs the EMA; warns if the weights that the run starts from are still in it at the end."""
        decay, total = self.config.ema_decay, self.durations.total
        if not decay:
            return
        logger.info("the EMA of the weights (config.ema_decay %g) is scored, kept and handed on", decay)
        if (left := decay**total) > 0.01:
            logger.warning(
                "after the %d steps of the run, %.0f%% of the EMA are the weights that it starts from: lower"
                " config.ema_decay (at %.4g it is 1%%), with another config.workdir",
                total,
                100 * left,
                0.01 ** (1 / total),
            )


# Fields and their lower bounds; True: the bound itself is allowed. Nearly all of a label distribution of sigma 0.1 lies
# on one age, and far below, float32 cannot hold it.
_BOUNDS = {
    "loss.label_sigma": (0.1, True),
    "epochs": (0, False),
    "eval_epochs": (0, False),
    "batch_size": (1, True),
    "eval_batch_size": (1, True),
    "accumulate": (1, True),
    "select_images": (1, True),
    "log_steps": (1, True),
    "save_steps": (1, True),
    "max_skipped_steps": (1, True),
    "seed": (0, True),
    "stall_minutes": (0, False),
}


def settled(config: ConfigDict) -> ConfigDict:
    """Returns the config with the fields that its method implies: a new head, a hidden layer. Repeating is harmless."""
    if config.stage != "classify":
        return config
    method = methods.get(config.classify.method)
    config = config.copy_and_resolve_references()
    config.reinit_head = config.reinit_head or method.start == "new"
    if method.trains == "two_layers":
        config.model.hidden = config.model.hidden or methods.HIDDEN
    return config


def make_plan(config: ConfigDict, resumed: dict | None = None) -> Plan:
    """Checks everything that can be checked before the first step, and returns the plan.

    Args:
      config: The config.
      resumed: Meta of the run's newest checkpoint, if there is one; the run then needs no other run.

    Raises:
      InputError: A check failed.
    """
    config = precision.resolved(settled(config), resumed and resumed["config"])
    c = config.classify
    stage = stages.with_method(stages.get(config.stage), c.method, c.setting)
    par = parallel.Parallel(form=config.parallel)
    build.require_in_range(config)
    build.require_optimiser(config, stage.trains)
    _check_numbers(config, par)
    demands.require_whole_batches(config, stages.with_cure(stage, config.cure, 1))
    init = None if resumed else handover.load(config, stage)
    teacher = teachers.load(config, resumed)
    before, also = resumed or (init and init.meta), teacher and teacher.checkpoint.meta
    config = handover.with_statistics(config, before, tell=init is not None)
    if init is not None:
        handover.check_features(config, stage, init)
    constants = resumed["constants"] if resumed else handover.constants(config, stage, init)
    weights = _age_weights(config, stage, resumed)
    dataset = records.open_dataset(config.data.path, config.data.verify)
    _check_data(config, dataset, stage, init, resumed)
    if teacher is not None:
        teacher.check_data(dataset)
    leaking = leaks.check(config, dataset, before, also)
    training, num_outputs = _training(config, dataset, stage)
    stage = stages.with_classes(stage, config.model.class_weights, config.model.class_sampling, num_outputs)
    par = dataclasses.replace(par, split=stage.split)
    epoch = math.ceil(len(training.rows) / config.batch_size)
    stage = stages.with_cure(stage, config.cure, epoch)
    stage = stages.with_teacher(stage) if teacher else stage
    if training.targets.ndim == 2:
        demands.require_ranges(config, stage, dataset)
    if resumed and resumed["num_outputs"] != num_outputs:
        raise InputError(
            f"{config.workdir} was started with {resumed['num_outputs']} outputs, but {dataset.path} needs"
            f" {num_outputs}: choose another --config.workdir"
        )
    if stage.target == "age":
        constants = {
            **constants,
            **method_losses.of_training(method_losses.images_by_age(training.targets, num_outputs)),
        }
    plan = Plan(
        config=config,
        stage=stage,
        par=par,
        dataset=dataset,
        training=training,
        validation=_validation(config, dataset, stage),
        order=_order(config, stage, training.targets, weights),
        age_weights=weights,
        num_outputs=num_outputs,
        durations=Durations(
            epoch=epoch,
            total=max(1, round(config.epochs * epoch)),
            between_evaluations=max(1, round(config.eval_epochs * epoch)),
        ),
        constants={**config.loss, **constants, "num_classes": num_outputs},
        history=History(
            trained_on=leaks.trained_on(config, dataset, before, also),
            leaks=leaking,
            identities=leaks.known_people(dataset, training.rows, before, stage.target == "identity", also),
            teachers=teachers.all_records(before, teacher),
            cures=_cures(before, stage),
        ),
        init=init,
        teacher=teacher,
    )
    # Wrong values must fail now and not after an epoch.
    _ = plan.selection, plan.schedule, inputs.augmentation(config)
    return plan


def _cures(before: Mapping | None, stage: stages.Stage) -> list[dict]:
    """Returns the records of the cures of the runs before and of this run; its own is the last."""
    found = [*((before or {}).get("cures") or [])]
    if stage.cure is not None:
        own = stage.cure.record
        found = [*(one for one in found if one != own), own]
    return found


def require_same_inputs(config: ConfigDict, meta: Mapping) -> None:
    """Checks that a finished run is not started again with another data set, other weights of ages or another teacher.

    What has the same name as then is not read: a finished run needs nothing. All hosts must call it.

    Args:
      config: The config of this start.
      meta: Meta of the run's checkpoint.

    Raises:
      InputError: It is, or what the config names cannot be read.
    """
    before = fields.from_json(meta["config"])
    if config.data.path != before.data.path:
        _require_same_data(config, records.open_dataset(config.data.path, "quick"), meta)
    if config.data.age_weights != before.data.age_weights:
        c = config.classify
        _age_weights(config, stages.with_method(stages.get(config.stage), c.method, c.setting), meta)
    if parallel.on_any_host(config.teacher != before.teacher):
        teachers.load(config, meta)


def _training(config: ConfigDict, dataset: records.Dataset, stage: stages.Stage) -> tuple[inputs.Examples, int]:
    """Returns the training examples, with targets for the loss, and the model's number of outputs."""
    training = inputs.examples(dataset, inputs.split_name(config, config.data.train), stage)
    if stage.target == "identity":
        classes, codes = np.unique(training.targets.astype(str), return_inverse=True)
        return inputs.Examples(training.rows, codes.astype(np.int32)), len(classes)
    label_sigma = inputs.label_sigma(config, dataset, training.rows)
    return inputs.Examples(training.rows, training.targets.astype(np.float32), label_sigma), build.NUM_AGES


def _validation(config: ConfigDict, dataset: records.Dataset, stage: stages.Stage) -> inputs.Examples | None:
    if not config.data.split:
        return None
    return inputs.examples(dataset, inputs.split_name(config, config.data.split), stage)


def _check_numbers(config: ConfigDict, par: parallel.Parallel) -> None:
    values = fields.flat(fields.as_json(config))
    for name, (bound, allowed) in _BOUNDS.items():
        if not (values[name] > bound or (allowed and values[name] == bound)):
            raise InputError(
                f"config.{name} is {values[name]}: it must be {'at least' if allowed else 'above'} {bound}"
            )
    for name in ("mean", "std"):
        values = config.data[name]
        if not isinstance(values, (tuple, list)) or len(values) != 3 or (name == "std" and not min(values) > 0):
            above = " above 0" * (name == "std")
            raise InputError(f"config.data.{name} is {values}: it must be three numbers{above}, one for each colour")
    if par.per_device(config.batch_size) % config.accumulate:
        raise InputError(
            f"config.accumulate {config.accumulate} does not divide the {par.per_device(config.batch_size)} images of a"
            " device: choose a divisor"
        )
    par.per_device(config.eval_batch_size)


def _check_data(config: ConfigDict, dataset: records.Dataset, stage: stages.Stage, init, resumed) -> None:
    """Checks that all hosts, earlier starts, and the run whose head is loaded have the same data set."""
    if not parallel.hosts_agree(dataset.hash):
        raise InputError(
            f"{dataset.path} differs between the hosts (its hash here is {dataset.hash[:12]}): copy one data set to"
            " all of them"
        )
    if resumed and (differing := fields.differences(resumed["config"], fields.as_json(config))):
        raise InputError(
            f"the checkpoint in {config.workdir} has another config ({'; '.join(differing)}): use that config, or"
            " choose another --config.workdir"
        )
    if resumed:
        _require_same_data(config, dataset, resumed)
    if init is None:
        return
    if told := agreement.unknown_crops(init, dataset):
        logger.warning("%s", told)
    if "head" not in stage.loads:
        if told := agreement.other_crops(init, dataset):
            logger.warning("%s: the backbone's features may fit it less well", told)
        return
    agreement.require_same_crops(init, dataset)
    if agreement.was_prepared_again(init, dataset):
        raise InputError(
            f"{dataset.path} was prepared again after {init.workdir} was trained, so its validation split may hold"
            " training images of that run: train that run again, or restore the data set"
        )


def _require_same_data(config: ConfigDict, dataset: records.Dataset, resumed: Mapping) -> None:
    if resumed["data_hash"] != dataset.hash:
        raise InputError(
            f"{dataset.path} is not the data set that {config.workdir} was started with: its hash is"
            f" {dataset.hash[:12]}, the checkpoint's is {resumed['data_hash'][:12]}. Restore the data set, or choose"
            " another --config.workdir"
        )


def _age_weights(config: ConfigDict, stage: stages.Stage, resumed: dict | None) -> age_weights.AgeWeights | None:
    """Returns the weights that the config names, checked against those of an earlier start."""
    if stage.order == "shuffled":
        for name in ("power", "age_weights"):
            if config.data[name]:
                raise InputError(
                    f"config.data.{name} belongs to the class-balanced order, and this run uses the shuffled order"
                    f" (stage {stage.name}, method {config.classify.method}): omit --config.data.{name}"
                )
        return None
    if not 0 <= config.data.power <= 1:
        raise InputError(f"config.data.power is {config.data.power}: it must be from 0 to 1")
    weights = age_weights.read(config.data.age_weights) if config.data.age_weights else None
    if resumed and resumed["age_weights"] != (weights and weights.hash):
        raise InputError(
            f"config.data.age_weights is {config.data.age_weights!r}: other weights than when {config.workdir} was"
            " started (provenance.json has those): restore them, or choose another --config.workdir"
        )
    return weights


def _order(
    config: ConfigDict, stage: stages.Stage, targets: np.ndarray, weights: age_weights.AgeWeights | None
) -> sampling.Order:
    """Returns the stage's order of the training examples."""
    if stage.order == "shuffled":
        return sampling.shuffled(len(targets), config.batch_size, config.seed)
    return sampling.balanced_ages(targets, config.batch_size, config.seed, config.data.power, weights)


def train_step(
    config: ConfigDict,
    stage: stages.Stage,
    constants: Mapping,
    module: nn.Module,
    tx: optax.GradientTransformation,
    teacher: teachers.Teacher | None = None,
) -> Callable:
    """Returns the step of a config, (state, shard of a batch, ...) -> (state, metrics), for `Parallel.map_train`.

    With a teacher, its variables come after the batch.
    """
    settings = steps.Settings(
        seed=config.seed,
        dtype=precision.dtype_of(config),
        mean=tuple(config.data.mean),
        std=tuple(config.data.std),
        accumulate=config.accumulate,
        ema_decay=config.ema_decay,
    )
    return functools.partial(
        steps.train_step,
        stage=stage,
        constants=constants,
        model=module,
        tx=tx,
        settings=settings,
        teacher=teacher and teacher.logits,
    )
