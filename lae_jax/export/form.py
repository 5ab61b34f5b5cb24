"""The common form of models that were read back, whatever their format."""

import dataclasses
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Readable:
    """A model that was read back.

    Attributes:
      forward: uint8 (B, S, S, 3) -> rows (B, 1 + K): the age, then the distribution. The result is an array or
        something that np.asarray converts.
      shape: Shape of the images as stored in the file; None for a dimension of any size.
      dtype: Type of the images as stored in the file.
    """

    forward: Callable[[np.ndarray], object]
    shape: tuple[int | None, ...]
    dtype: str


def rows(age, distribution) -> np.ndarray:
    """Joins ages (B,) and distributions (B, K) to rows (B, 1 + K)."""
    return np.concatenate([np.asarray(age)[:, None], np.asarray(distribution)], axis=1)
