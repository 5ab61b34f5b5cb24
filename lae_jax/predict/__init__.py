"""Ages of photographs and of face crops."""

from lae_jax.predict.estimator import AgeEstimator

__all__ = ["AgeEstimator"]
