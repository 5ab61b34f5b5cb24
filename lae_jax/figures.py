"""The pictures of audits and evaluations, functions of ages and predictions; colours are safe for colour-blind eyes."""

import io

import matplotlib
import numpy as np
from etils import epath
from matplotlib import pyplot as plt
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import MaxNLocator

from lae_jax import metrics

matplotlib.use("Agg")
_BARS, _LINE, _ACCENT = "#b9c6d3", "#b2182b", "#2166ac"


def _counts_and_errors(training_ages: np.ndarray, ages: np.ndarray, predictions: np.ndarray):
    """By whole age: training images, and the mean absolute error of the evaluated ones (NaN where there are none)."""
    classes = metrics.age_class(ages)
    top = max(81, classes.max(), metrics.age_class(training_ages).max())
    count = np.bincount(metrics.age_class(training_ages), minlength=top + 1)
    evaluated = np.bincount(classes, minlength=top + 1)
    total = np.bincount(classes, np.abs(predictions - ages), minlength=top + 1)
    with np.errstate(invalid="ignore"):
        return count, np.where(evaluated > 0, total / evaluated, np.nan)


def _finish(figure, path: epath.Path) -> None:
    # Through memory, since a run may lie in a bucket.
    encoded = io.BytesIO()
    figure.savefig(encoded, format="png", dpi=110)
    path.write_bytes(encoded.getvalue())
    plt.close(figure)


def _plain_axes(width: float = 9, height: float = 4.2, columns: int = 1):
    figure, axes = plt.subplots(1, columns, figsize=(width, height), layout="constrained")
    for axis in np.atleast_1d(axes):
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def histogram(path: epath.Path, training_ages, ages, predictions, title: str, histogram_of: str) -> None:
    """Fig. 1 with the error over it: by age, and sorted from head to tail classes.

    Args: training_ages: (M,) years, whose histogram is drawn; ages, predictions: (N,) years, whose error is drawn.
    """
    count, error = _counts_and_errors(training_ages, ages, predictions)
    figure, (left, right) = _plain_axes(13, 4.4, columns=2)
    order = np.argsort(-count, kind="stable")
    order = order[count[order] > 0]
    present = np.flatnonzero((count > 0) | np.isfinite(error))
    for axis, places, which in [(left, np.arange(len(count)), slice(0, None)), (right, np.arange(len(order)), order)]:
        axis.bar(places, count[which], width=1.0, color=_BARS, edgecolor="white", linewidth=0.3)
        axis.set_ylabel(f"images in {histogram_of} (bars)", color="#5b6b7a")
        over = axis.twinx()
        over.spines[["top"]].set_visible(False)
        over.plot(places, error[which], ".-", color=_LINE, markersize=4, linewidth=1)
        over.set_ylim(0, 1.05 * max(np.nanmax(error), 1e-3))
        over.set_ylabel("mean absolute error, years (line)", color=_LINE)
    left.set_xlim(present.min() - 1, present.max() + 1)
    left.set_xlabel("age, years")
    ticks = np.linspace(0, len(order) - 1, min(12, len(order))).astype(int)
    right.set_xticks(ticks, [str(order[i]) for i in ticks])
    right.set_xlabel("age in years, sorted from head (most images) to tail")
    figure.suptitle(title)
    _finish(figure, path)


def group_errors(path: epath.Path, report: metrics.AgeReport, title: str) -> None:
    """The eight MAE^j as bars over their numbers of images, the overall MAE as a line, sigma in the legend."""
    figure, axis = _plain_axes()
    places = np.arange(len(metrics.GROUPS))
    axis.bar(places, report.group_mae, color=_ACCENT, width=0.7)
    for place, value, count in zip(places, report.group_mae, report.group_count, strict=True):
        text = axis.annotate(
            f"{value:.2f}" if count else "no image",
            (place, value if count else 0),
            (0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=9,
        )
        # The line of the overall error must not strike a number through.
        text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.5})
    counts = [f"{count} image{'' if count == 1 else 's'}" for count in report.group_count]
    axis.set_xticks(places, [f"{group}\n{count}" for group, count in zip(metrics.GROUPS, counts, strict=True)])
    axis.set_xlim(places[0] - 0.6, places[-1] + 0.6)
    sigma = f"sigma {report.sigma:.2f}" if np.isfinite(report.sigma) else "sigma undefined: a group has no image"
    axis.axhline(report.mae, color=_LINE, linewidth=1, label=f"MAE {report.mae:.2f}; {sigma}")
    axis.set_xlabel("true age, years")
    axis.set_ylabel("mean absolute error, years")
    axis.margins(y=0.2)
    axis.legend(frameon=False, loc="upper center")
    axis.set_title(title)
    _finish(figure, path)


