"""Pictures of evaluations: each function draws numbers and states the finding."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import MaxNLocator

from lae_jax import metrics
from lae_jax.report import age_groups, overviews, scores
from lae_jax.report.loading import Evaluation
from lae_jax.report.pictures import BARS, GRID, INK, LINE, MARKERS, MUTED, RUNS, Picture, figure, svg
from lae_jax.report.scores import BIAS, Scored
from lae_jax.runtime import console

_LEVELS = np.arange(1, 20) / 20
_MAX_CS = 20
_CELL = 2  # years, side of a cell of the density


def _by_age(evaluation: Evaluation, top: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, mean absolute error and mean signed error of each whole age 0..top; NaN for ages without images.

    Of ranges, the errors are the distances to them, at the age that stands for the range.
    """
    sample = evaluation.sample
    classes, differences = metrics.age_class(sample.ages), sample.differences
    count = np.bincount(classes, minlength=top + 1)
    means = []
    for values in (np.abs(differences), differences):
        total = np.bincount(classes, values, minlength=top + 1)
        means.append(np.divide(total, count, out=np.full(top + 1, np.nan), where=count > 0))
    return count, *means


def _images(number: np.number) -> str:
    return f"{number:.1f}" if isinstance(number, np.floating) else str(number)


def _error(evaluation: Evaluation) -> str:
    return "mae" if evaluation.sample.ranges is None else "distance"


def _top(evaluation: Evaluation) -> int:
    training = evaluation.sample.training_count
    last = 0 if training is None or not training.any() else int(np.flatnonzero(training).max())
    return max(81, last, int(metrics.age_class(evaluation.sample.ages).max()))


def _style(number: int) -> dict:
    """Colour and marker of a run by its number."""
    turn = number // len(RUNS)
    return {"color": RUNS[number % len(RUNS)], "marker": MARKERS[(number + turn) % len(MARKERS)]}


def _years(number: float, signed: bool = False) -> str:
    return f"{number:{'+' * signed}.1f} years"


def histogram(evaluation: Evaluation) -> Picture | None:
    """Draws training images (Fig. 1 of the paper) and error by age; None if the training images are unknown."""
    training = evaluation.report.get("training")
    if not training:
        return None
    top = _top(evaluation)
    given = np.array(training["count"])[: top + 1]  # whole numbers, or fractions of images with a range
    images = np.zeros(top + 1, given.dtype)
    images[: len(given)] = given
    count, error, _ = _by_age(evaluation, top)
    drawn, axis = figure()
    axis.bar(np.arange(top + 1), images, width=1.0, color=BARS, linewidth=0)
    axis.set(xlabel="age, years", ylabel=f"images in {training['split']} (bars)", xlim=(-0.5, top + 0.5))
    axis.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    over = axis.twinx()
    over.spines[["top"]].set_visible(False)
    over.plot(np.arange(top + 1), error, ".-", color=LINE, markersize=4, linewidth=1)
    over.set_ylim(0, 1.05 * max(np.nanmax(error), 1e-3))
    error_name = "mean absolute error" if evaluation.sample.ranges is None else "mean distance to the label"
    over.set_ylabel(f"{error_name}, years (line)", color=LINE)
    most, worst = int(images.argmax()), int(np.nanargmax(error))
    rare = int(((images < 20) & (count > 0)).sum())
    finding = (
        f"{training['split']} has the most images at {most} years ({_images(images[most])}). The error is largest at"
        f" {worst} years ({_years(error[worst])}, {console.counted(int(count[worst]), 'scored image')},"
        f" {_images(images[worst])} training images); {rare} of the {int((count > 0).sum())} scored ages have fewer"
        " than 20 training images."
    )
    rows = [(age, images[age].item(), int(count[age]), float(error[age])) for age in range(top + 1)]
    header = ("age", "training_images", "scored_images", _error(evaluation))
    return Picture("histogram", "Training images and error by age", finding, svg(drawn), header, rows)


