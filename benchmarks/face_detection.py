"""Faces in photographs: what is found, whether it is what the mtcnn package finds, and the rate on one core.

    python -m benchmarks.face_detection                                            # drawn faces alone
    make setup-peers
    python -m benchmarks.face_detection --images ../shared/data/utkface_lt/images --same 1000

Found: drawn faces, with the error of the landmarks as a share of the distance between the eyes. Same: the package's own
cascade, one canvas at a time, against ours. On their side: what is found of the images in the other quarter turns,
without and with `rotate`. Rates: photographs of 640 x 480 with a face pasted in, from the bytes of a
JPEG to the bytes of the crop, and on canvases alone, beside the package and facenet-pytorch (if its environment is
there) with the same smallest face. The sides take turns, each on one thread.
"""

import argparse
import collections
import contextlib
import json
import pathlib
import tempfile
from collections.abc import Iterator

import numpy as np
from PIL import Image

from benchmarks import harness, sides
from lae_jax.data.sources import synthetic
from lae_jax.faces import canvases, crops, detect, images
from lae_jax.runtime import cpu, start

PYTHON, _SIDE = ".venv-peers/bin/python", "benchmarks.facenet_side"


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


def same(pictures: list[Image.Image], package) -> dict:
    """How what is found differs from what the package finds, in pixels of the canvas."""
    differ, apart = 0, []
    for picture, ours in zip(pictures, detect.detect(pictures), strict=True):
        canvas = canvases.Canvas.of(picture)
        rows = package.detect_faces([canvas.pixels], output_type="numpy", box_format="xyxy", fit_to_image=False)
        theirs = [canvas.back(np.stack([row[6:11], row[11:16]], axis=1)) for row in rows if len(row) == 16]
        if len(theirs) != len(ours):
            differ += 1
            continue
        apart += [min(np.abs((face.landmarks - points) * canvas.scale).max() for points in theirs) for face in ours]
    told = {"pictures": len(pictures), "with other faces": differ, "faces": len(apart)}
    return {**told, "mean": np.mean(apart), "most": np.max(apart)}


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


def photographs(faces: list[Image.Image], count: int) -> list[bytes]:
    """JPEGs of 640 x 480: a face of 120 to 360 pixels on a picture of soft colours."""
    random, made = np.random.default_rng(0), []
    for number in range(count):
        colours = random.integers(0, 256, (6, 8, 3), np.uint8)
        picture = Image.fromarray(colours).resize((640, 480), Image.Resampling.BICUBIC)
        side = int(random.integers(120, 361))
        face = faces[number % len(faces)].resize((side, side), Image.Resampling.BICUBIC)
        picture.paste(face, (int(random.integers(0, 641 - side)), int(random.integers(0, 481 - side))))
        made.append(images.encode(picture, 90))
    return made


def whole(encoded: list[bytes]) -> None:
    recipe = crops.Recipe("landmarks")
    for begin in range(0, len(encoded), 4):
        decoded = [crops.Photograph(images.load(one)) for one in encoded[begin : begin + 4]]
        for result in crops.cut(decoded, recipe):
            if isinstance(result, list):
                images.encode(result[0].image, recipe.quality)


@contextlib.contextmanager
def facenet(python: str, canvases: np.ndarray) -> Iterator[sides.Side | None]:
    """facenet-pytorch in its own environment; None if there is none."""
    if not pathlib.Path(python).exists():
        yield None
        return
    with tempfile.TemporaryDirectory() as folder, sides.Side("facenet", python, _SIDE, cores=1) as side:
        np.save(pathlib.Path(folder) / "canvases.npy", canvases)
        side.ask("open", path=f"{folder}/canvases.npy", smallest=20)
        yield side


def rates(encoded: list[bytes], package, python: str, turns: int) -> dict[str, list[float]]:
    """Photographs a second: {side: [wall, CPU]}."""
    squares = np.stack([canvases.Canvas.of(images.load(one)).pixels for one in encoded])
    pictures = [images.load(one) for one in encoded]
    with facenet(python, squares) as peer:
        measured = {
            "lae_jax, the whole way": lambda: whole(encoded),
            "lae_jax, faces": lambda: detect.detect(pictures),
            "mtcnn, one by one": lambda: [
                package.detect_faces([one], output_type="numpy", box_format="xyxy") for one in squares
            ],
        }
        taken = {name: [] for name in [*measured, *["facenet-pytorch, one by one"] * (peer is not None)]}
        for turn in range(turns):
            ours = harness.take_turns(measured, 1, warm_up=int(turn == 0))
            for name, seconds in ours.items():
                taken[name].append(seconds[0])
            if peer is not None:
                answer = peer.ask("turn", steps=1)
                taken["facenet-pytorch, one by one"].append([answer["seconds"], answer["cpu_seconds"]])
    return harness.rates(len(encoded), {name: np.array(seconds) for name, seconds in taken.items()})


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--images", type=pathlib.Path, help="folder of JPEGs of faces")
    parser.add_argument("--drawn", type=int, default=200, help="drawn faces (default 200)")
    parser.add_argument("--same", type=int, default=100, help="of the images, compared with the package (default 100)")
    parser.add_argument("--photographs", type=int, default=32, help="for the rates (default 32; 0: none)")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--python", default=PYTHON, help="of the environment with facenet-pytorch")
    args: argparse.Namespace = parser.parse_args()
    cpu.one_thread()
    start.devices()
    from lae_jax.faces.tensorflow import tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    from mtcnn import MTCNN

    package = MTCNN()
    pictures, truth = drawn(args.drawn)
    content = {"found": found(pictures, truth), "same, drawn": same(pictures, package)}
    if args.images:
        paths = sorted(args.images.glob("*.jpg"))
        chosen = [paths[i] for i in np.random.default_rng(0).choice(len(paths), args.same, replace=False)]
        pictures = [images.load(path.read_bytes()) for path in chosen]
        content["same, images"] = same(pictures, package)
        content["images on their side"] = lying(pictures)
    for name, what in content.items():
        print(name, json.dumps({key: round(float(value), 4) for key, value in what.items()}))
    if args.photographs:
        speed = rates(photographs(pictures, args.photographs), package, args.python, args.turns)
        rows = [(name, f"{wall:.1f}", f"{of_cpu:.1f}") for name, (wall, of_cpu) in speed.items()]
        harness.show({**content, "rates": speed}, ("photographs a second of one core", "wall", "CPU time"), rows)


if __name__ == "__main__":
    harness.run(main)
