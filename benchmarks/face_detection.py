"""Faces in photographs: what is found, and whether it is what the mtcnn package finds. How fast: `face_rates`.

    python -m benchmarks.face_detection                       # drawn faces and skimage's portrait, four minutes
    python -m benchmarks.face_detection --images ../shared/data/utkface_lt/images --same 1000

Found: drawn faces, with the error of the landmarks as a share of the distance between the eyes. Same: the package's own
cascade, one canvas at a time, against ours, on drawn faces, on scenes of several, on a portrait and on a folder.
On their side: what is found of the images in the other quarter turns, without and with `rotate`.
"""

import argparse
import collections
import json
import pathlib

import numpy as np
import skimage.data
from PIL import Image

from benchmarks import harness
from lae_jax.data.sources import synthetic
from lae_jax.faces import canvases, detect, images
from lae_jax.runtime import cpu, start


def drawn(count: int) -> tuple[list[Image.Image], np.ndarray]:
    """Drawn faces of 256 pixels, and their landmarks (N, 5, 2)."""
    faces = synthetic.plan(0, 0, count, seed=7)
    made = [synthetic.draw_face(int(faces.identity[i]), float(faces.age[i]), 7, 256, i) for i in range(count)]
    return [Image.fromarray(image) for image, _ in made], np.stack([marks.reshape(5, 2) for _, marks in made])


def found(pictures: list[Image.Image], truth: np.ndarray) -> dict:
    """Share of drawn faces that are found, and the error of their landmarks."""
    errors = [
        np.linalg.norm(faces[0].landmarks - points, axis=1).mean() / np.linalg.norm(points[1] - points[0])
        for faces, points in zip(detect.detect(pictures), truth, strict=True)
        if faces
    ]
    told = {"faces": len(pictures), "found": len(errors)}
    return {**told, "error": np.mean(errors), "95 %": np.quantile(errors, 0.95)}


def scenes(faces: list[Image.Image], count: int) -> list[Image.Image]:
    """Pictures of 640 x 480: two to six drawn faces of 80 to 210 pixels side by side on soft colours."""
    random, made = np.random.default_rng(1), []
    for _ in range(count):
        colours = random.integers(0, 256, (6, 8, 3), np.uint8)
        picture = Image.fromarray(colours).resize((640, 480), Image.Resampling.BICUBIC)
        for place in random.permutation(6)[: random.integers(2, 7)]:
            side = int(random.integers(80, 211))
            face = faces[random.integers(len(faces))].resize((side, side), Image.Resampling.BICUBIC)
            column, row = int(place) % 3, int(place) // 3
            x, y = random.integers(0, 214 - side), random.integers(0, 241 - side)
            picture.paste(face, (213 * column + int(x), 240 * row + int(y)))
        made.append(picture)
    return made


def portrait() -> Image.Image:
    return Image.fromarray(skimage.data.astronaut())


def same(pictures: list[Image.Image], package) -> dict:
    """How what is found differs from what the package finds, in pixels of the canvas.

    A face is the same where the boxes share more than half of their union. Faces of one side alone, and those whose
    landmarks are further apart than 0.1 pixels on average, are listed.
    """
    apart, differing, ours_alone, theirs_alone = [], [], 0, 0
    for number, (picture, ours) in enumerate(zip(pictures, detect.detect(pictures), strict=True)):
        canvas = canvases.Canvas.of(picture)
        rows = package.detect_faces([canvas.pixels], output_type="numpy", box_format="xyxy", fit_to_image=False)
        theirs = [row for row in rows if len(row) == 16]
        boxes = np.array([row[1:5] for row in theirs]).reshape(-1, 4)
        mine = np.array([forth(canvas, face.box.reshape(2, 2)).ravel() for face in ours]).reshape(-1, 4)
        overlaps = overlap(mine, boxes)
        alone, rest = [], {*range(len(theirs))}
        for face, shared, box in zip(ours, overlaps, mine, strict=True):
            best = max(rest, key=lambda i: shared[i], default=None)
            if best is None or shared[best] <= 0.5:
                alone.append(("ours", face.confidence, box))
                continue
            rest.remove(best)
            points = np.stack([theirs[best][6:11], theirs[best][11:16]], axis=1)
            apart.append(np.linalg.norm(forth(canvas, face.landmarks) - points, axis=1))
            if apart[-1].mean() > 0.1:
                differing.append(
                    f"picture {number}: landmarks {apart[-1].mean():.2f} pixels apart, confidence"
                    f" {face.confidence:.5f}, the package's {theirs[best][5]:.5f}"
                )
        ours_alone, theirs_alone = ours_alone + len(alone), theirs_alone + len(rest)
        alone += [("package", theirs[i][5], boxes[i]) for i in rest]
        differing += [
            f"picture {number}: {who} alone, confidence {confidence:.5f}, box {np.round(box, 1).tolist()}"
            for who, confidence, box in alone
        ]
    print(*differing, f"{len(differing)} differences", sep="\n", flush=True)
    apart = np.array(apart)
    told = {"pictures": len(pictures), "the same faces": len(apart), "ours alone": ours_alone}
    told |= {"package alone": theirs_alone, "landmarks mean": apart.mean()}
    return told | {f"{share} %": np.percentile(apart, share) for share in (50, 95, 99, 99.9)} | {"most": apart.max()}


