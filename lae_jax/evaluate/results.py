"""The folder of an evaluation: scores, predictions, model card and page."""

import dataclasses
import io
import logging
from typing import NamedTuple

import numpy as np
from etils import epath
from PIL import Image

from lae_jax import metrics
from lae_jax.data import people, pipeline, rejected
from lae_jax.data.sources.interface import read_inside
from lae_jax.evaluate import contents as showing
from lae_jax.evaluate import measure
from lae_jax.evaluate.contents import Contents
from lae_jax.faces import images
from lae_jax.report import bootstrap, charts, evaluation_page, loading, page, pictures, scores
from lae_jax.runs import agreement, calibration, conformal, distributions, fields, inference, inputs, lineage
from lae_jax.runtime import checkpoints, files, layout, parallel, watch
from lae_jax.runtime.errors import InputError
from lae_jax.runtime.foreign import spreadsheets
from lae_jax.runtime.typed import declared

logger = logging.getLogger("lae_jax")

_SIDE = 240  # longest side of a photograph on a page, pixels


def write(done: measure.Evaluated, folder: epath.Path, contents: Contents, *, flip: bool = False) -> dict:
    """Writes the evaluation's folder and returns the content of report.json.

    The folder gets report.json and report.html; for ages also predictions.csv, model_card.md, and report/ with the
    pictures and their numbers. If it is the evaluation of the run's kept checkpoint on its own validation split, the
    page becomes RUN/report.html as well.

    No file of an earlier evaluation is replaced before all are written.

    Raises:
      InputError: The baseline was not evaluated on these images.
    """
    above = done.checkpoint.workdir if done.checkpoint.file is None else None
    with files.together(folder, loading.REPORT, above) as place:
        report = _write(done, place, contents, flip)
        shown = {path.stem for path in (place / "report").iterdir()}
    page.remove_files(folder, but=shown)
    if done.checkpoint.file is None:
        _publish(done, folder)
    return report


def _write(done: measure.Evaluated, folder: epath.Path, contents: Contents, flip: bool) -> dict:
    checkpoint, dataset = done.checkpoint, done.dataset
    report = {
        **done.scores(),
        "run": str(checkpoint.workdir),
        "step": checkpoint.step,
        "stage": done.stage.name,
        "model": checkpoint.meta["model"],
        "data": str(dataset.path),
        "data_hash": dataset.hash,
        "same_data_as_training": done.same_data,
        "split": done.split,
        "flip": flip,
        "protocol": dataset.manifest["protocol"],
        "crop": dataset.crop,
        "other_crop_than_training": not done.same_crop,
        "unknown_crops": bool(agreement.unknown_crops(checkpoint, dataset)),
        **done.leaks,
    }
    if done.probabilities is None:
        files.write_json(folder / loading.REPORT, report)
        page.write(folder / loading.PAGE, evaluation_page.of_run(checkpoint.workdir, report))
        return report
    baseline = showing.of_baseline(contents.baseline, dataset, done.split, flip)
    temperature = calibration.temperature_of(checkpoint)
    report["interval"] = measure.sureness(done, contents.interval, temperature)
    sure = _conformal(done, contents.interval, flip)
    report["conformal"] = sure and sure.described
    report["threshold"] = contents.threshold
    report["unprocessed"] = None if contents.challenge is None else _not_processed(done)
    report[showing.FIELD] = showing.as_json(contents)
    report["training"] = _training(done)
    files.write_text(folder / loading.PREDICTIONS, _predictions(done, contents, temperature, sure))
    files.write_json(folder / loading.REPORT, report)
    sample = loading.read(folder).sample
    scored = scores.score(sample)
    report |= _with_intervals(sample, scored) | {"constant": _constant(sample, scored)}
    if sample.ranges is not None:
        report["ranges"] = _by_range(sample)
    files.write_json(folder / loading.REPORT, report)
    files.write_text(folder / loading.CARD, lineage.card_of(checkpoint, [report], flip))
    faces = _faces(done, temperature) if contents.faces else []
    page.write(folder / loading.PAGE, evaluation_page.of_evaluation(folder, baseline, faces))
    return report


def _publish(done: measure.Evaluated, folder: epath.Path) -> None:
    """Copies the page to RUN/report.html, if its folder is that of the kept checkpoint on the validation split."""
    run = done.checkpoint.workdir
    if _is_validation(done) and folder == showing.place(run, done.dataset.path, done.split):
        files.write_text(run / loading.PAGE, files.read_text(folder / loading.PAGE))


