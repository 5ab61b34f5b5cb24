"""Pages: turn sections of texts, tables and pictures into one self-contained HTML file.

The template escapes every text. A content security policy in the page also forbids scripts and the network.
"""

import base64
import dataclasses
import functools
import re
from collections.abc import Collection, Sequence
from importlib import resources

import jinja2
import markupsafe
from etils import epath

from lae_jax.report import markdown
from lae_jax.report.pictures import NAMES, Picture, inline
from lae_jax.report.tables import Estimate, Table, csv_of, csv_text
from lae_jax.runtime import files, foreign


@dataclasses.dataclass(frozen=True)
class Face:
    """A face on a page.

    Attributes:
      title: Its age group, and whether it is the best, a typical or the worst face of the group.
      name: Name of the image.
      images: JPEG bytes, of the photograph if it exists, and of the crop.
      svg: Its distribution.
      told: True and predicted age, as text.
    """

    title: str
    name: str
    images: Sequence[bytes]
    svg: str
    told: str


@dataclasses.dataclass(frozen=True)
class Section:
    """A section of a page, which omits empty parts.

    Attributes:
      texts: Paragraphs.
      items: Items of a list.
      facts: Pairs of a name and a value.
      markdown: A text that may have headings.
    """

    title: str
    texts: Sequence[str] = ()
    items: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    faces: Sequence[Face] = ()
    facts: Sequence[tuple[str, str]] = ()
    markdown: str = ""

    @property
    def id(self) -> str:
        """The section's anchor in the page."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")

    @property
    def is_empty(self) -> bool:
        """Whether the section has nothing but a title."""
        parts = (self.texts, self.items, self.tables, self.pictures, self.faces, self.facts, self.markdown)
        return not any(parts)


@dataclasses.dataclass(frozen=True)
class Page:
    """A page, with its warnings and its verdict above the sections."""

    title: str
    verdict: Sequence[str]
    sections: Sequence[Section]
    warnings: Sequence[str] = ()


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_template), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, finalize=_shown,
    )  # fmt: skip
    environment.globals.update(
        style=markupsafe.Markup(_template("page.css")),
        svg=lambda element, title: markupsafe.Markup(inline(element, title)),
        is_estimate=lambda cell: isinstance(cell, Estimate),
    )
    environment.filters.update(csv=_csv_link, jpeg=_jpeg_link, markdown=_markdown)
    return environment


def _shown(value):
    """What the template shows of a value: of a text, other than HTML that this project wrote, `foreign.shown`."""
    is_text = isinstance(value, str) and not isinstance(value, markupsafe.Markup)
    return foreign.shown(value) if is_text else value


def _template(name: str) -> str:
    return resources.files(__package__).joinpath("templates", name).read_text("utf-8")


def _csv_link(shown: Picture | Table) -> str:
    text = csv_of(shown) if isinstance(shown, Table) else csv_text(shown.header, shown.rows)
    return "data:text/csv;charset=utf-8;base64," + _base64(text.encode())


def _jpeg_link(content: bytes) -> str:
    return "data:image/jpeg;base64," + _base64(content)


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _markdown(text: str) -> markupsafe.Markup:
    return markupsafe.Markup(markdown.html(text, below=2))


def html(page: Page) -> str:
    """Returns a page as HTML."""
    return _environment().get_template("page.html.j2").render(page=page)


def write(path: epath.Path, page: Page) -> None:
    """Writes a page, and into the folder `report` beside it the files that it shows.

    These are each picture (SVG), its numbers (CSV), and each table that names a file (CSV). Deletes the files that an
    earlier page had and this page does not have.
    """
    folder = path.parent / "report"
    folder.mkdir(parents=True, exist_ok=True)
    pictures = [picture for section in page.sections for picture in section.pictures]
    for table in (table for section in page.sections for table in section.tables if table.file):
        files.write_text(folder / f"{table.file}.csv", csv_of(table))
    for picture in pictures:
        files.write_text(folder / f"{picture.name}.csv", csv_text(picture.header, picture.rows))
        files.write_text(folder / f"{picture.name}.svg", picture.svg + "\n")
    files.write_text(path, html(page))
    remove_files(path.parent, but=names(page))


def names(page: Page) -> set[str]:
    """Returns the names of the files of a page's pictures and tables."""
    parts = {picture.name for section in page.sections for picture in section.pictures}
    return parts | {table.file for section in page.sections for table in section.tables if table.file}


def remove_files(folder: epath.Path, but: Collection[str]) -> None:
    """Deletes the files of pictures and tables that an earlier page in `folder` had, except those named in `but`."""
    for name in NAMES.difference(but):
        for suffix in ("csv", "svg"):
            (folder / "report" / f"{name}.{suffix}").unlink(missing_ok=True)
