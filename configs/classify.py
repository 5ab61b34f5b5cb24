"""Stage 3, classification: only the FC, class-balanced, L_ld + (L_er - mae)^2, 8 epochs of OneCycle.

    python -m lae_jax.main --config configs/classify.py

Reads data/faces and runs/represent and writes runs/classify.
The paper reports on MIVIA: MAE 1.89, sigma 0.37, AAR (2021) 7.74; not run by us.
"""

from lae_jax.configs import common


def get_config():
    c = common.get_config()
    c.stage, c.workdir, c.init_from = "classify", "runs/classify", "runs/represent"
    c.optim.base_learning_rate = 0.001
    c.epochs = 8.0
    return c
