"""A short run of the yardstick in JAX and in PyTorch: same weights, same batches, float64.

    make setup-peers
    python -m benchmarks.yardstick_steps --data data/faces

The batches are those of our pipeline, and the learning rate goes through its whole schedule. Fails where a loss, a norm
of gradients or the weights after the last step differ by more than 1e-6 of themselves, or of the way that they moved.
With more than ten steps, stage 2 enlarges the rounding of float64 until two runs of one program are unlike. The running
variances differ by n / (n - 1): torch counts one value less. The last column shows what that makes of the ages of the
validation split: the mean absolute difference, in years.
"""

import functools
import io
import json
import os
import pathlib
import subprocess
import tempfile
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from benchmarks import harness
from lae_jax import models, stages
from lae_jax.configs import small
from lae_jax.data import pipeline, records, sampling
from lae_jax.faces.tensorflow import tf
from lae_jax.models.pretrained import naming
from lae_jax.runs import build, inputs
from lae_jax.runtime import parallel
from lae_jax.train import steps

ROOT = pathlib.Path(__file__).parent.parent
PYTHON = ".venv-peers/bin/python"
MAE, AT_MOST = 7.0, 1e-6
# Pixels of a side, and Pillow's way there; it filters, except for the nearest pixel.
RESIZED = {
    "bicubic": (72, Image.Resampling.BICUBIC),  # ours
    "bilinear": (72, Image.Resampling.BILINEAR),
    "nearest": (72, Image.Resampling.NEAREST),
    "unfiltered": (72, None),  # bilinear between four pixels, as in OpenCV and torch's interpolate
    "wide": (100, Image.Resampling.BICUBIC),
}


def in_torch(job: dict, path: pathlib.Path, python: str) -> None:
    """Runs a job of `benchmarks.yardstick_torch`."""
    path.write_text(json.dumps(job))
    # OpenMP's threads wait for each other in a loop, which takes the time of other programs.
    environment = {**os.environ, "OMP_NUM_THREADS": str(job.get("threads", 1))}
    command = [str(pathlib.Path(python).absolute()), "-m", "benchmarks.yardstick_torch", str(path.absolute())]
    subprocess.run(command, check=True, cwd=ROOT, env=environment)


def leaves(tree: dict, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), np.asarray(value)


def torch_names(variables: dict) -> dict[str, np.ndarray]:
    """A ResNet-18 of ours as a state dict of torchvision."""
    kinds = ("params", "batch_stats")
    flat = {(kind, *path): leaf for kind in kinds for path, leaf in leaves(variables[kind]["backbone"])}
    layout = naming.torch_layout("resnet18", {path: leaf.shape for path, leaf in flat.items()})
    fc = variables["params"]["head"]["fc"]
    return {
        **{name: np.transpose(flat[each.path], np.argsort(each.axes)) for name, each in layout.items()},
        "fc.weight": np.asarray(fc["kernel"]).T,
        "fc.bias": np.asarray(fc["bias"]),
    }


def resized(dataset: records.Dataset, rows: np.ndarray, how: str) -> np.ndarray:
    """Images of rows, uint8 (N, side, side, 3), resized without our pipeline."""
    (side, method), images = RESIZED[how], []
    for encoded in dataset.encoded(rows):
        image = Image.open(io.BytesIO(encoded)).convert("RGB")
        if method is None:
            images.append(np.round(tf.image.resize(np.asarray(image), (side, side)).numpy()).astype(np.uint8))
        else:
            images.append(np.asarray(image.resize((side, side), method)))
    return np.stack(images)


def settings_of(stage_name: str) -> ConfigDict:
    return small.get_config("yardstick").stages[stage_name].copy_and_resolve_references()


def initial_weights(config: ConfigDict, seed: int) -> dict:
    """The variables that a run of ours from scratch starts with."""
    module = build.model(config, stages.get(config.stage), build.NUM_AGES)
    return models.initialise(module, config.data.image_size, seed)


def our_batches(
    config: ConfigDict, dataset: records.Dataset, seed: int, steps: int, threads: int
) -> Iterator[dict[str, np.ndarray]]:
    """The first batches of a run of ours, in the order of stage 2: image (64, 64, 64, 3) uint8 and target (64,)."""
    training = inputs.examples(dataset, "train", stages.get(config.stage))
    order = sampling.shuffled(len(training.rows), config.batch_size, seed)
    places = pipeline.Places(config.batch_size, 0, config.batch_size)
    how, targets = inputs.augmentation(config), training.targets.astype(np.float32)
    read = functools.partial(pipeline.train_batches, dataset, training.rows, targets, order, how)
    return read(seed=seed, start=0, stop=steps, threads=threads, places=places)


