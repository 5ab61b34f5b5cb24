"""Pages of comparisons: several runs on the same images, and the trials of the long-tail bench."""

import csv
import io
import math
from collections.abc import Sequence

import numpy as np
from etils import epath

from lae_jax import metrics
from lae_jax.report import bootstrap, charts, loading, pictures, scores, tables, wording
from lae_jax.report.evaluation_page import names
from lae_jax.report.loading import Evaluation
from lae_jax.report.page import Page, Section
from lae_jax.report.scores import MAIN, MORE, Scored
from lae_jax.report.tables import Estimate, Table
from lae_jax.runtime import console, files
from lae_jax.runtime.errors import InputError
from lae_jax.runtime.foreign import spreadsheets
from lae_jax.runtime.typed import declared

_AGAIN = "run lae_jax.longtail again"
_SURE = 1 - bootstrap.LEVEL  # a difference of the bench is certain if its corrected p-value is below this
_OF_GROUP = [f"mae_{group}" for group in metrics.ALL_GROUPS]
# Where ages are ranges, they are listed by the scores of ranges first.
_ALL = (*scores.OF_RANGES, *MAIN)


def of_runs(evaluations: Sequence[Evaluation]) -> tuple[Page, Table, Table]:
    """Compares evaluations of the same images.

    Returns:
      The page, the table of scores in the form of the paper's Table 2, and the table of differences to the first run.
    """
    evaluations = loading.sharing_guesses(evaluations)
    labels, scored = names(evaluations), [scores.score(one.sample) for one in evaluations]
    main = scores.main_scores(evaluations[0].sample)
    table = Table(
        ("run", *(title_of(score) for score in main)),
        [(label, *(one.estimate(score) for score in main)) for label, one in zip(labels, scored, strict=True)],
    )
    differences = _differences(labels, scored)
    with pictures.style():
        shown = [
            charts.groups(evaluations, labels, scored),
            charts.cumulative(evaluations, labels),
            charts.coverage(evaluations, labels),
        ]
    rows = [(score.title, *(one.estimate(score) for one in scored)) for score in MORE]
    more = Table(("score", *labels), [row for row in rows if any(cell.is_known for cell in row[1:])])
    report = evaluations[0].report
    verdict = [_best(labels, scored)]
    verdict += [
        wording.comparison(one, scored[0], f"{label} against {labels[0]}")
        for label, one in zip(labels[1:], scored[1:], strict=True)
    ]
    told = wording.intervals([one.sample.unit for one in evaluations], bootstrap.REPLICATES)
    provenance = [
        (label, f"{one.run} step {one.report['step']}, {one.report['stage']}, {one.report['model']}")
        for label, one in zip(labels, evaluations, strict=True)
    ]
    provenance += [("data", f"{report['data']} ({report['data_hash'][:12]})"), ("split", report["split"])]
    differing = Section("Differences")
    if differences.rows:
        told_differences = f"Each run minus {labels[0]}, image by image (paired)."
        # The text names the first run, so the page omits the second column; the files keep it.
        header, *rows = ([line[0], *line[2:]] for line in (differences.header, *differences.rows))
        differing = Section("Differences", texts=[told_differences], tables=[Table(header, rows)])
    sections = [
        Section("Scores", texts=[told], tables=cut(table)),
        differing,
        Section("Pictures", pictures=[one for one in shown if one is not None]),
        Section("Further scores", tables=[more]),
        Section("What the scores mean", items=wording.meanings(evaluations[0].sample.ranges is not None)),
        Section("Provenance", facts=provenance),
    ]
    title = f"{len(evaluations)} run{'s' * (len(evaluations) != 1)} on {report['split']} of {report['data']}"
    return Page(title, verdict, sections, warnings_of(labels, evaluations)), table, differences


def warnings_of(labels: Sequence[str], evaluations: Sequence[Evaluation]) -> list[str]:
    """Returns each warning of evaluations once; a warning that only some of them have starts with their labels."""
    of: dict[str, list[str]] = {}
    for label, one in zip(labels, evaluations, strict=True):
        for line in wording.warnings(one.report):
            of.setdefault(line, []).append(label)
    return [line if len(named) == len(labels) else f"{', '.join(named)}: {line}" for line, named in of.items()]


def title_of(score: scores.Score) -> str:
    """Returns the heading of a score's column in a table of settings or runs."""
    return f"MAE {score.title}" if score.name in _OF_GROUP else score.title


