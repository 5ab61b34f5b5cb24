"""The three stages as records, and the methods that change the third."""

from lae_jax.stages.definitions import CLASSIFY, PRETRAIN, REPRESENT, STAGES, Scores, Stage, get, with_method

__all__ = ["CLASSIFY", "PRETRAIN", "REPRESENT", "STAGES", "Scores", "Stage", "get", "with_method"]
