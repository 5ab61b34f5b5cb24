"""Machines, batches that fit, the least time of a step."""

import dataclasses
import math
import re
import types

import jax
import pytest

from lae_jax import compile as room
from lae_jax.compile import forecast, hlo, lowering, plain_words, topologies
from lae_jax.configs import pretrain, small
from lae_jax.runtime.errors import InputError


@pytest.mark.parametrize(("name", "devices", "hosts", "described"), [
    ("v4-8", 4, 1, {"topology_name": "v4:2x2x1", "chip_config_name": "megacore"}),
    ("v5e-8", 8, 1, {"topology_name": "v5e:2x4"}),
    ("v5e-1", 1, 1, {"topology_name": "v5e:1x1", "chips_per_host_bounds": (1, 1, 1)}),
    ("v5p-64", 32, 8, {"topology_name": "v5p:2x4x4"}),
    ("v6e-256", 256, 64, {"topology_name": "v6e:16x16", "wrap": (True, True, False)}),
    ("h100-8", 8, 1, {"topology_name": "h100", "topology": "1x1x8"}),
    ("h200-16", 16, 2, {"topology_name": "h200", "topology": "1x2x8"}),
])  # fmt: skip
def test_machines_have_the_devices_that_clouds_name(name, devices, hosts, described):
    target = topologies.target(name)
    assert (target.devices, target.hosts) == (devices, hosts)
    assert described.items() <= target._description().items()


@pytest.mark.parametrize(("name", "message"), [
    ("v5e-9", "no slice of that size: v5e-1, v5e-4, v5e-8"),
    ("v4-9", "no slice of that size: v4-8, v4-16"),
    ("h100-12", "a host has 8 GPUs"),
    ("v9-8", "unknown machine: name one such as v4-8"),
    ("eight", "unknown machine"),
    ("cpu-0", "unknown machine"),
])  # fmt: skip
def test_another_machine_is_refused(name, message):
    with pytest.raises(InputError, match=re.escape(message)):
        topologies.target(name)


def test_the_least_time_is_the_longest_of_three():
    target = topologies.target("h100-16")
    ring = (hlo.Exchange("all-reduce", 3, 10**8), hlo.Exchange("all-gather", 1, 10**6))
    scattered = (hlo.Exchange("reduce-scatter", 1, 10**6),)
    times = forecast._least_times("bfloat16", target, 10**13, 1e9, ring)
    assert times == {
        "operations": pytest.approx(1e13 / 989.5e12),
        "memory": pytest.approx(1e9 / 3352e9),
        "exchange": pytest.approx(15 / 16 * (2e8 + 1e6) / 50e9),  # between hosts, 400 Gb/s a GPU
    }
    assert forecast._least_times("float32", target, 10**13, 1e9, ring)["operations"] == pytest.approx(1e13 / 494.75e12)
    assert forecast._least_times("float32", target, 1, 1.0, scattered)["exchange"] == pytest.approx(15e6 / 50e9)
    assert forecast._least_times("bfloat16", topologies.target("cpu-8"), 10**12, 1e9, ring) == {}
    one = dataclasses.replace(made(32, 2**30), times=times)
    assert (one.bound, one.seconds) == ("operations", times["operations"]) and one.utilisation == 1
    assert one.images_per_second == pytest.approx(32 * 989.5e12 / 1e13)
    assert made(32, 2**30).bound is None and made(32, 2**30).as_json()["utilisation"] is None


def test_a_refused_step_says_what_it_needs():
    told = (
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 40.44G of"
        " 15.75G hbm. Exceeded hbm capacity by 24.69G."
    )
    assert forecast._too_large(told) == (int(40.44 * 2**30), 15.75 * 2**30)
    assert forecast._too_large("... program requires (40.44G) exceeds available HBM (15.75G)")[1] == 15.75 * 2**30
    assert forecast._too_large("RESOURCE_EXHAUSTED") == (None, None)


def made(per_device, needed, memory=16 * 2**30):
    return forecast.Forecast(8, "pmap", "bfloat16", per_device, needed, {}, memory, 1, 1.0, (), {}, 0.0)


@pytest.mark.parametrize("start", [8, 32, 512])
@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("tells", [True, False])
def test_the_largest_batch_that_fits_is_found(start, parts, tells):
    """The memory is 1 GiB + 50 MiB an image: 307 images fit; in multiples of 8 it is 304, of 32 it is 288."""
    compiled = []

    def compile_batch(size):
        compiled.append(size)
        needed = 2**30 + size * 50 * 2**20
        return made(size, needed if needed <= 16 * 2**30 or tells else None)

    first = compile_batch(start)
    assert first.per_device == start
    largest = forecast.largest_batch(compile_batch, first, parts, at_most=12)
    assert largest.fits and largest.per_device == (304 if parts == 1 else 288)
    assert len(compiled) <= 12 and all(size % (8 * parts) == 0 for size in compiled[1:])


