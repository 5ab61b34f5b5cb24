"""Memory and time of all that is done with a large split except images: 500,000 drawn rows, as MIVIA has.

python -m benchmarks.large_split [--rows 500000] [--width 512] [--passes 4] [--epochs 1] [--out DIR] [--at-most GB]

Longtail: features of each pass are streamed into a file, smoothed, and heads are trained on them and scored.
Evaluation: people are verified, distributions are calibrated, and an evaluation's folder with its page is written.

Every line has the seconds of a phase and the peak of its memory beside the features, which stay in their file: the
memory that is in no file (RssAnon of Linux), looked at 50 times a second. With --at-most the status is 1 where that was
more.
"""

import contextlib
import pathlib
import sys
import tempfile
import threading
import time
import types
from collections.abc import Iterator

import numpy as np
from etils import epath

from benchmarks import harness
from lae_jax.runtime import start

SPLIT, CROP = "validation", {"align": "none"}
METHODS = ("stage2", "lae", "feature_calibration", "two_layers_routing")
SEEDS = 5


def in_no_file() -> float:
    """GB of this process that are in no file."""
    text = pathlib.Path("/proc/self/status").read_text()
    return int(text.partition("RssAnon:")[2].split()[0]) * 1024 / 1e9


class Clock:
    """Prints the time and the memory of phases."""

    def __init__(self):
        self.most = 0.0

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measures a block."""
        ended, peak, begun = threading.Event(), in_no_file(), time.perf_counter()

        def look():
            nonlocal peak
            while not ended.wait(0.02):
                peak = max(peak, in_no_file())

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        yield
        ended.set()
        thread.join()
        self.most = max(self.most, peak)
        print(f"{name:44} {time.perf_counter() - begun:8.1f} s   peak {peak:5.2f} GB", flush=True)


class Drawn:
    """What the code under test asks of a data set: columns of drawn rows, a long tail of ages, 20 images a person."""

    path, hash, crop = epath.Path("drawn"), "0" * 64, CROP
    manifest = types.MappingProxyType({"protocol": "identity", "splits": {SPLIT: 0}})

    def __init__(self, rows: int):
        rng = np.random.default_rng(0)
        self._count = rows
        people = rng.integers(0, max(2, rows // 20), rows)
        self._columns = {
            "age": np.clip(np.round(rng.gamma(6.0, 5.5, rows)), 1, 100),
            "identity": np.array([f"n{number:06d}" for number in people], object),
            "name": np.array([f"{row:06d}.jpg" for row in range(rows)], object),
        }

    def __len__(self) -> int:
        return self._count

    def column(self, name: str) -> np.ndarray:
        """Returns a column."""
        return self._columns[name]

    def rows(self, split: str) -> np.ndarray:
        """Returns all rows."""
        return np.arange(self._count)


def drawn_extractor(checkpoint, dataset: Drawn, folder: pathlib.Path, width: int):
    """An Extractor whose backbone gives drawn features, in which the age can be seen."""
    from lae_jax.longtail import extraction
    from lae_jax.runs import inference

    class Extractor(extraction.Extractor):
        def _compute(self, examples, passes, number, allocate):
            rng, count, size = np.random.default_rng(number), len(examples.rows), extraction.BATCH_SIZE
            direction = np.random.default_rng(0).standard_normal(width, np.float32) / 30

            def batches():
                for first in range(0, count, size):
                    position = first + np.arange(size)
                    ages = examples.targets[np.minimum(position, count - 1)].astype(np.float32)
                    drawn = rng.standard_normal((size, width), np.float32)
                    yield {"image": (drawn + ages[:, None] * direction)[None], "position": position}

            def forward(variables, image):
                return image

            what = f"features, pass {number + 1} of {passes}"
            return inference.over_batches(forward, None, batches(), count, par=self.par, what=what, allocate=allocate)

    return Extractor(checkpoint, dataset, folder)


def longtail(clock: Clock, checkpoint, dataset: Drawn, flags, folder: pathlib.Path) -> None:
    """The phases of `lae_jax.longtail`."""
    from lae_jax.configs import classify
    from lae_jax.longtail import fitting, outcomes, setup, trials
    from lae_jax.stages.methods import METHODS as KNOWN

    with clock.phase("features streamed into a file"):
        drawn_extractor(checkpoint, dataset, folder, flags.width).features(SPLIT, flags.passes)
    with clock.phase("features read from the file"):
        features = drawn_extractor(checkpoint, dataset, folder, flags.width).features(SPLIT, flags.passes)
    config = classify.get_config()
    config.epochs = flags.epochs
    extractor = drawn_extractor(checkpoint, dataset, folder, flags.width)
    bench = fitting.Bench(features.values, features.ages, extractor.own_head(), 5.0, config, 0.2)
    with clock.phase("statistics by age, smoothed"):
        assert bench._statistics["scale"].shape[1] == flags.width
    scored = {outcomes.VALIDATION: features, outcomes.TEST: features}
    labels = outcomes.Labels(features.ages, features.rows, np.full(len(features.rows), -1))
    prepared = setup.Prepared(extractor, bench, scored, dict.fromkeys(scored, labels), outcomes.VALIDATION)
    for name in METHODS:
        with clock.phase(f"{name}, {SEEDS} seeds, trained and scored"):
            (trial, *_) = trials.run([prepared], [KNOWN[name]], range(SEEDS), [config.optim.base_learning_rate])
        assert np.isfinite(trial.mean(outcomes.TEST, "mae"))


def evaluation(clock: Clock, checkpoint, dataset: Drawn, folder: pathlib.Path) -> None:
    """The phases of `lae_jax.evaluate`."""
    from lae_jax import stages
    from lae_jax.evaluate import measure, results
    from lae_jax.stages import verification

    rng, count = np.random.default_rng(1), len(dataset)
    with clock.phase("pairs of people, verified"):
        pairs = verification.draw_pairs(dataset.column("identity"))
        verification.score(rng.standard_normal((len(pairs.images), 512), np.float32), pairs)
    ages = dataset.column("age")
    with clock.phase("(distributions are drawn)"):
        middles = (ages + rng.normal(0, 5, count)).astype(np.float32)
        probabilities = np.empty((count, 101), np.float32)
        for first in range(0, count, 8192):
            part = slice(first, first + 8192)
            logits = -0.5 * ((np.arange(101, dtype=np.float32) - middles[part, None]) / 4) ** 2
            weights = np.exp(logits)
            probabilities[part] = weights / weights.sum(axis=1, keepdims=True)
    rows = np.arange(count)
    leaks = {"leaks": [], "not_compared": [], "same_people_on_both_sides": None, "audit": "missing", "findings": []}
    leaks["pretrained_people"] = {"compared": 0, "shared": None}
    outputs = np.clip(middles, 0, 100)
    done = measure.Evaluated(checkpoint, stages.REPRESENT, dataset, SPLIT, rows, ages, outputs, probabilities, leaks)
    with clock.phase("temperature fitted"):
        measure.calibrate(done, 0.9)
    with clock.phase("predictions, intervals of the scores, page"):
        results.write(done, epath.Path(folder) / "evaluation" / f"drawn-{SPLIT}", results.Contents(threshold=18.0))


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--width", type=int, default=512, help="features of an image")
    parser.add_argument("--passes", type=int, default=4)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--out", help="folder for the features (default: a temporary one)")
    parser.add_argument("--at-most", type=float, default=float("inf"), help="GB")
    flags = parser.parse_args()
    start.devices()
    from lae_jax import stages
    from lae_jax.configs import represent
    from lae_jax.runs import fields
    from lae_jax.runtime import origin

    clock, dataset = Clock(), Drawn(flags.rows)
    config, rng = represent.get_config(), np.random.default_rng(2)
    head = {"kernel": rng.normal(0, 0.05, (flags.width, 101)).astype(np.float32), "bias": np.zeros(101, np.float32)}
    meta = {
        "stage": "represent",
        "model": config.model.name,
        "config": fields.as_json(config),
        "scores": stages.REPRESENT.score({"age": dataset.column("age")}, dataset.column("age") + 5),
        "crop": CROP,
        "data": "drawn",
        "data_hash": Drawn.hash,
    }
    with tempfile.TemporaryDirectory(dir=flags.out) as folder:
        variables = {"params": {"backbone": {}, "head": {"fc": head}}}
        checkpoint = origin.Checkpoint(epath.Path(folder), 1, variables, meta)
        longtail(clock, checkpoint, dataset, flags, pathlib.Path(folder) / "features")
        size = sum(path.stat().st_size for path in pathlib.Path(folder, "features").glob("*.npy")) / 1e9
        evaluation(clock, checkpoint, dataset, pathlib.Path(folder))
    print(f"{flags.rows} rows, features of {size:.2f} GB; beside them at most {clock.most:.2f} GB")
    if clock.most > flags.at_most:
        sys.exit(f"more than {flags.at_most:g} GB")


if __name__ == "__main__":
    main()
