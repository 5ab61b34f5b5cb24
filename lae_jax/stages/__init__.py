"""The three stages as records, and the methods that replace the training of stage 3."""

from lae_jax.stages import classes
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
    "get",
    "with_classes",
    "with_method",
    "with_teacher",
]
