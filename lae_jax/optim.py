"""Schedules, SGD and AdamW equal to torch's, weight decay without biases and norms, and the parts that train.

A schedule is a function of the step, counted from 0. A Python int gives a numpy value; a JAX array or a traced step
gives an array of the same shape. Values are float32, or float64 if JAX runs with 64 bits. Steps beyond the end keep the
last value.
"""

import functools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lae_jax.runtime.errors import InputError

_UNDECAYED = ("bias", "positions")
PARTS = ("backbone", "head")  # the two top-level keys of every model's parameters

Schedule = Callable[[int | jax.Array], jax.Array | np.ndarray]
Norm = Callable[[optax.Updates], jax.Array]
Factor = Callable[[tuple[str, ...]], float]  # of the path of a parameter, such as ('backbone', 'stem_conv', 'kernel')


def one_cycle(
    peak: float, total_steps: int, pct_start: float = 0.3, div_factor: float = 25.0, final_div_factor: float = 1e4
) -> Schedule:
    """Returns the learning rate of torch's OneCycleLR with cosine phases (Smith and Topin, reference 16).

    It starts at `peak / div_factor`, reaches `peak` at step `pct_start * total_steps - 1` and ends, at step
    `total_steps - 1`, at `peak / div_factor / final_div_factor`. As in torch, a run too short to rise (`pct_start *
    total_steps < 1`) starts on the way down, and a run of one step has only the last value. If `pct_start *
    total_steps` is exactly 1, where torch divides by zero, step 0 has the peak.

    Raises:
      InputError: A value is out of range.
    """
    _check("peak", peak, low=0)
    _check("div_factor", div_factor, above=0)
    _check("final_div_factor", final_div_factor, above=0)
    start = peak / div_factor
    return _up_and_down(start, peak, start / final_div_factor, total_steps, pct_start)


def one_cycle_momentum(
    total_steps: int, pct_start: float = 0.3, base_momentum: float = 0.85, max_momentum: float = 0.95
) -> Schedule:
    """Returns the momentum of torch's OneCycleLR: `max_momentum` -> `base_momentum` -> `max_momentum`.

    It is lowest where the learning rate is highest.

    Raises:
      InputError: A value is out of range.
    """
    _check("base_momentum", base_momentum, low=0, below=1)
    _check("max_momentum", max_momentum, low=0, below=1)
    return _up_and_down(max_momentum, base_momentum, max_momentum, total_steps, pct_start)


def warmup_cosine(
    peak: float, total_steps: int, warmup_steps: int, div_factor: float = 25.0, final_div_factor: float = 1e4
) -> Schedule:
    """Returns `optax.warmup_cosine_decay_schedule`: torch's LinearLR, then CosineAnnealingLR.

    It rises linearly from `peak / div_factor` to `peak`, which it reaches at step `warmup_steps`. From there it falls
    as a cosine towards `peak / div_factor / final_div_factor`, which step `total_steps` would have.

    Raises:
      InputError: A value is out of range.
    """
    _check("peak", peak, low=0)
    _check("div_factor", div_factor, above=0)
    _check("final_div_factor", final_div_factor, above=0)
    total, warmup = _whole("total_steps", total_steps, low=1), _whole("warmup_steps", warmup_steps, low=0)
    if warmup >= total:
        raise InputError(f"warmup_steps should be below the {total} steps of the run, not {warmup}")
    start, end = peak / div_factor, peak / div_factor / final_div_factor

    def schedule(step: int | jax.Array) -> jax.Array | np.ndarray:
        dtype, xp = jnp.result_type(float), _where_it_is(step)
        step = xp.clip(xp.asarray(step), 0, total - 1)
        up = step.astype(dtype) / max(warmup, 1)
        down = xp.sin(math.pi / 2 / (total - warmup) * (total - step).astype(dtype)) ** 2  # as in `_up_and_down`
        return xp.where(step < warmup, start + (peak - start) * up, end + (peak - end) * down).astype(dtype)

    return schedule


