"""Verification on pairs: the rates against hand-made cases, the pairs distinct, of the right kind and few."""

import numpy as np
import pytest

from lae_jax.stages import verification


def people(num, images, spread, seed=0, dim=32):
    rng = np.random.default_rng(seed)
    identities = np.repeat(np.arange(num), images)
    return rng.normal(size=(num, dim))[identities] + spread * rng.normal(size=(num * images, dim)), identities


def verified(embeddings, identities, **how):
    pairs = verification.draw_pairs(identities, **how)
    return verification.score(np.asarray(embeddings)[pairs.images], pairs)


def test_verification_of_separable_people_is_perfect():
    embeddings, identities = people(50, 20, spread=0.01)
    result = verified(embeddings, [f"person-{i}" for i in identities])
    assert result.equal_error_rate == 0 and result.true_accept_rate == 1
    assert result.pairs == 10000 and result.genuine_pairs == 5000


def test_verification_of_random_embeddings_is_chance():
    embeddings, identities = people(50, 20, spread=0.0)
    embeddings = np.random.default_rng(1).normal(size=embeddings.shape)
    result = verified(embeddings, identities)
    assert result.equal_error_rate == pytest.approx(0.5, abs=0.03)
    assert result.true_accept_rate < 0.01


def test_verification_in_between_is_seeded_and_blind_to_length():
    embeddings, identities = people(50, 20, spread=1.0)
    result = verified(embeddings, identities, seed=3)
    assert 0.001 < result.equal_error_rate < 0.1 and 0.5 < result.true_accept_rate < 1
    lengths = np.random.default_rng(2).uniform(0.1, 10, size=(len(embeddings), 1))
    again = verified(embeddings * lengths, identities, seed=3)
    assert again.equal_error_rate == pytest.approx(result.equal_error_rate, abs=1e-3)
    assert verified(embeddings, identities, seed=3) == result
    assert verified(embeddings, identities, seed=4) != result


def test_verification_by_hand():
    # 0 and 40 degrees are person 0, 30 and 100 person 1: genuine cos 40 and cos 70, impostor cos 30, 100, 10 and 60.
    # Thresholds down: 10: FAR 1/4, FRR 1; 30: 1/2, 1; 40: 1/2, 1/2 -> equal error rate 1/2. Every pair is taken once.
    angles = np.radians([0, 40, 30, 100])
    embeddings = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    result = verified(embeddings, [0, 0, 1, 1])
    assert result.equal_error_rate == pytest.approx(0.5)
    assert result.pairs == 6 and result.genuine_pairs == 2
    assert np.isnan(result.true_accept_rate) and result.to_dict()["true_accept_rate"] is None


def test_equal_error_rate_is_interpolated():
    # Between (FAR 0, FRR 1/4) and (1/3, 1/4) the rates cross at 1/4, which no threshold gives.
    accepted, false_accepted = verification._roc(np.array([0.9, 0.8, 0.7, 0.1]), np.array([0.6, 0.3, 0.2]))
    assert verification._equal_error_rate(accepted, false_accepted) == pytest.approx(0.25)


def test_true_accepts_at_one_false_accept_in_a_thousand():
    # 4 people in the plane at right angles; of 1,000+ impostor pairs none is accepted where all genuine ones are.
    embeddings, identities = people(40, 10, spread=0.02)
    assert np.isnan(verified(embeddings, identities, num_pairs=1998).true_accept_rate)
    assert verified(embeddings, identities, num_pairs=2000).true_accept_rate == 1
    accepted, false_accepted = verification._roc(np.linspace(0, 1, 5000), np.linspace(0, 1, 5000))
    assert accepted[false_accepted <= 1e-3].max() == pytest.approx(1e-3, abs=1e-12)  # 5 of 5,000 count as 1e-3


def test_pairs_are_distinct_and_of_the_right_kind():
    images = np.array([3, 1, 2, 4])
    person = np.repeat(np.arange(4), images)
    end = np.cumsum(images)[person]
    place = np.arange(10)
    for size in (4, 7, 100):
        rng = np.random.default_rng(0)
        a, b = verification._draw_pairs(rng, size, first_partner=place + 1, partners=end - place - 1).T
        assert len(set(zip(a, b, strict=True))) == len(a) == min(size, 3 + 0 + 1 + 6)
        assert (person[a] == person[b]).all() and (a < b).all()
        a, b = verification._draw_pairs(rng, size, first_partner=end, partners=10 - end).T
        assert len(set(zip(a, b, strict=True))) == len(a) == min(size, 45 - 10)
        assert (person[a] != person[b]).all() and b.max() < 10


def test_only_the_images_in_pairs_are_needed_and_they_are_the_same_pairs():
    embeddings, identities = people(50, 20, spread=1.0)
    order = np.random.default_rng(4).permutation(len(identities))
    embeddings, identities = embeddings[order], identities[order]
    pairs = verification.draw_pairs(identities, num_pairs=60, seed=5)
    assert 2 < len(pairs.images) <= 120 and (np.diff(pairs.images) > 0).all()
    for some, same in ((pairs.genuine, True), (pairs.impostor, False)):
        assert some.shape == (30, 2) and len({tuple(pair) for pair in np.sort(some).tolist()}) == 30
        one, other = identities[pairs.images][some].T
        assert ((one == other) == same).all()
    # The equal error rate from the plain similarities of these pairs, over all images.
    a = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    every = a @ a.T
    genuine, impostor = (every[tuple(pairs.images[some].T)] for some in (pairs.genuine, pairs.impostor))
    found = verification.score(embeddings[pairs.images], pairs)
    plain = verification._equal_error_rate(*verification._roc(genuine, impostor))
    assert found.equal_error_rate == pytest.approx(plain, abs=1e-9)
    with pytest.raises(ValueError, match=r"images in pairs should have shape \(\d+, D\), not \(1000, 32\)"):
        verification.score(embeddings, pairs)


def test_a_zero_embedding_is_not_an_error():
    embeddings, identities = people(5, 4, spread=0.1)
    embeddings[0] = 0
    assert np.isfinite(verified(embeddings, identities).equal_error_rate)


@pytest.mark.parametrize(
    ("embeddings", "identities", "message"),
    [
        (np.ones((3, 2)), [1, 1, 1], "at least two people, not 1"),
        (np.ones((0, 2)), [], "at least two people, not 0"),
        (np.ones((3, 2)), [1, 2, 3], "a person with two images"),
        (np.array([[1, 2], [np.nan, 1], [1, 1]]), [1, 1, 2], "1 of 3 embeddings are not finite, the first at index 1"),
    ],
)
def test_verification_refuses_what_gives_no_pairs(embeddings, identities, message):
    with pytest.raises(ValueError, match=message):
        verified(embeddings, identities)
    with pytest.raises(ValueError, match="num_pairs"):
        verified(np.ones((3, 2)), [1, 1, 2], num_pairs=1)
