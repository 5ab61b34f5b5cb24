"""The rows of the paper's Table 2 (MIVIA, validation; split 4:1 by image). We ran none of them.

    python -m lae_jax.main --config configs/table2.py:<row> [--config.init_from=SOURCE]

| row            | model and init     | augment | schedule     | MAE  | MAE^1 | MAE^3 | MAE^8 | sigma | AAR  |
| baseline       | ResNet-18 ImageNet | flip    | MultiStep 75 | 1.97 | 7.16  | 1.61  | 3.45  | 1.93  | 6.10 |
| architecture   | V2-M, ImageNet     | flip    | MultiStep 75 | 1.93 | 6.47  | 1.59  | 2.99  | 1.65  | 6.42 |
| pretraining    | ResNet-18, stage 1 | flip    | MultiStep 75 | 1.78 | 5.09  | 1.45  | 2.73  | 1.33  | 6.89 |
| augmentation   | ResNet-18 ImageNet | full    | MultiStep 75 | 1.85 | 5.53  | 1.52  | 2.99  | 1.37  | 6.78 |
| representation | V2-M, stage 1      | full    | OneCycle 24  | 1.71 | 4.66  | 1.40  | 2.59  | 1.11  | 7.18 |
| classification | row 5, head only   | full    | OneCycle 8   | 1.89 | 2.69  | 1.62  | 2.11  | 0.37  | 7.74 |
| submission     | rows 5, 6, all     | full    |              | 1.86 |       |       |       | 0.20  | 7.94 |

We read rows 2 to 4 as the baseline plus one trick each. Stage 1 for the row `pretraining` is
`--config configs/pretrain.py --config.model.name=resnet18 --config.workdir=runs/pretrain_resnet18
--config.init_from=SOURCE`. SOURCE must be set for that stage 1, and for the rows that start from ImageNet
weights in the paper: weights that docs/training.md lists, such as hf:timm/resnet18.tv_in1k and
hf:timm/tf_efficientnetv2_m.in21k_ft_in1k, or scratch. For the paper's comparisons of batch sizes and schedules,
override the row `representation`: --config.batch_size=128, or --config.optim.schedule=multi_step
--config.epochs=75 --config.optim.milestones='(20,40,60,75)'.
"""

from lae_jax.configs import baseline, classify, common, represent, submission
from lae_jax.runtime.errors import unknown


def _architecture():
    c = baseline.get_config()
    c.model.name = "efficientnet_v2_m"
    return c


def _pretraining():
    c = baseline.get_config()
    c.init_from = "runs/pretrain_resnet18"
    return c


def _augmentation():
    c = baseline.get_config()
    c.data.augment = common.augmentation("full")
    return c


def _representation():
    c = represent.get_config()
    c.init_from = "runs/pretrain"
    return c


def _classification():
    c = classify.get_config()
    c.init_from = "runs/table2/representation"
    return c


def _submission():
    c = submission.get_config()
    c.stages.classify.mae_from = "runs/table2/representation"
    return c


ROWS = {
    "baseline": baseline.get_config,
    "architecture": _architecture,
    "pretraining": _pretraining,
    "augmentation": _augmentation,
    "representation": _representation,
    "classification": _classification,
    "submission": _submission,
}


def get_config(row: str = ""):
    if row not in ROWS:
        raise ValueError(unknown("row of configs/table2.py:<row>", row, ROWS))
    c = ROWS[row]()
    c.workdir = f"runs/table2/{row}"
    return c
