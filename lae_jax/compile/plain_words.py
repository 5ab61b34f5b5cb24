"""Forecasts in words."""

from lae_jax.compile import topologies
from lae_jax.compile.forecast import Forecast
from lae_jax.runtime import console

_UNITS = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10), ("B", 1))


def lines(title: str, one: Forecast) -> list[str]:
    """Returns the forecast of a step, for a person."""
    where = f"each of {one.devices} devices" if one.devices > 1 else "one device"
    told = [
        f"{title}: {console.counted(one.per_device, 'image')} on {where}, {one.form}, {one.dtype}",
        f"  memory      {_memory(one)}",
    ]
    if one.activations is not None:
        parts = ", ".join(f"{name} {size_of(size)}" for name, size in one.parts.items())
        told.append(f"              {parts}, activations and the rest {size_of(one.activations)}")
    told.append(f"  operations  {one.flops / 1e9:.4g} GFLOP a step and device")
    if one.traffic is not None:
        told.append(f"  traffic     {size_of(one.traffic)} read and written a step and device")
        every = ", ".join(f"{size_of(each.bytes)} in {each.count} {each.kind}" for each in one.exchanges)
        told.append(f"  exchange    {every or 'none'}")
    if one.seconds is not None:
        times = ", ".join(f"{name} {seconds * 1e3:.3g} ms" for name, seconds in one.times.items())
        told.append(f"  least time  {one.seconds * 1e3:.3g} ms a step ({times})")
        rate, share = one.images_per_second, 100 * one.utilisation
        in_all = f", {rate * one.devices:,.0f} in all" * (one.devices > 1)
        told.append(f"  at most     {rate:,.0f} images/s a device{in_all}, at {share:.2g} % of the peak")
    return [*told, f"  compiled in {one.compile_seconds:.0f} s"]


def figures(target: topologies.Target) -> list[str]:
    """Returns the published figures that the least times come from."""
    chip = target.chip
    if chip is None:
        return []
    peaks = ", ".join(f"{chip.peak_of(dtype) / 1e12:.4g} in {dtype}" for dtype in ("bfloat16", "float32"))
    assumed = " (assumed, between hosts)" * (target.link != chip.link)
    return [
        f"Published figures of {chip.device_kind}: TFLOP/s {peaks}; memory {size_of(chip.memory)},"
        f" {chip.bandwidth / 1e9:.4g} GB/s; links {target.link / 1e9:.4g} GB/s{assumed}. Source: {chip.source}"
    ]


def size_of(count: float) -> str:
    """Returns a number of bytes in words: 2**29 -> '512 MiB'."""
    unit, factor = next(((unit, factor) for unit, factor in _UNITS if count >= factor), _UNITS[-1])
    return f"{count / factor:.{max(3, len(str(int(count / factor))))}g} {unit}"


def _memory(one: Forecast) -> str:
    if one.peak_bytes is None:
        return "does not fit: the compiler refuses the step and does not say how much it needs"
    if one.memory is None:
        return f"{size_of(one.peak_bytes)} a device"
    left = one.memory - one.peak_bytes
    fits = f"fits, {size_of(left)} left" if one.fits else f"does not fit, {size_of(-left)} missing"
    return f"{size_of(one.peak_bytes)} of {size_of(one.memory)} a device: {fits}"
