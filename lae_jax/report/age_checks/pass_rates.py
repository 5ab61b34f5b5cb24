"""Who passes and who is referred: at the challenge age, by year of age, at other challenge ages, under policies."""

import math
from collections.abc import Sequence

import numpy as np

from lae_jax import metrics
from lae_jax.report.age_checks.cases import Check
from lae_jax.report.age_checks.resampled import mean, resample
from lae_jax.report.pictures import GRID, LINE, RUNS, Picture, figure, svg
from lae_jax.report.tables import Estimate, Table

TARGETS = (0.01, 0.001)  # false positive rates
_AFTER = 5  # years above the challenge age that the table by year has
_OLDEST = 100  # years, of a challenge age


def number(value: float) -> str:
    """Returns a number of photographs or people, which is not whole where some stand for a part of one."""
    return f"{value:,.0f}" if abs(value - round(value)) < 1e-6 else f"{value:,.1f}"


def overall(check: Check) -> Table:
    """The two rates at the challenge age, with and without what was not processed."""
    younger, older, passes, processed = check.younger, check.older, check.passes, check.processed
    wholes = {"younger": younger, "older": older}
    columns = [(name, whole) for name, whole in wholes.items()]
    columns += [(f"{name} processed", whole * processed) for name, whole in wholes.items()]
    columns += [("false positives", younger * passes), ("referred", older * ~passes)]
    columns += [("referred processed", older * ~passes * processed)]
    sums, old = resample(check.people, columns), f"{check.threshold:g}"
    rows = []
    for whole, part, processed_part, title in (
        ("younger", "false positives", "false positives", f"below {old}, pass"),
        ("older", "referred", "referred processed", f"{old} and older, referred"),
    ):
        held = sums.totals[whole], sums.totals[whole] - sums.totals[f"{whole} processed"]
        rates = sums.share(part, whole), sums.share(processed_part, f"{whole} processed")
        rows.append((title, *rates, *map(number, held), number(sums.people[whole])))
    header = ("rate", "all photographs", "processed only", "photographs", "not processed", check.who)
    return Table(header, rows, f"At a challenge age of {check.challenge:g}", file="age_check")


def by_year(check: Check) -> Table:
    """The share of the people of each year of age who pass, up to a few years above the challenge age."""
    years, passes = check.photographs.years, check.passes
    weights, processed = check.photographs.weights, check.processed
    shown = [year for year in np.unique(years).tolist() if 0 <= year <= check.challenge + _AFTER]
    columns = [(f"{year}", weights * (years == year)) for year in shown]
    columns += [(f"{year} pass", weights * (years == year) * passes) for year in shown]
    columns += [(f"{year} processed", weights * (years == year) * processed) for year in shown]
    sums = resample(check.people, columns) if shown else None
    rows = []
    for year in shown:
        whole = sums.totals[f"{year}"]
        counts = sums.totals[f"{year} pass"], whole, whole - sums.totals[f"{year} processed"], sums.people[f"{year}"]
        kind = "too young" if year + 1 <= check.threshold else "old enough" if year >= check.threshold else "both"
        rows.append((f"{year}", sums.share(f"{year} pass", f"{year}"), *map(number, counts), kind))
    header = ("age", "share that passes", "pass", "photographs", "not processed", check.who, "for the threshold")
    return Table(header, rows, "By completed years of age", file="age_check_by_year")


def at_challenges(check: Check) -> tuple[np.ndarray, list[Estimate], list[Estimate]]:
    """Returns whole challenge ages, and two rates at each: younger people who pass, older people who are referred."""
    younger, older, passes = check.younger, check.older, check.photographs.passes
    ages = np.arange(math.ceil(check.threshold), _OLDEST + 1)

    def columns():
        yield from (("younger", younger), ("older", older))
        for age in ages:
            passing = passes(age)
            yield f"false positives {age}", younger * passing
            yield f"referred {age}", older * ~passing

    sums = resample(check.people, columns())
    accepted = [sums.share(f"false positives {age}", "younger") for age in ages]
    return ages, accepted, [sums.share(f"referred {age}", "older") for age in ages]


