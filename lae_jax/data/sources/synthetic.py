"""Drawn faces with ages: a source without a download, for tests, the demo and first trials."""

import dataclasses

import numpy as np

from lae_jax import metrics
from lae_jax.faces.drawing import looks, render

VERSION = 1  # of the drawings; it changes when the same arguments give another picture

# Images of each age 1..81 in the MIVIA age data set, as the contest published them: 575,073 in all.
MIVIA_AGE_COUNTS = (
    *(21, 47, 47, 117, 402, 424, 352, 256, 183, 159),
    *(82, 343, 700, 984, 1317, 1958, 3053, 4575, 6408, 9097),
    *(12438, 15008, 15007, 15002, 15001, 15000, 14999, 14997, 14996, 14995),
    *(14994, 14993, 14992, 14991, 14990, 15012, 15011, 15010, 15009, 15008),
    *(15003, 15002, 14002, 13453, 12976, 12356, 11926, 11354, 11186, 10995),
    *(10758, 10567, 10447, 10088, 9373, 8682, 8324, 7346, 6822, 6082),
    *(5318, 4531, 4030, 3315, 2719, 2289, 1859, 1620, 1215, 975),
    *(711, 544, 400, 303, 183, 135, 86, 61, 36, 12, 11),
)
MIN_IN_GROUP = 2
_AGES = np.arange(1, 82)
_GROUPS = [np.flatnonzero(metrics.age_group(_AGES) == group) for group in range(len(metrics.GROUPS))]  # places in _AGES


@dataclasses.dataclass(frozen=True)
class Plan:
    """The faces to draw, as columns of equal length n; `len(plan)` is n."""

    name: np.ndarray  # '00012/3.jpg': identity, picture of that person
    identity: np.ndarray  # int64
    age: np.ndarray  # float64, years; the age class is floor(age + 0.5)
    split: np.ndarray  # 'train', 'validation', 'test'
    seed: np.ndarray  # int64
    index: np.ndarray  # int64, which picture of that person

    def __len__(self) -> int:
        return len(self.name)


def draw_face(identity: int, age: float, seed: int, size: int = 128, index: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draws picture `index` of a person at an age.

    A pure function of its arguments, up to the rounding of another CPU. With the same index, another age shows the same
    person in the same pose and light, older or younger, and another size gives the same picture.

    Returns:
      The image, uint8 (size, size, 3), and its landmarks, float32 (5, 2): the true places in pixels (x, y) of the eye
      at the image's left, the eye at its right, the nose tip, the mouth corner at the left and that at the right.

    Raises:
      ValueError: The age is outside 0..100, the size is under 16, or the identity, seed or index is negative.
    """
    if not 0 <= age <= 100:
        raise ValueError(f"age {age} is outside 0..100")
    if size < 16:
        raise ValueError(f"size {size} is under 16 pixels")
    for name, value in (("identity", identity), ("seed", seed), ("index", index)):
        if value < 0:
            raise ValueError(f"{name} {value} is negative")
    look = looks.look_of(identity, float(age), seed, index)
    return render.render(look, size, np.random.default_rng([seed, identity, index, 2]))


def plan(num_train: int, num_validation: int, num_test: int, images_per_identity: float = 6.0, seed: int = 0) -> Plan:
    """Plans the identities and ages to draw, split by split; a pure function of its arguments.

    Train and validation follow MIVIA's ages by largest remainder. If such a split has at least 16 x MIN_IN_GROUP
    images, the largest groups then top up groups with fewer than MIN_IN_GROUP images to that number. The test split has
    equally many images of each group of `metrics.GROUPS` (the first groups get one more where 8 does not divide the
    number). Within a group, ages are as frequent as in MIVIA. A person is in one split, with about
    `images_per_identity` pictures that span some years.

    Raises:
      ValueError: A count or the seed is negative, or `images_per_identity` is less than 1.
    """
    counts = {"train": num_train, "validation": num_validation, "test": num_test}
    for name, count in counts.items():
        if count < 0:
            raise ValueError(f"num_{name} is {count}: a count cannot be negative")
    if seed < 0:
        raise ValueError(f"seed {seed} is negative")
    if not images_per_identity >= 1:
        raise ValueError(f"images_per_identity is {images_per_identity}: it must be at least 1")
    rng = np.random.default_rng([seed, 81])
    ages, identities, indices, splits, people = [], [], [], [], 0
    for split, count in counts.items():
        histogram = _balanced_counts(count) if split == "test" else _long_tailed_counts(count)
        years = np.repeat(_AGES, histogram) + rng.integers(-49, 50, count) / 100
        # Neighbours in a slightly disturbed order of ages become one person: photographs some years apart.
        years = years[np.argsort(years + rng.normal(0, 3, count), kind="stable")]
        sizes = rng.integers(1, max(2, round(2 * images_per_identity)), size=count)
        sizes = sizes[: np.searchsorted(np.cumsum(sizes), count) + 1] if count else sizes
        person = np.repeat(np.arange(len(sizes)), sizes)[:count]
        first = np.searchsorted(person, person)
        order = rng.permutation(len(sizes))
        rows = np.argsort(order[person], kind="stable")
        ages.append(years[rows])
        identities.append(people + order[person][rows])
        indices.append((np.arange(count) - first)[rows])
        splits += [split] * count
        people += len(sizes)
    identity, index = np.concatenate(identities).astype(np.int64), np.concatenate(indices).astype(np.int64)
    names = np.array([f"{i:05d}/{k}.jpg" for i, k in zip(identity, index, strict=True)], dtype=str)
    seeds = np.full(len(identity), seed, np.int64)
    return Plan(names, identity, np.round(np.concatenate(ages), 2), np.array(splits, dtype="U10"), seeds, index)


def _apportion(count: int, weights: np.ndarray) -> np.ndarray:
    """Returns whole numbers that sum to count, proportional to the weights by largest remainder."""
    share = count * weights / weights.sum()
    whole = np.floor(share).astype(np.int64)
    whole[np.argsort(whole - share, kind="stable")[: count - whole.sum()]] += 1
    return whole


def _long_tailed_counts(count: int) -> np.ndarray:
    """Returns the number of images of each age, (81,), as in MIVIA; small groups are topped up."""
    weights = np.array(MIVIA_AGE_COUNTS, np.float64)
    counts = _apportion(count, weights)
    if count >= 2 * len(_GROUPS) * MIN_IN_GROUP:
        for group in _GROUPS:
            missing = MIN_IN_GROUP - int(counts[group].sum())
            if missing > 0:
                counts[group] = _apportion(MIN_IN_GROUP, weights[group])
                for _ in range(missing):
                    largest = max(_GROUPS, key=lambda some: counts[some].sum())
                    counts[largest[np.argmax(counts[largest])]] -= 1
    return counts


def _balanced_counts(count: int) -> np.ndarray:
    """Returns the number of images of each age, (81,): equal groups, and ages in a group as frequent as in MIVIA."""
    weights, shares = np.array(MIVIA_AGE_COUNTS), _apportion(count, np.ones(len(_GROUPS)))
    parts = [_apportion(int(n), weights[group]) for n, group in zip(shares, _GROUPS, strict=True)]
    return np.concatenate(parts)
