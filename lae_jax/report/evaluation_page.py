"""Pages of one evaluation, or of a run that has no evaluation of ages."""

from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath

from lae_jax import metrics
from lae_jax.report import age_checks, bootstrap, charts, coverage, loading, pictures, scores, wording
from lae_jax.report.charts import by_range
from lae_jax.report.loading import Evaluation, Run
from lae_jax.report.page import Face, Page, Section
from lae_jax.report.scores import MAIN, MORE, Scored
from lae_jax.report.tables import Estimate, Table
from lae_jax.runtime import files

_FACES = (
    "For each age group: the face with the smallest error, a typical face and the face with the largest error. Below"
    " each face is its predicted distribution, with a solid line at the true age and a dotted line at the prediction."
)
_NO_HISTOGRAM = (
    "The number of training images of each age is not shown, because the run was trained on another data set."
)
_CUTS = (0.5, 0.75, 0.9, 0.95, 0.99)
# The causes of a line of kind 'time' in metrics.jsonl.
_SPENT = {
    "goodput": "steps that counted (goodput)",
    "start": "starting and restoring",
    "compile": "compiling (the first step, the first batch of an evaluation)",
    "data": "waiting for data",
    "evaluation": "evaluation",
    "saving": "saving",
    "skipped": "skipped steps",
    "lost": "lost to restarts",
    "other": "other",
}
_SELDOM = ("skipped", "lost", "other")  # shown where there is something to tell


def of_evaluation(folder: epath.Path, baseline: Evaluation | None = None, faces: Sequence[Face] = ()) -> Page:
    """Returns the page of an evaluation of ages.

    Args:
      folder: Folder of the evaluation.
      baseline: Another evaluation of the same images, to compare with.
      faces: Three faces of each age group.
    """
    evaluation = loading.read(folder)
    run = loading.read_run(evaluation.run)
    others, missing = _others(evaluation, run, baseline)
    everyone = loading.sharing_guesses([evaluation, *others])
    labels, scored = names(everyone), [scores.score(one.sample) for one in everyone]
    verdict = [wording.summary(evaluation, scored[0])]
    verdict += [
        wording.comparison(scored[0], other, f"Against {label}")
        for label, other in zip(labels[1:], scored[1:], strict=True)
    ]
    told = wording.intervals([one.sample.unit for one in everyone], bootstrap.REPLICATES)
    with pictures.style():
        curves = _curves(run)
        sections = [
            Section("Scores", texts=[told, *missing], tables=_main_tables(evaluation, labels, scored)),
            Section(
                "Pictures",
                texts=[] if evaluation.report.get("training") else [_NO_HISTOGRAM],
                pictures=_there(
                    charts.histogram(evaluation),
                    charts.groups(everyone, labels, scored),
                    charts.density(evaluation),
                    by_range.ranges(evaluation),
                    charts.bias(evaluation, scored[0]),
                    charts.cumulative(everyone, labels),
                    charts.coverage(everyone, labels),
                ),
            ),
            Section("Further scores", tables=[_more_table(labels, scored)]),
            coverage.section(evaluation),
            _decision(everyone, labels),
            *age_checks.sections(evaluation),
            _ranges(evaluation),
            _slices(evaluation),
            curves,
            _cost(run),
        ]
    sections.append(Section("Faces", texts=[_FACES] * bool(faces), faces=faces))
    sections.append(
        Section("What the scores mean", items=wording.meanings(any(one.sample.ranges is not None for one in everyone)))
    )
    sections += [_audit(evaluation.report), _provenance(evaluation.report, run), _card(folder)]
    title = f"{evaluation.label} on {evaluation.report['split']} of {evaluation.report['data']}"
    return Page(title, verdict, sections, wording.warnings(evaluation.report))


