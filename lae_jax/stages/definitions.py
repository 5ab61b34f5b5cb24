"""The stages: one frozen record for each. The loop and the step read these records and never branch on the stage."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping

import jax
import numpy as np

from lae_jax import losses, metrics
from lae_jax.runtime.errors import InputError, unknown
from lae_jax.stages import classes, cures, methods, verification

# Scores by name; None: the score is undefined.
Scores = dict[str, float | None]


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which checkpoint of a run is kept: the one with the smallest value, or the newest.

    Attributes:
      score: What is minimised, in a few words; None: the newest checkpoint is kept.
      because: Why, as the end of a sentence.
      value: Scores of a checkpoint -> the value.
    """

    score: str | None
    because: str
    value: Callable[[Scores], float | None] = lambda scores: None

    def __str__(self) -> str:
        """Returns a sentence for the log."""
        kept = f"the checkpoint with the lowest {self.score}" if self.score else "the newest checkpoint"
        return f"{kept} is kept, because {self.because}"


@dataclasses.dataclass(frozen=True)
class Stage:
    """All that distinguishes one stage from another."""

    name: str
    head: str  # of models.create: 'age' | 'identity'
    target: str  # column of the data set that the model learns
    loss: Callable[[jax.Array, jax.Array, Mapping], jax.Array]  # (outputs, target (B,) or (B, 2), constants) -> (B,)
    trains: tuple[str, ...]  # top keys of the parameters
    order: str  # 'shuffled' | 'class_balanced'
    loads: tuple[str, ...]  # parts taken from init_from: 'backbone', 'head'; 'head' makes init_from mandatory
    follows: tuple[str, ...]  # stages whose runs init_from may name
    needs: tuple[str, ...]  # validation scores of stage 2 that are constants of the loss
    output: Callable[[jax.Array], jax.Array]  # the model's outputs -> what an evaluation gathers for each row
    scored: Callable[[np.ndarray], np.ndarray]  # targets of the rows -> places of those whose outputs are scored
    score: Callable[[Mapping[str, np.ndarray], np.ndarray], Scores]  # (columns of all rows, those outputs) -> scores
    # (targets of the validation rows, number of images from which a score is not a matter of chance) -> what is kept
    select: Callable[[np.ndarray, int], Selection]
    # (ages of the global batch, key) -> each example's partner (place in the batch) and its own share, (B,) each: the
    # head learns mixtures of features and ages. None: nothing is mixed. The backbone must be frozen.
    mix: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]] | None = None
    # Names of leaves of which each device has a part of the rows, and (targets of this device, seed, step) -> places of
    # those of its rows that a step reads and changes; None: all.
    split: tuple[str, ...] = ()
    choose: Callable[[jax.Array, int, jax.Array], jax.Array] | None = None
    # Cures for a long tail, which change the loss and the features in training; they take the loss above. None: none.
    cure: cures.Cures | None = None


def _every_row(targets: np.ndarray) -> np.ndarray:
    return np.arange(len(targets))


def _age_score(columns: Mapping[str, np.ndarray], outputs: np.ndarray) -> Scores:
    ages = columns["age"]
    if ages.ndim == 2:
        scores = metrics.range_report(ages, outputs).to_dict()
        parts = (scores["distance"], scores["distance_sigma"])
        return {**scores, "distance_plus_sigma": None if None in parts else sum(parts)}
    report = metrics.age_report(ages, outputs)
    return {**report.to_dict(), "mae_plus_sigma": None if report.missing_groups else report.mae + report.sigma}


def _identity_score(columns: Mapping[str, np.ndarray], outputs: np.ndarray) -> Scores:
    return verification.score(outputs, verification.draw_pairs(columns["identity"])).to_dict()


def _rows_in_pairs(identities: np.ndarray) -> np.ndarray:
    """At most 20,000 rows: an evaluation does not take longer with a larger split."""
    return verification.draw_pairs(identities).images


def _newest(identities: np.ndarray, images: int) -> Selection:
    """Selects by no score. Draws pairs for the verification, so that an error appears here and not after an epoch."""
    verification.draw_pairs(identities, num_pairs=2)
    return Selection(None, "stage 1 does not select by a score")


