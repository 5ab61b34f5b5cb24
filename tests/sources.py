"""Small sources of pictures, and a preparation of them."""

import csv

import numpy as np
from PIL import Image

from lae_jax import prepare
from lae_jax.prepare import __main__ as door


def make_source(folder, rows, header="path,age,identity"):
    """Writes pictures and a CSV of (name, age, identity); every picture differs, unless names are (name, same as)."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [header]
    for i, (name, age, identity) in enumerate(rows):
        if not (folder / name).exists():
            pixels = np.random.default_rng(i).integers(0, 255, (20, 24, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name)
        lines.append(f"{name},{age},{identity}")
    (folder / "faces.csv").write_text("\n".join(lines) + "\n")
    return folder / "faces.csv"


def run(out, *args):
    words = [str(word) for word in ("--out", out, "--workers", 1, "--align", "none", *args)]
    if "--reader" not in words:
        words += ["--reader", "csv"]
    return prepare.prepare(**door.parse_args(words))


def rejected(out):
    with open(out / "rejected.csv") as file:
        return {row["name"]: row["reason"] for row in csv.DictReader(file)}
