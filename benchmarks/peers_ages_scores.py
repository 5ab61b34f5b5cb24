"""The tables of `benchmarks.peers_ages`: the scores of each side, and ours minus each other side's, paired."""

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
    """Returns, for each other side, both scores on the images in which both find a face, and ours minus the other's.

    The differences have 95 % intervals by the bootstrap, with the same images drawn for both sides.

    Args:
      ages: (N,) years.
      sides: (N,) years of each side, NaN where it finds no face.

    Returns:
      None if ours or the other sides are missing, or ours shares no image with any.
    """
    ours = sides.get(OURS, np.full(len(ages), np.nan))
    common = {name: np.isfinite(ours) & np.isfinite(one) for name, one in sides.items() if name != OURS}
    pairs = {
        name: (int(both.sum()), scored(ages[both], ours[both]), scored(ages[both], sides[name][both]))
        for name, both in common.items()
        if both.any()
    }
    if not pairs:
        return None
    header, rows = ["on the images that both find"], [["images"]]
    for name, (count, *_) in pairs.items():
        header += [f"{OURS} beside {name}", name, f"{OURS} - {name}"]
        rows[0] += [str(count)] * 3
    for score in SCORES:
        rows.append([score.title])
        for _, own_scores, other in pairs.values():
            estimates = [one.estimate(score).text for one in (own_scores, other)]
            rows[-1] += [*estimates, own_scores.difference(other, score)]
    return Table(header, rows)


def in_text(table: Table) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows of a table for a terminal."""
    return [*table.header], [[str(cell) for cell in row] for row in table.rows]
