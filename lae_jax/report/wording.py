"""Sentences of a report: the warnings, the verdict, and the meanings of the scores."""

import math
from collections.abc import Mapping, Sequence

from lae_jax import metrics
from lae_jax.report.loading import Evaluation
from lae_jax.report.scores import BIAS, MAIN, Scored, verdict
from lae_jax.report.tables import Estimate

MEANINGS = (
    "MAE: the mean absolute error in years; for an age group, that of the images whose true age is in the group.",
    "Age groups: ages are first rounded to whole years, half up. 10.4 is in 1-10, 10.5 in 11-20; 0.4 is 0, 81.5 is 82+."
    " The paper's eight groups go from 1-10 to 71-81; 0 and 82+ count in MAE and CS@5, not in sigma, AAR and mMAE.",
    "sigma: the root mean square difference of the eight group errors from the MAE; 0 if all groups have equal errors.",
    "AAR 2021: max(0, 7 - MAE) + max(0, 3 - sigma), from Guess The Age 2021: at most 10, and 0 if both are too large.",
    "AAR 2022: max(0, 5 - mMAE) + max(0, 5 - sigma); mMAE is the mean of the eight group errors.",
    "CS@5: the share of images with an error of at most 5 years.",
    "Many-, medium-, few-shot: ages with more than 100, 20 to 100, fewer than 20 training images.",
    "Bias: the mean of prediction minus age; above 0 the predictions are too old.",
)

_OF_IDENTITIES = {
    "equal_error_rate": "equal error rate",
    "true_accept_rate": "true accepts when 1 impostor in 1,000 is accepted",
    "pairs": "pairs",
    "genuine_pairs": "genuine pairs",
}
_BY_NAME = {score.name: score for score in (*MAIN, *BIAS)}


def leaks(report: Mapping) -> list[str]:
    """Returns what a report.json says about leaks and about people on both sides."""
    lines = [f"LEAK in {leak['data']}: {leak['message']}" for leak in report.get("leaks") or []]
    for other in report.get("not_compared") or []:
        lines.append(
            f"{report['data']} could not be compared in full with {other['data']}, which the model was trained on"
            f" ({other['why']}): whether they hold the same pictures is unknown"
        )
    if (report.get("audit") or "read") != "read":
        lines.append(
            f"audit.json is {report['audit']}: other leaks are unknown (python -m lae_jax.audit {report['data']})"
        )
    if count := report.get("same_people_on_both_sides"):
        lines.append(f"people in both the training and the scored images: {count} (split by {report['protocol']})")
    return lines


def doubts(report: Mapping) -> list[str]:
    """Returns why not to rely on the model of a report.json, or on its scores, apart from leaks."""
    lines = []
    if report.get("other_crop_than_training"):
        lines.append("the model was trained on faces that were cut in another way: these errors do not describe it")
    if report.get("unknown_crops"):
        lines.append(
            "the model was trained on ready-made crops of another data set, and it is unknown whether these were cut in"
            " the same way: if not, these errors do not describe it"
        )
    if line := _no_better(report):
        lines.append(line)
    return lines


def warnings(report: Mapping) -> list[str]:
    """Returns the warnings that belong above all numbers of a report.json."""
    lines = [*leaks(report), *doubts(report)]
    if report.get("missing_groups"):
        lines.append(f"sigma and AAR are undefined: no image of age {', '.join(report['missing_groups'])}")
    return lines


def _no_better(report: Mapping) -> str:
    """A warning unless the model does better than the median age as the answer for everyone; then ''."""
    constant = report.get("constant")
    if not constant:
        return ""
    if interval := constant.get("difference"):
        low, high = interval
        word = "worse than" if low > 0 else "not distinguishable from" if high >= 0 else ""
    else:
        word = "not better than" if report["mae"] >= constant["mae"] else ""
    return f"the model is {word} a constant: {_constant(constant)}" if word else ""


