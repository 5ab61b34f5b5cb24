"""Splits keep together what belongs together, and give the shares that were asked for."""

import hypothesis
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import strategies as st
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from lae_jax.data import splits
from lae_jax.runtime.errors import InputError


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


def test_an_age_group_of_five_people_is_in_each_split():
    """Of 60 people, five are over 70 (kind 7), and each of these has photographs of other ages too."""
    people = np.repeat(np.arange(60), 6)
    kind = np.where(people < 5, np.where(np.arange(360) % 6 == 0, 7, 6), people % 3)
    kind[people == 59] = -1
    for seed in range(20):
        rows = splits.by_ratio(people, (8, 1, 1), seed, kind)
        assert all({*kind[some]} >= {0, 1, 2, 6, 7} for some in rows.values())
        assert len({*people}) == sum(len({*people[some]}) for some in rows.values())
        assert [len(rows[name]) for name in ("validation", "test")] == pytest.approx([36, 36], abs=6)
        for name, some in splits.by_fold(people, 5, seed, kind).items():
            assert {*kind[some]} >= {0, 1, 2, 6, 7}, name


def test_a_person_who_is_too_old_for_five_groups_of_their_own_is_where_the_ratio_says():
    """Four people of a kind are too few to be shared out; with five, the one with the fewest images is moved."""
    people = np.repeat(np.arange(40), np.r_[np.full(20, 9), np.full(20, 10)])
    four, five = (np.where(people < count, 1, 0) for count in (4, 5))
    held = [{name: {*people[some]} for name, some in splits.by_ratio(people, (38, 1, 1), 0, kind).items()}
            for kind in (four, five)]  # fmt: skip
    assert not any({0, 1, 2, 3} & held[0][name] for name in ("validation", "test"))
    assert all(len({0, 1, 2, 3, 4} & held[1][name]) == 1 for name in ("validation", "test"))


def test_no_part_is_empty_unless_there_are_fewer_groups():
    for count in range(1, 9):
        sizes = [len(rows) for rows in splits.by_ratio(np.arange(count), (1000, 1, 1), 0).values()]
        assert sum(sizes) == count and (min(sizes) > 0) == (count >= 3)


@hypothesis.settings(max_examples=100, deadline=None, derandomize=True, database=None)
@hypothesis.given(st.lists(st.tuples(st.integers(0, 12), st.integers(-1, 3)), min_size=1, max_size=60),
                  st.sampled_from([(4, 1), (8, 1, 1), (1,) * 5]))  # fmt: skip
def test_rows_of_a_group_are_in_one_part_and_no_frequent_kind_is_missing(rows, ratio):
    group, kind = np.array(rows).T
    side = splits.parts(group, ratio, 3, kind)
    assert {*side} <= {*range(len(ratio))}
    for one in {*group}:
        assert len({*side[group == one]}) == 1
    alone = len({*zip(group, kind, strict=True)}) == len({*group})  # every group has one kind
    for one in {*kind} - {-1}:
        if alone and len({*group[kind == one]}) >= 5:
            assert {*side[kind == one]} == {*range(len(ratio))}


def test_each_row_is_validated_on_in_one_fold():
    group = np.repeat(np.arange(50), 2)
    folds = splits.by_fold(group, 5, 0)
    validated = np.concatenate([folds[f"fold{k}-validation"] for k in range(5)])
    assert sorted(validated) == list(range(100))
    for k in range(5):
        assert not {*group[folds[f"fold{k}-train"]]} & {*group[folds[f"fold{k}-validation"]]}
        assert len(folds[f"fold{k}-validation"]) == 20


def test_folds_leave_a_test_split_alone_where_there_is_one():
    group, kind = np.repeat(np.arange(60), 2), np.repeat(np.arange(60) % 3, 2)
    folds = splits.by_fold(group, 5, 0, kind, (9, 1))
    assert [*folds][-1] == "test" and len(folds["test"]) == 12 and {*kind[folds["test"]]} == {0, 1, 2}
    validated = [folds[f"fold{k}-validation"] for k in range(5)]
    assert sorted(np.concatenate([*validated, folds["test"]])) == list(range(120))
    for k in range(5):
        assert sorted([*folds[f"fold{k}-train"], *validated[k], *folds["test"]]) == list(range(120))
    assert "test" not in splits.by_fold(group, 5, 0, kind)


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


def groups_by_sorting(*keys):
    """`groups` as it can be said shortly, with every text as a Python object."""
    n = len(keys[0])
    nodes, offset = [], n
    for key in keys:
        values = np.asarray(["" if v is None else str(v) for v in key])
        unique, code = np.unique(values, return_inverse=True)
        known = values != ""
        nodes.append(np.stack([np.flatnonzero(known), offset + code[known]]))
        offset += len(unique)
    edges = np.concatenate(nodes, axis=1)
    graph = coo_matrix((np.ones(edges.shape[1], np.int8), edges), shape=(offset, offset))
    return connected_components(graph, directed=False)[1][:n]


def by_column_with_sets(split, content):
    """`by_column` likewise."""
    split = np.asarray(["" if s is None else str(s) for s in split])
    names = [name for name in np.unique(split) if name]
    taken, seen = np.zeros(len(split), bool), set()
    for name in sorted(names, key=lambda name: (name == "train", name != "test", name)):
        rows = np.flatnonzero(split == name)
        taken[rows] = np.isin(content[rows], list(seen))
        seen.update(content[rows].tolist())
    return {name: np.flatnonzero((split == name) & ~taken) for name in names}, np.flatnonzero(taken)


def texts(values, rows):
    column = st.lists(st.sampled_from(values), min_size=rows, max_size=rows)
    return column.map(lambda chosen: np.array(chosen, object))


def chunked(column):
    """As a table's column comes: in pieces, each of which may lack what another has."""
    return pa.chunked_array([pa.array(part, pa.string()) for part in np.array_split(column, 3)])


@pytest.mark.slow
@hypothesis.settings(max_examples=200, deadline=None, derandomize=True, database=None)
@hypothesis.given(st.data(), st.integers(1, 40))
def test_counted_on_codes_the_splits_are_those_of_the_texts(data, rows):
    people = [None, "", *"abcdefghij", "ä", "Ω"]
    content = data.draw(texts([f"{i:02x}" for i in range(data.draw(st.integers(1, 60)))], rows))
    identity = data.draw(texts(people, rows))
    for keys in ([content], [content, identity], [identity]):
        np.testing.assert_array_equal(splits.groups(*map(chunked, keys)), groups_by_sorting(*keys))
    split = data.draw(texts([None, "train", "test", "validation", "a", "z"], rows))
    got, expected = splits.by_column(chunked(split), chunked(content)), by_column_with_sets(split, content)
    assert [*got[0]] == [*expected[0]]
    for name, kept in expected[0].items():
        np.testing.assert_array_equal(got[0][name], kept)
    np.testing.assert_array_equal(got[1], expected[1])
