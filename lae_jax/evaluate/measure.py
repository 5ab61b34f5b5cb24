"""Predictions: run a checkpoint over a split, calibrate its distributions, measure their intervals."""

import dataclasses
import logging
from collections.abc import Callable

import numpy as np

from lae_jax import metrics, stages
from lae_jax.data import records
from lae_jax.runs import agreement, build, calibration, conformal, distributions, fields, inputs, leaks, precision
from lae_jax.runs.forward import age_and_distribution
from lae_jax.runtime import console, origin, parallel
from lae_jax.runtime.errors import InputError

logger = logging.getLogger("lae_jax")

_ENOUGH = 200  # fewest images for a reliable temperature


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluated:
    """What a checkpoint predicts for a split.

    Attributes:
      rows: (N,) rows of the split that have a target.
      targets: (N,) ages in years, (N, 2) ranges if an age is one, or identities.
      outputs: (N,) ages in years, or embeddings (M, D) of the M rows that are in pairs.
      probabilities: (N, 101) of the ages before the temperature; None for embeddings.
      leaks: Result of `leaks.of_evaluation`.
    """

    checkpoint: origin.Checkpoint
    stage: stages.Stage
    dataset: records.Dataset
    split: str
    rows: np.ndarray
    targets: np.ndarray
    outputs: np.ndarray
    probabilities: np.ndarray | None
    leaks: dict

    @property
    def ranges(self) -> np.ndarray:
        """First and last age of each image, (N, 2) float64, equal where the age is exact."""
        ages = np.asarray(self.targets, np.float64)
        return ages if ages.ndim == 2 else np.stack([ages, ages], axis=1)

    @property
    def has_ranges(self) -> bool:
        """Whether some of the ages are ranges."""
        return self.targets.ndim == 2

    @property
    def same_data(self) -> bool:
        """Whether the run was trained on this data set."""
        return self.checkpoint.meta["data_hash"] == self.dataset.hash

    @property
    def same_crop(self) -> bool:
        """Whether the faces are cut in the same way as those of the training."""
        return self.checkpoint.meta["crop"] == self.dataset.crop

    def scores(self) -> stages.Scores:
        """Scores the outputs against the targets."""
        return self.stage.score({self.stage.target: self.targets}, self.outputs)


