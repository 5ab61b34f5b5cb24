"""The page and the tables of a sweep, with sentences that say which setting is surely better than which."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from lae_jax.report import bootstrap, comparison_page, scores, wording
from lae_jax.report.loading import Evaluation
from lae_jax.report.page import Page, Section
from lae_jax.report.tables import Table
from lae_jax.sweep.claims import Run
from lae_jax.sweep.pooled import Pooled

_OF_RUN = ("n", "mae", "sigma", "aar_2021", "aar_2022", "mmae", "distance", "distance_sigma", "in_range")
_MOST_NAMES = 5  # in a sentence
_FEW = 4  # up to this many settings, the sentences name all sure differences; the table always has them


def made(
    found: Mapping[Run, Evaluation], pooled: Pooled, failed: Mapping[str, dict], facts: Sequence[tuple[str, str]]
) -> tuple[Page, dict[str, Table]]:
    """Returns the page and the tables `table`, `differences` and `runs`.

    Args:
      found: Runs with their evaluations.
      pooled: Their joint result.
      failed: Names of runs that failed -> 'status' and 'message'.
      facts: Names and values of the provenance.
    """
    table = Table(
        ("setting", "trainings", *(comparison_page.title_of(score) for score in pooled.shown)),
        [
            (one.name, str(len(one.trainings)), *(one.estimate(score) for score in pooled.shown))
            for one in pooled.settings
        ],
        names=2,
    )
    differences = Table(
        ("setting", "minus", "score", "difference", "corrected p", "verdict"),
        [
            (one.setting, one.other, one.score.title, one.value, _p(one.p), one.verdict)
            for one in pooled.differences
            if one.value.is_known
        ],
        names=2,
    )
    runs = _runs(found)
    tables = {"table": table, "differences": differences, "runs": runs}
    told = {name: Section(title) for name, title in (("differences", "Differences"), ("runs", "Runs"))}
    if differences.rows:
        text = (
            "Each pair of settings, training by training and image by image (paired). The intervals are of one"
            f" comparison alone; the p-values are corrected for all comparisons, {_count(pooled)} (Holm)."
        )
        told["differences"] = Section("Differences", texts=[text], tables=[differences])
    told["runs"] = Section("Runs", tables=[runs])
    first = next(iter(found.values()))
    sections = [
        Section("Scores", texts=[_over(pooled)], tables=comparison_page.cut(table)),
        told["differences"],
        told["runs"],
        Section("What the scores mean", items=wording.meanings(first.sample.ranges is not None)),
        Section("Provenance", facts=facts),
    ]
    warnings = [f"{name} failed with status {one['status']}: {one['message']}" for name, one in failed.items()]
    if pooled.incomplete:
        names = ", ".join(pooled.incomplete)
        warnings.append(f"these runs do not count, because another fold of their seed is missing: {names}")
    # Each run's own page compares it with a constant, in words.
    plain = {run: one.report | {"constant": None} for run, one in found.items()}
    poor = [run.name for run, one in found.items() if wording.doubts(one.report) != wording.doubts(plain[run])]
    if poor:
        named = f"{', '.join(poor[:_MOST_NAMES])}{', ...' * (len(poor) > _MOST_NAMES)}"
        warnings.append(f"not better than one age for everyone: {len(poor)} of {len(found)} runs ({named})")
    # A fold may lack an age group that all folds together have.
    whole = [
        dataclasses.replace(one, report=plain[run] | {"missing_groups": pooled.missing}) for run, one in found.items()
    ]
    warnings += comparison_page.warnings_of([run.name for run in found], whole)
    title = f"{len(pooled.settings)} setting{'s' * (len(pooled.settings) != 1)} on {first.report['data']}"
    return Page(title, sentences(pooled), sections, warnings), tables


def sentences(pooled: Pooled) -> list[str]:
    """Returns which setting is surely better than which, by each score that is compared."""
    lines, how = [], f"Holm's correction for {_count(pooled)}"
    for score in dict.fromkeys(one.score for one in pooled.differences):
        values = {one.name: one.estimate(score) for one in pooled.settings}
        order = sorted((name for name in values if values[name].is_known), key=lambda name: values[name].value)
        if not order:
            continue
        of_score = [one for one in pooled.differences if one.score == score]
        better: dict[str, list[str]] = {}
        for one in of_score:
            if one.verdict in ("better", "worse"):
                winner, loser = (one.setting, one.other) if one.verdict == "better" else (one.other, one.setting)
                better.setdefault(winner, []).append(loser)
        begin = f"{comparison_page.title_of(score)} is lowest for {order[0]} ({values[order[0]].text})"
        if not any(math.isfinite(one.p) for one in of_score):
            lines.append(f"{begin}; too few {pooled.unit} to say whether that is sure.")
        elif not better:
            lines.append(f"{begin}; no setting is surely better than another after {how}.")
        elif len(order) <= _FEW:
            lines.append(f"{begin}; what is surely better than what, after {how}:")
            for name in (name for name in order if name in better):
                losers = sorted(better[name], key=order.index)
                lines.append(f"{name} is surely better than {', '.join(losers)} in {comparison_page.title_of(score)}.")
        else:
            told = _of_the_lowest(order, better.get(order[0], []))
            lines.append(f"{begin}. After {how}, {told}. The table of differences has all pairs.")
    if not lines:
        (one,) = pooled.settings[:1]
        lines = [
            f"{comparison_page.title_of(score)} of {one.name}: {one.estimate(score)}."
            for score in pooled.shown
            if score.name in ("distance", "mae")
        ]
    return lines


def _of_the_lowest(order: Sequence[str], losers: Sequence[str]) -> str:
    """Returns what the setting with the lowest score is surely better than, and not distinguishable from."""
    near = [name for name in order[1:] if name not in losers]
    told = f"this setting is surely better than {len(losers) or 'none'} of the {len(order) - 1} others"
    if near:
        more = f" and {len(near) - _MOST_NAMES} more" * (len(near) > _MOST_NAMES)
        told += f" and not distinguishable from {', '.join(near[:_MOST_NAMES])}{more}"
    return told


def _count(pooled: Pooled) -> str:
    count = sum(math.isfinite(one.p) for one in pooled.differences)
    return f"{count} comparison{'s' * (count != 1)}"


def _p(p: float) -> str:
    return "–" if p != p else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _over(pooled: Pooled) -> str:
    """Returns what the numbers, the spreads and the intervals of the page are over."""
    count = max(len(one.trainings) for one in pooled.settings)
    spread = "The mean ± the standard deviation over the trainings. " * (count > 1)
    images = {"people": f"the people of {pooled.images} images", "images": f"{pooled.images} images"}.get(pooled.unit)
    if pooled.unit == "folds":
        over = "the folds, each a training with images of its own. Few folds have wide intervals, or none"
    elif count > 1:
        over = f"the trainings and {images} together"
    else:
        over = f"{images}. With one training, they say nothing about other trainings"
    return (
        f"{spread}In brackets: 95 % intervals over {over} ({bootstrap.REPLICATES} bootstrap samples; Student's t for"
        " few trainings). Where the split also chose the checkpoints, or where you choose a setting by it, the scores"
        " are better than those of new images: score the chosen setting on a test split."
    )


def _runs(found: Mapping[Run, Evaluation]) -> Table:
    reports = [one.report for one in found.values()]
    names = [name for name in _OF_RUN if any(report.get(name) is not None for report in reports)]
    titles = {score.name: comparison_page.title_of(score) for score in (*scores.MAIN, *scores.OF_RANGES, *scores.MORE)}
    has_folds = any(run.fold is not None for run in found)
    rows = []
    for run, report in zip(found, reports, strict=True):
        values = [report.get(name) for name in names]
        cells = ["–" if value is None else f"{value:.4g}" for value in values]
        numbers = [str(run.fold)] * has_folds + [str(run.seed), str(report["step"])]
        rows.append((run.name, run.setting, *numbers, *cells))
    header = ("run", "setting", *["fold"] * has_folds, "seed", "step", *(titles.get(name, name) for name in names))
    return Table(header, rows, names=2)