class _Conformal(NamedTuple):
    """Conformal intervals, (N, 2) years, and what report.json says about them."""

    bounds: np.ndarray
    described: dict


def _conformal(done: measure.Evaluated, level: float, flip: bool) -> _Conformal | None:
    """The conformal intervals of the images; None if the run has none of this level."""
    fitted = conformal.of_level(calibration.conformal_of(done.checkpoint, flip), level)
    if fitted is None:
        return None
    probabilities = distributions.tempered(done.probabilities, calibration.temperature_of(done.checkpoint))
    bounds, percent = fitted.intervals(done.outputs, probabilities, level), conformal.percent_of(level)
    exact, ages = done.ranges[:, 0] == done.ranges[:, 1], conformal.known(done.ranges[:, 0])
    inside = (bounds[:, 0] <= ages) & (ages <= bounds[:, 1])
    described = {
        "level": percent / 100,
        "coverage": float(inside[exact].mean()) if exact.any() else None,
        "mean_width": float(np.diff(bounds).mean()),
        "borrowing": fitted.borrowing(level),
        "needed": conformal.needed(percent),
        "fewest": fitted.fewest(level),
        "on_these": _were_fitted_to(done, done.rows[exact]),
    }
    return _Conformal(bounds, described)


def _were_fitted_to(done: measure.Evaluated, rows: np.ndarray) -> bool:
    """Whether the conformal intervals were fitted to some of the rows: those of the run's own validation split."""
    split = _own_validation(done)
    return split is not None and bool(np.intersect1d(done.dataset.rows(split), rows).size)


def _is_validation(done: measure.Evaluated) -> bool:
    """Whether the split is the run's own validation split."""
    return _own_validation(done) == done.split


def _own_validation(done: measure.Evaluated) -> str | None:
    """The run's validation split; None if it has none, or if this is another data set."""
    config = fields.from_json(done.checkpoint.meta["config"])
    return inputs.split_name(config, config.data.split) if config.data.split and done.same_data else None


def of_run(workdir: epath.Path, signals: watch.Signals | None = None) -> None:
    """Writes RUN/report.html, the report of a finished run's kept checkpoint on its validation split.

    The report of an evaluation of this checkpoint that exists already is not replaced.

    Args:
      workdir: The run.
      signals: Signals that ask it to stop; None: nothing stops it.

    Raises:
      Interrupted: A signal came before the report was written.
    """
    path = workdir / loading.PAGE
    # All hosts must take the same branch.
    if parallel.from_first_host(path.exists() and _is_current(workdir)):
        return
    checkpoint = checkpoints.load_run(workdir)
    if not checkpoint.meta["config"]["data"]["split"]:
        if parallel.is_first_host():
            page.write(path, evaluation_page.of_run(workdir))
        return
    beat = inference.until_asked(parallel.Parallel().map_any(), signals or watch.Signals())
    done = measure.predict(checkpoint, beat=beat)
    if parallel.is_first_host():
        folder = showing.place(workdir, done.dataset.path, done.split)
        write(done, folder, showing.checked(Contents(), folder, done.dataset.path, done.split, False))
        logger.info("report: %s", path)


def _is_current(workdir: epath.Path) -> bool:
    """Whether the newest evaluation of the validation split is of the kept checkpoint; True without such a split."""
    config = fields.from_json(files.read_json(workdir / "config.json", declared.config))
    kept = loading.read_run(workdir).summary
    if not config.data.split:
        return True
    folder = showing.place(workdir, config.data.path, inputs.split_name(config, config.data.split))
    return (folder / loading.REPORT).exists() and loading.read_report(folder).get("step") == kept["step"]


def _not_processed(done: measure.Evaluated) -> dict | None:
    """The rejected photographs of the split, with their ages; None if the data set does not tell them.

    Where the splits were made here, after some photographs had been rejected, these belong to no split: each counts as
    much as the split is of the data set.
    """
    dataset, split = done.dataset, done.split
    own = split == "all" or dataset.manifest["protocol"] == "column"
    found = rejected.not_processed(dataset.path / rejected.FILE, split if own and split != "all" else None)
    if found is None:
        return None
    labels = [[low, high, count] for (low, high), count in found.labels.items()]
    share = 1.0 if own else len(dataset.rows(split)) / len(dataset)
    return {"labels": labels, "of_unknown_age": found.of_unknown_age, "share": share}


