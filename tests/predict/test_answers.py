"""Rows are written whatever the names of the files are."""

import csv
import json
import os

from lae_jax.predict import answers
from lae_jax.predict.answers import Row

NAMES = [os.fsdecode(b"Zo\xeb.jpg"), "Zo\u00eb.jpg", "a\ud800.jpg"]


def test_names_that_are_not_utf_8_are_written_with_escapes_and_the_rest_goes_on(tmp_path, capsys):
    rows = [Row(name, 1, 30.0, 20.0, 40.0) for name in NAMES] + [Row(NAMES[0], reason="file not found")]
    shown = ["Zo\\udceb.jpg", "Zo\u00eb.jpg", "a\\ud800.jpg", "Zo\\udceb.jpg"]
    for out in ("ages.csv", "ages.jsonl"):
        with answers.opened(str(tmp_path / out), answers.Fields()) as write:
            write(rows)
    with open(tmp_path / "ages.csv", encoding="utf-8") as file:
        assert [row["name"] for row in csv.DictReader(file)] == shown
    lines = [json.loads(line) for line in (tmp_path / "ages.jsonl").read_text("utf-8").splitlines()]
    assert [line["name"] for line in lines] == shown and lines[3]["reason"] == "file not found"
