"""The tables of `benchmarks.peers_ages`: the scores of each side, and paired differences to ours."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from lae_jax import metrics
from lae_jax.report import scores
from lae_jax.report.tables import Table

OURS = "lae_jax"
ENDS = scores.Score("ends", "mean of MAE 1-10 and 71-81")
_NAMES = ("mae", *(f"mae_{group}" for group in metrics.GROUPS), "sigma", "cs5")
SCORES = (
    *(
        dataclasses.replace(score, title=f"MAE {score.title}" if score.title in metrics.GROUPS else score.title)
        for score in scores.MAIN
        if score.name in _NAMES
    ),
    ENDS,
)


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions:
    """What a side says of each image.

    Attributes:
      ages: (N,) years, NaN where it gives no age.
      found: (N,) whether it finds a face. A side may give an age to an image in which it finds none.
    """

    ages: np.ndarray
    found: np.ndarray


def scored(ages: np.ndarray, predictions: np.ndarray) -> scores.Scored:
    """Returns the scores of predictions, with `ENDS`: (N,), (N,) years. The images are what is resampled."""
    found = scores.score(scores.Sample(ages, predictions, np.full(len(ages), -1)))

    def with_ends(values: dict) -> dict:
        return values and values | {ENDS.name: (values["mae_1-10"] + values["mae_71-81"]) / 2}

    return dataclasses.replace(found, values=with_ends(found.values), drawn=with_ends(found.drawn))


def own(ages: np.ndarray, sides: Mapping[str, Predictions]) -> Table:
    """Returns the scores of each side on the images in which it finds a face, with 95 % intervals.

    The last row is the MAE over all images, of a side that gives an age to each of them.
    """
    columns = {name: scored(ages[one.found], one.ages[one.found]) for name, one in sides.items() if one.found.any()}
    rows = [
        ["images with a face", *(str(one.found.sum()) for one in sides.values())],
        ["faces not found", *(str((~one.found).sum()) for one in sides.values())],
    ]
    for score in SCORES:
        rows.append([score.title, *(columns[name].estimate(score) if name in columns else "–" for name in sides)])
    mae, *_ = SCORES
    everywhere = {
        name: scored(ages, one.ages).estimate(mae) for name, one in sides.items() if np.isfinite(one.ages).all()
    }
    rows.append(["MAE, all images", *(everywhere.get(name, "–") for name in sides)])
    return Table(["on the images with a face", *sides], rows)


def paired(ages: np.ndarray, sides: Mapping[str, Predictions]) -> Table | None:
    """Returns scores on the images in which all sides find a face, and ours minus each other side's.

    The differences have 95 % intervals by the bootstrap, with the same images drawn for both sides. None if ours or a
    common image is missing.
    """
    common = np.all([one.found for one in sides.values()], axis=0)
    if OURS not in sides or len(sides) < 2 or not common.any():
        return None
    columns = {name: scored(ages[common], one.ages[common]) for name, one in sides.items()}
    others = [name for name in sides if name != OURS]
    rows = []
    for score in SCORES:
        differences = [columns[OURS].difference(columns[name], score) for name in others]
        rows.append([score.title, *(column.estimate(score).text for column in columns.values()), *differences])
    header = [f"on the {common.sum()} images that all find", *sides, *(f"{OURS} - {name}" for name in others)]
    return Table(header, rows)


def in_text(table: Table) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows of a table for a terminal."""
    return [*table.header], [[str(cell) for cell in row] for row in table.rows]
