"""Age checks of an evaluation: its flags, and the photographs that were not processed."""

import csv
import json
import pathlib
import shutil

import numpy as np
import pytest

from lae_jax import evaluate
from lae_jax.data import records
from lae_jax.evaluate import __main__ as door
from lae_jax.report import loading
from lae_jax.runtime.errors import InputError


def test_an_age_check_counts_photographs_that_were_not_processed(trained, tmp_path, monkeypatch):
    data, run, mine = tmp_path / "drawn", trained("represent"), tmp_path / "mine"
    shutil.copytree(json.loads((pathlib.Path(run) / "config.json").read_text())["data"]["path"], data)
    shutil.copytree(run, mine, ignore=shutil.ignore_patterns("evaluation", "tensorboard"))
    listed = ["a.jpg,no face found,9.0,9.0,test", "b.jpg,file not found,9.0,9.0,test", "c.jpg,no face found,40.0,40.0,"]
    (data / "rejected.csv").write_text("\n".join(["name,reason,age_low,age_high,split", *listed, ""]))
    dataset = records.open_dataset(data)
    place = dataset.rows("test")[0]

    def column(self, name, original=records.Dataset.column):
        values = original(self, name).copy()
        if name == "cut_by":
            values[place] = "centre"
        return values

    monkeypatch.setattr(records.Dataset, "column", column)
    report, folder = evaluate.evaluate(mine, data, "test", threshold=18, challenge=25, costs=[50, 5, 1])
    own = dataset.manifest["protocol"] == "column"
    labels = [[9, 9, 1]] if own else [[9, 9, 1], [40, 40, 1]]
    share = 1 if own else len(dataset.rows("test")) / len(dataset)
    assert report["unprocessed"] == {"labels": labels, "of_unknown_age": 0, "share": pytest.approx(share)}
    found = loading.read(folder)
    assert found.no_face.tolist() == [True] + [False] * (len(found.names) - 1)
    text = (folder / "report.html").read_text()
    assert ">Age check</h2>" in text and "No face was found on 1 photographs of the split" in text
    assert "who passes costs 50" in text
    ages, guesses = found.sample.ages, np.where(found.no_face, -1, found.sample.predictions)
    with open(folder / "report" / "age_check.csv") as file:
        young, old = csv.DictReader(file)
    weight = (ages < 18).sum() + share
    assert float(young["all photographs"]) == pytest.approx(((ages < 18) & (guesses >= 25)).sum() / weight)
    assert float(young["processed only"]) == pytest.approx(
        ((ages < 18) & (guesses >= 25)).sum() / ((ages < 18) & ~found.no_face).sum()
    )
    # A later evaluation keeps the check; a data set of an earlier version has no ages.
    (data / "rejected.csv").write_text("name,reason\na.jpg,no face found\n")
    report, _ = evaluate.evaluate(mine, data, "test")
    assert report["contents"]["challenge"] == 25 and report["contents"]["costs"] == [50, 5, 1]
    assert report["unprocessed"] is None and "of which ages, is unknown" in (folder / "report.html").read_text()
    report, _ = evaluate.evaluate(mine, data, "test", threshold=30)
    assert report["contents"]["challenge"] is None and "Age check" not in (folder / "report.html").read_text()
    assert not (folder / "report" / "age_check.csv").exists()


@pytest.mark.parametrize(
    ("threshold", "challenge", "costs", "message"),
    [
        (None, 25, None, "challenge is 25, but there is no threshold: add --threshold AGE"),
        (18, 17, None, "challenge is 17: it must be an age from the threshold, 18, to 100"),
        (18, float("nan"), None, "challenge is nan"),
        (18, None, [1, 2, 3], "costs are of the policies of an age check: add --challenge AGE"),
        (18, 25, [1, 2], "costs are 1, 2: they must be three numbers"),
        (18, 25, [1, 2, -3], "costs are 1, 2, -3: they must be three numbers that are 0 or more"),
        (18, 25, [1, 2, "3"], "it must be a number, not of type str"),
    ],
)
def test_age_checks_that_cannot_be_scored(threshold, challenge, costs, message):
    with pytest.raises(InputError, match=message):
        evaluate.check(0.9, threshold, challenge, costs, None)


def test_costs_are_three_numbers():
    assert door.parse_args(["--costs", "100,2.5,1"]).costs == [100, 2.5, 1]
    with pytest.raises(InputError, match="'many' is not three numbers: write them as 100,10,1"):
        door.parse_args(["--costs", "many"])