def _lowest_mae(ages: np.ndarray, images: int) -> Selection:
    """Selects by MAE (of ranges: the mean distance to them) if there are enough images, else the newest."""
    told = f"there are {len(ages)} validation images and select_images is {images}"
    score = "mae" if ages.ndim == 1 else "distance"
    return Selection(score, told, lambda scores: scores[score]) if len(ages) >= images else Selection(None, told)


def _balanced_choice(ages: np.ndarray, images: int) -> Selection:
    """Selects by MAE + sigma, which orders checkpoints as AAR does, if every age group has at least `images` images.

    Otherwise by the mean of the errors of the groups that have, if they are at least two; else the newest. The error of
    a group with one image differs between checkpoints by years, and sigma squares that. Of ranges, (N, 2), the errors
    are the distances to them.
    """
    is_range = ages.ndim == 2
    total, of_groups = ("distance_plus_sigma", "group_distance") if is_range else ("mae_plus_sigma", "group_mae")
    group = metrics.age_group(metrics.label_age(ages) if is_range else ages)
    counts = np.bincount(group[group >= 0], minlength=len(metrics.GROUPS))
    large = np.flatnonzero(counts >= images).tolist()
    if len(large) == len(metrics.GROUPS):
        because = f"each of the eight age groups has at least {images} validation images"
        return Selection(total, because, lambda scores: scores[total])
    small = ", ".join(f"{name} ({n})" for name, n in zip(metrics.GROUPS, counts, strict=True) if n < images)
    because = f"these age groups have fewer than {images} validation images: {small}"
    if len(large) < 2:
        return Selection(None, because)
    score = f"mean error of the age groups {', '.join(metrics.GROUPS[place] for place in large)}"
    return Selection(score, because, lambda scores: float(np.mean([scores[of_groups][place] for place in large])))


PRETRAIN = Stage(
    name="pretrain",
    head="identity",
    target="identity",
    loss=classes.whole_loss,
    trains=("backbone", "head"),
    order="shuffled",
    loads=("backbone",),
    follows=("pretrain", "represent"),
    needs=(),
    output=lambda embeddings: embeddings,
    scored=_rows_in_pairs,
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
    scored=_every_row,
    score=_age_score,
    select=_lowest_mae,
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
    scored=_every_row,
    score=_age_score,
    select=_balanced_choice,
)

STAGES = {stage.name: stage for stage in (PRETRAIN, REPRESENT, CLASSIFY)}


def get(name: str) -> Stage:
    """Returns the stage of this name.

    Raises:
      InputError: There is no such stage.
    """
    if name not in STAGES:
        raise InputError(unknown("stage", name, STAGES))
    return STAGES[name]


def with_method(stage: Stage, name: str, setting: float | None) -> Stage:
    """Returns stage 3 with the loss, order and mixing of a method of `methods`; 'lae' returns the stage unchanged.

    The start and the layers of the method's head are config fields, which `plan.settled` sets.

    Args:
      stage: The stage; only stage 3 has methods.
      name: Name of the method.
      setting: The method's setting, None if it has none.

    Raises:
      InputError: The stage has no methods, the method cannot run on images, or its setting does not fit.
    """
    method = methods.get(name)
    if stage is not CLASSIFY:
        if name != "lae" or setting is not None:
            raise InputError(f"config.classify belongs to stage classify, not to {stage.name}: omit it")
        return stage
    alone = {n: m for n, m in methods.METHODS.items() if m.on_images}
    if name not in alone:
        raise InputError(
            f"config.classify.method {name!r} works on features only (python -m lae_jax.longtail). On images, use one"
            f" of {', '.join(alone)}"
        )
    if method.sets == "power":
        raise InputError(f"config.classify.method {name!r} is 'lae' with --config.data.power: set that field instead")
    if method.setting and setting is None:
        tried = ", ".join(f"{value:g}" for value in method.settings)
        raise InputError(
            f"method {name!r} needs a {method.setting}: add --config.classify.setting=VALUE, for example {tried}"
        )
    if setting is not None and not method.setting:
        raise InputError(f"method {name!r} has no setting: omit --config.classify.setting")
    if setting is not None and not method.takes_setting(setting):
        above = "above 0" if method.least is None else f"of at least {method.least:g}"
        below = f" and below {method.below:g}" if math.isfinite(method.below) else ""
        raise InputError(
            f"config.classify.setting is {setting:g}: the {method.setting} of method {name!r} must be a number"
            f" {above}{below}"
        )
    if name == "lae":
        return stage
    return dataclasses.replace(
        stage,
        loss=functools.partial(_set_loss, method.loss, setting),
        order=method.order,
        mix=method.mix and functools.partial(_set_mix, method.mix, setting),
    )


