"""What training, evaluating and predicting share: what a config builds, the examples of a run, its outputs."""
