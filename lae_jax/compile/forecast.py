"""What a step needs on a machine: memory, operations, bytes, exchanges, and the least time that these take."""

import dataclasses
import re
import time
from collections.abc import Callable

import jax

from lae_jax.compile import hlo, lowering, topologies

_TOO_LARGE = re.compile(r"([\d.]+)([KMGT])\)? (?:exceeds|of) (?:the )?(?:available )?[a-zA-Z]* ?\(?([\d.]+)([KMGT])")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Forecast:
    """A compiled step on one device of a machine. Bytes and operations are of one step and device.

    Attributes:
      devices: Number of devices that the step runs on.
      form: How JAX maps the step over them; 'forward' for the forward step of an evaluation.
      dtype: What the model computes in.
      per_device: Images of a device.
      peak_bytes: Most memory in use at once. None: the compiler refuses the step as too large and does not say by how
        much.
      parts: Bytes of the parameters, the optimiser's state, the statistics and the batch; they are in `peak_bytes`.
      memory: Bytes of the device; None: not published.
      flops: Operations of the step as it is written, before the compiler changes it (`train.costs.flops`).
      traffic: Bytes that it reads and writes; of a GPU and a CPU about (`hlo.traffic`).
      exchanges: Collectives by kind.
      times: Seconds that a step takes at least: 'operations' (`flops` at the device's peak), 'memory' (`traffic` at the
        bandwidth of its memory) and 'exchange' (the exchanged bytes at that of its links). Empty: nothing is published
        of the device, or the compiler refuses the step.
      compile_seconds: What lowering and compiling took.
    """

    devices: int
    form: str
    dtype: str
    per_device: int
    peak_bytes: int | None
    parts: dict[str, int]
    memory: float | None
    flops: int
    traffic: float | None
    exchanges: tuple[hlo.Exchange, ...]
    times: dict[str, float]
    compile_seconds: float

    @property
    def fits(self) -> bool:
        """Whether the step has room on a device; true where its memory is not published."""
        return self.peak_bytes is not None and (self.memory is None or self.peak_bytes <= self.memory)

    @property
    def activations(self) -> int | None:
        """Bytes of the peak that are none of `parts`: activations, gradients and workspace."""
        return None if self.peak_bytes is None else max(0, self.peak_bytes - sum(self.parts.values()))

    @property
    def bound(self) -> str | None:
        """What takes the longest of `times`."""
        return max(self.times, key=self.times.get, default=None)

    @property
    def seconds(self) -> float | None:
        """Least time of a step: the longest of `times`, as if the three went on at once."""
        return max(self.times.values(), default=None)

    @property
    def images_per_second(self) -> float | None:
        """Of one device, at the least time of a step."""
        return self.seconds and self.per_device / self.seconds

    @property
    def utilisation(self) -> float | None:
        """Share of the device's peak at the least time of a step."""
        return self.seconds and self.times["operations"] / self.seconds

    def as_json(self) -> dict:
        """Returns all attributes and properties."""
        names = ("fits", "activations", "bound", "seconds", "images_per_second", "utilisation")
        return dataclasses.asdict(self) | {name: getattr(self, name) for name in names}


def compile_step(step: lowering.Lowering, target: topologies.Target, per_device: int, form: str = "auto") -> Forecast:
    """Lowers and compiles a step for a machine.

    Args:
      step: The step.
      target: The machine, whose devices the step has.
      per_device: Images of a device.
      form: How JAX maps the step over the devices; 'auto': as a run on that machine does.
    """
    if step.forward:
        form = "forward"
    elif form == "auto":
        form = "pmap" if target.hosts == 1 and not step.stage.split else "shard_map"
    known = {
        "devices": 1 if step.forward else target.devices,
        "form": form,
        "dtype": step.config.model.dtype,
        "per_device": per_device,
        "parts": step.bytes_by_part(per_device),
    }
    memory = target.chip and target.chip.memory
    begun = time.perf_counter()
    lowered, flops = step.lower(per_device, form)
    try:
        program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        needed, available = _too_large(str(error))
        taken = time.perf_counter() - begun
        known |= {"peak_bytes": needed, "memory": available or memory, "flops": flops, "compile_seconds": taken}
        return Forecast(**known, traffic=None, exchanges=(), times={})
    taken = time.perf_counter() - begun
    text, cost = program.as_text(), program.cost_analysis() or {}
    exchanges = tuple(hlo.exchanges(text))
    # The compiler's own number has the body of a loop once.
    counted = cost.get("bytes accessed")
    traffic = counted * hlo.loop_factor(text) if counted else hlo.traffic(text)
    return Forecast(
        **known,
        peak_bytes=_peak(program.memory_analysis()),
        memory=memory,
        flops=flops,
        traffic=traffic,
        exchanges=exchanges,
        times=_least_times(step.config.model.dtype, target, flops, traffic, exchanges),
        compile_seconds=taken,
    )


