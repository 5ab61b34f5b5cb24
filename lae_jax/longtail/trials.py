"""Trials of the long-tail bench: every method on the cached features of the runs, scored on validation and test."""

import logging
import time
from collections.abc import Sequence

import jax
import numpy as np

from lae_jax.longtail import kept_heads
from lae_jax.longtail.outcomes import STAGE3, Trial
from lae_jax.longtail.setup import Prepared
from lae_jax.runtime import checkpoints, console, origin
from lae_jax.runtime.errors import InputError
from lae_jax.stages.methods import Method

logger = logging.getLogger("lae_jax")


def _told(training: tuple) -> list:
    """`Method.training` as JSON; functions are told by their names."""
    return [getattr(value, "__qualname__", None) or repr(value) for value in training]


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
    predictions: list[dict] = [{split: [] for split in prepared[0].scored} for _ in grid]
    skipped_steps = np.zeros(len(grid), int)
    for number, one in enumerate(prepared):
        heads, bad = _heads(one, method, grid, seeds, rates, trained, number)
        skipped_steps += bad
        for split, features in one.scored.items():
            ages = one.bench.predict(method, heads, features.values[0], [setting for setting, _ in grid])
            for place, of_seeds in enumerate(ages):
                predictions[place][split].append(of_seeds)
    if skipped_steps.any():
        logger.warning(
            "%s: %d steps had a loss or gradients that were not finite and were skipped",
            method.name,
            skipped_steps.sum(),
        )
    labels = {split: [one.labels[split] for one in prepared] for split in prepared[0].scored}
    return [
        Trial(method, setting, rate, int(skipped_steps[place]), labels, predictions[place])
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
    labels, predictions = ({split: [] for split in prepared[0].scored} for _ in range(2))
    rate = 0.0
    for path in paths:
        checkpoint = checkpoints.load_run(path)
        backbone = origin.hash_of(_backbone(checkpoint))
        same = [one for one in prepared if origin.hash_of(_backbone(one.extractor.checkpoint)) == backbone]
        if not same:
            raise InputError(
                f"{path} has another backbone than the runs: with --run, name the run that it was started from"
            )
        head = jax.tree.map(
            lambda leaf: np.asarray(leaf, np.float32)[None, None], checkpoint.variables["params"]["head"]
        )
        rate = checkpoint.meta["config"]["optim"]["base_learning_rate"]
        for split, features in same[0].scored.items():
            predictions[split].append(same[0].bench.predict(STAGE3, head, features.values[0], [0.0])[0])
            labels[split].append(same[0].labels[split])
    return Trial(STAGE3, 0.0, rate, 0, labels, predictions)


def _backbone(checkpoint: origin.Checkpoint) -> dict:
    return {name: tree["backbone"] for name, tree in checkpoint.variables.items() if "backbone" in tree}
