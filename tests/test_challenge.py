"""The numbers of age checks, against a table of ten people that is worked by hand."""

import numpy as np
import pytest

from lae_jax.metrics import challenge

NOT_PROCESSED = np.nan
# Age and estimate of ten people. Threshold 18, challenge age 25: the third and the fifth are false positives.
TEN = [(12, 14.0), (13, 15.5), (15, 26.0), (16, 17.0), (17, 25.0), (17, NOT_PROCESSED),
       (18, 24.0), (21, 30.0), (25, 22.0), (40, NOT_PROCESSED)]  # fmt: skip


@pytest.fixture
def ten():
    ages, estimates = np.array(TEN, np.float64).T
    return challenge.Photographs(ages, ages, estimates, np.ones(10))


def test_who_is_below_the_threshold_and_who_passes(ten):
    assert ten.younger(18).tolist() == [1] * 6 + [0] * 4 and ten.older(18).tolist() == [0] * 6 + [1] * 4
    assert ten.passes(25).tolist() == [False, False, True, False, True, False, False, True, False, False]
    assert ten.years.tolist() == [12, 13, 15, 16, 17, 17, 18, 21, 25, 40]
    assert ten.estimated_within(13, 16).tolist() == [True, True] + [False] * 8, "17.0 is outside 13 to 16"


def test_a_range_counts_where_it_is_wholly_below_or_above():
    low, high = np.array([[10, 17], [10, 18], [17.5, 17.5], [18, 25], [17, 20]], np.float64).T
    some = challenge.Photographs(low, high, np.full(5, 20.0), np.array([1, 1, 1, 0.5, 1]))
    assert some.younger(18).tolist() == [1, 0, 1, 0, 0] and some.older(18).tolist() == [0, 0, 0, 0.5, 0]
    assert some.years.tolist() == [-1, -1, 17, -1, -1]


@pytest.mark.parametrize(
    ("lower", "upper", "minors", "adults", "cost"),
    [
        # pass, refer, deny of the six minors and of the four adults; then 100 x minors who pass + 10 x adults denied
        # + 1 x referred, over ten people.
        (0, 25, (2, 4, 0), (1, 3, 0), (200 + 0 + 7) / 10),
        (18, 18, (2, 0, 4), (3, 0, 1), (200 + 10 + 0) / 10),
        (16, 27, (0, 4, 2), (1, 3, 0), (0 + 0 + 7) / 10),
        (18, 30, (0, 3, 3), (1, 3, 0), (0 + 0 + 6) / 10),
        (23, 31, (0, 3, 3), (0, 3, 1), (0 + 10 + 6) / 10),
    ],
)
def test_policies_of_two_cuts(ten, lower, upper, minors, adults, cost):
    found = challenge.outcomes(ten.estimates, lower, upper)
    assert np.sum(found, axis=0).tolist() == [1] * 10
    assert tuple(int(one[:6].sum()) for one in found) == minors
    assert tuple(int(one[6:].sum()) for one in found) == adults
    each = challenge.policy_costs(ten, 18, lower, upper, challenge.Costs())
    assert each.mean() == pytest.approx(cost)


def test_the_cheapest_policy_is_the_cheapest_of_all(ten):
    assert challenge.cheapest_policy(ten, 18, challenge.Costs()) == (18, 30)
    rng = np.random.default_rng(0)
    ages, estimates = rng.uniform(5, 60, 40), rng.uniform(5, 60, 40)
    estimates[:5] = np.nan
    some, costs = challenge.Photographs(ages, ages, estimates, rng.uniform(0.2, 1, 40)), challenge.Costs(5, 3, 1)
    whole = {
        (lower, upper): challenge.policy_costs(some, 18, lower, upper, costs).sum()
        for lower in range(0, 102, 3) for upper in range(lower, 102, 3)
    }  # fmt: skip
    best = challenge.policy_costs(some, 18, *challenge.cheapest_policy(some, 18, costs), costs).sum()
    assert best <= min(whole.values()) + 1e-9
    # Denial costs nothing: nobody passes and nobody is referred.
    assert challenge.cheapest_policy(some, 18, challenge.Costs(5, 0, 1)) == (101, 101)


def test_the_spread_of_errors():
    # Errors 2, -1, 5: mean 2, squares of the deviations 0 + 9 + 9 = 18, over 2: 9.
    assert challenge.deviation(3, 6.0, 30.0) == pytest.approx(3)
    assert np.isnan(challenge.deviation(1, 6.0, 36.0)) and np.isnan(challenge.deviation(0, 0.0, 0.0))


def test_errors_within_a_person():
    # Ten photographs. Person 4: errors 1, 3, 8, mean 4, squares 9 + 1 + 16 = 26; pairs 2, 5, 7, mean 14 / 3.
    # Person 9: errors -2, -2: no spread. Person 7: 0, 6: squares 18, pair 6. Person 5 and the unknown have no pair.
    people = np.array([4, 9, 7, 4, -1, 5, 9, 7, 4, -1])
    errors = np.array([8.0, -2, 0, 1, 5, 3, -2, 6, 3, 50])
    found = challenge.within_people(people, errors)
    np.testing.assert_allclose(found, [[4, 26, 2, 14 / 3], [7, 18, 1, 6], [9, 0, 1, 0]])
    assert len(challenge.within_people(np.array([1, -1, -1]), np.zeros(3))) == 0
