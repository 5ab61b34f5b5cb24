"""The demo's recipe: a few thousand drawn faces and small models, for minutes on two CPU cores.

    make demo

Expected: the pattern of the paper's Table 2, see docs/results.md.
"""

from ml_collections import ConfigDict

from lae_jax.configs import common


def _stage(shared: ConfigDict, name: str, epochs: float, learning_rate: float) -> ConfigDict:
    c = common.get_config()
    c.stage = name
    c.seed = shared.get_ref("seed")
    c.model.name = "efficientnet_v2_nano"
    c.data.path = shared.get_ref("faces")
    # The faces are drawn at 36 px, so nothing is resized; resizing takes longer than decoding.
    c.data.image_size, c.data.resize = 32, 36
    c.data.augment = common.augmentation("flip")
    c.data.augment.patch = "crop"
    # On 8 simulated devices, an image takes half the time that it takes at batch size 64.
    c.batch_size, c.eval_batch_size = 256, 400
    c.optim.base_learning_rate = learning_rate * 256 / c.batch_size
    c.optim.clip_norm = 5.0
    c.epochs = epochs
    c.eval_epochs = epochs / 3
    return c


def get_config():
    c = ConfigDict({"workdir": "runs/demo", "order": ("pretrain", "represent", "classify"), "stages": {}})
    c.faces = "data/drawn"  # prepared data set of all stages
    c.seed = 0  # of all stages
    c.stages.pretrain = _stage(c, "pretrain", epochs=3.0, learning_rate=0.05)
    c.stages.pretrain.init_from = "scratch"
    c.stages.pretrain.model.embedding_size = 64
    c.stages.pretrain.eval_epochs = 3.0
    c.stages.represent = _stage(c, "represent", epochs=12.0, learning_rate=0.1)
    # A small model has few features. To converge, the head needs 8 epochs and a higher learning rate than the paper's.
    c.stages.classify = _stage(c, "classify", epochs=8.0, learning_rate=0.1)
    # With five children in the validation split, choosing among several checkpoints would be choosing by chance.
    c.stages.classify.eval_epochs = 8.0
    return c
