"""The picture of predictions where labels are ranges of ages."""

import numpy as np

from lae_jax.report.loading import Evaluation
from lae_jax.report.pictures import BARS, GRID, INK, RUNS, Picture, figure, svg

_SHARES = (0.05, 0.25, 0.5, 0.75, 0.95)


def ranges(evaluation: Evaluation) -> Picture | None:
    """Draws where the predictions of each range lie: median, middle half and middle 90 %; None if all ages are exact.

    A point for each image against one true age, as for exact ages, would claim an age that nobody knows.
    """
    sample, masks = evaluation.sample, evaluation.sample.by_range()
    if not masks:
        return None
    drawn, axis = figure()
    rows, told = [], {}
    for place, (name, mask) in enumerate(masks.items()):
        low, high = sample.ranges[mask][0]
        predictions = sample.predictions[mask]
        first, quarter, middle, last_quarter, last = quantiles = np.quantile(predictions, _SHARES)
        shown = ("range", "middle 90 %", "middle half", "median") if not place else [None] * 4  # once in the legend
        axis.bar(place, high - low, bottom=low, width=0.8, color=BARS, linewidth=0, label=shown[0])
        axis.plot([place] * 2, [first, last], color=RUNS[0], linewidth=1, label=shown[1])
        axis.plot(
            [place] * 2, [quarter, last_quarter], color=RUNS[0], linewidth=5, solid_capstyle="butt", label=shown[2]
        )
        axis.plot(place, middle, "_", color=INK, markersize=14, label=shown[3])
        told[name] = float((sample.differences[mask] == 0).mean())
        rows.append((name, int(mask.sum()), told[name], *map(float, quantiles)))
    axis.set_xticks(range(len(masks)), [f"{name}\n{mask.sum()}" for name, mask in masks.items()], fontsize=8)
    axis.set(xlabel="range of the label, years, and number of images", ylabel="predicted age, years", ylim=(0, None))
    axis.grid(axis="y", color=GRID, linewidth=0.6)
    axis.set_axisbelow(True)
    drawn.legend(loc="outside upper left", ncols=4)
    best, worst = (pick(told, key=told.get) for pick in (max, min))
    finding = f"{told[best]:.0%} of the predictions are inside the range for {best}"
    if told[best] > told[worst]:
        finding += f", the largest share, and {told[worst]:.0%} for {worst}, the smallest"
    elif len(told) > 1:
        finding = f"{told[best]:.0%} of the predictions of each range are inside it"
    header = ("range", "images", "in_range", *(f"quantile_{share:g}" for share in _SHARES))
    return Picture("ranges", "Predictions by range", f"{finding}.", svg(drawn), header, rows)
