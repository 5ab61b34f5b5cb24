"""The long-tail bench: compares methods for a long tail that change only the head, on cached features."""

import os
import time
from collections.abc import Sequence

from etils import epath

from lae_jax.runs import preflight
from lae_jax.runtime import files, layout
from lae_jax.runtime.errors import InputError, require_numbers, require_whole_numbers, saving
from lae_jax.runtime.typed import declared

# Peak learning rates at batch 256 that are tried for every method; validation chooses.
BASE_LEARNING_RATES = (0.001, 0.01, 0.1)
TABLES = ("table.csv", "table.md", "table.tex", "trials.csv", "head_tail.png", "report.json")
_RATES = ("name", "schedule")  # fields of `optim` that a learning rate is for
RECOMMENDED = ("table.csv", "table.md", "table.tex", "recommendation.json")


def compare(
    runs: Sequence[str | os.PathLike],
    data: str | os.PathLike,
    out: str | os.PathLike,
    *,
    methods: Sequence[str] = (),
    like: Sequence[str | os.PathLike] = (),
    test: str = "test",
    passes: int = 4,
    seeds: int = 5,
    epochs: float | None = None,
    batch_size: int | None = None,
    base_learning_rates: Sequence[float] = (),
    by_fold: bool = False,
    allow_leak: bool = False,
) -> dict:
    """Trains a head with every method on the features of one or more runs, and scores all heads.

    Writes `out`: features/, heads/, predictions.npz, table.csv, table.md, table.tex, trials.csv, head_tail.png,
    report.json.

    Args:
      runs: Runs of stage represent.
      data: Folder of the prepared data set that they were trained on.
      out: Folder to write; its features and heads are reused while what they were made from is the same.
      methods: Names of methods (default: all of `lae_jax.stages.methods.METHODS` that can take the labels).
      like: Runs of stage classify, which give batch size, epochs and optimiser of the heads and are scored too.
      test: Split that is only reported on, not used to choose; '': none, the results are those on validation.
      passes: Passes over the augmented training images; 0: plain images.
      seeds: Number of seeds of the sample order, dropout and new heads.
      epochs: Epochs of the heads (default: those of `like`, else 8).
      batch_size: Batch size of the heads (default: that of `like`, else the run's).
      base_learning_rates: Peaks at batch 256, of which validation chooses one for each method (default:
        `BASE_LEARNING_RATES`, and that of `like`).
      by_fold: There is one run for each fold of the data set.
      allow_leak: Continue although splits share images or people; the report states the leak.

    Returns:
      The content of report.json.

    Raises:
      InputError: An argument, a run or the data set cannot be used.
      SaveFailed: `out` could not be written. Features and heads that are finished are kept.
    """
    runs, like, methods = layout.names(runs), layout.names(like), layout.names(methods)
    if isinstance(base_learning_rates, (int, float)):
        base_learning_rates = [base_learning_rates]
    check(runs, data, like, seeds, passes, base_learning_rates)
    if files.is_remote(out):
        raise InputError(
            f"--out {out}: the features are a file that is mapped: name a folder on a local disk or a mount"
        )
    require_place(out)
    # Imported here, so that a program shows its flags without loading these; TensorFlow comes after the names.
    from lae_jax.stages import methods as known

    for name in methods:
        known.get(name)
    from lae_jax.longtail import extraction, kept_predictions, setup, summaries, trials
    from lae_jax.runs import inputs, leaks
    from lae_jax.runtime import checkpoints

    out, data = epath.Path(out), os.fspath(data)
    started = time.perf_counter()
    extractors = [extraction.open_run(run, data, out / "features") for run in dict.fromkeys(runs)]
    setup.check_folds(extractors, by_fold)
    training = [inputs.split_name(one.config, one.config.data.train) for one in extractors]
    chosen = setup.methods_for(extractors[0].dataset, training, methods)
    changed = {"epochs": epochs, "batch_size": batch_size}
    changed = {name: value for name, value in changed.items() if value is not None}
    prepared = []
    for extractor in extractors:
        config = setup.recipe(extractor, like, changed)
        with saving(out):
            prepared.append(setup.prepare(extractor, config, passes, test, allow_leak))
    config = prepared[0].bench.config
    of_like = [config.optim.base_learning_rate] if like else []
    rates = sorted({*(base_learning_rates or (*BASE_LEARNING_RATES, *of_like))})
    with_features = time.perf_counter()
    with saving(out):
        all_trials = trials.run(prepared, chosen, range(seeds), rates)
    if reference := trials.stage3(prepared, like):
        all_trials.append(reference)
    done = time.perf_counter()
    report = {
        **_described(extractors),
        "test": test,
        "passes": passes,
        "seeds": seeds,
        "epochs": config.epochs,
        "batch_size": config.batch_size,
        "base_learning_rates": rates,
        "optim": config.optim.to_dict(),
        "seconds": {"features": round(with_features - started, 1), "heads": round(done - with_features, 1)},
        **leaks.of_evaluations(
            [one.checkpoint.meta for one in extractors] + [checkpoints.load_run(run).meta for run in like],
            extractors[0].dataset,
            test or prepared[0].validation,
        ),
    }
    head, tail = summaries.head_and_tail(prepared[0].bench.ages)
    report["head_groups"], report["tail_groups"] = head.tolist(), tail.tolist()
    with saving(out), files.together(out, "report.json") as place:
        kept_predictions.write(place, all_trials)
        return _write(place, all_trials, report)


