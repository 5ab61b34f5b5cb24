"""The training and the forward step: pure functions, to be mapped over devices by `parallel`."""

from collections.abc import Callable, Mapping, Sequence

import flax.struct
import jax
import jax.numpy as jnp
import optax

from lae_jax.parallel import AXIS


class TrainState(flax.struct.PyTreeNode):
    """All that a run carries from step to step. `params` and `batch_stats` have the top keys backbone and head."""

    step: jax.Array  # () int32: batches seen, those of bad steps too; names the next batch
    bad_steps: jax.Array  # () int32: bad steps in a row
    params: dict
    batch_stats: dict
    opt_state: optax.OptState


def create_state(variables: Mapping, tx: optax.GradientTransformation) -> TrainState:
    """The state of step 0 of a model's variables."""
    zero = jnp.zeros((), jnp.int32)
    params = dict(variables["params"])
    return TrainState(zero, zero, params, dict(variables.get("batch_stats", {})), tx.init(params))


def normalise(images: jax.Array, mean: Sequence[float], std: Sequence[float], dtype) -> jax.Array:
    """uint8 (B, H, W, 3) -> in [0, 1], minus mean, over std, in the model's dtype."""
    wide = jnp.promote_types(dtype, jnp.float32)
    images = images.astype(wide) / 255
    return ((images - jnp.asarray(mean, wide)) / jnp.asarray(std, wide)).astype(dtype)


def train_step(
    state: TrainState,
    batch: Mapping[str, jax.Array],
    *,
    model,
    loss: Callable,
    handed: Mapping,
    tx: optax.GradientTransformation,
    trains: tuple[str, ...],
    seed: int,
    dtype,
    mean: Sequence[float],
    std: Sequence[float],
    accumulate: int = 1,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step of one device on its shard of the global batch; runs under the axis `parallel.AXIS`.

    Args:
      batch: image (b, H, W, 3) uint8, target (b,).
      loss: (outputs, target, handed) -> (b,).
      trains: the top keys of the parameters that are differentiated and updated; the others are returned as they came.
      seed: of dropout and stochastic depth, whose masks are functions of (seed, step, module, place in the batch).
      accumulate: the shard is taken in so many parts, one after the other, and their gradients are averaged; BatchNorm
        then normalises over a part (of all devices).

    Returns: the new state and {'loss': (sum, weight), 'grad_norm', 'bad', 'bad_steps'}, the same on every device. After
    a loss or gradients that are not finite, parameters, statistics and optimiser are as they were, and it is counted.
    """
    count = len(batch["target"])
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    fixed = {name: value for name, value in state.params.items() if name not in trains}
    first_row = jax.lax.axis_index(AXIS) * count

    def mean_loss(trained, batch_stats, part, part_rows):
        outputs, updated = model.apply(
            {"params": {**fixed, **trained}, "batch_stats": batch_stats},
            normalise(part["image"], mean, std, dtype),
            train=True,
            rows=part_rows,
            train_backbone="backbone" in trains,
            rngs={"dropout": key},
            mutable=["batch_stats"],
        )
        losses = loss(outputs, part["target"], handed)
        return losses.mean(), (losses.sum(), {**batch_stats, **updated.get("batch_stats", {})})

    def add_part(carry, part):
        batch_stats, grads, total = carry
        (_, (loss_sum, batch_stats)), part_grads = jax.value_and_grad(mean_loss, has_aux=True)(
            trained, batch_stats, *part
        )
        return (batch_stats, jax.tree.map(jnp.add, grads, part_grads), total + loss_sum), None

    trained = {name: state.params[name] for name in trains}
    rows = first_row + jnp.arange(count)
    if accumulate == 1:
        (_, (loss_sum, batch_stats)), grads = jax.value_and_grad(mean_loss, has_aux=True)(
            trained, state.batch_stats, batch, rows
        )
    else:
        parts = jax.tree.map(lambda x: x.reshape(accumulate, -1, *x.shape[1:]), (dict(batch), rows))
        wide = jnp.promote_types(dtype, jnp.float32)
        start = (state.batch_stats, jax.tree.map(jnp.zeros_like, trained), jnp.zeros((), wide))
        (batch_stats, grads, loss_sum), _ = jax.lax.scan(add_part, start, parts)
        grads = jax.tree.map(lambda g: g / accumulate, grads)
    grads = jax.lax.pmean(grads, AXIS)
    # Without synchronised BatchNorm each device has its own statistics. What is frozen is passed on untouched.
    moved = {name: value for name, value in batch_stats.items() if name in trains}
    batch_stats = {**state.batch_stats, **jax.lax.pmean(moved, AXIS)}
    loss_sum, weight = jax.lax.psum((loss_sum, jnp.asarray(count, loss_sum.dtype)), AXIS)
    grad_norm = optax.tree.norm(grads)

    # The partition wants the whole tree; set_to_zero ignores the zeros of what is frozen.
    whole = {**jax.tree.map(jnp.zeros_like, fixed), **grads}
    updates, opt_state = tx.update(whole, state.opt_state, state.params)
    good = jnp.isfinite(loss_sum) & jnp.isfinite(grad_norm)

    def keep(new, old):
        return jax.tree.map(lambda n, o: jnp.where(good, n, o), new, old)

    new_trained = optax.apply_updates(trained, {name: updates[name] for name in trains})
    bad_steps = jnp.where(good, 0, state.bad_steps + 1)
    new_state = TrainState(
        step=state.step + 1,
        bad_steps=bad_steps,
        params={**fixed, **keep(new_trained, trained)},
        batch_stats=keep(batch_stats, state.batch_stats),
        opt_state=keep(opt_state, state.opt_state),
    )
    metrics = {"loss": (loss_sum, weight), "grad_norm": grad_norm, "bad": ~good, "bad_steps": bad_steps}
    return new_state, metrics


def forward_step(
    variables: Mapping, images: jax.Array, *, model, output: Callable, dtype, mean, std, flip: bool
) -> jax.Array:
    """uint8 (B, H, W, 3) -> output(model's outputs), (B, ...), in inference mode.

    Args: flip: average with the outputs of the mirror images.
    """
    images = normalise(images, mean, std, dtype)
    outputs = output(model.apply(variables, images, train=False))
    if flip:
        outputs = (outputs + output(model.apply(variables, images[:, :, ::-1], train=False))) / 2
    return outputs