def groups(evaluations: Sequence[Evaluation], labels: Sequence[str], scored: Sequence[Scored]) -> Picture:
    """Draws the errors of the age groups with intervals, the runs side by side."""
    drawn, axis = figure()
    error, of_group = _error(evaluations[0]), scores.error_scores(evaluations[0].sample)
    shown = age_groups.shown(evaluations[0].sample.ages)
    rows, places = [], np.arange(len(shown))
    for number, (label, one) in enumerate(zip(labels, scored, strict=True)):
        found = [one.estimate(of_group[group]) for group in shown]
        value, low, high = np.array([(e.value, e.low, e.high) for e in found]).T
        shift = (number - (len(scored) - 1) / 2) * min(0.2, 0.7 / len(scored))
        style = {**_style(number), "linestyle": "none", "markersize": 5, "linewidth": 1.2}
        bars = np.fmax(np.stack([value - low, high - value]), 0)
        axis.errorbar(places + shift, value, bars, label=label, **style)
        rows += [(label, g, e.value, e.low, e.high) for g, e in zip(shown, found, strict=True)]
    count = dict(zip(metrics.ALL_GROUPS, scores.group_count(evaluations[0].sample.ages), strict=True))
    axis.set_xticks(places, [f"{name}\n{count[name] or 'none'}" for name in shown], fontsize=8)
    title = "mean absolute error" if error == "mae" else "mean distance to the label"
    axis.set(xlabel="true age, years, and number of images", ylabel=f"{title}, years", ylim=(0, None))
    axis.grid(axis="y", color=GRID, linewidth=0.6)
    axis.set_axisbelow(True)
    if len(scored) > 1:
        drawn.legend(loc="outside upper left", ncols=2)
    told = []
    for label, one in zip(labels, scored, strict=True):
        known = {g: one.estimate(of_group[g]) for g in shown if np.isfinite(one.values[f"{error}_{g}"])}
        if known:
            best, worst = (pick(known, key=lambda g, known=known: known[g].value) for pick in (min, max))
            told.append(f"{label} is lowest at {best}, {known[best]} years, and highest at {worst}, {known[worst]}")
    finding = "; ".join(told) + ". Brackets and bars are 95 % intervals."
    return Picture(
        "groups", "Error of the age groups", finding, svg(drawn), ("run", "group", error, "low", "high"), rows
    )


def density(evaluation: Evaluation) -> Picture | None:
    """Draws the number of images in cells of two years of predicted against exact age; None if no age is exact."""
    sample = evaluation.sample.exact
    ages, predictions = sample.ages, sample.predictions
    if not len(ages):
        return None
    top = float(np.ceil((max(82, ages.max(), predictions.max()) + 1) / _CELL) * _CELL)
    edges = np.arange(0, top + _CELL, _CELL)
    cells, _, _ = np.histogram2d(np.clip(ages, 0, top), np.clip(predictions, 0, top), [edges, edges])
    drawn, axis = figure(5.2, 4.6)
    # One colour, paler for fewer images, so that it works on any background.
    colours = LinearSegmentedColormap.from_list("density", [(*_rgb(RUNS[0]), 0.25), (*_rgb(RUNS[0]), 1.0)])
    x, y = np.nonzero(cells)
    shown = axis.scatter(
        edges[x] + _CELL / 2,
        edges[y] + _CELL / 2,
        c=cells[x, y],
        s=38,
        marker="s",
        cmap=colours,
        linewidth=0,
        vmin=0,
        vmax=cells.max(),
    )
    classes = metrics.age_class(ages)
    present = np.unique(classes)
    means = [predictions[classes == age].mean() for age in present]
    axis.plot(present, means, ".", color=LINE, markersize=4, label="mean prediction of each age")
    axis.plot([0, top], [0, top], color=INK, linewidth=0.8, label="ideal")
    drawn.colorbar(
        shown,
        ax=axis,
        label=f"images in {_CELL} x {_CELL} years",
        shrink=0.8,
        ticks=MaxNLocator(integer=True),
    )
    axis.set(xlim=(0, top), ylim=(0, top), aspect="equal", xlabel="true age, years", ylabel="predicted age, years")
    axis.legend(loc="upper left")
    within = (np.abs(predictions - ages) <= 5).mean()
    slope = np.polyfit(ages, predictions, 1)[0] if np.ptp(ages) > 0 else np.nan
    finding = f"{within:.0%} of the predictions are within 5 years of the truth"
    if np.isfinite(slope):
        finding += f"; one more year of true age adds {slope:.2f} years to the prediction" + (
            ": predictions differ less between people than their ages do." if slope < 0.9 else "."
        )
    rows = [(float(edges[i]), float(edges[j]), int(cells[i, j])) for i, j in zip(x, y, strict=True)]
    header = ("age_from", "prediction_from", "images")
    return Picture("density", "Predicted and true age", finding, svg(drawn), header, rows)


