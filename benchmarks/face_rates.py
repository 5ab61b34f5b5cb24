"""How fast faces are found: photographs a second of a core, beside the mtcnn package, facenet-pytorch, earlier commits.

    make setup-peers
    git worktree add ../before 72997f8
    python -m benchmarks.face_rates --images ../shared/data/utkface_lt/images --before ../before

Photographs of 640 x 480 with a face pasted in. The whole way leads from the bytes of a JPEG to those of the crop's; a
smallest face of 20 pixels on the same canvas for all. Every side runs on one thread in a process of its own. They take
turns: one process of a side, then two at once. CPU time counts user and system time, and that of processes that decode.
"""

import argparse
import concurrent.futures
import contextlib
import pathlib
import sys
import tempfile

import numpy as np
import skimage.data
from PIL import Image

from benchmarks import face_detection, harness, sides
from lae_jax.faces import SMALLEST, canvases, images

PYTHON = ".venv-peers/bin/python"
BACKGROUNDS = ("coffee", "chelsea", "rocket", "astronaut")
# The share of the photographs that a way does.
SHARES = {"package": 4}


def photographs(faces: list[Image.Image], count: int) -> list[bytes]:
    """JPEGs of 640 x 480: a face of 120 to 360 pixels on a part of a photograph of skimage."""
    random, made = np.random.default_rng(0), []
    for number in range(count):
        picture = Image.fromarray(getattr(skimage.data, BACKGROUNDS[number % len(BACKGROUNDS)])())
        width = int(random.integers(200, 390))
        x, y = (
            int(random.integers(0, 1 + side - most))
            for side, most in zip(picture.size, (width, width * 3 // 4), strict=True)
        )
        picture = picture.resize((640, 480), Image.Resampling.BICUBIC, (x, y, x + width, y + width * 3 // 4))
        side = int(random.integers(120, 361))
        face = faces[number % len(faces)].resize((side, side), Image.Resampling.BICUBIC)
        picture.paste(face, (int(random.integers(0, 641 - side)), int(random.integers(0, 481 - side))))
        made.append(images.encode(picture, 90))
    return made


def measure(sides_of: dict[str, tuple[list[sides.Side], str]], turns: int) -> dict[str, dict[int, np.ndarray]]:
    """Seconds of wall and CPU time by side and number of processes: {side: {processes: (turns, 2)}}."""
    taken = {name: {1: [], 2: []} for name in sides_of}
    found = {}
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for turn in range(-1, turns):  # the first one warms up
            for name, (processes, way) in list(sides_of.items())[:: 1 if turn % 2 else -1]:
                for count in (1, 2):
                    asked = [pool.submit(one.ask, "turn", steps=1, way=way) for one in processes[:count]]
                    answers = [one.result() for one in asked]
                    found[name] = answers[0]["found"]
                    if turn >= 0:
                        taken[name][count].append(
                            [max(one["seconds"] for one in answers), sum(one["cpu_seconds"] for one in answers)]
                        )
    print("photographs with a face:", found)
    return {name: {count: np.array(rows) for count, rows in by.items()} for name, by in taken.items()}


def started(stack: contextlib.ExitStack, name: str, python: str, module: str, **request) -> list[sides.Side]:
    """Two processes of a side."""
    command, environment = [python, "-m", module], {"OMP_NUM_THREADS": "1"}
    processes = [stack.enter_context(sides.Side(name, command, environment)) for _ in range(2)]
    for process in processes:
        process.ask("open", **request)
    return processes


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--images", type=pathlib.Path, help="folder of JPEGs of faces (default: drawn ones)")
    parser.add_argument("--photographs", type=int, default=32, help="number of photographs (default 32)")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--before", type=pathlib.Path, help="checkout of an earlier commit, as a side")
    parser.add_argument("--python", default=PYTHON, help="of the environment with facenet-pytorch")
    args: argparse.Namespace = parser.parse_args()
    if args.images:
        paths = sorted(args.images.glob("*.jpg"))[: args.photographs]
        faces = [images.load(path.read_bytes()) for path in paths]
    else:
        faces = face_detection.drawn(args.photographs)[0]
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        for number, encoded in enumerate(photographs(faces, args.photographs)):
            (pathlib.Path(folder) / f"{number:04}.jpg").write_bytes(encoded)
        own, module = str(sides.ROOT), "benchmarks.face_side"
        ours = started(stack, "lae_jax", sys.executable, module, checkout=own, photographs=folder)
        package = started(stack, "mtcnn", sys.executable, module, checkout=own, photographs=folder)
        ways = {"whole": (ours, "whole"), "faces": (ours, "faces"), "whole, mtcnn package": (package, "package")}
        if args.before:
            checkout = str(args.before.resolve())
            before = started(stack, "before", sys.executable, module, checkout=checkout, photographs=folder)
            ways |= {"whole, before": (before, "whole"), "faces, before": (before, "faces")}
        if pathlib.Path(args.python).exists():
            canvas = {"smallest": SMALLEST, "canvas": canvases.CANVAS, "inner": canvases.INNER}
            peer = started(stack, "facenet", args.python, "benchmarks.facenet_side", photographs=folder, **canvas)
            ways |= {f"{way}, facenet-pytorch": (peer, way) for way in ("whole", "one by one", "in batches")}
        taken = measure(ways, args.turns)
    rows, content = [], {}
    for name, by in taken.items():
        count = args.photographs // SHARES.get(ways[name][1], 1)
        rates = {n: np.median(n * count / seconds, axis=0) for n, seconds in by.items()}
        # Ratios of the turns: what other programs do to the machine is nearly the same for both sides of a turn.
        reference = taken["whole" if name.startswith("whole") else "faces"]
        share = args.photographs / count
        ratio = {n: np.median(reference[n][:, 1] / (share * by[n][:, 1])) for n in by}
        content[name] = {"rates": rates, "ratio": ratio}
        rows.append([name, *rates[1], ratio[1], *rates[2], ratio[2]])
    header = ["photographs a second", "wall, 1 process", "of CPU time", "ratio to ours"]
    header += ["wall, 2 processes", "of CPU time", "ratio to ours"]
    harness.show(content, header, rows)


if __name__ == "__main__":
    harness.run(main)
