"""Inputs of a run: the examples of a split, the augmentation, the outputs for rows of a data set."""

import dataclasses
import logging
from collections.abc import Callable, Mapping

import numpy as np
from ml_collections import ConfigDict

from lae_jax import stages
from lae_jax.data import pipeline, records
from lae_jax.data.augment import Augmentation
from lae_jax.runs import inference, preflight
from lae_jax.runtime import cpu, parallel
from lae_jax.runtime.errors import InputError

logger = logging.getLogger("lae_jax")


def split_name(config: ConfigDict, name: str) -> str:
    """Returns the data set's name of a split: with `data.fold`, that of the fold's `train` or `validation`."""
    return preflight.split_of(config, name)


@dataclasses.dataclass(frozen=True)
class Examples:
    """The rows of a split that have a target, and that target."""

    rows: np.ndarray  # (N,) int64
    # (N,) float32 ages or int32 classes (training), or the column's own values (validation); (N, 2) ranges of ages
    targets: np.ndarray
    label_sigma: np.ndarray | None = None  # of `label_sigma`, in training


def examples(dataset: records.Dataset, split: str, stage: stages.Stage) -> Examples:
    """Returns a split's rows that have the stage's target.

    Raises:
      InputError: No row of the split has it.
    """
    rows = dataset.rows(split)
    targets = dataset.targets(stage.target, rows)
    if targets.dtype == np.float64:
        known = ~np.isnan(targets).reshape(len(rows), -1).any(axis=1)
    else:
        known = np.array([v is not None for v in targets])
    if not known.any():
        raise InputError(f"{dataset.path}: no image of split {split!r} has an {stage.target}")
    if not known.all():
        logger.info(
            "split %s: %d of %d images have no %s and are skipped", split, (~known).sum(), len(rows), stage.target
        )
    return Examples(rows[known], targets[known])


def label_sigma(config: ConfigDict, dataset: records.Dataset, rows: np.ndarray) -> np.ndarray | None:
    """Returns the standard deviation of the label distribution of each row.

    It is the spread of the label, but at least `config.loss.label_sigma`: a label without a spread, or with one of 0,
    has the paper's distribution and not all of its weight on one age.

    Returns:
      (N,) float32, years; None if it is `config.loss.label_sigma` for all rows.
    """
    least = config.loss.label_sigma
    if not (config.loss.label_spread and dataset.has_spreads):
        return None
    sigma = np.fmax(dataset.spreads()[rows], least)  # fmax: a missing spread is NaN
    count = (sigma > least).sum()
    if not count:
        return None
    logger.info(
        "%d of %d labels have a spread above config.loss.label_sigma (%g): their spread is their width",
        count,
        len(rows),
        least,
    )
    return sigma.astype(np.float32)


def augmentation(config: ConfigDict) -> Augmentation:
    """Returns the augmentation of a config.

    Raises:
      InputError: A field of config.data has a value that is not allowed.
    """
    fields = {key: tuple(v) if isinstance(v, (list, tuple)) else v for key, v in config.data.augment.items()}
    try:
        return Augmentation(image_size=config.data.image_size, resize=config.data.resize, **fields)
    except (TypeError, ValueError) as error:
        raise InputError(f"config.data: {error}") from error


def outputs_of(
    config: ConfigDict,
    dataset: records.Dataset,
    rows: np.ndarray,
    mapped_forward: Callable,
    variables: Mapping,
    par: parallel.Parallel,
    batch_size: int,
    beat: Callable[[], None] = lambda: None,
    allocate: Callable[[tuple[int, ...], np.dtype], np.ndarray] = np.empty,
) -> np.ndarray:
    """Returns the gathered outputs (len(rows), ...) of a data set's rows, in their order.

    `beat` and `allocate` are those of `inference.over_batches`.
    """
    # A split smaller than a batch takes the smallest batch that the devices can share.
    batch_size = min(batch_size, -(-len(rows) // par.device_count) * par.device_count)
    places = pipeline.Places(batch_size, *par.local_places(batch_size))
    batches = pipeline.eval_batches(dataset, rows, augmentation(config), places=places, threads=threads(config))
    return inference.over_batches(
        mapped_forward,
        variables,
        batches,
        len(rows),
        par=par,
        total=-(-len(rows) // batch_size),
        beat=beat,
        allocate=allocate,
    )


def threads(config: ConfigDict) -> int:
    """Returns the number of threads of the input pipeline."""
    return config.data.threads or cpu.cores()
