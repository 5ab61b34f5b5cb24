"""The training step: a pure function, to be mapped over devices by `parallel`."""

import dataclasses
from collections.abc import Callable, Mapping

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from lae_jax.runs.forward import normalise
from lae_jax.runtime.parallel import AXIS
from lae_jax.stages import Stage, mixing


class TrainState(flax.struct.PyTreeNode):
    """All that a run carries from step to step. `params` and `batch_stats` have the top keys backbone and head."""

    step: jax.Array  # () int32: batches seen, those of skipped steps too; names the next batch
    skipped_steps: jax.Array  # () int32: skipped steps in a row
    params: dict
    batch_stats: dict
    opt_state: optax.OptState


def create_state(variables: Mapping, tx: optax.GradientTransformation) -> TrainState:
    """The state of step 0 of a model's variables; numpy arrays where they are."""
    zero = np.zeros((), np.int32)
    params = dict(variables["params"])
    return TrainState(zero, zero, params, dict(variables.get("batch_stats", {})), tx.init(params))


@dataclasses.dataclass(frozen=True)
class Settings:
    """Numbers of the step that a config sets.

    Attributes:
      seed: Seed of dropout and stochastic depth, whose masks are functions of (seed, step, module, place in the batch).
      dtype: Of the model.
      mean, std: Of images in [0, 1].
      accumulate: A shard is taken in so many parts, one after the other, and their gradients are averaged. BatchNorm
        then normalises over a part (of all devices).
    """

    seed: int
    dtype: jnp.dtype
    mean: tuple[float, ...]
    std: tuple[float, ...]
    accumulate: int = 1


def train_step(
    state: TrainState,
    batch: Mapping[str, jax.Array],
    *,
    stage: Stage,
    constants: Mapping,
    model: nn.Module,
    tx: optax.GradientTransformation,
    settings: Settings,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step of one device on its shard of the global batch; runs under the axis `parallel.AXIS`.

    Args:
      state: The state, the same on every device.
      batch: image (b, H, W, 3) uint8, target (b,).
      stage: Its `loss`, what it `trains` (the other parameters are returned as they came), and its `mix`.
      constants: What the loss is given beside outputs and targets.
      model: The model.
      tx: The optimiser.
      settings: Numbers from the config.

    Returns:
      The new state and {'loss': (sum, weight), 'grad_norm', 'skipped', 'skipped_steps'}, the same on every device.
      After a loss or gradients that are not finite the step is skipped: parameters, statistics and optimiser are as
      they were, and it is counted.
    """
    key = jax.random.fold_in(jax.random.key(settings.seed), state.step)
    fixed = {name: value for name, value in state.params.items() if name not in stage.trains}
    trained = {name: state.params[name] for name in stage.trains}

    def part_loss(trained, batch_stats, part, rows):
        target, on_features = _mixed(part["target"], stage.mix, mixing.key_of(settings.seed, state.step))
        outputs, updated = model.apply(
            {"params": {**fixed, **trained}, "batch_stats": batch_stats},
            normalise(part["image"], settings.mean, settings.std, settings.dtype),
            train=True,
            rows=rows,
            train_backbone="backbone" in stage.trains,
            on_features=on_features,
            rngs={"dropout": key},
            mutable=["batch_stats"],
        )
        losses = stage.loss(outputs, target, constants)
        return losses.mean(), (losses.sum(), {**batch_stats, **updated.get("batch_stats", {})})

    count = len(batch["target"])
    rows = jax.lax.axis_index(AXIS) * count + jnp.arange(count)
    examples = (dict(batch), rows)
    grads, batch_stats, loss_sum = _gradients(part_loss, trained, state.batch_stats, examples, settings.accumulate)
    grads = jax.lax.pmean(grads, AXIS)
    # Without synchronised BatchNorm each device has its own statistics. What is frozen is passed on untouched.
    moved = {name: value for name, value in batch_stats.items() if name in stage.trains}
    batch_stats = {**state.batch_stats, **jax.lax.pmean(moved, AXIS)}
    loss_sum, weight = jax.lax.psum((loss_sum, jnp.asarray(count, loss_sum.dtype)), AXIS)
    grad_norm = optax.tree.norm(grads)
    good = jnp.isfinite(loss_sum) & jnp.isfinite(grad_norm)

    new_state = _update(state, grads, batch_stats, tx, good)
    skipped = {"skipped": ~good, "skipped_steps": new_state.skipped_steps}
    return new_state, {"loss": (loss_sum, weight), "grad_norm": grad_norm, **skipped}


def _mixed(ages: jax.Array, mix: Callable | None, key: jax.Array):
    """Targets and a function of the features, of one device: mixtures with partners of the global batch."""
    if mix is None:
        return ages, lambda features: features
    partner, share = mix(jax.lax.all_gather(ages, AXIS, tiled=True), key)
    here = jax.lax.axis_index(AXIS) * len(ages) + jnp.arange(len(ages))
    partner, share = partner[here], share[here]

    def mixed(values):
        return mixing.mixed(values, jax.lax.all_gather(values, AXIS, tiled=True)[partner], share)

    return mixed(ages), mixed


def _gradients(part_loss: Callable, trained: dict, batch_stats: dict, examples: tuple, accumulate: int):
    """Gradients of the mean loss, the statistics after it, and the sum of the losses, of one device's examples.

    Args: part_loss: (trained, batch_stats, *examples) -> mean, (sum, batch_stats); examples: (batch, rows).
    """
    gradient = jax.value_and_grad(part_loss, has_aux=True)
    if accumulate == 1:
        (_, (loss_sum, batch_stats)), grads = gradient(trained, batch_stats, *examples)
        return grads, batch_stats, loss_sum

    def add_part(carry, part):
        batch_stats, grads, total = carry
        (_, (loss_sum, batch_stats)), part_grads = gradient(trained, batch_stats, *part)
        return (batch_stats, jax.tree.map(jnp.add, grads, part_grads), total + loss_sum), None

    parts = jax.tree.map(lambda x: x.reshape(accumulate, -1, *x.shape[1:]), examples)
    # Losses are as wide as parameters.
    no_loss = jnp.zeros((), jnp.result_type(*jax.tree.leaves(trained)))
    start = (batch_stats, jax.tree.map(jnp.zeros_like, trained), no_loss)
    (batch_stats, grads, loss_sum), _ = jax.lax.scan(add_part, start, parts)
    return jax.tree.map(lambda g: g / accumulate, grads), batch_stats, loss_sum


def _update(
    state: TrainState, grads: dict, batch_stats: dict, tx: optax.GradientTransformation, good: jax.Array
) -> TrainState:
    """The next state: of the step if it was good, else the old one with a skipped step more.

    Args: grads: of the parts that train, each a top key of the parameters.
    """
    trained = {name: state.params[name] for name in grads}
    # The partition wants the whole tree; set_to_zero ignores the zeros of what is frozen.
    whole = {**jax.tree.map(jnp.zeros_like, state.params), **grads}
    updates, opt_state = tx.update(whole, state.opt_state, state.params)
    new_trained = optax.apply_updates(trained, {name: updates[name] for name in trained})

    def keep(new, old):
        return jax.tree.map(lambda n, o: jnp.where(good, n, o), new, old)

    return TrainState(
        step=state.step + 1,
        skipped_steps=jnp.where(good, 0, state.skipped_steps + 1),
        params={**state.params, **keep(new_trained, trained)},
        batch_stats=keep(batch_stats, state.batch_stats),
        opt_state=keep(opt_state, state.opt_state),
    )
