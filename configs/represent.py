"""Stage 2, representation: L_ld + L_er on all images, everything trained, 24 epochs of OneCycle.

    python -m lae_jax.main --config configs/represent.py --config.init_from=runs/pretrain

Reads data/faces and writes runs/represent. Set init_from to a run of stage 1 (the paper), weights, or scratch.
The paper reports on MIVIA: MAE 1.71, sigma 1.11, AAR (2021) 7.18; not run by us.
"""

from lae_jax.configs import common


def get_config():
    return common.get_config()
