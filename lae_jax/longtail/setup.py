"""What the long-tail bench trains and scores heads on: runs, their features and labels, and one recipe for all."""

import dataclasses
import functools
import logging
from collections.abc import Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from lae_jax import __version__, models
from lae_jax.data import people, records
from lae_jax.longtail import extraction
from lae_jax.longtail.fitting import Bench
from lae_jax.longtail.outcomes import TEST, VALIDATION, Labels
from lae_jax.runs import fields, inputs, leaks, provenance
from lae_jax.runtime import checkpoints
from lae_jax.runtime.errors import InputError
from lae_jax.stages.methods import METHODS, Method, get

logger = logging.getLogger("lae_jax")


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
    """One run: its bench, and the features and labels of the splits that are scored."""

    extractor: extraction.Extractor
    bench: Bench
    scored: dict[str, extraction.Features]
    labels: dict[str, Labels]
    validation: str  # the data set's name of the validation split

    @functools.cached_property
    def trained_on(self) -> dict:
        """What determines the heads besides the method, as JSON: run, data, features, config, versions."""
        config = fields.as_json(self.bench.config)
        return {
            "checkpoint": self.extractor.digest,
            "data": self.extractor.dataset.hash,
            "features": self.bench.features.shape,
            "mae": self.bench.mae,
            "dropout": self.bench.dropout,
            "config": {name: config[name] for name in ("batch_size", "epochs", "loss", "optim")},
            "versions": [__version__, provenance.commit(), jax.__version__, jax.default_backend()],
        }


def prepare(extractor: extraction.Extractor, config: ConfigDict, passes: int, test: str, allow_leak: bool) -> Prepared:
    """Computes or reads the features of a run.

    Args:
      extractor: The run and the data set.
      config: Config of a stage 3, for the heads.
      passes: Passes over the augmented training images.
      test: Name of the split that is reported on; '': none.
      allow_leak: Continue despite a leak.

    Raises:
      InputError: The run has no validation split, a split is missing, or splits leak into each other.
    """
    own, dataset, workdir = extractor.config, extractor.dataset, extractor.checkpoint.workdir
    scores = extractor.checkpoint.meta["scores"] or {}
    mae = scores.get("distance", scores.get("mae"))  # as in `handover.constants`
    if not own.data.split or mae is None:
        raise InputError(
            f"{workdir} was trained without a validation split, on which methods are chosen: train stage 2 with"
            " --config.data.split=validation, or name a run that has one"
        )
    checked = own.copy_and_resolve_references()
    checked.data.allow_leak = allow_leak
    leaks.check(checked, dataset, extractor.checkpoint.meta)
    names = {VALIDATION: inputs.split_name(own, own.data.split), **({TEST: test} if test else {})}
    trained_on = dataset.rows(inputs.split_name(own, own.data.train))
    if test and (test not in dataset.manifest["splits"] or test == names[VALIDATION]):
        why = "methods are chosen on it" if test == names[VALIDATION] else f"{dataset.path} has no such split"
        raise InputError(f"--test {test}: {why}; {_what_works(dataset, names[VALIDATION], trained_on)}")
    for split, name in names.items():
        both = np.intersect1d(trained_on, dataset.rows(name))
        if len(both) and not allow_leak:
            raise InputError(
                f"{dataset.path}: {len(both)} images of {split} split {name!r} were used for training;"
                f" {_what_works(dataset, names[VALIDATION], trained_on)}"
            )
    training = extractor.features(inputs.split_name(own, own.data.train), passes)
    scored = {split: extractor.features(name) for split, name in names.items()}
    person = people.codes(dataset.column("identity"))[0]
    labels = {split: Labels(one.ages, one.rows, person[one.rows]) for split, one in scored.items()}
    label_sigma = inputs.label_sigma(config, dataset, training.rows)
    bench = Bench(training.values, training.ages, extractor.own_head(), mae, config, _dropout(config), label_sigma)
    return Prepared(extractor, bench, scored, labels, names[VALIDATION])


def methods_for(dataset: records.Dataset, training: Sequence[str], names: Sequence[str]) -> list[Method]:
    """Returns the methods that the bench trains.

    Args:
      dataset: The data set.
      training: Names of its training splits.
      names: Names of methods; empty: all, without those that cannot be used.

    Raises:
      InputError: A name is unknown, or its method needs exact ages and a training label is a range.
    """
    chosen = [get(name) for name in dict.fromkeys(names or METHODS)]
    unable = [method.name for method in chosen if not method.takes_ranges]
    if not unable or all(dataset.targets("age", dataset.rows(name)).ndim == 1 for name in training):
        return chosen
    if names:
        raise InputError(
            f"--methods {','.join(unable)}: each needs exact ages, and in {dataset.path} some are ranges: use any of"
            f" {', '.join(name for name, method in METHODS.items() if method.takes_ranges)}"
        )
    logger.info(
        "%s: some ages are ranges, so methods that need exact ages are left out: %s", dataset.path, ", ".join(unable)
    )
    return [method for method in chosen if method.takes_ranges]


