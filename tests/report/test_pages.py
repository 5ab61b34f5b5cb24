"""Reports: pages that need nothing else and run nothing, comparisons of like."""

import base64
import csv
import io
import json
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT
from samples import sample
from whole_page import checked

from lae_jax import metrics
from lae_jax.report import __main__ as report
from lae_jax.report import charts, evaluation_page, loading, page, tables, wording
from lae_jax.runtime.errors import InputError

HOSTILE = '<script>alert("1")</script><img src="https://evil.example/x.png">'


def write_run(folder, name, ages, predictions, *, people=None, start="", **changed):
    """A run's folder with one evaluation, as training and evaluating leave it."""
    run = folder / name
    place = run / "evaluation" / "faces-test"
    place.mkdir(parents=True)
    content = {
        **metrics.age_report(ages, predictions).to_dict(), "run": str(run), "step": 9, "stage": "represent",
        "model": "resnet18", "data": "data/faces", "data_hash": "a" * 64, "same_data_as_training": True,
        "split": "test",
        "flip": False, "protocol": "identity", "crop": {"align": "none"}, "other_crop_than_training": False,
        "audit": "read", "findings": [], "leaks": [], "same_people_on_both_sides": None, "threshold": 18.0,
        "training": {"split": "train", "count": [0, *range(1, 82)]}, **changed,
    }  # fmt: skip
    (place / "report.json").write_text(json.dumps(content))
    header = ["name", "age", "prediction", "lower", "upper", "below", "person", "p_at_least_18", "slice:sex"]
    names = changed.get("names", [f"{i}.jpg" for i in range(len(ages))])
    with (place / "predictions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for i, (age, guess) in enumerate(zip(ages, predictions, strict=True)):
            person = "" if people is None else people[i]
            writer.writerow([names[i], age, guess, guess - 9, guess + 9, (i % 10) / 10, person, guess > 18, HOSTILE])
    text = (place / "predictions.csv").read_text().replace("True", "0.9").replace("False", "0.1")
    (place / "predictions.csv").write_text(text)
    (run / "config.json").write_text(json.dumps({"stage": "represent", "init_from": start, "model": {"name": "m"}}))
    (run / "provenance.json").write_text(json.dumps({"commit": HOSTILE, "devices": ["cpu"], "hosts": 1}))
    (run / "summary.json").write_text(
        json.dumps(
            {"step": 9, "last_step": 9, "stage": "represent", "seconds": 3.0, "scores": None, "selected_by": None}
        )
    )
    lines = [{"step": step, "kind": "train", "loss": 9.0 / step, "learning_rate": 0.1} for step in (1, 2, 3)]
    lines.append({"step": 3, "kind": "validation", "mae": 5.0, "sigma": None})
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 4')
    (place / "model_card.md").write_text(f"## Use\n\n{HOSTILE}\n\n![x](https://evil.example/y.png) [z](javascript:a)\n")
    return run


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two runs on the same 200 images of 50 people: the second is better by a year; a third was made otherwise."""
    folder = tmp_path_factory.mktemp("made")
    one = sample(200, people=np.arange(200) % 50)
    better = one.ages + np.sign(one.predictions - one.ages) * np.maximum(0, np.abs(one.predictions - one.ages) - 1)
    write_run(folder, "first", one.ages, one.predictions, people=one.people)
    write_run(folder, "second", one.ages, better, people=one.people, start=str(folder / "first"))
    write_run(folder, "other", one.ages, better, data_hash="b" * 64)
    return folder


# --- tables


def test_a_table_in_four_forms():
    cell = tables.Estimate(0.5, 0.25, 0.75, 1, percent=True)
    table = tables.Table(("run", "CS@5"), [("a|b_<x>", cell), ("$c", tables.Estimate(float("nan")))])
    assert tables.markdown(table).splitlines()[2] == r"| a\|b\_\<x\> | 50.0 % (25.0 % to 75.0 %) |"
    stacked = r"\begin{tabular}[t]{@{}r@{}}50.0 \%\\[-3pt]{\tiny 25.0 \% to 75.0 \%}\end{tabular}"
    assert rf"a|b\_\textless{{}}x\textgreater{{}} & {stacked} \\" in tables.latex(table)
    below = tables.Table(("run", "minus", "change"), [("a", "b", tables.Estimate(-1.5, -2.0, -1.0)), ("1-10", "x", "")])
    assert r"\begin{tabular}{llr}" in tables.latex(below)
    assert r"a & b & " in tables.latex(below) and r"$-$1.50\\[-3pt]{\tiny $-$2.00 to $-$1.00}" in tables.latex(below)
    assert "1-10 & x" in tables.latex(below)
    assert "{[}a] & " in tables.latex(tables.Table(("run", "x"), [("[a]", "y")]))
    rows = list(csv.reader(io.StringIO(tables.csv_of(table))))
    assert rows == [["run", "CS@5", "CS@5 low", "CS@5 high"], ["a|b_<x>", "0.5", "0.25", "0.75"], ["$c", "", "", ""]]


# --- pages


def test_the_page_of_an_evaluation_is_one_file_in_which_nothing_runs(made):
    folder = made / "second" / "evaluation" / "faces-test"
    page.write(folder / "report.html", evaluation_page.of_evaluation(loading.epath.Path(folder)))
    text = (folder / "report.html").read_text()
    found = checked(text)
    assert "<script" not in text and "evil.example/x" in text, "a hostile name is shown, as text"
    order = [text.index(f">{title}</h2>") for title in ("Scores", "Pictures", "Further scores", "Decision", "Slices",
             "Training", "Audit", "Provenance", "Model card")]  # fmt: skip
    assert order == sorted(order)
    numbers = {a["download"]: a["href"] for tag, a in found if tag == "a" and "download" in a}
    assert set(numbers) == {
        f"{n}.csv" for n in ("histogram", "groups", "density", "bias", "cs", "coverage", "loss", "validation")
    }
    for name, link in numbers.items():
        inside = base64.b64decode(link.partition("base64,")[2]).decode()
        assert inside == (folder / "report" / name).read_bytes().decode() and len(inside.splitlines()) > 1
        assert (folder / "report" / name.replace(".csv", ".svg")).read_text().startswith("<svg")
    cells = list(csv.DictReader(io.StringIO((folder / "report" / "density.csv").read_text())))
    assert sum(int(cell["images"]) for cell in cells) == 200
    # Beside the run that it started from, with a difference that is sure.
    assert "Against first: MAE -" in text and "difference to first" in text and 'class="better"' in text


def test_pictures_of_an_earlier_page_go_and_other_files_stay(tmp_path):
    def write(name):
        picture = page.Picture(name, name, "words", "<svg></svg>", ["a"], [["1"]])
        page.write(loading.epath.Path(tmp_path / "r.html"), page.Page("t", [], [page.Section("S", pictures=[picture])]))

    write("loss")
    for name in ("mine.svg", "mine.csv"):
        (tmp_path / "report" / name).write_text("mine")
    write("bias")
    left = {path.name for path in (tmp_path / "report").iterdir()}
    assert left == {"bias.svg", "bias.csv", "mine.svg", "mine.csv"}
    with pytest.raises(ValueError, match="no picture is called 'mine'"):
        write("mine")


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"leaks": [{"data": "d", "message": "3 people " + HOSTILE}]}, "LEAK in d: 3 people"),
        ({"other_crop_than_training": True}, "cut in another way"),
        ({"unknown_crops": True}, "it is unknown whether these were cut in the same way"),
        ({"same_people_on_both_sides": 4}, "people in both the training and the scored images: 4"),
        ({"missing_groups": ["71-81"]}, "no image of age 71-81"),
        ({"audit": "stale"}, "audit.json is stale"),
        ({"constant": {"age": 33.0, "mae": 7.0}}, "not better than a constant: answering 33 for everyone"),
        (
            {"constant": {"age": 33.0, "mae": 7.1, "difference": [-0.4, 0.2]}},
            "not distinguishable from a constant: answering 33 for everyone, the median of the ages, is wrong by 7.10"
            " years (difference in MAE, 95 %: -0.40 to +0.20)",
        ),
        (
            {"constant": {"age": 33.0, "mae": 6.9, "difference": [-0.1, 0.3]}},
            "not distinguishable from a constant",
        ),
        ({"constant": {"age": 33.0, "mae": 6.8, "difference": [0.1, 0.3]}}, "worse than a constant: answering 33"),
    ],
)
def test_what_must_not_be_overlooked_stands_above_the_verdict(changed, told):
    clean = {"audit": "read", "leaks": [], "data": "d", "protocol": "image", "missing_groups": [], "mae": 7.0}
    clean["constant"] = {"age": 33.0, "mae": 7.1, "difference": [-0.3, -0.1]}
    assert wording.warnings(clean) == []
    lines = wording.warnings({**clean, **changed})
    assert len(lines) == 1 and told in lines[0]
    text = page.html(page.Page("title", ["It is good."], [], lines))
    assert 0 < text.index('class="warnings"') < text.index(told) < text.index("It is good.") and "<script" not in text


def test_an_evaluation_with_a_group_alone_and_no_training_data_has_its_page(tmp_path):
    run = write_run(tmp_path, "run", np.full(3, 30.0), np.full(3, 31.0), training=None, threshold=None)
    made = evaluation_page.of_evaluation(loading.epath.Path(run / "evaluation" / "faces-test"))
    text = page.html(made)
    checked(text)
    assert "histogram" not in [picture.name for section in made.sections for picture in section.pictures]
    assert any("no image of age 1-10" in line for line in made.warnings)
    assert "sigma" not in made.verdict[0] and "wrong by 1.00 years" in made.verdict[0] and ">Decision<" not in text


def test_a_run_without_ages_has_a_page_too(made):
    text = page.html(
        evaluation_page.of_run(loading.epath.Path(made / "first"), {"equal_error_rate": 0.25, "pairs": 10})
    )
    checked(text)
    assert "an equal error rate of 25.0 % on 10 pairs (no interval)." in text and "0.25" in text and "no scores" in text


def test_words_under_pictures_of_little():
    lines = [{"step": step, "kind": "train", "loss": 9.0 / step, "learning_rate": 0.1} for step in range(1, 31)]
    assert charts.loss(lines[:1]).finding == "The training loss was logged once, at step 1: 9.00."
    assert charts.loss(lines[:2]).finding.endswith("from 9.00 (step 1) to 4.50, the last line.")
    assert charts.loss(lines).finding.endswith("to 0.31, the mean of the last 3 of 30 lines.")

    def told(share, count):
        one = SimpleNamespace(coverage=lambda levels: np.full(len(levels), share), sample=sample(count))
        return re.search(r"\((.*)\)", charts.coverage([one], ["a"]).finding)[1]

    assert told(0.85, 100) == told(0.95, 100) == told(0.87, 10_000) == "about right"
    assert (told(0.82, 100), told(0.86, 10_000), told(0.97, 2000)) == ("too narrow", "too narrow", "too wide")


# --- comparing


def test_runs_on_the_same_images_are_compared_in_four_forms(made, tmp_path, capsys):
    report.main([str(made / "first"), str(made / "second"), "--out", str(tmp_path / "out")])
    told = capsys.readouterr().out
    assert "second against first: MAE -" in told and "better" in told and "first   4.07   0.66" in told
    assert max(map(len, told.partition("\n\nLowest")[0].splitlines())) < 100
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        "report",
        "report.html",
        *(f"{n}.{e}" for n in ("table", "differences") for e in ("csv", "md", "tex")),
    }
    checked((tmp_path / "out" / "report.html").read_text())
    rows, both = (list(csv.DictReader((tmp_path / "out" / name).read_text().splitlines())) for name in
                  ("differences.csv", "table.csv"))  # fmt: skip
    assert rows[0]["score"] == "MAE" and rows[0]["verdict"] == "better" and rows[0]["minus"] == "first"
    assert float(rows[0]["difference low"]) < float(rows[0]["difference"]) < float(rows[0]["difference high"]) < 0
    assert float(both[1]["MAE"]) - float(both[0]["MAE"]) == pytest.approx(float(rows[0]["difference"]), abs=1e-4)


def test_the_first_place_is_told_with_those_that_are_not_distinguishable_from_it(tmp_path, capsys):
    one, noise = sample(200), np.random.default_rng(1).normal(0, 0.5, 200)
    for name, guesses in (("a", one.predictions), ("b", one.predictions + noise), ("c", one.predictions + 20)):
        write_run(tmp_path, name, one.ages, guesses)
    report.main([*(str(tmp_path / name) for name in "abc"), "--out", str(tmp_path / "out")])
    told = capsys.readouterr().out
    first = re.search(r"Lowest MAE: (\w) \(\d\.\d\d\), not distinguishable from it: (\w);", told)
    assert {first[1], first[2]} == {"a", "b"}
    assert re.search(r"b against a: MAE [+-]0\.\d\d \(95 %: -0.*\), not distinguishable; sigma", told)
    assert re.search(r"c against a: MAE \+\d+\.\d\d \(95 %: .*\), worse; sigma", told)


def test_equal_runs_have_no_best_one(made, tmp_path, capsys):
    report.main([str(made / "first"), str(made / "first"), "--out", str(tmp_path / "out")])
    assert "Lowest MAE: the same for all (" in capsys.readouterr().out


def test_what_is_not_alike_is_not_compared(made, tmp_path):
    out = ["--out", str(tmp_path / "out")]
    with pytest.raises(InputError, match="is a file: name a folder"):
        report.main([str(made / "first"), "--out", str(made / "first" / "config.json")])
    folders_of = [str(made / name / "evaluation" / "faces-test") for name in ("first", "other")]
    with pytest.raises(InputError, match="not evaluated on the same images"):
        report.main([*folders_of, *out])
    with pytest.raises(InputError, match=r"not evaluated on the same images.*first: test of data/faces \(aaaaaaaa\)"):
        report.main([str(made / "first"), str(made / "other"), *out])
    with pytest.raises(InputError, match="on split 'validation' on the same images"):
        report.main([str(made / "first"), str(made / "second"), "--split", "validation", *out])
    with pytest.raises(InputError, match="holds neither a run nor an evaluation nor a long-tail bench"):
        report.main([str(made / "first"), str(tmp_path), *out])
    changed = sample(200, seed=5)
    write_run(tmp_path, "changed", changed.ages, changed.predictions)
    with pytest.raises(InputError, match="hold different images or ages"):
        report.main([str(made / "first"), str(tmp_path / "changed"), *out])
    (tmp_path / "changed" / "evaluation" / "faces-test" / "predictions.csv").write_text("name,age\nx,1\n")
    with pytest.raises(InputError, match="is damaged .*evaluate the run again"):
        report.main([str(made / "first"), str(tmp_path / "changed"), *out])
    for text, told in (("[]", "a list in place of an object"), ("{}", "no data")):
        (tmp_path / "changed" / "evaluation" / "faces-test" / "report.json").write_text(text)
        with pytest.raises(InputError, match=rf"report.json is damaged \({told}\)"):
            report.main([str(made / "first"), str(tmp_path / "changed"), *out])
    assert not (tmp_path / "out").exists()


def test_evaluations_of_one_run_are_compared_when_they_are_named(made, tmp_path, capsys):
    """With mirror images and without; on several data sets."""
    run = tmp_path / "run"
    shutil.copytree(made / "first", run)
    plain = run / "evaluation" / "faces-test"
    for name, changed in (("faces-test-flip", {"flip": True}), ("new-test", {"data_hash": "c" * 64, "data": "new"})):
        shutil.copytree(plain, plain.with_name(name))
        content = json.loads((plain / "report.json").read_text())
        (plain.with_name(name) / "report.json").write_text(json.dumps({**content, **changed}))
    out = ["--out", str(tmp_path / "out")]
    report.main([str(plain.with_name("faces-test-flip")), str(plain), *out])
    lines = (tmp_path / "out" / "table.csv").read_text().splitlines()
    assert [line.partition(",")[0] for line in lines[1:]] == ["faces-test-flip", "faces-test"]
    capsys.readouterr()
    both = r"test of data/faces \(aaaaaaaa\), test of data/faces \(aaaaaaaa, --flip\), test of new \(cccccccc\)"
    with pytest.raises(InputError, match=rf"on more than one split \({both}\): name their folders, RUN/evaluation"):
        report.main([str(run), str(run), "--split", "test", *out])
    (run / "config.json").write_text(json.dumps({"stage": "pretrain"}))
    shutil.rmtree(run / "evaluation")
    with pytest.raises(InputError, match="stage 1, which predicts no ages: name a run"):
        report.main([str(run), str(run), *out])


def test_a_page_tells_babies_and_people_over_81_beside_the_papers_groups(tmp_path, capsys):
    one = sample(200)
    ages = np.concatenate([one.ages, np.zeros(12), np.full(9, 88.0)])
    predictions = np.concatenate([one.predictions, np.full(12, 30.0), np.full(9, 80.0)])
    for name in ("first", "second"):
        write_run(tmp_path, name, ages, predictions)
    shown = evaluation_page.of_evaluation(tmp_path / "first" / "evaluation" / "faces-test")
    lines = {row[0]: row[1].text for row in shown.sections[0].tables[0].rows}
    assert lines["0 (12)"] == "30.00" and lines["82+ (9)"] == "8.00" and [*lines][8].startswith("71-81 (")
    assert "highest for 0, 30.00 (95 %: 30.00 to 30.00), whom it estimates 30.0 years too old;" in shown.verdict[0]
    pictures = {picture.name: picture for picture in shown.sections[1].pictures}
    assert [row[1] for row in pictures["groups"].rows] == [*metrics.ALL_GROUPS]
    assert ("group", "82+", 9, -8.0) in [row[:4] for row in pictures["bias"].rows]
    assert "10.5 in 11-20; 0.4 is 0, 81.5 is 82+" in "".join(wording.MEANINGS)
    report.main([str(tmp_path / "first"), str(tmp_path / "second"), "--out", str(tmp_path / "out")])
    assert "MAE 0" in capsys.readouterr().out
    with (tmp_path / "out" / "table.csv").open() as file:
        assert float(next(csv.DictReader(file))["MAE 82+"]) == 8


def test_reports_are_made_without_a_model(made, tmp_path):
    code = """
import sys
for name in ("jax", "flax", "orbax", "tensorflow", "ml_collections", "pyarrow"):
    sys.modules[name] = None
from lae_jax import report
*runs, out = sys.argv[1:]
page, table = report.compare(runs, out)
print(len(table.rows), *page.verdict)
"""
    words = [str(made / "first"), str(made / "second"), str(tmp_path / "out")]
    result = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, timeout=60, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("2 ") and "second against first" in result.stdout
    assert (
        "second" in (tmp_path / "out" / "report.html").read_text() and (tmp_path / "out" / "differences.csv").exists()
    )
