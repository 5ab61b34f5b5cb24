"""Cures for a long tail in stage 2, which trains backbone and head: one record for each, in the dict `CURES`.

A run may have several. Their equations are in `method_losses`, `cure_losses` and `feature_smoothing`. B = images of the
global batch, b = images of this device, F = features, K = 101 ages.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lae_jax import losses
from lae_jax.runtime.errors import InputError, unknown
from lae_jax.runtime.parallel import AXIS
from lae_jax.stages import cure_losses, feature_smoothing, method_losses

NONE = "none"
NOISE_RATE = 0.01  # learning rate of the noise of Balanced MSE (its code: Adam, sigma_lr)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of the cures, as published for faces (IMDB-WIKI-DIR). A field begins with the name of its cure."""

    lds_power: float = 0.5  # of the inverse of the smoothed counts
    fds_momentum: float = 0.9  # of the running statistics
    fds_start_update: int = 0  # first epoch whose features are in the statistics
    fds_start_smooth: int = 1  # first epoch whose features are calibrated
    rank_sim_weight: float = 100.0  # gamma
    rank_sim_strength: float = 2.0  # lambda of the black-box gradient
    balanced_mse_noise: float = 10.0  # years, at the first step; it is learned
    dist_loss_weight: float = 1.0
    dist_loss_bandwidth: float = 0.5  # of the label density, as a share of the standard deviation of the ages
    conr_weight: float = 4.0  # beta
    conr_window: float = 1.0  # years
    conr_temperature: float = 0.07
    conr_eta: float = 0.01


_SHARE = ("at least 0 and below 1", lambda value: 0 <= value < 1)
_NOT_NEGATIVE = ("a number of at least 0", lambda value: 0 <= value < math.inf)
_POSITIVE = ("a number above 0", lambda value: 0 < value < math.inf)
_LIMITS = {
    "fds_momentum": _SHARE,
    **dict.fromkeys(("fds_start_update", "fds_start_smooth", "conr_window", "conr_eta"), _NOT_NEGATIVE),
}


@dataclasses.dataclass(frozen=True)
class Cure:
    """What is known of a cure."""

    name: str
    paper: str
    takes_ranges: bool = False  # it can be used where ages are ranges
    whole_batch: bool = False  # it compares the images of a whole batch


CURES = {
    cure.name: cure
    for cure in (
        Cure("lds", "Yang et al., Delving into deep imbalanced regression, ICML 2021 (LDS)", takes_ranges=True),
        Cure("fds", "Yang et al., ICML 2021 (FDS)"),
        Cure("rank_sim", "Gong et al., RankSim, ICML 2022", whole_batch=True),
        Cure("balanced_mse", "Ren et al., Balanced MSE, CVPR 2022 (BNI)"),
        Cure("dist_loss", "Nie et al., Dist Loss, ICLR 2025", takes_ranges=True, whole_batch=True),
        Cure("conr", "Keramati et al., ConR, ICLR 2024", whole_batch=True),
    )
}


