"""Predictions of all trials of the bench in one file, from which its tables are made again."""

import json
import zipfile
from collections.abc import Sequence

import numpy as np
from etils import epath

from lae_jax.longtail.outcomes import VALIDATION, Labels, Trial, method_of
from lae_jax.runtime import files
from lae_jax.runtime.errors import InputError
from lae_jax.runtime.foreign import zips

NAME = "predictions.npz"
_LIMIT = 1 << 31  # bytes of an array
_PARTS = ("ages", "rows", "people")
_FORMAT = 1


def write(folder: epath.Path, trials: Sequence[Trial]) -> None:
    """Writes predictions.npz.

    It has `labels/J/ages`, `labels/J/rows` and `labels/J/people` of the images J = 0, 1, ..., `T/SPLIT/R` with the
    predictions (seeds, images) of trial T on run R, and `trials`, JSON that describes the trials and has the J of each
    run of a split.
    """
    images = list(dict.fromkeys(one for trial in trials for of in trial.labels.values() for one in of))
    place = {one: number for number, one in enumerate(images)}
    arrays = {f"labels/{number}/{part}": getattr(one, part) for one, number in place.items() for part in _PARTS}
    described = []
    for number, trial in enumerate(trials):
        for split, of_runs in trial.predictions.items():
            for run, predicted in enumerate(of_runs):
                arrays[f"{number}/{split}/{run}"] = np.asarray(predicted, np.float32)
        described.append(
            {
                "method": trial.method.name,
                "setting": trial.setting,
                "rate": trial.rate,
                "skipped_steps": trial.skipped_steps,
                "labels": {split: [place[one] for one in of] for split, of in trial.labels.items()},
            }
        )
    arrays["trials"] = np.array(json.dumps({"format": _FORMAT, "trials": described}))
    with files.replacing(folder / NAME) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)


def read(folder: epath.Path) -> list[Trial]:
    """Reads the trials of predictions.npz.

    Raises:
      InputError: The file is missing or damaged.
    """
    path = folder / NAME
    if not path.exists():
        raise InputError(f"{folder} has no {NAME}: run lae_jax.longtail with --run and --data, which writes it")
    try:
        with files.open_regular(path) as raw, zipfile.ZipFile(raw) as archive:

            def array(name: str) -> np.ndarray:
                return zips.array(archive, f"{name}.npy", _LIMIT)

            told = json.loads(str(array("trials")))
            if told["format"] != _FORMAT:
                raise ValueError(f"its format is {told['format']!r}, not {_FORMAT}")
            known: dict[int, Labels] = {}
            found = []
            for number, one in enumerate(told["trials"]):
                places = one["labels"]
                for place in (place for of in places.values() for place in of):
                    if place not in known:
                        known[place] = Labels(*(array(f"labels/{place}/{part}") for part in _PARTS))
                predictions = {
                    split: [array(f"{number}/{split}/{run}") for run in range(len(of))] for split, of in places.items()
                }
                labels = {split: [known[place] for place in of] for split, of in places.items()}
                trial = Trial(
                    method_of(one["method"]), one["setting"], one["rate"], one["skipped_steps"], labels, predictions
                )
                _require_whole(trial)
                found.append(trial)
            if not found:
                raise ValueError("it has no trial")
            return found
    except (*zips.ERRORS, TypeError, AttributeError) as error:
        raise InputError(f"{path} is damaged ({error!r}): run lae_jax.longtail with --run and --data again") from error


def _require_whole(trial: Trial) -> None:
    """Checks that the predictions fit the labels.

    Raises:
      ValueError: They do not, or there are none on validation.
    """
    counts = {split: {len(one) for one in of} for split, of in trial.predictions.items()}
    if len(counts[VALIDATION]) != 1 or any(of != counts[VALIDATION] for of in counts.values()):
        raise ValueError("the splits of a trial differ in runs or seeds")
    for split, of in trial.predictions.items():
        for labels, predicted in zip(trial.labels[split], of, strict=True):
            shape = predicted.shape[1:]
            if labels.ages.shape not in (labels.rows.shape, (*labels.rows.shape, 2)):
                raise ValueError("the ages are neither a list nor ranges")
            if not labels.rows.shape == labels.people.shape == labels.ages.shape[:1] == shape:
                raise ValueError("predictions and labels differ in their number")
            if not (np.isfinite(predicted).all() and np.isfinite(labels.ages).all()):
                raise ValueError("a prediction or an age is not finite")