def test_a_search_takes_the_memory_that_the_compiler_names():
    """A TPU's compiler keeps a part of the memory. Its refusals say how much there is; 281,729 images fit."""
    compiled = []

    def compile_batch(size):
        compiled.append(size)
        needed, there = 7 * 2**20 + size * 60_000, 15.75 * 2**30
        return made(size, needed, there if needed > there else 16 * 2**30)

    largest = forecast.largest_batch(compile_batch, compile_batch(32), 1)
    assert 0.98 * 281_729 < largest.per_device <= 281_729 and largest.fits and len(compiled) <= 6


def test_where_no_batch_fits_none_is_found():
    largest = forecast.largest_batch(lambda size: made(size, 2**40 + size), made(64, 2**40), 1)
    assert largest is None
    with pytest.raises(InputError, match="whose memory is published"):
        room.forecasts(small.get_config("tuned").stages.represent, room.Wish("cpu-1", 8, find_batch=True))


def test_stage_1_needs_the_number_of_people_and_a_batch_that_divides():
    with pytest.raises(InputError, match="--people N"):
        lowering.Lowering(pretrain.get_config(), tuple(jax.devices()[:8]))
    config = small.get_config("tuned").stages.represent
    assert lowering.Lowering(config, tuple(jax.devices()[:8])).per_device(None) == 8
    with pytest.raises(InputError, match="config.batch_size 64 cannot be divided over 7 devices"):
        lowering.Lowering(config, tuple(jax.devices()[:7])).per_device(None)
    config.accumulate = 4
    with pytest.raises(InputError, match="config.accumulate 4 does not divide the 6 images of a device"):
        lowering.Lowering(config, tuple(jax.devices()[:1])).per_device(6)


def test_a_device_holds_its_part_of_class_weights_that_are_split():
    """2,000 people in 2,048 rows of 512 values on 8 devices: weights, momentum and EMA."""
    config = pretrain.get_config()
    config.model.name, config.data.image_size, config.ema_decay = "efficientnet_v2_pico", 32, 0.9
    found = {}
    for where in ("split", "copied"):
        config.model.class_weights = where
        found[where] = lowering.Lowering(config, tuple(jax.devices()[:8]), 2000).bytes_by_part(4)
    for name in ("parameters", "optimiser", "EMA"):
        assert found["copied"][name] - found["split"][name] == (2000 - 2048 // 8) * 512 * 4
    config.model.class_weights = "split"
    step = lowering.Lowering(config, tuple(jax.devices()[:8]), 2000)
    assert step.stage.split and step.lower(4, "shard_map")[1] > 0


def test_a_step_on_this_machine_is_what_its_compiler_says():
    """The smallest network, stage 3, on 2 simulated devices: parts, operations, and one all-reduce of the gradients."""
    config = small.get_config("tuned").stages.classify
    config.model.name, config.data.image_size = "efficientnet_v2_pico", 32
    step = lowering.Lowering(config, tuple(jax.devices()[:2]))
    target = topologies.target("cpu-2")
    one = forecast.compile_step(step, target, 4)
    head = step.variables["params"]["head"]
    sizes = [math.prod(leaf.shape) * 4 for leaf in jax.tree.leaves(head)]
    (exchange,) = one.exchanges
    assert exchange.kind == "all-reduce" and sum(sizes) <= exchange.bytes <= sum(sizes) + 64
    assert one.parts["optimiser"] >= sum(sizes) and one.parts["batch"] == 4 * (32 * 32 * 3 + 4)
    assert one.peak_bytes >= sum(one.parts.values()) and one.activations > 0 and one.fits and one.memory is None
    assert one.flops > 1e6 and one.seconds is None and one.form == "pmap"


def test_a_forecast_is_told_with_what_is_missing():
    big = dataclasses.replace(made(32, 40 * 2**30), parts={"parameters": 2**29, "optimiser": 2**28})
    told = "\n".join(plain_words.lines("represent", big))
    assert "represent: 32 images on each of 8 devices, pmap, bfloat16" in told
    assert "40 GiB of 16 GiB a device: does not fit, 24 GiB missing" in told
    assert "parameters 512 MiB, optimiser 256 MiB, activations and the rest 39.2 GiB" in told
    alone = "\n".join(plain_words.lines("represent", dataclasses.replace(big, devices=1, form="forward")))
    assert "represent: 32 images on one device, forward, bfloat16" in alone
    assert "does not say how much it needs" in "\n".join(plain_words.lines("represent", made(32, None)))
    (figures,) = plain_words.figures(topologies.target("h100-16"))
    assert "989.5 in bfloat16, 494.8 in float32; memory 79.1 GiB, 3352 GB/s" in figures and "assumed" in figures
    assert plain_words.figures(topologies.target("cpu-8")) == []


@pytest.mark.parametrize(("platform", "dtype"), [("tpu", "bfloat16"), ("cpu", "float32")])
def test_auto_is_the_dtype_of_the_target(platform, dtype):
    config = small.get_config("tuned").stages.represent
    config.model.dtype = "auto"
    device = types.SimpleNamespace(platform=platform, device_kind="TPU v4")
    assert lowering.Lowering(config, (device,)).config.model.dtype == dtype
