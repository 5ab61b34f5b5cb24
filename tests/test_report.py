"""Reports: intervals that mean what they say, pages that need nothing else and run nothing, comparisons of like."""

import base64
import csv
import html.parser
import io
import json
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT

from lae_jax import metrics, report
from lae_jax.errors import InputError
from lae_jax.reports import bootstrap, comparison_page, evaluation_page, figures, folders, page, scores, tables, words

HOSTILE = '<script>alert("1")</script><img src="https://evil.example/x.png">'


def sample(n=400, spread=5.0, seed=0, people=None, **more):
    rng = np.random.default_rng(seed)
    ages = rng.uniform(1, 81, n)
    people = np.full(n, -1) if people is None else people
    return scores.Sample(ages, ages + rng.normal(0, spread, n), people, **more)


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
    (run / "summary.json").write_text(json.dumps({"step": 9, "stage": "represent", "seconds": 3.0}))
    lines = [{"step": step, "kind": "train", "loss": 9.0 / step, "rate": 0.1} for step in (1, 2, 3)]
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


# --- intervals


def test_scores_of_sums_are_the_scores():
    one = sample(500, training_count=np.arange(101) * 2)
    found, whole = scores.score(one).values, metrics.age_report(one.ages, one.predictions)
    for name in ("mae", "sigma", "mmae", "aar_2021", "aar_2022"):
        assert found[name] == pytest.approx(getattr(whole, name), rel=1e-9)
    assert [found[f"mae_{group}"] for group in metrics.GROUPS] == pytest.approx(whole.group_mae)
    assert [found[f"bias_{group}"] for group in metrics.GROUPS] == pytest.approx(whole.bias)
    assert found["cs5"] == pytest.approx(whole.cs[5])
    assert found["class_mae"] == pytest.approx(metrics.class_mae(one.ages, one.predictions))
    assert found["geometric_mean"] == pytest.approx(metrics.geometric_mean(one.ages, one.predictions))
    few = metrics.shots(one.ages, one.training_count) == 2
    assert found["mae_few"] == pytest.approx(np.abs(one.predictions - one.ages)[few].mean())
    assert np.isnan(found["epsilon"])


def test_an_interval_is_as_wide_as_theory_says_and_seeded():
    one = sample(2000)
    errors = np.abs(one.predictions - one.ages)
    estimate = scores.score(one).estimate(scores.MAIN[0])
    half = 1.96 * errors.std() / len(errors) ** 0.5
    assert estimate.value == pytest.approx(errors.mean())
    assert (estimate.high - estimate.low) / 2 == pytest.approx(half, rel=0.12)
    assert scores.score(one).estimate(scores.MAIN[0]) == estimate
    assert scores.score(one, seed=1).estimate(scores.MAIN[0]) != estimate


def test_images_of_a_person_are_drawn_together():
    """Four copies of an image tell nothing new: the interval is twice as wide as over images."""
    alone = sample(300)
    four = scores.Sample(np.repeat(alone.ages, 4), np.repeat(alone.predictions, 4), np.repeat(np.arange(300), 4))
    apart = scores.Sample(four.ages, four.predictions, np.full(1200, -1))
    widths = [e.high - e.low for e in (scores.score(s).estimate(scores.MAIN[0]) for s in (four, apart))]
    assert widths[0] == pytest.approx(2 * widths[1], rel=0.15)
    assert bootstrap.units(np.array([3, -1, 3, -1, 0])).tolist() == [3, 1, 3, 0, 2]


def test_many_units_are_put_together_without_changing_the_width(monkeypatch):
    one = sample(3000)
    plain = scores.score(one).estimate(scores.MAIN[0])
    monkeypatch.setattr(bootstrap, "MOST_UNITS", 500)
    assert bootstrap.units(one.people).max() == 499
    merged = scores.score(one).estimate(scores.MAIN[0])
    assert merged.high - merged.low == pytest.approx(plain.high - plain.low, rel=0.15)
    assert merged.value == pytest.approx(plain.value)