def of_identities(report: Mapping) -> list[tuple[str, str]]:
    """Returns the scores of stage 1 as pairs (title, number)."""
    return [(title, f"{report[name]:.4g}") for name, title in _OF_IDENTITIES.items() if report.get(name) is not None]


def summary(evaluation: Evaluation, scored: Scored) -> str:
    """Returns a sentence on how well the model does."""
    report, mae = evaluation.report, scored.estimate(_BY_NAME["mae"])
    parts = [
        f"{evaluation.label} is wrong by {mae.text} years on average{_between(mae)} on {report['n']} images of split"
        f" {report['split']} of {report['data']}"
    ]
    known = {group: scored.estimate(_BY_NAME[f"mae_{group}"]) for group in metrics.ALL_GROUPS}
    known = {group: estimate for group, estimate in known.items() if estimate.is_known}
    if len(known) > 1:
        lowest, highest = (pick(known, key=lambda group: known[group].value) for pick in (min, max))
        parts.append(
            f"the error is lowest for ages {lowest}, {known[lowest].text}{_between(known[lowest])}, and highest for"
            f" {highest}, {known[highest].text}{_between(known[highest])}"
            + _way(scored.estimate(_BY_NAME[f"bias_{highest}"]))
        )
    sigma = scored.estimate(_BY_NAME["sigma"])
    if math.isfinite(sigma.value):
        parts.append(f"sigma, the deviation of the group errors, is {sigma.text}{_between(sigma)}")
    if (constant := report.get("constant")) and not _no_better(report):
        parts.append(f"without a model: {_constant(constant)}")
    return "; ".join(parts) + "."


def _way(bias: Estimate) -> str:
    """In which direction the ages of a group are wrong, where that is certain; otherwise ''."""
    if abs(bias.value) < 0.5 or not (bias.low > 0 or bias.high < 0):
        return ""
    return f", whom it estimates {abs(bias.value):.1f} years too {'old' if bias.value > 0 else 'young'}"


def _constant(constant: Mapping) -> str:
    text = (
        f"answering {constant['age']:.3g} for everyone, the median of the ages, is wrong by {constant['mae']:.2f} years"
    )
    low, high = constant.get("difference") or (math.nan, math.nan)
    return text + f" (difference in MAE, 95 %: {low:+z.2f} to {high:+z.2f})" * math.isfinite(low)


def comparison(scored: Scored, other: Scored, what: str) -> str:
    """Returns a sentence, which starts with `what`, on how a run differs from another and whether that is certain."""
    told = []
    for name in ("mae", "sigma", "aar_2021"):
        score = _BY_NAME[name]
        difference = scored.difference(other, score)
        if not difference.is_known:
            continue
        word = verdict(difference, score)
        if word == "the same":
            told.append(f"{score.title} the same")
        else:
            told.append(f"{score.title} {difference.text}{_between(difference)}, {word}")
    return f"{what}: {'; '.join(told)}."


def over_trainings(runs: int, seeds: int) -> str:
    """Returns what the intervals of the long-tail bench are over.

    Args:
      runs: Number of backbones.
      seeds: Seeds of the heads on each.
    """
    if runs > 1:
        return f"95 % intervals over {runs} backbones, one test set"
    return f"95 % intervals over {seeds} seeds of one backbone, one test set" if seeds > 1 else "one seed, no interval"


def _between(estimate: Estimate) -> str:
    return f" (95 %: {estimate.interval})" if estimate.interval else " (too few images for an interval)"


def intervals(units: Sequence[str], replicates: int) -> str:
    """Returns a text that explains the intervals of a page."""
    over = "images, because the people on them are unknown"
    if "people" in units:
        over = "people, each with all their images"
    return (
        f"In brackets: 95 % intervals, from {replicates} bootstrap samples of {over}. They show how much the scores"
        " would change with other images of the same kind, not with another training run. A dash marks an undefined"
        " score; a number without an interval comes from too few images."
    )