def _rgb(colour: str) -> tuple[float, float, float]:
    return tuple(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))


def bias(evaluation: Evaluation, scored: Scored) -> Picture:
    """Draws the mean signed error by whole age, and by age group with intervals."""
    top = _top(evaluation)
    count, _, signed = _by_age(evaluation, top)
    drawn, axis = figure()
    axis.axhline(0, color=INK, linewidth=0.8)
    axis.plot(np.arange(top + 1), signed, ".", color=MUTED, markersize=4, label="each age")
    rows = [
        ("age", str(age), int(count[age]), float(signed[age]), np.nan, np.nan) for age in range(top + 1) if count[age]
    ]
    told = {}
    shown = age_groups.shown(evaluation.sample.ages)
    images = scores.group_count(evaluation.sample.ages)
    for group, n, score in zip(metrics.ALL_GROUPS, images, BIAS, strict=True):
        if group not in shown:
            continue
        found = scored.estimate(score)
        first, last = age_groups.edges(group, top)
        label = {"label": "each age group, 95 % interval"} if group == metrics.GROUPS[0] else {}
        axis.plot([first - 0.5, last + 0.5], [found.value] * 2, color=RUNS[0], linewidth=2, **label)
        axis.fill_between([first - 0.5, last + 0.5], found.low, found.high, color=RUNS[0], alpha=0.25, linewidth=0)
        rows.append(("group", group, int(n), found.value, found.low, found.high))
        if np.isfinite(found.value):
            told[group] = found.value
    axis.set(xlabel="true age, years", ylabel="mean of prediction - age, years", xlim=(-0.5, top + 0.5))
    drawn.legend(loc="outside upper left", ncols=2)
    ends = [f"{group} ({_years(told[group], True)})" for group in (min(told, key=told.get), max(told, key=told.get))]
    finding = f"The bias goes from {ends[0]} to {ends[1]}; above 0 the predictions are too old."
    return Picture("bias", "Bias by age", finding, svg(drawn), ("of", "ages", "images", "bias", "low", "high"), rows)


