"""`prepare --align none` against copying the files and hashing them: images a second of one process.

    python -m benchmarks.prepare_rate                                       # 2,000 drawn faces of 200 pixels
    python -m benchmarks.prepare_rate --images ../shared/data/utkface_lt/images

The sides take turns on files that were just read, so they come from memory. Beside them: what decoding alone takes, as
`prepare` does it (small, for the perceptual hash) and whole, which is as much as a copy with a check could reach.
"""

import functools
import hashlib
import io
import pathlib
import shutil
import tempfile
from collections.abc import Callable

import numpy as np
from PIL import Image

from benchmarks import harness
from lae_jax import prepare
from lae_jax.data import shards
from lae_jax.data.sources import readers, synthetic
from lae_jax.faces import crops, images


def draw(folder: pathlib.Path, count: int) -> None:
    """JPEGs of 200 pixels in a folder: a hundred faces, each with a few pixels of its own."""
    faces = [synthetic.draw_face(person, 30.0, 0, 200, 0)[0] for person in range(min(count, 100))]
    random = np.random.default_rng(0)
    for number in range(count):
        face = faces[number % len(faces)].copy()
        face[:8, :8] = random.integers(0, 256, (8, 8, 3))
        (folder / f"{number}.jpg").write_bytes(images.encode(Image.fromarray(face), 85))


def copy_and_hash(paths: list[pathlib.Path], out: pathlib.Path) -> None:
    for path in paths:
        copied = shutil.copyfile(path, out / path.name)
        with open(copied, "rb") as file:
            hashlib.file_digest(file, "sha256")


def write_shards(paths: list[pathlib.Path], out: pathlib.Path) -> None:
    """What `prepare` does with each image, without starting, splitting and auditing."""
    source = readers.READERS["csv"]([_table(paths, out)], readers.Options(str(paths[0].parent)))
    for task in shards.plan(source, out, "csv", crops.Recipe("none")):
        shards.write_shard(task)


def whole(paths: list[pathlib.Path], out: pathlib.Path) -> None:
    """The program but for its audit, one process."""
    prepare.prepare(_table(paths, out), out, images=paths[0].parent, align="none", workers=1)


def _table(paths: list[pathlib.Path], out: pathlib.Path) -> str:
    table = out.with_suffix(".csv")
    table.write_text("path,age\n" + "".join(f"{path.absolute()},30\n" for path in paths))
    return str(table)


def decode_small(paths: list[pathlib.Path], out: pathlib.Path) -> None:
    for path in paths:
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            image.draft("L", (64, 64))
            image.load()


def decode_whole(paths: list[pathlib.Path], out: pathlib.Path) -> None:
    for path in paths:
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            image.load()


SIDES: dict[str, Callable] = {
    "copy and hash": copy_and_hash,
    "prepare, an image": write_shards,
    "prepare, whole": whole,
    "read, decode small": decode_small,
    "read, decode whole": decode_whole,
}


def measure(paths: list[pathlib.Path], folder: pathlib.Path, turns: int) -> dict[str, np.ndarray]:
    """Seconds of wall and CPU time of each side in each turn."""
    out = folder / "out"

    def before() -> None:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        for path in paths:
            path.read_bytes()

    sides = {name: functools.partial(side, paths, out) for name, side in SIDES.items()}
    return harness.take_turns(sides, turns, before=before)


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--images", type=pathlib.Path, help="folder of JPEG crops (default: drawn ones)")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--turns", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        source = args.images or folder / "images"
        if args.images is None:
            source.mkdir()
            draw(source, args.count)
        paths = sorted(source.glob("*.jpg"))[: args.count]
        found = measure(paths, folder, args.turns)
    medians = harness.rates(len(paths), found)
    copied = medians["copy and hash"]
    size = sum(path.stat().st_size for path in paths) / len(paths) if args.images else None
    rows = [
        [name, f"{wall:.0f}", f"{cpu:.0f}", wall / copied[0], cpu / copied[1]] for name, (wall, cpu) in medians.items()
    ]
    content = {"images": len(paths), "bytes": size, "images_per_second": medians, "seconds": found}
    harness.show(content, ["", "images/s", "of CPU time", "ratio", "of CPU time"], rows)


if __name__ == "__main__":
    harness.run(main)
