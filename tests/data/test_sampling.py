"""Orders are pure functions of (seed, step, place): permutations, fair draws, the same on any number of hosts."""

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from lae_jax.data import sampling


def draw(order, steps):
    return np.concatenate([order(step).numpy() for step in steps])


@pytest.mark.parametrize(("n", "batch"), [(1, 4), (10, 4), (3, 20), (64, 64), (101, 8)])
def test_shuffled_is_one_permutation_after_the_other(n, batch):
    drawn = draw(sampling.shuffled(n, batch, seed=3), range(-(-5 * n // batch)))[: 5 * n].reshape(5, n)
    assert drawn.dtype == np.int64
    np.testing.assert_array_equal(np.sort(drawn, axis=1), np.tile(np.arange(n), (5, 1)))
    if n > 10:
        assert len({tuple(epoch) for epoch in drawn}) == 5


def test_shuffled_takes_each_example_to_each_place():
    n, epochs = 31, 1500
    order = sampling.shuffled(n, n, seed=1)
    # As training draws it, in a graph: 1,500 calls from Python take half a minute.
    drawn = np.concatenate(list(tf.data.Dataset.range(epochs).map(order).as_numpy_iterator()))
    place = drawn.reshape(epochs, n)
    assert stats.chisquare(np.bincount(place[:, 0], minlength=n)).pvalue > 1e-3
    assert stats.chisquare(np.bincount((place[:, 1] - place[:, 0]) % n, minlength=n)[1:]).pvalue > 1e-3
    assert abs((place[1:] == place[:-1]).sum() - (epochs - 1)) < 5 * np.sqrt(epochs)


def test_orders_depend_on_the_seed_and_on_nothing_else():
    labels = np.repeat(np.arange(5), 20)
    for make in (lambda seed: sampling.shuffled(100, 16, seed), lambda seed: sampling.class_balanced(labels, 16, seed)):
        one, same, other = make(1), make(1), make(2)
        late = draw(same, [40])
        np.testing.assert_array_equal(draw(one, range(41))[-16:], late)
        assert not np.array_equal(late, draw(other, [40]))
        inside = list(tf.data.Dataset.range(38, 41).map(one, num_parallel_calls=2).as_numpy_iterator())
        np.testing.assert_array_equal(inside[2], late)


def test_places_near_the_end_of_time():
    order = sampling.shuffled(7, 4, seed=0)
    assert draw(order, [2**40]).max() < 7
    assert draw(sampling.class_balanced(np.arange(7), 4, seed=0), [2**40]).max() < 7


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_class_balanced_frequencies(power):
    counts = np.array([500, 3, 40, 0, 120])
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(5), counts))
    rows = draw(sampling.class_balanced(labels, 500, seed=5, power=power), range(40))
    there = counts > 0
    expected = counts[there] ** power / (counts[there] ** power).sum() * len(rows)
    drawn = np.bincount(labels[rows], minlength=5)
    assert drawn[3] == 0
    assert stats.chisquare(drawn[there], expected).pvalue > 1e-3
    within = np.bincount(rows, minlength=len(labels))[labels == 0]
    assert stats.chisquare(within).pvalue > 1e-3


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_classes_are_drawn_by_their_weights_and_never_at_weight_0(power):
    counts, weights = np.array([500, 3, 40, 120, 9]), {0: 1.0, 1: 2.5, 2: 0.0, 3: 1e-3, 4: 0.0, 7: 9.0}
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(5), counts))
    order = sampling.class_balanced(labels, 500, seed=5, power=power, weights=weights)
    drawn = np.bincount(labels[draw(order, range(40))], minlength=5)
    expected = counts**power * [weights[label] for label in range(5)]
    assert drawn[2] == drawn[4] == 0
    there = expected > 0
    assert stats.chisquare(drawn[there], expected[there] / expected.sum() * drawn.sum()).pvalue > 1e-3
    alike = sampling.class_balanced(labels, 500, seed=5, weights=dict.fromkeys(range(5), 0.3))
    np.testing.assert_array_equal(draw(alike, [3]), draw(sampling.class_balanced(labels, 500, seed=5), [3]))


def test_rows_of_a_class_are_drawn_also_at_its_ends():
    labels = np.array([2, 1, 2, 1])
    rows = draw(sampling.class_balanced(labels, 64, seed=0), range(4))
    assert {*rows.tolist()} == {0, 1, 2, 3}


def test_sequential_repeats_the_last_place():
    assert draw(sampling.sequential(5, 4), range(2)).tolist() == [0, 1, 2, 3, 4, 4, 4, 4]


@pytest.mark.parametrize("make", [
    lambda: sampling.shuffled(0, 4, 0), lambda: sampling.shuffled(4, 0, 0),
    lambda: sampling.class_balanced(np.zeros(3, int), 4, 0, power=1.5),
    lambda: sampling.class_balanced(np.zeros(3), 4, 0),
    lambda: sampling.class_balanced(np.arange(2), 4, 0, weights={0: 1.0}),
    lambda: sampling.class_balanced(np.arange(2), 4, 0, weights={0: 1.0, 1: -1.0}),
    lambda: sampling.class_balanced(np.arange(2), 4, 0, weights={0: 1.0, 1: np.inf}),
    lambda: sampling.class_balanced(np.arange(2), 4, 0, weights={0: 0.0, 1: 0.0}),
])  # fmt: skip
def test_bad_arguments(make):
    with pytest.raises(ValueError):
        make()
