"""Rows of one photograph are known by their names, and names that everybody has show nothing."""

import numpy as np
import pyarrow as pa
import pytest

from lae_jax.data import stems
from lae_jax.faces import perceptual_hash
from lae_jax.prepare import assembly


def together(names, ages=None, people=None, ends=None):
    """The sets of rows that are of one photograph; `ends`: the last ages of ranges, whose first ages are `ages`."""
    unknown = [None] * len(names)
    columns = (names, ages or unknown, people or unknown, ends or unknown)
    kinds = (pa.string(), pa.float64(), pa.string(), pa.float64())
    # In pieces, as a table's columns come.
    chunks = [
        pa.chunked_array([pa.array(column[:1], kind), pa.array(column[1:], kind)])
        for column, kind in zip(columns, kinds, strict=True)
    ]
    of_ages = [chunks[1], chunks[3]] if ends else [chunks[1]]
    texts = stems.of_one_photograph(chunks[0], of_ages, chunks[2]).to_pylist()
    return sorted([row for row, text in enumerate(texts) if text == one] for one in {*texts} - {None})


def test_a_photograph_and_its_crops_in_other_folders_have_one_stem():
    names = [
        "part1/2_0_1_20170110.jpg",
        "crop/2_0_1_20170110.jpg.chip.jpg",
        "b.JPG_face.jpg",
        "x/b.png",
        "c/a_crop.jpg",
    ]
    assert stems.stems(pa.array(names)).to_pylist() == ["2_0_1_20170110"] * 2 + ["b", "b", "a"]
    other = ["sub\\d.jpg", "d.tar", "no suffix", "scene.jpg#2", "face.jpg", "a/crop/1.png"]
    assert stems.stems(pa.array(other)).to_pylist() == ["d", "d.tar", "no suffix", "scene", "face", "1"]
    assert together(names, [2, 2, 30, None, 4]) == [[0, 1], [2, 3]]


@pytest.mark.parametrize(("ages", "people", "expected"), [
    ([20, 20], None, [[0, 1]]), ([20, None], None, [[0, 1]]), ([20, 35], None, []),
    (None, ["anna", "anna"], [[0, 1]]), (None, ["anna", None], [[0, 1]]), (None, ["anna", "ben"], []),
    ([20, 20], ["anna", "ben"], []),
])  # fmt: skip
def test_a_name_in_the_folder_of_each_person_is_no_photograph(ages, people, expected):
    assert together(["anna/0001.jpg", "ben/0001.jpg"], ages, people) == expected


@pytest.mark.parametrize(("ranges", "expected"), [
    ([(20, 29), (20, 29)], [[0, 1]]), ([(20, 29), (None, None)], [[0, 1]]), ([(20, 29), (30, 39)], []),
    ([(20, 29), (20, 24)], []), ([(20, 29), (25, 25)], []), ([(70, 100), (70, 100)], [[0, 1]]),
])  # fmt: skip
def test_a_name_with_different_ranges_is_no_photograph(ranges, expected):
    first, last = ([one[end] for one in ranges] for end in (0, 1))
    assert together(["train/1.jpg", "val/1.jpg"], first, ends=last) == expected


def test_ranges_are_split_by_the_groups_of_the_ages_that_stand_for_them():
    """40 people of 20-29 and 10 of 70 and above: both groups are in both splits, in the ratio."""
    ranges = [(20.0, 29.0)] * 40 + [(70.0, 100.0)] * 10
    rng, count = np.random.default_rng(0), len(ranges)
    columns = {
        "name": pa.array([f"a{i}.jpg" for i in range(count)]),
        "age": pa.nulls(count, pa.float64()),
        "age_low": pa.array([low for low, _ in ranges]),
        "age_high": pa.array([high for _, high in ranges]),
        "identity": pa.nulls(count, pa.string()),
        "split": pa.nulls(count, pa.string()),
        "sha256": pa.array([str(i) for i in range(count)]),
        "phash": pa.array([rng.bytes(perceptual_hash.BYTES) for _ in ranges], pa.binary(perceptual_hash.BYTES)),
    }
    for seed in range(3):
        how = assembly.Splitting((4, 1), None, None, seed)
        _, found, _ = assembly.splitter(how, lambda name: pa.chunked_array([columns[name]]))
        old = [int((rows >= 40).sum()) for rows in (found["train"], found["validation"])]
        assert old == [8, 2] and len(found["validation"]) == 10


def test_a_name_that_many_rows_have_joins_none_of_them():
    few = [f"{i}/image.jpg" for i in range(stems.MOST)]
    assert together(few, [30] * len(few)) == [[*range(stems.MOST)]]
    assert together([*few, "more/image.jpg"], [30] * (len(few) + 1)) == []


def test_rows_keep_their_numbers_among_many(monkeypatch):
    monkeypatch.setattr(stems, "_SOME", 7)
    rng = np.random.default_rng(0)
    names = np.array([f"photo/{i}.jpg" for i in range(500)] + [f"crop/{i}.jpg.chip.jpg" for i in range(0, 500, 5)])
    order = rng.permutation(len(names))
    expected = sorted(
        sorted([int(np.flatnonzero(order == i)[0]), int(np.flatnonzero(order == 500 + i // 5)[0])])
        for i in range(0, 500, 5)
    )
    assert together(names[order].tolist()) == expected


@pytest.mark.parametrize("folds", [None, 3])
@pytest.mark.parametrize("by", ["image", "identity"])
def test_a_split_keeps_a_photograph_and_its_crop_together_and_common_names_apart(folds, by):
    """24 photographs with their crops, of which only the photographs have a person; and 1.jpg to 4.jpg of 12 people."""
    photographs = [(f"part1/{i}_0_1_2017.jpg", 20.0 + i, f"p{i}") for i in range(24)]
    crops = [(f"crop/{name[6:]}.chip.jpg", age, None) for name, age, _ in photographs]
    others = [(f"q{i}/{k}.jpg", 30.0, f"q{i}") for i in range(12) for k in range(1, 5)]
    names, ages, people = zip(*photographs, *crops, *others, strict=True)
    rng = np.random.default_rng(0)
    columns = {
        "name": pa.array(names),
        "age": pa.array(ages),
        "identity": pa.array(people),
        "split": pa.nulls(len(names), pa.string()),
        "sha256": pa.array([str(i) for i in range(len(names))]),
        "phash": pa.array([rng.bytes(perceptual_hash.BYTES) for _ in names], pa.binary(perceptual_hash.BYTES)),
    }
    for seed in range(5):
        how = assembly.Splitting((1, 1), folds, by, seed)
        protocol, found, _ = assembly.splitter(how, lambda name: pa.chunked_array([columns[name]]))
        assert protocol == by
        sides = [{*rows.tolist()} for name, rows in found.items() if name.endswith("validation")]
        for side in sides:
            assert {row - 24 for row in side if 24 <= row < 48} == {row for row in side if row < 24}
            # Neither all first pictures nor (by image) all pictures of a person are on one side.
            others_in = [row - 48 for row in side if row >= 48]
            assert 0 < len({row // 4 for row in others_in}) < 12 or by == "image"
            assert {row % 4 for row in others_in} & {row % 4 for row in {*range(48)} - {*others_in}}
