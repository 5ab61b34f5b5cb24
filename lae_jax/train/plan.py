"""What a run will do, checked and settled before its first step."""

import dataclasses
import itertools
import logging
import math

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from lae_jax import metrics, stages
from lae_jax.data import records, sampling
from lae_jax.data.augment import Augmentation
from lae_jax.faces import crops
from lae_jax.models import pretrained
from lae_jax.models.pretrained import naming
from lae_jax.runs import build, fields, inputs, leaks
from lae_jax.runtime import checkpoints, parallel
from lae_jax.runtime.errors import InputError
from lae_jax.stages import method_losses, methods

logger = logging.getLogger("lae_jax")


@dataclasses.dataclass(frozen=True)
class Plan:
    """All of a run that is settled before its first step."""

    config: ConfigDict
    stage: stages.Stage
    workdir: epath.Path
    par: parallel.Parallel
    dataset: records.Dataset
    training: inputs.Examples
    validation: inputs.Examples | None
    num_outputs: int
    steps_per_epoch: int
    total_steps: int
    eval_steps: int
    selected_by: str | None  # score that the kept checkpoint minimises; None: the newest is kept
    schedule: build.Schedules
    order: sampling.Order  # of positions in `training`
    augmentation: Augmentation
    handed: dict  # what the loss is given beside outputs and targets
    trained_on: list[dict]  # the splits that it and the runs before it learnt from
    leaks: list[dict]  # that it is trained with; they stand in its checkpoints and reports
    identities: dict | None  # hashed people that its backbone was pre-trained on
    init: checkpoints.Handed | None  # what a fresh run starts from; None when an earlier start is gone on with


