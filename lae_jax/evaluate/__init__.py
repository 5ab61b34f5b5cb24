"""Evaluations: score a run on a split, or verify people on a list of pairs, and write the results into a folder."""

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from etils import epath

from lae_jax.runs import preflight
from lae_jax.runtime import layout, model_file
from lae_jax.runtime.errors import InputError, require_numbers, require_whole_numbers, saving
from lae_jax.runtime.model_file import builtin

if TYPE_CHECKING:
    from lae_jax.evaluate import pair_list

Calibration = Literal["temperature", "conformal"]


class Evaluation(NamedTuple):
    """An evaluation that was written.

    Attributes:
      report: Content of report.json.
      folder: RUN/evaluation/<data set>-<split>, of a list of pairs RUN/evaluation/<list>-pairs; of a model file
        NAME.safetensors, NAME/evaluation/<data set>-<split> in the current folder.
    """

    report: dict
    folder: epath.Path


def evaluate(
    run: str | os.PathLike,
    data: str | os.PathLike | None = None,
    split: str | None = None,
    *,
    step: int | None = None,
    flip: bool = False,
    interval: float = 0.9,
    baseline: str | os.PathLike | None = None,
    threshold: float | None = None,
    challenge: float | None = None,
    costs: Sequence[float] | None = None,
    slices: Sequence[str] = (),
    spread: str | None = None,
    show_faces: bool = False,
    calibrate: bool | Calibration = False,
    allow_other_crop: bool = False,
    batch_size: int | None = None,
) -> Evaluation:
    """Scores a run on a split and writes RUN/evaluation/<data set>-<split>/ (`Evaluation.folder`).

    Args:
      run: Folder of a run, a model file, or 'faces-lite0', the model of the package.
      data: Folder of a prepared data set (default: the run's own).
      split: Name of a split; 'all' for every row (default: the run's validation split).
      step: Step of the checkpoint to score (default: the best checkpoint).
      flip: Average each estimate with that of the mirror image.
      interval: Share of a predicted distribution that its interval holds, between 0 and 1.
      baseline: Run that the page compares this one with; it must have an evaluation of the same images.
      threshold: Age in years; the report scores P(age >= threshold) as a decision.
      challenge: Estimated age in years from which people pass; the report scores an age check with it and `threshold`.
      costs: What the outcomes of a policy of an age check cost: a person below the threshold passes, an older one is
        denied, a person is referred (default: 100, 10, 1).
      slices: Columns of the data set; the report also scores the images of each of their values.
      spread: Column of the labels' standard deviation, or 'MEAN,STD', for the epsilon-error.
      show_faces: Show the best, a typical and the worst face of each age group on the page.
      calibrate: Fit the temperature of the distributions first, on the run's validation split; 'conformal': also the
        intervals that are fitted for each age group. True means 'temperature'.
      allow_other_crop: Continue although the faces are cut in another way than the run's.
      batch_size: Images in a batch, over all devices (default: the run's eval_batch_size).

    Returns:
      The report and its folder.

    Raises:
      InputError: An argument, the run or the data set cannot be used.
      SaveFailed: The run's folder could not be written; an earlier evaluation stays as it was.
    """
    check(interval, threshold, challenge, costs, batch_size, calibrate)
    of_ages = {
        "threshold": threshold,
        "challenge": challenge,
        "slice": slices,
        "spread": spread,
        "show-faces": show_faces,
    }
    of_ages |= {"calibrate": calibrate, "baseline": baseline}
    if given := [f"--{flag}" for flag, value in of_ages.items() if value]:
        preflight.require_ages(run, f"omit {', '.join(given)}, or name")
    data, split = check_inputs(run, data, split, step, calibrate)
    # Imported here, so that a program shows its help without loading all this; TensorFlow comes after the checks.
    from lae_jax.evaluate import contents as showing

    contents = showing.Contents(
        interval=interval,
        threshold=threshold,
        challenge=challenge,
        costs=tuple(costs or ()),
        slices=tuple(dict.fromkeys(layout.names(slices))),
        spread=spread or "",
        faces=show_faces,
        baseline=os.fspath(baseline or ""),
    )
    suffix = f"-step{step}" * (step is not None) + "-flip" * flip
    folder = showing.place(home_of(run), data, split, suffix)
    contents = showing.checked(contents, folder, data, split, flip)
    from lae_jax.evaluate import measure, results
    from lae_jax.runs import build

    checkpoint = build.load(run, step)
    done = measure.predict(checkpoint, data, split, flip=flip, batch_size=batch_size, allow_other_crop=allow_other_crop)
    with saving(home_of(run)):
        if calibrate:
            measure.calibrate(done, interval, with_conformal=calibrate == "conformal", flip=flip)
        return Evaluation(results.write(done, folder, contents, flip=flip), folder)


