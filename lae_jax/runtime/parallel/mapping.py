"""The two forms of data parallelism: `jax.pmap`, and `jit(shard_map)` on global arrays.

Both map the same function of one device over the devices, under the axis AXIS, and compute the same bits; with cures of
stage 2 (`stages.cures`), whose step they compile in other ways, the same up to rounding. With one process they cost the
host the same. With several, pmap wraps every array of the state again at every step, which takes several times as long
as the whole call of the other form.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lae_jax.runtime.parallel import rows
from lae_jax.runtime.parallel.rows import AXIS


@dataclasses.dataclass(frozen=True)
class Pmap:
    """`jax.pmap`: a state in natural shapes on each device of this host; a batch with an axis of devices in front.

    Attributes:
      devices: The devices of this host.
    """

    devices: tuple

    def place(self, state: Any) -> Any:
        """Copies a tree of NumPy arrays to each device."""
        return _copied(state, NamedSharding(Mesh(np.array(self.devices), (AXIS,)), PartitionSpec()))

    def shard(self, batch: Any) -> Any:
        """Splits this host's part of a batch: (n, ...) arrays -> (devices, n / devices, ...)."""
        return jax.tree.map(lambda x: x.reshape(len(self.devices), -1, *x.shape[1:]), batch)

    def collect(self, outputs: jax.Array) -> np.ndarray:
        """Joins the outputs of `forward`: (devices, n / devices, ...) -> (n, ...) on the host."""
        outputs = np.asarray(outputs)
        return outputs.reshape(-1, *outputs.shape[2:])

    def train(self, step: Callable, held: int) -> Callable:
        """Maps (state, shards, *held) -> (state, metrics); the state is donated. `held`: number of those trees."""
        return self._map(step, in_axes=(None, 0, *[None] * held), out_axes=(None, None), donate_argnums=(0,))

    def forward(self, function: Callable) -> Callable:
        """Maps (variables, shards) -> shards of the outputs."""
        return self._map(function, in_axes=(None, 0), out_axes=0)

    def reduce(self, function: Callable) -> Callable:
        """Maps shards -> what is the same on every device."""
        return self._map(function, in_axes=0, out_axes=None)

    def lower(self, step: Callable, state: Any, batch: Any, held: tuple = ()) -> jax.stages.Lowered:
        """Lowers what `train` maps for arrays of these shapes; `batch`: as `shard` takes it."""
        lower = self.train(step, len(held)).lower
        return lower(_shapes(state), jax.eval_shape(self.shard, batch), *_shapes(held))

    def _map(self, function: Callable, **axes) -> Callable:
        # With several processes pmap needs the devices of all of them, which is its default.
        devices = self.devices if jax.process_count() == 1 else None
        return jax.pmap(function, axis_name=AXIS, devices=devices, **axes)


@dataclasses.dataclass(frozen=True)
class ShardMap:
    """`jit(shard_map)`: the state and the batch are global arrays over the devices of all hosts.

    Attributes:
      devices: The devices of all hosts, those of a host side by side and in the order of the hosts.
      split: Names of the leaves of the state of which each device has a part of the rows (`rows`); each device has all
        of the other leaves.
    """

    devices: tuple
    split: tuple[str, ...] = ()

    @functools.cached_property
    def _mesh(self) -> Mesh:
        return Mesh(np.array(self.devices), (AXIS,))

    def place(self, state: Any) -> Any:
        """Makes global arrays of a tree.

        Args:
          state: What every host has whole: NumPy arrays, or what has a shape and gives NumPy arrays for an index; or
            global arrays that lie on the devices as here.
        """

        def placed(array: Any, sharding: NamedSharding) -> jax.Array:
            if isinstance(array, jax.Array) and array.sharding == sharding:
                return array
            return jax.make_array_from_callback(array.shape, sharding, lambda index: np.asarray(array[index]))

        shardings = self.shardings(state)
        return _copied(jax.tree.map(placed, state, shardings), shardings)

    def shardings(self, state: Any) -> Any:
        """Returns how each leaf of a state lies on the devices."""
        return self._shardings(rows.specs(state, self.split))

    def shard(self, batch: Any) -> Any:
        """Makes global arrays of this host's part of a batch: (n, ...) -> (n x hosts, ...)."""
        sharding = self._shardings(PartitionSpec(AXIS))
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)

    def collect(self, outputs: jax.Array) -> np.ndarray:
        """Fetches this host's part of the outputs of `forward`: (n x hosts, ...) -> (n, ...) on the host."""
        shards = sorted(outputs.addressable_shards, key=lambda shard: shard.index[0].start or 0)
        return np.concatenate(jax.device_get([shard.data for shard in shards]))

    def train(self, step: Callable, held: int) -> Callable:
        """Maps (state, shards, *held) -> (state, metrics); the state is donated. `held`: number of those trees."""
        return self._for_state(lambda specs: self._train(step, specs, held))

    def forward(self, function: Callable) -> Callable:
        """Maps (variables, shards) -> shards of the outputs."""
        batch = PartitionSpec(AXIS)
        return self._for_state(lambda specs: self._map(function, in_specs=(specs, batch), out_specs=batch))

    def reduce(self, function: Callable) -> Callable:
        """Maps shards -> what is the same on every device."""
        return self._map(function, in_specs=(PartitionSpec(AXIS),), out_specs=PartitionSpec())

    def lower(self, step: Callable, state: Any, batch: Any, held: tuple = ()) -> jax.stages.Lowered:
        """Lowers what `train` maps for arrays of these shapes; `batch`: as `shard` takes it."""
        hosts = jax.process_count()
        batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct((x.shape[0] * hosts, *x.shape[1:]), x.dtype), batch)
        specs = rows.specs(state, self.split)
        lower = self._train(step, specs, len(held)).lower
        return lower(_shapes(state), batch, *_shapes(held))

    def _train(self, step: Callable, specs: Any, held: int) -> Callable:
        in_specs = (specs, PartitionSpec(AXIS), *[PartitionSpec()] * held)
        return self._map(step, in_specs=in_specs, out_specs=(specs, PartitionSpec()), donate_argnums=0)

    def _for_state(self, mapped: Callable[[Any], Callable]) -> Callable:
        """Returns (state, *rest) -> mapped(specs of the state)(state, *rest); all states have one structure."""
        if not self.split:
            return mapped(PartitionSpec())
        program = None

        def call(state, *rest):
            nonlocal program
            if program is None:
                program = mapped(rows.specs(state, self.split))
            return program(state, *rest)

        return call

    def _shardings(self, specs: Any) -> Any:
        is_spec = {"is_leaf": lambda x: isinstance(x, PartitionSpec)}
        return jax.tree.map(lambda spec: NamedSharding(self._mesh, spec), specs, **is_spec)

    def _map(self, function: Callable, *, in_specs: tuple, out_specs: Any, **how) -> Callable:
        # Only without the check of varying axes does a psum have the gradient that it has under pmap.
        mapped = jax.shard_map(function, mesh=self._mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
        shardings = {"in_shardings": self._shardings(in_specs), "out_shardings": self._shardings(out_specs)}
        return jax.jit(mapped, **shardings, **how)


def _copied(tree: Any, shardings: Any) -> Any:
    # A copy on the device: device_put alone may alias its source, which the first donating step would delete.
    copy = jax.jit(lambda tree: jax.tree.map(lambda x: x + 0 if x.dtype != bool else x, tree), out_shardings=shardings)
    return copy(tree)


def _shapes(tree: Any) -> Any:
    return jax.eval_shape(lambda tree: tree, tree)
