"""From one stage to the next: load what a run starts from, check that it fits, take over its parts."""

import dataclasses
import itertools
import logging

from ml_collections import ConfigDict

from lae_jax import stages
from lae_jax.models import pretrained
from lae_jax.models.pretrained import naming
from lae_jax.runs import build, fields
from lae_jax.runtime import checkpoints, files, layout, model_file, origin, parallel
from lae_jax.runtime.errors import InputError
from lae_jax.runtime.foreign import arrays
from lae_jax.runtime.model_file import builtin

logger = logging.getLogger("lae_jax")

_SAME_FEATURES = ("data.image_size", "data.resize", "data.mean", "data.std")
_COMMAND = "python -m lae_jax.main --config configs/{}.py"


def load(config: ConfigDict, stage: stages.Stage) -> origin.Checkpoint | None:
    """Loads what a fresh run starts from: another run, a model file, or published weights; None: scratch.

    Raises:
      InputError: The config names nothing, or the stage cannot start from it.
    """
    name = config.init_from
    layout.require_start(name, stage.name)
    if name == "scratch":
        return None
    if model_file.is_model_file(name):
        return _model_file(config)
    if pretrained.is_weights(name):
        return _weights(config, stage)
    init = checkpoints.load_run(name, config.init_step, _COMMAND.format(stage.follows[0]))
    if init.meta["stage"] not in stage.follows:
        raise InputError(
            f"{name} is a run of stage {init.meta['stage']}, but stage {stage.name} starts from a run of stage"
            f" {' or '.join(stage.follows)}: name one with --config.init_from"
        )
    if decay := init.meta["config"].get("ema_decay"):
        logger.info("%s has an EMA (config.ema_decay %g): its weights are taken", name, decay)
    return init


def _model_file(config: ConfigDict) -> origin.Checkpoint:
    """Loads a model file of stage 2 or 3, from which every stage can start."""
    name = config.init_from
    _require_no_step(config)
    builtin.tell(name)
    digest = files.sha256_of(model_file.place_of(name))
    _require_same_on_hosts(name, digest)
    init = build.load(name)
    return dataclasses.replace(init, meta={**init.meta, "sha256": digest})


def _require_no_step(config: ConfigDict) -> None:
    if config.init_step is not None:
        raise InputError(
            f"config.init_step is {config.init_step}, but {config.init_from} is not a run and has no steps: omit it"
        )


def _require_same_on_hosts(name: str, digest: str) -> None:
    if not parallel.hosts_agree(digest):
        raise InputError(f"{name} differs between the hosts: copy one file to all of them")


def _weights(config: ConfigDict, stage: stages.Stage) -> origin.Checkpoint:
    """Loads a backbone from a file or the Hub, in the form of a run's checkpoint."""
    name = config.init_from
    if "head" in stage.loads:
        raise InputError(
            f"{name} holds a backbone only, but stage {stage.name} starts from a run of stage 2: set --config.init_from"
            f" to one ({_COMMAND.format('represent')} --config.init_from={name} makes it)"
        )
    _require_no_step(config)
    weights = pretrained.read(name, config.model.name)
    _require_same_on_hosts(name, weights.sha256)
    mean, std = (list(values) for values in weights.statistics)
    meta = {
        "model": config.model.name,
        "sha256": weights.sha256,
        "config": {"model": {"name": config.model.name}, "data": {"mean": mean, "std": std}},
    }
    if weights.assumed:
        logger.warning(
            "%s does not say how its training images were normalised. Assumed: mean %s and std %s of RGB pixels from 0"
            " to 1, %s. If others are right, set --config.data.mean and --config.data.std, and omit"
            " --config.data.normalize",
            weights.source,
            _short(mean),
            _short(std),
            weights.origin,
        )
    else:
        logger.info(
            "%s: mean %s and std %s of the images %s", weights.source, _short(mean), _short(std), weights.origin
        )
    variables = {collection: {"backbone": tree} for collection, tree in weights.variables.items()}
    return origin.Checkpoint(weights.source, None, variables, meta)


def with_statistics(config: ConfigDict, trained: dict | None, tell: bool) -> ConfigDict:
    """Returns the config with data.mean and data.std settled.

    With data.normalize 'weights' they are those that the backbone was trained with.

    Args:
      config: The config.
      trained: Meta of the checkpoint that the run starts from or resumes.
      tell: Log if the statistics of the weights differ from those of the run or of the paper.

    Raises:
      InputError: data.normalize has another value, or is 'weights' and there are no weights.
    """
    choice = config.data.normalize
    if choice not in ("", "weights"):
        raise InputError(f"config.data.normalize is {choice!r}: set it to '' (data.mean and data.std) or 'weights'")
    if trained is None:
        if choice:
            raise InputError(
                "config.data.normalize=weights takes mean and std from the weights of config.init_from, and none are"
                " named: set --config.init_from, or omit --config.data.normalize"
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
            "the weights go with images of mean %s and std %s, but this run uses mean %s and std %s. To use"
            " those of the weights, set --config.data.normalize=weights",
            *map(_short, (*known, *used)),
        )
    elif not _close(known, naming.IMAGENET):
        logger.info(
            "mean %s and std %s of the images come from the weights and differ from the paper's", *map(_short, known)
        )
    return config