def smallest(check: Check, found: tuple[np.ndarray, Sequence[Estimate], Sequence[Estimate]]) -> Table:
    """The smallest challenge ages whose false positive rate, or the upper end of its interval, meets the targets."""
    ages, accepted, referred = found
    rows = []
    for target in TARGETS:
        for title, rates in (("rate", [one.value for one in accepted]), ("upper end", [one.high for one in accepted])):
            name = f"{title} at most {100 * target:g} %"
            place = next((i for i, rate in enumerate(rates) if rate <= target), None)
            if place is None:
                rows.append((name, f"none up to {_OLDEST}", Estimate(math.nan), Estimate(math.nan)))
            else:
                rows.append((name, f"{ages[place]}", accepted[place], referred[place]))
    old = f"{check.threshold:g}"
    header = ("false positives", "challenge age", "false positive rate", f"{old} and older, referred")
    return Table(header, rows, "Smallest challenge age", file="challenge_ages")


def curve(check: Check, found: tuple[np.ndarray, Sequence[Estimate], Sequence[Estimate]]) -> Picture:
    """Draws the two rates against the challenge age."""
    ages, accepted, referred = found
    old = f"{check.threshold:g}"
    drawn, axis = figure()
    for rates, colour, marker, label in (
        (accepted, LINE, "o", f"below {old}, pass"),
        (referred, RUNS[0], "s", f"{old} and older, referred"),
    ):
        values, low, high = 100 * np.array([(one.value, one.low, one.high) for one in rates]).T
        axis.fill_between(ages, low, high, color=colour, alpha=0.2, linewidth=0)
        axis.plot(ages, values, color=colour, marker=marker, markersize=2.5, linewidth=1, label=label)
    axis.axvline(check.challenge, color=GRID, linewidth=1)
    last = next((age for age, one in zip(ages, accepted, strict=True) if one.value == 0), ages[-1])
    axis.set(xlabel="challenge age, years", ylabel="share of the people, %", ylim=(0, None))
    axis.set_xlim(ages[0], min(max(last + 3, check.challenge + 5), ages[-1]))
    axis.grid(axis="y", color=GRID, linewidth=0.6)
    axis.set_axisbelow(True)
    drawn.legend(loc="outside upper left", ncols=2)
    place = int(np.argmin(np.abs(ages - check.challenge)))
    finding = (
        f"At a challenge age of {ages[place]}, {accepted[place]} of the people below {old} pass, and {referred[place]}"
        f" of the people of {old} and older are referred. The bands are 95 % intervals."
    )
    rows = [
        (int(age), one.value, one.low, one.high, other.value, other.low, other.high)
        for age, one, other in zip(ages, accepted, referred, strict=True)
    ]
    header = ("challenge_age", *(f"{rate}{end}" for rate in ("false_positive_rate", "referred")
              for end in ("", "_low", "_high")))  # fmt: skip
    return Picture("challenge", "Challenge ages", finding, svg(drawn), header, rows)


def policies(check: Check) -> Table:
    """Rates and costs of policies that let pass, refer and deny."""
    threshold, challenge, photographs = check.threshold, check.challenge, check.photographs
    best = metrics.cheapest_policy(photographs, threshold, check.costs)
    tried = {"threshold alone": (threshold, threshold), "challenge age": (0.0, challenge)}
    if 0 < 2 * threshold - challenge < threshold:
        tried["two cuts"] = (2 * threshold - challenge, challenge)
    tried["lowest cost here"] = best
    rows = []
    for name, (lower, upper) in tried.items():
        cuts = f"{lower:g}" if lower else "–", f"{upper:g}" if lower < upper else "–"
        rows.append((name, *cuts, *_policy(check, lower, upper)))
    young, old = f"below {threshold:g}", f"{threshold:g} and older"
    header = ("policy", "deny below", "refer below", f"{young}, pass", f"{young}, referred", f"{old}, pass",
              f"{old}, referred", f"{old}, denied", "cost of a person")  # fmt: skip
    return Table(header, rows, "Policies", file="policies")


def _policy(check: Check, lower: float, upper: float) -> list[Estimate]:
    photographs, younger, older = check.photographs, check.younger, check.older
    passes, referred, denied = metrics.outcomes(photographs.estimates, lower, upper)
    sums = resample(
        check.people,
        [
            ("younger", younger),
            ("older", older),
            ("everyone", younger + older),
            ("cost", metrics.policy_costs(photographs, check.threshold, lower, upper, check.costs)),
            ("younger pass", younger * passes),
            ("younger referred", younger * referred),
            ("older pass", older * passes),
            ("older referred", older * referred),
            ("older denied", older * denied),
        ],
    )
    shares = ("younger pass", "younger referred", "older pass", "older referred", "older denied")
    return [*(sums.share(name, name.split()[0]) for name in shares), sums.statistic(mean, "everyone", "cost")]
