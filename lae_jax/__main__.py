"""The programs of lae_jax: `python -m lae_jax` lists them, `lae-jax PROGRAM ...` runs one."""

import runpy
import sys

from lae_jax import __doc__ as about
from lae_jax import __version__
from lae_jax.runtime import console, start
from lae_jax.runtime.errors import InputError, unknown

PROGRAMS = {
    "prepare": "make a prepared data set from photographs",
    "audit": "find leaks and wrong labels in a prepared data set",
    "main": "train: a stage, or a recipe of stages",
    "sweep": "train settings x folds x seeds of a config and compare the settings",
    "compile": "compile a training step for a TPU or GPU that is not here: does it fit, how fast can it be",
    "evaluate": "score a run on a split and write a report page",
    "predict": "estimate the ages of the faces in photographs",
    "report": "compare runs that were evaluated on the same images",
    "longtail": "compare long-tail methods on the features of one run",
    "export": "export a run as SavedModel, StableHLO or ONNX",
    "serve": "serve a web page and an API on this machine",
    "demo": "run the whole method on drawn faces, in minutes",
}


def listing() -> str:
    """Returns all programs, one per line."""
    lines = [f"  {name:9} {what}" for name, what in PROGRAMS.items()]
    return "\n".join(
        [
            f"{about.strip()} {__version__}",
            "",
            "usage: lae-jax PROGRAM ...          (the same as python -m lae_jax.PROGRAM ...)",
            "",
            *lines,
            "",
            "lae-jax PROGRAM --help lists the flags of a program.",
        ]
    )


def _run() -> None:
    words = sys.argv[1:]
    if not words or words[0] in ("--help", "-h", "help"):
        console.write(*listing().splitlines())
    elif words[0] == "--version":
        console.write(f"lae_jax {__version__}")
    elif words[0] not in PROGRAMS:
        raise InputError(unknown("program", words[0], PROGRAMS))


def main() -> None:
    """Runs the console script `lae-jax`."""
    start.program(_run, interrupt_at_once=True)
    if sys.argv[1:2] and sys.argv[1] in PROGRAMS:
        program = sys.argv.pop(1)
        # As `python -m` runs it, so that processes that a program starts find it too.
        runpy.run_module(f"lae_jax.{program}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
