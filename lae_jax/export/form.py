"""Models that were read back, whatever their format: their common form, and a check of what they hold."""

import dataclasses
import math
import os
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

import numpy as np

from lae_jax.runtime.errors import InputError

MAX_BATCH = 32  # images
# Bytes of the tensors that exist at once for MAX_BATCH images: a small file can ask for more. EfficientNetV2-L with
# 480 pixels takes 3 GB.
MAX_MEMORY = 8_000_000_000


@dataclasses.dataclass(frozen=True, eq=False)
class Readable:
    """A model that was read back.

    Attributes:
      forward: uint8 (B, S, S, 3), B at most MAX_BATCH -> rows (B, 1 + K): the age, then the distribution. The
        result is an array or something that np.asarray converts.
      shape: Shape of the images as stored in the file; None for a dimension of any size.
      dtype: Type of the images as stored in the file.
    """

    forward: Callable[[np.ndarray], object]
    shape: tuple[int | None, ...]
    dtype: str


def rows(age, distribution) -> np.ndarray:
    """Joins ages (B,) and distributions (B, K) to rows (B, 1 + K)."""
    return np.concatenate([np.asarray(age)[:, None], np.asarray(distribution)], axis=1)


def most_held(steps: Iterable[tuple[Sequence[Hashable], Mapping[Hashable, float], float]]) -> float:
    """Returns the most bytes of tensors that exist at once; a tensor exists from its step to the last one that uses it.

    Args:
      steps: For each step the tensors that it uses, the bytes of each tensor that it makes, and the bytes that it takes
        besides. Bytes may be arrays of one shape.
    """
    steps = [*steps]
    last = {name: place for place, (used, _, _) in enumerate(steps) for name in used}
    held, most, ends = 0.0, 0.0, {}
    for place, (_, made, inside) in enumerate(steps):
        for name, size in made.items():
            held = held + size
            ends.setdefault(last.get(name, place), []).append(size)
        most = np.maximum(most, held + inside)
        held = held - sum(ends.pop(place, []))
    return most


def require_memory(path: os.PathLike | str, size: float) -> None:
    """Checks the memory of a model.

    Args:
      path: The model's file, for the message.
      size: Most bytes of tensors that exist at once; infinite if a size is unknown.

    Raises:
      InputError: They are more than MAX_MEMORY.
    """
    if not size <= MAX_MEMORY:
        told = f"{size / 1e9:,.1f} GB" if math.isfinite(size) else "an unknown amount"
        raise InputError(
            f"{path} needs {told} of memory for {MAX_BATCH} images, more than {MAX_MEMORY / 1e9:g} GB: it is not"
            " opened. Export a smaller model"
        )


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
