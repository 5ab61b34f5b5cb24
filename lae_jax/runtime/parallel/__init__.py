"""Data parallelism over all local devices and all hosts.

The state keeps its natural shapes and is copied to each device, but for leaves whose rows are split over them (`rows`);
batches are split over the devices. `mapping` has the two forms in which JAX does this: `jax.pmap`, for one process, and
`jit(shard_map)` on global arrays, for several, and where leaves are split.
"""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lae_jax.runtime import compile_cache
from lae_jax.runtime.errors import InputError, unknown
from lae_jax.runtime.parallel import rows
from lae_jax.runtime.parallel.mapping import Pmap, ShardMap
from lae_jax.runtime.parallel.rows import AXIS

FORMS = ("auto", "pmap", "shard_map")


def simulate_devices(count: int) -> None:
    """Gives JAX `count` simulated CPU devices and no others. Call it before anything asks JAX for its devices."""
    jax.config.update("jax_platforms", "cpu")
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError as error:
        raise InputError(
            "this process has asked JAX for its devices already, so they can no longer be simulated: call it first"
        ) from error


_DETERMINISTIC = "--xla_gpu_deterministic_ops=true"


def be_deterministic() -> None:
    """Makes XLA use kernels that repeat bit for bit, which are slower on GPUs.

    Call it before anything asks JAX for its devices. CPUs and TPUs always repeat, so it changes nothing there.
    """
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_DETERMINISTIC}".strip()


def is_deterministic() -> bool:
    """Whether `be_deterministic` was called, or is not needed."""
    return jax.default_backend() != "gpu" or _DETERMINISTIC in os.environ.get("XLA_FLAGS", "")


def require_form(form: str) -> None:
    """Checks the name of a form.

    Raises:
      InputError: It is not one of FORMS.
    """
    if form not in FORMS:
        raise InputError("config.parallel: " + unknown("form", str(form), FORMS))


