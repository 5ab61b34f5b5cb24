"""What people look at: pages, tables and pictures of evaluations, made from what stands in their folders."""

import os
from collections.abc import Sequence

from etils import epath

from lae_jax.runtime.errors import InputError


def compare(runs: Sequence[str | os.PathLike], out: str | os.PathLike, *, split: str | None = None):
    """Compares runs that were evaluated on the same images, or shows what the long-tail bench found.

    Reads folders and no model. Writes `out`/report.html, the tables (CSV, Markdown, LaTeX) and report/.

    Args:
      runs: Folders of runs or of their evaluations, the first being what the others are compared with; or one folder
        that `lae_jax.longtail` wrote.
      out: Folder to write.
      split: Split that the runs were evaluated on (default: the one that they have in common).

    Returns:
      The page (`page.Page`) and the table of scores (`tables.Table`).

    Raises:
      InputError: A folder holds no evaluation, or those of other images; `out` is a file or one of `runs`.
    """
    places, out = [epath.Path(run) for run in runs], epath.Path(out)
    if any(out == place for place in places):
        raise InputError(f"--out {out} is one of the folders that are read: name another")
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file: name a folder")
    from lae_jax.report import comparison_page, loading, page

    benches = [place for place in places if comparison_page.is_bench(place)]
    if benches and len(places) > 1:
        raise InputError(f"{benches[0]} is a long-tail bench, which has its own methods to compare: name it alone")
    if benches and split:
        raise InputError(f"--split is for runs: {benches[0]} is a long-tail bench, which tells of its test split alone")
    if benches:
        made, table = comparison_page.of_bench(places[0])
        named = {"table": table}
    else:
        made, table, differences = comparison_page.of_runs(loading.together([os.fspath(run) for run in runs], split))
        named = {"table": table, **({"differences": differences} if differences.rows else {})}
    out.mkdir(parents=True, exist_ok=True)
    comparison_page.write_tables(out, named)
    page.write(out / loading.PAGE, made)
    return made, table