def cumulative(evaluations: Sequence[Evaluation], labels: Sequence[str]) -> Picture:
    """Draws the cumulative score: the share of images whose error is at most k years."""
    drawn, axis = figure()
    years, rows, told = np.arange(0, _MAX_CS + 0.25, 0.25), [], []
    for number, (label, one) in enumerate(zip(labels, evaluations, strict=True)):
        errors = np.sort(np.abs(one.sample.differences))
        share = np.searchsorted(errors, years, side="right") / len(errors)
        line = {"linestyle": ("-", "--", "-.", ":")[number // len(RUNS) % 4]}
        axis.plot(years, 100 * share, color=RUNS[number % len(RUNS)], linewidth=1.6, label=label, **line)
        rows += [(label, float(k), float(s)) for k, s in zip(years, share, strict=True)]
        told.append(f"{label}: {share[20]:.0%} within 5 years, {share[40]:.0%} within 10")
    axis.set(xlabel="largest error counted, years", ylabel="images, %", xlim=(0, _MAX_CS), ylim=(0, 100))
    axis.grid(color=GRID, linewidth=0.6)
    axis.legend(loc="lower right")
    return Picture("cs", "Cumulative score", "; ".join(told) + ".", svg(drawn), ("run", "years", "share"), rows)


def coverage(evaluations: Sequence[Evaluation], labels: Sequence[str]) -> Picture | None:
    """Draws the share of ages inside the intervals against the share that they should hold; None if it is unknown."""
    drawn, axis = figure()
    rows, told = [], []
    for number, (label, one) in enumerate(zip(labels, evaluations, strict=True)):
        held = one.coverage(_LEVELS)
        if held is None:
            continue
        axis.plot(100 * _LEVELS, 100 * held, markersize=3.5, linewidth=1.2, label=label, **_style(number))
        rows += [(label, float(level), float(share)) for level, share in zip(_LEVELS, held, strict=True)]
        at, level = held[17], _LEVELS[17]
        # Two standard errors of the share, if the level were right.
        near = max(0.03, 2 * math.sqrt(level * (1 - level) / len(one.sample.ages))) + 1e-9
        word = "about right" if abs(at - level) <= near else "too narrow" if at < level else "too wide"
        told.append(f"{label}: intervals of {level:.0%} hold {at:.0%} of the ages ({word})")
    if not rows:
        return None
    axis.plot([0, 100], [0, 100], color=INK, linewidth=0.8, label="ideal")
    axis.set(xlabel="interval, % of the distribution", ylabel="ages inside it, %", xlim=(0, 100), ylim=(0, 100))
    axis.grid(color=GRID, linewidth=0.6)
    axis.legend(loc="upper left")
    return Picture(
        "coverage", "Coverage of the intervals", "; ".join(told) + ".", svg(drawn), ("run", "level", "share"), rows
    )


def loss(lines: Sequence[dict]) -> Picture | None:
    """Draws training loss and learning rate by step, from the lines of metrics.jsonl; None if there are none."""
    train = [line for line in lines if line.get("kind") == "train" and line.get("loss") is not None]
    if not train:
        return None
    steps, losses, rates = (np.array([line[name] for line in train]) for name in ("step", "loss", "learning_rate"))
    drawn, axis = figure()
    style = {"marker": "." if len(steps) < 20 else ""}  # a single point draws no line
    axis.plot(steps, losses, color=RUNS[0], linewidth=1.2, **style)
    axis.set(xlabel="step", ylabel="training loss", ylim=(0, 1.05 * max(np.quantile(losses, 0.98), 1e-9)))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    over = axis.twinx()
    over.spines[["top"]].set_visible(False)
    over.plot(steps, rates, color=MUTED, linewidth=1, linestyle=":", **style)
    over.set_ylabel("learning rate (dotted)", color=MUTED)
    over.set_ylim(0, None)
    if len(losses) == 1:
        finding = f"The training loss was logged once, at step {steps[0]}: {losses[0]:.2f}."
    else:
        tail = losses[-max(1, len(losses) // 10) :]
        last = f"the mean of the last {len(tail)} of {len(losses)} lines" if len(tail) > 1 else "the last line"
        finding = f"The training loss went from {losses[0]:.2f} (step {steps[0]}) to {tail.mean():.2f}, {last}."
    rows = list(zip(steps.tolist(), losses.tolist(), rates.tolist(), strict=True))
    return Picture("loss", "Training loss", finding, svg(drawn), ("step", "loss", "learning_rate"), rows)


def validation(lines: Sequence[dict], kept: int | None) -> Picture | None:
    """Draws MAE and sigma, or the equal error rate, on the validation split by step; None if there are none.

    Args:
      lines: Lines of metrics.jsonl.
      kept: Step of the kept checkpoint.
    """
    found = [line for line in lines if line.get("kind") == "validation"]
    names = {"distance": "distance, years", "distance_sigma": "sigma of the distances, years"}
    names |= {"mae": "MAE, years", "sigma": "sigma, years", "equal_error_rate": "equal error rate"}
    names = {name: title for name, title in names.items() if any(line.get(name) is not None for line in found)}
    if not names:
        return None
    drawn, axis = figure()
    told = []
    for number, (name, title) in enumerate(names.items()):
        points = [(line["step"], line[name]) for line in found if line.get(name) is not None]
        axis.plot(
            *zip(*points, strict=True),
            color=RUNS[number],
            marker=MARKERS[number],
            markersize=4,
            linewidth=1.2,
            label=title,
        )
        step, lowest = min(points, key=lambda point: point[1])
        told.append(f"the lowest {title.split(',')[0]} was {lowest:.3g} at step {step}, the last {points[-1][1]:.3g}")
    if kept is not None:
        axis.axvline(kept, color=MUTED, linewidth=1, linestyle="--", label="kept checkpoint")
    highest = max(line[name] for line in found for name in names if line.get(name) is not None)
    axis.set(xlabel="step", ylim=(0, 1.08 * highest or 1), ylabel="on the validation split")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    drawn.legend(loc="outside upper left", ncols=2)
    finding = "; ".join(told) + ("" if kept is None else f"; the checkpoint of step {kept} was kept") + "."
    rows = [(line["step"], *(line.get(name) if line.get(name) is not None else "" for name in names)) for line in found]
    return Picture(
        "validation", "Scores while training", finding[0].upper() + finding[1:], svg(drawn), ("step", *names), rows
    )


def distribution(probabilities: np.ndarray, label: tuple[float, float], prediction: float) -> str:
    """Returns a small SVG of a distribution over the ages.

    A line shows the true age, a band the range of the label, and a dotted line the prediction.

    Args:
      probabilities: (K,).
      label: First and last age, equal where the age is exact.
      prediction: Years.
    """
    drawn, axis = figure(2.2, 1.0)
    axis.spines[["left"]].set_visible(False)
    axis.fill_between(np.arange(len(probabilities)), probabilities, color=RUNS[0], alpha=0.45, linewidth=0)
    if label[0] < label[1]:
        axis.axvspan(*label, color=LINE, alpha=0.25, linewidth=0)
    else:
        axis.axvline(label[0], color=LINE, linewidth=1.4)
    axis.axvline(prediction, color=INK, linewidth=1.2, linestyle=":")
    axis.set(xlim=(0, len(probabilities) - 1), ylim=(0, None), yticks=[], xticks=[0, 50, 100])
    axis.tick_params(labelsize=10)
    return svg(drawn)


def head_tail(points: dict[str, list], groups: tuple[np.ndarray, np.ndarray], error: str = "MAE") -> Picture:
    """Draws the head-tail curve of the long-tail bench.

    Args:
      points: Method -> its (head, tail) errors in years, one per setting.
      groups: Places in metrics.GROUPS of the head groups and of the tail groups.
      error: 'MAE', or 'distance' where ages are ranges.
    """
    drawn, axis = figure(5.2, 5.4)
    overviews.draw_head_tail(axis, points, groups, error)
    axis.grid(color=GRID, linewidth=0.6)
    drawn.legend(loc="outside lower left", ncols=3, fontsize=7)
    best = overviews.frontier(np.array([point for found in points.values() for point in found]))
    on = [name for name, found in points.items() if any((np.array(p) == best).all(axis=1).any() for p in found)]
    finding = f"On the frontier, where no method has lower means for both head and tail: {', '.join(on)}. "
    if not len(best):
        finding = "The split has no image of the head groups, or none of the tail groups."
    elif len(best) == 1:
        head, tail = best[0]
        finding += f"There the {error} of the head groups is {head:.2f} and that of the tail groups {tail:.2f} years."
    else:
        (head, tail), (last_head, last_tail) = best[0], best[-1]
        finding += (
            f"Along it the {error} of the head groups goes from {head:.2f} to {last_head:.2f} while that of the"
            f" tail groups goes from {tail:.2f} to {last_tail:.2f} years."
        )
    rows = [(name, *map(float, point)) for name, found in points.items() for point in found]
    return Picture("head_tail", "Head against tail", finding, svg(drawn), ("method", "head_mae", "tail_mae"), rows)
