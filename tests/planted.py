"""Drawn faces with copies of the first one, and data sets in which some of them are planted."""

import csv
import pathlib
import shutil

from PIL import Image

from lae_jax import prepare
from lae_jax.data.sources import synthetic
from lae_jax.faces import images

TRAIN, VALIDATION = 40, 24


def draw(folder: pathlib.Path) -> pathlib.Path:
    """Drawn faces 0.jpg ... of as many people, and copies of the first: the same file, and one stored again."""
    for i in range(TRAIN + VALIDATION):
        image, _ = synthetic.draw_face(i, age_of(i), 0, 48)
        (folder / f"{i}.jpg").write_bytes(images.encode(Image.fromarray(image), 95))
    shutil.copy(folder / "0.jpg", folder / "same.jpg")
    smaller = Image.open(folder / "0.jpg").resize((40, 40), Image.Resampling.BICUBIC)
    (folder / "again.jpg").write_bytes(images.encode(smaller, 75))
    return folder


def age_of(i: int) -> float:
    return 5.0 + 10 * (i % 8) + i % 3


def prepared(faces, out, *more, named=False):
    """Prepares train and validation, and what is planted: rows of (file, age, split, identity)."""
    rows = [(f"{i}.jpg", age_of(i), "train" if i < TRAIN else "validation", i) for i in range(TRAIN + VALIDATION)]
    out.mkdir(parents=True)
    with open(out / "faces.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "age", "split", "identity"])
        writer.writerows((p, a, s, f"person {i}" if named else "") for p, a, s, i in [*rows, *more])
    prepare.prepare(out / "faces.csv", out / "data", **crops_of(faces))
    return out / "data"


def crops_of(faces) -> dict:
    """Arguments of prepare for a CSV of these pictures."""
    return {"images": faces, "align": "none", "workers": 1}
