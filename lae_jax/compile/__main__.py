"""Compiles the step of a config for a machine that need not be there: does it fit, and how fast can it be?

    python -m lae_jax.compile --config configs/represent.py --topology v5e-8
    python -m lae_jax.compile --config configs/represent.py --topology h100-16 --per-device 32 --vary bfloat16 remat
    python -m lae_jax.compile --config configs/represent.py --topology v4-8 --find-batch
    python -m lae_jax.compile --config configs/pretrain.py --topology v6e-256 --people 85742 --per-device 32
    python -m lae_jax.compile --config configs/classify.py --topology cpu-8 --config.model.name=resnet18

The machine's own compiler makes the very step that a run takes, forward, backward and update, and never runs it. `make
setup-tpu` and `make setup-gpu` install the compilers, each into an environment of its own (.venv-tpu, .venv-gpu); cpu-N
needs neither. Machines: v4-8, v5e-8, v5p-64, v6e-256, a100-8, h100-8, h200-16 and other sizes, as clouds name them.

The memory is what the compiler plans for a device. Libraries that a GPU uses may take more. The least time is the
longest of three: the operations at the published peak of the device, the bytes that the step reads and writes at the
bandwidth of its memory, the exchanged bytes at that of its links. A real step takes longer.
"""

import argparse
import logging
import sys
from typing import TYPE_CHECKING

# Imports no JAX, which reads the environment when it is imported.
from lae_jax import compile as room
from lae_jax.compile import environment
from lae_jax.runtime import console, files, flags, layout, start
from lae_jax.runtime.errors import InputError, saving

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from lae_jax.compile.forecast import Forecast

logger = logging.getLogger("lae_jax")

CHANGES = {
    "bfloat16": {"model.dtype": "bfloat16"},
    "float32": {"model.dtype": "float32"},
    "remat": {"model.remat": True},
    "accumulate": {"accumulate": 4},
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads and checks the flags (`argv`, or the command line). Words of the config are in `of_config`.

    Raises:
      InputError: A flag cannot be used, or no config is named.
    """
    words = _joined(sys.argv[1:] if argv is None else argv)
    of_config = [word for word in words if _is_of_config(word)]
    parser = flags.Parser("compile", __doc__)
    add = parser.add_argument
    add("--config", metavar="FILE", help="config file, or the name of a config that the package ships; its fields are"
        " set with --config.<field>=<value>")  # fmt: skip
    add("--topology", required=True, metavar="NAME", help="machine to compile for, such as v5e-8 or h100-16")
    add("--per-device", type=int, metavar="N", help="images of a device (default: the config's batch, divided)")
    add("--form", default="auto", choices=("auto", "pmap", "shard_map"), help="how JAX maps the step over the devices"
        " (default: as a run on that machine does)")  # fmt: skip
    add("--people", type=int, metavar="N", help="people to classify, for stage 1")
    add("--forward", action="store_true", help="compile the forward step of an evaluation instead, on one device")
    add("--find-batch", action="store_true", help="also look for the largest batch of a device that fits")
    add("--vary", nargs="+", default=[], choices=CHANGES, metavar="CHANGE",
        help=f"compile the step with these changes as well: {', '.join(CHANGES)} (in 4 parts)")  # fmt: skip
    parser.add_common("out", required=False, metavar="FILE", help="write the numbers, .json")
    args = parser.parse_args([word for word in words if word not in of_config])
    if not any(word.startswith(("--config=", "-config=")) for word in of_config):
        raise InputError("name a config: python -m lae_jax.compile --config configs/represent.py --topology v5e-8")
    for name in ("per_device", "people"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} is {getattr(args, name)}: it must be at least 1")
    if args.out and not args.out.endswith(".json"):
        raise InputError(f"--out {args.out}: the name must end in .json")
    if args.out:
        layout.require_file_place(args.out)
    return argparse.Namespace(**vars(args), of_config=of_config)


def _is_of_config(word: str) -> bool:
    return word.startswith(("--config=", "--config.", "-config="))


def _joined(argv: list[str]) -> list[str]:
    """Returns a command line in which `--config FILE` is one word."""
    joined, rest = [], iter(argv)
    for word in rest:
        joined.append(f"{word}={next(rest, '')}" if word in ("--config", "-config") else word)
    return joined


def stages_of(config: "ConfigDict") -> dict[str, "ConfigDict"]:
    """Returns the stages of a config by name."""
    if "stages" in config:
        return {name: config.stages[name] for name in config.order}
    return {config.stage: config}


def main(argv: list[str] | None = None) -> None:
    """Compiles what the flags ask for, and prints what each step needs.

    Raises:
      InputError: A flag, the config or the machine cannot be used.
    """
    args = parse_args(argv)
    from lae_jax.compile import plain_words, topologies
    from lae_jax.train import config_flag

    sys.argv = [sys.argv[0], *args.of_config]
    config_flag.parse()
    config = config_flag.CONFIG.value
    target, written = topologies.target(args.topology), {}
    for name, stage in stages_of(config).items():
        wish = room.Wish(args.topology, args.per_device, args.form, args.people, args.forward, args.find_batch)

        def tell(what: str, one: "Forecast", name=name) -> None:
            logger.info("%s, %s: %s", name, what, _told(one))

        found = room.forecasts(stage, wish, {one: CHANGES[one] for one in args.vary}, tell)
        for what, one in found.items():
            console.write(*plain_words.lines(f"{name}, {what}", one), "")
        written[name] = {what: one.as_json() for what, one in found.items()}
        if args.out:  # after each stage: the next one may take an hour
            with saving(args.out):
                files.write_json(args.out, {"topology": args.topology, "stages": written})
    console.write(*plain_words.figures(target))


def _told(one: "Forecast") -> str:
    from lae_jax.compile import plain_words

    if one.peak_bytes is None:
        return f"too large for a device, compiled in {one.compile_seconds:.0f} s"
    fits = "fits" if one.fits else "does not fit"
    return f"{plain_words.size_of(one.peak_bytes)} a device, {fits}, compiled in {one.compile_seconds:.0f} s"


if __name__ == "__main__":
    environment.prepare()
    start.program(main, interrupt_at_once=True)
