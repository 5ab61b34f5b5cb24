"""What a run reads: the examples of a split, the augmentation, the outputs for rows of a data set."""

import dataclasses
import logging
from collections.abc import Callable, Mapping

import numpy as np
from ml_collections import ConfigDict

from lae_jax import stages
from lae_jax.data import pipeline, records
from lae_jax.data.augment import Augmentation
from lae_jax.runs import inference
from lae_jax.runtime import cpu, parallel
from lae_jax.runtime.errors import InputError

logger = logging.getLogger("lae_jax")


def split_name(config: ConfigDict, name: str) -> str:
    """The data set's name of a split: with `data.fold`, `train` and `validation` are that fold's."""
    fold = config.data.fold
    return name if fold is None or name == "all" else f"fold{fold}-{name}"


@dataclasses.dataclass(frozen=True)
class Examples:
    """The rows of a split that have a target, and that target."""

    rows: np.ndarray  # (N,) int64
    targets: np.ndarray  # (N,) float32 ages or int32 classes (training), or the column's own values (validation)


def examples(dataset: records.Dataset, split: str, stage: stages.Stage) -> Examples:
    """A split's rows that have the stage's target. Raises InputError if there is none."""
    rows = dataset.rows(split)
    targets = dataset.column(stage.target)[rows]
    known = ~np.isnan(targets) if targets.dtype == np.float64 else np.array([v is not None for v in targets])
    if not known.any():
        raise InputError(f"{dataset.path}: no image of split {split!r} has an {stage.target}")
    if not known.all():
        logger.info(
            "split %s: %d of %d images have no %s and are left out", split, (~known).sum(), len(rows), stage.target
        )
    return Examples(rows[known], targets[known])


def augmentation(config: ConfigDict) -> Augmentation:
    fields = {key: tuple(v) if isinstance(v, (list, tuple)) else v for key, v in config.data.augment.items()}
    try:
        return Augmentation(image_size=config.data.image_size, resize=config.data.resize, **fields)
    except (TypeError, ValueError) as error:
        raise InputError(f"config.data: {error}") from error


def outputs_of(
    config: ConfigDict,
    dataset: records.Dataset,
    rows: np.ndarray,
    mapped_forward,
    variables: Mapping,
    par: parallel.Parallel,
    batch_size: int,
    beat: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """The gathered outputs (len(rows), ...) of a data set's rows, in their order; `beat` is called batch by batch."""
    # A small split does not fill a batch of the usual size: the least multiple of the devices will do.
    batch_size = min(batch_size, -(-len(rows) // par.device_count) * par.device_count)
    places = pipeline.Places(batch_size, *par.local_places(batch_size))
    batches = pipeline.eval_batches(dataset, rows, augmentation(config), places=places, threads=threads(config))
    return inference.over_batches(
        mapped_forward, variables, batches, len(rows), par=par, total=-(-len(rows) // batch_size), beat=beat
    )


def threads(config: ConfigDict) -> int:
    return config.data.threads or cpu.cores()
