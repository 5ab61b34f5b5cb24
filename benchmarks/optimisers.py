"""What an optimiser and an EMA cost a training step: ratios to SGD's, from compiled steps that take turns.

    python -m benchmarks.optimisers
    python -m benchmarks.optimisers --model efficientnet_v2_m --image_size 224 --batch_size 64

The steps are `train`'s own, of stage 2 on one device, on one batch in memory. On a loaded machine the CPU time tells
more.
"""

import argparse
import functools

import jax
import numpy as np

from benchmarks import harness
from lae_jax import models, stages
from lae_jax.configs import represent
from lae_jax.runs import build, precision
from lae_jax.runtime import parallel
from lae_jax.train import steps

SIDES = {"sgd": ("sgd", 0.0), "sgd, EMA": ("sgd", 0.999), "adamw": ("adamw", 0.0), "adamw, EMA": ("adamw", 0.999)}


class Side:
    """A compiled step and its state."""

    def __init__(self, args: argparse.Namespace, optimiser: str, ema_decay: float):
        config, stage = represent.get_config(), stages.REPRESENT
        config.model.name, config.model.dtype, config.optim.name = args.model, args.dtype, optimiser
        par = parallel.Parallel(tuple(jax.local_devices()[:1]))
        module = build.model(config, stage, build.NUM_AGES)
        variables = models.initialise(module, args.image_size, 0)
        tx = build.optimiser(config, build.schedules(config, 1000, 24_000), variables["params"], stage)
        settings = steps.Settings(0, precision.dtype_of(config), config.data.mean, config.data.std, ema_decay=ema_decay)
        step = functools.partial(
            steps.train_step, stage=stage, constants=dict(config.loss), model=module, tx=tx, settings=settings
        )
        self.state = par.place(steps.create_state(variables, tx, stage.trains if ema_decay else ()))
        self.step = par.map_train(step)
        rng, size = np.random.default_rng(0), (args.batch_size, args.image_size, args.image_size, 3)
        self.batch = {
            "image": rng.integers(0, 256, size, np.uint8),
            "target": rng.uniform(0, 100, args.batch_size).astype(np.float32),
        }
        self.count = args.steps

    def __call__(self) -> None:
        """Takes the steps of a turn."""
        for _ in range(self.count):
            self.state, _ = self.step(self.state, self.batch)
        jax.block_until_ready(self.state)


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--model", default="efficientnet_v2_tiny")
    parser.add_argument("--image_size", type=int, default=64)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--steps", type=int, default=5, help="of a turn, of each side")
    parser.add_argument("--turns", type=int, default=9)
    args = parser.parse_args()
    seconds = harness.take_turns({name: Side(args, *side) for name, side in SIDES.items()}, args.turns)
    ratios = {name: np.median(taken / seconds["sgd"], axis=0).tolist() for name, taken in seconds.items()}
    content = {**vars(args), "device": jax.devices()[0].device_kind, "ratios": ratios, "seconds": seconds}
    harness.show(content, ["", "wall time / SGD's", "CPU time / SGD's"], [[n, *pair] for n, pair in ratios.items()])


if __name__ == "__main__":
    harness.run(main)