def test_sigma_of_few_images_lies_in_its_interval_and_a_handful_has_none():
    rng = np.random.default_rng(0)
    ages = np.repeat([5.0, 15, 25, 35, 45, 55, 65, 75], 16)
    one = scores.Sample(ages, ages + rng.normal(0, 5, len(ages)), np.full(len(ages), -1))
    found = scores.score(one).estimate(next(s for s in scores.MAIN if s.name == "sigma"))
    assert found.low < found.value < found.high
    lone = one.part(np.flatnonzero((ages != 75) | (np.arange(len(ages)) == len(ages) - 1)))
    estimates = {s.name: scores.score(lone).estimate(s) for s in scores.MAIN}
    assert np.isfinite(estimates["sigma"].value) and np.isnan(estimates["sigma"].low)
    assert estimates["mae_71-81"].interval == "" and estimates["mae"].interval


def test_shares_of_none_and_of_few_images_are_not_taken_for_sure():
    ages = np.linspace(10, 60, 40)
    cs5 = next(s for s in scores.MAIN if s.name == "cs5")
    for off, expected in ((1, (0.912, 1)), (9, (0, 0.088))):  # Wilson's of 40 of 40, and of none
        found = scores.score(scores.Sample(ages, ages + off, np.full(40, -1))).estimate(cs5)
        assert (found.low, found.high) == pytest.approx(expected, abs=1e-3)
    few = scores.score(scores.Sample(ages[:3], ages[:3] + [1, 2, 9], np.full(3, -1)))
    assert [few.estimate(s).interval for s in scores.MAIN] == [""] * len(scores.MAIN)
    assert few.difference(few, cs5).interval == "" and few.estimate(cs5).value == pytest.approx(2 / 3)


def test_the_rates_of_a_decision_have_intervals_of_people():
    rng = np.random.default_rng(0)
    ages, people = rng.uniform(10, 30, 400), np.arange(400) % 100
    chances = np.clip((ages - 18) / 16 + 0.5 + rng.normal(0, 0.2, 400), 0, 1)
    cuts = (0.5, 0.9, 1.1)
    found = scores.decisions(scores.Sample(ages, ages, people), chances, 18, cuts)
    for (counted, accepts, rejects), cut in zip(found, cuts, strict=True):
        assert counted == metrics.decision(ages, chances, 18, cut)
        for rate, estimate in ((counted.false_accept_rate, accepts), (counted.false_reject_rate, rejects)):
            assert estimate.value == rate and estimate.low <= rate <= estimate.high and estimate.low < estimate.high
    assert found[2][1].low == 0 < found[2][1].high < 0.1 and found[2][2].high == 1
    width = [1.96 * (r * (1 - r) / n) ** 0.5 for r, n in ((found[0][1].value, found[0][0].younger),)][0]
    assert (found[0][1].high - found[0][1].low) / 2 == pytest.approx(width, rel=0.3)
    young = scores.decisions(scores.Sample(ages[:3], ages[:3], people[:3]), chances[:3], 40, (0.5,))
    assert young[0][1].interval == "" and not young[0][2].is_known


def test_pairs_make_a_small_difference_sure():
    one = sample(300)
    errors = one.predictions - one.ages
    other = scores.Sample(one.ages, one.ages + errors * 0.97, one.people)
    first, second = scores.score(one), scores.score(other)
    mae = scores.MAIN[0]
    difference = second.difference(first, mae)
    assert difference.high < 0 and scores.verdict(difference, mae) == "better"
    assert second.estimate(mae).high > first.estimate(mae).low, "without pairs they could not be told apart"
    assert scores.verdict(first.difference(first, mae), mae) == "not sure"
    aar = next(s for s in scores.MAIN if s.name == "aar_2022")
    assert scores.verdict(tables.Estimate(-1.0, -2.0, -0.5), aar) == "worse"


def test_values_of_a_column():
    numbers = scores.values_of([str(i) for i in range(100)] + [None, ""])
    assert [mask.sum() for mask in numbers.values()] == [25, 25, 25, 25, 2] and [*numbers][-1] == "unknown"
    many = scores.values_of([f"camera {i}" for i in range(30)] + ["canon"] * 5)
    assert [*many][0] == "canon" and len(many) == 21 and many["11 others"].sum() == 11 - 1 + 1
    assert sum(mask.sum() for mask in many.values()) == 35


# --- tables