@dataclasses.dataclass(frozen=True)
class Parallel:
    """The devices to train and predict on, and how JAX maps a function over them.

    Attributes:
      devices: Local devices, by default all. A subset is possible only on a single host, and so are devices that only
        compile, for `lower_train`.
      form: One of FORMS; 'auto': pmap with one process, shard_map with several. Both compute the same bits.
      split: Names of the leaves of a state of which each device has a part of the rows. Needs shard_map, which 'auto'
        then is.
    """

    devices: tuple = dataclasses.field(default_factory=lambda: tuple(jax.local_devices()))
    form: str = "auto"
    split: tuple[str, ...] = ()

    def __post_init__(self):
        require_form(self.form)
        if not self.split:
            return
        if self.form == "pmap":
            raise InputError(
                "config.parallel is pmap, which cannot split the class weights over the devices: set it to auto, or"
                " config.model.class_weights to copied"
            )
        if rows.MULTIPLE % self.device_count:
            raise InputError(
                f"the class weights cannot be split over {self.device_count} devices: use a divisor of"
                f" {rows.MULTIPLE}, such as {2 ** (self.device_count.bit_length() - 1)}, or set"
                " config.model.class_weights to copied"
            )

    @functools.cached_property
    def _form(self) -> Pmap | ShardMap:
        hosts = jax.process_count()
        if self.form == "pmap" or (self.form == "auto" and hosts == 1 and not self.split):
            return Pmap(self.devices)
        if hosts == 1:
            return ShardMap(self.devices, self.split)
        # In the order of the hosts, as pmap has them: `local_places` counts in it.
        every = tuple(device for host in range(hosts) for device in jax.local_devices(process_index=host))
        return ShardMap(every, self.split)

    @property
    def device_count(self) -> int:
        """Number of devices on all hosts."""
        return len(self.devices) * jax.process_count()

    def per_device(self, batch_size: int) -> int:
        """Returns the per-device batch size.

        Args:
          batch_size: Size of the global batch.

        Raises:
          InputError: The batch size is not a multiple of the number of devices.
        """
        if batch_size % self.device_count:
            raise InputError(
                f"batch_size {batch_size} cannot be divided over {self.device_count} devices:"
                f" use {batch_size // self.device_count * self.device_count or self.device_count}"
                f" or {-(-batch_size // self.device_count) * self.device_count}"
            )
        return batch_size // self.device_count

    def local_places(self, batch_size: int) -> tuple[int, int]:
        """Returns (first, count) of the rows of a global batch that this host reads."""
        count = self.per_device(batch_size) * len(self.devices)
        return jax.process_index() * count, count

    def place(self, state: Any) -> Any:
        """Copies a tree of arrays to the devices, in natural shapes. Donating the copy keeps the source alive."""

        def whole(path: tuple, leaf: Any) -> Any:
            return leaf if rows.is_split(path, self.split) else np.asarray(leaf)

        return self._form.place(jax.tree_util.tree_map_with_path(whole, state))

    def targets(self, state: Any) -> Any:
        """Returns the state with shapes, and where they lie on the devices, in place of the leaves that are split."""
        if not self.split:
            return state

        def target(sharding: NamedSharding, leaf: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

        return rows.apply(target, self.split, self._form.shardings(state), state)

    def shard(self, batch: Any) -> Any:
        """Splits this host's part of a batch, (n, ...) arrays, over its devices; the mapped functions call it."""
        return self._form.shard(batch)

    def lower_train(self, step: Callable, state: Any, batch: Any, held: tuple = ()) -> jax.stages.Lowered:
        """Returns what `map_train` compiles for arrays of these shapes, without running anything.

        Args:
          step: The step on one device.
          state: The state: arrays, or `jax.ShapeDtypeStruct`s.
          batch: This host's part of a batch, likewise. Where the devices only compile, it is the whole batch.
          held: As in `map_train`, likewise.
        """
        with compile_cache.without_collector():
            return self._form.lower(step, state, batch, held)

    def map_train(self, step: Callable, held: tuple = ()) -> Callable:
        """Maps a step over the devices: (state, batch) -> (state, metrics); the state is donated.

        Args:
          step: The step on one device.
          held: Trees on the devices (`place`) that the step takes after the batch, at every step the same.
        """
        mapped = self._form.train(step, len(held))
        return self._taking_batches(lambda state, shards: mapped(state, shards, *held))

    def map_forward(self, function: Callable) -> Callable:
        """Maps a function: (variables, images of this host) -> output shards, which `collect` joins into one array."""
        return self._taking_batches(self._form.forward(function))

    def _taking_batches(self, mapped: Callable) -> Callable:
        def call(held, batch):
            with compile_cache.without_collector():  # the first call traces
                return mapped(held, self.shard(batch))

        return call

    def map_any(self) -> Callable[[bool], jax.Array | bool]:
        """Returns a function: flag of this host -> whether any host has it set, the same on all hosts.

        Every host must call it equally often. With several hosts the result is an array that is fetched like the
        metrics of a step, so a call does not block.
        """
        if jax.process_count() == 1:
            return bool
        mapped = self._form.reduce(lambda flags: jax.lax.pmax(flags.max(), AXIS))
        unset, is_set = (self.shard(np.full(len(self.devices), flag, np.int32)) for flag in (0, 1))
        return lambda flag: mapped(is_set if flag else unset)

    def collect(self, outputs: jax.Array) -> np.ndarray:
        """Joins the outputs of `map_forward` into one host array (n, ...) for the n images of this host."""
        return self._form.collect(outputs)


def one_copy_a_host(state: Any) -> Any:
    """Returns the arrays of a state as orbax should get them: global arrays with one copy on each host.

    Where several devices of a host hold copies, orbax lets each one write a part, and compiles a program for each part
    of each shape, at the first checkpoint of a process: for 160 arrays on 8 devices 80 s of a core.

    Args:
      state: A tree of arrays, as `map_train` returns it. Arrays whose rows are split over the devices stay as they are:
        every device writes its part.
    """
    first = {device.process_index: device for device in reversed(jax.devices())}
    mesh = Mesh(np.array([first[host] for host in sorted(first)]), ("host",))
    sharding, mine = NamedSharding(mesh, PartitionSpec()), first[jax.process_index()]

    def one(array: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
        if not isinstance(array, jax.Array) or not array.sharding.is_fully_replicated:
            return array
        (data,) = [shard.data for shard in array.addressable_shards if shard.device == mine] or [array]
        return jax.make_array_from_single_device_arrays(array.shape, sharding, [jax.device_put(data, mine)])

    return jax.tree.map(one, state)


def gather_hosts(array: np.ndarray) -> np.ndarray:
    """Concatenates arrays (n, ...) of all hosts."""
    if jax.process_count() == 1:
        return array
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def is_first_host() -> bool:
    """Whether this process is the first host."""
    return jax.process_index() == 0


def from_first_host(number: int) -> int:
    """Returns the `number` that the first host passes, on every host."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def on_any_host(flag: bool) -> bool:
    """Whether any host has the flag set, the same on all. It waits for all hosts; in a loop use `Parallel.map_any`."""
    return bool(gather_hosts(np.array([flag])).any())


def hosts_that_differ(digest: str) -> list[int]:
    """Returns the hosts whose hexadecimal digest is not that of the first one; 31 bits are compared."""
    numbers = gather_hosts(np.array([int(digest[:8], 16) >> 1], np.int32))
    return np.flatnonzero(numbers != numbers[0]).tolist()


def hosts_agree(digest: str) -> bool:
    """Whether all hosts have the same hexadecimal digest."""
    return not hosts_that_differ(digest)


def devices_by_host() -> list[int]:
    """Returns the number of devices of each host."""
    return np.bincount([device.process_index for device in jax.devices()], minlength=jax.process_count()).tolist()


def on_first_host(context: contextlib.AbstractContextManager) -> contextlib.AbstractContextManager:
    """Returns the context on the first host, and an empty one on all other hosts."""
    return context if is_first_host() else contextlib.nullcontext()


def wait_for_hosts(what: str) -> None:
    """Returns when every host has called this."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)
