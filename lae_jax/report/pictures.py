"""A picture on a page: an SVG whose colours follow the page, the numbers it shows, and its finding in words."""

import dataclasses
import io
import re
from collections.abc import Sequence

import matplotlib
from matplotlib.figure import Figure

from lae_jax.report.overviews import INK, LINE

# Colours that a page replaces by its own, so that they can be read on a light and on a dark ground.
MUTED, GRID, BARS = "#5b6b7a", "#d9dfe5", "#b9c6d3"
# Of the runs that are compared (Okabe and Ito's, which colour-blind eyes tell apart); each has its own marker as well.
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
_STYLE = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "lae_jax",  # the same numbers give the same file
    "text.parse_math": False,  # a $ in a name is a $
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


# Of all pictures: on a page without one, files of that name are an earlier page's.
NAMES = frozenset({"histogram", "groups", "density", "bias", "cs", "coverage", "loss", "validation", "head_tail"})


@dataclasses.dataclass(frozen=True)
class Picture:
    """name: of its files, one of NAMES; finding: what it shows, for those who cannot see; header, rows: its numbers."""

    name: str
    title: str
    finding: str
    svg: str
    header: Sequence[str]
    rows: Sequence[Sequence]

    def __post_init__(self):
        if self.name not in NAMES:
            raise ValueError(f"no picture is called {self.name!r}")


def style():
    """A context in which figures are drawn for a page."""
    return matplotlib.rc_context(_STYLE)


def figure(width: float = 4.8, height: float = 3.2):
    """(figure, axis), inches; as narrow as a phone, since a wide picture could not be read there."""
    drawn = Figure(figsize=(width, height), layout="constrained")
    axis = drawn.subplots()
    axis.spines[["top", "right"]].set_visible(False)
    return drawn, axis


def svg(drawn: Figure) -> str:
    """A figure as an SVG element without declarations."""
    text = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    drawn.savefig(text, format="svg", metadata=nothing)
    element = text.getvalue()
    return element[element.index("<svg") :].strip()


def inline(element: str, title_id: str) -> str:
    """An SVG for inside a page: its colours are the page's variables, and `title_id` names the text that tells it."""
    for colour, variable in _VARIABLES.items():
        element = re.sub(re.escape(colour), variable, element, flags=re.IGNORECASE)
    # The page scales it; the view box keeps its shape.
    head, rest = element.split(">", 1)
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    return f'{head} role="img" aria-labelledby="{title_id}">{rest}'
