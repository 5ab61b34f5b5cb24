"""The training step: a pure function that `parallel` maps over devices."""

import dataclasses
from collections.abc import Callable, Collection, Mapping

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from lae_jax.runs.forward import normalise
from lae_jax.runtime.parallel import AXIS, rows
from lae_jax.stages import Stage, cures, mixing


class TrainState(flax.struct.PyTreeNode):
    """All that passes from step to step; `params` and `batch_stats` have the top keys backbone and head."""

    step: jax.Array  # () int32: batches so far, with those of skipped steps; index of the next batch
    skipped_steps: jax.Array  # () int32: skipped steps in a row
    params: dict
    batch_stats: dict
    opt_state: optax.OptState


class AveragedState(TrainState):
    """A state with an EMA, {'params', 'batch_stats'} of the parts that train; other states have no such field."""

    ema: dict


class CuredState(TrainState):
    """A state with what the cures of stage 2 remember, the same on every device."""

    cure: dict


class AveragedCuredState(AveragedState, CuredState):
    """A state with both."""


def create_state(
    variables: Mapping,
    tx: optax.GradientTransformation,
    averaged: tuple[str, ...] = (),
    cure: cures.Cures | None = None,
) -> TrainState:
    """Returns the state of step 0 with a model's variables, whose numpy arrays stay numpy arrays.

    Args:
      variables: The model's variables.
      tx: The optimiser.
      averaged: Names of the parts that have an EMA, which starts at `variables`.
      cure: The cures, if there are any. Only those that remember something have a place in the state.
    """
    zero = np.zeros((), np.int32)
    params = dict(variables["params"])
    state = TrainState(zero, zero, params, dict(variables.get("batch_stats", {})), tx.init(params))
    further = {"ema": _of_parts(state, averaged)} if averaged else {}
    if cure is not None and (memory := cure.first(params["head"])):
        further["cure"] = memory
    return _STATES[frozenset(further)](**vars(state), **further)


_STATES = {
    frozenset(): TrainState,
    frozenset({"ema"}): AveragedState,
    frozenset({"cure"}): CuredState,
    frozenset({"ema", "cure"}): AveragedCuredState,
}


def _of_parts(state: TrainState, parts: Collection[str]) -> dict:
    """Returns the variables of some parts of the model."""
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    return {kind: {name: tree[name] for name in parts if name in tree} for kind, tree in variables.items()}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Values from the config that the step needs.

    Attributes:
      seed: Seed of dropout and stochastic depth, whose masks are functions of (seed, step, module, place in the batch).
      dtype: Dtype of the model's computation.
      mean: Mean of images in [0, 1].
      std: Standard deviation of images in [0, 1].
      accumulate: Number of parts of a shard that are computed one after the other, and whose gradients are averaged.
        BatchNorm then normalises over a part (of all devices).
      ema_decay: Decay of the EMA of a state that has one.
    """

    seed: int
    dtype: jnp.dtype
    mean: tuple[float, ...]
    std: tuple[float, ...]
    accumulate: int = 1
    ema_decay: float = 0.0


def train_step(
    state: TrainState,
    batch: Mapping[str, jax.Array],
    teacher_variables: Mapping | None = None,
    *,
    stage: Stage,
    constants: Mapping,
    model: nn.Module,
    tx: optax.GradientTransformation,
    settings: Settings,
    teacher: Callable[[Mapping, jax.Array], jax.Array] | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step of one device on its shard of the global batch; runs under the axis `parallel.AXIS`.

    Args:
      state: The state, the same on every device but for the leaves that are split.
      batch: image (b, H, W, 3) uint8, target (b,), or (b, 2) of ranges; label_sigma (b,), years, where each label has
        its own, in place of the constant.
      teacher_variables: Variables of the teacher, the same on every device.
      stage: Gives `loss`, `mix`, `cure` and what it `trains`; the other parameters do not change. Of the leaves that it
        `split`s, a device has a part of the rows, and those that it does not `choose` do not change.
      constants: The loss constants.
      model: The model.
      tx: The optimiser.
      settings: Values from the config.
      teacher: (its variables, images of the batch) -> its logits (b, K), which the loss takes too; None: no teacher.

    Returns:
      The new state and {'loss': (sum, weight), 'grad_norm', 'skipped', 'skipped_steps'}, the same on every device.
      If the loss or the gradients are not finite, the step is skipped: parameters, statistics, optimiser and EMA do
      not change, and the skipped step is counted.
    """
    key = jax.random.fold_in(jax.random.key(settings.seed), state.step)
    before, places = state, None
    if stage.choose is not None:
        places = stage.choose(batch["target"], settings.seed, state.step)
        constants = {**constants, "places": places}
        state = rows.apply(lambda leaf: leaf[places], stage.split, before)
    fixed = {name: value for name, value in state.params.items() if name not in stage.trains}
    trained = {name: state.params[name] for name in stage.trains}
    cure, memory = stage.cure, {}
    if isinstance(state, CuredState):
        memory = cure.begin(state.cure, state.step)
        trained["cure"] = memory.get("learned", {})

    def part_loss(trained, batch_stats, part, positions):
        mixed = _mixing(part["target"], stage.mix, mixing.key_of(settings.seed, state.step))
        target, on_features = mixed(part["target"]), mixed
        if cure is not None:
            on_features = cure.on_features(memory, target, state.step)
        learned = {name: trained[name] for name in stage.trains}
        (outputs, features), updated = model.apply(
            {"params": {**fixed, **learned}, "batch_stats": batch_stats},
            normalise(part["image"], settings.mean, settings.std, settings.dtype),
            train=True,
            rows=positions,
            train_backbone="backbone" in stage.trains,
            on_features=on_features,
            with_features=True,
            rngs={"dropout": key},
            mutable=["batch_stats"],
        )
        own = {name: mixed(part[name]) for name in ("label_sigma",) if name in part}
        if teacher is not None:
            own["teacher_logits"] = teacher(teacher_variables, part["image"])
        given = {**constants, **own}
        if cure is None:
            losses = stage.loss(outputs, target, given)
        else:
            drawn = mixing.key_of(settings.seed, state.step, "cure")
            losses = cure.losses(stage.loss, outputs, features, target, given, trained.get("cure", {}), drawn)
        kept = features if memory else ()
        return losses.mean(), (losses.sum(), {**batch_stats, **updated.get("batch_stats", {})}, kept)

    count = len(batch["target"])
    positions = jax.lax.axis_index(AXIS) * count + jnp.arange(count)
    examples = (dict(batch), positions)
    grads, batch_stats, loss_sum, features = _gradients(
        part_loss, trained, state.batch_stats, examples, settings.accumulate
    )
    grads = rows.mean(grads, stage.split)
    # Without synchronised BatchNorm each device has its own statistics. Those of frozen parts do not change.
    moved = {name: value for name, value in batch_stats.items() if name in stage.trains}
    batch_stats = {**state.batch_stats, **jax.lax.pmean(moved, AXIS)}
    loss_sum, weight = jax.lax.psum((loss_sum, jnp.asarray(count, loss_sum.dtype)), AXIS)
    grad_norm = rows.norm(grads, stage.split)
    good = jnp.isfinite(loss_sum) & jnp.isfinite(grad_norm)

    of_cure = grads.pop("cure", {})
    new_state = _update(state, grads, batch_stats, tx, good, settings.ema_decay)
    if memory:
        after = cure.end(memory, state.step, of_cure, features, batch["target"])
        new_state = new_state.replace(cure=jax.tree.map(lambda new, old: jnp.where(good, new, old), after, memory))
    if places is not None:
        new_state = rows.apply(lambda old, new: old.at[places].set(new), stage.split, before, new_state)
    skipped = {"skipped": ~good, "skipped_steps": new_state.skipped_steps}
    return new_state, {"loss": (loss_sum, weight), "grad_norm": grad_norm, **skipped}


