"""A sample of `make fuzz`: damaged files of a data set and a run are refused by name, or change no answer."""

import random
import shutil

import pytest

from benchmarks import damages, fuzz_folders
from lae_jax import audit


@pytest.fixture(scope="module")
def whole(drawn, trained, tmp_path_factory):
    """A data set and a run of it, with a config that names it, as `fuzz_folders.make` leaves them."""
    top = tmp_path_factory.mktemp("whole")
    shutil.copytree(drawn, top / "data")
    audit.audit([top / "data"])
    for name in ("represent", "classify"):
        shutil.copytree(trained("represent"), top / name)
        config = top / name / "config.json"
        config.write_text(config.read_text().replace(str(drawn), str(top / "data")))
    return top


DOORS = ("open", "audit read", "main done", "card")


def test_a_damaged_file_is_refused_by_name_or_changes_no_answer(whole, tmp_path):
    rng, count = random.Random(0), dict.fromkeys(DOORS, 0)
    before = fuzz_folders.answers(whole, tmp_path / "copy", DOORS)
    for damage in damages.damages(whole, rng):
        for door in set(fuzz_folders.readers(damage)) & {*DOORS}:
            if count[door] < 12:
                count[door] += 1
                assert not fuzz_folders.try_one(whole, damage, door, before[door], tmp_path / "copy")
    assert set(count.values()) == {12}


def test_another_answer_a_traceback_and_a_hang_are_failures(whole, tmp_path, monkeypatch):
    damage = damages.Damage("data/columns.parquet", "x", lambda path: path.write_text("x"), sealed=False)

    def told(door):
        monkeypatch.setitem(fuzz_folders.DOORS, "open", (door, ("data/",)))
        return fuzz_folders.try_one(whole, damage, "open", 1, tmp_path / "copy")

    assert "another answer" in told(lambda top: 2) and not told(lambda top: 1)
    assert "ZeroDivisionError" in told(lambda top: 1 // 0)
    monkeypatch.setattr(fuzz_folders, "SLOW", 1)
    assert "_Hangs" in told(lambda top: [None for _ in iter(int, 1)])