_SAME_FEATURES = ("data.image_size", "data.resize", "data.mean", "data.std")
_COMMAND = "python -m lae_jax.main --config configs/{}.py"
# Fields and their lower bounds; True: the bound itself is allowed.
_BOUNDS = {
    "epochs": (0, False),
    "eval_epochs": (0, False),
    "batch_size": (1, True),
    "eval_batch_size": (1, True),
    "accumulate": (1, True),
    "log_steps": (1, True),
    "save_steps": (1, True),
    "max_bad_steps": (1, True),
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
    init = None if resumed else _load_init(config, stage)
    config = _with_statistics(config, init.meta if init else resumed, tell=init is not None)
    if init is not None:
        _check_features(config, stage, init)
    handed = resumed["handed"] if resumed else _load_handed(config, stage, init)
    dataset = records.open_dataset(config.data.path, config.data.verify)
    if not parallel.hosts_agree(dataset.hash):
        raise InputError(
            f"the hosts have different data sets in {dataset.path} (here {dataset.hash[:12]}): copy it to all of them"
        )
    _check_data(config, dataset, stage, init, resumed)
    before = resumed or (init and init.meta)
    leaking = leaks.check(config, dataset, before)
    training = inputs.examples(dataset, inputs.split_name(config, config.data.train), stage)
    validation, selected_by = None, None
    if config.data.split:
        validation = inputs.examples(dataset, inputs.split_name(config, config.data.split), stage)
        selected_by = stage.select(validation.targets)
    if stage.target == "identity":
        classes, codes = np.unique(training.targets.astype(str), return_inverse=True)
        training, num_outputs = inputs.Examples(training.rows, codes.astype(np.int32)), len(classes)
    else:
        training, num_outputs = inputs.Examples(training.rows, training.targets.astype(np.float32)), build.NUM_AGES
        handed = {**handed, **method_losses.of_training(metrics.age_class(training.targets), num_outputs)}
    if resumed and resumed["num_outputs"] != num_outputs:
        raise InputError(
            f"{config.workdir} was begun with {resumed['num_outputs']} outputs, {dataset.path} asks for {num_outputs}"
        )
    steps_per_epoch = math.ceil(len(training.rows) / config.batch_size)
    total_steps = max(1, round(config.epochs * steps_per_epoch))
    if stage.name == "represent" and not (init or resumed):
        logger.info(
            "starts from scratch; the paper starts from stage 1 (--config.init_from=runs/pretrain), and published"
            " weights are a start too (docs/training.md)"
        )
    return Plan(
        config=config,
        stage=stage,
        workdir=epath.Path(config.workdir),
        par=par,
        dataset=dataset,
        training=training,
        validation=validation,
        num_outputs=num_outputs,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        eval_steps=max(1, round(config.eval_epochs * steps_per_epoch)),
        selected_by=selected_by,
        schedule=build.schedules(config, steps_per_epoch, total_steps),
        order=_order(config, stage, training.targets),
        augmentation=inputs.augmentation(config),
        handed={**config.loss, **handed},
        leaks=leaking,
        trained_on=leaks.trained_on(config, dataset, before),
        identities=leaks.known_people(dataset, training.rows, before, stage.target == "identity"),
        init=init,
    )


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
    """The data must be what the run was begun with; and for a stage that goes on with a whole model, what that saw."""
    if resumed and (differing := fields.differences(resumed["config"], fields.as_json(config))):
        raise InputError(f"the checkpoint in {config.workdir} is of another config: {'; '.join(differing)}")
    if resumed and resumed["data_hash"] != dataset.hash:
        raise InputError(
            f"{dataset.path} is not the data set that {config.workdir} was begun with: its hash is {dataset.hash[:12]},"
            f" that of the checkpoint {resumed['data_hash'][:12]}; restore it, or choose another --config.workdir"
        )
    if init is not None and "head" not in stage.loads and init.meta.get("crop", dataset.crop) != dataset.crop:
        logger.warning(
            "the features of %s were learnt on other crops than %s holds: %s",
            init.workdir,
            dataset.path,
            crops.differing(init.meta["crop"], dataset.crop),
        )
    if init is None or "head" not in stage.loads:
        return
    if init.meta["crop"] != dataset.crop:
        both = init.meta["crop"], dataset.crop
        raise InputError(
            f"{init.workdir} was trained on other crops than {dataset.path} holds ({crops.differing(*both)}):"
            f" {crops.how_to_cut_alike(*both)}"
        )
    if init.meta["data"] == str(dataset.path) and init.meta["data_hash"] != dataset.hash:
        raise InputError(
            f"{dataset.path} was prepared again after {init.workdir} was trained, so its validation split may hold what"
            " that run trained on: train that run again, or restore the data set"
        )


def _load_init(config: ConfigDict, stage: stages.Stage) -> checkpoints.Handed | None:
    name = config.init_from
    if name in ("", "scratch"):
        if "head" in stage.loads:
            raise InputError(
                f"stage {stage.name} starts from a run of stage 2: set --config.init_from (made by"
                f" {_COMMAND.format('represent')})"
            )
        return None
    if pretrained.is_weights(name):
        return _load_weights(config, stage)
    init = checkpoints.load_run(name, config.init_step, _COMMAND.format(stage.follows[0]))
    if init.meta["stage"] not in stage.follows:
        raise InputError(
            f"{name} is a run of stage {init.meta['stage']}; stage {stage.name} starts from one of"
            f" {' or '.join(stage.follows)}"
        )
    return init


def _load_weights(config: ConfigDict, stage: stages.Stage) -> checkpoints.Handed:
    """A backbone from a file or the Hub, as a run would hand it over."""
    name = config.init_from
    if "head" in stage.loads:
        raise InputError(
            f"{name} holds a backbone alone, and stage {stage.name} starts from a run of stage 2: set"
            f" --config.init_from (made by {_COMMAND.format('represent')} --config.init_from={name})"
        )
    if config.init_step is not None:
        raise InputError(f"config.init_step is {config.init_step}: it names a step of a run, and {name} is none")
    weights = pretrained.read(name, config.model.name)
    if not parallel.hosts_agree(weights.sha256):
        raise InputError(f"the hosts have different files {name}: copy one to all of them")
    mean, std = (list(values) for values in weights.statistics)
    meta = {
        "model": config.model.name,
        "sha256": weights.sha256,
        "config": {"model": {"name": config.model.name}, "data": {"mean": mean, "std": std}},
    }
    logger.info("%s: mean and std of its images %s", weights.source, weights.told)
    variables = {collection: {"backbone": tree} for collection, tree in weights.variables.items()}
    return checkpoints.Handed(weights.source, None, variables, meta)


def _with_statistics(config: ConfigDict, trained: dict | None, tell: bool) -> ConfigDict:
    """The config with data.mean and data.std settled: with data.normalize 'weights' those that the backbone knows.

    Args:
      trained: meta of what is started from, or gone on with.
      tell: log where the weights' differ from the run's, or from the paper's.
    """
    choice = config.data.normalize
    if choice not in ("", "weights"):
        raise InputError(f"config.data.normalize is {choice!r}: '' (data.mean and data.std) or 'weights'")
    if trained is None:
        if choice:
            raise InputError(
                "config.data.normalize=weights follows what the weights of config.init_from were trained with, and none"
                " are named: name some, or leave it out"
            )
        return config
    known, used = ((data["mean"], data["std"]) for data in (trained["config"]["data"], fields.as_json(config)["data"]))
    if choice:
        config = config.copy_and_resolve_references()
        config.data.mean, config.data.std = (tuple(float(value) for value in values) for values in known)
    if not tell:
        return config
    if not choice and not _close(known, used):
        logger.warning(
            "the weights were trained on images of mean %s, std %s, this run takes %s, %s:"
            " --config.data.normalize=weights follows the weights",
            *map(_short, (*known, *used)),
        )
    elif not _close(known, naming.IMAGENET):
        logger.info("mean %s and std %s of the images are the weights', not the paper's", *map(_short, known))
    return config


def _short(values) -> list[float]:
    return [round(float(value), 4) for value in values]


def _close(a, b) -> bool:
    """Whether mean and std are the same to four digits, as they are published."""
    return all(abs(x - y) < 1e-4 for x, y in zip(itertools.chain(*a), itertools.chain(*b), strict=True))


def _check_features(config: ConfigDict, stage: stages.Stage, init: checkpoints.Handed) -> None:
    """A backbone must be the model's, and a head is only right for the features that it was trained on."""
    names = ("model.name",) + _SAME_FEATURES * ("head" in stage.loads)
    names += ("model.hidden",) * ("head" in stage.loads and not config.reinit_head)
    before, now = (fields.flat(fields.as_json(c)) for c in (fields.from_json(init.meta["config"]), config))
    differing = [field for field in names if before[field] != now[field]]
    if differing:
        told = ", ".join(f"{field} {before[field]!r} and not {now[field]!r}" for field in differing)
        add = " ".join(f"--config.{field}={str(before[field]).replace(' ', '')}" for field in differing)
        raise InputError(f"{init.workdir} was trained with {told}: add {add}, or name another init_from")


def _load_handed(config: ConfigDict, stage: stages.Stage, init: checkpoints.Handed | None) -> dict:
    """The validation scores that the loss is handed: of `mae_from`, else of the run that is started from."""
    if not stage.needs:
        return {}
    source = checkpoints.load_run(config.mae_from, None, _COMMAND.format("represent")) if config.mae_from else init
    if source.meta["stage"] != "represent":
        raise InputError(f"{source.workdir} is a run of stage {source.meta['stage']}; mae comes from stage represent")
    scores = source.meta["scores"] or {}
    missing = [name for name in stage.needs if scores.get(name) is None]
    if missing:
        raise InputError(
            f"{source.workdir} step {source.step} has no validation {', '.join(missing)}, since it was trained without"
            " a validation split: name a run of stage represent that has one with --config.mae_from"
        )
    return {name: scores[name] for name in stage.needs}


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
