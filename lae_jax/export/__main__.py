"""Exports a run as a model for other programs and checks the export against the run.

    python -m lae_jax.export --run runs/classify --format saved_model --out exports/saved_model
    python -m lae_jax.export --run runs/classify --format onnx --out exports/onnx
    python -m lae_jax.export --run runs/classify --format stablehlo --out exports/stablehlo

Writes DIR/: the model (uint8 face crops in, ages and distributions out), export.json (the input contract, the result
of the check, SHA-256 of every file) and model_card.md. docs/serving.md explains how to serve it. The export runs on the
CPU.
"""

import argparse
import pathlib
from typing import get_args

from lae_jax import export
from lae_jax.runtime import console, flags, start


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the flags (`argv`, or the command line)."""
    parser = flags.Parser("export", __doc__)
    parser.add_common("run")
    parser.add_argument(
        "--format",
        required=True,
        metavar="FORMAT",
        type=flags.one_of("format", get_args(export.Format)),
        help="saved_model (TensorFlow), stablehlo (jax.export) or onnx",
    )
    parser.add_common("out", help="folder to create")
    parser.add_common("step")
    parser.add_common("flip")
    return parser.parse_args(argv)


def tell(content: dict, out: str) -> list[str]:
    """Returns the summary of a written export, as lines for a terminal."""
    check, size = content["check"], sum(entry["bytes"] for entry in content["files"].values())
    seconds = content["seconds"]
    return [
        f"{content['source']['model']} of {content['source']['run']} step {content['source']['step']} as"
        f" {content['format']}: {size / 1e6:.1f} MB in {seconds['write']:.1f} s",
        f"read back by {check['runtime']} in {seconds['check']:.1f} s: ages differ by at most"
        f" {check['max_age_difference']:.1e} years, probabilities by {check['max_distribution_difference']:.1e}"
        f" ({check['images']} images, {check['from']})",
        f"{out}/: " + ", ".join(sorted(path.name for path in pathlib.Path(out).iterdir())),
        f"look at {out}/model_card.md",
        f"next: python -m lae_jax.predict --run {out} PHOTOGRAPHS (docs/serving.md: other servers and programs)",
    ]


def main(argv: list[str] | None = None) -> None:
    """Exports the run of the command line and prints a summary."""
    args = vars(parse_args(argv))
    export.check(args["run"], args["format"], args["out"], args["step"])
    import jax

    # Both sides of the check are float32 on the CPU. Accelerators round more coarsely, and others may need them.
    jax.config.update("jax_platforms", "cpu")
    start.devices()
    console.write(*tell(export.export(**args), args["out"]))


if __name__ == "__main__":
    start.program(main)