@dataclasses.dataclass(frozen=True)
class Cures:
    """The cures of a run: what the step computes with them, and what it remembers.

    A memory is what they carry from step to step: {} or a dict with 'fds' (`feature_smoothing.Statistics`) and
    'learned' and 'learning' (the noise of Balanced MSE, and the state of its optimiser).

    Attributes:
      names: Their names.
      settings: Their settings.
      epoch: Steps of an epoch.
    """

    names: tuple[str, ...]
    settings: Settings
    epoch: int

    @property
    def record(self) -> dict:
        """Their names and the settings that are not those published, for checkpoints and model cards."""
        given = dataclasses.asdict(self.settings)
        changed = {name: value for name, value in given.items() if value != getattr(Settings, name)}
        return {"name": "+".join(self.names), "settings": changed}

    @property
    def for_exact_ages(self) -> tuple[str, ...]:
        """Those that cannot be used where ages are ranges."""
        return tuple(name for name in self.names if not CURES[name].takes_ranges)

    @property
    def of_whole_batches(self) -> tuple[str, ...]:
        """Those that compare the images of a whole batch."""
        return tuple(name for name in self.names if CURES[name].whole_batch)

    def first(self, head: Mapping) -> dict:
        """Returns the memory before the first step.

        Args:
          head: Parameters of the age head, for shapes and dtype.
        """
        memory = {}
        if "fds" in self.names:
            num_features, num_ages = head.get("hidden", head["fc"])["kernel"].shape[0], head["fc"]["kernel"].shape[1]
            memory["fds"] = feature_smoothing.first(num_ages, num_features, head["fc"]["kernel"].dtype)
        if "balanced_mse" in self.names:
            noise = np.full((), self.settings.balanced_mse_noise, head["fc"]["kernel"].dtype)
            memory["learned"] = {"noise": noise}
            memory["learning"] = _noise_optimiser().init(memory["learned"])
        return memory

    def begin(self, memory: Mapping, step: jax.Array) -> dict:
        """Returns the memory with which a step computes; at the first step of an epoch, FDS closes the one before."""
        if "fds" not in memory:
            return dict(memory)
        is_first = (step > 0) & (step % self.epoch == 0)
        momentum = self.settings.fds_momentum
        statistics = jax.lax.cond(
            is_first, lambda kept: feature_smoothing.after_epoch(kept, momentum), dict, memory["fds"]
        )
        return {**memory, "fds": statistics}

    def on_features(self, memory: Mapping, ages: jax.Array, step: jax.Array) -> Callable[[jax.Array], jax.Array]:
        """Returns the function (b, F) -> (b, F) between backbone and head in training."""
        if "fds" not in memory:
            return lambda features: features
        acts = step // self.epoch >= self.settings.fds_start_smooth

        def calibrated(features: jax.Array) -> jax.Array:
            return jnp.where(acts, feature_smoothing.calibrated(memory["fds"], features, ages), features)

        return calibrated

    def losses(
        self,
        plain: Callable,
        logits: jax.Array,
        features: jax.Array,
        ages: jax.Array,
        constants: Mapping,
        learned: Mapping,
        key: jax.Array,
    ) -> jax.Array:
        """Returns the loss (b,) of this device's images, whose mean over all devices is the loss of the batch.

        Args:
          plain: The loss of the stage, (logits, ages, constants) -> (b,).
          logits: (b, K).
          features: (b, F), as the backbone gives them.
          ages: (b,) years, or (b, 2) ranges.
          constants: The loss constants, with `counts` as a NumPy array.
          learned: The memory's 'learned', if it has it.
          key: Random key of the step, the same on every device.
        """
        c, names = self.settings, self.names
        predictions = losses.expected_age(logits)
        weights = jnp.ones_like(predictions)
        if "lds" in names:
            table = method_losses.lds_weights(constants["counts"], constants["smoothed"], c.lds_power)
            weights = method_losses.of_age(jnp.asarray(table, weights.dtype), ages)
        if "balanced_mse" in names:
            divergence = losses.label_divergence(logits, ages, constants["label_sigma"], constants["in_range"])
            squared = method_losses.balanced_mse(predictions, ages, constants["counts"], learned["noise"])
            result = divergence + constants["er_weight"] * squared
        else:
            result = plain(logits, ages, constants)
        result = weights * result if "lds" in names else result
        if not self.of_whole_batches:
            return result
        here = features, ages, predictions
        every = tuple(jax.lax.all_gather(values, AXIS, tiled=True) for values in here)
        places = jax.lax.axis_index(AXIS) * len(predictions) + jnp.arange(len(predictions))
        if "dist_loss" in names:
            labels = cure_losses.pseudo_labels(constants["counts"], len(every[2]), c.dist_loss_bandwidth)
            distance = cure_losses.distribution_distance(predictions, every[2], places, labels)
            result = result + c.dist_loss_weight * distance
        if "rank_sim" in names:
            priority = jax.random.uniform(key, every[1].shape)
            ranked = cure_losses.rank_similarity(*every[:2], priority, c.rank_sim_strength, logits.shape[1])
            result = result + c.rank_sim_weight * ranked
        if "conr" in names:
            how = (c.conr_window, c.conr_temperature, c.conr_eta)
            result = result + c.conr_weight * cure_losses.contrast(here, every, places, weights, *how)
        return result

    def end(self, memory: Mapping, step: jax.Array, gradient: Mapping, features: jax.Array, ages: jax.Array) -> dict:
        """Returns the memory after a step.

        Args:
          memory: That of `begin`.
          step: Number of the step, from 0.
          gradient: Of the memory's 'learned'.
          features: (b, F), of this device, as the backbone gave them.
          ages: (b,) years, of this device.
        """
        memory = dict(memory)
        if "fds" in memory:
            every = [jax.lax.all_gather(values, AXIS, tiled=True) for values in (features, ages)]
            counts = step // self.epoch >= self.settings.fds_start_update
            seen = feature_smoothing.observed(memory["fds"], *every)
            memory["fds"] = jax.tree.map(lambda new, old: jnp.where(counts, new, old), seen, dict(memory["fds"]))
        if "learned" in memory:
            updates, memory["learning"] = _noise_optimiser().update(gradient, memory["learning"])
            memory["learned"] = optax.apply_updates(memory["learned"], updates)
        return memory


def _noise_optimiser() -> optax.GradientTransformation:
    return optax.adam(NOISE_RATE)


def chosen(given: Mapping, epoch: int) -> Cures | None:
    """Returns the cures of config.cure, None if there are none.

    Args:
      given: `name`, names with + between them or 'none', and the fields of `Settings`.
      epoch: Steps of an epoch.

    Raises:
      InputError: A name is unknown or there twice, two cures do not go together, or a setting cannot be used or
        belongs to a cure that is not on.
    """
    word, names = str(given["name"]), ()
    if word != NONE:
        names = tuple(part.strip() for part in word.split("+"))
    for name in names:
        if name == NONE:
            raise InputError(f"config.cure.name is {word!r}: {NONE} stands alone")
        if name not in CURES:
            raise InputError("config.cure.name: " + unknown("cure", name, (*CURES, NONE)))
        if names.count(name) > 1:
            raise InputError(f"config.cure.name is {word!r}: {name} is there twice")
    if {"lds", "balanced_mse"} <= {*names}:
        raise InputError(
            f"config.cure.name is {word!r}: lds and balanced_mse both take the frequency of the ages out of the loss."
            " Use one of them"
        )
    for field in dataclasses.fields(Settings):
        value = given[field.name]
        cure = next(name for name in CURES if field.name.startswith(f"{name}_"))
        if cure not in names and value != field.default:
            raise InputError(
                f"config.cure.{field.name} belongs to the cure {cure}, and config.cure.name is {word!r}: omit"
                f" --config.cure.{field.name}, or add {cure} to the name"
            )
        wanted, is_allowed = _LIMITS.get(field.name, _POSITIVE)
        if not is_allowed(value):
            raise InputError(f"config.cure.{field.name} is {value}: it must be {wanted}")
    if not names:
        return None
    return Cures(names, Settings(**{field.name: given[field.name] for field in dataclasses.fields(Settings)}), epoch)
