"""Models that were read back, whatever their format: their common form, and a check of what they hold."""

import dataclasses
import os
from collections.abc import Callable, Iterable

import numpy as np

from lae_jax.runtime.errors import InputError

MAX_NUMBERS = 1 << 28  # of a tensor for an image: a small file can ask for more; 1024 pixels give 2e7


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


def require_known(path: os.PathLike | str, what: str, found: Iterable[str], known: Iterable[str]) -> None:
    """Checks that a model holds only what the exports of lae_jax hold: a model can do what its runtime can.

    Args:
      path: The model's file, for the message.
      what: Kind of the names, for the message.
      found: Names in the model.
      known: Names in exports of lae_jax.

    Raises:
      InputError: There is another name. The model is not to be run.
    """
    if foreign := sorted({*found} - {*known}):
        raise InputError(
            f"{path} holds {what} that no export of lae_jax holds ({', '.join(foreign[:5])}): it may do more than"
            " estimate ages, so it is not opened. Export the run again (python -m lae_jax.export ...)"
        )
