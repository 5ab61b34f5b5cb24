"""Images a second of the training pipeline on a prepared data set, whole and without parts of it.

    python -m benchmarks.input_pipeline --data data/faces --image_size 224

One thread and all cores; the parts take turns, so that a machine whose load changes does not favour one of them.
"""

import argparse
import time

from lae_jax import console, runs
from lae_jax.configs import common
from lae_jax.data import pipeline, records, sampling
from lae_jax.data.augment import Augmentation

BATCH, SEED = 64, 0


def recipes(image_size: int) -> dict[str, Augmentation]:
    full = {key: value for key, value in common.augmentation("full").items()}
    patch = common.augmentation("flip").to_dict() | {"patch": "area"}
    return {
        "decode, random patch, resize, flip": Augmentation(image_size=image_size, **patch),
        "and jitter": Augmentation(image_size=image_size, **(full | {"num_ops": 0})),
        "and RandAugment": Augmentation(image_size=image_size, **full),
    }


def rates(dataset: records.Dataset, augmentation: Augmentation, threads: int, batches: int) -> tuple[float, float]:
    """Images a second of wall time, and of CPU time."""
    rows = dataset.rows("train")
    stream = pipeline.train_batches(
        dataset, rows, dataset.column("age")[rows], sampling.shuffled(len(rows), BATCH, SEED), augmentation,
        seed=SEED, start=0, stop=batches + 3, places=pipeline.Places(BATCH, 0, BATCH), threads=threads,
    )  # fmt: skip
    for _ in range(3):  # until it runs
        next(stream)
    wall, cpu = time.perf_counter(), time.process_time()
    images = sum(len(batch["image"]) for batch in stream)
    return images / (time.perf_counter() - wall), images / (time.process_time() - cpu)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="prepared data set with a split `train`")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--batches", type=int, default=15, help=f"of {BATCH} images, a turn")
    parser.add_argument("--turns", type=int, default=3)
    args = parser.parse_args()
    dataset = records.open_dataset(args.data)
    best: dict[tuple[str, int], list[float]] = {}
    for _ in range(args.turns):
        for name, augmentation in recipes(args.image_size).items():
            for threads in sorted({1, runs.cores()}):
                found = rates(dataset, augmentation, threads, args.batches)
                before = best.get((name, threads), [0.0, 0.0])
                best[name, threads] = [max(pair) for pair in zip(found, before, strict=True)]
    lines = [[name, threads, f"{wall:.0f}", f"{cpu:.0f}"] for (name, threads), (wall, cpu) in best.items()]
    print(console.table(["", "threads", "images/s", "images/s of CPU time"], lines))


if __name__ == "__main__":
    console.door(main)
