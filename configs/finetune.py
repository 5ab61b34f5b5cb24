"""The recipe for a few hundred to some ten thousand photographs: stages 2 and 3, started from faces-lite0.

    python -m lae_jax.main --config configs/finetune.py --devices 2

faces-lite0 is the model of the package (docs/predicting.md). Reads data/faces (set another with --config.faces). On a
CPU, --devices is the number of cores. Writes runs/finetune/represent and runs/finetune/classify. What to expect is in
docs/expectations.md.
"""

from ml_collections import ConfigDict

from lae_jax.configs import faces


def get_config():
    c = ConfigDict({"workdir": "runs/finetune", "order": ("represent", "classify"), "stages": {}})
    c.faces = "data/faces"  # prepared data set of both stages
    c.seed = 0  # of both stages
    c.stages.represent = faces.stage(c, "represent", 6.0, 0.01, 64)
    c.stages.represent.init_from = "faces-lite0"
    c.stages.classify = faces.stage(c, "classify", 4.0, 0.002, 64)
    return c