def _training(done: measure.Evaluated) -> dict | None:
    """Training images of each whole age; None if the run was trained on another data set.

    An image whose age is a range counts at all ages of the range, as `metrics.range_weights` says.
    """
    if not done.same_data:
        return None
    config = fields.from_json(done.checkpoint.meta["config"])
    split = inputs.split_name(config, config.data.train)
    ages = done.dataset.targets("age", done.dataset.rows(split))
    if ages.ndim == 2:
        count = metrics.images_by_age(ages[~np.isnan(ages).any(axis=1)])
    else:
        count = np.bincount(metrics.age_class(ages[~np.isnan(ages)]))
    return {"split": split, "count": count.tolist()}


def _constant(sample: scores.Sample, scored: scores.Scored) -> dict | None:
    """The best answer that ignores the image, its error, and the interval of the model's error minus that.

    None if all ages are equal. The sum of the distances to ranges is smallest at the median of all their ends, because
    twice the distance to a range is the sum of the distances to its ends minus its width.
    """
    labels = sample.ages if sample.ranges is None else sample.ranges
    if (labels == labels[0]).all():
        return None
    median, error = float(np.median(labels)), "mae" if sample.ranges is None else "distance"
    constant = scores.score(dataclasses.replace(sample, predictions=np.full(len(sample.ages), median)))
    (shown,) = (score for score in (*scores.MAIN, *scores.OF_RANGES) if score.name == error)
    difference = scored.difference(constant, shown)
    interval = [difference.low, difference.high] if np.isfinite(difference.low) else None
    return {"age": median, error: constant.values[error], "difference": interval}


def _by_range(sample: scores.Sample) -> list[dict]:
    """Images, share in range, distance and bias of each range."""
    found = []
    for name, mask in sample.by_range().items():
        differences = sample.differences[mask]
        errors = np.abs(differences)
        of_range = {"in_range": (errors == 0).mean(), "distance": errors.mean(), "bias": differences.mean()}
        found.append({"range": name, "n": int(mask.sum()), **{key: float(value) for key, value in of_range.items()}})
    return found


def _predictions(done: measure.Evaluated, contents: Contents, temperature: float, sure: "_Conformal | None") -> str:
    """The text of predictions.csv, one line per image."""
    dataset, rows = done.dataset, done.rows
    probabilities = distributions.tempered(done.probabilities, temperature)
    low, high = distributions.intervals(probabilities, contents.interval).T
    person = people.codes(dataset.column("identity")[rows])[0]
    first, last = done.ranges.T
    below, up_to = distributions.ends(probabilities, done.ranges)
    columns = {
        "name": dataset.column("name")[rows],
        "age": np.where(first == last, first, np.nan),
        **(dict(zip(loading.RANGE, (first, last), strict=True)) if done.has_ranges else {}),
        "prediction": np.asarray(done.outputs, np.float64),
        "lower": low,
        "upper": high,
        "below": below,
        **({"up_to": up_to} if done.has_ranges else {}),
        **(dict(zip(loading.CONFORMAL, sure.bounds.T, strict=True)) if sure else {}),
        "person": ["" if number < 0 else str(number) for number in person],
    }
    if dataset.has_column("cut_by") and (no_face := dataset.column("cut_by")[rows] == "centre").any():
        columns[loading.NO_FACE] = no_face.astype(np.int64)
    if contents.threshold is not None:
        columns[f"p_at_least_{contents.threshold:g}"] = distributions.at_least(probabilities, contents.threshold)
    if contents.spread:
        columns |= dict(zip(loading.GUESSES, _guesses(done, contents.spread).T, strict=True))
    for column in contents.slices:
        columns[loading.SLICE + column] = ["" if v is None else str(v) for v in dataset.column(column)[rows]]
    # Numbers have all their digits, so that the file gives the same scores.
    text = io.StringIO(newline="")
    writer = spreadsheets.Writer(text)
    writer.writerow(columns)
    writer.writerows(zip(*map(_plain, columns.values()), strict=True))
    return text.getvalue()


def _plain(values) -> list:
    if not isinstance(values, np.ndarray):
        return values
    return [None if isinstance(value, float) and value != value else value for value in values.tolist()]