def _short(values) -> list[float]:
    return [round(float(value), 4) for value in values]


def _close(a, b) -> bool:
    """Whether mean and std agree to four digits, the precision in which they are published."""
    return all(abs(x - y) < 1e-4 for x, y in zip(itertools.chain(*a), itertools.chain(*b), strict=True))


def check_features(config: ConfigDict, stage: stages.Stage, init: origin.Checkpoint) -> None:
    """Checks that the backbone is that of the model, and that the head was trained on the same features.

    Raises:
      InputError: A field of the config differs from that of the run it starts from.
    """
    names = ("model.name",) + _SAME_FEATURES * ("head" in stage.loads)
    names += ("model.hidden",) * ("head" in stage.loads and not config.reinit_head)
    before, now = (fields.flat(fields.as_json(c)) for c in (fields.from_json(init.meta["config"]), config))
    differing = [field for field in names if before[field] != now[field]]
    if differing:
        told = "; ".join(f"{field} {before[field]!r}, not {now[field]!r}" for field in differing)
        add = " ".join(f"--config.{field}={str(before[field]).replace(' ', '')}" for field in differing)
        raise InputError(f"{init.workdir} was trained with {told}: add {add}, or name another --config.init_from")
    for field in ("loss.label_sigma", "loss.label_spread", "loss.in_range"):
        if "head" in stage.loads and before[field] != now[field]:
            values = (f"{value:g}" if isinstance(value, float) else value for value in (before[field], now[field]))
            told = "%s was trained with %s %s, and this run uses %s (--config.%s)"
            logger.warning(told, init.workdir, field, *values, field)


def constants(config: ConfigDict, stage: stages.Stage, init: origin.Checkpoint | None) -> dict:
    """Returns the validation scores that are loss constants, of `mae_from`, or else of the run that it starts from.

    Those of a model file are the ones of its header, whichever of the two stages of ages it is of.

    Raises:
      InputError: That run is not of stage 2, or it or the file has no such scores.
    """
    if not stage.needs:
        return {}
    source = build.load(config.mae_from, None, _COMMAND.format("represent")) if config.mae_from else init
    if source.file is None and source.meta["stage"] != "represent":
        raise InputError(
            f"{source.workdir} is a run of stage {source.meta['stage']}, but mae comes from stage represent:"
            " name a run of that stage with --config.mae_from"
        )
    scores = source.meta["scores"] or {}
    if "distance" in scores:  # where labels are ranges, the mean of L_er is the mean distance to them
        scores = {**scores, "mae": scores["distance"]}
        logger.info(
            "mae of the loss is %.2f years, the mean distance of %s to the ranges of its validation split. The error of"
            " exact ages is larger: if yours are exact, train stage 2 on them first",
            scores["distance"],
            source.workdir,
        )
    missing = [name for name in stage.needs if scores.get(name) is None]
    if missing and source.file is not None:
        raise InputError(
            f"{source.workdir} has no validation {', '.join(missing)}: train stage 2 on your data first"
            f" ({_COMMAND.format('represent')} --config.init_from={source.workdir}) and start stage 3 from that run, or"
            " name a run of stage represent with --config.mae_from"
        )
    if missing and source.meta["config"]["data"]["split"]:
        raise InputError(
            f"{source.workdir} step {source.step} was saved without an evaluation, so it has no validation"
            f" {', '.join(missing)}: omit --config.init_step, or name an evaluated run with --config.mae_from"
        )
    if missing:
        raise InputError(
            f"{source.workdir} step {source.step} has no validation {', '.join(missing)}, because it was trained"
            " without a validation split: with --config.mae_from, name a run of stage represent that has one"
        )
    return {name: scores[name] for name in stage.needs}


def take_over(fresh: dict, checkpoint: origin.Checkpoint, parts: tuple[str, ...]) -> dict:
    """Returns `fresh` variables with parts of a checkpoint, and logs which parts were loaded and which are new.

    A head of another shape is not loaded.

    Args:
      fresh: The variables of a new model.
      checkpoint: The checkpoint.
      parts: 'backbone' and 'head', or one of them.

    Raises:
      InputError: An array of the backbone does not fit.
    """
    result = {name: dict(tree) for name, tree in fresh.items()}
    loaded, new = [], []
    for part in ("backbone", "head"):
        source = {name: tree.get(part, {}) for name, tree in checkpoint.variables.items()}
        target = {name: tree.get(part, {}) for name, tree in fresh.items()}
        fits = arrays.shapes(source) == arrays.shapes(target)
        if part == "backbone" and part in parts and not fits:
            model = checkpoint.meta.get("model")
            arrays.compare(
                arrays.shapes(source),
                arrays.shapes(target),
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
        "from %s%s: loaded %s; initialised %s",
        checkpoint.workdir,
        "" if checkpoint.step is None else f" step {checkpoint.step}",
        ", ".join(loaded) or "nothing",
        ", ".join(new) or "nothing",
    )
    return result