def multi_step(base: float, boundaries: Sequence[int], gamma: float = 0.1) -> Schedule:
    """Returns the learning rate of torch's MultiStepLR: `base`, multiplied by `gamma` from each boundary on.

    Args:
      base: Learning rate before the first boundary.
      boundaries: Steps, in order. A step that occurs twice counts twice.
      gamma: Factor.

    Raises:
      InputError: Boundaries are negative, not whole or not in order, or `base` or `gamma` is out of range.
    """
    _check("base", base, low=0)
    _check("gamma", gamma, above=0)
    steps = [_whole("a boundary", boundary, low=0) for boundary in boundaries]
    if steps != sorted(steps):
        raise InputError(f"boundaries should be in rising order, not {steps}")
    # A table, because powers of gamma would lose digits in float32.
    rates = [base * gamma**drops for drops in range(len(steps) + 1)]

    def schedule(step: int | jax.Array) -> jax.Array | np.ndarray:
        xp = _where_it_is(step)
        drops = (xp.asarray(steps, xp.int32) <= xp.asarray(step)[..., None]).sum(axis=-1)
        return xp.asarray(rates, jnp.result_type(float))[drops]

    return schedule


class MomentumState(NamedTuple):
    """State of SGD: number of steps taken, () int32, and momentum buffer, with the shapes of the parameters."""

    count: jax.Array
    trace: optax.Updates


def sgd(
    learning_rate: float | Schedule,
    momentum: float | Schedule = 0.9,
    weight_decay: float = 5e-4,
    nesterov: bool = True,
    clip_norm: float = 0.0,
    decay_all: bool = True,
    factor: Factor | None = None,
    norm: Norm = optax.tree.norm,
) -> optax.GradientTransformation:
    """Returns torch.optim.SGD.

    buffer = mu buffer + g; update = -rate (g + mu buffer), or -rate buffer without Nesterov.

    Args:
      learning_rate: A number or a schedule, read at the number of steps taken so far, as torch's OneCycleLR sets it for
        the next step.
      momentum: A number or a schedule, read in the same way.
      weight_decay: Coupled: it is added to g before the momentum.
      nesterov: Whether to use Nesterov momentum.
      clip_norm: If above 0, the gradients are first scaled to at most this global norm, as `clip_grad_norm_` before
        `step()` does.
      decay_all: False: biases and norms have no weight decay, see `decayed`.
      factor: Path of a parameter -> factor of its learning rate, as torch's groups of parameters have one each.
      norm: The global norm, of gradients of which each device has a part as well.

    Returns:
      The transformation. Its buffer and updates are float32 or wider for parameters of any dtype.

    Raises:
      InputError: A number is out of range.
      ValueError: An update with weight decay got no parameters.
    """
    if not callable(momentum):
        _check("momentum", momentum, low=0, below=1)
    rule = (_decay(weight_decay, decay_all), _momentum(momentum, nesterov))
    return _descent(rule, learning_rate, clip_norm, factor, norm)


def adamw(
    learning_rate: float | Schedule,
    beta1: float | Schedule = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    weight_decay: float = 0.01,
    clip_norm: float = 0.0,
    decay_all: bool = True,
    factor: Factor | None = None,
    norm: Norm = optax.tree.norm,
) -> optax.GradientTransformation:
    """Returns torch.optim.AdamW (Loshchilov and Hutter, arXiv:1711.05101).

    Args:
      learning_rate: As of `sgd`.
      beta1: Decay of the mean of gradients: a number or a schedule, as torch's OneCycleLR cycles it.
      beta2: Decay of the mean of their squares.
      epsilon: Added to the root of that mean.
      weight_decay: Decoupled: an update subtracts learning rate x weight decay x parameter.
      clip_norm: As of `sgd`.
      decay_all: As of `sgd`.
      factor: As of `sgd`; it multiplies the weight decay of a step, too.
      norm: As of `sgd`.

    Raises:
      InputError: A number is out of range.
      ValueError: An update with weight decay got no parameters.
    """
    if not callable(beta1):
        _check("beta1", beta1, low=0, below=1)
    _check("beta2", beta2, low=0, below=1)
    _check("epsilon", epsilon, above=0)
    adam = functools.partial(optax.scale_by_adam, b2=beta2, eps=epsilon)
    if callable(beta1):
        adam = optax.inject_hyperparams(optax.scale_by_adam, static_args=("b2", "eps", "eps_root"))
        adam = functools.partial(adam, b2=beta2, eps=epsilon)
    rule = (adam(b1=beta1), _decay(weight_decay, decay_all))
    tx = _descent(rule, learning_rate, clip_norm, factor, norm)
    return optax.GradientTransformation(functools.partial(_alike, tx.init), tx.update)


