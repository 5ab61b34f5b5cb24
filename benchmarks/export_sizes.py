"""Every format of every published model: seconds, size, and how far its ages are from the model's in JAX.

    python -m benchmarks.export_sizes
    python -m benchmarks.export_sizes --models resnet18:64 --formats onnx

Weights are random, with BatchNorm statistics of drawn faces; an export that differs by more than is allowed ends it.
"""

import pathlib
import tempfile

import jax
import numpy as np

from benchmarks import harness
from lae_jax import models
from lae_jax.export import convert, folder
from lae_jax.export.program import Program
from lae_jax.runs import preprocessing
from lae_jax.runtime import console
from lae_jax.train import steps

MODELS = ("resnet18:64", "resnet50:64", "efficientnet_v2_s:96", "efficientnet_v2_m:224")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def program_of(name: str, side: int, images: np.ndarray) -> Program:
    """A model of random weights that tells faces apart: its statistics are those of a training pass."""
    # Statistics of branches that are dropped would not be those of inference.
    module, rng = models.create(name, 101, dropout=0.0, stochastic_depth=0.0), np.random.default_rng(0)
    variables = jax.tree_util.tree_map_with_path(_damped, models.initialise(module, side, seed=0))
    normalised = steps.normalise(images, MEAN, STD, np.float32)

    @jax.jit
    def statistics(variables, images):
        return module.apply(variables, images, train=True, mutable=["batch_stats"])[1]["batch_stats"]

    moved = statistics(variables, normalised)
    # One step of momentum 0.9, from mean 0 and variance 1.
    before = variables["batch_stats"]
    batch_stats = jax.tree.map(lambda new, old: (np.asarray(new) - 0.9 * np.asarray(old)) / 0.1, moved, before)
    backbone = {
        kind: tree["backbone"] for kind, tree in (("params", variables["params"]), ("batch_stats", batch_stats))
    }
    features = jax.jit(models.create(name, 0).apply)(backbone, normalised)
    fc = variables["params"]["head"]["fc"]
    kernel = rng.standard_normal(fc["kernel"].shape).astype(np.float32)
    kernel *= 2 / np.std(features @ kernel)  # logits as a trained model has them
    params = {**variables["params"], "head": {"fc": {**fc, "kernel": kernel}}}
    return Program(name, {"params": params, "batch_stats": batch_stats}, side, MEAN, STD)


def _damped(path, value):
    """Residual branches add a little, as trained ones do: forty that add as much as they are given amplify rounding
    until float32 says nothing."""
    last = path[-1].key == "scale" and path[-2].key in ("project_bn", "bn2", "bn3")
    return np.asarray(value) * np.float32(0.2 if last else 1)


def main(argv: list[str] | None = None) -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="NAME:PIXELS")
    parser.add_argument("--formats", nargs="+", default=[*folder.FORMATS], choices=[*folder.FORMATS])
    args = parser.parse_args(argv)
    jax.config.update("jax_platforms", "cpu")
    rows = []
    for model in args.models:
        name, _, side = model.partition(":")
        crops = convert.drawn(preprocessing.Input(int(side)))
        program = program_of(name, int(side), crops.images)
        for form in args.formats:
            with tempfile.TemporaryDirectory() as place:
                path = pathlib.Path(place)
                with console.progress(total=2, what=f"{model} {form}", unit="steps", leave=False) as line:
                    made = convert.write_model(form, path, program, crops, line)
                size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) / 1e6
            check, seconds = made["check"], made["seconds"]
            differences = (f"{check[key]:.1e}" for key in ("max_age_difference", "max_distribution_difference"))
            rows.append((model, form, f"{size:.1f}", f"{seconds['write']}", f"{seconds['check']}", *differences))
            console.write(f"{model} {form} done")
    header = ("model", "format", "MB", "s to write", "s to read and compare", "years", "probability")
    print(console.table(header, rows))


if __name__ == "__main__":
    harness.run(main)
