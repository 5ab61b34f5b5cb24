"""The contest's submission: stages 2 and 3 on every image, so no image is left to select on.

    python -m lae_jax.main --config configs/submission.py --config.stages.represent.init_from=runs/pretrain

The last checkpoints are kept. Reads data/faces, runs/pretrain and, for `mae`, runs/represent: the 4:1 run of stage 2.
Writes runs/submission/represent and runs/submission/classify. The paper reports on the hidden test set: MAE 1.86, sigma
0.20, AAR (2021) 7.94; not run by us.
"""

from ml_collections import ConfigDict

from lae_jax.configs import classify, represent


def get_config():
    c = ConfigDict({"workdir": "runs/submission", "order": ("represent", "classify"), "stages": {}})
    c.stages.represent = represent.get_config()
    c.stages.represent.init_from = "runs/pretrain"
    c.stages.classify = classify.get_config()
    c.stages.classify.init_from = ""  # the stage before
    c.stages.classify.mae_from = "runs/represent"
    for stage in c.stages.values():
        stage.data.train, stage.data.split = "all", ""
    return c