# From this number of people on, class weights that every device has whole cost more than those that are split.
MANY_CLASSES = 300_000
CLASS_WEIGHTS = ("auto", "split", "copied")


def with_classes(stage: Stage, where: str, share: float, num_outputs: int) -> Stage:
    """Returns stage 1 with class weights that are split over the devices; all other stages unchanged.

    Args:
      stage: The stage.
      where: One of CLASS_WEIGHTS; 'auto': split from MANY_CLASSES people on, or if `share` is below 1.
      share: Share of the classes that take part in a step.
      num_outputs: Number of people.

    Raises:
      InputError: `where` or `share` has a value that is not allowed.
    """
    if where not in CLASS_WEIGHTS:
        raise InputError("config.model.class_weights: " + unknown("word", str(where), CLASS_WEIGHTS))
    if not 0 < share <= 1:
        raise InputError(f"config.model.class_sampling is {share}: it must be above 0 and at most 1")
    if share < 1 and where == "copied":
        raise InputError(
            f"config.model.class_sampling is {share:g}, which needs class weights that are split over the devices: set"
            " config.model.class_weights to auto"
        )
    if stage is not PRETRAIN or where == "copied" or (where == "auto" and share == 1 and num_outputs < MANY_CLASSES):
        return stage
    return dataclasses.replace(
        stage,
        loss=classes.split_loss,
        split=(classes.LEAF,),
        choose=functools.partial(classes.choose, num_outputs, share) if share < 1 else None,
    )


def with_cure(stage: Stage, given: Mapping, epoch: int) -> Stage:
    """Returns stage 2 with cures for a long tail; with the name 'none' it returns the stage unchanged.

    Args:
      stage: The stage; only stage 2 has cures.
      given: config.cure.
      epoch: Steps of an epoch.

    Raises:
      InputError: The stage has no cures, or see `cures.chosen`.
    """
    found = cures.chosen(given, epoch)
    if found is None:
        return stage
    if stage.name != REPRESENT.name:
        raise InputError(
            f"config.cure.name belongs to stage represent, not to {stage.name}: omit it (methods of stage 3 are"
            " config.classify.method)"
        )
    return dataclasses.replace(stage, cure=found)


def with_teacher(stage: Stage) -> Stage:
    """Returns a stage of ages whose loss is mixed with the divergence from a teacher's distribution.

    The loss constants then have `teacher_logits` (B, K), `teacher_weight` and `teacher_temperature`.

    Raises:
      InputError: The stage learns no ages, it mixes images, which a teacher cannot score, or a cure replaces its loss.
    """
    if stage.target != "age":
        raise InputError(f"config.teacher belongs to stages 2 and 3, not to {stage.name}: omit it")
    if stage.mix is not None:
        raise InputError(
            "config.teacher: config.classify.method mixes the features of several images, and a teacher knows the"
            " distribution of each image alone: use another method, or omit config.teacher"
        )
    if stage.cure is not None and "balanced_mse" in stage.cure.names:
        raise InputError(
            "config.teacher: the cure balanced_mse replaces the loss and cannot be combined with a teacher: omit"
            " config.teacher, or use another config.cure.name"
        )
    return dataclasses.replace(stage, loss=functools.partial(_distilled, stage.loss))


def _distilled(loss, outputs, target, constants):
    weight = constants["teacher_weight"]
    from_teacher = losses.distillation(outputs, constants["teacher_logits"], constants["teacher_temperature"])
    return (1 - weight) * loss(outputs, target, constants) + weight * from_teacher


def _set_mix(mix, setting, ages, key):
    return mix(ages, key, setting)


def _set_loss(loss, setting, outputs, target, constants):
    return loss(outputs, target, constants, setting)
