"""Weights of ages: read from a CSV, refused by line, and one content whatever the file looks like."""

import numpy as np
import pytest

from lae_jax.data import age_weights
from lae_jax.runtime.errors import InputError


def written(tmp_path, text):
    path = tmp_path / "weights.csv"
    path.write_bytes(text.encode())
    return str(path)


def test_weights_are_read_and_hashed_by_their_content_alone(tmp_path):
    one = age_weights.read(written(tmp_path, "age,weight\n5,2\n30,0.5\n31,0\n"))
    assert one.by_age == {5: 2.0, 30: 0.5, 31: 0.0}
    same = age_weights.read(written(tmp_path, "\ufeffAge, Weight\r\n\r\n31,0.0\r\n30,5e-1\r\n5.0,2\r\n"))
    other = age_weights.read(written(tmp_path, "age,weight\n5,2\n30,0.6\n31,0\n"))
    assert one.hash == same.hash != other.hash


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "first line is ''.*write age,weight"),
        ("5,2\n", "first line is '5,2'"),
        ("age;weight\n5;2\n", "first line is 'age;weight'"),
        ("age,weight\n5,2\n6,x\n", "line 3: '6,x' is not an age and a weight"),
        ("age,weight\n5,2\n6\n", "line 3: '6' is not"),
        ("age,weight\n5,2,1\n", "line 2: '5,2,1' is not"),
        ("age,weight\n5.5,2\n", "line 2: age 5.5 is not a whole number"),
        ("age,weight\n-1,2\n", "line 2: age -1 is not"),
        ("age,weight\nnan,2\n", "line 2: age nan is not"),
        ("age,weight\n5,-2\n", "line 2: weight -2 is not a finite number of at least 0"),
        ("age,weight\n5,inf\n", "line 2: weight inf is not"),
        ("age,weight\n5,1\n7,1\n\n5.0,2\n", "line 5: age 5 has a weight already"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, text, told):
    with pytest.raises(InputError, match=f"weights.csv.*{told}"):
        age_weights.read(written(tmp_path, text))


def test_a_file_that_is_missing_is_named(tmp_path):
    with pytest.raises(InputError, match="none.csv cannot be read"):
        age_weights.read(str(tmp_path / "none.csv"))


def test_every_age_of_the_training_images_needs_a_weight_and_one_of_them_more_than_0(tmp_path):
    weights = age_weights.read(written(tmp_path, "age,weight\n5,0\n6,0\n7,1\n"))
    weights.require(np.array([5, 7, 7]))
    with pytest.raises(InputError, match="no weight for the ages 4, 8, which"):
        weights.require(np.array([4, 5, 7, 8]))
    with pytest.raises(InputError, match="the weight of every age .* is 0"):
        weights.require(np.array([5, 6]))


def test_the_weight_of_a_range_is_the_mean_over_its_ages(tmp_path):
    weights = age_weights.read(written(tmp_path, "age,weight\n" + "".join(f"{age},{age}\n" for age in range(20, 101))))
    people = 0.5 ** (np.arange(31) / 5)
    mean = (people * np.arange(70, 101)).sum() / people.sum()
    np.testing.assert_allclose(weights.of_ranges(np.array([[20.0, 29], [34, 34], [70, 100]])), [24.5, 34, mean])
    with pytest.raises(InputError, match="no weight for the ages 18, 19, which"):
        weights.of_ranges(np.array([[18.0, 25]]))