def verify(
    run: str | os.PathLike,
    pairs: str | os.PathLike,
    images: str | os.PathLike | None = None,
    *,
    step: int | None = None,
    flip: bool = False,
    aligned: bool = False,
    allow_other_crop: bool = False,
    batch_size: int | None = None,
) -> Evaluation:
    """Verifies people on a list of pairs with a run of stage 1 and writes RUN/evaluation/<name of the list>-pairs/.

    Args:
      run: Folder of a run of stage 1.
      pairs: A list of pairs: LFW's pairs.txt, a table of two paths and 1 or 0, or a .bin file of insightface.
      images: Folder of the images (default: the folder of the list). A .bin file holds its images.
      step: Step of the checkpoint (default: the best one).
      flip: Average the embedding of each image with that of its mirror image.
      aligned: The images are face crops that match the crop contract of the run.
      allow_other_crop: Continue although the faces are cut in another way than the run's.
      batch_size: Images in a batch, over all devices (default: the run's eval_batch_size).

    Returns:
      The report and its folder.

    Raises:
      InputError: An argument, the run, the list or an image cannot be used.
      SaveFailed: The run's folder could not be written; an earlier evaluation stays as it was.
    """
    found = check_pairs(run, pairs, images, step, batch_size)
    from lae_jax.evaluate import on_pairs
    from lae_jax.runs import build

    root = None if found.encoded is not None else _root(pairs, images)
    checkpoint = build.load(run, step)
    cut = on_pairs.cut_of(checkpoint, found, aligned, allow_other_crop)
    outputs, without_face = on_pairs.embeddings(checkpoint, found, root, cut, flip, batch_size)
    suffix = f"-step{step}" * (step is not None) + "-flip" * flip
    folder = on_pairs.place(epath.Path(run), found, suffix)
    with saving(run):
        told = {"flip": flip, "without_face": without_face}
        return Evaluation(on_pairs.write(checkpoint, found, outputs, cut, folder, **told), folder)


def check_pairs(
    run: str | os.PathLike,
    pairs: str | os.PathLike,
    images: str | os.PathLike | None,
    step: int | None,
    batch_size: int | None,
) -> "pair_list.PairList":
    """Checks what `verify` reads and where it writes, without loading a model.

    Returns:
      The list of pairs.

    Raises:
      InputError: An argument, the run or the list cannot be used, or an image is missing.
    """
    require_whole_numbers(step=step)
    _check_batch_size(batch_size)
    if model_file.is_named(run):
        raise InputError(
            f"{os.fspath(run)} is a model file, which estimates ages: name a run of stage pretrain with --run"
        )
    layout.require_run(run)
    layout.require_writable(run, f"--run {run}")
    preflight.require_stage(run, "pretrain", "--run")
    preflight.require_step(run, step)
    preflight.require_images(images)
    from lae_jax.evaluate import pair_list

    found = pair_list.read(pairs)
    if images is not None and found.encoded is not None:
        raise InputError(f"{os.fspath(pairs)} holds its images: omit --images")
    return pair_list.require_images(found, _root(pairs, images))


def _root(pairs: str | os.PathLike, images: str | os.PathLike | None) -> str:
    return os.path.dirname(os.path.abspath(pairs)) if images is None else os.fspath(images)


