"""Perceptual hashes: a picture stored again is near, another photograph is far; the search finds what is near."""

import io

import numpy as np
import pytest
from pictures import photograph
from PIL import Image, ImageEnhance

from lae_jax.data.sources import synthetic
from lae_jax.faces import images, perceptual_hash


def faces():
    """Drawn faces at the sizes at which faces are stored: (person, picture) -> PIL image."""
    return [Image.fromarray(synthetic.draw_face(p, 30.0, 0, 160, i)[0]) for p in range(8) for i in range(2)]


def resized(image, scale):
    return image.resize([round(side * scale) for side in image.size], Image.Resampling.BICUBIC)


CHANGES = {
    "stored again": lambda image: (image, 60),
    "half the size": lambda image: (resized(image, 0.5), 90),
    "three quarters": lambda image: (resized(image, 0.75), 90),
    "darker": lambda image: (ImageEnhance.Brightness(image).enhance(0.9), 90),
    "lighter": lambda image: (ImageEnhance.Brightness(image).enhance(1.1), 90),
    "grey": lambda image: (image.convert("L").convert("RGB"), 90),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_picture_that_was_stored_again_is_near_itself(change):
    for image in [*faces(), *(Image.fromarray(photograph(120, 100, seed)) for seed in range(8))]:
        changed, quality = CHANGES[change](image)
        one, other = (perceptual_hash.of(images.encode(*kind)) for kind in ((image, 95), (changed, quality)))
        assert perceptual_hash.distance(one, other) <= perceptual_hash.NEAR


def test_other_photographs_are_far_of_the_same_person_too():
    hashes = [perceptual_hash.of(images.encode(image, 95)) for image in faces()]
    distances = [perceptual_hash.distance(a, b) for i, a in enumerate(hashes) for b in hashes[:i]]
    assert min(distances) > 2 * perceptual_hash.NEAR


def test_the_hash_is_the_signs_of_a_cosine_transform():
    """Against scipy's, on a picture of the thumbnail's own size."""
    from scipy.fft import dctn

    pixels = np.random.default_rng(0).integers(0, 256, (32, 32), np.uint8)
    encoded = images.encode(Image.fromarray(pixels).convert("RGB"), 95)
    grey = np.asarray(Image.open(io.BytesIO(encoded)).convert("L"), np.float64)
    expected = dctn(grey)[perceptual_hash._V, perceptual_hash._U]
    sure = np.abs(expected) > 200  # the cosines are rounded to 1/4096
    bits = np.unpackbits(np.frombuffer(perceptual_hash.of(encoded), np.uint8)).astype(bool)
    np.testing.assert_array_equal(bits[sure], expected[sure] > 0)
    assert sure.mean() > 0.9 and len({*zip(perceptual_hash._V, perceptual_hash._U, strict=True)}) == 256


def test_a_picture_without_structure_is_near_to_none():
    hashes = [perceptual_hash.of(images.encode(Image.new("RGB", (40, 40), (level,) * 3), 95)) for level in (0, 90, 255)]
    assert hashes == [bytes(32)] * 3
    code, pairs, count = perceptual_hash.search(np.frombuffer(b"".join(hashes), np.uint8).reshape(-1, 32))
    assert code.tolist() == [-1] * 3 and not len(pairs) and not count


def planted(count, distances, seed=0):
    """Random hashes, and after them one for each distance, that far from the hash of its number."""
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 256, (count, 32), np.uint8)
    bits = np.unpackbits(hashes[: len(distances)], axis=1)
    for row, distance in zip(bits, distances, strict=True):
        row[rng.choice(256, distance, replace=False)] ^= 1
    return np.concatenate([hashes, np.packbits(bits, axis=1)])


def test_the_search_finds_all_that_comparing_every_pair_finds():
    distances = [d for d in range(1, 16) for _ in range(20)] + [19, 25, 40]
    hashes = planted(3000, distances)
    code, pairs, count = perceptual_hash.search(hashes)
    words = hashes.view(np.uint64)
    by_hand = set()
    for i in range(len(words) - 1):
        near = np.bitwise_count(words[i] ^ words[i + 1 :]).sum(axis=1) <= perceptual_hash.NEAR
        by_hand |= {tuple(sorted((int(code[i]), int(code[j])))) for j in i + 1 + np.flatnonzero(near)}
    assert len(by_hand) == 300 == count and {tuple(pair) for pair in pairs.tolist()} == by_hand


def test_equal_hashes_share_a_code_and_make_no_pair():
    hashes = np.repeat(planted(50, []), 4, axis=0)
    code, pairs, _ = perceptual_hash.search(hashes)
    assert len(np.unique(code)) == 50 and (code.reshape(50, 4).std(axis=1) == 0).all() and not len(pairs)
    code, pairs, _ = perceptual_hash.search(np.zeros((0, 32), np.uint8))
    assert code.shape == (0,) and pairs.shape == (0, 2)


def test_where_everything_is_alike_the_search_ends_and_counts_the_pairs_that_it_drops(monkeypatch, caplog):
    hashes = np.ones((400, 32), np.uint8)
    hashes[:, :2] = np.random.default_rng(0).integers(0, 256, (400, 2))
    every = len(np.unique(hashes, axis=0))
    every = every * (every - 1) // 2  # all differ in at most 16 bits
    _, pairs, count = perceptual_hash.search(hashes)
    assert count == len(pairs) == every
    for most, exact in ((every // 2, True), (1000, False)):
        monkeypatch.setattr(perceptual_hash, "MAX_PAIRS", most)
        _, pairs, count = perceptual_hash.search(hashes)
        assert len(pairs) == most and (count == every if exact else 1000 < count < every)
        assert f"at least {count} pairs of pictures are nearly the same: {most} of them are kept" in caplog.text
