"""Images a second of one core: the training pipeline beside its limit in TensorFlow, Pillow and albumentations.

    make setup-peers && python -m benchmarks.input_pipeline [--faces DIR]

Every side does the same work on the same JPEGs (read, decode, random patch, resize, flip, jitter, two of RandAugment's
fourteen, batches of uint8) in a process of its own that is bound to one core. The sides take turns; a rate is images a
second of CPU time, the median of the turns. --cores adds our pipeline on all cores, in wall time.
"""

import argparse
import contextlib
import json
import pathlib
import platform
import statistics
import sys

from PIL import Image

from benchmarks import harness, sides
from benchmarks import input_pipeline_worker as worker
from lae_jax import prepare
from lae_jax.data.sources import synthetic
from lae_jax.runtime import console, cpu

TUNED = {"MALLOC_TRIM_THRESHOLD_": "1000000000", "MALLOC_MMAP_THRESHOLD_": "1000000000"}
PEERS = {
    "Pillow, torchvision": ("pillow", {}),
    "albumentations": ("albumentations", {}),
    "albumentations, tuned malloc": ("albumentations", TUNED),
    "albumentations, INTER_AREA": ("albumentations_filtered", {}),
}


def write_pictures(folder: pathlib.Path, faces: pathlib.Path | None, width: int, height: int, count: int) -> None:
    """`count` JPEGs of quality 90 with halved chroma: of `faces`, else drawn, resized."""
    folder.mkdir(parents=True, exist_ok=True)
    found = sorted(faces.glob("*.jpg")) if faces else []
    chosen = found[:: max(1, len(found) // count)][:count]
    side = max(width, height)
    for i in range(count):
        if chosen:
            picture = Image.open(chosen[i % len(chosen)]).convert("RGB")
        else:
            picture = Image.fromarray(synthetic.draw_face(i // 4, 5 + i * 83 % 80, 0, min(side, 256), i % 4)[0])
        picture.resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{i:05d}.jpg", quality=90)


def prepared(pictures: pathlib.Path, out: pathlib.Path, short_side: int) -> None:
    """The pictures as a prepared data set that keeps their bytes."""
    csv = out.parent / f"{out.name}.csv"
    lines = [f"{path.resolve()},{20 + i % 50}" for i, path in enumerate(sorted(pictures.glob("*.jpg")))]
    csv.write_text("path,age\n" + "\n".join(lines) + "\n")
    prepare.prepare({"train": csv}, out, align="none", size=short_side, shards=1, workers=1)


def started(
    args: argparse.Namespace, pictures: pathlib.Path, data: pathlib.Path, stack: contextlib.ExitStack
) -> dict[str, sides.Side | None]:
    """The sides, each warm and on a core of its own turn; None for what is not installed."""
    shared = {"pictures": str(pictures.resolve()), "data": str(data.resolve()), "image_size": args.image_size}
    shared |= {"batch": args.batch, "batches": args.batches}
    ours = {"limit: decode, patch, resize in TensorFlow": ("limit", 1), "this pipeline": ("ours", 1)}
    if args.cores:
        ours["this pipeline, all cores (wall time)"] = ("ours", 0)
    made: dict[str, sides.Side | None] = {}
    for name, (kind, cores) in ours.items():
        command = [sys.executable, "-m", "benchmarks.input_pipeline_sides"]
        made[name] = sides.Side(name, command, worker.ONE_THREAD, cores)
        stack.enter_context(made[name]).ask("start", kind=kind, cores=cores, **shared)
    for name, (kind, environment) in PEERS.items():
        made[name] = None
        if pathlib.Path(args.peers).exists():
            environment = worker.ONE_THREAD | environment
            command = [args.peers, "-m", "benchmarks.input_pipeline_peers"]
            made[name] = sides.Side(name, command, environment, 1)
            stack.enter_context(made[name]).ask("start", kind=kind, cores=1, **shared)
    return made


def measure(args: argparse.Namespace, width: int, height: int) -> dict[str, dict | None]:
    work = pathlib.Path(args.work) / f"{width}x{height}"
    if not (work / "data" / "dataset.json").exists():
        faces = pathlib.Path(args.faces) if args.faces else None
        write_pictures(work / "pictures", faces, width, height, args.pictures)
        prepared(work / "pictures", work / "data", min(width, height))
    with contextlib.ExitStack() as stack:
        running = started(args, work / "pictures", work / "data", stack)
        turns: dict[str, list[dict]] = {name: [] for name in running}
        for _ in range(args.turns):
            for name, side in running.items():
                if side:
                    turns[name].append(side.ask("turn"))
    result: dict[str, dict | None] = {}
    for name in running:
        clock = "wall" if "wall" in name else "cpu"
        rates = [turn["images"] / turn[clock] for turn in turns[name]]
        result[name] = {"images_per_second": statistics.median(rates), "turns": rates} if rates else None
    return result


def cells(results: dict[str, dict | None]) -> list[list[str]]:
    """Rows of the table: images a second, and by how much this pipeline is faster."""
    ours = results["this pipeline"]["images_per_second"]
    lines = []
    for name, found in results.items():
        if found is None:
            lines.append([name, "not there: make setup-peers", ""])
        else:
            rate = found["images_per_second"]
            lines.append([name, f"{rate:.0f}", f"{ours / rate:.2f}"])
    return lines


def main(argv: list[str] | None = None) -> None:
    parser = harness.parser(__doc__)
    add = parser.add_argument
    add("--faces", help="folder of JPEGs (default: drawn faces)")
    add("--peers", default=".venv-peers/bin/python", help="Python of the peers' environment (make setup-peers)")
    add("--sizes", nargs="+", default=["200x200", "500x375"], help="WIDTHxHEIGHT of the JPEGs")
    add("--pictures", type=int, default=256)
    add("--image_size", type=int, default=224)
    add("--batch", type=int, default=64)
    add("--batches", type=int, default=4, help="in a turn")
    add("--turns", type=int, default=15)
    add("--cores", action="store_true", help="this pipeline on all cores too")
    add("--work", default="build/input_pipeline", help="folder for pictures and prepared data, kept for another run")
    args = parser.parse_args(argv)
    results = {size: measure(args, *map(int, size.split("x"))) for size in args.sizes}
    for size, found in results.items():
        print(
            console.table([f"{args.image_size} px from {size}", "images/s", "this pipeline is faster by"], cells(found))
        )
        print()
    machine = {"machine": platform.machine(), "cores": cpu.cores(), "python": platform.python_version()}
    print(json.dumps(machine | {"image_size": args.image_size, "results": results}))


if __name__ == "__main__":
    harness.run(main)
