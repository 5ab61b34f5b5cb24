"""The true ages of the people who pass although they are too young."""

import numpy as np

from lae_jax.report.age_checks.cases import Check
from lae_jax.report.age_checks.pass_rates import number
from lae_jax.report.age_checks.resampled import mean, resample
from lae_jax.report.pictures import BARS, LINE, Picture, figure, svg
from lae_jax.report.tables import Table


def _too_young(check: Check) -> np.ndarray:
    """Weights of the false positives with an exact age."""
    return check.younger * check.passes * (check.photographs.years >= 0)


def ages(check: Check) -> Table | None:
    """The false positives by year of age, as shares of all of them; None without one of exact age."""
    cases, years = _too_young(check), check.photographs.years
    if not cases.any():
        return None
    below = np.where(cases > 0, check.threshold - check.photographs.low, 0.0)
    shown = np.unique(years[cases > 0]).tolist()
    parts = {f"{year}": cases * (years == year) for year in shown} | {"all": cases}
    columns = [*parts.items(), *((f"{name} below", part * below) for name, part in parts.items())]
    sums = resample(check.people, columns)
    rows = []
    for name in parts:
        counts = number(sums.totals[name]), number(sums.people[name])
        rows.append((name, *counts, sums.share(name, "all", 1), sums.statistic(mean, name, f"{name} below")))
    header = ("true age", "false positives", check.who, "share", f"years below {check.threshold:g}, mean")
    return Table(header, rows, "False positives by completed years of age", file="severity_by_year")


def picture(check: Check) -> Picture | None:
    """Draws the false positives of each year of age on all photographs of that year; None without an exact age."""
    cases, years, younger = _too_young(check), check.photographs.years, check.younger
    exact = (years >= 0) & (younger > 0)
    if not exact.any():
        return None
    shown = np.arange(years[exact].min(), years[exact].max() + 1)
    whole, found = (np.bincount(years[exact] - shown[0], weights[exact], len(shown)) for weights in (younger, cases))
    drawn, axis = figure(4.8, 2.6)
    axis.bar(shown, whole, width=0.9, color=BARS, linewidth=0, label="all photographs")
    axis.bar(shown, found, width=0.9, color=LINE, linewidth=0, label="pass")
    axis.set(xlabel="true age, completed years", ylabel="photographs", ylim=(0, None))
    axis.xaxis.get_major_locator().set_params(integer=True)
    drawn.legend(loc="outside upper left", ncols=2)
    finding = f"Nobody below {check.threshold:g} passes."
    if found.any():
        youngest = int(shown[np.flatnonzero(found)[0]])
        finding = (
            f"Photographs of people below {check.threshold:g} that pass: {number(found.sum())} of"
            f" {number(whole.sum())}. The youngest person on them is {youngest}."
        )
    rows = list(zip(shown.tolist(), whole.tolist(), found.tolist(), strict=True))
    return Picture(
        "severity", "Who passes below the threshold", finding, svg(drawn), ("age", "photographs", "pass"), rows
    )
