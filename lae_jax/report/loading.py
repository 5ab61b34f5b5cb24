"""Readers of the folders of runs and evaluations; they load no model and no image."""

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath

from lae_jax import metrics
from lae_jax.report.scores import Sample
from lae_jax.runtime import files, typed
from lae_jax.runtime.errors import InputError
from lae_jax.runtime.foreign import spreadsheets
from lae_jax.runtime.typed import declared

REPORT, PREDICTIONS, CARD, PAGE = "report.json", "predictions.csv", "model_card.md", "report.html"
GUESSES = ("label_mean", "label_spread")  # in predictions.csv, mean and standard deviation of what people guessed
NO_FACE = "no_face"  # in predictions.csv, 1 where the detector found no face, where there is such an image
RANGE = ("age_low", "age_high")  # in predictions.csv, first and last age, where some ages are ranges
INTERVAL, CONFORMAL = ("lower", "upper"), ("conformal_lower", "conformal_upper")  # in predictions.csv, years
SLICE = "slice:"  # before the name of a `--slice` column in predictions.csv
_EVALUATE = "python -m lae_jax.evaluate --run {}"
_AGAIN = "evaluate the run again"


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """An evaluation of ages, read from its folder.

    Attributes:
      report: Content of report.json.
      names: (N,) names of the images.
      sample: Ages and predictions.
      below: (N,) share of each distribution below the true age or range, from which the coverage of any interval
        follows; None if predictions.csv does not have it.
      up_to: (N,) share up to the end of the range; where the age is exact, that of `below`.
      chances: (N,) P(age >= report['threshold']); None without a threshold.
      interval: (N, 2) interval of each distribution in years; None if predictions.csv does not have it.
      conformal: (N, 2) conformal interval in years; None if the run has none.
      no_face: (N,) whether no face was found on the photograph, whose centre was taken.
      slices: Column -> (N,) texts.
    """

    folder: epath.Path
    report: dict
    names: np.ndarray
    sample: Sample
    below: np.ndarray | None
    up_to: np.ndarray | None
    chances: np.ndarray | None
    interval: np.ndarray | None
    conformal: np.ndarray | None
    no_face: np.ndarray
    slices: dict[str, np.ndarray]

    @property
    def run(self) -> epath.Path:
        """The run's folder: RUN/evaluation/<data set>-<split>."""
        return self.folder.parent.parent

    @property
    def label(self) -> str:
        """The name of the run's folder."""
        return self.run.name

    def coverage(self, levels: np.ndarray) -> np.ndarray | None:
        """Returns the share of the ages inside the middle `levels` (L,) of their distributions: (L,).

        `metrics.coverage` says what that is for ranges.
        """
        return None if self.below is None else metrics.coverage(self.below, self.up_to, levels)


def is_evaluation(folder: epath.Path) -> bool:
    """Whether a folder holds an evaluation of ages."""
    return (folder / REPORT).exists() and (folder / PREDICTIONS).exists()


def read_report(folder: epath.Path, form: typed.Form = declared.REPORT) -> dict:
    """Returns the content of the report.json of an evaluation.

    Args:
      folder: The evaluation.
      form: Its form; `declared.report_of_ages` has the scores of ages too.

    Raises:
      InputError: It is damaged.
    """
    return files.read_json(folder / REPORT, form, _AGAIN)


