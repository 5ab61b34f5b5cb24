"""The comparison of ages beside other packages, with stand-ins for the sides."""

import contextlib
import csv

import numpy as np
import pytest

from benchmarks import peers_ages, peers_ages_scores, sides
from lae_jax.runtime.errors import InputError

AGES = np.array([5.0, 15, 25, 35, 45, 55, 65, 75])


class StandIn:
    """A side that errs by `error` years, and finds no face in the images of these places."""

    def __init__(self, error=0.0, blind=(), fails_at=None):
        self.error, self.blind, self.fails_at, self.asked = error, blind, fails_at, []

    def ask(self, do, paths=(), **rest):
        self.asked.append((do, len(paths)))
        if self.fails_at == do:
            raise sides.SideError("it broke")
        if do == "open":
            return {"version": "1.0", "model_bytes": 2_000_000, "installed_bytes": 30_000_000}
        if do == "turn":
            return {"seconds": 2.0, "cpu_seconds": 1.0 if rest["way"] == "crops" else 1.6}
        places = [int(path.rpartition("/")[2].removesuffix(".jpg")) for path in paths]
        return {"ages": [None if place in self.blind else AGES[place] + self.error for place in places]}


@pytest.fixture
def compared(tmp_path):
    """Compares stand-ins, and returns what failed and the tables as {file: {row: cells}}."""
    for place in range(len(AGES)):
        (tmp_path / f"{place}.jpg").touch()
    lines = [f"{place}.jpg,{age}" for place, age in enumerate(AGES)]
    (tmp_path / "faces.csv").write_text("\n".join(["path,age", *lines]))
    paths, ages = peers_ages.read_images(tmp_path / "faces.csv", tmp_path)
    (tmp_path / "out").mkdir()

    def compare(stand_ins, run="a", turns=1):
        comparison = peers_ages.Comparison(tmp_path / "out", run, paths, ages)
        failed = peers_ages.compare(
            comparison, [*stand_ins], turns, start=lambda name: contextlib.nullcontext(stand_ins[name])
        )
        peers_ages.show(comparison, [name for name in stand_ins if comparison.is_complete(name)])
        tables = {}
        for place in (tmp_path / "out").glob("*.csv"):
            with open(place, newline="") as file:
                tables[place.stem] = {row.pop(next(iter(row))): row for row in csv.DictReader(file)}
        return failed, tables

    return compare


def test_scores_rates_and_paired_differences(compared, capsys):
    failed, tables = compared(
        {"lae_jax": StandIn(error=2), "human": StandIn(error=-6, blind=(0,)), "face-api": StandIn(error=3, blind=(7,))}
    )
    assert not failed
    scores, paired = tables["scores"], tables["paired"]
    assert [scores["faces not found"][name] for name in ("lae_jax", "human", "face-api")] == ["0", "1", "1"]
    assert [float(scores["MAE"][name]) for name in ("lae_jax", "human", "face-api")] == [2, 6, 3]
    ends = scores["mean of MAE 1-10 and 71-81"]
    assert float(ends["lae_jax"]) == 2 and not ends["human"]  # it finds no child
    assert [float(scores["CS@5"][name]) for name in ("lae_jax", "human")] == [1, 0]
    assert [scores["crops a second of CPU time"][name] for name in ("lae_jax", "human")] == ["8.0", "8.0"]
    assert scores["photographs a second of CPU time"]["human"] == "5.0"
    assert scores["photographs a second of wall time, one core"]["human"] == "4.0"
    assert scores["models it uses, MB"]["human"] == "2.0"
    assert [paired["images"][f"lae_jax - {name}"] for name in ("human", "face-api")] == ["7", "7"]
    assert [float(paired["MAE"][f"lae_jax - human{end}"]) for end in ("", " low", " high")] == [-4, -4, -4]
    assert float(paired["MAE"]["lae_jax - face-api"]) == -1
    assert not paired["MAE 1-10"]["lae_jax - human"] and float(paired["MAE 11-20"]["lae_jax - human"]) == -4
    assert float(paired["MAE 1-10"]["lae_jax - face-api"]) == -1  # that human misses a child changes nothing here
    out = capsys.readouterr().out
    assert "on the images that both find" in out and "human (1.0): MIT. Trained on: not stated." in out


