"""What a reader of a format gives."""

import dataclasses
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Readable:
    """forward: uint8 (B, S, S, 3) -> rows (B, 1 + K), the age and then the distribution, or what becomes them by
    np.asarray; shape, dtype: of the images as the file itself has them, None where any size will do."""

    forward: Callable[[np.ndarray], object]
    shape: tuple[int | None, ...]
    dtype: str


def rows(age, distribution) -> np.ndarray:
    return np.concatenate([np.asarray(age)[:, None], np.asarray(distribution)], axis=1)
