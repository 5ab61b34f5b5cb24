"""Exports a run as a model for other programs and checks the export against the run.

    python -m lae_jax.export --run runs/classify --format saved_model --out exports/saved_model
    python -m lae_jax.export --run runs/classify --format onnx --out exports/onnx
    python -m lae_jax.export --run runs/classify --format onnx --page --out exports/page
    python -m lae_jax.export --run runs/classify --format stablehlo --out exports/stablehlo
    python -m lae_jax.export --run runs/classify --format safetensors --out faces.safetensors

The last form writes a model file: the weights in half precision, and in its header all that predict, serve, evaluate,
export and training need of the run. They take it in place of a run. The other forms write DIR/: the model (uint8 face
crops in, ages and distributions out), export.json (the input contract, the result of the check, SHA-256 of every file)
and model_card.md. --page adds index.html, a page that runs the ONNX model in a browser. docs/serving.md explains
how to serve an export. The export runs on the CPU.
"""

import argparse
import pathlib
from typing import get_args

from lae_jax import export
from lae_jax.runtime import console, flags, start
from lae_jax.runtime.model_file import builtin


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the flags (`argv`, or the command line)."""
    parser = flags.Parser("export", __doc__)
    parser.add_common("run")
    parser.add_argument(
        "--format",
        required=True,
        metavar="FORMAT",
        type=flags.one_of("format", get_args(export.Format)),
        help="saved_model (TensorFlow), stablehlo (jax.export), onnx, or safetensors (a model file)",
    )
    parser.add_common("out", metavar="PATH", help="folder to create, or with safetensors the file to create")
    parser.add_common("step")
    parser.add_common("flip")
    parser.add_argument(
        "--page", action="store_true", help="with onnx: write a page too, which runs the model in a browser"
    )
    parser.add_argument(
        "--onnxruntime-web",
        metavar="DIR",
        help="folder of npm's package onnxruntime-web, for --page (default: node_modules/onnxruntime-web)",
    )
    return parser.parse_args(argv)


def tell(content: dict, out: str) -> list[str]:
    """Returns the summary of a written export, as lines for a terminal."""
    check, size = content["check"], sum(entry["bytes"] for entry in content["files"].values())
    seconds = content["seconds"]
    if content["format"] == "safetensors":
        (entry,) = content["files"].values()
        found = [f"SHA-256 {entry['sha256']}"]
    else:
        names = ", ".join(sorted(path.name for path in pathlib.Path(out).iterdir()))
        found = [f"{out}/: {names}", f"look at {out}/model_card.md"]
    return [
        f"{content['source']['model']} of {content['source']['run']} step {content['source']['step']} as"
        f" {content['format']}: {size / 1e6:.1f} MB in {seconds['write']:.1f} s",
        f"read back by {check['runtime']} in {seconds['check']:.1f} s: ages differ by at most"
        f" {check['max_age_difference']:.1e} years, probabilities by {check['max_distribution_difference']:.1e}"
        f" ({check['images']} images, {check['from']})",
        *found,
        *([f"open {out}/index.html in a browser"] if "page" in content else []),
        f"next: python -m lae_jax.predict --run {out} PHOTOGRAPHS (docs/serving.md: other servers and programs)",
    ]


def main(argv: list[str] | None = None) -> None:
    """Exports the run of the command line and prints a summary."""
    args = vars(parse_args(argv))
    export.check(**args)
    builtin.tell(args["run"])
    import jax

    # Both sides of the check are float32 on the CPU. Accelerators round more coarsely, and others may need them.
    jax.config.update("jax_platforms", "cpu")
    start.devices()
    console.write(*tell(export.export(**args), args["out"]))


if __name__ == "__main__":
    start.program(main)
