"""What a shard is made from: its rows in a file, a digest of them all, and what the reader refused."""

import pickle

import pyarrow as pa
import pytest

from lae_jax.data import rejected, shards
from lae_jax.data.sources import interface
from lae_jax.faces import crops
from lae_jax.faces.images import BadImage
from lae_jax.runtime.errors import InputError


def made(rows, further=("camera",)) -> interface.Source:
    collected = interface.Rows(further)
    for row in rows:
        collected.add(*row)
    return collected.source(interface.FileReader("/photographs"), {})


ROWS = [
    (
        f"{i}.jpg",
        i / 2 if i % 3 else None,
        f"p{i}" if i % 4 else None,
        None,
        [i / 8] * 10 if i % 5 == 0 else None,
        ["ä"],
    )
    for i in range(40)
]


def rows_of(task) -> list[dict]:
    with pa.ipc.open_file(task.source) as reader:
        return reader.get_batch(task.index).to_pylist()


def test_every_row_is_in_one_batch_and_an_empty_shard_has_an_empty_one(tmp_path):
    read_set = made(ROWS[:5])
    tasks = shards.plan(read_set, tmp_path, "csv", crops.Recipe(), 7)
    assert [len(rows_of(task)) for task in tasks] == [task.num_rows for task in tasks]
    assert 0 in [task.num_rows for task in tasks]
    assert [row for task in tasks for row in rows_of(task)] == read_set.table.to_pylist()
    assert [task.first_row for task in tasks if task.num_rows] == [0, 1, 2, 3, 4]


def test_a_task_names_its_rows_and_holds_none(tmp_path):
    few, many = (
        shards.plan(made(ROWS * times), tmp_path / str(times), "csv", crops.Recipe(), 2)[1] for times in (1, 500)
    )
    assert len(pickle.dumps(many)) < len(pickle.dumps(few)) + 50 < 1000


def digest(table: pa.Table) -> str:
    return shards._digest(table)


def test_the_digest_is_of_the_rows_and_not_of_their_place_in_memory():
    table = made(ROWS).table
    pieces = pa.concat_tables([table.slice(0, 7), table.slice(7, 0), table.slice(7, 20), table.slice(27)])
    behind = pa.concat_tables([table.slice(30), table]).combine_chunks().slice(10)
    assert digest(table) == digest(pieces) == digest(behind)


@pytest.mark.parametrize("changed", [
    ("1.jpg", None, "p1", None, None, ["ä"]), ("1.jpg", 0.0, "p1", None, None, ["ä"]),
    ("1.jpg", 0.5, "", None, None, ["ä"]), ("1.jpg", 0.5, None, "p1", None, ["ä"]),
    ("1.jpg", 0.5, "p1", None, [0.0] * 10, ["ä"]), ("1.jpg", 0.5, "p1", None, [], ["ä"]),
    ("1.jp", 0.5, "gp1", None, None, ["ä"]), ("1.jpg", 0.5, "p1", None, None, ["Ä"]),
])  # fmt: skip
def test_the_digest_tells_rows_apart(changed):
    assert digest(made([ROWS[0], changed, *ROWS[2:]]).table) != digest(made(ROWS).table)


def test_text_cannot_move_from_a_row_to_the_next():
    assert digest(made([("ab",), ("c",)], ()).table) != digest(made([("a",), ("bc",)], ()).table)
    assert digest(made(ROWS, ["camera"]).table) != digest(made(ROWS, ["lens"]).table)


def test_a_shard_that_would_be_too_large_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "MAX_ROWS", 16)
    with pytest.raises(InputError, match="--shards 2 for 40 images.*Use 3 or more"):
        shards.plan(made(ROWS), tmp_path / "out", "csv", crops.Recipe(), 2)
    assert not (tmp_path / "out").exists()


def test_what_a_reader_refuses_is_kept_in_order():
    rows = interface.Rows()
    told = [(f"{i}.jpg", f"reason {i}") for i in range(20_000)]
    for name, reason in told:
        rows.reject(name, BadImage(reason))
    assert isinstance(rows.rejected, rejected.Rejected) and len(rows.rejected) == 20_000
    assert [*rows.rejected] == told and rows.rejected == told
    assert [rows.rejected[i] for i in (0, 8192, 19_999, -1)] == [told[i] for i in (0, 8192, 19_999, -1)]
    with pytest.raises(IndexError):
        rows.rejected[20_000]


@pytest.mark.parametrize("align, count, shards_wanted", [
    ("landmarks", 1, 1), ("landmarks", 64, 1), ("landmarks", 65, 2), ("landmarks", 1024, 16),
    ("landmarks", 32_768, 512), ("landmarks", 575_073, 512), ("none", 64, 1), ("none", 1024, 16), ("none", 6000, 16),
    ("none", 100_000, 98), ("none", 575_073, 512), ("none", 100_000_000, 763),
])  # fmt: skip
def test_photographs_are_in_shards_of_64_and_small_folders_of_crops_in_several(align, count, shards_wanted):
    """So that several cores work, and Ctrl-C keeps what is done."""
    assert shards.number_of_shards(count, crops.Recipe(align)) == shards_wanted


def test_rejected_rows_are_counted_by_reason():
    reasons = rejected.Reasons()
    rows = [("a.jpg", "no face found"), ("b.jpg", "age '130' is outside 0 to 100"), ("c.jpg", "no face found")]
    rows += [("d.jpg", "age '-1' is outside 0 to 100"), ("e.jpg", "a {brace} of '3'"), ("f.jpg", "no face found")]
    assert [*reasons.counting(rows)] == rows
    assert [*reasons.counts().items()] == [
        ("no face found", 3), ("age … is outside 0 to 100", 2), ("a {brace} of '3'", 1)
    ]  # fmt: skip
    assert reasons.told().startswith(
        "3 x no face found, for example a.jpg; 2 x age … is outside 0 to 100, for example b"
    )
    many = rejected.Reasons()
    words = [("x", "reason " + "a" * length) for length in range(1, 1101)]
    assert len([*many.counting(words)]) == 1100 and many.counts()["other reasons"] == 100


@pytest.mark.parametrize("reason, align, mend", [
    ("no face found", "landmarks", "--align none"), ("no face found", "none", "source"),
    ("file not found", "none", "--images"),
    ("file not found: there is 'a.png', which differs in upper and lower case", "none", "as they are on the disk"),
    ("landmarks coincide", "landmarks", "`landmarks`"), ("age 'x' is not a number", "none", "ages"),
    ("empty file", "none", "source"),
])  # fmt: skip
def test_the_likely_cause_is_that_of_the_most_frequent_reason(reason, align, mend):
    assert mend in rejected.cause({"another": 1, reason: 2}, align)
