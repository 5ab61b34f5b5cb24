"""What a run predicts for a split of a prepared data set, and how sure it is."""

import dataclasses
import functools
import logging

import jax
import numpy as np

from lae_jax import stages
from lae_jax.data import records
from lae_jax.runs import agreement, build, calibration, distributions, fields, inputs, leaks
from lae_jax.runtime import checkpoints, parallel
from lae_jax.runtime.errors import InputError

logger = logging.getLogger("lae_jax")


_ENOUGH = 200  # images that a temperature is fitted on


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluated:
    """targets: (N,) of the rows that have one; outputs: (N,) ages in years, or embeddings (N, D); probabilities:
    (N, 101) of the ages, before the temperature; None for identities; leaks: as leaks.of_evaluation tells them."""

    checkpoint: checkpoints.Checkpoint
    stage: stages.Stage
    dataset: records.Dataset
    split: str
    rows: np.ndarray
    targets: np.ndarray
    outputs: np.ndarray
    probabilities: np.ndarray | None
    leaks: dict

    @property
    def same_data(self) -> bool:
        """Whether the data set is the one that the run was trained on."""
        return self.checkpoint.meta["data_hash"] == self.dataset.hash

    @property
    def same_crop(self) -> bool:
        return self.checkpoint.meta["crop"] == self.dataset.crop

    def scores(self) -> stages.Scores:
        return self.stage.score({self.stage.target: self.targets}, self.outputs)


def predict(
    checkpoint: checkpoints.Checkpoint,
    data: str | None = None,
    split: str | None = None,
    *,
    flip: bool = False,
    batch_size: int = 256,
    allow_other_crop: bool = False,
) -> Evaluated:
    """Runs a checkpoint over a split (default: the run's data set and its validation split).

    Raises InputError for a split that is not there, and for faces that were cut otherwise unless that is allowed.
    """
    config, stage, par = (
        fields.from_json(checkpoint.meta["config"]),
        stages.get(checkpoint.meta["stage"]),
        parallel.Parallel(),
    )
    dataset = records.open_dataset(data or config.data.path, config.data.verify)
    split = split or validation_split(checkpoint)
    if allow_other_crop and (told := agreement.other_crops(checkpoint, dataset)):
        logger.warning("%s: the errors may be large", told)
    else:
        otherwise = ", or say --allow-other-crop (the errors may be large)"
        agreement.require_same_crops(checkpoint, dataset, otherwise)
    if agreement.was_prepared_again(checkpoint, dataset):
        logger.warning("%s was prepared again after the run: the split may hold what it was trained on", dataset.path)
    examples = inputs.examples(dataset, split, stage)
    # Before anything is predicted, and on all hosts: none comes late to what they do together.
    found = leaks.of_evaluation(checkpoint.meta, dataset, split)
    module = build.model(config, stage, checkpoint.meta["num_outputs"])
    is_age = stage.target == "age"
    gathered = dataclasses.replace(stage, output=functools.partial(jax.nn.softmax, axis=-1)) if is_age else stage
    outputs = inputs.outputs_of(
        config,
        dataset,
        examples.rows,
        build.forward(config, gathered, module, par, flip=flip),
        par.place(checkpoint.variables),
        par,
        -(-batch_size // par.device_count) * par.device_count,
    )
    probabilities = outputs if is_age else None
    ages = distributions.expected_ages(outputs) if is_age else outputs
    return Evaluated(checkpoint, stage, dataset, split, examples.rows, examples.targets, ages, probabilities, found)


def validation_split(checkpoint: checkpoints.Checkpoint) -> str:
    """The data set's name of the split that a run was validated on. Raises InputError if there was none."""
    config = fields.from_json(checkpoint.meta["config"])
    if not config.data.split:
        raise InputError(f"{checkpoint.workdir} was trained without a validation split: name one with --split")
    return inputs.split_name(config, config.data.split)


def calibrate(evaluated: Evaluated, level: float) -> None:
    """Fits the temperature of a run's distributions on its validation split and writes it beside the run.

    Raises InputError for another split or data set: on what was trained on, every model is sure of itself.
    """
    checkpoint = evaluated.checkpoint
    if evaluated.probabilities is None or evaluated.split != validation_split(checkpoint) or not evaluated.same_data:
        raise InputError("--calibrate fits on the validation split of the run's own data set: leave --data and --split")
    temperature = distributions.fit_temperature(evaluated.probabilities, evaluated.targets)
    if len(evaluated.targets) < _ENOUGH or not distributions.is_inside(temperature):
        logger.warning(
            "the temperature %.3f of %d images is not to be relied on: it takes some hundreds, and a model that has"
            " learnt something",
            temperature,
            len(evaluated.targets),
        )
    content = {
        "temperature": temperature,
        "step": checkpoint.step,
        "data_hash": evaluated.dataset.hash,
        "split": evaluated.split,
        "n": len(evaluated.targets),
        "before": sureness(evaluated, level, 1.0),
        "after": sureness(evaluated, level, temperature),
    }
    calibration.write_calibration(checkpoint.workdir, content)
    logger.info(
        "calibrated: temperature %.3f; %.0f %% intervals hold %.1f %% of the ages of %s (%.1f %% before)",
        temperature,
        100 * level,
        100 * content["after"]["coverage"],
        evaluated.split,
        100 * content["before"]["coverage"],
    )


def sureness(evaluated: Evaluated, level: float, temperature: float) -> dict:
    """Of the intervals that hold `level` of each distribution: the share of ages in them, their mean width in years."""
    probabilities = distributions.tempered(evaluated.probabilities, temperature)
    low, high = distributions.intervals(probabilities, level).T
    return {
        "level": level,
        "temperature": temperature,
        "coverage": distributions.coverage(probabilities, evaluated.targets, level),
        "mean_width": float((high - low).mean()),
    }
