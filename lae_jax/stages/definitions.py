"""What tells the stages apart, as data: one frozen record a stage. Loop and step read these and never branch."""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import numpy as np

from lae_jax import losses, metrics
from lae_jax.runtime.errors import InputError, unknown
from lae_jax.stages import methods

# A score is a dict of floats; None stands for an undefined one.
Scores = dict[str, float | None]


@dataclasses.dataclass(frozen=True)
class Stage:
    name: str
    head: str  # of models.create: 'age' | 'identity'
    target: str  # column of the data set that is learned
    loss: Callable[[jax.Array, jax.Array, Mapping], jax.Array]  # (outputs, target (B,), constants) -> (B,)
    trains: tuple[str, ...]  # top keys of the parameters
    order: str  # 'shuffled' | 'class_balanced'
    loads: tuple[str, ...]  # what init_from gives: 'backbone', 'head'; with the head, init_from must be given
    follows: tuple[str, ...]  # stages whose runs init_from may name
    needs: tuple[str, ...]  # validation scores of stage 2 that are constants of the loss
    output: Callable[[jax.Array], jax.Array]  # the model's outputs -> what an evaluation gathers for each row
    score: Callable[[Mapping[str, np.ndarray], np.ndarray], Scores]  # (columns of the rows, gathered outputs) -> scores
    select: Callable[[np.ndarray], str | None]  # targets of the validation rows -> the score to minimise; None: newest
    # (ages of the global batch, key) -> places of partners and own shares, (B,) each: the features and ages that the
    # head learns are mixtures. None: they are taken as they are. The backbone must stand still.
    mix: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]] | None = None


def _age_score(columns: Mapping[str, np.ndarray], outputs: np.ndarray) -> Scores:
    report = metrics.age_report(columns["age"], outputs)
    return {**report.to_dict(), "mae_plus_sigma": None if report.missing_groups else report.mae + report.sigma}


def _identity_score(columns: Mapping[str, np.ndarray], outputs: np.ndarray) -> Scores:
    return metrics.verification(outputs, columns["identity"]).to_dict()


def _newest(identities: np.ndarray) -> None:
    """Nothing selects; but pairs for the verification can be drawn, or it is an error now and not after an epoch."""
    metrics.verification(np.ones((len(identities), 1)), identities, num_pairs=2)


def _balanced_choice(ages: np.ndarray) -> str:
    """MAE + sigma orders as AAR does; where a group has no image both are undefined."""
    all_there = len(np.unique(metrics.age_group(ages)[metrics.age_group(ages) >= 0])) == len(metrics.GROUPS)
    return "mae_plus_sigma" if all_there else "mean_group_mae"


PRETRAIN = Stage(
    name="pretrain",
    head="identity",
    target="identity",
    loss=lambda outputs, target, constants: losses.am_softmax_loss(
        outputs.embeddings, outputs.class_weights, target, constants["scale"], constants["margin"]
    ),
    trains=("backbone", "head"),
    order="shuffled",
    loads=("backbone",),
    follows=("pretrain", "represent"),
    needs=(),
    output=lambda embeddings: embeddings,
    score=_identity_score,
    select=_newest,
)

REPRESENT = Stage(
    name="represent",
    head="age",
    target="age",
    loss=methods.representation,
    trains=("backbone", "head"),
    order="shuffled",
    loads=("backbone",),
    follows=("pretrain", "represent"),
    needs=(),
    output=losses.expected_age,
    score=_age_score,
    select=lambda targets: "mae",
)

CLASSIFY = Stage(
    name="classify",
    head="age",
    target="age",
    loss=methods.lae,
    trains=("head",),
    order="class_balanced",
    loads=("backbone", "head"),
    follows=("represent",),
    needs=("mae",),
    output=losses.expected_age,
    score=_age_score,
    select=_balanced_choice,
)

STAGES = {stage.name: stage for stage in (PRETRAIN, REPRESENT, CLASSIFY)}


def get(name: str) -> Stage:
    if name not in STAGES:
        raise InputError(unknown("stage", name, STAGES))
    return STAGES[name]


def with_method(stage: Stage, name: str, setting: float | None, power: float) -> Stage:
    """Stage 3 with the loss, the order and what trains of a method of `methods`; 'lae' is the stage as it is.

    Args: setting: of the method; power: of the class-balanced order. Where the method's head starts and what layers it
    has are fields of the config (`plan.settled`).
    Raises InputError for another stage, for a method that finishes what is trained, and for what does not fit it.
    """
    method = methods.get(name)
    if stage is not CLASSIFY:
        if name != "lae" or setting is not None:
            raise InputError(f"config.classify is of stage classify, not of {stage.name}: leave it")
        return stage
    alone = {n: m for n, m in methods.METHODS.items() if m.on_images}
    if name not in alone:
        raise InputError(
            f"config.classify.method {name!r} can be compared on features (python -m lae_jax.longtail), not run on"
            f" images, which these can: {', '.join(alone)}"
        )
    if method.sets == "power":
        raise InputError(f"config.classify.method {name!r} is 'lae' with --config.data.power: set that")
    if method.setting and setting is None:
        tried = ", ".join(f"{value:g}" for value in method.settings)
        raise InputError(f"method {name!r} needs a {method.setting}: add --config.classify.setting=, such as {tried}")
    if setting is not None and not method.setting:
        raise InputError(f"method {name!r} has no setting: leave out --config.classify.setting")
    if method.order == "shuffled" and power:
        raise InputError(f"method {name!r} takes the images as they come: leave out --config.data.power")
    if name == "lae":
        return stage
    return dataclasses.replace(
        stage,
        loss=functools.partial(_set_loss, method.loss, setting),
        order=method.order,
        mix=method.mix and functools.partial(_set_mix, method.mix, setting),
    )


def _set_mix(mix, setting, ages, key):
    return mix(ages, key, setting)


def _set_loss(loss, setting, outputs, target, constants):
    return loss(outputs, target, constants, setting)
