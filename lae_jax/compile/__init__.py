"""Compiles the step of a config for a machine that need not be there, and says what the step needs on it."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from ml_collections import ConfigDict

from lae_jax.runtime.errors import InputError

if TYPE_CHECKING:
    from lae_jax.compile.forecast import Forecast

__all__ = ["Wish", "forecasts"]

CONFIGURED, FILLED = "as configured", "largest batch"


@dataclasses.dataclass(frozen=True)
class Wish:
    """What to compile.

    Attributes:
      topology: Name of the machine, such as 'v5e-8' or 'h100-16'.
      per_device: Images of a device; None: the config's batch, divided by the devices.
      form: How JAX maps the step over the devices; 'auto': as a run on that machine does.
      people: Number of people to classify, for stage 1.
      forward: Whether to compile the forward step of an evaluation, on one device, instead of the training step.
      find_batch: Whether to look for the largest batch that fits as well.
    """

    topology: str
    per_device: int | None = None
    form: str = "auto"
    people: int | None = None
    forward: bool = False
    find_batch: bool = False


def forecasts(
    config: ConfigDict,
    wish: Wish,
    changes: Mapping[str, Mapping[str, object]] | None = None,
    tell: Callable[[str, "Forecast"], None] = lambda name, one: None,
) -> dict[str, "Forecast"]:
    """Compiles the step of a config, and the same step with changed fields.

    Set the environment before JAX is imported (`environment.prepare`), as `python -m lae_jax.compile` does.

    Args:
      config: Config of one stage.
      wish: What to compile.
      changes: Name -> fields of the config with their values, such as {'remat': {'model.remat': True}}.
      tell: Called with each result as soon as it is there: a large model takes minutes.

    Returns:
      Name -> forecast; the config itself is 'as configured', and a search adds '<name>, largest batch' where a batch
      fits.

    Raises:
      InputError: The config or the machine cannot be used, or its compiler is not installed.
    """
    from lae_jax.compile import forecast, lowering, topologies

    target = topologies.target(wish.topology)
    if wish.find_batch and target.chip is None:
        raise InputError("--find-batch needs a machine whose memory is published: name another --topology")
    devices, found = target.load(), {}
    for name, fields in {CONFIGURED: {}, **(changes or {})}.items():
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict(dict(fields))
        step = lowering.Lowering(changed, devices, wish.people, forward=wish.forward)
        per_device = step.per_device(wish.per_device)
        first = forecast.compile_step(step, target, per_device, wish.form)
        found[name] = first
        tell(name, first)
        if wish.find_batch:

            def compiled(size: int, step=step) -> "Forecast":
                one = forecast.compile_step(step, target, size, wish.form)
                tell(f"{size} images a device", one)
                return one

            largest = forecast.largest_batch(compiled, first, step.parts)
            if largest is not None:
                found[f"{name}, {FILLED}"] = largest
    return found