def _what_works(dataset: records.Dataset, validation: str, trained_on: np.ndarray) -> str:
    """Which splits of a data set methods can be judged on, or how to make one."""
    others = [name for name in dataset.manifest["splits"] if name != validation]
    if free := [name for name in others if not np.isin(dataset.rows(name), trained_on).any()]:
        return f"use a split that is not used for training or choosing: --test {' or --test '.join(free)}"
    ratio = "--folds K --ratio 9:1" if validation.startswith("fold") else "--ratio 8:1:1"
    how = f"{ratio}, which makes the split test"
    if dataset.manifest["protocol"] == "column":
        how = "a split test in the source"
    return (
        "every split is used for training or choosing: prepare the photographs into another --out with"
        f" {how}, and train stage 2 on it; or only choose, on validation: --test ''"
    )


def _dropout(config: ConfigDict) -> float:
    """Returns the head's dropout rate: that of the config, or as published for the model."""
    published = models.BACKBONES[config.model.name][1].dropout
    return published if config.model.dropout is None else config.model.dropout


def check_folds(extractors: Sequence[extraction.Extractor], folds: bool) -> None:
    """Checks that there is a run for each fold (with `folds`), or that all runs are of the same split.

    Raises:
      InputError: The runs do not fit together.
    """
    of = [extractor.config.data.fold for extractor in extractors]
    if not folds:
        if len({*of}) > 1:
            raise InputError(f"the runs are of folds {of}: set --by-fold and name a run for each fold")
        return
    splits = extractors[0].dataset.manifest["splits"]
    wanted = sorted({int(name.split("-")[0][4:]) for name in splits if name.startswith("fold")})
    if not wanted:
        raise InputError(
            f"{extractors[0].dataset.path} has no folds: prepare it with --folds K --ratio 9:1 (folds and the split"
            " test), or omit --by-fold"
        )
    if sorted(-1 if fold is None else fold for fold in of) != wanted:
        told = ", ".join("none" if fold is None else str(fold) for fold in of)
        raise InputError(
            f"--by-fold needs a run of stage represent for each of the folds {wanted} (--config.data.fold=K), but the"
            f" runs are of folds {told}. A single backbone for all folds was trained on images that it is scored on"
        )


def recipe(extractor: extraction.Extractor, like: Sequence[str], changed: dict) -> ConfigDict:
    """Returns the config that heads are trained with.

    Args:
      extractor: The run. Without `like`, the config is configs/classify.py with this run's batch size and optimiser.
      like: Runs of stage 3 with the same config, which is used.
      changed: Fields that are set after that.

    Raises:
      InputError: A run of `like` is not LAE's stage 3, their configs differ, or a field has a bad value.
    """
    from lae_jax.configs import classify

    own = extractor.config
    if like:
        config, *others = (_lae_config(path) for path in like)
        for path, other in zip(like[1:], others, strict=True):
            parts = ({name: fields.as_json(c)[name] for name in _RECIPE} for c in (config, other))
            if differing := fields.differences(*parts):
                raise InputError(
                    f"{like[0]} and {path} of --like differ in {'; '.join(differing)}: name runs with one config"
                )
    else:
        config = classify.get_config()
        base_learning_rate = config.optim.base_learning_rate
        config.optim = own.optim.copy_and_resolve_references()
        config.optim.base_learning_rate, config.optim.schedule = base_learning_rate, "one_cycle"
        config.batch_size = own.batch_size
        config.model = own.model.copy_and_resolve_references()
    for name, value in changed.items():
        config[name] = value
    label = {name: (config if like else own).loss[name] for name in ("label_sigma", "label_spread")}
    config.loss = own.loss.copy_and_resolve_references()
    config.loss.update(label)
    if config.batch_size < 1 or config.epochs <= 0:
        raise InputError(f"--batch-size {config.batch_size} and --epochs {config.epochs} must be above 0")
    return config


_RECIPE = ("batch_size", "epochs", "loss", "optim", "reinit_head")


def _lae_config(path: str) -> ConfigDict:
    checkpoint = checkpoints.load_run(path)
    config = fields.from_json(checkpoint.meta["config"])
    own_order = config.data.power != 0 or config.data.age_weights
    if checkpoint.meta["stage"] != "classify" or own_order or _method_of(config) != "lae":
        raise InputError(
            f"{path} is not a run of LAE's stage 3 (classify, power 0, no age weights): name one with --like"
        )
    if config.teacher and config.loss.teacher_weight:
        raise InputError(
            f"{path} was trained with config.teacher {config.teacher}, and the bench has no teacher: name a run without"
            " one with --like"
        )
    if config.ema_decay:
        raise InputError(
            f"{path} was trained with config.ema_decay {config.ema_decay}, and the bench has no EMA: name a run without"
            " one with --like"
        )
    return config


def _method_of(config: ConfigDict) -> str:
    """Returns the method of a run's config, which may be older than the field."""
    return config.classify.method if "classify" in config else "lae"
