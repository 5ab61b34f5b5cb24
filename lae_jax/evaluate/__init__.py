"""Evaluations: what a run predicts for a split, scored and written into a folder."""