def test_a_table_in_four_forms():
    cell = tables.Estimate(0.5, 0.25, 0.75, 1, percent=True)
    table = tables.Table(("run", "CS@5"), [("a|b_<x>", cell), ("$c", tables.Estimate(float("nan")))])
    assert tables.markdown(table).splitlines()[2] == r"| a\|b_\<x\> | 50.0 % (25.0 % to 75.0 %) |"
    assert r"a|b\_\textless{}x\textgreater{} & 50.0 \% (25.0 \% to 75.0 \%) \\" in tables.latex(table)
    below = tables.Table(("run", "minus", "change"), [("a", "b", tables.Estimate(-1.5, -2.0, -1.0)), ("1-10", "x", "")])
    assert r"\begin{tabular}{llr}" in tables.latex(below)
    assert r"a & b & $-$1.50 ($-$2.00 to $-$1.00) \\" in tables.latex(below) and "1-10 & x" in tables.latex(below)
    rows = list(csv.reader(io.StringIO(tables.csv_of(table))))
    assert rows == [["run", "CS@5", "CS@5 low", "CS@5 high"], ["a|b_<x>", "0.5", "0.25", "0.75"], ["$c", "", "", ""]]


# --- pages


class Elements(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def checked(text):
    """The elements of a page that needs nothing else, runs nothing and says what its pictures show."""
    found = Elements(text).found
    assert not {"script", "iframe", "link", "object", "embed", "base", "form"} & {tag for tag, _ in found}
    for tag, attributes in found:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        for name in {"src", "href", "xlink:href", "srcset", "data", "action"} & set(attributes):
            # A link in a model card goes where the weights are from; nothing follows it but a finger.
            followed = tag == "a" and attributes[name].startswith("https://")
            assert followed or attributes[name].startswith(("#", "data:")), (tag, attributes)
    assert "url(http" not in text and "@import" not in text
    ids = [attributes["id"] for tag, attributes in found if "id" in attributes and tag not in ("path", "g", "clippath")]
    assert len(ids) == len(set(ids))
    drawings = [attributes for tag, attributes in found if tag == "svg"]
    assert drawings and all(a["role"] == "img" and a["aria-labelledby"] in ids for a in drawings)
    assert "prefers-color-scheme: dark" in text and "@media print" in text and "width=device-width" in text
    assert ("meta", "default-src 'none'; style-src 'unsafe-inline'; img-src data:") in [
        (t, a.get("content")) for t, a in found
    ]
    return found


def test_the_page_of_an_evaluation_is_one_file_in_which_nothing_runs(made):
    folder = made / "second" / "evaluation" / "faces-test"
    page.write(folder / "report.html", evaluation_page.of_evaluation(folders.epath.Path(folder)))
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
        page.write(folders.epath.Path(tmp_path / "r.html"), page.Page("t", [], [page.Section("S", pictures=[picture])]))

    write("old")
    for name in ("mine.svg", "mine2.csv"):
        (tmp_path / "report" / name).write_text("mine")
    write("new")
    left = {path.name for path in (tmp_path / "report").iterdir()}
    assert left == {"new.svg", "new.csv", "mine.svg", "mine2.csv"}


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"leaks": [{"data": "d", "message": "3 people " + HOSTILE}]}, "LEAK in d: 3 people"),
        ({"other_crop_than_training": True}, "cut otherwise"),
        ({"same_people_on_both_sides": 4}, "people on both sides, trained on and scored: 4"),
        ({"missing_groups": ["71-81"]}, "no image of age 71-81"),
        ({"audit": "stale"}, "audit.json is stale"),
        ({"constant": {"age": 33.0, "mae": 7.0}}, "no better than no model: answering 33 for everyone"),
    ],
)
def test_what_must_not_be_overlooked_stands_above_the_verdict(changed, told):
    clean = {"audit": "read", "leaks": [], "data": "d", "protocol": "image", "missing_groups": [], "mae": 7.0}
    clean["constant"] = {"age": 33.0, "mae": 7.1}
    assert words.warnings(clean) == []
    lines = words.warnings({**clean, **changed})
    assert len(lines) == 1 and told in lines[0]
    text = page.html(page.Page("title", ["It is good."], [], lines))
    assert 0 < text.index('class="warnings"') < text.index(told) < text.index("It is good.") and "<script" not in text


def test_an_evaluation_with_a_group_alone_and_no_training_data_has_its_page(tmp_path):
    run = write_run(tmp_path, "run", np.full(3, 30.0), np.full(3, 31.0), training=None, threshold=None)
    made = evaluation_page.of_evaluation(folders.epath.Path(run / "evaluation" / "faces-test"))
    text = page.html(made)
    checked(text)
    assert "histogram" not in [picture.name for section in made.sections for picture in section.pictures]
    assert any("no image of age 1-10" in line for line in made.warnings)
    assert "sigma" not in made.verdict[0] and "wrong by 1.00 years" in made.verdict[0] and ">Decision<" not in text


