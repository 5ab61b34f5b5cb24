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


def scored(ages: np.ndarray, predictions: np.ndarray) -> scores.Scored:
    """Returns the scores of predictions (N,) for ages (N,), with `ENDS`. The images are what is resampled."""
    found = scores.score(scores.Sample(ages, predictions, np.full(len(ages), -1)))

    def with_ends(values: dict) -> dict:
        return values and values | {ENDS.name: (values["mae_1-10"] + values["mae_71-81"]) / 2}

    return dataclasses.replace(found, values=with_ends(found.values), drawn=with_ends(found.drawn))


def own(ages: np.ndarray, sides: Mapping[str, np.ndarray]) -> Table:
    """Returns the scores of each side on the images in which it finds a face, with 95 % intervals.

    Args:
      ages: (N,) years.
      sides: (N,) years of each side, NaN where it finds no face.
    """
    found = {name: np.isfinite(one) for name, one in sides.items()}
    columns = {name: scored(ages[here], sides[name][here]) for name, here in found.items() if here.any()}
    rows = [
        ["images with a face", *(str(here.sum()) for here in found.values())],
        ["faces not found", *(str((~here).sum()) for here in found.values())],
    ]
    for score in SCORES:
        rows.append([score.title, *(columns[name].estimate(score) if name in columns else "–" for name in sides)])
    return Table(["on the images with a face", *sides], rows)


def paired(ages: np.ndarray, sides: Mapping[str, np.ndarray]) -> Table | None:
    """Returns scores on the images in which all sides find a face, and ours minus each other side's.

    The differences have 95 % intervals by the bootstrap, with the same images drawn for both sides.

    Args:
      ages: (N,) years.
      sides: (N,) years of each side, NaN where it finds no face.

    Returns:
      None if ours, another side or a common image is missing.
    """
    common = np.isfinite([*sides.values()]).all(axis=0)
    if OURS not in sides or len(sides) < 2 or not common.any():
        return None
    columns = {name: scored(ages[common], one[common]) for name, one in sides.items()}
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