def _peak(memory) -> int:
    """Returns the larger of the peak that the compiler names and its plan: a CPU's peak lacks temporary memory."""
    planned = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return max(memory.peak_memory_in_bytes, planned - memory.alias_size_in_bytes)


def _too_large(message: str) -> tuple[int | None, float | None]:
    """Returns the bytes that a refused step needs, and those that there are, as far as the compiler says them."""
    found = _TOO_LARGE.search(message)
    if not found:
        return None, None
    needed, available = (float(found[i]) * _UNITS[found[i + 1]] for i in (1, 3))
    return int(needed), available


def _least_times(
    dtype: str,
    target: topologies.Target,
    flops: int,
    traffic: float,
    exchanges: tuple[hlo.Exchange, ...],
) -> dict[str, float]:
    if target.chip is None:
        return {}
    # A ring passes a sum on twice, and what is gathered or scattered once; the result of scattering is one part of it.
    rounds = {"all-reduce": 2, "reduce-scatter": target.devices}
    sent = sum(one.bytes * rounds.get(one.kind, 1) for one in exchanges)
    share = (target.devices - 1) / target.devices
    return {
        "operations": flops / target.chip.peak_of(dtype),
        "memory": traffic / target.chip.bandwidth,
        "exchange": share * sent / target.link,
    }


def largest_batch(
    compiled: Callable[[int], Forecast], first: Forecast, parts: int, at_most: int = 8
) -> Forecast | None:
    """Finds the largest batch of a device that fits, in multiples of 8 for each part.

    The search ends when a batch fits and one 2 % larger does not, or after `at_most` steps, so a somewhat larger batch
    may fit.

    The memory of a step grows in proportion to its batch, above what it needs without one; two sizes tell how. What
    they promise is compiled.

    Args:
      compiled: Images of a device -> Forecast.
      first: The forecast of a batch that fits or not, on a device whose memory is published.
      parts: Parts of a device's batch that are computed one after the other.
      at_most: Most steps to compile.

    Returns:
      The forecast of the largest batch found; None: none fits.
    """
    unit = 8 * parts
    tried = {first.per_device: first}
    second = max(unit, (2 * first.per_device if first.fits else first.per_device // 2) // unit * unit)
    while len(tried) < at_most and second not in tried:
        tried[second] = compiled(second)
        second = _next_batch(tried, unit)
    fitting = [one for one in tried.values() if one.fits]
    return max(fitting, key=lambda one: one.per_device, default=None)


def _next_batch(tried: dict[int, Forecast], unit: int) -> int:
    """Returns the batch to try next; one that was tried ends the search."""
    memory = min(one.memory for one in tried.values())  # a compiler that refuses a step says how much it may take
    fits = max((size for size, one in tried.items() if one.fits), default=0)
    too_large = min((size for size, one in tried.items() if not one.fits), default=None)
    if too_large is not None and too_large - fits <= max(unit, fits // 50):
        return max(unit, fits)
    known = [(size, one.peak_bytes) for size, one in tried.items() if one.peak_bytes is not None]
    known.sort(key=lambda each: abs(each[1] - memory))
    near = sorted(known[:2])  # the two that are nearest to what fits
    if len(near) == 2 and near[0][1] < near[1][1]:
        (low, low_bytes), (high, high_bytes) = near
        slope = (high_bytes - low_bytes) / (high - low)
        size = max(fits, int((memory - low_bytes) / slope + low))
    else:
        size = 2 * fits if too_large is None else (too_large + fits) // 2
    if too_large is not None:
        size = min(size, too_large - max(unit, too_large // 100))
    return max(unit, size // unit * unit)
