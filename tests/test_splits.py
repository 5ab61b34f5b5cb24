"""Splits keep together what belongs together, and give the shares that were asked for."""

import numpy as np
import pytest

from lae_jax.data import splits
from lae_jax.errors import InputError


def test_rows_that_share_a_person_or_a_file_are_one_group_also_through_a_third():
    person = np.array(["a", "a", "b", "c", None, None])
    content = np.array(["1", "2", "2", "3", "4", "4"])
    group = splits.groups(content, person)
    assert group[0] == group[1] == group[2] and group[4] == group[5]
    assert len(set(group)) == 3


def test_by_ratio_is_seeded_exact_and_keeps_groups_together():
    group = np.repeat(np.arange(250), 4)
    first, again = (splits.by_ratio(group, (4, 1), 7) for _ in range(2))
    np.testing.assert_array_equal(first["validation"], again["validation"])
    assert len(first["validation"]) == 200 and len(first["train"]) == 800
    assert not {*group[first["train"]]} & {*group[first["validation"]]}
    assert not np.array_equal(first["validation"], splits.by_ratio(group, (4, 1), 8)["validation"])
    three = splits.by_ratio(np.arange(100), (8, 1, 1), 0)
    assert [len(three[name]) for name in ("train", "validation", "test")] == [80, 10, 10]


def test_each_row_is_validated_on_in_one_fold():
    group = np.repeat(np.arange(50), 2)
    folds = splits.by_fold(group, 5, 0)
    validated = np.concatenate([folds[f"fold{k}-validation"] for k in range(5)])
    assert sorted(validated) == list(range(100))
    for k in range(5):
        assert not {*group[folds[f"fold{k}-train"]]} & {*group[folds[f"fold{k}-validation"]]}
        assert len(folds[f"fold{k}-validation"]) == 20


def test_a_file_in_two_splits_stays_in_test_then_in_validation():
    names = np.array(["train", "train", "validation", "validation", "test", None])
    content = np.array(["x", "a", "x", "y", "y", "x"])
    rows, left_out = splits.by_column(names, content)
    assert {k: v.tolist() for k, v in rows.items()} == {"train": [1], "validation": [2], "test": [4]}
    assert left_out.tolist() == [0, 3]


@pytest.mark.parametrize("text", ["4", "4:0", "a:b", "1:1:1:1", "-4:1"])
def test_a_ratio_that_is_none(text):
    with pytest.raises(InputError, match="4:1"):
        splits.parse_ratio(text)
