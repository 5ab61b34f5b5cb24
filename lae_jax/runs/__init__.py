"""Shared by training, evaluation and prediction: a config's model and optimiser, a run's examples and outputs."""
