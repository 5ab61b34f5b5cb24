"""Data parallelism over all local devices and all hosts; the only file that knows pmap.

The state keeps its natural shapes, a copy on each device; batches are split along a new leading axis. That is
`jit(shard_map(..., check_vma=False))` with the specs P() and P('batch'), should pmap ever go.
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lae_jax.runtime import compile_cache
from lae_jax.runtime.errors import InputError

AXIS = "batch"


def simulate_devices(count: int) -> None:
    """Makes JAX see `count` devices of the CPU and no other; before anything asks it for its devices."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", count)


_DETERMINISTIC = "--xla_gpu_deterministic_ops=true"


def be_deterministic() -> None:
    """Makes XLA take kernels that repeat bit for bit, which on GPUs costs time; before anything asks for devices.

    On CPUs and TPUs it changes nothing: they repeat as they are.
    """
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_DETERMINISTIC}".strip()


def is_deterministic() -> bool:
    """Whether `be_deterministic` was called, or need not be."""
    return jax.default_backend() != "gpu" or _DETERMINISTIC in os.environ.get("XLA_FLAGS", "")


@dataclasses.dataclass(frozen=True)
class Parallel:
    """The local devices to use; by default all. A part of them is possible on a single host only."""

    devices: tuple = dataclasses.field(default_factory=lambda: tuple(jax.local_devices()))

    @property
    def device_count(self) -> int:
        """Devices over all hosts."""
        return len(self.devices) * jax.process_count()

    def per_device(self, batch_size: int) -> int:
        """Examples a device takes of a global batch. Raises InputError with both numbers if they do not divide."""
        if batch_size % self.device_count:
            raise InputError(
                f"batch_size {batch_size} cannot be divided over {self.device_count} devices:"
                f" take {batch_size // self.device_count * self.device_count or self.device_count}"
                f" or {-(-batch_size // self.device_count) * self.device_count}"
            )
        return batch_size // self.device_count

    def local_places(self, batch_size: int) -> tuple[int, int]:
        """(first, count) of the places of a global batch that this host reads."""
        count = self.per_device(batch_size) * len(self.devices)
        return jax.process_index() * count, count

    def place(self, state):
        """Copies a tree of arrays onto every local device, in natural shapes; the source stays alive under donation."""
        mesh = Mesh(np.array(self.devices), (AXIS,))
        # A copy on the device: device_put alone may alias its source, which would die at the first donating step.
        copy = jax.jit(
            lambda tree: jax.tree.map(lambda x: x + 0 if x.dtype != bool else x, tree),
            out_shardings=NamedSharding(mesh, PartitionSpec()),
        )
        return copy(jax.tree.map(np.asarray, state))

    def shard(self, batch):
        """This host's part of a batch, (n, ...) arrays -> (local devices, n / local devices, ...)."""
        return jax.tree.map(lambda x: x.reshape(len(self.devices), -1, *x.shape[1:]), batch)

    def _pmap(self, function, **axes) -> Callable:
        # With several processes pmap wants the devices of all of them, which is its default.
        devices = self.devices if jax.process_count() == 1 else None
        return jax.pmap(function, axis_name=AXIS, devices=devices, **axes)

    def _pmap_train(self, step: Callable) -> Callable:
        return self._pmap(step, in_axes=(None, 0), out_axes=(None, None), donate_argnums=(0,))

    def lower_train(self, step: Callable, state, batch) -> jax.stages.Lowered:
        """What `map_train` compiles for arrays like these, of which the shapes count; of a single process."""
        with compile_cache.without_collector():
            return self._pmap_train(step).lower(state, jax.eval_shape(self.shard, batch))

    def map_train(self, step: Callable, compiler_options: Mapping | None = None) -> Callable:
        """(state, batch) -> (state, metrics) over the devices; the state is donated.

        With options it compiles for the arrays of the first call, and the later ones must have the same shapes. Several
        processes do without them: what pmap compiles ahead of time takes no host's part of a batch.
        """
        if not compiler_options or jax.process_count() > 1:
            mapped = self._pmap_train(step)
            return lambda state, batch: self._call(mapped, state, batch)
        program = None

        def run(state, batch):
            nonlocal program
            if program is None:
                program = self.lower_train(step, state, batch).compile(compiler_options)
            return program(state, self.shard(batch))

        return run

    def map_forward(self, function: Callable) -> Callable:
        """(variables, images of this host) -> the outputs' shards; `collect` makes one array of them."""
        mapped = self._pmap(function, in_axes=(None, 0), out_axes=0)
        return lambda variables, batch: self._call(mapped, variables, batch)

    def _call(self, mapped: Callable, held, batch):
        with compile_cache.without_collector():  # the first call traces
            return mapped(held, self.shard(batch))

    def map_any(self) -> Callable[[bool], jax.Array | bool]:
        """A flag of this host -> whether any host has it set, the same on all; every host must call it equally often.

        Over several hosts it is an array that is fetched like a step's metrics, so asking holds nobody up.
        """
        if jax.process_count() == 1:
            return bool
        mapped = self._pmap(lambda flag: jax.lax.pmax(flag, AXIS), in_axes=0, out_axes=None)
        return lambda flag: mapped(np.full(len(self.devices), flag, np.int32))

    def collect(self, outputs) -> np.ndarray:
        """The outputs of `map_forward` as one host array (n, ...) for this host's n examples."""
        outputs = np.asarray(outputs)
        return outputs.reshape(-1, *outputs.shape[2:])


def gather_hosts(array: np.ndarray) -> np.ndarray:
    """Arrays (n, ...) of every host, one after the other."""
    if jax.process_count() == 1:
        return array
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def is_first_host() -> bool:
    return jax.process_index() == 0


def from_first_host(number: int) -> int:
    """The first host's number, on every host."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def on_any_host(flag: bool) -> bool:
    """Whether a host has the flag set, the same on all. It waits for them; in a loop take `Parallel.map_any`."""
    return bool(gather_hosts(np.array([flag])).any())


def hosts_agree(digest: str) -> bool:
    """Whether all hosts have the same hexadecimal digest; 31 bits of it are compared."""
    numbers = gather_hosts(np.array([int(digest[:8], 16) >> 1], np.int32))
    return bool((numbers == numbers[0]).all())


def on_first_host(context: contextlib.AbstractContextManager) -> contextlib.AbstractContextManager:
    """The context on the first host, and nothing on the others."""
    return context if is_first_host() else contextlib.nullcontext()


def wait_for_hosts(what: str) -> None:
    """Returns once every host is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)
