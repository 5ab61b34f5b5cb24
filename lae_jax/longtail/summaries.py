"""Results of the long-tail bench: tables, differences, points of the head-tail curve, the method for each aim.

Methods are chosen by the scores expected on test, from validation (`outcomes.EXPECTED`), never by the scores on test.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from lae_jax import metrics
from lae_jax.longtail import certainty
from lae_jax.longtail.certainty import Difference
from lae_jax.longtail.outcomes import EXPECTED, STAGE3, TEST, VALIDATION, Trial
from lae_jax.report import tables, wording
from lae_jax.report.scores import UNCLEAR

REFERENCE = "lae"
IMPROVEMENT = "improvement"  # aim of the sentence on the method to use where nothing may get worse
# Ends of the names of columns with a difference: half of the interval over trainings, the joint interval, p-values.
JOINT = ("half", "low", "high", "p", "p_corrected")
# The joint differences of each trial to LAE.
Differences = Mapping[Trial, Mapping[str, Difference]]


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
    score = all_trials[0].words.aims[aim]
    best = max if score == "aar_2021" else min
    known = [one for one in all_trials if one.method is not STAGE3 and math.isfinite(one.mean(EXPECTED, score))]
    return best(known, key=lambda one: one.mean(EXPECTED, score)) if known else None


def reference_of(all_trials: Sequence[Trial]) -> Trial | None:
    """Returns LAE with its best base_learning_rate; None if it was not trained."""
    return next((one for one in best_of_each(all_trials) if one.method.name == REFERENCE), None)


def compared(all_trials: Sequence[Trial]) -> Differences:
    """Returns the joint differences to LAE of the best try of each method and of all that a sentence names."""
    reference = reference_of(all_trials)
    if reference is None:
        return {}
    named = [choose(all_trials, aim) for aim in all_trials[0].words.aims]
    named.append(choose_improvement(all_trials))
    shown = [*best_of_each(all_trials), *(one for one in named if one is not None)]
    shown = [one for one in shown if one.method is not reference.method]
    return certainty.differences(shown, reference, reference.told_on)


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
    """Returns the places in GROUPS of the head (groups with at least 1/8 of the training images) and of the tail.

    Args:
      training_ages: (N,) years, or (N, 2) ranges.
    """
    exact = training_ages if training_ages.ndim == 1 else metrics.label_age(training_ages)
    groups = metrics.age_group(exact)
    counts = np.bincount(groups[groups >= 0], minlength=len(metrics.GROUPS))
    is_head = counts >= counts.sum() / len(metrics.GROUPS)
    return np.flatnonzero(is_head), np.flatnonzero(~is_head)


def curve_point(one: Trial, split: str, head: Sequence[int], tail: Sequence[int]) -> tuple[float, float]:
    """Returns the mean MAE of the head groups and of the tail groups, without groups that have no image."""
    groups = one.group_mae(split)
    return tuple(float(np.mean(part[np.isfinite(part)])) if np.isfinite(part).any() else math.nan
                 for part in (groups[np.asarray(head, int)], groups[np.asarray(tail, int)]))  # fmt: skip


def sentences(all_trials: Sequence[Trial], found: Differences) -> dict[str, str]:
    """Returns the sentence for each aim, and that on the improvement.

    Args:
      all_trials: All trials.
      found: Their joint differences to LAE, of `compared`.
    """
    told = {aim: _sentence(all_trials, aim, found) for aim in all_trials[0].words.aims}
    return {**told, IMPROVEMENT: _improvement(all_trials, found)}


def _sentence(all_trials: Sequence[Trial], aim: str, found: Differences) -> str:
    """Returns a sentence that names the method for an aim, with its scores."""
    words = all_trials[0].words
    score, chosen = words.aims[aim], choose(all_trials, aim)
    if chosen is None:
        missing = ", ".join(all_trials[0].reports(VALIDATION)[0].missing_groups)
        return f"No method can be chosen for the {aim}: the validation split has no image of age {missing}."
    if score == "aar_2021" and not chosen.mean(EXPECTED, score) > 0:
        return f"No method can be chosen for the {aim}: the expected score of every method is 0."
    rate = f" (base_learning_rate {chosen.rate:g})" if chosen.rate else ""
    text = f"For the {aim}, use {chosen.name}{rate}: "
    if chosen.told_on == TEST:
        text += f"its expected {_title(words, score)} (from validation) is {_pm(chosen, EXPECTED, score)}; "
    shown = [name for name, field in words.scores.items() if field in ("mae", "sigma", "aar_2021")]
    told = ", ".join(f"{words.titles[name]} {_pm(chosen, chosen.told_on, words.scores[name])}" for name in shown)
    text += f"on {chosen.told_on} {told}."
    if chosen in found and chosen.method.name != REFERENCE:
        text += f" Difference to {REFERENCE} on {chosen.told_on} {_differences(chosen, found)}."
    return text


def _differences(one: Trial, found: Differences) -> str:
    """The joint differences of a trial, each with its interval and whether it is certain."""
    told = []
    for score, difference in found[one].items():
        word = verdict(difference)
        text = in_words(difference.mean, difference.low, difference.high)
        told.append(f"{_title(one.words, score)} {text}, {word}")
    return f"({over_all(one, found)}): {'; '.join(told)}"


def verdict(difference: Difference) -> str:
    """Returns 'lower', 'higher', or `UNCLEAR` if that is not certain after the correction."""
    return UNCLEAR if not difference.is_sure else "lower" if difference.mean < 0 else "higher"


def over_all(one: Trial, found: Differences) -> str:
    """Returns what joint intervals are over, and the number of differences that the verdicts are corrected for."""
    labels = one.labels[one.told_on]
    images = len(np.unique(np.concatenate([each.rows for each in labels])))
    over = wording.over_all(one.runs, one.seeds, images, any((each.people >= 0).any() for each in labels))
    count = sum(math.isfinite(each.p) for of in found.values() for each in of.values())
    return f"{over}; verdicts after Holm's correction for {count} differences"


def choose_improvement(all_trials: Sequence[Trial]) -> Trial | None:
    """Returns the trial with the lowest expected MAE + sigma among those that LAE is in neither better than.

    Their expected MAE and expected sigma are at most those of LAE with its best base_learning_rate, which may be chosen
    itself. None if LAE was not trained or one of its scores is undefined. Runs of stage 3 on images are not candidates.
    """
    reference = reference_of(all_trials)
    at_most = {score: reference.mean(EXPECTED, score) for score in certainty.SCORES} if reference else {}
    if not at_most or not all(math.isfinite(value) for value in at_most.values()):
        return None
    others = [one for one in all_trials if one.method is not STAGE3]
    others = [one for one in others if all(one.mean(EXPECTED, s) <= value for s, value in at_most.items())]
    return min(others, key=_balance)


def _improvement(all_trials: Sequence[Trial], found: Differences) -> str:
    """Returns a sentence on the method to use where no score may get worse."""
    words, reference, chosen = all_trials[0].words, reference_of(all_trials), choose_improvement(all_trials)
    if chosen is None:
        return (
            f"It is unknown whether a method improves on {REFERENCE}: {REFERENCE} was not trained, or one of its scores"
            " is undefined."
        )
    error, sigma = (_title(words, score) for score in certainty.SCORES)
    if chosen is reference:
        return f"No other method has an expected {error} and an expected {sigma} no higher than those of {REFERENCE}."
    expected = ", ".join(
        f"{_title(words, score)} {_pm(chosen, EXPECTED, score)} against {_pm(reference, EXPECTED, score)}"
        for score in certainty.SCORES
    )
    return (
        f"Among the methods whose expected {error} and expected {sigma} are no higher than those of {REFERENCE},"
        f" {chosen.name} has the lowest expected {error} + sigma (base_learning_rate {chosen.rate:g},"
        f" {REFERENCE} {reference.rate:g}): {expected}; the paired difference on {chosen.told_on}"
        f" {_differences(chosen, found)}."
    )


def markdown(all_trials: Sequence[Trial], found: Differences) -> str:
    """Returns the tables with a line for each method: over all ages, and by age group."""
    return "\n".join(map(tables.markdown, _tables(all_trials, found)))


def latex(all_trials: Sequence[Trial], found: Differences) -> str:
    """Returns the same tables as tabulars that need no package."""
    return "\n".join(map(tables.latex, _tables(all_trials, found)))


def _tables(all_trials: Sequence[Trial], found: Differences) -> list[tables.Table]:
    words, split = all_trials[0].words, all_trials[0].told_on
    reference = next((one for one in all_trials if one.method.name == REFERENCE), None)
    outside = [any(math.isfinite(one.outside_mae(split)[j]) for one in all_trials) for j in range(2)]
    shown = [*metrics.GROUPS, *(name for name, there in zip(metrics.OUTSIDE, outside, strict=True) if there)]
    header = ["method", "setting", *words.titles.values(), *shown]
    if reference:
        header += [f"{_title(words, score)} - {REFERENCE}" for score in certainty.SCORES]
        header += [f"{_title(words, score)} - {REFERENCE}, joint" for score in certainty.SCORES]
    rows = []
    for one in all_trials:
        setting = f"{one.method.setting} {one.setting:g}" if one.method.setting else ""
        row = [one.method.name, setting, *(_pm(one, split, score) for score in words.scores.values())]
        row += [_number(value) for value in [*one.group_mae(split), *one.outside_mae(split)[outside]]]
        if one is reference:
            row += [""] * 2 * len(certainty.SCORES)
        elif reference:
            for score in certainty.SCORES:
                mean, half = paired(one, reference, split, score)
                row.append(in_words(mean, mean - half, mean + half))
            for each in found[one].values():
                text = in_words(each.mean, each.low, each.high)
                row.append(f"{text} {verdict(each)}" if math.isfinite(each.mean) else text)
        rows.append(row)
    return tables.cut(tables.Table(header, rows, names=2), metrics.ALL_GROUPS)


def csv_of(all_trials: Sequence[Trial], found: Differences | None = None) -> str:
    """Returns the means and spreads of every trial, with a line for each split and one for the expected scores.

    Undefined numbers are empty. With `found`, the differences to LAE are included: half of their interval over
    trainings, and on the split that the results are of the joint interval with its p-value, also after the correction.
    """
    words = all_trials[0].words
    scores = [name for score in words.scores for name in (score, f"{score}_spread")]
    groups = [f"{words.error}_{group}" for group in metrics.ALL_GROUPS]
    reference = next((one for one in all_trials if one.method.name == REFERENCE), None)
    reference = None if found is None else reference
    columns = [name for column in words.differences for name in (column, *(f"{column}_{end}" for end in JOINT))]
    rows = []
    for one in all_trials:
        for split in (VALIDATION, EXPECTED, TEST) if one.told_on == TEST else (VALIDATION,):
            pairs = [value for s in words.scores.values() for value in (one.mean(split, s), one.spread(split, s))]
            setting = f"{one.setting:g}" if one.method.setting else ""
            row = [
                one.method.name,
                one.method.setting,
                setting,
                f"{one.rate:g}",
                split,
                one.runs * one.seeds,
                one.skipped_steps,
            ]
            to_reference: list[float] = []
            for score in certainty.SCORES if reference else ():
                if one is reference:
                    to_reference += [math.nan] * (1 + len(JOINT))
                    continue
                of_both = found[one][score] if split == one.told_on else Difference(*[math.nan] * 4)
                to_reference += [*paired(one, reference, split, score), *of_both[1:]]
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
        *(columns if reference else []),
    ]
    return tables.csv_text(header, rows)


def _title(words: wording.BenchWords, score: str) -> str:
    return next(words.titles[name] for name, field in words.scores.items() if field == score)


def _number(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "-"


def _pm(one: Trial, split: str, score: str) -> str:
    mean, digits = one.mean(split, score), 3 if score == "cs5" else 2
    if not math.isfinite(mean):
        return "-"
    return f"{mean:.{digits}f}" + f" ± {one.spread(split, score):.{digits}f}" * (len(one.values(split, score)) > 1)


def in_words(mean: float, low: float, high: float) -> str:
    """Returns a difference in years with its interval; '-' if it is undefined."""
    if not math.isfinite(mean):
        return "-"
    # Without ±, which marks a standard deviation.
    return f"{mean:+z.2f}" + f" ({low:+z.2f} to {high:+z.2f})" * math.isfinite(low + high)