def _differences(labels: Sequence[str], scored: Sequence[Scored]) -> Table:
    rows = []
    for label, one in zip(labels[1:], scored[1:], strict=True):
        found = [(score, one.difference(scored[0], score)) for score in _ALL]
        rows += [
            (label, labels[0], title_of(score), cell, scores.verdict(cell, score))
            for score, cell in found
            if cell.is_known
        ]
    return Table(("run", "minus", "score", "difference", "verdict"), rows)


def _best(labels: Sequence[str], scored: Sequence[Scored]) -> str:
    told = []
    for score in _ALL:
        if score.name not in ("distance", "distance_sigma", "in_range", "mae", "sigma", "aar_2021", "aar_2022"):
            continue
        values = {label: one.values.get(score.name, math.nan) for label, one in zip(labels, scored, strict=True)}
        known = {label: one for label, one in zip(labels, scored, strict=True) if math.isfinite(values[label])}
        if known:
            value = (min if score.better < 0 else max)(one.values[score.name] for one in known.values())
            best = [label for label, one in known.items() if one.values[score.name] == value]
            first = ", ".join(best) if len(best) < len(labels) or len(labels) == 1 else "the same for all"
            shown = Estimate(value, digits=score.digits, percent=score.percent).text
            text = f"{'lowest' if score.better < 0 else 'highest'} {score.title}: {first} ({shown})"
            # Whether the first place is certain, other images of the same kind decide.
            behind = [label for label in known if label not in best]
            of = {label: known[label].difference(known[best[0]], score) for label in behind}
            close = [label for label in behind if scores.verdict(of[label], score) == scores.UNCLEAR]
            told.append(text + f", {scores.UNCLEAR} from it: {', '.join(close)}" * bool(close))
    text = "; ".join(told) + "."
    return text[0].upper() + text[1:]


def is_bench(folder: epath.Path) -> bool:
    """Whether lae_jax.longtail wrote a folder."""
    return (folder / "trials.csv").exists() and (folder / loading.REPORT).exists()


def of_bench(folder: epath.Path) -> tuple[Page, Table]:
    """Returns the page and the table of a folder that lae_jax.longtail wrote.

    Raises:
      InputError: The folder is damaged.
    """
    report = files.read_json(folder / loading.REPORT, declared.BENCH, _AGAIN)
    words = wording.BENCH_OF_RANGES if report.get("error") == "distance" else wording.BENCH
    told_on = "test" if report["test"] else "validation"  # without a test split, the results are those on validation
    try:
        best, all_trials = (_lines(folder / name) for name in ("table.csv", "trials.csv"))
        head, tail = (np.array(report[f"{side}_groups"], int) for side in ("head", "tail"))
        if not (len(head) and len(tail)):
            raise ValueError("head_groups or tail_groups is empty")
        points: dict[str, list] = {}
        for line in (line for line in all_trials if line["split"] == told_on):
            group_mae = np.array([float(line[f"{words.error}_{group}"] or "nan") for group in metrics.GROUPS])
            known = [group_mae[side][np.isfinite(group_mae[side])] for side in (head, tail)]
            point = tuple(float(part.mean()) if len(part) else math.nan for part in known)
            points.setdefault(line["method"], []).append(point)
        if not points:
            raise ValueError(f"trials.csv has no trial on {told_on}")
        lines = [line for line in best if line["split"] == told_on]
        shown = [g for g in metrics.ALL_GROUPS if g in metrics.GROUPS or lines[0][f"{words.error}_{g}"]]
        rows = [_bench_row(line, shown, words) for line in lines]
        sentences = [report["sentences"][name] for name in (*words.aims, "improvement") if name in report["sentences"]]
        seeds = report["seeds"]
    except (KeyError, IndexError, ValueError, TypeError, AttributeError, csv.Error) as error:
        raise InputError(f"{folder} is damaged ({error!r}): {_AGAIN}") from error
    to = [title for name, title in _differences_of_bench(words).items() if name in best[0]]
    table = Table(("method", "setting", *words.titles.values(), *shown, *to), rows, names=2)
    with pictures.style():
        picture = charts.head_tail(points, (head, tail), words.title)
    several = any(line["n"] != "1" for line in best)
    count = len(report["runs"])
    spread = ": mean ± standard deviation over the seeds and runs" if several else ""
    told = (
        f"Each method on {report['test'] or 'validation, on which it was chosen'}{spread} ({seeds}"
        f" seed{'s' * (seeds != 1)} of the head on the features of {count} run{'s' * (count != 1)})."
    )
    if several and to:
        over = wording.over_trainings(count, seeds)
        told += (
            f" The differences to lae are paired; in brackets {over}. They show how much other training runs"
            " differ, and nothing about other images."
        )
    if joint := report.get("joint"):
        told += f" The columns 'joint' have {joint}. An asterisk marks a difference that is certain after it."
    told += (
        f" The setting of each method is the one with the lowest {words.title} + sigma on validation. Each sentence"
        " above chooses by its own score, also on validation: it may name another setting, or a method that does"
        " not win on test."
    )
    names_of_facts = (
        "runs",
        "steps",
        "data",
        "data_hash",
        "protocol",
        "epochs",
        "batch_size",
        "base_learning_rates",
        "passes",
        "seconds",
    )
    facts = [(name.replace("_", " "), _plain(report[name])) for name in names_of_facts if name in report]
    sections = [
        Section("Scores", texts=[told], tables=cut(table)),
        Section("Head and tail", pictures=[picture]),
        Section("What the scores mean", items=wording.meanings(words is wording.BENCH_OF_RANGES)),
        Section("Provenance", facts=facts),
    ]
    title = f"Long-tail bench on {report['test'] or 'validation'} of {report['data']}"
    return Page(title, sentences, sections, wording.warnings(report)), table


