"""Trials of the long-tail bench: every method on the cached features of the runs, scored on validation and test."""

import dataclasses
import functools
import logging
import time
from collections.abc import Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from lae_jax import __version__, metrics, models
from lae_jax.data import records
from lae_jax.longtail import extraction, kept_heads
from lae_jax.longtail.fitting import Bench
from lae_jax.runs import fields, inputs, leaks, provenance
from lae_jax.runtime import checkpoints, console, origin
from lae_jax.runtime.errors import InputError
from lae_jax.stages.methods import Method

logger = logging.getLogger("lae_jax")

VALIDATION, TEST = "validation", "test"
# The scores expected on test: errors by group in validation, weighted by the groups' frequencies in test. A test
# split with equal groups needs other settings than a validation split with the long tail.
EXPECTED = "expected"
STAGE3 = Method("stage3", "Bao et al., 2021 (LAE)", "a run of stage 3, trained on images instead of features")


@dataclasses.dataclass(frozen=True, eq=False)
class Trial:
    """The scores of a method with one setting and one peak learning rate, over runs and seeds.

    Attributes:
      method: The method.
      setting: Its setting.
      rate: The peak as base_learning_rate.
      skipped_steps: Number of skipped steps over all runs and seeds.
      reports: Split -> the reports of each (run, seed), runs outermost.
      seeds: Number of seeds of a run.
    """

    method: Method
    setting: float
    rate: float
    skipped_steps: int
    reports: dict[str, list[metrics.AgeReport]]
    seeds: int

    @property
    def name(self) -> str:
        """The method and its setting."""
        return (
            f"{self.method.name}, {self.method.setting} {self.setting:g}" if self.method.setting else self.method.name
        )

    def values(self, split: str, score: str) -> np.ndarray:
        """Returns a score of each (run, seed): a field of the report, 'cs5' or 'mae_plus_sigma'."""
        return np.array([_score(report, score) for report in self._reports(split)], np.float64)

    @functools.cached_property
    def _expected(self) -> list[metrics.AgeReport]:
        counts = self.reports[TEST][0].group_count
        return [metrics.reweighted(report, counts) for report in self.reports[VALIDATION]]

    def _reports(self, split: str) -> list[metrics.AgeReport]:
        return self._expected if split == EXPECTED else self.reports[split]

    def mean(self, split: str, score: str) -> float:
        """Returns the mean of a score over runs and seeds."""
        return float(self.values(split, score).mean())

    def spread(self, split: str, score: str) -> float:
        """Returns the standard deviation of a score over (run, seed); 0 for a single one."""
        values = self.values(split, score)
        return float(values.std(ddof=1)) if len(values) > 1 else 0.0

    def group_mae(self, split: str) -> np.ndarray:
        """Returns the MAE of each group, (8,) years, the mean over runs and seeds."""
        return np.mean([report.group_mae for report in self._reports(split)], axis=0)

    def outside_mae(self, split: str) -> np.ndarray:
        """Returns the MAE of babies and of people over 81, (2,) years, likewise."""
        return np.mean([report.outside_mae for report in self._reports(split)], axis=0)


def _score(report: metrics.AgeReport, score: str) -> float:
    if score == "cs5":
        return report.cs[5]
    return report.mae + report.sigma if score == "mae_plus_sigma" else getattr(report, score)


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
    """One run: its bench and the features of the splits that are scored."""

    extractor: extraction.Extractor
    bench: Bench
    scored: dict[str, extraction.Features]

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


def _told(training: tuple) -> list:
    """`Method.training` as JSON; functions are told by their names."""
    return [getattr(value, "__qualname__", None) or repr(value) for value in training]


def prepare(extractor: extraction.Extractor, config: ConfigDict, passes: int, test: str, allow_leak: bool) -> Prepared:
    """Computes or reads the features of a run.

    Args:
      extractor: The run and the data set.
      config: Config of a stage 3, for the heads.
      passes: Passes over the augmented training images.
      test: Name of the split that is reported on.
      allow_leak: Continue despite a leak.

    Raises:
      InputError: The run has no validation split, a split is missing or has ranges of ages, or splits leak into each
        other.
    """
    own, dataset, workdir = extractor.config, extractor.dataset, extractor.checkpoint.workdir
    _require_exact_ages(
        dataset, [inputs.split_name(own, name) for name in (own.data.train, own.data.split) if name], test
    )
    mae = (extractor.checkpoint.meta["scores"] or {}).get("mae")
    if not own.data.split or mae is None:
        raise InputError(
            f"{workdir} was trained without a validation split, on which methods are chosen: train stage 2 with"
            " --config.data.split=validation, or name a run that has one"
        )
    checked = own.copy_and_resolve_references()
    checked.data.allow_leak = allow_leak
    leaks.check(checked, dataset, extractor.checkpoint.meta)
    names = {VALIDATION: inputs.split_name(own, own.data.split), TEST: test}
    trained_on = dataset.rows(inputs.split_name(own, own.data.train))
    if test not in dataset.manifest["splits"] or test == names[VALIDATION]:
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
    bench = Bench(training.values, training.ages, extractor.own_head(), mae, config, _dropout(config))
    return Prepared(extractor, bench, scored)


