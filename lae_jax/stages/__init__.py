"""The three stages as records, the methods that replace the training of stage 3, and the cures of stage 2."""

from lae_jax.stages import classes, cures
from lae_jax.stages.definitions import (
    CLASSIFY,
    PRETRAIN,
    REPRESENT,
    STAGES,
    Scores,
    Selection,
    Stage,
    get,
    with_classes,
    with_cure,
    with_method,
    with_teacher,
)

__all__ = [
    "CLASSIFY",
    "PRETRAIN",
    "REPRESENT",
    "STAGES",
    "Scores",
    "Selection",
    "Stage",
    "classes",
    "cures",
    "get",
    "with_classes",
    "with_cure",
    "with_method",
    "with_teacher",
]
