"""Heads trained on cached features: seeds and settings side by side in one compiled loop over the steps.

A step is `steps.train_step` without a backbone: the same loss, optimiser, order of the examples and dropout masks, so
that on features of unaugmented images the head is that of a real stage 3, up to rounding.

F = features, K = 101 ages, P = passes, N = training images, S = seeds, M = settings and rates, T = steps, B = batch.
"""

import dataclasses
import functools
import zlib
from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from lae_jax import losses, metrics, models, optim
from lae_jax.data import sampling
from lae_jax.models import initial_values
from lae_jax.models.layers import Compute
from lae_jax.runs import build
from lae_jax.stages import method_losses, mixing
from lae_jax.stages.methods import HIDDEN, Method


class _Cached(nn.Module):
    """Stands for a backbone whose features are its input."""

    def __call__(self, features, train, rows, train_backbone):
        return features


@dataclasses.dataclass(frozen=True, eq=False)
class Bench:
    """What the heads of one run are trained on.

    features: (P, N, F); ages: (N,) years; own: stage 2's head; mae: equation 5, years; config: of a stage 3, for batch
    size, epochs and optimiser; dropout: of the head.
    """

    features: np.ndarray
    ages: np.ndarray
    own: Mapping
    mae: float
    config: ConfigDict
    dropout: float

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.ages) // self.config.batch_size)

    @property
    def total_steps(self) -> int:
        return max(1, round(self.config.epochs * self.steps_per_epoch))

    @functools.cached_property
    def classes(self) -> np.ndarray:
        return metrics.age_class(self.ages)

    @functools.cached_property
    def constants(self) -> dict:
        """What the losses are given beside logits and ages."""
        return {
            "mae": self.mae,
            "er_weight": self.config.loss.er_weight,
            **method_losses.of_training(self.classes, build.NUM_AGES),
        }

    @functools.cached_property
    def _statistics(self) -> dict[str, np.ndarray]:
        every = np.asarray(self.features)
        return method_losses.smooth_statistics(every.reshape(-1, every.shape[-1]), np.tile(self.classes, len(every)))

    @functools.cached_property
    def _module(self) -> models.Model:
        # Named as the real model is: a mask is a function of the module's path.
        return models.Model(_Cached(), models.AgeHead(Compute(), build.NUM_AGES, self.dropout))

    def logits(self, head: Mapping, features: jax.Array) -> jax.Array:
        """(B, F) -> (B, K), in inference mode."""
        return self._module.apply({"params": {"head": {"fc": head["fc"]}}}, _hidden(head, features))

    @functools.cached_property
    def _orders(self) -> dict[tuple, np.ndarray]:
        return {}

    def orders(self, order: str, power: float, seeds: tuple[int, ...]) -> np.ndarray:
        """Positions of the examples, (S, T, B) int32: the very ones of a stage 3 with these seeds."""
        if (order, power, seeds) not in self._orders:
            self._orders[order, power, seeds] = self._draw_orders(order, power, seeds)
        return self._orders[order, power, seeds]

    def _draw_orders(self, order: str, power: float, seeds: tuple[int, ...]) -> np.ndarray:
        count, size = len(self.ages), self.config.batch_size
        result = np.empty((len(seeds), self.total_steps, size), np.int32)
        for number, seed in enumerate(seeds):
            if order == "shuffled":
                draw = sampling.shuffled(count, size, seed)
            else:
                draw = sampling.class_balanced(self.classes, size, seed, power)
            for step in range(self.total_steps):
                result[number, step] = draw(step).numpy()
        return result

    def train(
        self, method: Method, settings: Sequence[float], rates: Sequence[float], seeds: Sequence[int], steps: int = 0
    ) -> tuple[dict, np.ndarray]:
        """Heads, a tree of (M, S, ...), and skipped steps (M, S), for each pair of setting and peak rate and each seed.

        Args: rates: peaks of the schedule, per step; steps: the first so many alone (0: all).
        A step whose loss or gradients are not finite changes nothing and is counted.
        """
        seeds = tuple(int(seed) for seed in seeds)
        by_power = method.sets == "power"
        starts = _stack([self._start(method, seed) for seed in seeds])
        run = self._compiled(method, steps or self.total_steps)
        settings, rates = np.asarray(settings, np.float32), np.asarray(rates, np.float32)
        parts, places = [], []
        # An order is common to a call, so each power has its own; the program is compiled once.
        for value in np.unique(settings) if by_power else [method.power]:
            at = np.flatnonzero(settings == value) if by_power else np.arange(len(settings))
            order = self.orders(method.order, float(value), seeds)[:, : steps or None]
            parts.append(run(order, settings[at], rates[at], np.asarray(seeds, np.int32), starts))
            places.append(at)
        back = np.argsort(np.concatenate(places))
        return jax.tree.map(lambda *x: np.concatenate([np.asarray(a) for a in x])[back], *parts)

    def _start(self, method: Method, seed: int) -> dict:
        """What trains, at its beginning."""
        width = self.features.shape[-1]
        if method.trains == "scales":
            return {"scales": np.ones(build.NUM_AGES, np.float32)}
        if method.trains == "two_layers":
            kernel = initial_values.leaf(("head", "hidden", "kernel"), (width, HIDDEN), np.float32, seed)
            return {"hidden": {"kernel": kernel, "bias": np.zeros(HIDDEN, np.float32)}, **_new_layer(HIDDEN, seed)}
        return dict(self.own) if method.start == "kept" else _new_layer(width, seed)

    def _head(self, method: Method, trained: Mapping) -> Mapping:
        """The head that stands for what trains."""
        if method.trains != "scales":
            return trained
        own = jax.tree.map(jnp.asarray, dict(self.own))
        return {**own, "fc": {**own["fc"], "kernel": own["fc"]["kernel"] * trained["scales"][None, :]}}

    def _compiled(self, method: Method, steps: int):
        config, count = self.config.copy_and_resolve_references(), len(self.features)
        # Every schedule is linear in its peak, which is swept.
        config.optim.base_learning_rate = 256 / config.batch_size
        unit = build.schedules(config, self.steps_per_epoch, self.total_steps)
        c = config.optim
        features, ages = jnp.asarray(self.features), jnp.asarray(self.ages, jnp.float32)
        tables = jax.tree.map(jnp.asarray, self._statistics) if method.smooth_features else None
        rows = jnp.arange(config.batch_size)

        def one(order, setting, rate, seed, start):
            key = jax.random.key(seed)
            of_pass = jax.random.fold_in(key, zlib.crc32(b"pass") >> 1)
            tx = optim.sgd(
                lambda step: rate * unit.learning_rate(step), unit.momentum, c.weight_decay, c.nesterov, c.clip_norm
            )

            def mean_loss(trained, x, y, key):
                head = self._head(method, trained)
                logits = self._module.apply(
                    {"params": {"head": {"fc": head["fc"]}}},
                    _hidden(head, x),
                    train=True,
                    rows=rows,
                    rngs={"dropout": key},
                )
                return method.loss(logits, y, self.constants, setting).mean()

            def step(carry, drawn):
                trained, state, skipped = carry
                number, position = drawn
                among = jax.random.randint(jax.random.fold_in(of_pass, number), position.shape, 0, count)
                x, y = features[among, position], ages[position]
                if tables is not None:
                    x = x * method_losses.of_age(tables["scale"], y) + method_losses.of_age(tables["shift"], y)
                if method.mix is not None:
                    partner, share = method.mix(y, mixing.key_of(seed, number), setting)
                    x, y = (mixing.mixed(values, values[partner], share) for values in (x, y))
                loss, grads = jax.value_and_grad(mean_loss)(trained, x, y, jax.random.fold_in(key, number))
                good = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(grads))
                updates, new_state = tx.update(grads, state, trained)
                new = optax.apply_updates(trained, updates), new_state
                kept = jax.tree.map(lambda n, o: jnp.where(good, n, o), new, (trained, state))
                return (*kept, skipped + ~good), None

            start_state = (start, tx.init(start), jnp.zeros((), jnp.int32))
            (trained, _, skipped), _ = jax.lax.scan(step, start_state, (jnp.arange(steps), order))
            return self._head(method, trained), skipped

        over_seeds = jax.vmap(one, in_axes=(0, None, None, 0, 0))
        return jax.jit(jax.vmap(over_seeds, in_axes=(None, 0, 0, None, None)))

    def predict(self, method: Method, heads: Mapping, features: np.ndarray, settings: Sequence[float]) -> np.ndarray:
        """Ages in years of (N, F) features, (M, S, N) float32: heads (M, S, ...), a setting for each of the M."""
        own, features = jax.tree.map(jnp.asarray, self.own), jnp.asarray(features)

        def ages(head, setting):
            if method.finish_head is not None:
                head = method.finish_head(own, head, setting)
            logits = self.logits(head, features)
            if method.finish_outputs is not None:
                return method.finish_outputs(self.logits(own, features), logits, self.constants, setting)
            return losses.expected_age(logits)

        # One head after the other: their logits side by side would be large.
        def over_seeds(heads, setting):
            return jax.lax.map(lambda head: ages(head, setting), heads)

        each = jax.jit(lambda heads, settings: jax.lax.map(lambda pair: over_seeds(*pair), (heads, settings)))
        return np.asarray(each(jax.tree.map(jnp.asarray, heads), jnp.asarray(settings, jnp.float32)))


def _hidden(head: Mapping, features: jax.Array) -> jax.Array:
    if "hidden" not in head:
        return features
    return jax.nn.relu(features @ head["hidden"]["kernel"] + head["hidden"]["bias"])


def _new_layer(width: int, seed: int) -> dict:
    """As `reinit_head` makes it."""
    shapes = {"kernel": (width, build.NUM_AGES), "bias": (build.NUM_AGES,)}
    return {"fc": {n: initial_values.leaf(("head", "fc", n), shape, np.float32, seed) for n, shape in shapes.items()}}


def _stack(trees: Sequence) -> dict:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
