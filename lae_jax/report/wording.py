"""Sentences of a report: the warnings, the verdict, and the meanings of the scores."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from lae_jax import metrics
from lae_jax.report import age_groups
from lae_jax.report.loading import Evaluation
from lae_jax.report.scores import BIAS, MAIN, OF_RANGES, Scored, verdict
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

_MEANINGS_OF_RANGES = (
    "Distance: how far a prediction is from the range of its label, in years; 0 inside, and of an exact age the"
    " absolute error. For an age group: of the images whose range has its middle there (without an upper end, its mean"
    " age).",
    "sigma of the distances: the root mean square difference of the eight group distances from the distance.",
    "In range: the share of the ranges that hold the prediction. Exact ages do not count.",
    "Bias of a range: the signed distance, above 0 where the prediction is older than the range.",
    "MAE, sigma, AAR and CS@5 are of exact ages alone. Where no age is exact, there are none.",
)

_OF_IDENTITIES = {
    "equal_error_rate": "equal error rate",
    "true_accept_rate": "true accepts when 1 impostor in 1,000 is accepted",
    "pairs": "pairs",
    "genuine_pairs": "genuine pairs",
}


@dataclasses.dataclass(frozen=True)
class BenchWords:
    """The scores that the long-tail bench shows.

    Attributes:
      error: Start of the names of the errors of age groups in table.csv.
      title: Title of the error.
      scores: Name in table.csv -> field of `AgeReport`, or 'cs5'.
      titles: Name in table.csv -> title.
      aims: Aim of a sentence -> field of `AgeReport`.
    """

    error: str
    title: str
    scores: Mapping[str, str]
    titles: Mapping[str, str]
    aims: Mapping[str, str]

    @property
    def differences(self) -> dict[str, str]:
        """Name in table.csv of the differences to LAE -> the name of their score there."""
        return {f"{name}_minus_lae": name for name, field in self.scores.items() if field in ("mae", "sigma")}


_OF_BENCH = {
    "mae": "MAE",
    "sigma": "sigma",
    "aar_2021": "AAR 2021",
    "aar_2022": "AAR 2022",
    "mmae": "mMAE",
    "cs5": "CS@5",
}
BENCH = BenchWords(
    "mae",
    "MAE",
    {name: name for name in _OF_BENCH},
    _OF_BENCH,
    {"lowest MAE": "mae", "lowest sigma": "sigma", "highest AAR (2021)": "aar_2021"},
)
# Where ages are ranges, the errors are the distances to them, and the scores of the contests are undefined.
BENCH_OF_RANGES = BenchWords(
    "distance",
    "distance",
    {"distance": "mae", "distance_sigma": "sigma", "mean_group_distance": "mmae"},
    {
        "distance": "distance",
        "distance_sigma": "sigma of the distances",
        "mean_group_distance": "mean group distance",
    },
    {"lowest distance": "mae", "lowest sigma of the distances": "sigma"},
)
_BY_NAME = {score.name: score for score in (*MAIN, *OF_RANGES, *BIAS)}


def meanings(has_ranges: bool) -> list[str]:
    """Returns the meanings of the scores of a page, with or without those of ranges."""
    return [*_MEANINGS_OF_RANGES * has_ranges, *MEANINGS]


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
        scores = "sigma of the distances is" if "distance" in report else "sigma and AAR are"
        lines.append(f"{scores} undefined: no image of age {', '.join(report['missing_groups'])}")
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
        error, _ = age_groups.error_of(report)
        word = "not better than" if report[error] >= constant[error] else ""
    return f"the model is {word} a constant: {_constant(constant)}" if word else ""


def of_identities(report: Mapping) -> list[tuple[str, str]]:
    """Returns the scores of stage 1 as pairs (title, number)."""
    return [(title, f"{report[name]:.4g}") for name, title in _OF_IDENTITIES.items() if report.get(name) is not None]


def of_pairs(report: Mapping) -> list[tuple[str, Estimate]]:
    """Returns the scores of stage 1 on a list of pairs, as pairs (title, score)."""
    between = {name: tuple(ends) for name, ends in report["intervals"].items()}
    found = [("accuracy", Estimate(report["accuracy"], percent=True))]
    for rate, value in report["true_accept_rates"].items():
        ends = between.get(f"true_accept_rate_{rate}", ())
        shown = Estimate(math.nan if value is None else value, *ends, percent=True)
        found.append((f"true accepts at a false accept rate of {rate}", shown))
    found.append(("equal error rate", Estimate(report["equal_error_rate"], percent=True)))
    area = Estimate(report["area_under_curve"], *between.get("area_under_curve", ()), digits=4)
    return [*found, ("area under the curve", area)]


def about_pairs(report: Mapping) -> list[str]:
    """Returns sentences on how the scores of `of_pairs` come about, and on those that are undefined."""
    folds, impostors = report["fold_accuracy"], report["pairs"] - report["genuine_pairs"]
    over, units = report["bootstrap"]["replicates"], report["bootstrap"]["units"]
    people = (
        "people; a pair of two counts as often as the product of how often each is drawn"
        if units == "people"
        else "pairs of each kind"
    )
    lines = [
        f"accuracy: mean of {len(folds)} folds, standard deviation {100 * report['accuracy_std']:.2f} points; the"
        " threshold of a fold is the best one of the others",
        f"95 % intervals from {over:,} bootstrap samples of {people}",
    ]
    if centred := report.get("without_face"):
        lines.append(f"on {centred} of the {report['images']} photographs no face was found: their middle was taken")
    return lines + [
        f"true accepts at a false accept rate of {rate} are undefined: they need {round(1 / float(rate)):,} pairs of"
        f" two people, and the list has {impostors:,}"
        for rate, value in report["true_accept_rates"].items()
        if value is None
    ]


def summary(evaluation: Evaluation, scored: Scored) -> str:
    """Returns a sentence on how well the model does."""
    report = evaluation.report
    error, title = age_groups.error_of(report)
    mae, on = scored.estimate(_BY_NAME[error]), f"images of split {report['split']} of {report['data']}"
    parts = [f"{evaluation.label} is wrong by {mae.text} years on average{_between(mae)} on {report['n']} {on}"]
    if error == "distance":
        inside = scored.estimate(_BY_NAME["in_range"])
        parts = [
            f"{evaluation.label} is {mae.text} years from the range of the label on average{_between(mae)} on"
            f" {report['n']} {on}, and inside {inside.text} of the ranges{_between(inside)}"
        ]
        exact = scored.estimate(_BY_NAME["mae"])
        parts.append(
            f"of the {report['n_exact']} exact ages it is wrong by {exact.text} years on average{_between(exact)}"
            if exact.is_known
            else "no age is exact, so there is no MAE"
        )
    known = {group: scored.estimate(_BY_NAME[f"{error}_{group}"]) for group in metrics.ALL_GROUPS}
    known = {group: estimate for group, estimate in known.items() if estimate.is_known}
    if len(known) > 1:
        lowest, highest = (pick(known, key=lambda group: known[group].value) for pick in (min, max))
        parts.append(
            f"the {'error' if error == 'mae' else title} is lowest for ages {lowest},"
            f" {known[lowest].text}{_between(known[lowest])}, and highest for"
            f" {highest}, {known[highest].text}{_between(known[highest])}"
            + _way(scored.estimate(_BY_NAME[f"bias_{highest}"]))
        )
    sigma = scored.estimate(_BY_NAME["sigma" if error == "mae" else "distance_sigma"])
    if math.isfinite(sigma.value):
        of = "errors" if error == "mae" else "distances"
        parts.append(f"sigma, the deviation of the group {of}, is {sigma.text}{_between(sigma)}")
    if (constant := report.get("constant")) and not _no_better(report):
        parts.append(f"without a model: {_constant(constant)}")
    return "; ".join(parts) + "."


def _way(bias: Estimate) -> str:
    """In which direction the ages of a group are wrong, where that is certain; otherwise ''."""
    if abs(bias.value) < 0.5 or not (bias.low > 0 or bias.high < 0):
        return ""
    return f", whom it estimates {abs(bias.value):.1f} years too {'old' if bias.value > 0 else 'young'}"


def _constant(constant: Mapping) -> str:
    error, title = age_groups.error_of(constant)
    what = "median of the ages, is wrong by" if error == "mae" else "age with the smallest distance, has a distance of"
    text = f"answering {constant['age']:.3g} for everyone, the {what} {constant[error]:.2f} years"
    low, high = constant.get("difference") or (math.nan, math.nan)
    return text + f" (difference in {title}, 95 %: {low:+z.2f} to {high:+z.2f})" * math.isfinite(low)


def comparison(scored: Scored, other: Scored, what: str) -> str:
    """Returns a sentence, which starts with `what`, on how a run differs from another and whether that is certain."""
    told = []
    for name in ("distance", "distance_sigma", "in_range", "mae", "sigma", "aar_2021"):
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


def over_all(runs: int, seeds: int, images: int, has_people: bool) -> str:
    """Returns what the joint intervals of the long-tail bench are over.

    Args:
      runs: Number of backbones.
      seeds: Seeds of the heads on each.
      images: Number of images that are scored.
      has_people: Whether people, and not single images, are drawn.
    """
    of_images = f"the people of {images} images" if has_people else f"{images} images"
    if runs > 1:
        return f"joint 95 % intervals over {runs} backbones with {seeds} seed{'s' * (seeds != 1)} each and {of_images}"
    if seeds > 1:
        return f"joint 95 % intervals over {seeds} seeds of one backbone and {of_images}, nothing about other backbones"
    return f"95 % intervals over {of_images}, one head, nothing about other trainings"


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