def again(out: str | os.PathLike) -> dict:
    """Makes the tables, the picture and the sentences of a bench again, from the predictions that it keeps.

    Args:
      out: Folder that `compare` wrote.

    Returns:
      The content of report.json.

    Raises:
      InputError: The folder holds no bench, or a damaged one.
      SaveFailed: `out` could not be written.
    """
    out, report = epath.Path(out), _read_report(out)
    from lae_jax.longtail import kept_predictions

    all_trials = kept_predictions.read(out)
    with saving(out), files.together(out, "report.json") as place:
        return _write(place, all_trials, report)


def recommend(benches: Sequence[str | os.PathLike], out: str | os.PathLike) -> dict:
    """Chooses one method, setting and learning rate for several data sets, from the predictions of their benches.

    Only predictions on validation have a part in it, and all age groups and data sets count alike. Writes `out`:
    table.csv, table.md, table.tex, recommendation.json.

    Args:
      benches: Folders that `compare` wrote, one for each data set.
      out: Folder to write.

    Returns:
      The content of recommendation.json.

    Raises:
      InputError: A folder holds no bench, or the benches have no LAE in common.
      SaveFailed: `out` could not be written.
    """
    benches = layout.names(benches)
    if not benches:
        raise InputError("name at least one bench")
    reports = [_read_report(bench) for bench in benches]
    layout.require_place_for_results(out, RECOMMENDED, set(RECOMMENDED))
    heads = _require_alike(benches, reports)
    from lae_jax.longtail import choices, kept_predictions, recommendation
    from lae_jax.report import tables

    found = choices.compare(
        [
            choices.Bench.of(report["data"], kept_predictions.read(epath.Path(bench)))
            for bench, report in zip(benches, reports, strict=True)
        ]
    )
    content = {
        "benches": benches,
        "data": [one.data for one in found.benches],
        "choice": found.choice._asdict(),
        "reference": found.reference._asdict(),
        "sentences": recommendation.sentences(found, heads),
    }
    table, out = recommendation.table(found), epath.Path(out)
    with saving(out), files.together(out, RECOMMENDED[-1]) as place:
        files.write_text(place / "table.csv", recommendation.csv_of(found))
        files.write_text(place / "table.md", tables.markdown(table))
        files.write_text(place / "table.tex", tables.latex(table))
        files.write_json(place / RECOMMENDED[-1], content)
    return content


def _require_alike(benches: Sequence[str], reports: Sequence[dict]) -> dict:
    """Checks that benches are of different data and that their heads were trained alike.

    Returns:
      Fields of the heads that differ from configs/classify.py, by their names in a config.
    """
    from lae_jax.configs import classify

    for bench, report in zip(benches, reports, strict=True):
        if missing := [name for name in ("data_hash", "epochs", "optim") if report.get(name) is None]:
            raise InputError(f"{bench}/report.json has no {missing[0]}: run the bench with --run and --data again")
    for number, report in enumerate(reports):
        for other, before in zip(benches[:number], reports, strict=False):
            if before["data"] == report["data"] or before["data_hash"] == report["data_hash"]:
                raise InputError(
                    f"--over {other} and {benches[number]} are benches of one data set ({report['data']}), which would"
                    " count twice: omit one of them"
                )
    before_it_had_a_name = {"name": "sgd"}
    heads = [
        {"epochs": one["epochs"], **{f"optim.{n}": (before_it_had_a_name | one["optim"])[n] for n in _RATES}}
        for one in reports
    ]
    for bench, of in zip(benches, heads, strict=True):
        if differing := [name for name in of if of[name] != heads[0][name]]:
            told = ", ".join(f"{name} {heads[0][name]} and {of[name]}" for name in differing)
            raise InputError(
                f"--over {benches[0]} and {bench}: their heads were trained differently ({told}), so their learning"
                " rates cannot be compared: run the benches again with the same --epochs, and with runs that have the"
                " same optimiser and schedule"
            )
    config = classify.get_config()
    known = {"epochs": config.epochs, **{f"optim.{name}": config.optim[name] for name in _RATES}}
    return {name: value for name, value in heads[0].items() if value != known[name]}