def home_of(run: str | os.PathLike) -> epath.Path:
    """Returns the folder that holds the evaluations of a run: the run itself.

    For a model file, which is not a folder, it is a folder in the current one with the name of the file.
    """
    if model_file.is_named(run) and not builtin.is_name(run):
        return epath.Path(epath.Path(run).stem)
    return epath.Path(run)


def _require_home(run: str | os.PathLike) -> None:
    """Checks that the evaluations of a model file can be written into the current folder."""
    home = home_of(run)
    words = f"evaluations of {run} are written into {os.path.abspath(home)}, which"
    if {*layout.contents(home)} - {"evaluation"}:
        raise InputError(f"{words} holds other files: start the command in another folder")
    layout.require_writable(home, words)


def check(
    interval: float,
    threshold: float | None,
    challenge: float | None,
    costs: Sequence[float] | None,
    batch_size: int | None,
    calibrate: bool | Calibration = False,
) -> None:
    """Checks numbers of `evaluate` without loading anything.

    Raises:
      InputError: One of them cannot be used.
    """
    require_numbers(interval=interval, threshold=threshold, challenge=challenge)
    _check_batch_size(batch_size)
    if not 0 < interval < 1:
        raise InputError(f"interval is {interval}: it must lie between 0 and 1")
    if calibrate not in (False, None, True, *get_args(Calibration)):
        raise InputError(f"calibrate is {calibrate!r}: it must be {' or '.join(get_args(Calibration))}")
    if calibrate == "conformal":
        from lae_jax.runs import conformal

        if conformal.percent_of(interval) > conformal.PERCENTS[-1]:
            raise InputError(
                f"interval is {interval}: it must be at most {conformal.HIGHEST} with --calibrate conformal"
            )
    if threshold is not None and not 0 < threshold <= 100:
        raise InputError(f"threshold is {threshold}: it must be an age above 0 and at most 100")
    if challenge is not None and threshold is None:
        raise InputError(f"challenge is {challenge}, but there is no threshold: add --threshold AGE")
    if challenge is not None and not threshold <= challenge <= 100:
        raise InputError(f"challenge is {challenge}: it must be an age from the threshold, {threshold:g}, to 100")
    if costs is not None and challenge is None:
        raise InputError("costs are of the policies of an age check: add --challenge AGE")
    require_numbers(**{f"costs[{place}]": cost for place, cost in enumerate(costs or ())})
    if costs is not None and not (len(costs) == 3 and all(0 <= cost < math.inf for cost in costs)):
        raise InputError(f"costs are {', '.join(map(str, costs))}: they must be three numbers that are 0 or more")


def _check_batch_size(batch_size: int | None) -> None:
    require_whole_numbers(batch_size=batch_size)
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch_size is {batch_size}: it must be at least 1")


def check_inputs(
    run: str | os.PathLike,
    data: str | os.PathLike | None,
    split: str | None,
    step: int | None,
    calibrate: bool | Calibration,
) -> tuple[str, str]:
    """Checks what `evaluate` reads and where it writes, without loading anything.

    Returns:
      The data set and the name of the split to score.

    Raises:
      InputError: There is no such run, data set, split or step, or the run cannot be written.
    """
    require_whole_numbers(step=step)
    if model_file.is_named(run):
        model_file.read_header(run)
        _require_home(run)
        if calibrate:
            raise InputError(
                f"--calibrate writes into a run, and {run} is a model file: calibrate its run and export it"
            )
    else:
        layout.require_run(run)
        layout.require_writable(run, f"--run {run}")
    preflight.require_step(run, step)
    if data is not None:
        layout.require_dataset(data)
    place = preflight.require_data_of(run) if data is None else os.fspath(data)
    own = preflight.validation_split(run)
    split = split or own
    if not split:
        raise InputError(f"{run} was trained without a validation split: name one with --split")
    if calibrate and split != own:
        raise InputError("--calibrate fits on the validation split of the run's own data set: omit --data and --split")
    preflight.require_split(place, split)
    return place, split
