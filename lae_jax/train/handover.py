"""From one stage to the next: what a run starts from, whether it fits, and what of it is taken over."""

import itertools
import logging

from ml_collections import ConfigDict

from lae_jax import stages
from lae_jax.models import pretrained
from lae_jax.models.pretrained import naming
from lae_jax.runs import fields
from lae_jax.runtime import checkpoints, parallel
from lae_jax.runtime.errors import InputError

logger = logging.getLogger("lae_jax")

_SAME_FEATURES = ("data.image_size", "data.resize", "data.mean", "data.std")
_COMMAND = "python -m lae_jax.main --config configs/{}.py"


def load(config: ConfigDict, stage: stages.Stage) -> checkpoints.Checkpoint | None:
    """What a fresh run starts from: a run, or weights that others trained; None: nothing.

    Raises InputError where the stage cannot start from it.
    """
    name = config.init_from
    if name in ("", "scratch"):
        if stage.name == "represent":
            logger.info(
                "starts from scratch; the paper starts from stage 1 (--config.init_from=runs/pretrain), and published"
                " weights are a start too (docs/training.md)"
            )
        if "head" in stage.loads:
            raise InputError(
                f"stage {stage.name} starts from a run of stage 2: set --config.init_from (made by"
                f" {_COMMAND.format('represent')})"
            )
        return None
    if pretrained.is_weights(name):
        return _weights(config, stage)
    init = checkpoints.load_run(name, config.init_step, _COMMAND.format(stage.follows[0]))
    if init.meta["stage"] not in stage.follows:
        raise InputError(
            f"{name} is a run of stage {init.meta['stage']}; stage {stage.name} starts from one of"
            f" {' or '.join(stage.follows)}"
        )
    return init


def _weights(config: ConfigDict, stage: stages.Stage) -> checkpoints.Checkpoint:
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
    return checkpoints.Checkpoint(weights.source, None, variables, meta)


def with_statistics(config: ConfigDict, trained: dict | None, tell: bool) -> ConfigDict:
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


def check_features(config: ConfigDict, stage: stages.Stage, init: checkpoints.Checkpoint) -> None:
    """A backbone must be the model's, and a head is only right for the features that it was trained on."""
    names = ("model.name",) + _SAME_FEATURES * ("head" in stage.loads)
    names += ("model.hidden",) * ("head" in stage.loads and not config.reinit_head)
    before, now = (fields.flat(fields.as_json(c)) for c in (fields.from_json(init.meta["config"]), config))
    differing = [field for field in names if before[field] != now[field]]
    if differing:
        told = ", ".join(f"{field} {before[field]!r} and not {now[field]!r}" for field in differing)
        add = " ".join(f"--config.{field}={str(before[field]).replace(' ', '')}" for field in differing)
        raise InputError(f"{init.workdir} was trained with {told}: add {add}, or name another init_from")


def constants(config: ConfigDict, stage: stages.Stage, init: checkpoints.Checkpoint | None) -> dict:
    """The validation scores that are constants of the loss: of `mae_from`, else of the run that is started from."""
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


def take_over(fresh: dict, checkpoint: checkpoints.Checkpoint, parts: tuple[str, ...]) -> dict:
    """`fresh` variables with the `parts` ('backbone', 'head') of a checkpoint; logs what was loaded and what made new.

    Lenient about heads: one of another shape is made new. Raises InputError if a backbone leaf does not fit.
    """
    result = {name: dict(tree) for name, tree in fresh.items()}
    loaded, new = [], []
    for part in ("backbone", "head"):
        source = {name: tree.get(part, {}) for name, tree in checkpoint.variables.items()}
        target = {name: tree.get(part, {}) for name, tree in fresh.items()}
        fits = checkpoints.shapes(source) == checkpoints.shapes(target)
        if part == "backbone" and part in parts and not fits:
            model = checkpoint.meta.get("model")
            checkpoints.compare(
                checkpoints.shapes(source),
                checkpoints.shapes(target),
                f"{checkpoint.workdir} (model {model}), backbone",
            )
        if part in parts and fits:
            for name, tree in source.items():
                if tree:
                    result[name][part] = tree
            loaded.append(part)
        else:
            new.append(part)
    logger.info(
        "from %s%s: loaded %s; made new %s",
        checkpoint.workdir,
        "" if checkpoint.step is None else f" step {checkpoint.step}",
        ", ".join(loaded) or "nothing",
        ", ".join(new) or "nothing",
    )
    return result
