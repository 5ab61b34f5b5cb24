"""How much the rates of errors differ between the groups of a slice."""

import itertools
import math
from collections.abc import Mapping

import numpy as np

from lae_jax.report import bootstrap, scores
from lae_jax.report.age_checks.cases import Check
from lae_jax.report.age_checks.pass_rates import number
from lae_jax.report.age_checks.resampled import Sums, resample
from lae_jax.report.tables import Estimate, Table

_MOST = 10  # gaps of a column and rate
_RATES = {"false positives": "younger", "referred": "older"}


def _titles(check: Check) -> dict[str, str]:
    return {"false positives": f"below {check.threshold:g}, pass",
            "referred": f"{check.threshold:g} and older, referred"}  # fmt: skip


def _sums(check: Check, masks: Mapping[str, np.ndarray]) -> Sums:
    younger, older, passes = check.younger, check.older, check.passes

    def columns():
        for group, mask in masks.items():
            yield f"younger {group}", younger * mask
            yield f"older {group}", older * mask
            yield f"false positives {group}", younger * mask * passes
            yield f"referred {group}", older * mask * ~passes

    return resample(check.people, columns())


def _groups(check: Check, column: str) -> dict[str, np.ndarray]:
    return {name: mask for name, mask in scores.values_of(check.slices[column]).items() if name != "unknown"}


def rates(check: Check) -> Table:
    """The two rates of each group of each slice."""
    rows = []
    for column in check.slices:
        masks = _groups(check, column)
        sums = _sums(check, masks) if masks else None
        for group in masks:
            row = [group, column]
            for rate, whole in _RATES.items():
                estimate = sums.share(f"{rate} {group}", f"{whole} {group}")
                row += [estimate, number(sums.people[f"{whole} {group}"])]
            rows.append(row)
    young, old = _titles(check).values()
    header = ("group", "slice", young, check.who, old, check.who)
    return Table(header, rows, "Rates of groups", file="rates_of_groups")


def gaps(check: Check) -> Table | None:
    """The largest differences and ratios of rates between two groups of a slice; None without two groups.

    Groups of at most three people have no gap: `bootstrap.TOO_FEW`.
    """
    rows, titles = [], _titles(check)
    for column in check.slices:
        masks = _groups(check, column)
        sums = _sums(check, masks) if masks else None
        for rate, whole in _RATES.items():
            known = [group for group in masks if sums.people[f"{whole} {group}"] > bootstrap.TOO_FEW]
            shares = {group: sums.share(f"{rate} {group}", f"{whole} {group}") for group in known}
            pairs = [
                sorted(pair, key=lambda group, shares=shares: -shares[group].value)
                for pair in itertools.combinations(known, 2)
            ]
            pairs.sort(key=lambda pair, shares=shares: shares[pair[1]].value - shares[pair[0]].value)
            kind = titles[rate]
            for pair in pairs[:_MOST]:
                people = " and ".join(number(sums.people[f"{whole} {group}"]) for group in pair)
                rows.append(
                    (f"{pair[0]} minus {pair[1]}", column, kind, *_compared(*(shares[g] for g in pair)), people)
                )
    if not rows:
        return None
    rows.sort(key=lambda row: -row[3].value)
    header = ("groups", "slice", "rate", "difference", "ratio", f"{check.who} of both")
    return Table(header, rows, "Gaps between groups, the largest first", file="disparity")


def _compared(one: Estimate, other: Estimate) -> tuple[Estimate, Estimate]:
    """The difference and the ratio of two shares."""
    both = one.value, other.value, (one.low, one.high), (other.low, other.high)
    difference = Estimate(one.value - other.value, *bootstrap.difference_interval(*both), 2, percent=True, signed=True)
    ratio = one.value / other.value if other.value > 0 else math.nan
    return difference, Estimate(ratio, *bootstrap.ratio_interval(*both))