def test_a_run_without_ages_has_a_page_too(made):
    text = page.html(
        evaluation_page.of_run(folders.epath.Path(made / "first"), {"equal_error_rate": 0.25, "pairs": 10})
    )
    checked(text)
    assert "equal error rate" in text and "0.25" in text and "no scores" in text


def test_words_under_pictures_of_little():
    lines = [{"step": step, "kind": "train", "loss": 9.0 / step, "rate": 0.1} for step in range(1, 31)]
    assert figures.loss(lines[:1]).finding == "The training loss was written down once, at step 1: 9.00."
    assert figures.loss(lines[:2]).finding.endswith("from 9.00 (step 1) to 4.50, the last line.")
    assert figures.loss(lines).finding.endswith("to 0.31, the mean of the last 3 of 30 lines.")

    def told(share, count):
        one = SimpleNamespace(coverage=lambda levels: np.full(len(levels), share), sample=sample(count))
        return re.search(r"\((.*)\)", figures.coverage([one], ["a"]).finding)[1]

    assert told(0.85, 100) == told(0.95, 100) == told(0.87, 10_000) == "about right"
    assert (told(0.82, 100), told(0.86, 10_000), told(0.97, 2000)) == ("too narrow", "too narrow", "too wide")


# --- comparing


def test_runs_on_the_same_images_are_compared_in_four_forms(made, tmp_path, capsys):
    report.main([str(made / "first"), str(made / "second"), "--out", str(tmp_path / "out")])
    told = capsys.readouterr().out
    assert "second against first: MAE -" in told and "better" in told and "| first |" in told
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
    with pytest.raises(InputError, match="hold other images or ages"):
        report.main([str(made / "first"), str(tmp_path / "changed"), *out])
    (tmp_path / "changed" / "evaluation" / "faces-test" / "predictions.csv").write_text("name,age\nx,1\n")
    with pytest.raises(InputError, match="is damaged .*evaluate the run again"):
        report.main([str(made / "first"), str(tmp_path / "changed"), *out])
    assert not (tmp_path / "out").exists()


def test_a_bench_has_its_report(tmp_path, capsys):
    bench = tmp_path / "bench"
    bench.mkdir()
    header = ["method", "setting", "base_rate", "split", "n"]
    header += [name for score in comparison_page._BENCH for name in (score, f"{score}_spread")]
    header += [f"mae_{group}" for group in metrics.GROUPS]
    header += [name for score in comparison_page._DIFFERENCES for name in (score, f"{score}_half")]
    lines = [
        [method, "", "0.001", split, 2, *[mae, 0.1] * 6, *[mae] * 7, mae + 3, *[mae - 4, 0.25] * 2]
        for method, mae in ((HOSTILE, 5.0), ("lae", 4.0))
        for split in ("validation", "test")
    ]
    for name in ("table.csv", "tries.csv"):
        (bench / name).write_text(tables.csv_text(header, lines))
    content = {"sentences": {"lowest MAE": "take lae"}, "head_groups": [0, 1], "tail_groups": [7], "test": "test",
               "runs": ["runs/a"], "data": "d", "data_hash": "a", "seeds": 2, "audit": "read", "leaks": []}  # fmt: skip
    (bench / "report.json").write_text(json.dumps(content))
    report.main([str(bench), "--out", str(tmp_path / "out")])
    assert "take lae" in capsys.readouterr().out
    text = (tmp_path / "out" / "report.html").read_text()
    checked(text)
    assert re.search(r"On the frontier.*: lae\. There the MAE of the head groups is 4\.00", text)
    assert "4.00 ± 0.10" in (tmp_path / "out" / "table.md").read_text()
    assert "+1.00 (+0.75 to +1.25)" in (tmp_path / "out" / "table.md").read_text()
    with pytest.raises(InputError, match="--split is for runs"):
        report.main([str(bench), "--split", "test", "--out", str(tmp_path / "out")])
    with pytest.raises(InputError, match="name it alone"):
        report.main([str(bench), str(bench), "--out", str(tmp_path / "out")])


def test_reports_are_made_without_a_model():
    code = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('jax', 'flax', 'orbax', 'tensorflow', 'ml_collections'):
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
from lae_jax import report
from lae_jax.reports import comparison_page, evaluation_page
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