def _require_exact_ages(dataset: records.Dataset, own: Sequence[str], test: str) -> None:
    """Checks that the bench's splits have no ranges of ages, before features are computed.

    Raises:
      InputError: A split has.
    """
    for name in (*own, test):
        if name in dataset.manifest["splits"] and dataset.targets("age", dataset.rows(name)).ndim == 2:
            raise InputError(
                f"{dataset.path}: in split {name!r} some ages are ranges, and the bench needs exact ages. Name a data"
                " set with exact ages, and a run of stage represent on it; or train stage 3 with"
                " --config.classify.method=METHOD, which takes ranges, and compare the runs with lae_jax.report"
            )


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
        f" {how}, and train stage 2 on it"
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
    label_sigma = (config if like else own).loss.label_sigma
    config.loss = own.loss.copy_and_resolve_references()
    config.loss.label_sigma = label_sigma
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
    if config.ema_decay:
        raise InputError(
            f"{path} was trained with config.ema_decay {config.ema_decay}, and the bench has no EMA: name a run without"
            " one with --like"
        )
    return config


def _method_of(config: ConfigDict) -> str:
    """Returns the method of a run's config, which may be older than the field."""
    return config.classify.method if "classify" in config else "lae"


def run(
    prepared: Sequence[Prepared], methods: Sequence[Method], seeds: Sequence[int], base_learning_rates: Sequence[float]
) -> list[Trial]:
    """Trains and scores every method with each of its settings and each peak learning rate."""
    all_trials = []
    trained: dict = {}
    for method in console.progress(methods, total=len(methods), what="heads", unit="methods", leave=False):
        began = time.perf_counter()
        all_trials += _trials_of(prepared, method, list(seeds), list(base_learning_rates), trained)
        logger.info("%s: %.1f s", method.name, time.perf_counter() - began)
    return all_trials


def _trials_of(
    prepared, method: Method, seeds: list[int], base_learning_rates: list[float], trained: dict
) -> list[Trial]:
    rates = base_learning_rates if method.loss is not None else [0.0]
    grid = [(setting, rate) for setting in method.settings for rate in rates]
    reports: dict = {place: {VALIDATION: [], TEST: []} for place in range(len(grid))}
    skipped_steps = np.zeros(len(grid), int)
    for number, one in enumerate(prepared):
        heads, bad = _heads(one, method, grid, seeds, rates, trained, number)
        skipped_steps += bad
        for split, features in one.scored.items():
            ages = one.bench.predict(method, heads, features.values[0], [setting for setting, _ in grid])
            for place, of_seed in enumerate(ages):
                reports[place][split] += [metrics.age_report(features.ages, predicted) for predicted in of_seed]
    if skipped_steps.any():
        logger.warning(
            "%s: %d steps had a loss or gradients that were not finite and were skipped",
            method.name,
            skipped_steps.sum(),
        )
    return [
        Trial(method, setting, rate, int(skipped_steps[place]), reports[place], len(seeds))
        for place, (setting, rate) in enumerate(grid)
    ]


def _heads(one: Prepared, method: Method, grid, seeds, rates, trained: dict, number: int):
    """Returns heads (M, S, ...) for the grid, and skipped steps (M,). A head that methods share is trained once."""
    bench = one.bench
    if method.loss is None:
        alike = jax.tree.map(lambda leaf: np.broadcast_to(leaf, (len(grid), len(seeds), *leaf.shape)), bench.own)
        return alike, np.zeros(len(grid), int)
    by_setting = method.sets != "finish" and bool(method.setting)
    points = grid if by_setting else [(method.settings[0], rate) for rate in rates]
    # The setting of a finishing step does not affect the training.
    key = (number, method.training, tuple(points) if by_setting else tuple(rates))
    if key not in trained:
        peaks = [rate * bench.config.batch_size / 256 for _, rate in points]
        settings = [setting for setting, _ in points]
        trained[key] = kept_heads.trained(
            one.extractor.folder.parent / "heads",
            method.name,
            {
                **one.trained_on,
                "method": method.name,
                "training": _told(method.training),
                "points": points,
                "seeds": [*seeds],
            },
            lambda: bench.train(method, settings, peaks, seeds),
        )
    heads, bad = trained[key]
    if not by_setting:
        places = [rates.index(rate) for _, rate in grid]
        heads, bad = jax.tree.map(lambda leaf: leaf[places], heads), bad[places]
    return heads, bad.sum(axis=1)


def stage3(prepared: Sequence[Prepared], paths: Sequence[str]) -> Trial | None:
    """Scores the heads of runs of stage 3, each on the features of its own backbone; None without runs.

    Raises:
      InputError: A run of stage 3 has a backbone that no run of `prepared` has.
    """
    if not paths:
        return None
    reports: dict[str, list] = {VALIDATION: [], TEST: []}
    rate = 0.0
    for path in paths:
        checkpoint = checkpoints.load_run(path)
        backbone = extraction.hash_of(_backbone(checkpoint))
        same = [one for one in prepared if extraction.hash_of(_backbone(one.extractor.checkpoint)) == backbone]
        if not same:
            raise InputError(
                f"{path} has another backbone than the runs: with --run, name the run that it was started from"
            )
        head = jax.tree.map(
            lambda leaf: np.asarray(leaf, np.float32)[None, None], checkpoint.variables["params"]["head"]
        )
        rate = checkpoint.meta["config"]["optim"]["base_learning_rate"]
        for split, features in same[0].scored.items():
            ages = same[0].bench.predict(STAGE3, head, features.values[0], [0.0])[0, 0]
            reports[split].append(metrics.age_report(features.ages, ages))
    return Trial(STAGE3, 0.0, rate, 0, reports, 1)


def _backbone(checkpoint: origin.Checkpoint) -> dict:
    return {name: tree["backbone"] for name, tree in checkpoint.variables.items() if "backbone" in tree}
