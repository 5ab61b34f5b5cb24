"""All fields of a run, with the paper's settings. The other configs change a few of them.

"ours" marks a choice that the paper leaves open. A field without a default value is a placeholder, so that you can set
it on the command line.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def augmentation(kind: str) -> ConfigDict:
    """Returns 'full' (the paper's), 'flip' (the standard baseline's: resize, flip) or 'crop' (crop, flip, light)."""
    c = ConfigDict()
    c.patch = (
        "none"  # 'area': random patch, resized; 'crop': crop of data.image_size from data.resize; 'none': whole image
    )
    c.area = (0.5, 1.0)  # area of the patch, as a share of the image (ours)
    c.aspect = (3 / 4, 4 / 3)  # width / height of the patch (ours)
    c.flip = 0.5  # probability
    c.brightness = 0.0  # jitter: factors 1 +- this; hue: rotations of +- this
    c.contrast = 0.0
    c.saturation = 0.0
    c.hue = 0.0
    c.offset = 0.0  # jitter: grey levels added, +- this
    c.num_ops = 0  # RandAugment: N, number of operations
    c.magnitude = 9  # RandAugment: M, magnitude
    c.num_levels = 31  # RandAugment: number of levels of M (ours)
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
    # Run or model file to take the backbone from (stage 3: the model), or 'faces-lite0', the model of the package; in
    # stages 1 and 2 also a file of weights, hf:owner/name[@revision] (docs/training.md) or 'scratch'. Must be set; in a
    # recipe '' is the stage before.
    c.init_from = ""
    c.init_step = placeholder(int)  # step of its checkpoint (default: the kept one)
    c.mae_from = ""  # stage 3: run or model file whose validation MAE is in the loss (default: init_from)
    # Stages 2 and 3: a run of these stages, or a model file, that teaches this one its distributions.
    c.teacher = ""
    c.reinit_head = False  # stage 3: a new head instead of stage 2's; methods that start from a new head set it

    c.data = ConfigDict()
    c.data.path = "data/faces"  # prepared data set
    c.data.train = "train"  # split to train on; 'all': every row
    c.data.split = "validation"  # split to score each epoch; '': none, the newest checkpoint is kept
    c.data.fold = placeholder(int)  # number of the fold, of a data set prepared with --folds
    c.data.image_size = 224
    c.data.resize = 0  # side before a crop to image_size; 0: no crop (evaluation, and patch 'crop' and 'none')
    c.data.mean = (0.485, 0.456, 0.406)  # normalisation of images in [0, 1]
    c.data.std = (0.229, 0.224, 0.225)
    c.data.normalize = ""  # | 'weights': the mean and std that init_from was trained with
    c.data.power = 0.0  # class-balanced order; 0: ages equally likely (the paper), 1: as frequent as in the data
    # CSV age,weight: an age with n images is drawn in proportion to weight x n^power; '': all weights are 1.
    c.data.age_weights = ""
    c.data.verify = "auto"  # | 'full': SHA-256 of every file; 'quick': not of shards; 'auto': full below 10 GB
    c.data.allow_leak = False  # train although splits share images or people (--allow-leak)
    c.data.threads = placeholder(int)  # threads of the input pipeline (default: all cores)
    c.data.augment = augmentation("full")

    c.model = ConfigDict()
    c.model.name = "efficientnet_v2_m"
    # Type of the backbone's computation: 'bfloat16' | 'float32' | 'auto' (bfloat16 on TPUs and on GPUs of compute
    # capability 8.0 and more, else float32). Parameters, heads and losses are float32.
    c.model.dtype = "auto"
    # Precision of the backbone's float32 products: 'default' (TF32 on GPUs, bfloat16 on TPUs) | 'high' | 'highest'.
    c.model.precision = "default"  # heads and losses always use 'highest'
    c.model.dropout = placeholder(float)  # default: as published
    c.model.stochastic_depth = placeholder(float)  # default: as published
    c.model.embedding_size = 512  # stage 1 (ours)
    # Stage 1: 'split' (each device has a part of the class weights: for many people) | 'copied' (each has all) | 'auto'
    # (split from 300,000 people on, or with class_sampling).
    c.model.class_weights = "auto"
    c.model.class_sampling = (
        1.0  # stage 1: share of the people that a step compares with, and always those of its images
    )
    c.model.hidden = 0  # stages 2 and 3: units of a hidden layer before the FC; 0: no hidden layer (the paper)
    c.model.sync_batch_norm = True  # statistics over the images of all devices (ours)
    c.model.remat = False  # recompute blocks in the backward pass: less memory, a third more time

    c.loss = ConfigDict()
    c.loss.er_weight = 1.0  # lambda of equation 3
    c.loss.label_sigma = 1.0  # stages 2 and 3: standard deviation of the label distribution in years (the paper: 1)
    # True: a label with a spread (prepare --label-spread) has it as its width, but at least label_sigma.
    c.loss.label_spread = True
    c.loss.in_range = "uniform"  # label distribution in a range of ages | 'model': as the model's own in that range
    c.loss.teacher_weight = 0.5  # loss = (1 - this) x the stage's + this x divergence from the teacher; 0: no teacher
    c.loss.teacher_temperature = 1.0  # T of both distributions; the divergence is multiplied by T^2
    c.loss.scale = 64.0  # AM-softmax s (ours)
    c.loss.margin = 0.35  # AM-softmax m (ours); in their papers 0.5 for arcface, 0.4 for adaface
    c.loss.margin_form = "am_softmax"  # (the paper) | 'arcface' | 'adaface'

    # Stage 2: 'none' (the paper), or cures for a long tail: 'lds', 'fds', 'rank_sim', 'balanced_mse', 'dist_loss',
    # 'conr', several with + between them (docs/cures.md). A setting may be changed if its cure is on.
    c.cure = ConfigDict()
    c.cure.name = "none"
    c.cure.lds_power = 0.5  # the weight of an age is (1 / smoothed count) to this power
    c.cure.fds_momentum = 0.9  # of the running statistics of the features
    c.cure.fds_start_update = 0  # first epoch whose features are in the statistics
    c.cure.fds_start_smooth = 1  # first epoch whose features are calibrated
    c.cure.rank_sim_weight = 100.0  # gamma
    c.cure.rank_sim_strength = 2.0  # lambda
    c.cure.balanced_mse_noise = 10.0  # years, at the first step; it is learned
    c.cure.dist_loss_weight = 1.0
    c.cure.dist_loss_bandwidth = 0.5  # of the density of the ages, as a share of their standard deviation
    c.cure.conr_weight = 4.0  # beta
    c.cure.conr_window = 1.0  # years in which ages, or predictions, count as alike
    c.cure.conr_temperature = 0.07  # of the cosines
    c.cure.conr_eta = 0.01  # the pushing weight grows by exp(this) for each year between two ages

    c.classify = ConfigDict()
    c.classify.method = "lae"  # stage 3: the paper's, or a method of docs/longtail.md that can be a stage 3
    c.classify.setting = placeholder(float)  # setting of the method, if it has one

    c.optim = ConfigDict()
    c.optim.name = "sgd"  # (the paper) | 'adamw'
    c.optim.base_learning_rate = 0.005  # learning rate = this x batch_size / 256; of a schedule: its peak
    c.optim.schedule = "one_cycle"  # | 'warmup_cosine' | 'multi_step' | 'constant'
    c.optim.pct_start = 0.3  # one_cycle: share of the steps in which the learning rate rises
    c.optim.warmup_epochs = 1.0  # warmup_cosine: epochs in which the learning rate rises; then it falls as a cosine
    c.optim.div_factor = 25.0  # one_cycle, warmup_cosine: peak / first learning rate
    c.optim.final_div_factor = 1e4  # one_cycle, warmup_cosine: first / last learning rate
    # one_cycle: momentum (adamw: beta1) 0.95 -> 0.85 -> 0.95 (ours); False: `momentum` (adamw: `beta1`)
    c.optim.cycle_momentum = True
    c.optim.milestones = (7, 14, 16)  # multi_step: epochs after which gamma multiplies the learning rate
    c.optim.gamma = 0.1
    c.optim.momentum = 0.9  # sgd
    c.optim.nesterov = True  # sgd
    c.optim.beta1 = 0.9  # adamw: decay of the mean of gradients
    c.optim.beta2 = 0.999  # adamw: decay of the mean of their squares
    c.optim.epsilon = 1e-8  # adamw
    c.optim.weight_decay = 5e-4  # sgd: coupled; adamw: decoupled (ours)
    c.optim.decay_all = True  # weight decay for every trained parameter (ours); False: not for biases and norms
    c.optim.head_factor = 1.0  # the head's learning rate = this x the learning rate
    c.optim.layer_decay = 1.0  # the learning rate of each layer of the backbone = this x that of the layer after it
    c.optim.clip_norm = 0.0  # limit of the global norm of the trained part's gradients; 0: no clipping

    # Decay of the EMA of parameters and statistics, whose weights are then scored, kept and handed on; 0: no EMA.
    c.ema_decay = 0.0
    c.epochs = 24.0
    c.batch_size = 256  # images in a batch, over all devices and hosts
    c.accumulate = 1  # parts of a batch, computed one after the other to save memory
    # How JAX maps a step over the devices: 'pmap' | 'shard_map' (same numbers, with cures up to rounding; less work for
    # the host where a run has several processes); 'auto': pmap with one process, shard_map with several and where class
    # weights are split.
    c.parallel = "auto"
    c.max_skipped_steps = 10  # end the run after this many skipped steps in a row (not finite)

    c.eval_batch_size = 256
    c.eval_epochs = 1.0  # epochs between two evaluations
    # Fewest validation images (in stage 3: of each age group) for selecting a checkpoint by its score (ours).
    c.select_images = 30
    c.save_steps = 1000  # steps between two checkpoints in an epoch; each evaluation saves too
    c.async_save = True  # write checkpoints while training continues (on a single host)
    c.stall_minutes = 10.0  # minutes without a step until the watchdog ends the run; compiling does not count
    c.log_steps = 10  # steps between two lines of metrics.jsonl
    return c
