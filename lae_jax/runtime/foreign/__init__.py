"""Texts of strangers (names of files, people, columns, runs): safe in a terminal, on a page and in Markdown.

report/ages_page/foreign.js has the same rules for pages that run scripts; a test compares them.
"""

import re
import unicodedata

# Control characters (of terminals too), formats (bidirectional, zero width), halves of surrogate pairs (bytes of a name
# that is not UTF-8), separators of lines and paragraphs.
UNFIT = ("Cc", "Cf", "Cs", "Zl", "Zp")
_ESCAPE = re.compile(r"\\(?:[tnr]|x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})")


def shown(text: str, length: int | None = None) -> str:
    r"""Returns a text as one line that a person may see: an escape such as \x1b stands for each unfit character.

    Args:
      text: The text.
      length: Most characters of it; the rest is cut off.
    """
    if length is not None and len(text) > length:
        text = text[:length] + "..."
    return text if text.isprintable() else "".join(_escaped(c) if _is_unfit(c) else c for c in text)


def replaced(text: str, mark: str) -> str:
    """Returns a text with a mark in place of each unfit character."""
    return "".join(mark if _is_unfit(c) else c for c in text)


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


def shown_lines(text: str) -> str:
    """Returns a text of several lines, each as `shown`."""
    return "\n".join(map(shown, text.split("\n")))