def scatter(path: epath.Path, ages, predictions, title: str) -> None:
    """Predicted against true age as a density, with the diagonal and the mean prediction of each age."""
    figure, axis = _plain_axes(6.4, 5.6)
    top = float(max(82, ages.max(), predictions.max()) + 1)
    # The pale end of the colours would hide cells of one image.
    colours = LinearSegmentedColormap.from_list("density", plt.get_cmap("Blues")(np.linspace(0.25, 1, 64)))
    cells = axis.hexbin(ages, predictions, gridsize=48, extent=(0, top, 0, top), mincnt=1, cmap=colours)
    classes = metrics.age_class(ages)
    present = np.unique(classes)
    means = [predictions[classes == age].mean() for age in present]
    axis.plot(present, means, ".", color=_LINE, markersize=4, label="mean prediction of each age")
    axis.plot([0, top], [0, top], color="black", linewidth=0.8, label="right")
    figure.colorbar(cells, ax=axis, label="images", shrink=0.8, ticks=MaxNLocator(integer=True))
    axis.set(xlim=(0, top), ylim=(0, top), aspect="equal", xlabel="true age, years", ylabel="predicted age, years")
    axis.legend(frameon=False, loc="upper left", fontsize=8)
    axis.set_title(title)
    _finish(figure, path)


def age_histogram(path: epath.Path, ages: dict[str, np.ndarray], title: str) -> None:
    """Images by whole age for each split, stacked, over the eight groups with their numbers of images.

    Args: ages: split -> (N,) years.
    """
    figure, axis = _plain_axes(11, 4.4)
    classes = {name: metrics.age_class(years) for name, years in ages.items()}
    top = max(81, *(int(c.max()) for c in classes.values() if len(c)))
    below = np.zeros(top + 1, np.int64)
    colours = plt.get_cmap("cividis")(np.linspace(0.15, 0.85, len(classes)))
    for (name, found), colour in zip(classes.items(), colours, strict=True):
        count = np.bincount(found, minlength=top + 1)
        axis.bar(
            np.arange(top + 1), count, bottom=below, width=0.9, color=colour, zorder=1, label=f"{name} ({len(found)})"
        )
        below += count
    groups = metrics.age_group(np.concatenate(list(ages.values())))
    for group, name in enumerate(metrics.GROUPS):
        first, last = (int(edge) for edge in name.split("-"))
        axis.axvspan(first - 0.5, last + 0.5, color="black", alpha=0.05 * (group % 2), linewidth=0, zorder=0)
        count = int((groups == group).sum())
        told = f"{name}\n{count or 'no'} image{'s' * (count != 1)}"
        axis.annotate(told, ((first + last) / 2, 1.01), xycoords=("data", "axes fraction"), ha="center", fontsize=8,
                      color="black" if count else _LINE)  # fmt: skip
    axis.set_xlim(-0.5, top + 1)
    axis.set_xlabel("age, years")
    axis.set_ylabel("images")
    axis.legend(frameon=False)
    axis.set_title(title, pad=30)
    _finish(figure, path)


def head_tail(path: epath.Path, points: dict[str, list], groups: tuple[np.ndarray, np.ndarray], title: str) -> None:
    """The head-tail curve: mean MAE of the head groups against that of the tail groups, and the frontier.

    Args: points: method -> (head, tail) in years, one a setting, joined in their order; groups: places in GROUPS of
    the head groups and of the tail groups.
    """
    figure, axis = _plain_axes(9, 6)
    markers, colours = "osD^vP*X", plt.get_cmap("tab10").colors
    for number, (name, found) in enumerate(points.items()):
        style = {"marker": markers[number // 3 % len(markers)], "color": colours[number % len(colours)]}
        axis.plot(*np.array(found).T, linewidth=0.7, markersize=6, label=name, **style)
    every = np.array([point for found in points.values() for point in found])
    best = every[np.isfinite(every).all(axis=1)]
    best = best[[not ((best <= point).all(axis=1) & (best < point).any(axis=1)).any() for point in best]]
    best = best[np.lexsort((best[:, 1], best[:, 0]))]
    axis.plot(*best.T, color="black", linewidth=1.2, linestyle="--", label="frontier", zorder=0)
    labels = [", ".join(metrics.GROUPS[place] for place in places) for places in groups]
    axis.set_xlabel(f"MAE of the head groups ({labels[0]}), years")
    axis.set_ylabel(f"MAE of the tail groups ({labels[1]}), years")
    axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    axis.set_title(title, fontsize=9)
    _finish(figure, path)
