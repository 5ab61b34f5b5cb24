"""Batched forward passes over a data set: gathered over devices and hosts, padding gone, in the order of the rows."""

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
    """Outputs (count, ...) of the first `count` positions.

    Args: forward: `par.map_forward` of a step; batches: of image and position, this host's part; total: batches, for
    the progress line; beat: called whenever outputs have come. The device works on a batch while the one before is
    fetched.
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
