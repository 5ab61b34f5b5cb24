"""All fields of a run, with the paper's settings; the other configs change a few of them. What the paper leaves open
and was chosen here says "ours".

A field that may be absent is a placeholder, so that it can be set on the command line.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def augmentation(kind: str) -> ConfigDict:
    """'full': the paper's; 'flip': the standard baseline's, resize and flip; 'crop': random crop, flip, light."""
    c = ConfigDict()
    c.patch = (
        "none"  # 'area': random patch, resized; 'crop': crop of data.image_size from data.resize; 'none': whole image
    )
    c.area = (0.5, 1.0)  # of the patch, share of the image (ours)
    c.aspect = (3 / 4, 4 / 3)  # of the patch, width / height (ours)
    c.flip = 0.5  # probability
    c.brightness = 0.0  # jitter: factors 1 +- this; hue: turns of +- this
    c.contrast = 0.0
    c.saturation = 0.0
    c.hue = 0.0
    c.offset = 0.0  # jitter: grey levels added, +- this
    c.num_ops = 0  # RandAugment: N
    c.magnitude = 9  # RandAugment: M
    c.num_levels = 31  # RandAugment: levels that M counts in (ours)
    if kind == "full":
        c.patch, c.num_ops = "area", 2
        c.brightness = c.contrast = c.saturation = 0.125  # ours
        c.hue = 0.05  # ours
    elif kind == "crop":
        c.patch, c.brightness, c.offset = "crop", 0.2, 20.0
    elif kind != "flip":
        raise ValueError(f"augmentation {kind!r}: 'full', 'flip' or 'crop'")
    return c


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.stage = "represent"  # 'pretrain' | 'represent' | 'classify'
    c.workdir = "runs/represent"
    c.seed = 0
    # Run whose backbone (stage 3: model) is taken; in stages 1 and 2 also a file of weights or hf:owner/name[@revision]
    # (docs/training.md); '' or 'scratch': none; in a recipe '': the stage before.
    c.init_from = ""
    c.init_step = placeholder(int)  # of that run (default: its best checkpoint)
    c.mae_from = ""  # stage 3: run whose validation MAE enters the loss (default: init_from)
    c.reinit_head = False  # stage 3: a new head instead of stage 2's; a method that starts from one sets it

    c.data = ConfigDict()
    c.data.path = "data/faces"  # prepared data set
    c.data.train = "train"  # split trained on; 'all': every row
    c.data.split = "validation"  # split scored each epoch; '': none, the newest checkpoint is kept
    c.data.fold = placeholder(int)  # of a data set prepared with --folds
    c.data.image_size = 224
    c.data.resize = 0  # side before a crop to image_size, 0: none (evaluation, and patch 'crop' and 'none')
    c.data.mean = (0.485, 0.456, 0.406)  # of images in [0, 1]
    c.data.std = (0.229, 0.224, 0.225)
    c.data.normalize = ""  # | 'weights': mean and std become those that init_from was trained with
    c.data.power = 0.0  # class-balanced order: 0 ages equally likely (the paper), 1 as frequent as they are
    c.data.verify = "auto"  # | 'full': SHA-256 of every file when opened, 'quick': sizes; auto: full below 10 GB
    c.data.allow_leak = False  # train although the same pictures or people are on both sides (--allow-leak)
    c.data.threads = placeholder(int)  # of the input pipeline (default: all cores)
    c.data.augment = augmentation("full")

    c.model = ConfigDict()
    c.model.name = "efficientnet_v2_m"
    c.model.dtype = "float32"  # of the computation: 'bfloat16' | 'float32'; parameters and losses are float32
    c.model.dropout = placeholder(float)  # default: as published
    c.model.stochastic_depth = placeholder(float)  # default: as published
    c.model.embedding_size = 512  # stage 1 (ours)
    c.model.hidden = 0  # stages 2 and 3: units of a hidden layer before the FC, 0: none (the paper)
    c.model.sync_batch_norm = True  # statistics over all devices (ours)
    c.model.remat = False  # recompute blocks in the backward pass: less memory, a third more time

    c.loss = ConfigDict()
    c.loss.er_weight = 1.0  # lambda of equation 3
    c.loss.scale = 64.0  # AM-softmax s (ours)
    c.loss.margin = 0.35  # AM-softmax m (ours)

    c.classify = ConfigDict()
    c.classify.method = "lae"  # stage 3: the paper's, or another of docs/longtail.md without a finishing step
    c.classify.setting = placeholder(float)  # of a method that has one

    c.optim = ConfigDict()
    c.optim.base_learning_rate = 0.005  # rate = base_learning_rate x batch_size / 256; the peak of one_cycle
    c.optim.schedule = "one_cycle"  # | 'multi_step' | 'constant'
    c.optim.pct_start = 0.3  # one_cycle: share of the steps that rise
    c.optim.div_factor = 25.0  # one_cycle: peak / first rate
    c.optim.final_div_factor = 1e4  # one_cycle: first / last rate
    c.optim.cycle_momentum = True  # one_cycle: momentum 0.95 -> 0.85 -> 0.95 (ours); False: `momentum`
    c.optim.milestones = (7, 14, 16)  # multi_step: epochs after which the rate is multiplied by gamma
    c.optim.gamma = 0.1
    c.optim.momentum = 0.9
    c.optim.nesterov = True
    c.optim.weight_decay = 5e-4  # coupled, on every trained parameter (ours)
    c.optim.clip_norm = 0.0  # global norm of the trained part's gradients; 0: no clipping

    c.epochs = 24.0
    c.batch_size = 256  # over all devices and hosts
    c.accumulate = 1  # parts of a batch that are computed one after the other, for small memories
    c.max_skipped_steps = 10  # steps in a row whose loss or gradients are not finite

    c.eval_batch_size = 256
    c.eval_epochs = 1.0  # epochs between two evaluations
    c.save_steps = 1000  # between two checkpoints inside an epoch; the end of each evaluation saves too
    c.async_save = True  # checkpoints are written while training goes on (on a single host)
    c.stall_minutes = 10.0  # without a step until the watchdog ends the run; compiling does not count
    c.log_steps = 10
    return c
