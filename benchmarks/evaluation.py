"""Evaluating a split and predicting arrays against the bare forward pass of as many images: images a second.

    python -m benchmarks.evaluation --data data/faces --model efficientnet_v2_tiny --image_size 64
    python -m benchmarks.evaluation --data data/faces --model efficientnet_v2_m --image_size 224 --images 64

"evaluate" reads, decodes, resizes, computes, gathers and scores, as after each epoch; "read and decode" is its input
pipeline alone; "start" its seconds until the first batch. "predict" is AgeEstimator.predict of arrays of the model's
size. The sides take turns with one compiled pass for each batch size. On a CPU decoding and the model share the cores:
what is left of the bare pass is then 1 / (1 + pass / decode), told as "expected".
"""

import argparse

from benchmarks import harness
from lae_jax.runtime import cpu, start

if __name__ == "__main__":
    start.devices()  # as `lae_jax.evaluate` does, before the imports that start threads

import jax
import numpy as np
from etils import epath

from lae_jax import models, stages
from lae_jax.configs import represent
from lae_jax.data import pipeline, records
from lae_jax.predict import estimator as estimators
from lae_jax.runs import build, fields, inputs
from lae_jax.runtime import origin, parallel


def untrained(args: argparse.Namespace, dataset: records.Dataset) -> origin.Checkpoint:
    """A checkpoint of stage 2 with initial values."""
    config = represent.get_config()
    config.model.name, config.model.dtype, config.data.image_size = args.model, args.dtype, args.image_size
    config.data.path = args.data
    module = build.model(config, stages.REPRESENT, build.NUM_AGES)
    meta = {
        "stage": "represent",
        "config": fields.as_json(config),
        "num_outputs": build.NUM_AGES,
        "crop": dataset.crop,
        "constants": {},
    }
    variables = models.initialise(module, args.image_size, 0)
    return origin.Checkpoint(workdir=epath.Path("nowhere"), step=0, variables=variables, meta=meta)


class Sides:
    """The same images by each way; every method returns images a second of wall and of CPU time."""

    def __init__(self, args: argparse.Namespace):
        self.dataset = records.open_dataset(args.data)
        checkpoint = untrained(args, self.dataset)
        self.config, self.par = fields.from_json(checkpoint.meta["config"]), parallel.Parallel()
        build.load_ages = lambda *_: (checkpoint, self.config, stages.REPRESENT)
        self.estimator = estimators.AgeEstimator.from_run("nowhere")
        module = build.model(self.config, stages.REPRESENT, build.NUM_AGES)
        self.forward = build.forward(self.config, stages.REPRESENT, module, self.par)
        self.variables = self.par.place(checkpoint.variables)
        rows = self.dataset.rows("all")
        rows = rows[~np.isnan(self.dataset.column("age")[rows])]
        self.rows = rows[: min(args.images, len(rows))]
        self.batch_size = min(args.batch_size, len(self.rows)) // self.par.device_count * self.par.device_count
        self.rows = self.rows[: len(self.rows) // self.batch_size * self.batch_size]
        self.ages = self.dataset.column("age")[self.rows]
        self.images = np.concatenate([batch["image"] for batch in self.batches()])

    def batches(self):
        places = pipeline.Places(self.batch_size, *self.par.local_places(self.batch_size))
        augmentation = inputs.augmentation(self.config)
        return pipeline.eval_batches(
            self.dataset, self.rows, augmentation, places=places, threads=inputs.threads(self.config)
        )

    def bare(self, size: int) -> None:
        pending = [self.forward(self.variables, part) for part in np.split(self.images, len(self.images) // size)]
        jax.block_until_ready(pending)

    def evaluate(self) -> None:
        logits = inputs.outputs_of(
            self.config, self.dataset, self.rows, self.forward, self.variables, self.par, self.batch_size
        )
        stages.REPRESENT.score({"age": self.ages}, logits)

    def decode(self) -> None:
        for _ in self.batches():
            pass

    def start(self) -> None:
        next(self.batches())

    def bare_of_predict(self) -> None:
        size = self.estimator.sizes[-1]
        images = self.images[: len(self.images) // size * size]
        pending = [self.estimator.forward(part) for part in np.split(images, len(images) // size)]
        np.concatenate([np.asarray(part) for part in pending])

    def predict(self) -> None:
        size = self.estimator.sizes[-1]
        self.estimator.predict(list(self.images[: len(self.images) // size * size]))


def measure(args: argparse.Namespace) -> dict:
    sides = Sides(args)
    count, small = len(sides.images), len(sides.images) // sides.estimator.sizes[-1] * sides.estimator.sizes[-1]
    ways = {
        "forward pass": (lambda: sides.bare(sides.batch_size), count),
        "evaluate": (sides.evaluate, count),
        "read and decode": (sides.decode, count),
        "start": (sides.start, 1),
        "forward pass of predict": (sides.bare_of_predict, small),
        "predict": (sides.predict, small),
    }
    found = harness.take_turns({name: side for name, (side, _) in ways.items()}, args.turns)
    rates = harness.rates({name: images for name, (_, images) in ways.items()}, found)
    bare, decode = rates["forward pass"], rates["read and decode"]
    return {
        **vars(args),
        "device": jax.devices()[0].device_kind,
        "cores": cpu.cores(),
        "images": count,
        "images_per_second": rates,
        "evaluate": [a / b for a, b in zip(rates["evaluate"], bare, strict=True)],
        "expected": [1 / (1 + a / b) for a, b in zip(bare, decode, strict=True)],
        "predict": [a / b for a, b in zip(rates["predict"], rates["forward pass of predict"], strict=True)],
        "start_seconds": 1 / rates["start"][0],
        "seconds": found,
    }


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--data", required=True, help="prepared data set")
    parser.add_argument("--model", default="efficientnet_v2_tiny")
    parser.add_argument("--image_size", type=int, default=64)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--images", type=int, default=2048, help="at most, whole batches of them")
    parser.add_argument("--turns", type=int, default=5)
    args = parser.parse_args()
    found = measure(args)
    rows = [[name, f"{wall:.0f}", f"{own:.0f}"] for name, (wall, own) in found["images_per_second"].items()]
    harness.show(found, ["", "images/s", "of CPU time"], [row for row in rows if row[0] != "start"])
    for name in ("evaluate", "expected", "predict"):
        wall, own = found[name]
        print(f"{name}: {wall:.2f} of the forward pass, {own:.2f} by CPU time")
    print(f"start: {found['start_seconds']:.2f} s until the first batch")


if __name__ == "__main__":
    harness.run(main)