def predict(
    checkpoint: origin.Checkpoint,
    data: str | None = None,
    split: str | None = None,
    *,
    flip: bool = False,
    batch_size: int | None = None,
    allow_other_crop: bool = False,
    beat: Callable[[], None] = lambda: None,
) -> Evaluated:
    """Runs a checkpoint over a split.

    Args:
      checkpoint: Checkpoint of a run.
      data: Folder of a prepared data set (default: the run's own).
      split: Name of a split (default: the run's validation split).
      flip: Average each output with that of the mirror image.
      batch_size: Images in a batch, over all devices; rounded up to a multiple of the devices (default: the run's
        eval_batch_size, whose program is in the compile cache).
      allow_other_crop: Warn instead of raising where the faces are cut in another way than the run's.
      beat: Called after each batch.

    Returns:
      The outputs for the rows that have a target.

    Raises:
      InputError: The split does not exist, or the faces are cut in another way.
    """
    config, stage = (
        precision.for_inference(fields.from_json(checkpoint.meta["config"])),
        stages.get(checkpoint.meta["stage"]),
    )
    par = parallel.Parallel(form=config.parallel)
    dataset = records.open_dataset(data or config.data.path, config.data.verify)
    split = split or validation_split(checkpoint)
    if allow_other_crop and (told := agreement.other_crops(checkpoint, dataset)):
        logger.warning("%s: the errors may be large", told)
    else:
        otherwise = ", or pass --allow-other-crop (the errors may be large)"
        agreement.require_same_crops(checkpoint, dataset, otherwise)
    if told := agreement.unknown_crops(checkpoint, dataset):
        logger.warning("%s", told)
    if agreement.was_prepared_again(checkpoint, dataset):
        logger.warning(
            "%s was prepared again after the run: the split may hold images that the run was trained on", dataset.path
        )
    examples = inputs.examples(dataset, split, stage)
    # Before the prediction and on every host, so that no host arrives late at a collective operation.
    found = leaks.of_evaluation(checkpoint.meta, dataset, split)
    module = build.model(config, stage, checkpoint.meta["num_outputs"])
    is_age = stage.target == "age"
    gathered = dataclasses.replace(stage, output=age_and_distribution) if is_age else stage
    outputs = inputs.outputs_of(
        config,
        dataset,
        examples.rows[stage.scored(examples.targets)],
        build.forward(config, gathered, module, par, flip=flip),
        par.place(checkpoint.variables),
        par,
        -(-(batch_size or config.eval_batch_size) // par.device_count) * par.device_count,
        beat,
    )
    outputs, probabilities = (outputs[:, 0], outputs[:, 1:]) if is_age else (outputs, None)
    return Evaluated(checkpoint, stage, dataset, split, examples.rows, examples.targets, outputs, probabilities, found)


def validation_split(checkpoint: origin.Checkpoint) -> str:
    """Returns the data set's name of the split that a run was validated on.

    Raises:
      InputError: The run has no validation split.
    """
    config = fields.from_json(checkpoint.meta["config"])
    if not config.data.split:
        raise InputError(f"{checkpoint.workdir} was trained without a validation split: name one with --split")
    return inputs.split_name(config, config.data.split)


def calibrate(evaluated: Evaluated, level: float, *, with_conformal: bool, flip: bool) -> None:
    """Fits the temperature of a run's distributions on its validation split and writes it into the run's folder.

    Args:
      evaluated: Predictions for the validation split of the run's own data set.
      level: Share of a distribution that an interval holds, for the coverage before and after.
      with_conformal: Fit conformal intervals too.
      flip: Whether mirror images were averaged.

    Raises:
      InputError: The predictions are for another split or data set. A model is too confident on its training images.
    """
    checkpoint = evaluated.checkpoint
    if evaluated.probabilities is None or evaluated.split != validation_split(checkpoint) or not evaluated.same_data:
        raise InputError("--calibrate fits on the validation split of the run's own data set: omit --data and --split")
    temperature = distributions.fit_temperature(evaluated.probabilities, evaluated.targets)
    if len(evaluated.targets) < _ENOUGH or not distributions.is_inside(temperature):
        logger.warning(
            "the temperature %.3f, fitted on %s, is not reliable: fit it on some hundreds of images, with a model that"
            " has learnt something. It is used all the same; to undo it, remove %s",
            temperature,
            console.counted(len(evaluated.targets), "image"),
            checkpoint.workdir / calibration.CALIBRATION,
        )
    fitted = _conformal(evaluated, temperature, level) if with_conformal else None
    if fitted is None and calibration.stored_conformal(checkpoint):
        # They were fitted to distributions of another temperature.
        logger.warning("the conformal intervals are removed: fit them again with --calibrate conformal")
    content = {
        "temperature": temperature,
        "conformal": fitted and {**fitted.to_json(), "flip": flip},
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


def _conformal(evaluated: Evaluated, temperature: float, level: float) -> conformal.Conformal:
    """Fits conformal intervals to the images with an exact age, and logs how many there are.

    Raises:
      InputError: They are too few for the level.
    """
    exact = evaluated.ranges[:, 0] == evaluated.ranges[:, 1]
    count, needed = int(exact.sum()), conformal.needed(conformal.percent_of(level))
    if count < needed:
        raise InputError(
            f"conformal intervals of {level:.0%} need {console.counted(needed, 'image')} with an exact age, and split"
            f" {evaluated.split} has {count}: use --calibrate alone, or a validation split with more of them"
        )
    probabilities = distributions.tempered(evaluated.probabilities[exact], temperature)
    fitted = conformal.fit(evaluated.outputs[exact], probabilities, evaluated.ranges[exact, 0])
    told = f"conformal intervals: fitted to {console.counted(count, 'image')} of {evaluated.split} with an exact age"
    if few := fitted.borrowing(level):
        told += (
            f". Groups with fewer than the {needed} images that {level:.0%} intervals need: {', '.join(few)}. They"
            " borrow the images whose ages are nearest, and their coverage is not guaranteed"
        )
    logger.info("%s", told)
    return fitted


def sureness(evaluated: Evaluated, level: float, temperature: float) -> dict:
    """Measures the intervals that hold `level` of each distribution at a temperature.

    Returns:
      Level, temperature, coverage (share of the ages inside the intervals; of ranges as in `metrics.coverage`) and mean
      width in years.
    """
    probabilities = distributions.tempered(evaluated.probabilities, temperature)
    low, high = distributions.intervals(probabilities, level).T
    if evaluated.has_ranges:
        held = float(metrics.coverage(*distributions.ends(probabilities, evaluated.ranges), [level])[0])
    else:
        held = distributions.coverage(probabilities, evaluated.targets, level)
    return {
        "level": level,
        "temperature": temperature,
        "coverage": held,
        "mean_width": float((high - low).mean()),
    }
