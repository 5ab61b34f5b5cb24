"""Reports: pages, tables and pictures of evaluations, made from their folders."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from etils import epath

from lae_jax.runtime import files, layout
from lae_jax.runtime.errors import InputError, saving

if TYPE_CHECKING:
    from lae_jax.report.page import Page
    from lae_jax.report.tables import Table


_TABLES = ("table", "differences")
# What `compare` writes, without the suffix of a file that is being written.
_KINDS = ("csv", "md", "tex")
_OWN = {"report", "report.html", *(f"{name}.{kind}" for name in _TABLES for kind in _KINDS)}


def compare(
    runs: Sequence[str | os.PathLike], out: str | os.PathLike, *, split: str | None = None
) -> tuple["Page", "Table"]:
    """Compares runs that were evaluated on the same images, or shows the results of the long-tail bench.

    Loads no model. Writes `out`/report.html, the tables (CSV, Markdown, LaTeX) and `out`/report/.

    Args:
      runs: Folders of runs or of their evaluations; the rest are compared with the first. Or one folder that
        `lae_jax.longtail` wrote.
      out: Folder to write.
      split: Split that the runs were evaluated on (default: the only one that they share).

    Returns:
      The page and the table of scores.

    Raises:
      InputError: A folder holds no evaluation, the evaluations are of different images, or `out` is a file or one of
        `runs`, or holds other files.
      SaveFailed: `out` could not be written.
    """
    runs = layout.names(runs)
    if not runs:
        raise InputError("name at least one run")
    places, out = [epath.Path(run) for run in runs], epath.Path(out)
    if any(out == place for place in places):
        raise InputError(f"--out {out} is one of the folders to read: name another folder")
    layout.require_place_for_results(out, _OWN, {"report.html", "table.csv"})
    for place in places:
        if not place.exists():
            raise InputError(f"{place}: no such folder{layout.hint(place)}")
    from lae_jax.report import comparison_page, loading, page

    benches = [place for place in places if comparison_page.is_bench(place)]
    if benches and len(places) > 1:
        raise InputError(f"{benches[0]} is a long-tail bench, which compares its own methods: name it alone")
    if benches and split:
        raise InputError(
            f"--split is for runs: {benches[0]} is a long-tail bench, which reports its test split. Omit --split"
        )
    if benches:
        made, table = comparison_page.of_bench(places[0])
        named = {"table": table}
    else:
        made, table, differences = comparison_page.of_runs(loading.together(runs, split))
        named = {"table": table, **({"differences": differences} if differences.rows else {})}
    with saving(out):
        with files.together(out, loading.PAGE) as place:
            comparison_page.write_tables(place, named)
            page.write(place / loading.PAGE, made)
        _remove_earlier(out, made, named)
    return made, table


def _remove_earlier(out: epath.Path, made: "Page", named: Mapping) -> None:
    """Removes the tables and pictures of an earlier comparison that this one does not have."""
    from lae_jax.report import page

    for name in {*_TABLES}.difference(named):
        for kind in _KINDS:
            (out / f"{name}.{kind}").unlink(missing_ok=True)
    page.remove_files(out, but=page.names(made))
