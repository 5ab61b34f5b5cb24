"""Rows of predictions: make them from the faces that were found, write them as a table, a CSV or JSON lines."""

import contextlib
import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator

import numpy as np

from lae_jax.faces import crops
from lae_jax.predict import photographs
from lae_jax.predict.estimator import AgeEstimator
from lae_jax.runs import conformal, distributions
from lae_jax.runtime import console, foreign
from lae_jax.runtime.errors import InputError
from lae_jax.runtime.foreign import spreadsheets


@dataclasses.dataclass(frozen=True)
class Fields:
    """What the rows hold.

    Attributes:
      interval: Share of the distribution between lower and upper.
      threshold: Age in years for P(age >= threshold); None: the rows have no such probability.
      distribution: Whether the rows have the probabilities of the ages 0 to 100.
      conformal: Whether the rows have conformal intervals, of the share `interval` of the people of each age group.
    """

    interval: float = 0.9
    threshold: float | None = None
    distribution: bool = False
    conformal: bool = False

    @classmethod
    def of(
        cls,
        estimator: AgeEstimator,
        interval: float = 0.9,
        threshold: float | None = None,
        distribution: bool = False,
    ) -> "Fields":
        """Returns the fields of the rows of a model: with conformal intervals, where it has some of this level."""
        fitted = conformal.of_level(estimator.conformal, interval)
        return cls(interval, threshold, distribution, fitted is not None)


def recipe_of(run: str, estimator: AgeEstimator, allow_other: bool, **how) -> crops.Recipe:
    """Returns the recipe that cuts photographs by the crop contract of a model.

    Args:
      run: Folder of the run, for messages.
      estimator: The model.
      allow_other: As in `Recipe.of_contract`.
      **how: Further arguments of `Recipe.of_contract`.

    Raises:
      InputError: The contract of the model is unknown, or this version cuts by another one and `allow_other` is False.
    """
    try:
        return crops.Recipe.of_contract(estimator.crop, allow_other, **how)
    except InputError as error:
        raise InputError(f"{run}: {error}. Give crops that were cut in the same way, with --aligned") from error


@dataclasses.dataclass(frozen=True)
class Row:
    """A face and its age, or the reason why an image or some of its faces have none.

    Attributes:
      name: Name of the image.
      face: Number of the face, from 1, the largest first.
      age: Age in years.
      lower: Lower end of the interval in years.
      upper: Upper end of the interval in years.
      conformal_lower: Lower end of the conformal interval in years.
      conformal_upper: Upper end of the conformal interval in years.
      at_least: P(age >= threshold).
      box: Left, top, right, bottom in pixels of the upright photograph.
      cut_by: 'mtcnn' or 'centre'; empty for a crop.
      reason: Why there is no age.
      distribution: Probabilities of the ages 0 to 100.
    """

    name: str
    face: int | None = None
    age: float | None = None
    lower: float | None = None
    upper: float | None = None
    conformal_lower: float | None = None
    conformal_upper: float | None = None
    at_least: float | None = None
    box: list[float] | None = None
    cut_by: str = ""
    reason: str = ""
    distribution: list[float] | None = None


def predicted(
    estimator: AgeEstimator, found: Iterator[photographs.Found], fields: Fields
) -> Iterator[tuple[photographs.Found, list[Row]]]:
    """Yields each image with its rows, in order. The device works while the threads read and cut."""
    # `tee` keeps the images until their faces come back from the device.
    waiting, ahead = itertools.tee(found)
    outputs = estimator.outputs(face for one in ahead for face in one.inputs)
    for one in waiting:
        given = np.array([*itertools.islice(outputs, len(one.inputs))])
        yield one, rows_of(one, given, estimator, fields)


