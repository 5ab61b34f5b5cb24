"""Sweeps: train settings x folds x seeds of a config, and say which setting is surely better than which."""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from etils import epath

from lae_jax.runtime import files, layout, lock, watch
from lae_jax.runtime.errors import Diverged, Ended, FolderInUse, InputError, RunsFailed, require_whole_numbers, saving

if TYPE_CHECKING:
    from lae_jax.report.page import Page
    from lae_jax.report.tables import Table
    from lae_jax.sweep.claims import Run
    from lae_jax.sweep.grid import Sweep

logger = logging.getLogger("lae_jax")

PLAN = "sweep.json"
_TABLES = ("table", "differences", "runs")
_FILES = {"report.html", "report", *(f"{name}.{kind}" for name in _TABLES for kind in ("csv", "md", "tex"))}


def sweep(
    config: str,
    out: str | os.PathLike,
    *,
    seeds: Sequence[int] = (0,),
    folds: Sequence[int] | str = (),
    fields: Mapping | None = None,
    settings: Mapping[str, Mapping] | None = None,
    split: str | None = None,
    only: tuple[int, int] | None = None,
    flags: Sequence[str] = (),
) -> "tuple[Page, dict[str, Table]] | None":
    """Trains settings x folds x seeds of a config, each run in a process of its own, and compares the settings.

    Runs that are done are not trained again; a run that was stopped resumes. Several processes may call this with the
    same arguments and the same `out`, also on several machines: each run is trained by one of them.

    Args:
      config: Config file, or the name of a config that the package ships.
      out: Folder of the sweep: the runs, sweep.json, and at the end report.html and the tables.
      seeds: Seeds of the runs.
      folds: Numbers of the folds, one model each; 'all': those of the data set; empty: none.
      fields: Field of the config -> list of values to compare, or one value; the settings are all combinations.
      settings: Name of a setting -> field -> value; each is combined with `fields`. The field 'config' names another
        config. `{seed}` and `{fold}` in a value stand for those of the run.
      split: Split to score the runs on (default: the validation split of each run).
      only: (I, N): train the I-th of N shares of the runs, counted from 1.
      flags: Further flags of `lae_jax.main`: '--allow_leak', '--deterministic', '--devices=N'.

    Returns:
      The page, and the tables `table`, `differences` and `runs`; None while other processes still train some runs.

    Raises:
      InputError: An argument cannot be used, or the runs cannot be compared.
      Preempted: A signal came; the same call goes on.
      RunsFailed: Some runs failed, each for its own reason. The page has the others.
      Diverged: All runs that failed diverged.
      SaveFailed: A file could not be written.
    """
    from lae_jax.sweep import grid

    require_whole_numbers(**{f"seeds[{place}]": seed for place, seed in enumerate(seeds)})
    wanted = grid.of_values(os.fspath(config), seeds, folds, fields or {}, settings or {})
    return run(wanted, out, split=split, only=only, flags=flags)


def run(
    wanted: "Sweep",
    out: str | os.PathLike,
    *,
    split: str | None = None,
    only: tuple[int, int] | None = None,
    flags: Sequence[str] = (),
) -> "tuple[Page, dict[str, Table]] | None":
    """Does what `sweep` says, for a sweep that was read from a file or a command line."""
    from lae_jax.runs import preflight
    from lae_jax.sweep import claims, grid

    if files.is_remote(out):
        raise InputError(f"--out {out}: a sweep locks its runs: name a folder on a local disk or a mount")
    folders = {claims.RUNS, claims.CLAIMS, claims.LOGS, claims.FAILED}
    layout.require_place_for_results(out, {PLAN, *folders, *_FILES}, {PLAN})
    number, count = only or (1, 1)
    if not 1 <= number <= count:
        raise InputError(f"--only {number}/{count}: write I/N, the I-th of N shares, from 1/N to N/N")
    runs = grid.runs_of(wanted, out)
    if split is not None:
        preflight.require_split(runs[0].data, split)
    place = epath.Path(out)
    with saving(out):
        place.mkdir(parents=True, exist_ok=True)
        files.write_json(place / PLAN, {"runs": [each.__dict__ for each in runs], "split": split})

    def is_done(each: "Run") -> bool:
        return claims.evaluation_of(place, each, split or each.split) is not None

    def commands(each: "Run", workdir: str) -> Iterator[list[str]]:
        if not (place / each.folder / "summary.json").exists():
            yield ["lae_jax.main", *each.words, f"--config.workdir={workdir}", *flags]
        if not is_done(each):
            devices = [word for word in flags if word.startswith("--devices")]
            yield ["lae_jax.evaluate", f"--run={place / each.folder}", f"--split={split or each.split}", *devices]

    with watch.Signals().caught() as signals, saving(out):
        busy = claims.train(place, runs[number - 1 :: count], commands, is_done, signals)
    failed = claims.failures(place, runs)
    left = [each for each in runs if each.name not in failed and not is_done(each)]
    if left:
        elsewhere = f", {len(busy)} of them in other processes now" * bool(busy)
        logger.info("%d of %d runs are left%s: who ends last writes the report", len(left), len(runs), elsewhere)
        return None
    if len(failed) == len(runs):
        raise _failure(place, failed)
    made = _write(place, runs, failed, split)
    if failed:
        raise _failure(place, failed)
    return made


def _write(
    out: epath.Path, runs: "Sequence[Run]", failed: Mapping[str, dict], split: str | None
) -> "tuple[Page, dict[str, Table]]":
    """Writes the page and the tables of the runs that did not fail, and returns them."""
    from lae_jax.report import comparison_page, loading, page
    from lae_jax.sweep import claims, pooled, verdict_page

    places = {each: claims.evaluation_of(out, each, split or each.split) for each in runs if each.name not in failed}
    found = {each: loading.read(place) for each, place in places.items()}
    first = runs[0]
    facts = [
        ("runs", f"{len(found)} of {len(runs)}"),
        ("data", f"{first.data} ({found[next(iter(found))].report['data_hash'][:12]})"),
        ("scored on", split or first.split.removeprefix(f"fold{first.fold}-")),
        *((each.setting, " ".join(each.words)) for each in runs if (each.seed, each.fold) == (first.seed, first.fold)),
    ]
    made, tables = verdict_page.made(found, pooled.pool(found, split is not None), failed, facts)
    (out / claims.CLAIMS / "report").mkdir(parents=True, exist_ok=True)
    try:
        with lock.hold(out / claims.CLAIMS / "report"), saving(out), files.together(out, loading.PAGE) as place:
            comparison_page.write_tables(place, tables)
            page.write(place / loading.PAGE, made)
    except FolderInUse:
        logger.info("another process is writing the report of the same runs")
    return made, tables


def _failure(out: epath.Path, failed: Mapping[str, dict]) -> Ended:
    kinds = {one["status"] for one in failed.values()}
    kind = next((each for each in (InputError, Diverged) if kinds == {each.status}), RunsFailed)
    told = "; ".join(f"{name}: {one['message']}" for name, one in list(failed.items())[:3])
    return kind(
        f"{len(failed)} run{'s' * (len(failed) != 1)} failed ({told}{'; ...' * (len(failed) > 3)}): read {out}/logs,"
        " then start the same command again, which trains only these"
    )
