"""CSVs with texts of strangers: no spreadsheet takes a cell for a formula, and this project reads the texts back."""

import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TextIO

from lae_jax.runtime.foreign import shown

# A spreadsheet reads a cell as a formula if it begins so: with =, +, - or @, or with their full-width and small forms.
# Some split at semicolons, also in the middle of a quoted cell.
FORMULA = r"""(^|;)(?=[\s"']*[=+\-@−＝＋－＠﹦﹢﹣﹫])"""
_BEGINS, _MARKED = re.compile(FORMULA), re.compile(FORMULA.replace("(?=", "'(?="))


def cell(text: str) -> str:
    """Returns the cell of a CSV that holds a text: as `shown`, with an apostrophe before what could be a formula."""
    return _BEGINS.sub(r"\1'", shown(text))


def text(cell: str) -> str:
    """Returns the text of a cell without the apostrophes of `cell`."""
    return _MARKED.sub(r"\1", cell) if "'" in cell else cell


class Writer:
    """Writes rows to a CSV, texts as `cell` does. None is an empty cell, and a number has all its digits."""

    def __init__(self, file: TextIO):
        self._writer = csv.writer(file)

    def writerow(self, row: Iterable) -> None:
        """Writes a row."""
        self._writer.writerow([cell(one) if isinstance(one, str) else one for one in row])

    def writerows(self, rows: Iterable[Iterable]) -> None:
        """Writes several rows."""
        for row in rows:
            self.writerow(row)


def rows(lines: Iterable[str]) -> Iterator[list[str]]:
    """Yields the rows of a CSV that `Writer` wrote.

    Raises:
      csv.Error: It is not a CSV.
    """
    for row in csv.reader(lines):
        yield [text(one) for one in row]


def records(lines: Iterable[str]) -> Iterator[dict[str, str]]:
    """Yields the rows of a CSV that `Writer` wrote, by the titles in its first row.

    Raises:
      csv.Error: It is not a CSV.
      ValueError: A row has more or fewer cells than the first one.
    """
    found = rows(lines)
    header: Sequence[str] = next(found, [])
    for row in found:
        if row:  # not an empty line
            yield dict(zip(header, row, strict=True))