def decayed(params: optax.Params) -> optax.Params:
    """Returns which parameters are neither a bias, nor of a norm, nor a token of ViT, nor its position embeddings.

    They have two axes or more, and other names than _UNDECAYED.

    Args:
      params: A tree of arrays or shapes.

    Returns:
      The same tree of bools.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf.ndim > 1 and _names(path)[-1] not in _UNDECAYED, params
    )


def _descent(
    rule: Sequence[optax.GradientTransformation],
    learning_rate: float | Schedule,
    clip_norm: float,
    factor: Factor | None,
    norm: Norm,
) -> optax.GradientTransformation:
    """Clips, follows the rule, and multiplies by the learning rate."""
    if not callable(learning_rate):
        _check("learning_rate", learning_rate, low=0)
    _check("clip_norm", clip_norm, low=0)
    scaled = [] if factor is None else [optax.stateless(lambda updates, _: _scaled(updates, factor))]
    return optax.chain(
        optax.stateless(lambda grads, _: jax.tree.map(_widened, grads)),
        optax.stateless(lambda grads, _: _clipped(grads, clip_norm, norm)) if clip_norm else optax.identity(),
        *rule,
        optax.scale_by_learning_rate(learning_rate),
        *scaled,
    )


def _alike(init: Callable, params: optax.Params) -> optax.OptState:
    """Returns init(params), where each leaf of the state has one value, as numpy views of that value.

    It compiles nothing for the shapes of the parameters, and needs no memory for leaves that are split over devices.
    """
    shapes = jax.eval_shape(init, jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), params))
    with jax.ensure_compile_time_eval():  # values, also where `params` are traced
        values = init(jax.tree.map(lambda p: np.zeros((), p.dtype), params))
    return jax.tree.map(lambda value, shape: np.broadcast_to(np.asarray(value), shape.shape), values, shapes)


def _decay(weight_decay: float, decay_all: bool) -> optax.GradientTransformation:
    _check("weight_decay", weight_decay, low=0)
    if not weight_decay:
        return optax.identity()
    return optax.add_decayed_weights(weight_decay, None if decay_all else decayed)


def _scaled(updates: optax.Updates, factor: Factor) -> optax.Updates:
    return jax.tree_util.tree_map_with_path(lambda path, leaf: leaf * factor(_names(path)), updates)


def _names(path: tuple) -> tuple[str, ...]:
    return tuple(key.key for key in path)


def _widened(leaf: jax.Array) -> jax.Array:
    return leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))


def _clipped(grads: optax.Updates, limit: float, norm: Callable) -> optax.Updates:
    """Clips as torch does, with an epsilon that `optax.clip_by_global_norm` lacks."""
    factor = jnp.minimum(1.0, limit / (norm(grads) + 1e-6))
    return jax.tree.map(lambda g: factor.astype(g.dtype) * g, grads)


def _momentum(momentum: float | Schedule, nesterov: bool) -> optax.GradientTransformation:
    """Does what `optax.trace` does, but takes a schedule and keeps its buffer in float32 or wider."""

    def init(params: optax.Params) -> MomentumState:
        # numpy, because jax.numpy compiles a program for each shape outside of a traced function.
        trace = jax.tree.map(lambda p: np.zeros(p.shape, jnp.promote_types(p.dtype, jnp.float32)), params)
        return MomentumState(count=np.zeros((), np.int32), trace=trace)

    def update(grads: optax.Updates, state: MomentumState, params: optax.Params | None = None):
        mu = momentum(state.count) if callable(momentum) else momentum

        def ahead(g, buffer):  # in the buffer's dtype: a float64 schedule must not widen a float32 state
            return jnp.asarray(mu, buffer.dtype) * buffer + g

        trace = jax.tree.map(ahead, grads, state.trace)
        return jax.tree.map(ahead, grads, trace) if nesterov else trace, MomentumState(state.count + 1, trace)

    return optax.GradientTransformation(init, update)


def trainable(
    tx: optax.GradientTransformation, params: optax.Params, trains: tuple[str, ...]
) -> optax.GradientTransformation:
    """Restricts a transformation to some parts of the parameters.

    All other parts stay as they are: they have no state and no weight decay, and do not count in a norm.

    Args:
      tx: The transformation.
      params: Arrays or shapes with the top-level keys 'backbone' and 'head', or one of them; gradients have the same
        structure.
      trains: Names of the parts that train.

    Raises:
      ValueError: `params` has another key, or `trains` is empty or names a part that `params` lacks.
    """
    if isinstance(trains, str) or not trains:
        raise ValueError(f"trains names the parts that train, such as ('backbone', 'head'), not {trains!r}")
    if not isinstance(params, Mapping) or not set(params) <= set(PARTS):
        found = sorted(params) if isinstance(params, Mapping) else type(params).__name__
        raise ValueError(f"the parameters should have the top-level keys {' and '.join(PARTS)}, not {found}")
    if missing := [name for name in trains if name not in params]:
        raise ValueError(f"trains names {missing}, but the parameters have {sorted(params)}")
    labels = {
        key: jax.tree.map(lambda _, label="train" if key in trains else "frozen": label, part)
        for key, part in params.items()
    }
    return optax.multi_transform({"train": tx, "frozen": optax.set_to_zero()}, labels)


def _up_and_down(start: float, middle: float, end: float, total_steps: int, pct_start: float) -> Schedule:
    """The two cosine phases of torch, start -> middle -> end; the turn may lie between two steps."""
    last = _whole("total_steps", total_steps, low=1) - 1
    _check("pct_start", pct_start, low=0, high=1)
    turn = pct_start * total_steps - 1

    def schedule(step: int | jax.Array) -> jax.Array | np.ndarray:
        dtype, xp = jnp.result_type(float), _where_it_is(step)
        step = xp.clip(xp.asarray(step), 0, last)
        # (1 + cos(pi p)) / 2 is equal, but cancels near the end: in float32 it differs from torch by up to 3e-3.
        up = xp.sin(math.pi / 2 / turn * step.astype(dtype)) ** 2 if turn > 0 else 1.0
        down = xp.sin(math.pi / 2 / (last - turn) * (last - step).astype(dtype)) ** 2 if turn < last else 1.0
        return xp.where(step <= turn, start + (middle - start) * up, end + (middle - end) * down).astype(dtype)

    return schedule


def _where_it_is(step: int | jax.Array):
    """Numpy for a number, which the loop logs: a device would compute it only after its queued steps."""
    return jnp if isinstance(step, jax.Array) else np


def _whole(name: str, value: int, low: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise InputError(f"{name} should be a whole number, not {value!r}") from None
    if isinstance(value, bool) or not low <= number < 2**31:
        raise InputError(f"{name} should be a whole number of {low} or more (and fit 32 bits), not {value!r}")
    return number


def _check(name, value, *, low=-math.inf, above=-math.inf, high=math.inf, below=math.inf) -> None:
    if math.isfinite(value) and low <= value <= high and above < value < below:
        return
    limits = {"at least": low, "more than": above, "at most": high, "less than": below}
    wanted = " and ".join(f"{words} {limit}" for words, limit in limits.items() if math.isfinite(limit))
    raise InputError(f"{name} should be a number of {wanted}, not {value!r}")