def of_run(folder: epath.Path, report: Mapping | None = None) -> Page:
    """Returns the page of a run that has no ages to show: a run of stage 1, or without a validation split.

    Args:
      folder: Folder of the run.
      report: Report of its evaluation of identities, if there is one.
    """
    run, report = loading.read_run(folder), report or {}
    found = {**(run.summary.get("scores") or {}), **report}
    rows = wording.of_identities(found)
    stage, step = run.summary.get("stage", run.config.get("stage")), run.summary.get("step")
    verdict = f"{run.folder.name} is a run of stage {stage}; the checkpoint of step {step} was kept."
    if (rate := found.get("equal_error_rate")) is not None:
        pairs = f" on {found['pairs']:,.0f} pairs" if found.get("pairs") else ""
        verdict += f" It distinguishes people with an equal error rate of {100 * rate:.1f} %{pairs} (no interval)."
    if not run.summary.get("scores"):
        verdict += " It has no scores: it was trained without a validation split."
    with pictures.style():
        curves = _curves(run)
    scores_of = Section("Scores", tables=[Table(("score", "value"), rows)] if rows else [])
    sections = [scores_of, curves, _cost(run), _audit(report), _provenance(report, run)]
    return Page(f"{run.folder.name}, stage {stage}", [verdict], sections, wording.warnings(report))


def of_pairs(folder: epath.Path, report: Mapping) -> Page:
    """Returns the page of an evaluation of stage 1 on a list of pairs.

    Args:
      folder: Folder of the run.
      report: Content of its report.json.
    """
    run, found = loading.read_run(folder), wording.of_pairs(report)
    name = epath.Path(report["data"]).name
    verdict = (
        f"{run.folder.name} is right on {found[0][1].text} of the {report['pairs']:,} pairs of {name};"
        f" {report['genuine_pairs']:,} of them show one person"
    )
    scores_of = Section("Scores", items=wording.about_pairs(report), tables=[Table(("score", "value"), found)])
    sections = [scores_of, _provenance(report, run)]
    return Page(f"{run.folder.name}, stage 1, on {name}", [verdict], sections, wording.warnings(report))


def names(evaluations: Sequence[Evaluation]) -> list[str]:
    """Returns a label for each run: as many parts of its folder as make the labels differ.

    For several evaluations of one run, the evaluation's folder counts too. Labels of equal folders are numbered.
    """
    parts = [one.run.parts for one in evaluations]
    if len(set(parts)) < len(parts) == len({one.folder for one in evaluations}):
        parts = [(*part, one.folder.name) for part, one in zip(parts, evaluations, strict=True)]
    for count in range(1, 9):
        found = ["/".join(part[-count:]) for part in parts]
        if len(set(found)) == len(found):
            return found
    return [f"{number}: {one.label}" for number, one in enumerate(evaluations, 1)]


def _others(evaluation: Evaluation, run: Run, baseline: Evaluation | None) -> tuple[list[Evaluation], list[str]]:
    """The evaluations to compare with (of the run that this one started from, the baseline), and what is missing."""
    others, missing, start = [], [], loading.started_from(run)
    if start is not None and (beside := loading.matching(start, evaluation.report)) is not None:
        others.append(beside)
    elif start is not None and loading.read_run(start).config.get("stage") != "pretrain":
        how = loading.command(start, evaluation.report)
        missing.append(
            f"The run started from {start}, which was not evaluated on this split: to show it here, evaluate it with"
            f" {how} and then this run again."
        )
    if baseline is not None and baseline.run not in [one.run for one in [evaluation, *others]]:
        others.append(baseline)
    for other in others:
        loading.same_images(evaluation, other)
    return others, missing


def _there(*found) -> list:
    return [one for one in found if one is not None]


def _main_tables(evaluation: Evaluation, labels: Sequence[str], scored: Sequence[Scored]) -> list[Table]:
    """The scores of ranges, where ages are ranges, and those of exact ages, where ages are exact."""
    sample, found = evaluation.sample, []
    shown = scores.main_scores(sample)
    own = [score for score in shown if score in scores.OF_RANGES]
    if own:
        caption = "Scores of all images; for age groups the distance (and the number of images)"
        found.append(_main_table(own, "distance", sample, labels, scored, caption))
    if rest := [score for score in shown if score not in own]:
        of = f"Scores of the {sample.is_exact.sum()} images with an exact age" if own else "Scores"
        caption = f"{of}; for age groups the MAE (and the number of images)"
        found.append(_main_table(rest, "mae", sample.exact, labels, scored, caption))
    return found


