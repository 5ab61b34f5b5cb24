"""Training: the plan of a run, its steps, its loop, its journal."""
