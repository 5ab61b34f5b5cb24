"""Batched forward passes over a data set: outputs of all devices and hosts in the order of the rows, unpadded."""

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from lae_jax.runtime import console, parallel, watch

_ROWS_TOGETHER = 16_384  # of this host; the hosts exchange them in one call


class Interrupted(Exception):
    """A signal asked for the end before all batches were done."""


def until_asked(any_host: Callable, signals: watch.Signals) -> Callable[[], None]:
    """Returns a `beat` that raises Interrupted soon after a signal, on all hosts after the same batch.

    Args:
      any_host: `par.map_any()`; all hosts must have the same number of batches.
      signals: The signals of this host.
    """
    asked = any_host(signals.asked)

    def beat():
        nonlocal asked
        before, asked = asked, any_host(signals.asked)
        # Several hosts look at the answer of the batch before, which does not wait for the device.
        if asked is True or before:
            raise Interrupted

    return beat


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
    allocate: Callable[[tuple[int, ...], np.dtype], np.ndarray] = np.empty,
) -> np.ndarray:
    """Returns the outputs of the positions below `count`, (count, ...).

    The device works on a batch while the outputs of the batch before are fetched. Outputs are written into the result
    as they come, so that no second copy of a large result is held.

    Args:
      forward: `par.map_forward` of a step.
      variables: The model's variables.
      batches: This host's part of each batch: {'image', 'position'}.
      count: Number of positions; batches may pad with larger ones.
      par: The devices.
      total: Number of batches, for the progress line.
      what: Name on the progress line.
      beat: Called after each batch of outputs.
      allocate: Makes the result from its shape and dtype, for example in a file.
    """
    result, held, pending = None, [], None

    def keep(dispatched, position):
        held.append((par.collect(dispatched), position))
        if sum(len(each) for _, each in held) >= _ROWS_TOGETHER:
            write()

    def write():
        nonlocal result
        outputs, position = (parallel.gather_hosts(np.concatenate(parts)) for parts in zip(*held, strict=True))
        held.clear()
        if result is None:
            result = allocate((count, *outputs.shape[1:]), outputs.dtype)
        real = position < count
        result[position[real]] = outputs[real]

    for batch in console.progress(
        batches, total=total, what=what, unit="batches", leave=False, active=parallel.is_first_host()
    ):
        dispatched = forward(variables, batch["image"]), batch["position"]
        if pending is not None:
            keep(*pending)
            beat()
        pending = dispatched
    keep(*pending)
    if held:
        write()
    return result
