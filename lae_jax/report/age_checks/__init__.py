"""Sections of a page about age checks: who passes at a challenge age, and what the errors are."""

import numpy as np

from lae_jax.report.age_checks import cases, disparity, glossary, pass_rates, severity, within_person, years
from lae_jax.report.age_checks.cases import Check
from lae_jax.report.loading import Evaluation
from lae_jax.report.page import Section


def sections(evaluation: Evaluation) -> list[Section]:
    """Returns the sections of an evaluation with a challenge age, otherwise none; call it within `pictures.style()`.

    The numbers are those of `metrics.Photographs`, with 95 % intervals of people with all their photographs, or of
    images where people are unknown.
    """
    check = cases.of_evaluation(evaluation)
    if check is None:
        return []
    texts = _opening(check, evaluation.label)
    if not check.younger.any() or not check.older.any():
        side = f"below {check.threshold:g}" if not check.younger.any() else f"of {check.threshold:g} or older"
        texts.append(f"No photograph shows a person who is {side} for sure: an age check cannot be scored.")
        return [Section("Age check", texts=texts, items=glossary.LIMITS)]
    found = pass_rates.at_challenges(check)
    groups = disparity.gaps(check)
    within = within_person.table(check)
    return [
        Section(
            "Age check",
            texts=texts,
            items=glossary.LIMITS,
            tables=[pass_rates.overall(check), pass_rates.by_year(check)],
        ),
        Section(
            "Challenge ages and policies",
            texts=[_chosen(check), _costs(check)],
            tables=[pass_rates.smallest(check, found), pass_rates.policies(check)],
            pictures=[pass_rates.curve(check, found)],
        ),
        Section(
            "False positives by age",
            tables=[table for table in [severity.ages(check)] if table],
            pictures=[picture for picture in [severity.picture(check)] if picture],
        ),
        Section(
            "Errors by year of age",
            texts=["Errors are of processed photographs with an exact age. In the window, a photograph that was not"
                   " processed does not count as inside."],
            tables=[years.by_year(check), years.macro(check), years.window(check)],
        ),
        Section(
            "Gaps between groups",
            texts=_groups(check) if groups else [],
            tables=[groups, disparity.rates(check)] if groups else [],
        ),
        Section("Within a person", tables=[within] if within else []),
        Section("Words of age checks", items=glossary.words(check)),
    ]  # fmt: skip


def _opening(check: Check, label: str) -> list[str]:
    old, from_age = f"{check.threshold:g}", f"{check.challenge:g}"
    texts = [
        f"Of {label} only. A person who is estimated at {from_age} or older passes; everyone else is referred to"
        f" another check. A false positive is a person below {old} who passes."
    ]
    photographs = check.photographs
    unsure = int(((check.younger == 0) & (check.older == 0) & (photographs.weights > 0)).sum())
    if unsure:
        texts.append(
            f"{unsure} of the {len(photographs.low)} photographs do not count: {old} lies in the range of their label."
        )
    if (wide := int((photographs.low < photographs.high).sum())) > 0:
        texts.append(f"{wide} labels are ranges: they are in no row of a single year.")
    return [*texts, _failures(check)]


def _failures(check: Check) -> str:
    """What is known about the photographs that were not processed."""
    undetected = int(np.isnan(check.photographs.estimates).sum()) - (check.rejected or 0)
    told = f"No face was found on {undetected} photographs of the split: they do not pass. " if undetected else ""
    if check.rejected is None:
        return told + (
            "Whether photographs were rejected when the data set was prepared, and of which ages, is unknown. They are"
            " not counted, so fewer people may pass and more be referred than these rates say. To count them, prepare"
            " the data set again and evaluate on it."
        )
    if check.rejected:
        told += f"{check.rejected} rejected photographs of known age count as not passed"
        if check.share < 1:
            told += (
                f". They belong to no split, so each counts as {check.share:.3g} of a photograph, the share of the data"
                " set that is in this split"
            )
        told += ". "
    elif not check.of_unknown_age:
        told += "No photograph was rejected when the data set was prepared. "
    if check.of_unknown_age:
        told += f"{check.of_unknown_age} further rejected rows have no known age and are not counted. "
    return told.strip()


def _chosen(check: Check) -> str:
    return (
        "The rows 'rate' have the smallest challenge age whose false positive rate on these photographs is at most the"
        " target. The rows 'upper end' have the smallest one whose 95 % interval ends at the target or below it. That"
        " needs some 370 people below the threshold for 1 %, and 3,700 for 0.1 %, even if none of them passes."
    )


def _costs(check: Check) -> str:
    costs = check.costs
    return (
        f"A policy has two cuts. A person below {check.threshold:g} who passes costs {costs.passing:g}, an older person"
        f" who is denied {costs.denial:g}, a referral {costs.referral:g} (set them with --costs). The cost of a person"
        " is a mean over these photographs; with another share of young people it differs. A person whose photograph"
        " was not processed is referred, or denied where a policy refers nobody. The interval of the cost does not hold"
        f" the cost of rare passes below {check.threshold:g} if these photographs have none."
    )


def _groups(check: Check) -> list[str]:
    text = (
        "Groups of at most three people are left out. Ten gaps of each slice and rate are shown. The intervals take the"
        " groups as different people."
    )
    if check.rejected or check.of_unknown_age:
        text += " Rejected photographs are not in the rates of groups, because their group is unknown."
    return [text]