def _main_table(
    shown: Sequence[scores.Score],
    error: str,
    sample: scores.Sample,
    labels: Sequence[str],
    scored: Sequence[Scored],
    caption: str,
) -> Table:
    count = scores.group_count(sample.ages)
    images = {f"{error}_{group}": f" ({n})" for group, n in zip(metrics.ALL_GROUPS, count, strict=True)}
    header = ["score", labels[0]]
    for label in labels[1:]:
        header += [label, f"difference to {label}", "verdict"]
    rows = []
    for score in shown:
        title = f"{score.title}{images[score.name]}" if score.name in images else score.title
        row: list[str | Estimate] = [title, scored[0].estimate(score)]
        for other in scored[1:]:
            difference = scored[0].difference(other, score)
            word = scores.verdict(difference, score) if difference.is_known else ""
            row += [other.estimate(score), difference, word]
        rows.append(row)
    return Table(header, rows, caption)


def _more_table(labels: Sequence[str], scored: Sequence[Scored]) -> Table:
    rows = [(score.title, *(one.estimate(score) for one in scored)) for score in MORE]
    return Table(("score", *labels), [row for row in rows if any(cell.is_known for cell in row[1:])], "In years")


def _decision(evaluations: Sequence[Evaluation], labels: Sequence[str]) -> Section:
    """P(age >= threshold) as a decision at several cuts."""
    rows, without, threshold = [], [], evaluations[0].report.get("threshold")
    for label, one in zip(labels, evaluations, strict=True):
        if one.report.get("threshold") != threshold:
            without.append(label)
        if threshold is None or label in without:
            continue
        for found, accepts, rejects in scores.decisions(one.sample, one.chances, threshold, _CUTS):
            counts = [f"{found.false_accepts} of {found.younger}", f"{found.false_rejects} of {found.older}"]
            rows.append((label, f"{found.cut:g}", accepts, counts[0], rejects, counts[1]))
    if not rows and threshold is not None and not evaluations[0].sample.decided(threshold).any():
        return Section(
            "Decision", texts=[f"{threshold:g} lies in the range of every label: no decision can be scored."]
        )
    if not rows:
        return Section("Decision")
    text = (
        f"A person counts as {threshold:g} or older if P(age >= {threshold:g}) is at least the cut. False accepts are"
        " younger people who count as older; false rejects are older people who do not. This is not a proof of age."
    )
    if unsure := int((~evaluations[0].sample.decided(threshold)).sum()):
        text += (
            f" {unsure} of the {len(evaluations[0].sample.ages)} images are left out: {threshold:g} lies in the range"
            " of their label, so they show neither younger nor older people for sure."
        )
    header = ("run", "cut", "false accepts", "number", "false rejects", "number")
    if without:
        text += f" For {', '.join(without)} this is unknown: evaluate with --threshold {threshold:g} there too."
    return Section("Decision", texts=[text], tables=[Table(header, rows)])


def _slices(evaluation: Evaluation) -> Section:
    """The scores by each column of `--slice`."""
    names = ("mae", "bias", "cs5", "sigma")
    if evaluation.sample.ranges is not None:
        names = ("distance", "bias", "in_range", "distance_sigma", *["mae"] * bool(evaluation.sample.is_exact.any()))
    found = [
        _parts(evaluation, column, scores.values_of(values), names) for column, values in evaluation.slices.items()
    ]
    return Section("Slices", texts=[f"Scores of {evaluation.label} only."] * bool(found), tables=found)


def _ranges(evaluation: Evaluation) -> Section:
    """The scores by the range of the label."""
    masks = evaluation.sample.by_range()
    tables = [_parts(evaluation, "range", masks, ("in_range", "distance", "bias"))] if masks else []
    return Section("Ranges", texts=[f"Scores of {evaluation.label} only."] * bool(tables), tables=tables)


