"""Names that attack, through every door: nothing is obeyed, no row is lost, and the names come back."""

import csv
import io
import json
import logging
import os
import pathlib
import re
import shutil
import sys
import warnings

import httpx2
import names
import pytest
import served
import sources
from names import NAMES, RAW
from PIL import Image

from lae_jax import evaluate, prepare
from lae_jax.audit import __main__ as auditing
from lae_jax.audit import saved
from lae_jax.predict import __main__ as predicting
from lae_jax.predict import annotate
from lae_jax.predict.answers import Row
from lae_jax.predict.photographs import Named
from lae_jax.report import __main__ as reporting
from lae_jax.report import markdown
from lae_jax.runtime import console, foreign, start
from lae_jax.runtime.errors import InputError
from lae_jax.runtime.foreign import spreadsheets

PICTURE = served.encoded(Image.new("RGB", (32, 32), (90, 120, 150)), "JPEG")
# A folder of a run, and what a person sees of it.
RUN = "=run $a__b$` \u202e<b>|\x1b[2J]*"
LABEL = "=run $a__b$` \\u202e<b>|\\x1b[2J]*"


def clean(text: str) -> bool:
    """Whether a text has no control character, apart from the ends of its lines."""
    return not {*RAW} - {"\n", "\r"} & {*text} and "\r" not in text.replace("\r\n", "\n")


def rows_of(path) -> list[dict]:
    """The rows of a CSV as a program of other people reads them; no cell is a formula, whatever it splits at."""
    text = path.read_bytes().decode("utf-8")
    for mark in ",;\t":
        for row in csv.reader(io.StringIO(text, newline=""), delimiter=mark):
            assert not [cell for cell in row if re.match(r"[\s\"]*[=+\-@＝＋－＠](?!\d)", cell)], (mark, row)
    assert clean(text)
    return list(csv.DictReader(io.StringIO(text, newline="")))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("names") / "photographs"
    names.write(folder, PICTURE)
    return folder


def test_predict_has_a_row_for_each_name_and_takes_its_own_list(photographs, trained, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(photographs)
    # Without an ending two are not images by name; their content says so.
    words = ["--run", str(trained("represent")), "--aligned"]
    predicting.main([*words, "."])
    told = capfd.readouterr()
    assert clean(told.out + told.err)
    shown = [f"./{NAMES[name]}" for name in sorted(NAMES)]
    assert len(told.out.splitlines()) == len(NAMES) + 1
    for line, name in zip(told.out.splitlines()[1:], shown, strict=True):
        assert line.startswith(name if len(name) <= 32 else f"...{name[-29:]}")
    for out in ("ages.csv", "ages.jsonl"):
        predicting.main([*words, ".", "--out", str(tmp_path / out)])
    first = rows_of(tmp_path / "ages.csv")
    assert [spreadsheets.text(row["name"]) for row in first] == shown and all(row["age"] for row in first)
    lines = (tmp_path / "ages.jsonl").read_text("ascii").splitlines()
    assert clean("\n".join(lines)) and [json.loads(line)["name"] for line in lines] == [
        f"./{foreign.utf8(name)}" for name in sorted(NAMES)
    ]
    words += ["--images", str(photographs)]
    predicting.main([*words, str(tmp_path / "ages.csv"), "--out", str(tmp_path / "again.csv")])
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "ages.csv").read_bytes()
    # The same without a folder before the names, which are then formulas.
    with open(tmp_path / "list.csv", "w", newline="", encoding="utf-8") as file:
        spreadsheets.Writer(file).writerows([["name"], *([name] for name in sorted(NAMES))])
    predicting.main([*words, str(tmp_path / "list.csv"), "--out", str(tmp_path / "ages.csv")])
    again = rows_of(tmp_path / "ages.csv")
    assert [spreadsheets.text(row["name"]) for row in again] == [NAMES[name] for name in sorted(NAMES)]
    assert [row["age"] for row in again] == [row["age"] for row in first]
    contest = [*words, "--contest", str(tmp_path / "list.csv"), "--out", str(tmp_path / "out.csv")]
    predicting.main(contest)
    assert len((tmp_path / "out.csv").read_text().splitlines()) == len(NAMES) and clean(capfd.readouterr().err)


