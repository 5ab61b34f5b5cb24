"""Age groups as tables show them: the paper's eight, then babies and people over 81 where there are any."""

from collections.abc import Mapping

import numpy as np

from lae_jax import metrics


def shown(ages: np.ndarray) -> tuple[str, ...]:
    """Returns the groups that a table of these ages shows, (n,) years.

    Raises:
      InputError: An age is NaN or Inf.
    """
    there = np.bincount(metrics.extended_group(ages), minlength=len(metrics.ALL_GROUPS)) > 0
    return tuple(name for name, here in zip(metrics.ALL_GROUPS, there, strict=True) if here or name in metrics.GROUPS)


def edges(group: str, top: int) -> tuple[int, int]:
    """Returns the first and the last whole age of a group; the last group ends at `top`."""
    first, _, last = group.partition("-")
    return int(first.rstrip("+")), int(last or (top if group.endswith("+") else first))


def error_of(scores: Mapping) -> tuple[str, str]:
    """Returns the name and the title of the error in the scores of a report: of ranges it is the distance to them."""
    return ("distance", "distance") if "distance" in scores else ("mae", "MAE")


def rows(scores: Mapping) -> list[tuple[str, int, float | None, float | None]]:
    """Returns the lines of a table of scores (`AgeReport` or `RangeReport`, as dicts): group, images, error, bias."""
    error, _ = error_of(scores)
    bias = scores.get("bias") or [None] * len(metrics.GROUPS)
    found = [*zip(metrics.GROUPS, scores["group_count"], scores[f"group_{error}"], bias, strict=True)]
    if "outside_count" in scores:
        columns = (scores[f"outside_{name}"] for name in ("count", error, "bias"))
        found += [row for row in zip(metrics.OUTSIDE, *columns, strict=True) if row[1]]
    return found
