"""Pictures of audits and of the long-tail bench, in colours that are safe for colour-blind eyes."""

import io

import matplotlib
import numpy as np
from etils import epath
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from lae_jax import metrics
from lae_jax.report import age_groups
from lae_jax.runtime import files, foreign

matplotlib.use("Agg")
INK, LINE = "#1b2733", "#b2182b"
# Settings of matplotlib itself. It also reads a `matplotlibrc` in the current folder, which may be a stranger's, and
# whose `text.usetex` runs programs.
DEFAULTS = {name: value for name, value in matplotlib.rcParamsDefault.items() if name not in ("backend", "interactive")}


def plain_texts(figure: Figure) -> None:
    """Makes every text of a figure plain: without formulas in $, and with the escapes of `foreign.shown`."""
    for text in figure.findobj(Text):
        text.set_parse_math(False)
        text.set_text(foreign.shown_lines(text.get_text()))


def _finish(figure: Figure, path: epath.Path) -> None:
    plain_texts(figure)
    # Encoded in memory, because the run may be in a bucket.
    encoded = io.BytesIO()
    figure.savefig(encoded, format="png", dpi=110)
    files.write_bytes(path, encoded.getvalue())
    plt.close(figure)


def _plain_axes(width: float, height: float):
    figure, axis = plt.subplots(figsize=(width, height), layout="constrained")
    axis.spines[["top", "right"]].set_visible(False)
    return figure, axis


@matplotlib.rc_context(DEFAULTS)
def age_histogram(path: epath.Path, ages: dict[str, np.ndarray], title: str) -> None:
    """Writes a histogram (PNG) of whole ages, stacked by split, with the number of images of each age group.

    An image whose age is a range counts at all ages of the range, as `metrics.range_weights` says.

    Args:
      path: File to write.
      ages: Split -> (N, 2) years, first and last age of each image; equal where the age is exact.
      title: Title of the picture.
    """
    figure, axis = _plain_axes(11, 4.4)
    counts = {name: metrics.images_by_age(ranges) for name, ranges in ages.items()}
    top = max(81, int(np.flatnonzero(sum(counts.values())).max()))
    below = np.zeros(top + 1)
    colours = plt.get_cmap("cividis")(np.linspace(0.15, 0.85, len(counts)))
    for (name, count), colour in zip(counts.items(), colours, strict=True):
        label = f"{name} ({len(ages[name])})"
        axis.bar(np.arange(top + 1), count[: top + 1], bottom=below, width=0.9, color=colour, zorder=1, label=label)
        below += count[: top + 1]
    everyone = metrics.label_age(np.concatenate(list(ages.values())))
    groups, shown = metrics.extended_group(everyone), age_groups.shown(everyone)
    for group, name in enumerate(metrics.ALL_GROUPS):
        if name not in shown:
            continue
        first, last = age_groups.edges(name, top)
        axis.axvspan(first - 0.5, last + 0.5, color="black", alpha=0.05 * (group % 2), linewidth=0, zorder=0)
        count = int((groups == group).sum())
        told = f"{name}\n{count or 'no'} image{'s' * (count != 1)}"
        axis.annotate(told, ((first + last) / 2, 1.01), xycoords=("data", "axes fraction"), ha="center", fontsize=8,
                      color="black" if count else LINE)  # fmt: skip
    axis.set_xlim(-0.5, top + 1)
    axis.set_xlabel("age, years")
    axis.set_ylabel("images")
    # Below the axes: matplotlib takes up to a second to find a free place among the bars.
    figure.legend(frameon=False, loc="outside lower center", ncols=4)
    axis.set_title(title, pad=30)
    _finish(figure, path)


@matplotlib.rc_context(DEFAULTS)
def head_tail(
    path: epath.Path, points: dict[str, list], groups: tuple[np.ndarray, np.ndarray], title: str, error: str = "MAE"
) -> None:
    """Writes the head-tail curve (PNG): mean error of the head groups against that of the tail, and the frontier.

    Args:
      path: File to write.
      points: Method -> its (head, tail) errors in years, one per setting, joined in their order.
      groups: Places in GROUPS of the head groups and of the tail groups.
      title: Title of the picture.
      error: 'MAE', or 'distance' where ages are ranges.
    """
    figure, axis = _plain_axes(9, 6)
    draw_head_tail(axis, points, groups, error)
    axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    axis.set_title(title, fontsize=9)
    _finish(figure, path)


def draw_head_tail(
    axis: Axes, points: dict[str, list], groups: tuple[np.ndarray, np.ndarray], error: str = "MAE"
) -> None:
    """Draws the head-tail curve on the axes of any figure, with labels for a legend."""
    markers, colours = "osD^vP*X", plt.get_cmap("tab10").colors
    for number, (name, found) in enumerate(points.items()):
        style = {"marker": markers[number // 3 % len(markers)], "color": colours[number % len(colours)]}
        axis.plot(*np.array(found).T, linewidth=0.7, markersize=6, label=name, **style)
    best = frontier(np.array([point for found in points.values() for point in found]))
    axis.plot(*best.T, color=INK, linewidth=1.2, linestyle="--", label="frontier", zorder=0)
    labels = [", ".join(metrics.GROUPS[place] for place in places) for places in groups]
    axis.set_xlabel(f"{error} of the head groups ({labels[0]}), years")
    axis.set_ylabel(f"{error} of the tail groups ({labels[1]}), years")


def frontier(points: np.ndarray) -> np.ndarray:
    """Returns the Pareto frontier of points (N, 2), sorted by the first column: (M, 2).

    It holds the points for which no other point is at most as large in both columns and smaller in one.
    """
    best = points[np.isfinite(points).all(axis=1)]
    best = best[[not ((best <= point).all(axis=1) & (best < point).any(axis=1)).any() for point in best]]
    return best[np.lexsort((best[:, 1], best[:, 0]))]
