"""Lowers the step of a config for a machine, from shapes alone: no data set, and no weights but a teacher's."""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from lae_jax import stages
from lae_jax.runs import build, precision
from lae_jax.runtime import parallel
from lae_jax.runtime.errors import InputError
from lae_jax.runtime.parallel import rows
from lae_jax.stages import method_losses
from lae_jax.train import costs, demands, plan, steps, teacher

# Values that change no shape.
_STEPS, _MAE = 1000, 2.0


class Lowering:
    """The training step of a stage, or its evaluation forward, to be lowered for devices and batches.

    Attributes:
      config: The config, with the dtype that the devices compute in.
    """

    def __init__(self, config: ConfigDict, devices: tuple, people: int | None = None, *, forward: bool = False):
        """Takes the config of one stage.

        Args:
          config: The config.
          devices: The devices of all hosts, which need not be able to run the step.
          people: Number of people to classify, for stage 1.
          forward: Whether it is the forward step of an evaluation, on one device.

        Raises:
          InputError: The config cannot be used, or `people` is missing.
        """
        self.config = config = precision.resolved(plan.settled(config), None, devices[0])
        self.devices = devices
        self.stage = stages.with_method(stages.get(config.stage), config.classify.method, config.classify.setting)
        self.forward = forward
        if self.stage.target == "identity" and not people:
            raise InputError(f"stage {config.stage} classifies people: say how many with --people N")
        self._outputs = people if self.stage.target == "identity" else build.NUM_AGES
        c = config.model
        self.stage = stages.with_classes(self.stage, c.class_weights, c.class_sampling, self._outputs)
        self.stage = stages.with_cure(self.stage, config.cure, _STEPS)
        if not forward:
            demands.require_whole_batches(config, self.stage)
        convolutions = "cpu" if devices[0].platform == "cpu" else "xla"
        self._teacher = None if forward else teacher.load(config, None, convolutions, devices[0])
        if self._teacher is not None:
            self.stage = stages.with_teacher(self.stage)
        self._model = build.model(config, self.stage, self._outputs, convolutions)
        side = config.data.image_size
        image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
        self.variables = jax.eval_shape(lambda x: self._model.init(jax.random.key(0), x), image)

    @functools.cached_property
    def state(self) -> steps.TrainState:
        """The shapes of the state."""
        return jax.eval_shape(self._first_state, self.variables)

    def _first_state(self, variables: Mapping) -> steps.TrainState:
        averaged = self.stage.trains if self.config.ema_decay else ()
        return steps.create_state(variables, self._optimiser, averaged, self.stage.cure)

    @functools.cached_property
    def _optimiser(self):
        config = self.config
        schedules = build.schedules(config, _STEPS, _STEPS)
        return build.optimiser(config, schedules, self.variables["params"], self.stage)

    @property
    def parts(self) -> int:
        """Parts of a device's batch that are computed one after the other."""
        return 1 if self.forward else self.config.accumulate

    def per_device(self, wanted: int | None) -> int:
        """Returns the images of a device.

        Args:
          wanted: Their number; None: the config's batch, divided by the devices.

        Raises:
          InputError: The batch cannot be divided.
        """
        if wanted is not None:
            if wanted % self.parts:
                raise InputError(
                    f"config.accumulate {self.parts} does not divide the {wanted} images of a device: choose another"
                    " --per-device"
                )
            return wanted
        name, devices = "eval_batch_size" if self.forward else "batch_size", len(self.devices)
        count, rest = divmod(self.config[name], devices)
        if rest or not count or count % self.parts:
            raise InputError(
                f"config.{name} {self.config[name]} cannot be divided over {devices} devices"
                f"{f' with {self.parts} parts each' * (self.parts > 1)}: choose another, or name the images of a device"
                " with --per-device"
            )
        return count

    def batch(self, size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the shapes of a batch."""
        side = self.config.data.image_size
        dtype = jnp.int32 if self.stage.target == "identity" else jnp.float32
        image = jax.ShapeDtypeStruct((size, side, side, 3), jnp.uint8)
        return {"image": image, "target": jax.ShapeDtypeStruct((size,), dtype)}

    def lower(self, per_device: int, form: str) -> tuple[jax.stages.Lowered, int]:
        """Lowers the step.

        Args:
          per_device: Images of a device.
          form: How JAX maps the step over the devices, of `parallel.FORMS`.

        Returns:
          The lowered step, and its floating-point operations on a device as it is written (`costs.flops`).
        """
        if self.forward:
            where = jax.sharding.SingleDeviceSharding(self.devices[0])
            shapes = (self.variables, self.batch(per_device)["image"])
            traced = jax.jit(build.plain_forward(self.config, self.stage, self._model)).trace(
                *jax.tree.map(functools.partial(_placed, where), shapes)
            )
            return traced.lower(), costs.flops(traced.jaxpr.jaxpr)
        cost = costs.StepCost(len(self.devices), self.devices[0].device_kind)
        par = parallel.Parallel(self.devices, form, self.stage.split)
        batch = self.batch(per_device * len(self.devices))
        held = () if self._teacher is None else (self._teacher.checkpoint.variables,)
        lowered = par.lower_train(cost.counted(self._train_step()), self.state, batch, held)
        return lowered, cost.flops // len(self.devices)

    def bytes_by_part(self, per_device: int) -> dict[str, int]:
        """Returns the bytes of what a device holds from step to step, and of its part of the batch."""
        batch = self.batch(per_device)
        variables = {"parameters": self.variables["params"], "statistics": self.variables.get("batch_stats", {})}
        parts = {**variables, "batch": batch["image"] if self.forward else batch}
        if not self.forward:
            parts["optimiser"] = self.state.opt_state
            if self._teacher is not None:
                parts["teacher"] = self._teacher.checkpoint.variables
            if self.config.ema_decay:
                parts["EMA"] = self.state.ema
            if isinstance(self.state, steps.CuredState):
                parts["cure"] = self.state.cure
        return {name: self._bytes(tree) for name, tree in parts.items()}

    def _bytes(self, tree: Mapping) -> int:
        def of(path: tuple, leaf: jax.ShapeDtypeStruct) -> int:
            parts = len(self.devices) if rows.is_split(path, self.stage.split) else 1
            return leaf.size * leaf.dtype.itemsize // parts

        return sum(jax.tree.leaves(jax.tree_util.tree_map_with_path(of, tree)))

    def _train_step(self):
        config = self.config
        constants = {**config.loss, "mae": _MAE, "num_classes": self._outputs}
        if self.stage.target == "age":
            constants |= method_losses.of_training(np.ones(self._outputs))
        return plan.train_step(config, self.stage, constants, self._model, self._optimiser, self._teacher)


def _placed(where, shape: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=where)
