"""What an evaluation shows besides the scores: chosen by flags, and kept from one evaluation of a split to the next."""

import dataclasses
import itertools
import logging
import os
from collections.abc import Sequence

from etils import epath

from lae_jax.data import records
from lae_jax.report import loading
from lae_jax.runtime.errors import InputError

logger = logging.getLogger("lae_jax")

FIELD = "contents"  # of report.json


@dataclasses.dataclass(frozen=True)
class Contents:
    """What an evaluation shows besides the scores.

    Attributes:
      interval: Share of a distribution whose coverage is reported.
      threshold: Age in years for P(age >= threshold).
      challenge: Estimated age in years from which people pass.
      costs: Costs of a person below the threshold who passes, of an older one who is denied, of a referral; (): those
        of `metrics.Costs`.
      slices: Columns of the data set to score by.
      spread: 'STD' or 'MEAN,STD', columns of the data set, for the epsilon-error.
      faces: Whether the page shows faces.
      baseline: Folder of another run that was evaluated on the same images.
    """

    interval: float = 0.9
    threshold: float | None = None
    challenge: float | None = None
    costs: Sequence[float] = ()
    slices: Sequence[str] = ()
    spread: str = ""
    faces: bool = False
    baseline: str = ""

    @property
    def columns(self) -> list[str]:
        """The columns of the data set that are needed."""
        return [*self.slices, *(self.spread.split(",") if self.spread else [])]


def place(run: epath.Path, data: os.PathLike | str, split: str, suffix: str = "") -> epath.Path:
    """Returns the folder of an evaluation: RUN/evaluation/<data set>-<split><suffix>.

    Where that is the evaluation of another data set whose folder has the same name, a number is added.
    """
    name = f"{epath.Path(data).resolve().name}-{split}{suffix}"
    folders = (run / "evaluation" / f"{name}{f'-{number}' * (number > 1)}" for number in itertools.count(1))
    return next(folder for folder in folders if not _is_of_another(folder, data))


def _is_of_another(folder: epath.Path, data: os.PathLike | str) -> bool:
    """Whether a folder holds the evaluation of another data set, not of this one at another place."""
    there = _report(folder)
    if not there:
        return False
    if epath.Path(there["data"]).resolve() == epath.Path(data).resolve():
        return False
    return there["data_hash"] != records.open_dataset(data, "quick").hash


def checked(contents: Contents, folder: epath.Path, data: os.PathLike | str, split: str, flip: bool) -> Contents:
    """Checks the columns and the baseline before anything is predicted, and adds what an earlier evaluation showed.

    Args:
      contents: What the flags ask for.
      folder: Folder of the evaluation, which may hold an earlier one.
      data: Folder of the data set.
      split: Name of the split.
      flip: Whether mirror images are averaged.

    Returns:
      The contents to show.

    Raises:
      InputError: A column does not exist, `spread` has no column of means where ages are ranges, or the baseline is not
        a run or was not evaluated on the same images.
    """
    if len(contents.spread.split(",")) > 2:
        raise InputError(f"--spread {contents.spread}: give one column (STD) or two (MEAN,STD)")
    earlier = _earlier(folder)
    if not (contents.columns or contents.baseline or earlier):
        return contents
    if contents.baseline:
        loading.some(epath.Path(contents.baseline))
    dataset = records.open_dataset(data, "quick")
    for column in contents.columns:
        dataset.column(column)
    if contents.spread and "," not in contents.spread and dataset.targets("age", dataset.rows(split)).ndim == 2:
        raise InputError(
            f"--spread {contents.spread}: in split {split} of {data} some ages are ranges, and the epsilon-error needs"
            " the mean of people's guesses: write --spread MEAN,STD with the columns of both"
        )
    of_baseline(contents.baseline, dataset, split, flip)
    return _joined(contents, earlier, dataset, split, flip) if earlier else contents


def _earlier(folder: epath.Path) -> dict:
    """What the evaluation in a folder showed besides the scores; {} without one."""
    return {name: value for name, value in (_report(folder).get(FIELD) or {}).items() if value}


def _report(folder: epath.Path) -> dict:
    """The report.json in the folder of an evaluation; {} without one, or with a damaged one, which is replaced."""
    try:
        return loading.read_report(folder) if (folder / loading.REPORT).exists() else {}
    except InputError as error:
        logger.warning("%s. It is replaced", error)
        return {}


def _joined(contents: Contents, earlier: dict, dataset: records.Dataset, split: str, flip: bool) -> Contents:
    """Adds to the contents what an earlier evaluation showed, where the data set and the baseline still allow it."""
    old = Contents(**earlier)
    slices = [column for column in old.slices if dataset.has_column(column) and column not in contents.slices]
    joined = dataclasses.replace(
        contents,
        threshold=old.threshold if contents.threshold is None else contents.threshold,
        challenge=old.challenge if contents.challenge is None else contents.challenge,
        costs=contents.costs or tuple(old.costs),
        slices=(*contents.slices, *slices),
        spread=contents.spread or old.spread * all(map(dataset.has_column, old.spread.split(","))),
        faces=contents.faces or old.faces,
        baseline=contents.baseline or old.baseline * (_matching(old.baseline, dataset, split, flip) is not None),
    )
    if joined.challenge is not None and joined.challenge < joined.threshold:  # of an earlier, lower threshold
        joined = dataclasses.replace(joined, challenge=None)
    flags = {
        "threshold": "--threshold",
        "challenge": "--challenge",
        "costs": "--costs",
        "slices": "--slice",
        "spread": "--spread",
        "faces": "--show-faces",
    }
    flags["baseline"] = "--baseline"
    kept = [flag for name, flag in flags.items() if getattr(joined, name) != getattr(contents, name)]
    if kept:
        logger.info(
            "kept from the earlier evaluation: %s; to remove them, first delete its folder in RUN/evaluation",
            ", ".join(kept),
        )
    return joined


def as_json(contents: Contents) -> dict:
    """Returns the contents for report.json; the interval has a field of its own."""
    result = dataclasses.asdict(contents) | {"slices": list(contents.slices), "costs": list(contents.costs) or None}
    del result["interval"]
    return result


def of_baseline(run: str, dataset: records.Dataset, split: str, flip: bool) -> loading.Evaluation | None:
    """Returns the baseline's evaluation of these images; None without a baseline.

    Raises:
      InputError: The baseline was not evaluated on these images.
    """
    found = _matching(run, dataset, split, flip)
    if run and found is None:
        like = {"data": str(dataset.path), "data_hash": dataset.hash, "split": split, "flip": flip}
        raise InputError(
            f"--baseline {run} was not evaluated on these images: evaluate it first with {loading.command(run, like)}"
        )
    return found


def _matching(run: str, dataset: records.Dataset, split: str, flip: bool) -> loading.Evaluation | None:
    like = {"data_hash": dataset.hash, "split": split, "flip": flip}
    return loading.matching(epath.Path(run), like) if run else None
