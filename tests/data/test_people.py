"""One normal form of a person, and one name of a split, from the source to the last comparison."""

import csv

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from lae_jax import audit, prepare
from lae_jax.data import people, records, split_names
from lae_jax.data.sources.readers import READERS, Options
from lae_jax.runtime.errors import InputError


def written(path, *rows):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


def read(path, reader="csv"):
    return READERS[reader]([str(path)], Options())


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """48 pictures that are not alike."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(48):
        noise = np.random.default_rng(i).integers(0, 256, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((96, 96), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return folder


@pytest.mark.parametrize(("one", "other"), [
    ("Ann Lee", "ann_lee "), ("Ann  Lee", "ANN\u00a0LEE"), ("Jos\u00e9", "Jose\u0301"), ("Maria Callas", "MariaCallas"),
    ("Stra\u00dfe", "STRASSE"), ("\u0130zmir", "i\u0307zmir"), ("\u200fAda\ufeff", "ada"), ("\uff27us", "gus"),
    ("7", "07"), ("7", "7.0"), ("7", "+7"), ("0", "000"), ("person_1", "Person 1"), ("n000017", "N000017"),
])  # fmt: skip
def test_two_spellings_of_one_person(one, other):
    assert people.normalised(one) == people.normalised(other) != ""


@pytest.mark.parametrize(("one", "other"), [
    ("7", "70"), ("7", "7.5"), ("1 12", "11 2"), ("anna-2", "anna2"), ("a", "b"), ("7", "-7"), ("s1", "s01"),
])  # fmt: skip
def test_two_people_stay_two(one, other):
    assert people.normalised(one) != people.normalised(other)


@pytest.mark.parametrize(
    "word", ["unknown", "N/A", "None", "NaN", "null", "-", "?", "--", "_", " ", "<NA>", "-1", "-1.0"]
)
def test_a_word_for_unknown_names_nobody(word):
    assert people.normalised(word) == ""
    assert people.codes(np.array(["Ann", word, None], object))[0].tolist() == [0, -1, -1]


def test_a_long_number_costs_no_time():
    assert people.normalised("0" * 60_000 + "7") == "7" and people.normalised("9" * 60_000) == "9" * 60_000
    assert people.normalised("0" * 60_000 + "x")[-1] == "x"


def test_a_column_has_one_spelling_for_each_person_and_it_is_told(monkeypatch):
    monkeypatch.setattr(people, "_SOME", 2)
    names = [["Ann Lee", "Ben", None, "ann lee"], [], ["7.0", "?", "Ann_Lee", "07", "Ben"]]
    column = pa.chunked_array(names, pa.string())
    found = people.spelled(column)
    assert found.names.to_pylist() == ["Ann Lee", "Ben", None, "Ann Lee", "7.0", None, "Ann Lee", "7.0", "Ben"]
    assert found.names.type == pa.string() and found.several == 2 and found.unknown == ["?"]
    assert found.example == ["Ann Lee", "ann lee", "Ann_Lee"]
    for same in (pa.chunked_array([["b", None, "a", "b"]]), pa.chunked_array([], pa.string())):
        assert people.spelled(same).names is same


def test_what_prepare_splits_by_person_its_own_audit_finds_clean(pictures, tmp_path, caplog):
    caplog.set_level("INFO", "lae_jax")
    spelled = "Ann Lee|ann lee|Ann_Lee|Ann  Lee|Jos\u00e9|Jose\u0301|Ben|Carl|Dora|Eve|unknown|?".split("|")
    rows = [(f"{i}.png", 20 + i, spelled[i % 12]) for i in range(48)]
    table = written(tmp_path / "p.csv", ("path", "age", "identity"), *rows)
    out = tmp_path / "out"
    for seed in range(2):
        out = tmp_path / f"out{seed}"
        given = {"images": pictures, "align": "none", "size": 64, "workers": 1, "ratio": "1:1", "seed": seed}
        prepare.prepare(table, out, **given)
        (report,) = audit.audit([out])
        assert not [f for f in report["findings"] if f["kind"] == "same_identity"]
    identities = records.open_dataset(out).column("identity")
    assert {*identities} == {"Ann Lee", "Jos\u00e9", "Ben", "Carl", "Dora", "Eve", None}
    assert "count as one person (2 people; an example: 'Ann Lee', 'ann lee', 'Ann_Lee', 'Ann  Lee')" in caplog.text
    assert "'unknown', '?' means that the person is unknown (8 images)" in caplog.text


def test_readers_of_names_give_people_that_can_be_compared(tmp_path):
    for name in ("0_MariaCallas_35_f.jpg", "001A02.JPG", "004A02.JPG"):
        (tmp_path / name).write_bytes(b"x")
    agedb, fgnet = (read(tmp_path, reader).table["identity"].to_numpy() for reader in ("agedb", "fgnet"))
    known = people.hashed(np.array(["maria callas", "1"], object), "a" * 64)
    assert people.compare(known, agedb, "b" * 64)["shared"] == ["MariaCallas"]
    # A number is another person in another data set, and one person in one.
    assert people.compare(known, fgnet, "b" * 64)["compared"] == 0
    assert people.compare(known, fgnet, "a" * 64)["shared"] == ["001"]


def test_a_row_without_age_and_person_is_refused(tmp_path):
    rows = [("a.png", "", "Ann"), ("b.png", "NA", "Ann"), ("c.png", "", "unknown"), ("d.png", "3", "unknown")]
    found = read(written(tmp_path / "p.csv", ("path", "age", "identity"), *rows))
    assert found.table.select(["name", "age", "identity"]).to_pylist() == [
        {"name": "a.png", "age": None, "identity": "Ann"}, {"name": "b.png", "age": None, "identity": "Ann"},
        {"name": "d.png", "age": 3.0, "identity": None},
    ]  # fmt: skip
    assert list(found.rejected) == [("c.png", "no age")]


def test_the_names_of_a_split_are_one(tmp_path, caplog):
    caplog.set_level("INFO", "lae_jax")
    names = ["Train", "train", "TRAIN ", "val", "valid", "validation", "test", "Noisy", "noisy", ""]
    rows = [(f"{i}.png", 30, name) for i, name in enumerate(names)]
    found = read(written(tmp_path / "p.csv", ("path", "age", "split"), *rows)).table["split"]
    assert found.to_pylist() == ["train"] * 3 + ["validation"] * 3 + ["test"] + ["Noisy"] * 2 + [None]
    assert found.type == pa.string()
    assert "'Train' is 'train'" in caplog.text and "'val' is 'validation'" in caplog.text
    caplog.clear()
    plain = read(written(tmp_path / "q.csv", ("path", "age", "split"), ("0.png", 30, "train"), ("1.png", 30, "Odd")))
    assert plain.table["split"].to_pylist() == ["train", "Odd"] and not caplog.text


@pytest.mark.parametrize(("names", "message"), [
    ([f"s{i}" for i in range(1001)], "1,001 different values"), (["a/b"], "use letters"), (["All"], "every row"),
])  # fmt: skip
def test_a_column_that_names_no_splits_is_refused_before_an_image_is_read(tmp_path, names, message):
    rows = [(f"{i}.png", 30, name) for i, name in enumerate(names)]
    with pytest.raises(InputError, match=message):
        read(written(tmp_path / "p.csv", ("path", "age", "split"), *rows))


def test_no_two_splits_differ_by_case_alone():
    one = split_names.one_name(["Fold_A", "fold_a", "FOLD_A ", "b", "Dev", "Testing"])
    assert [*one.values()] == ["Fold_A"] * 3 + ["b", "validation", "test"]


def test_a_word_for_validation_is_taken_for_it_in_a_hint(drawn):
    with pytest.raises(InputError, match=r"unknown split 'val'; did you mean 'validation'\?"):
        records.open_dataset(drawn).rows("val")