def forth(canvas: canvases.Canvas, points: np.ndarray) -> np.ndarray:
    """Points (..., 2) in the photograph -> points on the canvas."""
    return (points + 0.5) * canvas.scale + canvas.offset - 0.5


def overlap(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Boxes (n, 4) and (m, 4) -> (n, m): the area that two share, as a share of their union."""
    one, other = one[:, None], other[None]
    low, high = np.maximum(one[..., :2], other[..., :2]), np.minimum(one[..., 2:], other[..., 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=-1)
    areas = [np.prod(boxes[..., 2:] - boxes[..., :2], axis=-1) for boxes in (one, other)]
    return shared / (areas[0] + areas[1] - shared)


def lying(pictures: list[Image.Image]) -> dict:
    """What is found of the largest faces of photographs that lie on their side, without and with `rotate`."""
    scenes, told = [Image.new("RGB", (400, 300), (120, 125, 130)) for _ in pictures], collections.Counter()
    for scene, picture in zip(scenes, pictures, strict=True):
        scene.paste(picture.resize((150, 150), Image.Resampling.BICUBIC), (120, 80))
    upright = [faces[0].landmarks if faces else None for faces in detect.detect(scenes)]
    for quarters in (1, 2, 3):
        turned = [scene.rotate(90 * quarters, expand=True) for scene in scenes]
        for way, rotate in (("without", False), ("with", True)):
            for truth, faces in zip(upright, detect.detect(turned, rotate=rotate), strict=True):
                if truth is None:
                    continue
                points, width, height = truth, 400, 300
                for _ in range(quarters):
                    points = np.stack([points[:, 1], width - 1 - points[:, 0]], axis=1)
                    width, height = height, width
                apart = np.linalg.norm(points[1] - points[0])
                is_right = faces and np.linalg.norm(faces[0].landmarks - points, axis=1).mean() < 0.25 * apart
                told[f"{way}: {'right' if is_right else 'wrong' if faces else 'none'}"] += 1
    return told


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--images", type=pathlib.Path, help="folder of JPEGs of faces")
    parser.add_argument("--drawn", type=int, default=200, help="drawn faces (default 200)")
    parser.add_argument("--scenes", type=int, default=200, help="pictures of several drawn faces (default 200)")
    parser.add_argument("--same", type=int, default=100, help="of the images, compared with the package (default 100)")
    args: argparse.Namespace = parser.parse_args()
    cpu.one_thread()
    start.devices()
    from lae_jax.faces.tensorflow import tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    from mtcnn import MTCNN

    package = MTCNN()
    pictures, truth = drawn(args.drawn)
    told = {"found": found(pictures, truth)}
    groups = {"drawn": pictures, "portrait": [portrait()]}
    if args.scenes:
        groups["scenes"] = scenes(pictures, args.scenes)
    if args.images:
        paths = sorted(args.images.glob("*.jpg"))
        chosen = [paths[i] for i in np.random.default_rng(0).choice(len(paths), args.same, replace=False)]
        groups["images"] = [images.load(path.read_bytes()) for path in chosen]
    for name, group in groups.items():
        told[f"same, {name}"] = same(group, package)
    if args.images:
        told["images on their side"] = lying(groups["images"])
    for name, numbers in told.items():
        print(name, json.dumps({key: round(float(value), 4) for key, value in numbers.items()}))


if __name__ == "__main__":
    harness.run(main)
