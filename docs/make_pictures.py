"""The pictures of docs/data.md, from drawn faces: python docs/make_pictures.py"""

import csv
import pathlib
import tempfile

import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from PIL import Image, ImageDraw, ImageFilter

from lae_jax import prepare
from lae_jax.data import records
from lae_jax.data.sources import synthetic
from lae_jax.faces import align, images

matplotlib.use("Agg")
HERE = pathlib.Path(__file__).parent
SIZE, MARGIN = 256, 0.125


def face(number: int, age: float, side: int) -> Image.Image:
    picture, _ = synthetic.draw_face(number, age, 5, 256, number)
    return Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC)


def photograph(pasted: list, size=(480, 360), colour=(118, 132, 140)) -> Image.Image:
    """Faces at (x, y) on a plain wall: [(face, place), ...]."""
    scene = Image.new("RGB", size, colour)
    ImageDraw.Draw(scene).rectangle([0, size[1] * 3 // 4, *size], fill=(96, 88, 80))
    for picture, place in pasted:
        scene.paste(picture, place)
    return scene


def photographs() -> dict[str, Image.Image]:
    upright = photograph([(face(3, 34, 200), (140, 70))])
    scenes = {
        "upright.jpg": upright,
        "turned.jpg": upright.rotate(28, Image.Resampling.BICUBIC, fillcolor=(118, 132, 140)),
        "two.jpg": photograph([(face(8, 6, 120), (300, 150)), (face(11, 41, 210), (40, 60))]),
        "large.jpg": photograph([(face(17, 72, 900), (500, 250))], (2000, 1500)),
        "child.jpg": photograph([(face(14, 5, 150), (60, 120))]),
        "nobody.jpg": photograph([]),
        "tiny.jpg": photograph([(face(3, 34, 9), (230, 170))]),
        "covered.jpg": photograph([(face(5, 28, 200).crop((0, 0, 200, 70)), (140, 70))]),
        "blurred.jpg": photograph([(face(9, 55, 200), (140, 70))]).filter(ImageFilter.GaussianBlur(14)),
    }
    # As a viewer shows a file that was cut off.
    scenes["broken.jpg"] = photograph([])
    scenes["broken.jpg"].paste(upright.crop((0, 0, 480, 110)), (0, 0))
    scenes["broken.jpg"].paste((200, 200, 200), (0, 110, 480, 360))
    return scenes


def sheet(path: pathlib.Path, pictures: list[tuple[str, Image.Image]], columns: int, heights: list[float]) -> None:
    """(title, picture) row by row; heights: of the rows, in picture widths."""
    figure, axes = plt.subplots(
        len(heights),
        columns,
        figsize=(2 * columns, 2 * sum(heights) + 0.45 * len(heights)),
        gridspec_kw={"height_ratios": heights},
        layout="constrained",
    )
    for axis in axes.flat:
        axis.axis("off")
    for axis, (title, picture) in zip(axes.flat, pictures, strict=False):
        axis.set_title(title, fontsize=8)
        axis.imshow(picture)
    figure.savefig(path, dpi=100)


def marked(picture: Image.Image, landmarks: np.ndarray, box: np.ndarray | None = None) -> Image.Image:
    picture, unit = picture.copy(), max(picture.size) / 120
    draw = ImageDraw.Draw(picture)
    if box is not None:
        draw.rectangle(box.tolist(), outline=(33, 102, 172), width=max(1, round(unit / 2)))
    for x, y in landmarks:
        draw.ellipse([x - unit, y - unit, x + unit, y + unit], fill=(178, 24, 43))
    return picture


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        scenes = photographs()
        for name, scene in scenes.items():
            scene.save(folder / name, quality=95)
        (folder / "broken.jpg").write_bytes((folder / "broken.jpg").read_bytes()[:3000])
        lines = ["path,age", *(f"{name},30" for name in scenes), "missing.jpg,30", "upright.jpg,130"]
        (folder / "faces.csv").write_text("\n".join(lines) + "\n")
        prepare.prepare(folder / "faces.csv", folder / "out", workers=1, ratio="1:1")
        dataset = records.open_dataset(folder / "out")
        template = align.template(SIZE, MARGIN)
        above, below = [], []
        for row, name in enumerate(dataset.column("name")):
            found = dataset.column("landmarks")[row].reshape(5, 2), dataset.column("box")[row]
            crop = images.load(dataset.encoded(np.array([row]))[0])
            above.append((name, marked(scenes[name], *found)))
            below.append(("", marked(crop, template)))
        sheet(HERE / "aligned.png", above + below, len(above), [0.75, 1])
        with open(folder / "out" / "rejected.csv", newline="") as file:
            refused = [row[:2] for row in csv.reader(file)][1:]
        blank = Image.new("RGB", (480, 360), (240, 240, 240))
        titled = [(f"{name}\n{why}", scenes.get(name, blank)) for name, why in refused]
        sheet(HERE / "rejected.png", titled, 4, [0.75, 0.75])


if __name__ == "__main__":
    main()
