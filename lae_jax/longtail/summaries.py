"""Results of the long-tail bench: tables, differences, points of the head-tail curve, the method for each aim.

Methods are chosen by the scores expected on test, from validation (`trials.EXPECTED`), never by the scores on test.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from lae_jax import metrics
from lae_jax.longtail.trials import EXPECTED, STAGE3, TEST, VALIDATION, Trial
from lae_jax.report import tables, wording
from lae_jax.report.scores import UNCLEAR

# aim -> (score, best of a sequence)
AIMS = {"lowest MAE": ("mae", min), "lowest sigma": ("sigma", min), "highest AAR (2021)": ("aar_2021", max)}
_SCORES = ("mae", "sigma", "aar_2021", "aar_2022", "mmae", "cs5")
_TITLES = ("MAE", "sigma", "AAR 2021", "AAR 2022", "mMAE", "CS@5")
REFERENCE = "lae"
# Column of table.csv -> score, of the differences to the reference.
DIFFERENCES = {f"mae_minus_{REFERENCE}": "mae", f"sigma_minus_{REFERENCE}": "sigma"}
_UNKNOWN = (math.nan, math.nan)


def best_of_each(all_trials: Sequence[Trial]) -> list[Trial]:
    """Returns the best try of each method, the one with the lowest expected MAE + sigma.

    If a group has no image in validation, it is the one with the lowest mean of the group errors there.
    """
    by_method: dict[str, list[Trial]] = {}
    for one in all_trials:
        by_method.setdefault(one.method.name, []).append(one)
    return [min(group, key=_balance) for group in by_method.values()]


def _balance(one: Trial) -> float:
    value = one.mean(EXPECTED, "mae_plus_sigma")
    return value if math.isfinite(value) else one.mean(VALIDATION, "mean_group_mae")


def choose(all_trials: Sequence[Trial], aim: str) -> Trial | None:
    """Returns the first try with the best mean of the expected score; None if the score is undefined.

    Runs of stage 3 on images are not candidates.
    """
    score, best = AIMS[aim]
    known = [one for one in all_trials if one.method is not STAGE3 and math.isfinite(one.mean(EXPECTED, score))]
    return best(known, key=lambda one: one.mean(EXPECTED, score)) if known else None


def paired(one: Trial, other: Trial, split: str, score: str) -> tuple[float, float]:
    """Returns the mean of the differences one - other and half of its 95 % interval (Student's t).

    Pairs are seeds. With several runs they are the runs, each with its mean over the seeds, since the seeds of one
    backbone say nothing about another. Half is NaN with fewer than two pairs; both are NaN if the
    trials do not pair.
    """
    a, b = one.values(split, score), other.values(split, score)
    if one.seeds != other.seeds or len(a) != len(b):
        return math.nan, math.nan
    differences = (a - b).reshape(-1, one.seeds)
    differences = differences.mean(axis=1) if len(differences) > 1 else differences[0]
    count, mean = len(differences), float(differences.mean())
    if count < 2:
        return mean, math.nan
    return mean, float(stats.t.ppf(0.975, count - 1) * differences.std(ddof=1) / math.sqrt(count))


def head_and_tail(training_ages: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the places in GROUPS of the head (groups with at least 1/8 of the training images) and of the tail."""
    groups = metrics.age_group(training_ages)
    counts = np.bincount(groups[groups >= 0], minlength=len(metrics.GROUPS))
    is_head = counts >= counts.sum() / len(metrics.GROUPS)
    return np.flatnonzero(is_head), np.flatnonzero(~is_head)


def curve_point(one: Trial, split: str, head: np.ndarray, tail: np.ndarray) -> tuple[float, float]:
    """Returns the mean MAE of the head groups and of the tail groups, without groups that have no image."""
    groups = one.group_mae(split)
    return tuple(float(np.mean(part[np.isfinite(part)])) if np.isfinite(part).any() else math.nan
                 for part in (groups[head], groups[tail]))  # fmt: skip


def sentence(all_trials: Sequence[Trial], aim: str) -> str:
    """Returns a sentence that names the method for an aim, with its scores on test."""
    score, _ = AIMS[aim]
    chosen = choose(all_trials, aim)
    if chosen is None:
        missing = ", ".join(all_trials[0].reports[VALIDATION][0].missing_groups)
        return f"No method can be chosen for the {aim}: the validation split has no image of age {missing}."
    if score == "aar_2021" and not chosen.mean(EXPECTED, score) > 0:
        return f"No method can be chosen for the {aim}: the expected score of every method is 0."
    rate = f" (base_learning_rate {chosen.rate:g})" if chosen.rate else ""
    on_test = ", ".join(f"{title} {_pm(chosen, TEST, s)}" for s, title in zip(_SCORES[:3], _TITLES, strict=False))
    expected = f"its expected {_title(score)} (from validation) is {_pm(chosen, EXPECTED, score)}"
    text = f"For the {aim}, use {chosen.name}{rate}: {expected}; on test {on_test}."
    reference = [one for one in best_of_each(all_trials) if one.method.name == REFERENCE]
    if reference and reference[0].method is not chosen.method:
        text += f" Difference to {REFERENCE} on test {_differences(chosen, reference[0])}."
    return text


def _differences(one: Trial, reference: Trial) -> str:
    """The paired differences on test, each with its interval and whether it is certain."""
    told = []
    for score in ("mae", "sigma"):
        mean, half = paired(one, reference, TEST, score)
        word = UNCLEAR if not abs(mean) > half else "lower" if mean < 0 else "higher"
        told.append(f"{_title(score)} {_interval(mean, half)}, {word}")
    over = wording.over_trainings(len(one.reports[TEST]) // one.seeds, one.seeds)
    return f"({over}): {'; '.join(told)}"


def improvement(all_trials: Sequence[Trial]) -> str:
    """Returns a sentence on the method to use where no score may get worse.

    It has the lowest expected MAE + sigma among the trials whose expected MAE and expected sigma are at most those of
    LAE with its best base_learning_rate. The differences are those on test.
    """
    reference = next((one for one in best_of_each(all_trials) if one.method.name == REFERENCE), None)
    at_most = {score: reference.mean(EXPECTED, score) for score in ("mae", "sigma")} if reference else {}
    if not at_most or not all(math.isfinite(value) for value in at_most.values()):
        return (
            f"It is unknown whether a method improves on {REFERENCE}: {REFERENCE} was not trained, or one of its scores"
            " is undefined."
        )
    others = [one for one in all_trials if one.method is not STAGE3]
    others = [one for one in others if all(one.mean(EXPECTED, s) <= value for s, value in at_most.items())]
    chosen = min(others, key=_balance)
    if chosen is reference:
        return f"No other method has an expected MAE and an expected sigma no higher than those of {REFERENCE}."
    expected = ", ".join(
        f"{_title(score)} {_pm(chosen, EXPECTED, score)} against {_pm(reference, EXPECTED, score)}" for score in at_most
    )
    return (
        f"Among the methods whose expected MAE and expected sigma are no higher than those of {REFERENCE},"
        f" {chosen.name} has the lowest expected MAE + sigma (base_learning_rate {chosen.rate:g},"
        f" {REFERENCE} {reference.rate:g}): {expected}; the paired difference on test"
        f" {_differences(chosen, reference)}."
    )


def markdown(all_trials: Sequence[Trial], split: str) -> str:
    """Returns the tables of a split with a line for each method: over all ages, and by age group."""
    return "\n".join(map(tables.markdown, _tables(all_trials, split)))


def latex(all_trials: Sequence[Trial], split: str) -> str:
    """Returns the same tables as tabulars that need no package."""
    return "\n".join(map(tables.latex, _tables(all_trials, split)))


def _tables(all_trials: Sequence[Trial], split: str) -> list[tables.Table]:
    reference = next((one for one in all_trials if one.method.name == REFERENCE), None)
    outside = [any(math.isfinite(one.outside_mae(split)[j]) for one in all_trials) for j in range(2)]
    shown = [*metrics.GROUPS, *(name for name, there in zip(metrics.OUTSIDE, outside, strict=True) if there)]
    header = ["method", "setting", *_TITLES, *shown]
    if reference:
        header += [f"{title} - {REFERENCE}" for title in ("MAE", "sigma")]
    rows = []
    for one in all_trials:
        setting = f"{one.method.setting} {one.setting:g}" if one.method.setting else ""
        row = [one.method.name, setting, *(_pm(one, split, score) for score in _SCORES)]
        row += [_number(value) for value in [*one.group_mae(split), *one.outside_mae(split)[outside]]]
        if reference:
            row += ["" if one is reference else _interval(*paired(one, reference, split, s)) for s in ("mae", "sigma")]
        rows.append(row)
    return tables.cut(tables.Table(header, rows, names=2), metrics.ALL_GROUPS)


def csv_of(all_trials: Sequence[Trial]) -> str:
    """Returns the means and spreads of every trial, with a line for each split and one for the expected scores.

    Undefined numbers are empty. If exactly one of the trials is LAE, the differences to it and half of their
    intervals are included.
    """
    scores = [name for score in _SCORES for name in (score, f"{score}_spread")]
    groups = [f"mae_{group}" for group in metrics.ALL_GROUPS]
    references = [one for one in all_trials if one.method.name == REFERENCE]
    reference = references[0] if len(references) == 1 else None
    differences = [name for s in DIFFERENCES for name in (s, f"{s}_half")] if reference else []
    rows = []
    for one in all_trials:
        for split in (VALIDATION, EXPECTED, TEST):
            pairs = [value for s in _SCORES for value in (one.mean(split, s), one.spread(split, s))]
            setting = f"{one.setting:g}" if one.method.setting else ""
            row = [
                one.method.name,
                one.method.setting,
                setting,
                f"{one.rate:g}",
                split,
                len(one.reports[TEST]),
                one.skipped_steps,
            ]
            to_reference: list[float] = []
            for score in DIFFERENCES.values() if reference else ():
                to_reference += paired(one, reference, split, score) if one is not reference else _UNKNOWN
            rows.append([*row, *map(float, [*pairs, *one.group_mae(split), *one.outside_mae(split), *to_reference])])
    header = [
        "method",
        "parameter",
        "setting",
        "base_learning_rate",
        "split",
        "n",
        "skipped_steps",
        *scores,
        *groups,
        *differences,
    ]
    return tables.csv_text(header, rows)


def _title(score: str) -> str:
    return dict(zip(_SCORES, _TITLES, strict=True))[score]


def _number(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "-"


def _pm(one: Trial, split: str, score: str) -> str:
    mean, digits = one.mean(split, score), 3 if score == "cs5" else 2
    if not math.isfinite(mean):
        return "-"
    return f"{mean:.{digits}f}" + f" ± {one.spread(split, score):.{digits}f}" * (len(one.values(split, score)) > 1)


def _interval(mean: float, half: float) -> str:
    if not math.isfinite(mean):
        return "-"
    # Without ±, which marks a standard deviation.
    return f"{mean:+z.2f}" + f" ({mean - half:+z.2f} to {mean + half:+z.2f})" * math.isfinite(half)