def _read_report(bench: str | os.PathLike) -> dict:
    """Returns the report.json of a bench that has ended."""
    path = epath.Path(bench) / "report.json"
    if not path.exists():
        raise InputError(f"{bench} holds no report.json of lae_jax.longtail: name the --out of a bench that has ended")
    return files.read_json(path, declared.BENCH, "run lae_jax.longtail with --run and --data again")


def require_place(out: str | os.PathLike) -> None:
    """Checks that the results can be written into a folder, without loading anything.

    Raises:
      InputError: It holds other files, or cannot be written.
    """
    own = {"features", "heads", "predictions.npz", *TABLES}
    layout.require_place_for_results(out, own, {"trials.csv", "report.json"})


def check(
    runs: Sequence[str],
    data: str | os.PathLike,
    like: Sequence[str],
    seeds: int,
    passes: int,
    base_learning_rates: Sequence[float],
) -> None:
    """Checks arguments of `compare` without loading anything.

    Raises:
      InputError: One of them cannot be used.
    """
    if not runs:
        raise InputError("name at least one run")
    require_whole_numbers(seeds=seeds, passes=passes)
    for rate in base_learning_rates:
        require_numbers(base_learning_rates=rate)
    if seeds < 1:
        raise InputError(f"seeds is {seeds}: it must be at least 1")
    if passes < 0:
        raise InputError(f"passes is {passes}: it must be at least 0")
    if any(not rate > 0 for rate in base_learning_rates):
        raise InputError(f"base_learning_rates must be above 0, not {list(base_learning_rates)}")
    layout.require_dataset(data)
    for run in runs:
        layout.require_run(run, "python -m lae_jax.main --config configs/represent.py")
        preflight.require_stage(run, "represent", "--run")
    for run in like:
        layout.require_run(run)
        preflight.require_stage(run, "classify", "--like")


def _described(extractors: Sequence) -> dict:
    """What report.json says of the runs (`extraction.Extractor`) and their data set."""
    dataset = extractors[0].dataset
    return {
        "runs": [str(extractor.checkpoint.workdir) for extractor in extractors],
        "steps": [extractor.checkpoint.step for extractor in extractors],
        "checkpoints": [extractor.digest for extractor in extractors],
        "data": str(dataset.path),
        "data_hash": dataset.hash,
        "protocol": dataset.manifest["protocol"],
    }


def _write(out: epath.Path, all_trials: list, report: dict) -> dict:
    """Writes all but the predictions into a folder, and returns the content of report.json."""
    from lae_jax.longtail import summaries
    from lae_jax.report import overviews

    words, told_on = all_trials[0].words, all_trials[0].told_on
    best, found = summaries.best_of_each(all_trials), summaries.compared(all_trials)
    files.write_text(out / "table.csv", summaries.csv_of(best, found))
    files.write_text(out / "trials.csv", summaries.csv_of(all_trials))
    files.write_text(out / "table.md", summaries.markdown(best, found))
    files.write_text(out / "table.tex", summaries.latex(best, found))
    head, tail = report["head_groups"], report["tail_groups"]
    points: dict[str, list] = {}
    for one in all_trials:
        point = summaries.curve_point(one, told_on, head, tail)
        points.setdefault(one.method.name, []).append(point)
    title = f"{', '.join(report['runs'])} on {report['test'] or told_on}"
    overviews.head_tail(out / "head_tail.png", points, (head, tail), title, words.title)
    report = {**report, "error": words.error, "sentences": summaries.sentences(all_trials, found)}
    if found:
        report["joint"] = summaries.over_all(next(iter(found)), found)
    files.write_json(out / "report.json", report)
    return report