def _differences_of_bench(words: wording.BenchWords) -> dict[str, str]:
    """Start of the names of columns of table.csv -> title, first with intervals over trainings, then joint ones."""
    found = {name: f"{words.titles[score]} - lae" for name, score in words.differences.items()}
    return found | {f"{name}_low": f"{title}, joint" for name, title in found.items()}


def _lines(path: epath.Path) -> list[dict]:
    return list(spreadsheets.records(io.StringIO(files.read_text(path, _AGAIN), newline="")))


def _bench_row(line: dict, shown: Sequence[str], words: wording.BenchWords) -> list[str | Estimate]:
    cells: list[str | Estimate] = []
    for name, field in words.scores.items():
        digits = 3 if field == "cs5" else 2
        if not line[name]:
            cells.append("–")
            continue
        spread = f" ± {float(line[f'{name}_spread']):.{digits}f}" * (line["n"] != "1")
        cells.append(f"{float(line[name]):.{digits}f}{spread}")
    groups = [line[f"{words.error}_{group}"] for group in shown]
    cells += [f"{float(mae):.2f}" if mae else "–" for mae in groups]
    joint = []
    for name in words.differences:
        if name in line:
            value, half = (float(line[key] or "nan") for key in (name, f"{name}_half"))
            cells.append(Estimate(value, value - half, value + half, signed=True))
        if f"{name}_low" in line:
            low, high, p = (float(line[f"{name}_{end}"] or "nan") for end in ("low", "high", "p_corrected"))
            joint.append(f"{Estimate(value, low, high, signed=True)}{'*' * (p < _SURE)}")
    return [line["method"], f"{line.get('parameter') or ''} {line['setting']}".strip(), *cells, *joint]


def _plain(value) -> str:
    if isinstance(value, dict):
        value = [f"{name} {part}" for name, part in value.items()]
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def cut(table: Table) -> list[Table]:
    """Splits a table of scores into two that fit a page: over all ages, and by age group."""
    return tables.cut(
        table,
        [
            *metrics.ALL_GROUPS,
            *(title_of(score) for score in _ALL if score.name in _OF_GROUP or score.title.startswith("distance ")),
        ],
    )


def plain(table: Table) -> str:
    """Returns a table as text for a terminal, which has no room for intervals."""
    rows = [[cell.text if isinstance(cell, Estimate) else cell for cell in row] for row in table.rows]
    return console.table(table.header, rows)


def write_tables(out: epath.Path, named: dict[str, Table]) -> None:
    """Writes each table as NAME.csv and, split to the width of a page, as NAME.md and NAME.tex."""
    for name, table in named.items():
        files.write_text(out / f"{name}.csv", tables.csv_of(table))
        files.write_text(out / f"{name}.md", "\n".join(map(tables.markdown, cut(table))))
        files.write_text(out / f"{name}.tex", "\n".join(map(tables.latex, cut(table))))
