"""How the errors of several photographs of one person differ."""

import numpy as np

from lae_jax import metrics
from lae_jax.report.age_checks.cases import Check
from lae_jax.report.age_checks.pass_rates import number
from lae_jax.report.age_checks.resampled import mean, resample
from lae_jax.report.tables import Table


def table(check: Check) -> Table | None:
    """The spread of the errors within a person and the error of age differences; None without people to compare."""
    errors = check.errors
    known = ~np.isnan(errors) & (check.people >= 0)
    people, squares, freedom, apart = metrics.within_people(check.people[known], errors[known]).T
    if not len(people):
        return None
    columns = {"people": np.ones(len(people)), "freedom": freedom, "squares": squares, "apart": apart}
    sums = resample(people.astype(np.int64), columns.items())
    spread = sums.statistic(lambda _, freedom, squares: np.sqrt(mean(freedom, squares)), "people", "freedom", "squares")
    difference = sums.statistic(mean, "people", "apart")
    counts = number(len(people)), number(freedom.sum() + len(people))
    rows = [
        ("spread (SD) of the errors of a person, years", spread, *counts),
        ("mean absolute error of the age difference of two photographs, years", difference, *counts),
    ]
    return Table(("within a person", "value", "people", "photographs"), rows, "Within a person", file="within_person")