def test_differences_are_of_the_same_images_and_have_paired_intervals():
    random = np.random.default_rng(0)
    ages = np.tile(AGES, 40)
    noise = random.normal(0, 8, len(ages))
    found = random.random((2, len(ages))) < 0.9
    made = {"lae_jax": ages + noise, "human": ages + noise * 1.25}
    sides_of = {name: np.where(found[place], made[name], np.nan) for place, name in enumerate(made)}
    table = peers_ages_scores.paired(ages, sides_of)
    both = found.all(axis=0)
    difference = next(row for row in table.rows if row[0] == "MAE")[-1]
    assert difference.value == pytest.approx(-0.25 * np.abs(noise[both]).mean())
    # Unpaired, the interval would be about as wide as that of the MAE, 1.2 years.
    assert difference.low < difference.value < difference.high < 0 and difference.high - difference.low < 0.4
    assert peers_ages_scores.paired(ages, {"human": sides_of["human"]}) is None


def test_a_side_that_fails_is_named_and_the_others_are_complete(compared, capsys):
    failed, tables = compared({"lae_jax": StandIn(), "human": StandIn(fails_at="ages"), "face-api": StandIn(error=1)})
    assert failed == {"human": "it broke"}
    assert "human" not in tables["scores"]["MAE"] and float(tables["paired"]["MAE"]["lae_jax - face-api"]) == -1
    assert tables["scores"]["crops a second of CPU time"]["face-api"] == "8.0"
    failed, tables = compared({"lae_jax": StandIn(), "human": StandIn(fails_at="turn")})
    assert failed == {"human": "it broke"} and tables["scores"]["crops a second of CPU time"]["human"] == "–"


def test_it_goes_on_where_it_stopped_and_does_nothing_twice(compared, monkeypatch):
    monkeypatch.setattr(peers_ages, "TOGETHER", 3)
    first = StandIn()
    first.ask = lambda do, paths=(), **rest: (
        StandIn.ask(first, do, paths, **rest) if first.asked != [("open", 0), ("ages", 3)] else 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        compared({"lae_jax": first}, turns=0)
    second = StandIn()
    compared({"lae_jax": second}, turns=0)
    assert second.asked == [("open", 0), ("ages", 3), ("ages", 2)]
    third = StandIn(error=9)
    _, tables = compared({"lae_jax": third}, turns=0)
    assert not third.asked and float(tables["scores"]["MAE"]["lae_jax"]) == 0
    with pytest.raises(InputError, match=r"other run: 'a', not 'b': remove .*lae_jax"):
        compared({"lae_jax": third}, run="b")


def test_a_run_that_was_trained_again_in_its_place_is_another_model(compared, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "summary.json").write_text('{"step": 1}')
    compared({"lae_jax": StandIn()}, run=str(run), turns=0)
    (run / "summary.json").write_text('{"step": 2}')
    with pytest.raises(InputError, match="are for other model: .*: remove .*lae_jax"):
        compared({"lae_jax": StandIn()}, run=str(run), turns=0)


def test_a_package_that_is_not_installed_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(peers_ages, "PEERS", tmp_path / "none")
    with pytest.raises(sides.SideError, match="human is not there: make setup-peers-ages"):
        peers_ages.start("human")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,age\na.jpg,3\n", "no columns path and age"),
        ("path,age\na.jpg,old\n", "line 2: age 'old' is not a number"),
        ("path,age\nb.jpg,3\n", "line 2: no such image: .*b.jpg: name its folder with --images"),
        ("path,age\na.jpg,3\na.jpg,4\n", "one twice"),
        ("path,age\na.jpg,-5\n", "line 2: age '-5' is outside 0 to 100"),
        ("age,path\n3\n", "line 2: no image path"),
    ],
)
def test_a_list_that_cannot_be_used_is_refused(tmp_path, text, message):
    (tmp_path / "a.jpg").touch()
    (tmp_path / "faces.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        peers_ages.read_images(tmp_path / "faces.csv", tmp_path)
