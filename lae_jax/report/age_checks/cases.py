"""What an age check is scored on: the photographs of an evaluation, and those of its split that were not processed."""

import dataclasses

import numpy as np

from lae_jax.metrics import Costs, Photographs
from lae_jax.report.loading import Evaluation
from lae_jax.runtime.errors import InputError

_MOST = 20_000_000  # rejected photographs


@dataclasses.dataclass(frozen=True, eq=False)
class Check:
    """An age check and the photographs that it is scored on.

    Attributes:
      threshold: Age in years that people need to have.
      challenge: Estimated age in years from which people pass.
      costs: Costs of the outcomes of a policy.
      photographs: The photographs of the evaluation, then those that were rejected before it; N in all.
      people: (N,) numbers of people, -1 where unknown.
      slices: Column -> (N,) texts; '' of those that were rejected.
      are_people_known: Whether any person is known.
      rejected: Number of rejected photographs at the end; None if it or their ages are unknown.
      of_unknown_age: Number of further rejected photographs, whose age is unknown.
      share: How many photographs of the split a rejected one stands for.
    """

    threshold: float
    challenge: float
    costs: Costs
    photographs: Photographs
    people: np.ndarray
    slices: dict[str, np.ndarray]
    are_people_known: bool
    rejected: int | None
    of_unknown_age: int
    share: float

    @property
    def younger(self) -> np.ndarray:
        """Weights of the photographs of people below the threshold: (N,)."""
        return self.photographs.younger(self.threshold)

    @property
    def older(self) -> np.ndarray:
        """Weights of the photographs of people of the threshold and older: (N,)."""
        return self.photographs.older(self.threshold)

    @property
    def passes(self) -> np.ndarray:
        """Who passes at the challenge age: (N,) bool."""
        return self.photographs.passes(self.challenge)

    @property
    def processed(self) -> np.ndarray:
        """Which photographs were processed: (N,) bool."""
        return ~np.isnan(self.photographs.estimates)

    @property
    def errors(self) -> np.ndarray:
        """Estimate - age of each photograph that was processed and has an exact age, otherwise NaN: (N,) years."""
        photographs = self.photographs
        return np.where(photographs.low == photographs.high, photographs.estimates - photographs.low, np.nan)

    @property
    def who(self) -> str:
        """Heading of a column with numbers of people."""
        return "people" if self.are_people_known else "images"


def of_evaluation(evaluation: Evaluation) -> Check | None:
    """Returns the age check of an evaluation; None if it has no threshold or no challenge age.

    Raises:
      InputError: Its report.json is damaged.
    """
    shown, threshold = evaluation.report.get("contents") or {}, evaluation.report.get("threshold")
    if threshold is None or shown.get("challenge") is None:
        return None
    sample, found = evaluation.sample, evaluation.report.get("unprocessed") or {}
    labels = np.array(found.get("labels") or np.zeros((0, 3)), np.float64)
    count, share = labels[:, 2].astype(np.int64), float(found.get("share", 1.0))
    if count.sum() > _MOST:
        raise InputError(f"{evaluation.folder} is damaged ({count.sum():,} rejected images): evaluate the run again")
    low, high = np.repeat(labels[:, :2], count, axis=0).T
    estimates = np.where(evaluation.no_face, np.nan, np.asarray(sample.predictions, np.float64))
    first, last = (sample.ages, sample.ages) if sample.ranges is None else sample.ranges.T
    rejected = int(count.sum())
    photographs = Photographs(
        np.concatenate([first, low]).astype(np.float64),
        np.concatenate([last, high]).astype(np.float64),
        np.concatenate([estimates, np.full(rejected, np.nan)]),
        np.concatenate([np.ones(len(estimates)), np.full(rejected, share)]),
    )
    return Check(
        threshold,
        shown["challenge"],
        Costs(*shown["costs"]) if shown.get("costs") else Costs(),
        photographs,
        np.concatenate([sample.people, np.full(rejected, -1)]),
        {
            column: np.concatenate([values, np.full(rejected, "", object)])
            for column, values in evaluation.slices.items()
        },
        sample.unit == "people",
        rejected if found else None,
        int(found.get("of_unknown_age", 0)),
        share,
    )
