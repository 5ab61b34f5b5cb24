"""Tables of scores: write them as CSV, Markdown or LaTeX (a template writes the HTML)."""

import dataclasses
import io
import math
import re
from collections.abc import Collection, Sequence

from lae_jax.runtime import foreign
from lae_jax.runtime.foreign import spreadsheets


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval.

    Attributes:
      value: The number, NaN if undefined.
      low: Low end of the interval, NaN if undefined.
      high: High end of the interval, NaN if undefined.
      digits: Digits after the point.
      percent: Whether the number is a share that is shown in per cent.
      signed: Whether a plus sign is shown.
      spread: Standard deviation over trainings, NaN if undefined.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    digits: int = 2
    percent: bool = False
    signed: bool = False
    spread: float = math.nan

    def _text(self, number: float) -> str:
        if not math.isfinite(number):
            return "–"
        number, sign = number * (100 if self.percent else 1), "+" * self.signed
        unit = "" if not self.percent else " points" if self.signed else " %"  # a difference is in percentage points
        return f"{number:{sign}z.{self.digits}f}{unit}"

    @property
    def is_known(self) -> bool:
        """Whether the value is defined."""
        return math.isfinite(self.value)

    @property
    def text(self) -> str:
        """The value without its interval, and ± the spread."""
        if not math.isfinite(self.spread):
            return self._text(self.value)
        return f"{self._text(self.value)} ± {dataclasses.replace(self, signed=False)._text(self.spread)}"

    @property
    def interval(self) -> str:
        """The interval, such as '1.20 to 1.40'; '' if it is undefined."""
        return f"{self._text(self.low)} to {self._text(self.high)}" if math.isfinite(self.low + self.high) else ""

    @property
    def is_zero(self) -> bool:
        """Whether value and interval are 0, as in a difference of equal predictions."""
        return self.value == self.low == self.high == 0

    def __str__(self) -> str:
        return f"{self.text} ({self.interval})" if self.interval else self.text


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of texts and estimates.

    Attributes:
      names: Number of the first columns, which name the row.
      file: Name of the CSV that a page writes of it, one of `pictures.NAMES`; '': none.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str | Estimate]]
    caption: str = ""
    names: int = 1
    file: str = ""


def cut(table: Table, apart: Collection[str]) -> list[Table]:
    """Splits a table into two narrower ones, without and with the columns `apart`, each with the names.

    Returns the table alone if it has none of these columns.
    """
    header = table.header
    second = [i for i in range(table.names, len(header)) if header[i] in apart]
    if not second:
        return [table]
    names = range(table.names)
    return [_columns(table, [i for i in range(len(header)) if i not in second]), _columns(table, [*names, *second])]


def _columns(table: Table, places: Sequence[int]) -> Table:
    header, *rows = ([row[i] for i in places] for row in (table.header, *table.rows))
    return dataclasses.replace(table, header=header, rows=rows)


def markdown(table: Table) -> str:
    """Returns a table as Markdown."""
    lines = [table.header, ["---"] * len(table.header), *table.rows]
    return "\n".join("| " + " | ".join(_in_markdown(cell) for cell in line) + " |" for line in lines) + "\n"


def _in_markdown(cell: str | Estimate) -> str:
    return foreign.in_markdown(" ".join(str(cell).split()))


_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        **{c: f"{{{c}}}" for c in "[*"},  # after the end of a row LaTeX reads them as its argument
        **{c: "\\" + c for c in "_%&#${}"},
        "±": r"$\pm$",
        "^": r"\^{}",
        "~": r"\~{}",
        "–": "--",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
    }
)


def latex(table: Table) -> str:
    """Returns a table as a LaTeX tabular that needs no package, with intervals below their values.

    Names, and other columns without digits, are aligned to the left.
    """
    lines = [" & ".join(_in_latex(c) for c in line) + r" \\" for line in [table.header, *table.rows]]
    words = [not any(re.search(r"\d", str(row[i])) for row in table.rows) for i in range(len(table.header))]
    columns = "".join("l" if i < table.names or alone else "r" for i, alone in enumerate(words))
    begin, rule = [rf"\begin{{tabular}}{{{columns}}}", r"\hline"], r"\hline"
    return "\n".join([*begin, lines[0], rule, *lines[1:], rule, r"\end{tabular}"]) + "\n"


def _in_latex(cell: str | Estimate) -> str:
    """A cell in LaTeX. A hyphen before a digit is a minus unless it follows a letter, digit, point or hyphen."""
    if isinstance(cell, Estimate) and cell.interval:
        below = rf"{{\tiny {_in_latex(cell.interval)}}}"
        return rf"\begin{{tabular}}[t]{{@{{}}r@{{}}}}{_in_latex(cell.text)}\\[-3pt]{below}\end{{tabular}}"
    text = foreign.shown(" ".join(str(cell).split())).translate(_LATEX)
    return re.sub(r"(?<![\w.-])-(?=\d)", "$-$", text)


def csv_text(header: Sequence[str], rows: Sequence[Sequence]) -> str:
    """Returns rows as CSV, floats with eight digits; undefined numbers are empty."""
    text = io.StringIO(newline="")
    writer = spreadsheets.Writer(text)
    writer.writerow(header)
    writer.writerows([_rounded(cell) for cell in row] for row in rows)
    return text.getvalue()


def _rounded(cell):
    if not isinstance(cell, float):
        return cell
    return float(f"{cell:.8g}") if math.isfinite(cell) else None


def csv_of(table: Table) -> str:
    """Returns a table as CSV, in which per cent become fractions.

    An estimate takes three columns, value, low and high, and a fourth if any of its column has a spread.
    """
    parts = []
    for i in range(len(table.header)):
        found = [row[i] for row in table.rows if isinstance(row[i], Estimate)]
        has_spread = any(math.isfinite(cell.spread) for cell in found)
        parts.append(("low", "high", *("spread",) * has_spread) if found else ())
    header, rows = [], []
    for name, further in zip(table.header, parts, strict=True):
        header += [name, *(f"{name} {part}" for part in further)]
    for row in table.rows:
        cells = []
        for cell, further in zip(row, parts, strict=True):
            if isinstance(cell, Estimate):
                cells += [cell.value, *(getattr(cell, part) for part in further)]
            else:
                cells += [cell, *[""] * len(further)]
        rows.append(cells)
    return csv_text(header, rows)