def _guesses(done: measure.Evaluated, spread: str) -> np.ndarray:
    """Mean and standard deviation of people's guesses for each image: (N, 2), NaN where one is missing."""
    *mean, std = spread.split(",")
    means = _numbers(done, mean[0]) if mean else np.asarray(done.targets, np.float64)  # then no age is a range
    result = np.stack([means, _numbers(done, std)], axis=1)
    result[~np.isfinite(result).all(axis=1)] = np.nan
    if np.isnan(result).all():
        raise InputError(f"--spread {spread}: no image of split {done.split} has numbers in these columns")
    if (result[:, 1] < 0).any():
        raise InputError(f"--spread {spread}: a standard deviation is below 0")
    return result


def _numbers(done: measure.Evaluated, column: str) -> np.ndarray:
    values = done.dataset.column(column)[done.rows]
    try:
        return np.array([float(value) if value not in (None, "") else np.nan for value in values])
    except ValueError as error:
        raise InputError(f"--spread: column {column} of {done.dataset.path} does not hold numbers ({error})") from error


def _with_intervals(sample: scores.Sample, scored: scores.Scored) -> dict:
    """Further scores, and the intervals of all scores, for report.json."""
    shown = (*scores.MAIN, *scores.MORE, *scores.OF_RANGES)
    estimates = {score.name: scored.estimate(score) for score in shown}
    further = {score.name: estimates[score.name] for score in scores.MORE if score.name not in ("mmae", "bias")}
    intervals = {name: [e.low, e.high] for name, e in estimates.items() if np.isfinite(e.low)}
    return {
        **{name: estimate.value for name, estimate in further.items() if estimate.is_known},
        "intervals": intervals,
        "bootstrap": {"units": sample.unit, "replicates": bootstrap.REPLICATES, "level": bootstrap.LEVEL},
    }


def _faces(done: measure.Evaluated, temperature: float) -> list[page.Face]:
    """The faces with the smallest, the median and the largest error of each age group."""
    groups = metrics.extended_group(metrics.label_age(done.ranges))
    errors = np.abs(metrics.range_differences(done.ranges, done.outputs))
    titles, chosen = [], []
    for number, group in enumerate(metrics.ALL_GROUPS):
        order = np.flatnonzero(groups == number)
        order = order[np.argsort(errors[order], kind="stable")]
        if len(order):
            titles += [f"{group}: {kind}" for kind in ("best", "typical", "worst")]
            chosen += [order[0], order[(len(order) - 1) // 2], order[-1]]
    crops = _crops(done, done.rows[chosen])
    probabilities = distributions.tempered(done.probabilities[chosen], temperature)
    with pictures.style():
        return [_face(done, *parts) for parts in zip(titles, chosen, crops, probabilities, strict=True)]


def _face(done: measure.Evaluated, title: str, place: int, crop: bytes, probabilities: np.ndarray) -> page.Face:
    (low, high), predicted = done.ranges[place].tolist(), float(done.outputs[place])
    original = _photograph(done.dataset, done.rows[place])
    off = float(metrics.range_differences(np.array([[low, high]]), np.array([predicted]))[0])
    told = f"{low:g} year{'s' * (low != 1)}" if low == high else f"{metrics.label_text(low, high)} years"
    told += f", predicted {predicted:.1f} ({'in range' if low < high and not off else f'{off:+z.1f}'})"
    svg = charts.distribution(probabilities, (low, high), predicted)
    name = str(done.dataset.column("name")[done.rows[place]])
    return page.Face(title, name, [crop] if original is None else [original, crop], svg, told)


def _crops(done: measure.Evaluated, rows: np.ndarray) -> list[bytes]:
    """The aligned faces as the model sees them, in JPEG."""
    config = fields.from_json(done.checkpoint.meta["config"])
    places = pipeline.Places(len(rows), 0, len(rows))
    (batch,) = pipeline.eval_batches(
        done.dataset, rows, inputs.augmentation(config), places=places, threads=inputs.threads(config)
    )
    return [images.encode(Image.fromarray(image), 90) for image in batch["image"]]


def _photograph(dataset, row: int) -> bytes | None:
    """The source photograph, small, in JPEG; None if it cannot be read or was a crop already."""
    root = layout.read_recipe(dataset.path).get("images")
    if root is None or dataset.crop.get("align") == "none":
        return None
    name = str(dataset.column("name")[row]).partition("#")[0]
    try:
        image = images.load(read_inside(root, name))
    except images.BadImage as reason:
        logger.info("%s is not shown: %s", name, reason)
        return None
    image.thumbnail((_SIDE, _SIDE))
    return images.encode(image, 85)
