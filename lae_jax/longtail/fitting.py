"""Training of heads on cached features: all seeds and settings together in one compiled loop over the steps.

A step is `steps.train_step` without a backbone, with the same loss, optimiser, order of the examples and dropout masks.
On features of unaugmented images the head is therefore that of a real stage 3, up to rounding.

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

from lae_jax import losses, metrics, models
from lae_jax.data import sampling
from lae_jax.models import initial_values
from lae_jax.models.layers import Compute
from lae_jax.runs import build
from lae_jax.stages import method_losses, mixing
from lae_jax.stages.methods import HIDDEN, Method


class _Cached(nn.Module):
    """A backbone that returns its input as features."""

    def __call__(self, features, train, rows, train_backbone):
        return features


@dataclasses.dataclass(frozen=True, eq=False)
class Bench:
    """Trains heads on the features of one run.

    Attributes:
      features: (P, N, F).
      ages: (N,) years, or (N, 2) ranges.
      own: Stage 2's head.
      mae: Equation 5, years.
      config: Config of a stage 3, for batch size, epochs and optimiser.
      dropout: Dropout rate of the head.
      label_sigma: (N,) years, of `inputs.label_sigma`; None: the same for all.
    """

    features: np.ndarray
    ages: np.ndarray
    own: Mapping
    mae: float
    config: ConfigDict
    dropout: float
    label_sigma: np.ndarray | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Steps per epoch."""
        return -(-len(self.ages) // self.config.batch_size)

    @property
    def total_steps(self) -> int:
        """Steps of a training."""
        return max(1, round(self.config.epochs * self.steps_per_epoch))

    @functools.cached_property
    def constants(self) -> dict:
        """The loss constants."""
        return {
            "mae": self.mae,
            "er_weight": self.config.loss.er_weight,
            "label_sigma": self.config.loss.label_sigma,
            "in_range": self.config.loss.in_range,
            **method_losses.of_training(method_losses.images_by_age(self.ages, build.NUM_AGES)),
        }

    @functools.cached_property
    def _statistics(self) -> dict[str, np.ndarray]:
        every, classes = self.features, metrics.age_class(self.ages)
        return method_losses.smooth_statistics(every.reshape(-1, every.shape[-1]), np.tile(classes, len(every)))

    @functools.cached_property
    def _module(self) -> models.Model:
        # The modules have the names of the real model: a mask is a function of the module's path.
        return models.Model(_Cached(), models.AgeHead(Compute(), build.NUM_AGES, self.dropout))

    def logits(self, head: Mapping, features: jax.Array) -> jax.Array:
        """Returns the logits of a head in inference mode: (B, F) -> (B, K)."""
        return self._module.apply({"params": {"head": {"fc": head["fc"]}}}, _hidden(head, features))

    @functools.cached_property
    def _orders(self) -> dict[tuple, np.ndarray]:
        return {}

    def orders(self, order: str, power: float, seeds: tuple[int, ...]) -> np.ndarray:
        """Returns the positions of the examples, (S, T, B) int32: those of a stage 3 with these seeds."""
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
                draw = sampling.balanced_ages(self.ages, size, seed, power)
            for step in range(self.total_steps):
                result[number, step] = draw(step).numpy()
        return result

    def train(
        self, method: Method, settings: Sequence[float], rates: Sequence[float], seeds: Sequence[int], steps: int = 0
    ) -> tuple[dict, np.ndarray]:
        """Trains a head for each pair of setting and peak and each seed.

        A step whose loss or gradients are not finite is skipped and counted.

        Args:
          method: The method.
          settings: Settings of the method, (M,).
          rates: Peak learning rates, base_learning_rate x batch / 256, (M,).
          seeds: Seeds, (S,).
          steps: Train only this number of first steps; 0: all.

        Returns:
          The heads, a tree of (M, S, ...), and the numbers of skipped steps, (M, S).
        """
        seeds = tuple(int(seed) for seed in seeds)
        by_power = method.sets == "power"
        starts = _stack([self._start(method, seed) for seed in seeds])
        run = self._compiled(method, steps or self.total_steps)
        # Arguments and not constants of the program, which would hold copies of them.
        own = {} if self.label_sigma is None else {"label_sigma": jnp.asarray(self.label_sigma)}
        data = _on_device(self.features), jnp.asarray(self.ages, jnp.float32), own
        settings, rates = np.asarray(settings, np.float32), np.asarray(rates, np.float32)
        parts, places = [], []
        # All heads of a call share an order, so each power has its own call; the program is compiled once.
        for value in np.unique(settings) if by_power else [method.power]:
            at = np.flatnonzero(settings == value) if by_power else np.arange(len(settings))
            order = self.orders(method.order, float(value), seeds)[:, : steps or None]
            parts.append(run(order, settings[at], rates[at], np.asarray(seeds, np.int32), starts, *data))
            places.append(at)
        back = np.argsort(np.concatenate(places))
        return jax.tree.map(lambda *x: np.concatenate([np.asarray(a) for a in x])[back], *parts)

    def _start(self, method: Method, seed: int) -> dict:
        """Returns the initial values of what trains."""
        width = self.features.shape[-1]
        if method.trains == "scales":
            return {"scales": np.ones(build.NUM_AGES, np.float32)}
        if method.trains == "two_layers":
            kernel = initial_values.leaf(("head", "hidden", "kernel"), (width, HIDDEN), np.float32, seed)
            return {"hidden": {"kernel": kernel, "bias": np.zeros(HIDDEN, np.float32)}, **_new_layer(HIDDEN, seed)}
        return dict(self.own) if method.start == "kept" else _new_layer(width, seed)

    def _head(self, method: Method, trained: Mapping) -> Mapping:
        """Returns the head with what trains."""
        if method.trains != "scales":
            return trained
        own = jax.tree.map(jnp.asarray, dict(self.own))
        return {**own, "fc": {**own["fc"], "kernel": own["fc"]["kernel"] * trained["scales"][None, :]}}

    def _compiled(self, method: Method, steps: int):
        config, count = self.config.copy_and_resolve_references(), len(self.features)
        # Every schedule is linear in its peak, so one schedule of peak 1 serves all.
        config.optim.base_learning_rate = 256 / config.batch_size
        unit = build.schedules(config, self.steps_per_epoch, self.total_steps)
        c = config.optim
        tables = jax.tree.map(jnp.asarray, self._statistics) if method.smooth_features else None
        rows = jnp.arange(config.batch_size)

        def one(order, setting, rate, seed, start, features, ages, own):
            key = jax.random.key(seed)
            of_pass = jax.random.fold_in(key, zlib.crc32(b"pass") >> 1)
            scaled = build.Schedules(lambda step: rate * c.head_factor * unit.learning_rate(step), unit.momentum)
            tx = build.rule(config, scaled, None)

            def mean_loss(trained, x, y, own, key):
                head = self._head(method, trained)
                logits = self._module.apply(
                    {"params": {"head": {"fc": head["fc"]}}},
                    _hidden(head, x),
                    train=True,
                    rows=rows,
                    rngs={"dropout": key},
                )
                return method.loss(logits, y, {**self.constants, **own}, setting).mean()

            def step(carry, drawn):
                trained, state, skipped = carry
                number, position = drawn
                among = jax.random.randint(jax.random.fold_in(of_pass, number), position.shape, 0, count)
                x, y = features[among, position], ages[position]
                z = {name: values[position] for name, values in own.items()}
                if tables is not None:
                    x = x * method_losses.of_age(tables["scale"], y) + method_losses.of_age(tables["shift"], y)
                if method.mix is not None:
                    partner, share = method.mix(y, mixing.key_of(seed, number), setting)
                    x, y, z = jax.tree.map(lambda a: mixing.mixed(a, a[partner], share), (x, y, z))
                loss, grads = jax.value_and_grad(mean_loss)(trained, x, y, z, jax.random.fold_in(key, number))
                good = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(grads))
                updates, new_state = tx.update(grads, state, trained)
                new = optax.apply_updates(trained, updates), new_state
                kept = jax.tree.map(lambda n, o: jnp.where(good, n, o), new, (trained, state))
                return (*kept, skipped + ~good), None

            start_state = (start, tx.init(start), jnp.zeros((), jnp.int32))
            (trained, _, skipped), _ = jax.lax.scan(step, start_state, (jnp.arange(steps), order))
            return self._head(method, trained), skipped

        over_seeds = jax.vmap(one, in_axes=(0, None, None, 0, 0, None, None, None))
        return jax.jit(jax.vmap(over_seeds, in_axes=(None, 0, 0, None, None, None, None, None)))

    def predict(self, method: Method, heads: Mapping, features: np.ndarray, settings: Sequence[float]) -> np.ndarray:
        """Predicts ages, (M, S, N) float32 years, of features (N, F) with heads (M, S, ...) and settings (M,)."""
        own = jax.tree.map(jnp.asarray, self.own)

        def ages(head, setting, features):
            if method.finish_head is not None:
                head = method.finish_head(own, head, setting)
            logits = self.logits(head, features)
            if method.finish_outputs is not None:
                return method.finish_outputs(self.logits(own, features), logits, self.constants, setting)
            return losses.expected_age(logits)

        # One head after the other: the logits of all heads together would be large.
        def over_seeds(heads, setting, features):
            return jax.lax.map(lambda head: ages(head, setting, features), heads)

        @jax.jit
        def each(heads, settings, features):
            return jax.lax.map(lambda pair: over_seeds(*pair, features), (heads, settings))

        heads, settings = jax.tree.map(jnp.asarray, heads), jnp.asarray(settings, jnp.float32)
        return np.asarray(each(heads, settings, _on_device(features)))


def _hidden(head: Mapping, features: jax.Array) -> jax.Array:
    if "hidden" not in head:
        return features
    products = jnp.matmul(features, head["hidden"]["kernel"], precision=jax.lax.Precision.HIGHEST)
    return jax.nn.relu(products + head["hidden"]["bias"])


def _on_device(features: np.ndarray) -> jax.Array:
    """Unlike jnp.asarray, it copies nothing on a CPU: the features stay in their file."""
    return jax.device_put(np.asarray(features))


def _new_layer(width: int, seed: int) -> dict:
    """Returns a new last layer, equal to that of `reinit_head`."""
    shapes = {"kernel": (width, build.NUM_AGES), "bias": (build.NUM_AGES,)}
    return {"fc": {n: initial_values.leaf(("head", "fc", n), shape, np.float32, seed) for n, shape in shapes.items()}}


def _stack(trees: Sequence) -> dict:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
