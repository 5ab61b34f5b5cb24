"""Texts of strangers (names of files, people, columns, runs): safe for a terminal, a page, Markdown and a spreadsheet.

serve/static/foreign.js has the same rules for the page of the server; a test compares them.
"""

import csv
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import TextIO

# Control characters (of terminals too), formats (bidirectional, zero width), halves of surrogate pairs (bytes of a name
# that is not UTF-8), separators of lines and paragraphs.
UNFIT = ("Cc", "Cf", "Cs", "Zl", "Zp")
_ESCAPE = re.compile(r"\\(?:[tnr]|x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})")
# A spreadsheet reads a cell as a formula if it begins so: with =, +, - or @, or with their full-width and small forms.
# Some split at semicolons, also in the middle of a quoted cell.
FORMULA = r"""(^|;)(?=[\s"']*[=+\-@−＝＋－＠﹦﹢﹣﹫])"""
_BEGINS, _MARKED = re.compile(FORMULA), re.compile(FORMULA.replace("(?=", "'(?="))


def shown(text: str, length: int | None = None) -> str:
    r"""Returns a text as one line that a person may see: an escape such as \x1b stands for each unfit character.

    Args:
      text: The text.
      length: Most characters of it; the rest is cut off.
    """
    if length is not None and len(text) > length:
        text = text[:length] + "..."
    return text if text.isprintable() else "".join(_escaped(c) if _is_unfit(c) else c for c in text)


def quoted(text: str, length: int = 300) -> str:
    """Returns a text in quotes, for a message: as `repr` does, cut after `length` characters."""
    return repr(text if len(text) <= length else text[:length] + "...")


def unescaped(text: str) -> str:
    """Returns a name that `shown` changed as it is on the disk. A name that has such escapes itself is changed too."""
    return _ESCAPE.sub(_character, text)


def _is_unfit(character: str) -> bool:
    return unicodedata.category(character) in UNFIT


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def _character(escape: re.Match) -> str:
    r"""What an escape of `shown` stands for; others stay, and so does \x00, which no name has."""
    try:
        character = escape[0].encode().decode("unicode_escape")
    except UnicodeDecodeError:  # beyond the last character
        return escape[0]
    is_half = "\ud800" <= character <= "\udfff" and not "\udc80" <= character <= "\udcff"  # not a byte of a name
    known = character > "\0" and _is_unfit(character) and not is_half
    return character if known and _escaped(character) == escape[0] else escape[0]


def utf8(text: str) -> str:
    """Returns a text with escapes in place of what UTF-8 cannot hold: bytes of names that are not UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


def in_csv(text: str) -> str:
    """Returns the cell of a CSV that holds a text: as `shown`, with an apostrophe before what could be a formula."""
    return _BEGINS.sub(r"\1'", shown(text))


def from_csv(cell: str) -> str:
    """Returns the text of a cell without the apostrophes of `in_csv`."""
    return _MARKED.sub(r"\1", cell) if "'" in cell else cell


class Writer:
    """Writes rows to a CSV, texts as `in_csv` does. None is an empty cell, and a number has all its digits."""

    def __init__(self, file: TextIO):
        self._writer = csv.writer(file)

    def writerow(self, row: Iterable) -> None:
        """Writes a row."""
        self._writer.writerow([in_csv(cell) if isinstance(cell, str) else cell for cell in row])

    def writerows(self, rows: Iterable[Iterable]) -> None:
        """Writes several rows."""
        for row in rows:
            self.writerow(row)


def csv_rows(lines: Iterable[str]) -> Iterator[list[str]]:
    """Yields the rows of a CSV that `Writer` wrote.

    Raises:
      csv.Error: It is not a CSV.
    """
    for row in csv.reader(lines):
        yield [from_csv(cell) for cell in row]


def csv_records(lines: Iterable[str]) -> Iterator[dict[str, str]]:
    """Yields the rows of a CSV that `Writer` wrote, by the titles in its first row.

    Raises:
      csv.Error: It is not a CSV.
      ValueError: A row has more or fewer cells than the first one.
    """
    rows = csv_rows(lines)
    header: Sequence[str] = next(rows, [])
    for row in rows:
        if row:  # not an empty line
            yield dict(zip(header, row, strict=True))


def in_markdown(text: object) -> str:
    """Returns Markdown that shows a text as it is, within a line or a cell of a table."""
    # An underscore within a word is one; a colon before // begins a link without brackets.
    return re.sub(r"([\\`*~$\[\]<>|]|(?<![^\W_])_|_(?![^\W_])|&(?=[#\w]+;)|:(?=//))", r"\\\1", shown(str(text)))


def in_code(text: object) -> str:
    """Returns Markdown that shows a text as code within a line."""
    text = shown(str(text))
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    room = " " * (text[:1] == "`" or text[-1:] == "`" or not text.strip())
    return f"{fence}{room}{text}{room}{fence}"


def html(markdown: str, below: int) -> str:
    """Converts Markdown to HTML, without raw HTML and without images, which a page would fetch.

    Aligned table cells get the class left, right or center, because pages may forbid the attribute `style`.

    Args:
      markdown: The text; each of its lines is read as `shown`.
      below: Level of the heading that the text is under; its own headings start one level lower.
    """
    import markdown_it  # only pages need it

    parser = markdown_it.MarkdownIt("js-default").disable("image")
    tokens = parser.parse(shown_lines(markdown))
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, int(token.tag[1]) + below)}"
        if style := token.attrs.pop("style", None):
            token.attrs["class"] = style.removeprefix("text-align:")
    return parser.renderer.render(tokens, parser.options, {})


def shown_lines(text: str) -> str:
    """Returns a text of several lines, each as `shown`."""
    return "\n".join(map(shown, text.split("\n")))
