"""Stage 1, pretraining: a backbone that distinguishes people, trained on faces with identities (AM-softmax).

    python -m lae_jax.main --config configs/pretrain.py --config.init_from=hf:timm/tf_efficientnetv2_m.in21k_ft_in1k

Reads data/people (prepared with identities) and writes runs/pretrain. Set init_from to ImageNet weights, as
in the contest's system, or to scratch. The paper used MS-Celeb-1M; not run by us.
"""

from lae_jax.configs import common


def get_config():
    c = common.get_config()
    c.stage, c.workdir = "pretrain", "runs/pretrain"
    c.data.path = "data/people"
    c.data.augment = common.augmentation("flip")  # ours
    c.optim.base_learning_rate, c.optim.schedule = 0.1, "multi_step"  # learning rate as in the contest's system
    c.epochs = 18.0
    return c