def _parts(evaluation: Evaluation, column: str, masks: Mapping, names: Sequence[str]) -> Table:
    """The scores of parts of the images: value -> mask (N,)."""
    shown = [next(score for score in (*MAIN, *MORE, *scores.OF_RANGES) if score.name == name) for name in names]
    rows = []
    for value, mask in masks.items():
        part = scores.score(evaluation.sample.part(mask))
        rows.append((value, f"{mask.sum()}", *(part.estimate(score) for score in shown)))
    return Table((column, "images", *(score.title for score in shown)), rows, f"By {column}")


def _curves(run: Run) -> Section:
    kept = run.summary.get("step")
    return Section("Training", pictures=_there(charts.loss(run.lines), charts.validation(run.lines, kept)))


def _cost(run: Run) -> Section:
    """What a step took, and where the wall time of the run went."""
    steps = [line for line in run.lines if line.get("kind") == "train" and line.get("flops_per_step")]
    facts = [("a step", f"{steps[-1]['flops_per_step'] / 1e9:,.4g} GFLOP on all devices")] if steps else []
    for name, title, form in (("images_per_second", "images a second", ",.4g"), ("utilisation", "of the peak", ".1%")):
        if values := [line[name] for line in steps if line.get(name) is not None]:
            facts.append((title, f"{np.median(values):{form}} (median of the logged steps)"))
    tables = []
    for last in [line for line in run.lines if line.get("kind") == "time"][-1:]:
        rows = [
            (title, f"{last[cause]:.1%}", f"{last[cause] * last['seconds']:,.1f} s")
            for cause, title in _SPENT.items()
            if last[cause] or cause not in _SELDOM
        ]
        tables.append(Table(("wall time", "share", "time"), rows, f"Wall time of the run, {last['seconds']:,.0f} s"))
    return Section("Cost", facts=facts, tables=tables)


def _audit(report: Mapping) -> Section:
    """What the audit of the data set found."""
    state = report.get("audit")
    if state is None:
        return Section("Audit")
    items = [f"{finding['severity']}: {finding['message']}" for finding in report.get("findings") or []]
    texts = ["The audit found nothing."] if not items else []
    return Section("Audit", texts=texts if state == "read" else [f"audit.json is {state}."], items=items)


def _provenance(report: Mapping, run: Run) -> Section:
    known = run.provenance
    versions = ", ".join(f"{name} {version}" for name, version in (known.get("versions") or {}).items() if version)
    optim = run.config.get("optim") or {}
    devices, crop = known.get("devices") or [], report.get("crop", known.get("crop")) or {}
    facts = {
        "run": run.folder,
        "step": report.get("step", run.summary.get("step")),
        "stage": report.get("stage", run.config.get("stage")),
        "model": report.get("model") or (run.config.get("model") or {}).get("name"),
        "started from": (known.get("init") or {}).get("from"),
        "optimiser": ", ".join(filter(None, (optim.get("name"), optim.get("schedule")))) or None,
        "weights": f"EMA of decay {decay:g}" if (decay := run.config.get("ema_decay")) else None,
        "data": report.get("data", known.get("data")),
        "data hash": report.get("data_hash", known.get("data_hash")),
        "same data as training": {True: "yes", False: "no"}.get(report.get("same_data_as_training")),
        "split": report.get("split"),
        "split by": report.get("protocol", known.get("protocol")),
        "crop": ", ".join(f"{name} {value}" for name, value in crop.items()) or None,
        "mirror images": {True: "averaged", False: "not used"}.get(report.get("flip")),
        "seed": known.get("seed"),
        "devices": f"{len(devices)} x {devices[0]}, {known.get('hosts')} host(s)" if devices else None,
        "commit": known.get("commit"),
        "versions": f"Python {known.get('python')}, {versions}" if versions else None,
        "training": f"{run.summary['seconds']:.0f} s" if "seconds" in run.summary else None,
    }
    return Section("Provenance", facts=[(name, str(value)) for name, value in facts.items() if value is not None])


def _card(folder: epath.Path) -> Section:
    path = folder / loading.CARD
    return Section("Model card", markdown=files.read_text(path) if path.exists() else "")
