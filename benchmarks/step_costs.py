"""What options cost a training step: ratios to the plain step (SGD, no EMA), from compiled steps that take turns.

    python -m benchmarks.step_costs                                   AdamW and an EMA beside SGD
    python -m benchmarks.step_costs --cures lds fds rank_sim --teacher faces-lite0
    python -m benchmarks.step_costs --model efficientnet_v2_m --image_size 224 --batch_size 64

The steps are `train`'s own, of stage 2 on one device, on one batch in memory. If other programs use the
machine, rely on the CPU time.
"""

import argparse

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks import harness
from lae_jax import models, stages
from lae_jax.configs import represent
from lae_jax.runs import build
from lae_jax.runtime import parallel
from lae_jax.stages import cures, method_losses
from lae_jax.train import plan, steps, teacher

PLAIN = "sgd"
OPTIMISERS = {PLAIN: ("sgd", 0.0), "sgd, EMA": ("sgd", 0.999), "adamw": ("adamw", 0.0), "adamw, EMA": ("adamw", 0.999)}
EPOCH = 1000  # steps


def config_of(args: argparse.Namespace) -> ConfigDict:
    config = represent.get_config()
    config.model.name, config.model.dtype, config.batch_size = args.model, args.dtype, args.batch_size
    return config


def sides(args: argparse.Namespace) -> dict[str, ConfigDict]:
    """The config of each side, by name: the plain one first."""
    found = {}
    for name, (optimiser, ema_decay) in OPTIMISERS.items():
        found[name] = config_of(args)
        found[name].optim.name, found[name].ema_decay = optimiser, ema_decay
        if args.cures or args.teacher:
            break
    for name in args.cures:
        found[name] = config_of(args)
        found[name].cure.name = name
    if args.teacher:
        found[f"teacher {args.teacher}"] = config_of(args)
        found[f"teacher {args.teacher}"].teacher = args.teacher
    return found


class Side:
    """A compiled step and its state."""

    def __init__(self, args: argparse.Namespace, config: ConfigDict):
        stage = stages.with_cure(stages.REPRESENT, config.cure, EPOCH)
        taught = teacher.load(config)
        stage = stages.with_teacher(stage) if taught else stage
        par = parallel.Parallel(tuple(jax.local_devices()[:1]))
        module = build.model(config, stage, build.NUM_AGES)
        variables = models.initialise(module, args.image_size, 0)
        tx = build.optimiser(config, build.schedules(config, EPOCH, 24 * EPOCH), variables["params"], stage)
        rng, size = np.random.default_rng(0), (args.batch_size, args.image_size, args.image_size, 3)
        ages = rng.normal(35, 15, args.batch_size).clip(1, 90).round()
        constants = {**config.loss, **method_losses.of_training(np.bincount(np.int64(ages), minlength=build.NUM_AGES))}
        held = (par.place(taught.checkpoint.variables),) if taught else ()
        self.step = par.map_train(plan.train_step(config, stage, constants, module, tx, taught), held)
        averaged = stage.trains if config.ema_decay else ()
        self.state = par.place(steps.create_state(variables, tx, averaged, stage.cure))
        self.batch = {"image": rng.integers(0, 256, size, np.uint8), "target": ages.astype(np.float32)}
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
    parser.add_argument("--cures", nargs="*", default=[], help=f"of {', '.join(cures.CURES)}, in place of optimisers")
    parser.add_argument("--teacher", default="", help="a run or faces-lite0, in place of optimisers")
    parser.add_argument("--steps", type=int, default=5, help="of a turn, of each side")
    parser.add_argument("--turns", type=int, default=9)
    args = parser.parse_args()
    seconds = harness.take_turns({name: Side(args, config) for name, config in sides(args).items()}, args.turns)
    ratios = {name: np.median(taken / seconds[PLAIN], axis=0).tolist() for name, taken in seconds.items()}
    added = {name: 1e3 * np.median(taken - seconds[PLAIN], axis=0)[1] / args.steps for name, taken in seconds.items()}
    content = {**vars(args), "device": jax.devices()[0].device_kind, "ratios": ratios, "seconds": seconds}
    rows = [[name, *pair, added[name]] for name, pair in ratios.items()]
    harness.show(
        content, ["", "wall time / the plain step's", "CPU time / the plain step's", "more CPU time, ms"], rows
    )


if __name__ == "__main__":
    harness.run(main)
