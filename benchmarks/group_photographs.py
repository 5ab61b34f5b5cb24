"""Faces in group photographs of 24 megapixels: how many of each size are found, how often twice, and what it takes.

    python -m benchmarks.group_photographs --images ../shared/data/utkface_lt/images
    python -m benchmarks.group_photographs --smallest-face 48 --spacing 400

Faces of photographs in a folder, or of skimage's portrait, stand on a picture of 6000 x 4000 pixels of soft colours, in
rows, in the sizes from `--smallest-face` to four times that. A face counts as found where a box shares 40 % of the area
that both cover together.
"""

import argparse
import collections
import pathlib
import resource

import numpy as np
import skimage.data
from PIL import Image

from benchmarks import harness
from lae_jax.faces import canvases, detect
from lae_jax.runtime import start

_SIZE = (6000, 4000)


def of_pictures(folder: pathlib.Path | None, count: int) -> list[tuple[Image.Image, np.ndarray]]:
    """Faces with some space around them, and their boxes (4,)."""
    if folder is None:
        pictures = [Image.fromarray(skimage.data.astronaut())]
    else:
        paths = sorted(folder.glob("*.jpg"))
        chosen = np.random.default_rng(0).choice(len(paths), count, replace=False)
        pictures = [Image.open(paths[number]).convert("RGB") for number in chosen]
    faces = []
    for picture, found in zip(pictures, detect.detect(pictures), strict=True):
        for face in found[:1]:
            space = 0.2 * max(face.box[2:] - face.box[:2])
            corner = np.maximum(0, np.floor(face.box[:2] - space)).astype(int)
            end = np.minimum(picture.size, np.ceil(face.box[2:] + space)).astype(int)
            faces.append((picture.crop((*corner.tolist(), *end.tolist())), face.box - np.tile(corner, 2)))
    return faces


def scene(faces: list[tuple[Image.Image, np.ndarray]], smallest: int, spacing: int) -> tuple[Image.Image, np.ndarray]:
    """A picture, and the boxes (N, 4) of its faces."""
    random, boxes = np.random.default_rng(0), []
    colours = random.integers(0, 256, (30, 45, 3), np.uint8)
    picture = Image.fromarray(colours).resize(_SIZE, Image.Resampling.BICUBIC)
    for y in range(0, _SIZE[1] - spacing, spacing):
        for x in range(0, _SIZE[0] - spacing, spacing):
            face, box = faces[random.integers(len(faces))]
            scale = smallest * 4 ** random.random() / max(box[2:] - box[:2])
            size = [max(1, round(scale * side)) for side in face.size]
            place = [at + random.integers(max(1, spacing - side)) for at, side in zip((x, y), size, strict=True)]
            picture.paste(face.resize(size, Image.Resampling.LANCZOS), tuple(map(int, place)))
            boxes.append((box + 0.5) * scale - 0.5 + np.tile(place, 2))
    return picture, np.array(boxes)


def shared(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The area that a box (4,) shares with others (n, 4), as a share of what both cover."""
    common = np.prod(np.maximum(0, np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])), axis=1)
    return common / (np.prod(box[2:] - box[:2]) + np.prod(others[:, 2:] - others[:, :2], axis=1) - common)


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--images", type=pathlib.Path, help="folder of JPEGs of faces (default: skimage's portrait)")
    parser.add_argument("--faces", type=int, default=40, help="of the folder (default 40)")
    parser.add_argument("--smallest-face", type=int, default=24, metavar="PIXELS")
    parser.add_argument("--spacing", type=int, default=250, metavar="PIXELS", help="between two faces (default 250)")
    args: argparse.Namespace = parser.parse_args()
    start.devices()
    smallest = args.smallest_face
    picture, boxes = scene(of_pictures(args.images, args.faces), smallest, args.spacing)
    detect.detect([picture])  # compiles
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    whole, begun = [face.box for face in detect.detect([picture])[0]], harness.now()
    found = [face.box for face in detect.detect([picture], [smallest])[0]]
    seconds, cpu = harness.now() - begun
    hits = {name: np.array([np.sum(shared(box, np.reshape(some, (-1, 4))) > 0.4) for box in boxes])
            for name, some in (("canvas", whole), ("tiles", found))}  # fmt: skip
    sizes = np.max(boxes[:, 2:] - boxes[:, :2], axis=1) / smallest
    rows = []
    for low, high in ((1, 4 / 3), (4 / 3, 2), (2, 3), (3, 4)):
        chosen = (sizes >= low) & (sizes < high)
        shares = [f"{np.mean(hits[name][chosen] > 0):.1%}" for name in hits]
        twice = int(np.sum(hits["tiles"][chosen] > 1))
        rows.append((f"{low * smallest:.0f} to {high * smallest:.0f}", int(chosen.sum()), *shares, twice))
    levels = collections.Counter(canvas.level for canvas in canvases.views(picture, smallest))
    content = {
        "faces": len(boxes), "found": len(found), "nowhere": int(len(found) - np.sum(hits["tiles"])),
        "canvases": levels.total(), "seconds": seconds, "cpu_seconds": cpu,
        "added_mb": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3,
    }  # fmt: skip
    harness.show(content, ("side of the face, pixels", "faces", "on one canvas", "on tiles too", "twice"), rows)


if __name__ == "__main__":
    harness.run(main)