def rows_of(one: photographs.Found, given: np.ndarray, estimator: AgeEstimator, fields: Fields) -> list[Row]:
    """Returns the rows of an image.

    Args:
      one: The image and its faces.
      given: (faces, ...), from `estimator.outputs`.
      estimator: The model.
      fields: What the rows hold.
    """
    if not one.inputs:
        return [Row(one.image.name, reason=one.reason)]
    ages, calibrated = estimator.ages(given), estimator.calibrated(given)
    bounds = distributions.intervals(calibrated, fields.interval)
    sure = estimator.conformal.intervals(ages, calibrated, fields.interval).tolist() if fields.conformal else None
    chances = None if fields.threshold is None else distributions.at_least(calibrated, fields.threshold)
    rows = []
    for i, age in enumerate(ages):
        crop = one.crops[i] if one.crops else None
        rows.append(
            Row(
                name=one.image.name,
                face=i + 1,
                age=float(age),
                lower=float(bounds[i, 0]),
                upper=float(bounds[i, 1]),
                conformal_lower=sure and sure[i][0],
                conformal_upper=sure and sure[i][1],
                at_least=None if chances is None else float(chances[i]),
                box=None if crop is None or crop.box is None else crop.box.tolist(),
                cut_by="" if crop is None else crop.how,
                distribution=calibrated[i].tolist() if fields.distribution else None,
            )
        )
    if one.left_out:
        others = f"{one.left_out} more face{'s' * (one.left_out > 1)}"
        rows.append(Row(one.image.name, reason=f"{others} without an age: only the {len(ages)} largest have one"))
    return rows


@contextlib.contextmanager
def opened(out: str | None, fields: Fields) -> Iterator[Callable[[list[Row]], None]]:
    """Opens an output and yields a function that writes the rows of an image.

    Args:
      out: A .csv or .jsonl file; None: a table on standard output.
      fields: What the rows hold.
    """
    if out is None:
        yield _Table(fields)
        return
    with open(out, "w", newline="", encoding="utf-8") as file:
        if out.endswith(".jsonl"):
            yield lambda rows: file.writelines(json.dumps(as_json(row)) + "\n" for row in rows)
        else:
            writer = spreadsheets.Writer(file)
            further = ["conformal_lower", "conformal_upper"] * fields.conformal
            further += [] if fields.threshold is None else [f"p_at_least_{fields.threshold:g}"]
            box = ["left", "top", "right", "bottom"]
            writer.writerow(["name", "face", "age", "lower", "upper", *further, *box, "cut_by", "reason"])
            yield lambda rows: writer.writerows(_cells(row, fields) for row in rows)


def _cells(row: Row, fields: Fields) -> list:
    further = [row.conformal_lower, row.conformal_upper] * fields.conformal
    further += [] if fields.threshold is None else [row.at_least]
    cells = [row.name, row.face, row.age, row.lower, row.upper, *further, *(row.box or [None] * 4)]
    return [*cells, row.cut_by, row.reason]


def as_json(row: Row) -> dict:
    """Returns the fields of a row that are not empty, with escapes in a name that is not UTF-8."""
    fields = {name: value for name, value in dataclasses.asdict(row).items() if value not in (None, "")}
    return fields | {"name": foreign.utf8(row.name)}


class _Table:
    """Prints rows as they come, with a header above the first row."""

    WIDTH = 32  # of the column of names

    def __init__(self, fields: Fields):
        self.fields, self.begun = fields, False

    def __call__(self, rows: list[Row]) -> None:
        if not self.begun:
            further = f"  {'conformal':>13}" * self.fields.conformal
            further += "" if self.fields.threshold is None else f"  {f'P(>={self.fields.threshold:g})':>8}"
            console.write(f"{'name':{self.WIDTH}}  face    age  {'interval':>13}{further}")
            self.begun = True
        for row in rows:
            # Long names differ at their ends.
            name = foreign.shown(row.name)
            name = name if len(name) <= self.WIDTH else f"...{name[3 - self.WIDTH :]}"
            if row.age is None:
                console.write(f"{name:{self.WIDTH}}  {row.reason}")
                continue
            interval, further = f"{row.lower:.1f} - {row.upper:.1f}", ""
            if row.conformal_lower is not None:
                further = f"  {f'{row.conformal_lower:.1f} - {row.conformal_upper:.1f}':>13}"
            further += "" if row.at_least is None else f"  {row.at_least:8.3f}"
            remark = "  no face found: a centre crop" * (row.cut_by == "centre")
            console.write(f"{name:{self.WIDTH}}  {row.face:4}  {row.age:5.1f}  {interval:>13}{further}{remark}")