def read(folder: epath.Path) -> Evaluation:
    """Reads an evaluation of ages.

    Raises:
      InputError: The folder holds no evaluation of ages, or a damaged one.
    """
    folder = epath.Path(folder)
    if not is_evaluation(folder):
        raise InputError(
            f"{folder} holds no evaluation of ages ({REPORT}, {PREDICTIONS}): make one with python -m lae_jax.evaluate"
        )
    report = read_report(folder, declared.report_of_ages)
    text = files.read_text(folder / PREDICTIONS, _AGAIN, files.LINES_LIMIT)
    try:
        rows = list(spreadsheets.records(io.StringIO(text, newline="")))
        columns = {name: np.array([row[name] for row in rows], object) for name in rows[0]}
        predictions, ranges = columns["prediction"].astype(np.float64), None
        if RANGE[0] in columns:
            ranges = np.stack([columns[name].astype(np.float64) for name in RANGE], axis=1)
        ages = columns["age"].astype(np.float64) if ranges is None else metrics.label_age(ranges)
        below = _numbers(columns["below"], len(rows), np.nan) if "below" in columns else None
        up_to = below if below is None or ranges is None else _numbers(columns["up_to"], len(rows), np.nan)
        training = report.get("training")
        chance = f"p_at_least_{report['threshold']:g}" if report.get("threshold") is not None else ""
        found = Evaluation(
            folder,
            report,
            columns["name"],
            Sample(
                ages,
                predictions,
                _numbers(columns.get("person"), len(rows), -1).astype(np.int64),
                training and np.array(training["count"]),
                np.stack([_numbers(columns[name], len(rows), np.nan) for name in GUESSES], axis=1)
                if GUESSES[0] in columns
                else None,
                ranges,
            ),
            below,
            up_to,
            columns[chance].astype(np.float64) if chance else None,
            _years(columns, INTERVAL),
            _years(columns, CONFORMAL),
            _numbers(columns.get(NO_FACE), len(rows), 0) > 0,
            {name.removeprefix(SLICE): values for name, values in columns.items() if name.startswith(SLICE)},
        )
        for name, shares in (("below", found.below), ("up_to", found.up_to), (chance, found.chances)):
            if shares is not None and not ((shares >= 0) & (shares <= 1) | np.isnan(shares)).all():
                raise ValueError(f"{name} is below 0 or above 1")
        if ranges is not None and not (ranges[:, 0] <= ranges[:, 1]).all():
            raise ValueError("a range ends before it begins")
        scored = metrics.age_report(ages, predictions) if ranges is None else metrics.range_report(ranges, predictions)
        if differing := _differing(report, scored.to_dict()):
            raise ValueError(f"{differing} in {REPORT} is not that of {PREDICTIONS}")
    except (IndexError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise InputError(f"{folder} is damaged ({error!r}): evaluate the run again") from error
    return found


def _differing(report: Mapping, scored: Mapping) -> str:
    """Returns the name of a score that the predictions do not give; '' without one.

    Neither file has a checksum, but a changed digit in one of them makes them differ.
    """
    for name, value in scored.items():
        if not isinstance(value, (int, float, list)) or any(isinstance(one, str) for one in np.ravel(value)):
            continue
        there, here = (np.ravel(np.array(one, np.float64)) for one in (report[name], value))  # None: NaN
        if there.shape != here.shape or not np.allclose(there, here, rtol=1e-4, atol=1e-4, equal_nan=True):
            return name
    return ""


def _numbers(texts: np.ndarray | None, count: int, unknown: float) -> np.ndarray:
    if texts is None:
        return np.full(count, unknown)
    return np.array([float(text) if text else unknown for text in texts])


def _years(columns: Mapping[str, np.ndarray], ends: tuple[str, str]) -> np.ndarray | None:
    """The first and last ages of two columns, (N, 2); None without them."""
    return np.stack([columns[name].astype(np.float64) for name in ends], axis=1) if ends[0] in columns else None


def folders(run: epath.Path) -> list[epath.Path]:
    """Returns the folders of a run's evaluations, of ages and of identities, sorted by name."""
    top = epath.Path(run) / "evaluation"
    # Not by a glob, in which the name of the run would be a pattern too.
    return sorted(folder for folder in top.iterdir() if (folder / REPORT).exists()) if top.is_dir() else []


def evaluations(run: epath.Path) -> list[epath.Path]:
    """Returns the folders of a run's evaluations of ages, sorted by name."""
    return [folder for folder in folders(run) if is_evaluation(folder)]


def _kind(report: dict) -> tuple:
    """What evaluations must share to be compared: data hash, split, and whether mirror images were averaged."""
    return report["data_hash"], report["split"], bool(report.get("flip"))


def matching(run: epath.Path, like: dict) -> Evaluation | None:
    """Returns a run's evaluation with the data set, split and `flip` of `like` (a report.json); None without one."""
    found = [folder for folder in evaluations(run) if _kind(read_report(folder)) == _kind(like)]
    # A step or a suffix makes the name longer: the shortest name is that of the best checkpoint.
    return read(min(found, key=lambda folder: len(folder.name))) if found else None


def command(run: epath.Path, like: dict) -> str:
    """Returns the command that makes the evaluation that `matching` did not find."""
    return f"{_EVALUATE.format(run)} --data {like['data']} --split {like['split']}" + " --flip" * bool(like.get("flip"))


def together(places: Sequence[str], split: str | None) -> list[Evaluation]:
    """Reads evaluations of the same images, one per place, to compare them.

    Args:
      places: Folders of runs or of evaluations.
      split: Split of the runs' evaluations to read (default: the only one that they share).

    Raises:
      InputError: The places share no evaluation, or more than one.
    """
    folders = [epath.Path(place) for place in places]
    fixed = {folder: read(folder) for folder in folders if is_evaluation(folder)}
    kinds = {_kind(evaluation.report) for evaluation in fixed.values()}
    # Evaluations that you name may differ in `flip`, which shows what mirror images change.
    if len(fixed) == len({*folders}) and len({kind[:2] for kind in kinds}) == 1:
        kinds = {next(iter(kinds))}
    if not fixed:
        of_each = [{_kind(read_report(path)) for path in some(folder)} for folder in folders]
        kinds = set.intersection(*of_each)
    if split is not None:
        kinds = {kind for kind in kinds if kind[1] == split}
    if len(kinds) != 1:
        raise InputError(_not_together(folders, kinds, split))
    data_hash, name, flip = next(iter(kinds))
    like = {"data_hash": data_hash, "split": name, "flip": flip}
    found = []
    for folder in folders:
        evaluation = fixed.get(folder) or matching(folder, like)
        if evaluation is None:
            known = next(iter(fixed.values())).report
            raise InputError(f"{folder} was not evaluated on split {name} of {known['data']}: {command(folder, known)}")
        found.append(evaluation)
    for other in found[1:]:
        same_images(found[0], other)
    return found


def some(run: epath.Path) -> list[epath.Path]:
    """Returns the folders of a run's evaluations of ages, at least one.

    Raises:
      InputError: There is none; the message says how to make one, or why the run cannot have one.
    """
    if found := evaluations(run):
        return found
    if (run / "config.json").exists():
        if read_run(run).config.get("stage") == "pretrain":
            raise InputError(f"{run} is a run of stage 1, which predicts no ages: name a run of stage 2 or 3")
        raise InputError(f"{run} has no evaluation of ages yet: make one with {_EVALUATE.format(run)}")
    raise InputError(f"{run} holds neither a run nor an evaluation nor a long-tail bench")


def _not_together(folders: list[epath.Path], kinds: set, split: str | None) -> str:
    told, known = [], {}
    for folder in folders:
        places = [folder] if is_evaluation(folder) else evaluations(folder)
        on = {_kind(found): _on(found) for found in map(read_report, places)}
        told.append(f"{folder}: {', '.join(on.values()) or 'nothing'}")
        known |= on
    if kinds and not all(map(is_evaluation, folders)):
        names = ", ".join(sorted(known[kind] for kind in kinds))
        how = "name their folders, RUN/evaluation/NAME"
        if split is None and len({kind[1] for kind in kinds}) == len(kinds):
            how = f"choose with --split, or {how}"
        return f"the runs share evaluations on more than one split ({names}): {how}"
    which = f" on split {split!r}" if split else ""
    return (
        f"these were not evaluated{which} on the same images, so they cannot be compared ({'; '.join(told)}):"
        " evaluate each with the same --data and --split"
    )


def _on(report: dict) -> str:
    mirrored = ", --flip" * bool(report.get("flip"))
    return f"{report['split']} of {report['data']} ({report['data_hash'][:8]}{mirrored})"


def same_images(one: Evaluation, other: Evaluation) -> None:
    """Checks that two evaluations are of the same images, in the same order, with the same ages.

    Raises:
      InputError: They are not.
    """
    same = len(one.names) == len(other.names) and (one.names == other.names).all()
    labels = [one.sample.ages if one.sample.ranges is None else one.sample.ranges for one in (one, other)]
    same = same and labels[0].shape == labels[1].shape
    if not same or not np.allclose(*labels, atol=1e-4, rtol=0):
        raise InputError(
            f"{one.folder} and {other.folder} hold different images or ages, although the data set and the"
            " split are the same: evaluate both again"
        )


def sharing_guesses(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """Returns evaluations of the same images; those without people's guesses take the guesses of another one."""
    known = next((one.sample.guesses for one in evaluations if one.sample.guesses is not None), None)
    return [
        one
        if one.sample.guesses is not None
        else dataclasses.replace(one, sample=dataclasses.replace(one.sample, guesses=known))
        for one in evaluations
    ]


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """The files of a run's folder; a file that does not exist is empty.

    Attributes:
      config: Content of config.json.
      provenance: Content of provenance.json.
      summary: Content of summary.json.
      lines: Lines of metrics.jsonl.
    """

    folder: epath.Path
    config: dict
    provenance: dict
    summary: dict
    lines: list[dict]


def read_run(folder: epath.Path) -> Run:
    """Reads the files of a run's folder.

    Raises:
      InputError: One is damaged.
    """
    folder = epath.Path(folder)
    forms = {"config": declared.CONFIG_HEAD, "provenance": declared.PROVENANCE, "summary": declared.SUMMARY}
    parts = [
        files.read_json(path, form) if (path := folder / f"{name}.json").exists() else {}
        for name, form in forms.items()
    ]
    return Run(folder, *parts, files.read_lines(folder / "metrics.jsonl", declared.line))


def started_from(run: Run) -> epath.Path | None:
    """Returns the folder of the run that a run was started from; None if there is none or it was deleted."""
    name = (run.provenance.get("init") or {}).get("from") or run.config.get("init_from")
    if name == "scratch":
        return None
    for place in [epath.Path(name), run.folder.parent / epath.Path(name).name] if name else []:
        if not files.is_foreign_bucket(place, run.folder) and (place / "config.json").exists():
            return place
    return None
