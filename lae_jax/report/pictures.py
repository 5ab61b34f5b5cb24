"""Pictures of a page: SVGs whose colours follow the page, with their numbers and their findings in words."""

import contextlib
import dataclasses
import io
import re
from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lae_jax.report.overviews import DEFAULTS, INK, LINE, plain_texts

# A page replaces these colours by its own, which are readable on a light and on a dark background.
MUTED, GRID, BARS = "#5b6b7a", "#d9dfe5", "#b9c6d3"
# Colours of compared runs (Okabe and Ito's, safe for colour-blind eyes); each run has its own marker as well.
RUNS = ("#2166ac", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#56b4e9")
MARKERS = "osD^vP"
_VARIABLES = {
    INK: "var(--ink)",
    LINE: "var(--line)",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
    BARS: "var(--bars)",
    **{colour: f"var(--run{number})" for number, colour in enumerate(RUNS)},
}
_STYLE = DEFAULTS | {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "lae_jax",  # the same numbers give the same file
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}


# Names of the files of all pictures and tables. If a page lacks one, files of that name are from an earlier page.
NAMES = frozenset(
    {"histogram", "groups", "density", "ranges", "bias", "cs", "coverage", "loss", "validation", "head_tail"}
    | {"challenge", "severity", "age_check", "age_check_by_year", "challenge_ages", "policies", "severity_by_year"}
    | {"errors_by_year", "macro_mae", "window", "disparity", "rates_of_groups", "within_person", "coverage_by_group"}
)


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture and the numbers that it shows.

    Attributes:
      name: Name of its files, one of NAMES.
      finding: What it shows in words, also for readers who cannot see it.
      header: Columns of the numbers.
      rows: The numbers.
    """

    name: str
    title: str
    finding: str
    svg: str
    header: Sequence[str]
    rows: Sequence[Sequence]

    def __post_init__(self):
        if self.name not in NAMES:
            raise ValueError(f"no picture is called {self.name!r}")


def style() -> contextlib.AbstractContextManager[None]:
    """Returns a context in which figures are drawn in the style of a page."""
    return matplotlib.rc_context(_STYLE)


def figure(width: float = 4.8, height: float = 3.2) -> tuple[Figure, Axes]:
    """Returns a figure and its axes, in inches; the default fits a phone, where a wider picture is not readable."""
    drawn = Figure(figsize=(width, height), layout="constrained")
    axis = drawn.subplots()
    axis.spines[["top", "right"]].set_visible(False)
    return drawn, axis


def svg(drawn: Figure) -> str:
    """Returns a figure as an SVG element without declarations."""
    plain_texts(drawn)
    text = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    drawn.savefig(text, format="svg", metadata=nothing)
    element = text.getvalue()
    return element[element.index("<svg") :].strip()


def inline(element: str, title_id: str) -> str:
    """Returns an SVG for use inside a page, in the colours of the page.

    Args:
      element: The SVG.
      title_id: Id of the element whose text describes the picture.
    """
    for colour, variable in _VARIABLES.items():
        element = re.sub(re.escape(colour), variable, element, flags=re.IGNORECASE)
    # Without a size the page scales the picture; the view box keeps its shape.
    head, rest = element.split(">", 1)
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    return f'{head} role="img" aria-labelledby="{title_id}">{rest}'
