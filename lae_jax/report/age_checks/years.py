"""Errors by single years of age, the macro MAE, and the window from 13 to 16 years."""

import numpy as np

from lae_jax import metrics
from lae_jax.report import scores
from lae_jax.report.age_checks.cases import Check
from lae_jax.report.age_checks.pass_rates import number
from lae_jax.report.age_checks.resampled import mean, resample
from lae_jax.report.tables import Estimate, Table

_YEARS = range(13, 31)
_MACRO = range(18, 31)  # the ages of NIST's macro MAE
_WINDOW = (13, 16)
_BESIDE = 5  # years beside the window
_SEX = ("sex", "gender")


def by_year(check: Check) -> Table:
    """MAE, standard deviation and bias of the errors of each year of age."""
    columns = []
    for year, errors in _of_years(check):
        known = ~np.isnan(errors)
        errors = np.where(known, errors, 0.0)
        columns += [(f"{year}", known), (f"{year} size", np.abs(errors)), (f"{year} sum", errors),
                    (f"{year} squares", errors**2)]  # fmt: skip
    sums, rows = resample(check.people, columns), []
    for year in _YEARS:
        name = f"{year}"
        if not sums.totals[name]:
            rows.append((name, "0", "0", *[Estimate(np.nan)] * 3))
            continue
        spread = sums.statistic(metrics.deviation, name, f"{name} sum", f"{name} squares")
        bias = sums.statistic(mean, name, f"{name} sum", signed=True)
        counts = number(sums.totals[name]), number(sums.people[name])
        rows.append((name, *counts, sums.statistic(mean, name, f"{name} size"), spread, bias))
    header = ("age", "photographs", check.who, "MAE", "SD", "bias")
    return Table(header, rows, "Errors by completed years of age", file="errors_by_year")


def _of_years(check: Check):
    """Each of `_YEARS`, and the errors (N,) of its photographs, NaN elsewhere."""
    years, errors = check.photographs.years, check.errors
    for year in _YEARS:
        yield year, np.where(years == year, errors, np.nan)


def macro(check: Check) -> Table:
    """The mean of the MAEs of single years, and of single years of each sex where a slice of it is named."""
    years, errors = check.photographs.years, check.errors
    everyone = np.full(len(years), True)
    cells = {"of each year": [(year, everyone) for year in _MACRO]}
    for column, values in check.slices.items():
        if column.lower() in _SEX:
            masks = {value: mask for value, mask in scores.values_of(values).items() if value != "unknown"}
            cells[f"of each year and {column}"] = [(year, mask) for mask in masks.values() for year in _MACRO]
    rows = []
    for title, found in cells.items():

        def columns(found=found):
            for place, (year, mask) in enumerate(found):
                known = mask & (years == year) & ~np.isnan(errors)
                yield f"{place}", known
                yield f"{place} size", np.where(known, np.abs(errors), 0.0)
            yield "any", np.isin(years, _MACRO) & ~np.isnan(errors)

        names = [f"{place}" for place in range(len(found))]
        sums = resample(check.people, columns())
        estimate = sums.statistic(_mean_of_cells, "any", *names, *(f"{name} size" for name in names))
        there = sum(sums.totals[name] > 0 for name in names)
        rows.append((title, estimate, f"{there} of {len(names)}", number(sums.people["any"])))
    header = ("mean of the MAEs", "macro MAE", "cells with photographs", check.who)
    return Table(header, rows, f"Macro MAE, ages {_MACRO[0]} to {_MACRO[-1]}", file="macro_mae")


def _mean_of_cells(_any: np.ndarray, *sums: np.ndarray) -> np.ndarray:
    """The mean, over the cells with photographs, of their MAEs: counts of the cells and then sums of their errors."""
    counts, sizes = (np.stack(part, axis=-1) for part in (sums[: len(sums) // 2], sums[len(sums) // 2 :]))
    maes = np.divide(sizes, counts, out=np.zeros(np.shape(sizes)), where=counts > 0)
    there = (counts > 0).sum(axis=-1)
    return np.divide(maes.sum(axis=-1), there, out=np.full(np.shape(there), np.nan), where=there > 0)


def window(check: Check) -> Table:
    """Who is estimated inside the window: those who are in it, and those who are younger or older."""
    photographs, (first, last) = check.photographs, _WINDOW
    low, high, weights = photographs.low, photographs.high, photographs.weights
    inside = photographs.estimated_within(first, last)
    groups = {
        f"{first} to {last} (true positive rate)": (low >= first) & (high < last + 1),
        f"younger than {first} (false positive rate)": high < first,
        f"{first - _BESIDE} to {first - 1} (false positive rate)": (low >= first - _BESIDE) & (high < first),
        f"older than {last} (false positive rate)": low >= last + 1,
        f"{last + 1} to {last + _BESIDE} (false positive rate)": (low >= last + 1) & (high < last + 1 + _BESIDE),
    }
    columns = [(name, weights * mask) for name, mask in groups.items()]
    columns += [(f"{name} inside", weights * mask * inside) for name, mask in groups.items()]
    sums = resample(check.people, columns)
    rows = [
        (name, number(sums.totals[name]), number(sums.people[name]), sums.share(f"{name} inside", name))
        for name in groups
    ]
    header = ("true age", "photographs", check.who, f"estimated {first} to {last}")
    return Table(header, rows, f"The window from {first} to {last} years", file="window")
