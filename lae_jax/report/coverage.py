"""The section of a page about intervals by age group: how many ages they hold, and how wide they are."""

import numpy as np

from lae_jax import metrics
from lae_jax.report import age_groups
from lae_jax.report.age_checks.resampled import Sums, mean, resample
from lae_jax.report.loading import Evaluation
from lae_jax.report.page import Section
from lae_jax.report.tables import Estimate, Table

_OLDEST = 100  # years: distributions and intervals end here, and an older age counts as this one
_PROMISE = (
    "The conformal intervals promise this, on average over validation splits: of new images that are like those of the"
    " validation split, at least {level} of each age group have an age inside their interval. They promise nothing"
    " about a single person, about other cameras and other people, or about groups that are not age groups."
)


def section(evaluation: Evaluation) -> Section:
    """Returns the coverage and the mean width of the intervals by age group; empty without intervals."""
    title = "Intervals by age group"
    exact, level = evaluation.sample.is_exact, (evaluation.report.get("interval") or {}).get("level")
    if evaluation.interval is None or level is None or not exact.any():
        return Section(title)
    ages, people = evaluation.sample.ages[exact], evaluation.sample.people[exact]
    members = metrics.extended_group(ages)
    masks = {name: members == metrics.ALL_GROUPS.index(name) for name in age_groups.shown(ages)}
    masks = {name: mask for name, mask in masks.items() if mask.any()} | {"all": np.full(len(ages), True)}
    kinds = {"distribution": evaluation.interval[exact]}
    if evaluation.conformal is not None:
        kinds["conformal"] = evaluation.conformal[exact]
    columns = [(name, mask) for name, mask in masks.items()]
    for kind, (low, high) in ((kind, bounds.T) for kind, bounds in kinds.items()):
        known = np.minimum(ages, _OLDEST)
        inside, width = (low <= known) & (known <= high), high - low
        columns += [(f"{name} {kind}", mask * inside) for name, mask in masks.items()]
        columns += [(f"{name} {kind} width", mask * width) for name, mask in masks.items()]
    sums, rows, missed = resample(people, columns), [], {kind: [] for kind in kinds}
    for name, mask in masks.items():
        cells = []
        for kind in kinds:
            share, width = _cells(sums, name, kind)
            cells += [share, width]
            if share.high < level and name != "all":
                missed[kind].append(name)
        rows.append((name, f"{mask.sum()}", *cells))
    header = ["age group", "images"]
    for kind in kinds:
        header += [f"{kind}: ages inside", f"{kind}: width in years"]
    table = Table(header, rows, f"Intervals of {level:.0%}", file="coverage_by_group")
    return Section(title, texts=_texts(evaluation, level, missed), tables=[table])


def _cells(sums: Sums, name: str, kind: str) -> tuple[Estimate, Estimate]:
    """The coverage and the mean width of a group."""
    return sums.share(f"{name} {kind}", name, 1), sums.statistic(mean, name, f"{name} {kind} width")


def _texts(evaluation: Evaluation, level: float, missed: dict[str, list[str]]) -> list[str]:
    texts = [
        f"This is about {evaluation.label} only, and about images with an exact age; the groups are of the true age."
    ]
    for kind, groups in missed.items():
        if groups:
            texts[0] += (
                f" The {kind} intervals hold fewer than {level:.0%} of {', '.join(groups)}, even at the upper end of"
                " the share's 95 % interval."
            )
    fitted = evaluation.report.get("conformal")
    if "conformal" not in missed or fitted is None:
        return [*texts, "To fit intervals for each age group: evaluate --calibrate conformal."]
    told = _PROMISE.format(level=f"{fitted['level']:.0%}")
    if fitted["on_these"]:
        told += (
            " They were fitted to some or all of these images, so this table shows little: evaluate on other images."
        )
    if few := fitted.get("fewest"):
        told += (
            f" {few['group']} has {few['images']} images there. With so few, one fit in twenty holds fewer than"
            f" {few['coverage']:.0%} of the group."
        )
    if few := fitted["borrowing"]:
        told += (
            f" {', '.join(few)}: the validation split has fewer than the {fitted['needed']} images that this level"
            " needs. These groups borrow the images whose ages are nearest, and nothing is promised for them."
        )
    return [*texts, told]
