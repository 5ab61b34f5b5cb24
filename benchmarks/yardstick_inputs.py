"""What the yardstick's two sides train on: pixels, order, draws of the augmentation, initial weights.

    make setup-peers
    python -m benchmarks.yardstick_inputs --data data/faces

Fails where our resized images differ from Pillow's in any level. The rest is random on both sides, so it compares
distributions: p-values below 0.001 ask for a second seed (--seed).
"""

import argparse
import pathlib
import tempfile
from collections.abc import Mapping

import numpy as np
from scipy import stats

from benchmarks import harness, yardstick_steps
from lae_jax.data import augment, records, sampling
from lae_jax.faces.tensorflow import tf
from lae_jax.runs import inputs

BATCHES, EPOCHS, SIDE, DARK, BRIGHT = 200, 12, 72, 60, 180


def card() -> np.ndarray:
    """A test card, uint8 (72, 72, 3): its left half is dark in red, its upper half in green.

    The edges in a crop tell its place, the darker side the flip, the two levels the light.
    """
    image = np.full((SIDE, SIDE, 3), DARK, np.uint8)
    image[:, SIDE // 2 :, 0] = image[SIDE // 2 :, :, 1] = BRIGHT
    return image


def draws(cards: np.ndarray) -> dict[str, np.ndarray]:
    """What was drawn for augmented test cards, uint8 (batches, 64, 64, 64, 3): {quantity: (batches, 64)}."""
    dark = cards < (cards.min((2, 3, 4)) / 2 + cards.max((2, 3, 4)) / 2)[:, :, None, None, None]
    low, high = cards.min((2, 3, 4)).astype(float), cards.max((2, 3, 4)).astype(float)
    return {
        "top": SIDE // 2 - dark[:, :, :, 0, 1].sum(2),
        "left": SIDE // 2 - dark[:, :, 0, :, 0].sum(2),
        "flip": ~dark[:, :, 0, 0, 0],
        "contrast of the light": high - low,
        "level of the light": low,
    }


def our_cards(how: augment.Augmentation, batch: int, seed: int) -> np.ndarray:
    """The test card through our pipeline's augmentation, with the seeds of its first batches."""
    encoded, words = tf.io.encode_png(card()), sampling.seed_words(seed, "augment")

    @tf.function(autograph=False)
    def augmented(step):
        key = sampling.step_key(words, step)
        seeds = tf.random.stateless_uniform([batch, 2], key, minval=None, maxval=None, dtype=tf.int32)
        return tf.map_fn(lambda seed: how.train(encoded, seed), seeds, fn_output_signature=tf.uint8)

    return np.stack([augmented(tf.constant(step, tf.int64)).numpy() for step in range(BATCHES)])


def different_levels(dataset: records.Dataset) -> tuple[int, int]:
    """Levels of the resized images that differ from Pillow's, and all levels."""
    rows = np.concatenate([dataset.rows(split) for split in ("train", "validation", "test")])
    resize = tf.function(lambda encoded: augment.resize(augment.decode(encoded), SIDE), autograph=False)
    ours = np.stack([resize(tf.constant(encoded)).numpy() for encoded in dataset.encoded(rows)])
    return int((ours != yardstick_steps.resized(dataset, rows, "bicubic")).sum()), ours.size


def of_order(order: np.ndarray, ages: np.ndarray) -> dict[str, float]:
    """An order's (steps, 64) statistics; raises ValueError unless each epoch has every image once."""
    epochs = order.reshape(-1)[: len(ages) * (EPOCHS - 1)].reshape(EPOCHS - 1, len(ages))
    places = np.argsort(epochs, axis=1)
    if not (np.take_along_axis(epochs, places, 1) == np.arange(len(ages))).all():
        raise ValueError("an epoch has an image twice")
    alike = np.corrcoef(places)[np.triu_indices(EPOCHS - 1, 1)]
    expected = ages.var() / order.shape[1] * (1 - order.shape[1] / len(ages))
    return {
        "variance of the mean age of a batch / that of random batches": ages[order].mean(1).var() / expected,
        "correlation of an image's places in two epochs, mean square / that of random orders": float(
            np.mean(alike**2) * (len(ages) - 1)
        ),
    }


def together(found: Mapping[str, np.ndarray]) -> str:
    """Largest correlation of place, flip and contrast, which are drawn independently, in standard errors."""
    each = np.stack([values.ravel().astype(float) for values in list(found.values())[:4]])
    return f"{np.abs(np.triu(np.corrcoef(each), 1)).max() * each.shape[1] ** 0.5:.1f}"


def spread(weights: Mapping[str, np.ndarray], others: Mapping[str, np.ndarray]) -> float:
    """Largest difference of the standard deviations of two sides' initial weights, in standard errors.

    Raises:
      ValueError: A constant differs.
    """
    worst = 0.0
    for name, ours in weights.items():
        theirs = others[name]
        if ours.std() == 0 or theirs.std() == 0:
            if not np.array_equal(ours, theirs):
                raise ValueError(f"{name} differs")
            continue
        worst = max(worst, abs(ours.std(dtype=float) / theirs.std(dtype=float) - 1) * ours.size**0.5)
    return worst


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--data", type=pathlib.Path, required=True, help="data set prepared as docs/results.md says")
    parser.add_argument("--python", default=yardstick_steps.PYTHON, help="of the environment with torch")
    parser.add_argument("--seed", type=int, default=0)
    args: argparse.Namespace = parser.parse_args()
    dataset, config = records.open_dataset(args.data), yardstick_steps.settings_of("represent")
    ages, batch = dataset.column("age")[dataset.rows("train")], config.batch_size
    total = EPOCHS * -(-len(ages) // batch)
    with tempfile.TemporaryDirectory() as folder:
        data, out = (pathlib.Path(folder) / name for name in ("card.npz", "theirs.npz"))
        np.savez(data, card=card())
        job = {"data": str(data), "out": str(out), "seed": args.seed, "images": len(ages), "steps": total}
        yardstick_steps.in_torch({**job, "draws": BATCHES}, pathlib.Path(folder) / "job.json", args.python)
        with np.load(out) as file:
            theirs = dict(file)
    order = sampling.shuffled(len(ages), batch, args.seed)
    ours, drawn = draws(our_cards(inputs.augmentation(config), batch, args.seed)), draws(theirs.pop("cards"))
    our_order = of_order(np.stack([order(step).numpy() for step in range(total)]), ages)
    their_order = of_order(theirs.pop("order"), ages)
    rows = [
        (name, *(f"{of[name].mean():.3f} +- {of[name].std():.3f}" for of in (ours, drawn)), f"{p:.3f}")
        for name in ours
        for p in [stats.ks_2samp(ours[name].ravel(), drawn[name].ravel()).pvalue]
    ]
    rows += [(name, f"{our_order[name]:.2f}", f"{their_order[name]:.2f}", "") for name in our_order]
    rows.append(("largest correlation of two draws, in standard errors", together(ours), together(drawn), ""))
    initial = yardstick_steps.torch_names(yardstick_steps.initial_weights(config, args.seed))
    rows.append(("largest difference of initial spreads, in standard errors", f"{spread(initial, theirs):.1f}", "", ""))
    differ, levels = different_levels(dataset)
    rows.append(("levels of resized images that differ from Pillow's", f"{differ} of {levels:,}", "", ""))
    harness.show({"differ": differ, "rows": rows}, ("what", "lae_jax", "torch", "p"), rows)
    if differ:
        raise SystemExit(f"{differ} levels of resized images differ from Pillow's")


if __name__ == "__main__":
    harness.run(main)
