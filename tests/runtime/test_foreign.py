"""Texts of strangers: no outlet has a control character, no spreadsheet a formula, and names come back as they were."""

import csv
import io
import json
import re
import shutil
import subprocess

import markdown_it
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from names import NAMES, RAW

from lae_jax.report import markdown
from lae_jax.runtime import foreign
from lae_jax.runtime.foreign import spreadsheets

PAGE = ROOT / "lae_jax" / "report" / "ages_page"
TEXTS = st.text(st.sampled_from(list("=+-@;'\" \t\n\\x1bau_*`|[]<>&~$:/\x00\x1b\u202e\udcff＝a")) | st.characters())


def cells(text):
    """Every cell that a spreadsheet may make of a CSV, whatever it splits at."""
    for mark in ",;\t":
        for row in csv.reader(io.StringIO(text, newline=""), delimiter=mark):
            yield from row


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_shown_without_what_a_terminal_obeys(name):
    assert foreign.shown(name) == NAMES[name] and not {*RAW} & {*foreign.shown(name)}
    assert foreign.shown("ab" * 200 + name, 9) == "ababababa..."
    assert foreign.unescaped(NAMES[name]) in (name, "\x1b.jpg")


@pytest.mark.parametrize("text", [r"\x41.jpg", r"\x00", r"\u0041", r"\ud800", r"\U99999999", r"\x2f..\x2f", r"\X1b"])
def test_an_escape_stands_for_nothing_but_what_is_escaped(text):
    assert foreign.unescaped(text) == text


@given(TEXTS)
@settings(deadline=None)
def test_a_cell_is_no_formula_and_reads_back(text):
    cell = spreadsheets.cell(text)
    assert spreadsheets.text(cell) == foreign.shown(text) and spreadsheets.cell(spreadsheets.text(cell)) == cell
    file = io.StringIO(newline="")
    spreadsheets.Writer(file).writerow([text, text, 1.5, None])
    assert not [one for one in cells(file.getvalue()) if re.match(r"[\s'\"]*[=+\-@＝＋－＠]", one) and one[0] != "'"]
    (row,) = spreadsheets.rows(io.StringIO(file.getvalue(), newline=""))
    assert row == [foreign.shown(text)] * 2 + ["1.5", ""]


def test_a_record_has_the_titles_of_its_file():
    lines = ["name,reason\r\n", "'-1.jpg,x\r\n", "\r\n"]
    assert list(spreadsheets.records(lines)) == [{"name": "-1.jpg", "reason": "x"}]
    with pytest.raises(ValueError, match="shorter"):
        list(spreadsheets.records(["name,reason\n", "a\n"]))


@given(TEXTS)
@settings(deadline=None)
def test_markdown_shows_a_text_as_it_is_and_keeps_to_its_cell(text):
    # Browsers show several spaces as one.
    text = "x" + " ".join(text.split())
    parser = markdown_it.MarkdownIt("js-default", {"linkify": False})
    (_, inline, _) = parser.parse(f"a {foreign.in_markdown(text)}")
    assert [child.type for child in inline.children] == ["text"] * len(inline.children)
    assert inline.content and "".join(c.content for c in inline.children) == f"a {foreign.shown(text)}"
    table = parser.parse(f"| a | b |\n| --- | --- |\n| {foreign.in_markdown(text)} | c |\n")
    found = [token.children for token in table if token.type == "inline"]
    assert ["".join(c.content for c in children) for children in found] == ["a", "b", foreign.shown(text), "c"]
    (_, inline, _) = parser.parse(f"a {foreign.in_code(text)} b")
    assert [child.type for child in inline.children] == ["text", "code_inline", "text"]
    assert inline.children[1].content == foreign.shown(text)


def test_a_page_of_markdown_obeys_no_raw_html_and_shows_no_control_character():
    page = markdown.html("\n\n".join(["# Card", *NAMES, "| a |\n|:-:|\n| b |"]), below=2)
    assert "<h3>Card" in page and 'class="center"' in page
    assert not {*RAW} - {"\n"} & {*page} and "<img" not in page and "href=" not in page


# --- the page of the server has the same rules


def test_the_page_of_the_server_has_the_same_rules():
    script = (PAGE / "foreign.js").read_text()
    assert tuple(re.findall(r"\\p\{(\w+)\}", script)) == foreign.UNFIT
    (formula,) = re.findall(r"const FORMULA = /(.*)/gu;", script)
    assert formula == spreadsheets.FORMULA


@pytest.mark.skipif(not shutil.which("node"), reason="no node")
def test_the_page_of_the_server_writes_the_same_texts():
    texts = [*NAMES, *(f"{a}{b}" for a in NAMES for b in NAMES)]
    code = """
const { shown, inCsv, inJson } = await import(process.argv[1]);
const texts = JSON.parse(await new Response(process.stdin).text());
console.log(JSON.stringify(texts.map((text) => [shown(text), inCsv(text), inJson({ text })])));
"""
    words = ["node", "--input-type=module", "-e", code, str(PAGE / "foreign.js")]
    done = subprocess.run(words, input=json.dumps(texts), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for text, (told, cell, exact) in zip(texts, json.loads(done.stdout), strict=True):
        file = io.StringIO(newline="")
        spreadsheets.Writer(file).writerow([text, 1])
        assert (told, f"{cell},1\r\n") == (foreign.shown(text), file.getvalue())
        assert exact.isascii() and not {*RAW} - {"\n"} & {*exact} and json.loads(exact) == {"text": text}
