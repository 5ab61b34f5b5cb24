"""The recipe of the built-in model faces-lite0: EfficientNet-Lite0 at 112 px, trained on the age ranges of FairFace.

    python -m lae_jax.prepare --reader fairface --source FAIRFACE --out data/fairface
    python -m lae_jax.main --config configs/faces.py --allow-leak --devices 2 \\
                           --config.stages.represent.init_from=efficientnet_lite0.safetensors

docs/training.md says how efficientnet_lite0.safetensors is made. Four pictures of FairFace's validation split are in
its training split too: --allow-leak. --devices is the number of cores. Writes runs/faces/represent and
runs/faces/classify. On two cores (AMD EPYC, Milan) shared with other work, stage 2 took about 2.5 hours, at 32 images
a second, and stage 3 14 minutes; alone on the machine, stage 2 makes 47 images a second. On FairFace's validation
split, the mean distance to the range of the label and its sigma are 2.40 and 2.55 years after stage 2, 2.82 and 0.74
after stage 3; the model's card has more (lae_jax/runtime/model_file/faces_lite0.md), and docs/results.md says how the
method of stage 3 was chosen.
"""

from ml_collections import ConfigDict

from lae_jax.configs import common


def stage(shared: ConfigDict, name: str, epochs: float, learning_rate: float, batch_size: int) -> ConfigDict:
    """Returns a stage of EfficientNet-Lite0 at 112 px, here and in finetune.py."""
    c = common.get_config()
    c.stage = name
    c.seed = shared.get_ref("seed")
    c.data.path = shared.get_ref("faces")
    c.model.name = "efficientnet_lite0"
    c.batch_size, c.eval_batch_size = batch_size, 256
    c.optim.base_learning_rate = learning_rate * 256 / c.batch_size
    c.optim.clip_norm = 5.0
    # 112 of 140 pixels are the template that faces are aligned to, without its margin: FairFace's pictures end there.
    c.data.image_size, c.data.resize = 112, 140
    c.data.normalize = "weights"
    c.data.augment = common.augmentation("full")
    c.data.augment.patch = "crop"
    c.epochs = epochs
    c.save_steps = 100  # some minutes on two cores
    return c


def get_config():
    c = ConfigDict({"workdir": "runs/faces", "order": ("represent", "classify"), "stages": {}})
    c.faces = "data/fairface"  # prepared data set of both stages
    c.seed = 0  # of both stages
    c.stages.represent = stage(c, "represent", 8.0, 0.03, 128)
    c.stages.classify = stage(c, "classify", 4.0, 0.05, 128)
    # Equation 4 wants errors of mae years, which pulls predictions out of the range of their label.
    c.stages.classify.classify.method = "crt"
    return c
