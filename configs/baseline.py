"""The standard baseline (section 2.2): ResNet-18, resize and flip, L_ld + L_er, 75 epochs of MultiStep.

    python -m lae_jax.main --config configs/baseline.py --config.init_from=hf:timm/resnet18.tv_in1k

Reads data/faces and writes runs/baseline. Set init_from to ImageNet weights, as in the paper, or to scratch.
The paper reports on MIVIA: MAE 1.97, sigma 1.93, AAR (2021) 6.10; not run by us.
"""

from lae_jax.configs import common


def get_config():
    c = common.get_config()
    c.workdir = "runs/baseline"
    c.model.name = "resnet18"
    c.data.augment = common.augmentation("flip")
    c.optim.schedule, c.optim.milestones = "multi_step", (20, 40, 60, 75)
    c.epochs = 75.0
    return c
