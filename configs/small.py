"""The recipe for a small machine: ResNet-18 at 64 px, under an hour on two CPU cores for 6,000 faces.

    python -m lae_jax.main --config configs/small.py                       stages 1, 2, 3 (data/people and data/faces)
    python -m lae_jax.main --config configs/small.py:tuned                 stages 2, 3: chosen on validation
    python -m lae_jax.main --config configs/small.py:yardstick             stages 2, 3 with crop, flip and light
    python -m lae_jax.main --config configs/small.py:paper_augmentation    the same with the paper's augmentation

Reads data/faces (and data/people, prepared with identities; set others with --config.faces and --config.people). Writes
runs/<variant>/pretrain, represent and classify. Expected results are in docs/results.md.
"""

from ml_collections import ConfigDict

from lae_jax.configs import common
from lae_jax.runtime.errors import unknown

VARIANTS = ("small", "tuned", "yardstick", "paper_augmentation")


def _stage(shared: ConfigDict, name: str, epochs: float, learning_rate: float, augmentation: str) -> ConfigDict:
    c = common.get_config()
    c.stage = name
    c.seed = shared.get_ref("seed")
    c.data.path = shared.get_ref("people" if name == "pretrain" else "faces")
    c.model.name = "resnet18"
    c.batch_size, c.eval_batch_size = 64, 128
    c.optim.base_learning_rate = learning_rate * 256 / c.batch_size
    c.optim.cycle_momentum, c.optim.clip_norm = False, 5.0
    c.data.image_size, c.data.resize = 64, 72
    c.data.augment = common.augmentation(augmentation)
    c.epochs = epochs
    return c


def get_config(variant: str = "small"):
    if variant not in VARIANTS:
        raise ValueError(unknown("variant of configs/small.py:<variant>", variant, VARIANTS))
    augmentation = "full" if variant == "paper_augmentation" else "crop"
    c = ConfigDict({"workdir": f"runs/{variant}", "order": ("represent", "classify"), "stages": {}})
    c.faces, c.people = "data/faces", "data/people"  # prepared data sets: of stages 2 and 3, and of stage 1
    c.seed = 0  # of all stages
    c.stages.represent = _stage(c, "represent", 12.0, 0.02, augmentation)
    # `tuned` had the lowest validation MAE + sigma among rates 0.002 and 0.008, 4 and 12 epochs, power 0 and 0.5.
    c.stages.classify = _stage(c, "classify", 4.0, 0.008 if variant == "tuned" else 0.002, augmentation)
    if variant == "small":
        c.order = ("pretrain", *c.order)
        c.stages.pretrain = _stage(c, "pretrain", 20.0, 0.02, "crop")
        c.stages.pretrain.model.embedding_size = 128
    c.stages[c.order[0]].init_from = "scratch"
    return c