def our_steps(stage_name: str, dataset: records.Dataset, total: int) -> tuple[dict[str, np.ndarray], dict]:
    """Takes `total` steps.

    Returns:
      The weights before, by torch's names, with images and ages of the steps; losses, norms, the weights after and the
      ages of the validation split.
    """
    config = settings_of(stage_name)
    config.model.dtype = "float64"
    stage, par = stages.get(stage_name), parallel.Parallel(tuple(jax.local_devices()[:1]))
    module, variables = build.model(config, stage, build.NUM_AGES), initial_weights(config, config.seed)
    tx = build.optimiser(config, build.schedules(config, total, total), variables["params"], stage)
    settings = steps.Settings(0, jnp.dtype(config.model.dtype), tuple(config.data.mean), tuple(config.data.std))
    constants = {**config.loss, "mae": MAE}
    step = par.map_train(
        functools.partial(steps.train_step, stage=stage, constants=constants, model=module, tx=tx, settings=settings)
    )
    batches = list(our_batches(config, dataset, config.seed, total, threads=1))
    validation = dataset.rows("validation")
    given = {
        **torch_names(variables),
        "images": np.stack([batch["image"] for batch in batches]),
        "ages": np.stack([batch["target"] for batch in batches]),
        "validation": resized(dataset, validation, "bicubic"),
    }
    state, losses, norms = par.place(steps.create_state(variables, tx)), [], []
    for batch in batches:
        # From float32 ages, the loss computes the label distribution in float32.
        state, told = step(state, {"image": batch["image"], "target": batch["target"].astype(np.float64)})
        losses.append(float(told["loss"][0] / told["loss"][1]))
        norms.append(float(told["grad_norm"]))
    after = {"params": state.params, "batch_stats": state.batch_stats}
    forward = build.forward(config, stage, module, par)
    ages = inputs.outputs_of(config, dataset, validation, forward, after, par, config.eval_batch_size)
    return given, {"losses": losses, "norms": norms, "predicted": ages, **torch_names(after)}


def compare(stage_name: str, dataset: records.Dataset, total: int, python: str) -> dict[str, float]:
    """Largest relative differences of losses and norms; differences after the steps as shares of the movement; years.

    The steps of stage 3 start from initial weights too, which is enough to compare steps.
    """
    given, ours = our_steps(stage_name, dataset, total)
    with tempfile.TemporaryDirectory() as folder:
        data, out = (pathlib.Path(folder) / name for name in ("given.npz", "theirs.npz"))
        np.savez(data, **given)
        job = {"data": str(data), "out": str(out), "total": total, "dtype": "float64"}
        in_torch({**job, "mae": MAE if stage_name == "classify" else None}, pathlib.Path(folder) / "job.json", python)
        with np.load(out) as file:
            theirs = dict(file)
    found = {name: float(np.abs(np.divide(ours[name], theirs[name]) - 1).max()) for name in ("losses", "norms")}
    for what, ends in (("weights", ("weight", "bias")), ("means", ("_mean",)), ("variances", ("_var",))):
        names = [name for name in given if name.endswith(ends)]
        apart, moved = (
            sum(float(np.sum((one[name] - theirs[name]) ** 2)) for name in names) ** 0.5 for one in (ours, given)
        )
        found[what] = apart / moved if moved else apart
    return {**found, "years": float(np.abs(ours["predicted"] - theirs["predicted"]).mean())}


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--data", type=pathlib.Path, required=True, help="data set prepared as docs/results.md says")
    parser.add_argument("--python", default=PYTHON, help="of the environment with torch")
    parser.add_argument("--steps", type=int, default=5)
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    dataset = records.open_dataset(args.data)
    found = {name: compare(name, dataset, args.steps, args.python) for name in ("represent", "classify")}
    table = [(name, *(f"{share:.1e}" for share in row.values())) for name, row in found.items()]
    harness.show(found, ("stage", *next(iter(found.values()))), table)
    worst = max(value for row in found.values() for what, value in row.items() if what not in ("variances", "years"))
    if worst > AT_MOST:
        raise SystemExit(f"the steps differ by {worst:.1e}, more than {AT_MOST}")


if __name__ == "__main__":
    harness.run(main)
