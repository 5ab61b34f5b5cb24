"""What reports score, drawn."""

import numpy as np

from lae_jax.report import scores


def sample(n=400, spread=5.0, seed=0, people=None, **more):
    rng = np.random.default_rng(seed)
    ages = rng.uniform(1, 81, n)
    people = np.full(n, -1) if people is None else people
    return scores.Sample(ages, ages + rng.normal(0, spread, n), people, **more)
