"""The report of a long-tail bench."""

import json
import re

import numpy as np
import pytest
from whole_page import checked

from lae_jax import metrics
from lae_jax.report import __main__ as report
from lae_jax.report import charts, tables, wording
from lae_jax.runtime.errors import InputError

HOSTILE = '<script>alert("1")</script>'


def test_a_bench_has_its_report(tmp_path, capsys):
    bench = tmp_path / "bench"
    bench.mkdir()
    header = ["method", "parameter", "setting", "base_learning_rate", "split", "n"]
    header += [name for score in wording.BENCH.scores for name in (score, f"{score}_spread")]
    header += [f"mae_{group}" for group in metrics.ALL_GROUPS]
    ends = ("", "_half", "_low", "_high", "_p", "_p_corrected")
    header += [score + end for score in wording.BENCH.differences for end in ends]
    lines = [
        [
            method,
            "tau",
            "0.5",
            "0.001",
            split,
            2,
            *[mae, 0.1] * 6,
            *[mae] * 7,
            mae + 3,
            "",
            mae + 5,
            *[mae - 4, 0.25, mae - 4.5, mae - 3.5, 0.01, 0.04] * 2,
        ]
        for method, mae in ((HOSTILE, 5.0), ("lae", 4.0))
        for split in ("validation", "test")
    ]
    for name in ("table.csv", "trials.csv"):
        (bench / name).write_text(tables.csv_text(header, lines))
    content = {"sentences": {"lowest MAE": "take lae"}, "head_groups": [0, 1], "tail_groups": [7], "test": "test",
               "runs": ["runs/a"], "data": "d", "data_hash": "a" * 64, "seeds": 2, "audit": "read", "leaks": [],
               "joint": "joint intervals over images"}  # fmt: skip
    (bench / "report.json").write_text(json.dumps(content))
    report.main([str(bench), "--out", str(tmp_path / "out")])
    assert "take lae" in capsys.readouterr().out
    text = (tmp_path / "out" / "report.html").read_text()
    checked(text)
    assert re.search(r"On the frontier.*: lae\. There the MAE of the head groups is 4\.00", text)
    assert "in brackets 95 % intervals over 2 seeds of one backbone, one test set. They show how much other" in text
    assert wording.over_trainings(3, 2) == "95 % intervals over 3 backbones, one test set"
    assert "4.00 ± 0.10" in (tmp_path / "out" / "table.md").read_text()
    assert "| 71-81 | 82+ |" in (tmp_path / "out" / "table.md").read_text()
    assert (
        "| +1.00 (+0.75 to +1.25) | +1.00 (+0.75 to +1.25) | +1.00 (+0.50 to +1.50)\\* |"
        in (tmp_path / "out" / "table.md").read_text()
    )
    assert "The columns &#39;joint&#39; have joint intervals over images. An asterisk" in text
    with pytest.raises(InputError, match="--split is for runs"):
        report.main([str(bench), "--split", "test", "--out", str(tmp_path / "out")])
    with pytest.raises(InputError, match="name it alone"):
        report.main([str(bench), str(bench), "--out", str(tmp_path / "out")])
    for damage in ("null", tables.csv_text(header, [line for line in lines if line[4] == "validation"])):
        (bench / "trials.csv").write_text(damage)
        with pytest.raises(InputError, match="bench is damaged.*trials.csv has no trial on test.*longtail again"):
            report.main([str(bench), "--out", str(tmp_path / "out")])


def test_a_bench_without_images_of_the_tail_has_a_curve_that_says_so():
    drawn = charts.head_tail({"lae": [(3.0, float("nan"))]}, (np.array([2]), np.array([7])))
    assert drawn.finding == "The split has no image of the head groups, or none of the tail groups."
