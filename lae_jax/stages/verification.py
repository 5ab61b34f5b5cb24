"""Verification of people by their embeddings, on seeded pairs of images: the scores of stage 1."""

import dataclasses
import math

import numpy as np

from lae_jax import metrics
from lae_jax.runtime.errors import InputError


@dataclasses.dataclass(frozen=True)
class Verification:
    """How well embeddings separate people; rates are fractions of the genuine or of the impostor pairs."""

    equal_error_rate: float  # where the false accept rate equals the false reject rate
    true_accept_rate: float  # where 1 impostor pair in 1,000 is accepted; NaN with too few impostor pairs
    pairs: int  # genuine and impostor pairs together
    genuine_pairs: int

    def to_dict(self) -> dict:
        """Returns the fields for JSON; an undefined rate is None."""
        return {name: metrics.plain(value) for name, value in dataclasses.asdict(self).items()}


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of images to verify people on.

    Attributes:
      images: (m,) the images that are in pairs, as places in the list that they were drawn from, rising.
      genuine: (g, 2) pairs of one person, as places in `images`.
      impostor: (i, 2) pairs of two people, as places in `images`.
    """

    images: np.ndarray
    genuine: np.ndarray
    impostor: np.ndarray


def draw_pairs(identities: np.ndarray, num_pairs: int = 10000, seed: int = 0) -> Pairs:
    """Draws seeded pairs of images.

    Half of the pairs show one person twice, half show two people. Each half is drawn uniformly and without repetition,
    because a repeated pair would feign precision; a data set with fewer pairs gives all it has.

    Args:
      identities: (n,) of a type that sorts.
      num_pairs: Pairs to draw, 2 or more.
      seed: Seed of the pairs.

    Raises:
      InputError: There are fewer than two people, no person has two images, or `num_pairs` is below 2.
    """
    if num_pairs < 2:
        raise InputError(f"num_pairs should be 2 or more, not {num_pairs}")
    people, person, images = np.unique(np.asarray(identities), return_inverse=True, return_counts=True)
    if len(people) < 2:
        raise InputError(f"verification needs at least two people, not {len(people)}")
    if images.max() < 2:
        raise InputError(f"verification needs a person with two images, but each of the {len(people)} people has one")

    # Sorted by person, image p pairs with the rest of its own block (genuine) or with all images after the block
    # (impostor). Every unordered pair therefore has one number, and pairs are drawn without a list of all of them.
    order = np.argsort(person, kind="stable")
    place = np.arange(len(order))
    block_end = np.cumsum(images)[person[order]]
    rng = np.random.default_rng(seed)
    genuine = _draw_pairs(rng, num_pairs // 2, first_partner=place + 1, partners=block_end - place - 1)
    impostor = _draw_pairs(rng, num_pairs - num_pairs // 2, first_partner=block_end, partners=len(order) - block_end)
    used, places = np.unique(order[np.concatenate([genuine, impostor])], return_inverse=True)
    places = places.reshape(-1, 2)
    return Pairs(used, places[: len(genuine)], places[len(genuine) :])


def score(embeddings: np.ndarray, pairs: Pairs) -> Verification:
    """Verifies people on pairs of images, by cosine similarity.

    The equal error rate is interpolated linearly between thresholds. The true accept rate is the best at a false accept
    rate of at most 1e-3, undefined below 1,000 impostor pairs. A zero embedding has similarity 0.

    Args:
      embeddings: (m, D), of `pairs.images`.
      pairs: The pairs.

    Raises:
      InputError: The shapes do not match, or embeddings are not finite.
    """
    embeddings = np.asarray(embeddings)
    if embeddings.ndim != 2 or len(embeddings) != len(pairs.images):
        raise InputError(
            f"embeddings of the {len(pairs.images)} images in pairs should have shape ({len(pairs.images)}, D), not"
            f" {embeddings.shape}"
        )
    metrics.check_finite("embeddings", embeddings)
    genuine, impostor = (cosine(*(embeddings[side] for side in some.T)) for some in (pairs.genuine, pairs.impostor))
    accepted, false_accepted = _roc(genuine, impostor)
    resolved = len(impostor) >= 1000
    return Verification(
        equal_error_rate=_equal_error_rate(accepted, false_accepted),
        true_accept_rate=float(accepted[false_accepted <= 1e-3].max()) if resolved else math.nan,
        pairs=len(genuine) + len(impostor),
        genuine_pairs=len(genuine),
    )


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns the cosine similarities of embeddings (n, D) and (n, D): (n,) float64; 0 where an embedding is zero."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.sum(a * b, axis=1) / np.where(lengths > 0, lengths, 1.0)


def _draw_pairs(rng: np.random.Generator, size: int, first_partner: np.ndarray, partners: np.ndarray):
    """(size, 2) distinct pairs of indices (all, if there are fewer); p has partners[p], from first_partner[p] on."""
    ends = np.cumsum(partners)
    total = int(ends[-1])
    number = np.arange(total) if total <= size else rng.choice(total, size, replace=False)
    a = np.searchsorted(ends, number, side="right")
    return np.stack([a, first_partner[a] + number - (ends[a] - partners[a])], axis=1)


def _roc(genuine: np.ndarray, impostor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Accepted fractions of both kinds at each threshold, from one above all scores down to the lowest score."""
    thresholds = np.append(np.inf, np.unique(np.concatenate([genuine, impostor]))[::-1])
    # Counts are subtracted before the division: 1 - 4995 / 5000 would be slightly more than 1e-3.
    accepted, false_accepted = (
        (len(scores) - np.searchsorted(np.sort(scores), thresholds)) / len(scores) for scores in (genuine, impostor)
    )
    return accepted, false_accepted


def _equal_error_rate(accepted: np.ndarray, false_accepted: np.ndarray) -> float:
    excess = false_accepted - (1 - accepted)  # -1 at the first threshold, 1 at the last, never falling
    after = int(np.argmax(excess >= 0))
    share = -excess[after - 1] / (excess[after] - excess[after - 1])
    return float(false_accepted[after - 1] + share * (false_accepted[after] - false_accepted[after - 1]))