def test_drawings_have_names_without_control_characters(photographs, tmp_path):
    drawings = annotate.Drawings(tmp_path)
    for name in NAMES:
        drawings.save(Named(name, str(photographs)), [Row(name, 1, 30.0, 20.0, 40.0, box=[1, 1, 20, 20])])
    assert len(os.listdir(tmp_path)) == len(NAMES) and all(map(clean, os.listdir(tmp_path)))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A data set of all names, whose people and notes have such names too; and what `prepare` says of it."""
    folder = tmp_path_factory.mktemp("prepared")
    photographs = folder / "photographs"
    photographs.mkdir()
    with open(folder / "faces.csv", "w", newline="", encoding="utf-8") as file:
        writer = spreadsheets.Writer(file)
        writer.writerow(["path", "age", "identity", "=note;@"])
        for k, name in enumerate(sorted(NAMES)):
            Image.new("RGB", (32, 32), (9 * k, 90, 120)).save(photographs / name, "JPEG")
            writer.writerow([name, 20 + k, name, f"n{name}"])
            writer.writerow([f"lost {name}", 20 + k, "p", name])
            writer.writerow([f"{name}", f"{name} years", "p", name])
    words = ["--source", folder / "faces.csv", "--images", photographs, "--ratio", "1:1", "--size", "32"]
    out = folder / "=[a]*`<b>$x__$ \u202e"
    return out, sources.run(out, *words)


def test_prepare_rejects_and_keeps_names_as_they_are(prepared, capfd):
    out, manifest = prepared
    assert (manifest["count"], manifest["rejected"]) == (len(NAMES), 2 * len(NAMES))
    rows = rows_of(out / "rejected.csv")
    lost = [spreadsheets.text(row["name"]) for row in rows if "not found" in row["reason"]]
    assert sorted(lost) == sorted(f"lost {told}" for told in NAMES.values())
    auditing.main([str(out)])
    with pytest.raises(InputError):
        prepare.prepare(out / "rejected.csv", out.parent / "other")
    told = capfd.readouterr()
    assert clean(told.out + told.err) and "group_without_images" in told.out


def test_an_audit_of_a_strangers_data_set_keeps_a_line_a_line(capsys):
    finding = {"kind": "\x1b[31m", "severity": "note\nclean", "splits": ["a\n", "\u202eb"], "count": 1}
    findings = [finding | {"examples": [[name, name]], "message": name} for name in NAMES]
    lines = saved.tell({"data": "\x9bfaces", "findings": findings})
    console.write(*lines)
    told = capsys.readouterr().out
    assert clean(told) and len(told.splitlines()) == 2 * len(NAMES) + 3 == len(lines)


def test_a_run_and_a_data_set_of_strangers_have_a_harmless_report(prepared, trained, tmp_path, capfd):
    """Formulas, tags, Markdown, LaTeX and control characters in names of runs, people, columns and their values."""
    out, _ = prepared
    run = tmp_path / RUN
    shutil.copytree(trained("represent"), run)
    slices = ["=note;@", "identity"]
    _, folder = evaluate.evaluate(run, out, split="all", slices=slices, allow_other_crop=True)
    rows = rows_of(folder / "predictions.csv")
    assert [spreadsheets.text(row["name"]) for row in rows] == [NAMES[name] for name in sorted(NAMES)]
    assert {*rows[0]} >= {"slice:=note;'@", "slice:identity"}
    reporting.main([str(run), "--out", str(tmp_path / "report")])
    told = capfd.readouterr()
    assert clean(told.out + told.err) and LABEL in told.out
    (label,) = {spreadsheets.text(row["run"]) for row in rows_of(tmp_path / "report" / "table.csv")}
    assert label == LABEL
    for path in [*pathlib.Path(folder).rglob("*"), *(tmp_path / "report").rglob("*")]:
        if path.suffix in (".md", ".html", ".tex", ".svg", ".csv", ".json"):
            assert clean(path.read_text("utf-8")), path
    card = (folder / "model_card.md").read_text("utf-8")
    assert r"\=" not in card and foreign.in_markdown(LABEL) in card and "<b>" not in markdown.html(card, 2)
    for page in (folder / "report.html", tmp_path / "report" / "report.html"):
        assert "<b>|" not in page.read_text("utf-8")
    assert r"\$a\_\_b\$`" in (tmp_path / "report" / "table.tex").read_text("utf-8")


def test_errors_the_log_and_the_progress_line_show_names_in_one_line(capsys, monkeypatch):
    monkeypatch.setattr(console.logger, "handlers", [])
    monkeypatch.setattr(console.logger, "propagate", False)
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    console.setup_logging()

    def work(error):
        for name in NAMES:
            logging.getLogger("lae_jax").warning("%s: no face found", name)
            sys.stderr.write(warnings.formatwarning(UserWarning(name), UserWarning, "a.py", 1, ""))
        try:
            raise OSError(name)
        except OSError:
            logging.getLogger("lae_jax").exception("%s", name)
        with console.progress(total=1, what=name, unit="images") as line:
            assert clean(str(line)) and "\n" not in str(line)
        raise error

    for name in NAMES:
        for error in (
            InputError(f"{name}: no such file"),
            RuntimeError(name),
            RuntimeError(f"RESOURCE_EXHAUSTED {name}"),
        ):
            with pytest.raises(SystemExit):
                start.program(lambda error=error: work(error))
        told = capsys.readouterr().err
        assert clean(told) and re.search(rf"^error: {re.escape(NAMES[name])}: no such file$", told, re.MULTILINE)
        assert len(re.findall(r"^\d\d:\d\d:\d\d .*: no face found$", told, re.MULTILINE)) == 3 * len(NAMES)


def test_the_server_answers_with_the_names_as_they_came_in_ascii():
    sent = [name for name in NAMES if name == foreign.utf8(name) and '"' not in name and "\n" not in name]
    sent = [name for name in sent if "\r" not in name and "\\" not in name and name.isprintable() or "\u202e" in name]
    body, kind = served.multipart(dict.fromkeys([*sent, "broken\u202e\x9b.jpg"], PICTURE))
    body = body.replace(b"broken", b"b")
    with served.serving(served.aligned(served.stand_in([]), files=40)) as address:
        answer = httpx2.post(f"{address}/v1/predict", content=body, headers={"content-type": kind}, timeout=60)
        lost = httpx2.get(f"{address}/no\u202e%1b%c2%9b", timeout=60)
    assert answer.status_code == 200 and answer.content.isascii() and lost.content.isascii()
    assert [image["name"] for image in answer.json()["images"]] == ["gpj.exe", *sent[1:], "b.jpg"]
