"""Batched forward passes over a data set: outputs of all devices and hosts in the order of the rows, unpadded."""

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from lae_jax.runtime import console, parallel


def over_batches(
    forward: Callable,
    variables: Mapping,
    batches: Iterator[dict[str, np.ndarray]],
    count: int,
    *,
    par: parallel.Parallel,
    total: int | None = None,
    what: str = "evaluate",
    beat: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Returns the outputs of the positions below `count`, (count, ...).

    The device works on a batch while the outputs of the batch before are fetched.

    Args:
      forward: `par.map_forward` of a step.
      variables: The model's variables.
      batches: This host's part of each batch: {'image', 'position'}.
      count: Number of positions; batches may pad with larger ones.
      par: The devices.
      total: Number of batches, for the progress line.
      what: Name on the progress line.
      beat: Called after each batch of outputs.
    """
    positions, outputs, pending = [], [], None
    for batch in console.progress(
        batches, total=total, what=what, unit="batches", leave=False, active=parallel.is_first_host()
    ):
        dispatched = forward(variables, batch["image"])
        if pending is not None:
            outputs.append(par.collect(pending))
            beat()
        pending = dispatched
        positions.append(batch["position"])
    outputs.append(par.collect(pending))
    position = parallel.gather_hosts(np.concatenate(positions))
    gathered = parallel.gather_hosts(np.concatenate(outputs))
    result = np.empty((count, *gathered.shape[1:]), gathered.dtype)
    real = position < count
    result[position[real]] = gathered[real]
    return result