def _mixing(ages: jax.Array, mix: Callable | None, key: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """Returns the function that mixes features and labels of one device with those of partners in the global batch."""
    if mix is None:
        return lambda values: values
    partner, share = mix(jax.lax.all_gather(ages, AXIS, tiled=True), key)
    here = jax.lax.axis_index(AXIS) * len(ages) + jnp.arange(len(ages))
    partner, share = partner[here], share[here]

    def mixed(values):
        return mixing.mixed(values, jax.lax.all_gather(values, AXIS, tiled=True)[partner], share)

    return mixed


def _gradients(part_loss: Callable, trained: dict, batch_stats: dict, examples: tuple, accumulate: int):
    """Returns the gradients of the mean loss of one device's examples, and all else that `part_loss` returns of them.

    Args:
      part_loss: (trained, batch_stats, *examples) -> mean, (sum, batch_stats, kept), kept in arrays (b, ...).
      trained: Parameters that train.
      batch_stats: Statistics before the step.
      examples: (batch, positions).
      accumulate: Number of parts.
    """
    gradient = jax.value_and_grad(part_loss, has_aux=True)
    if accumulate == 1:
        (_, (loss_sum, batch_stats, kept)), grads = gradient(trained, batch_stats, *examples)
        return grads, batch_stats, loss_sum, kept

    def add_part(carry, part):
        batch_stats, grads, total = carry
        (_, (loss_sum, batch_stats, kept)), part_grads = gradient(trained, batch_stats, *part)
        return (batch_stats, jax.tree.map(jnp.add, grads, part_grads), total + loss_sum), kept

    parts = jax.tree.map(lambda x: x.reshape(accumulate, -1, *x.shape[1:]), examples)
    # Losses have the dtype of the parameters.
    no_loss = jnp.zeros((), jnp.result_type(*jax.tree.leaves(trained)))
    start = (batch_stats, jax.tree.map(jnp.zeros_like, trained), no_loss)
    (batch_stats, grads, loss_sum), kept = jax.lax.scan(add_part, start, parts)
    kept = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), kept)
    return jax.tree.map(lambda g: g / accumulate, grads), batch_stats, loss_sum, kept


def _update(
    state: TrainState,
    grads: dict,
    batch_stats: dict,
    tx: optax.GradientTransformation,
    good: jax.Array,
    ema_decay: float,
) -> TrainState:
    """Returns the next state: that of the step if it was good, else the old one with one more skipped step."""
    # The top keys of `grads` are the parts that train.
    trained = {name: state.params[name] for name in grads}
    # The partition needs the whole tree; set_to_zero ignores the zeros of frozen parts.
    whole = {**jax.tree.map(jnp.zeros_like, state.params), **grads}
    updates, opt_state = tx.update(whole, state.opt_state, state.params)
    new_trained = optax.apply_updates(trained, {name: updates[name] for name in trained})

    def keep(new, old):
        return jax.tree.map(lambda n, o: jnp.where(good, n, o), new, old)

    new_state = state.replace(
        step=state.step + 1,
        skipped_steps=jnp.where(good, 0, state.skipped_steps + 1),
        params={**state.params, **keep(new_trained, trained)},
        batch_stats=keep(batch_stats, state.batch_stats),
        opt_state=keep(opt_state, state.opt_state),
    )
    if not isinstance(state, AveragedState):
        return new_state
    # torch's lerp. In float32, decay x old + (1 - decay) x new would move weights that do not change.
    moved = jax.tree.map(lambda e, x: e + (1 - ema_decay) * (x - e), state.ema, _of_parts(new_state, grads))
    return new_state.replace(ema=keep(moved, state.ema))
