"""The model card of a run or an export, in Markdown (Mitchell et al., "Model Cards for Model Reporting", 2019)."""

import json
import re
from collections.abc import Mapping, Sequence

from lae_jax.report import age_groups, wording
from lae_jax.runtime.foreign import in_code, in_markdown
from lae_jax.runtime.model_file import builtin

USE = """\
For estimates of apparent or true age from a photograph of a face: statistics over many faces, sorting one's own
photographs, research on age estimation.

**Do not use it** to decide about a person's rights, access or treatment: not as a proof of age, not for asylum,
policing, hiring, credit or insurance, not to watch people, and not on photographs of people who did not agree to it. An
estimate for one face is often wrong by several years; P(age >= 18) is not a proof of age."""

LIMITS = """\
- The errors differ between age groups (see the scores), and where a group has few images its score is uncertain.
- Faces unlike those of the training data (other cameras, light, poses, make-up, masks, origins) can have larger errors,
  which no number here shows. An evaluation's report.html has scores by other attributes than age if it was made with
  `--slice`.
- The model never predicts an age below 0 or above 100. It also predicts an age for an image that is not a face.
- Faces that are cut in another way than the crop contract describes get other ages, without a warning."""


def write(
    content: Mapping, meta: Mapping, starts: Sequence[Mapping], evaluations: Sequence[Mapping], data: Mapping
) -> str:
    """Returns the text of the card.

    Args:
      content: Content of export.json; for a run that is not exported, without `format` and `check`.
      meta: Meta of the run's checkpoint.
      starts: What the model was started from, the latest first, each {'from', 'step', 'sha256', 'kind'}.
      evaluations: Reports of this checkpoint.
      data: {'path', 'hash', 'reader', 'protocol'} of the training data, as far as they are known.
    """
    source, check = content["source"], content.get("check")
    exported = f", exported as {in_markdown(content['format'])}" if check else ""
    version = in_markdown(content["versions"]["lae-jax"])
    parts = [
        f"# Model card: {in_markdown(source['model'])}, {in_markdown(source['run'])} step {source['step']}",
        f"Estimates ages from face crops: {source['parameters']:,} parameters, stage {in_code(source['stage'])} of"
        f" Long-tailed Age Estimation, made by lae_jax {version}{exported}.",
        "## Use and misuse\n\n" + USE,
        "## Input and output\n\n" + _contract(content),
        "## Data\n\n" + _data(meta, data),
        "## Training\n\n" + _training(meta),
        "## Starting weights\n\n" + _starts(starts) + _teachers(meta),
        "## Scores\n\n" + _scores(meta, evaluations),
        "## Leaks\n\n" + _leaks(meta, evaluations, data),
        "## Limits\n\n" + LIMITS,
    ]
    if check:
        parts.append(_check(check, source))
    return "\n\n".join(parts) + "\n"


def _check(check: Mapping, source: Mapping) -> str:
    batches = ", ".join(map(str, check["batches"]))
    return (
        "## The export against the model\n\n"
        f"{check['images']} images ({in_markdown(check['from'])}) through the export, read back by"
        f" {in_markdown(check['runtime'])} on the CPU, in batches of {batches}: the ages differ from the model's in JAX"
        f" by at most {check['max_age_difference']:.1e} years, the distributions by"
        f" {check['max_distribution_difference']:.1e}. Computed in float32 (the run in {in_markdown(source['dtype'])})."
    )


def _contract(content: Mapping) -> str:
    size, resize = content["input"]["image_size"], content["input"]["resize"]
    side = resize or size
    cut = f", then take the centre of {size} x {size}" if side != size else ""
    crop = json.dumps(content["crop"], indent=1, sort_keys=True)
    temper = "not calibrated" if content["temperature"] == 1 else f"at temperature {content['temperature']:.4f}"
    flip = " Each image is averaged with its mirror image." * content["flip"]
    return (
        f"`image`: uint8 (B, {size}, {size}, 3), RGB, any B; the model normalises it. To make one from a face crop:"
        f" resize it to {side} x {side} (Pillow's bicubic, which smooths when it shrinks){cut}.\n\n"
        "`age`: float32 (B,), years, the mean of the distribution before the temperature. `distribution`: float32"
        f" (B, 101), probabilities of the ages 0 to 100, {temper}.{flip}\n\n"
        f"Crop contract (`lae_jax.faces` and `python -m lae_jax.predict` cut faces by it):\n\n```json\n{crop}\n```"
    )


def _data(meta: Mapping, data: Mapping) -> str:
    config = meta["config"]["data"]
    reader = f", read as {in_code(data['reader'])}" if data.get("reader") else ""
    protocol = f"; split by {in_markdown(data['protocol'])}" if data.get("protocol") else ""
    fold = "" if config.get("fold") is None else f", fold {config['fold']}"
    return (
        f"Prepared data set {in_code(data['path'])}{reader}, hash {in_code(data['hash'])}; trained on split"
        f" {in_code(config['train'])}, validated on {in_code(config['split'] or 'none')}{fold}{protocol}.\n\n"
        "Licence: docs/data.md of lae_jax has the terms of the data sets that it reads (most allow only research). The"
        " run records no licence: name that of your own data here before you pass the model on. You decide what the"
        " terms of the photographs mean for weights that were trained on them."
    )


def _training(meta: Mapping) -> str:
    """The method of stage 3, and the cures of stage 2 of this run and of the runs before it."""
    told = []
    if meta["stage"] == "classify":
        c = meta["config"]["classify"]
        setting = "" if c["setting"] is None else f" (setting {c['setting']:g})"
        told.append(f"the method {in_code(c['method'])} of stage 3{setting}")
    for one in meta.get("cures") or []:
        changed = ", ".join(f"{name} {value:g}" for name, value in one["settings"].items())
        settings = f"{in_markdown(changed)}, other settings as published" if changed else "settings as published"
        told.append(f"the cure {in_code(one['name'])} of stage 2 ({settings})")
    return f"Trained with {', '.join(told)}." if told else "Trained without a cure of stage 2."


def _starts(starts: Sequence[Mapping]) -> str:
    if not starts:
        return "None: trained from random values."
    lines = []
    for start in starts:
        step = "" if start.get("step") is None else f" step {start['step']}"
        digest = f" (SHA-256 {in_code(start['sha256'])})" if start.get("sha256") else ""
        lines.append(f"- {start['kind']} {in_code(start['from'])}{step}{digest}. {_licence(start)}".rstrip())
    return "The latest first:\n\n" + "\n".join(lines)


def _teachers(meta: Mapping) -> str:
    """The teachers of a run and of the runs before it, as a paragraph; '' without any."""
    lines = []
    for one in meta.get("teachers") or []:
        line = (
            f"- {in_code(one['from'])} step {one['step']} (SHA-256 of its arrays {in_code(one['sha256'])}), weight"
            f" {one['weight']:g}, temperature {one['temperature']:g}. {_licence({**one, 'kind': 'run'})}"
        )
        lines.append(line.rstrip())
    return "\n\nTeachers of this run and of the runs before it:\n\n" * bool(lines) + "\n".join(lines)


def _licence(start: Mapping) -> str:
    """Where to find the licence of weights that others trained; '' for a run or a model file."""
    if builtin.is_name(start["from"]):
        return f"A model of lae_jax, trained on {builtin.MODELS[start['from']].data}: name that source too."
    if start["kind"] != "weights":
        return ""
    if hub := re.fullmatch(r"hf:([\w.-]+/[\w.-]+)(@.*)?", start["from"]):
        return f"Source and licence: https://huggingface.co/{hub[1]}, and docs/training.md of lae_jax."
    return "Licence: see the source of this file; docs/training.md of lae_jax has the usual ones."


def _number(value, form: str = ".2f") -> str:
    return "-" if value is None else format(value, form)


def _table(scores: Mapping) -> str:
    error, title = age_groups.error_of(scores)
    lines = [f"| age group | images | {title} | bias |", "|---|---:|---:|---:|"]
    between = {name: f" ({low:.2f} to {high:.2f})" for name, (low, high) in (scores.get("intervals") or {}).items()}
    lines += [
        f"| {group} | {count} | {_number(mae)}{between.get(f'{error}_{group}', '')} | {_number(bias, '+.2f')} |"
        for group, count, mae, bias in age_groups.rows(scores)
    ]
    titles = {"mae": "MAE", "sigma": "sigma", "aar_2021": "AAR (2021)", "mmae": "mMAE"}
    if error == "distance":
        titles = {"distance": "distance to the range", "distance_sigma": "its sigma", "in_range": "share in range"}
        titles |= {"mae": "MAE of the exact ages"} if "mae" in scores else {}
    units = {"mae": " years", "distance": " years"}
    told = (f"{titles[name]} {_number(scores[name])}{units.get(name, '')}{between.get(name, '')}" for name in titles)
    total = f"{', '.join(told)}; {scores['n']} images"
    total += f", {scores['n_exact']} of them with an exact age." if error == "distance" else "."
    if scores.get("bootstrap"):
        total += f" In brackets: 95 % intervals over {scores['bootstrap']['units']}, for other images of the same kind."
    found = "\n".join(lines) + "\n\n" + total
    if by_range := scores.get("ranges"):
        found += "\n\n| range | images | share in range | distance | bias |\n|---|---:|---:|---:|---:|\n"
        found += "\n".join(
            f"| {in_markdown(one['range'])} | {one['n']} | {_number(one['in_range'])} | {_number(one['distance'])} |"
            f" {_number(one['bias'], '+.2f')} |"
            for one in by_range
        )
    return found


def _scores(meta: Mapping, evaluations: Sequence[Mapping]) -> str:
    parts = []
    if meta.get("scores"):
        several = meta["config"]["epochs"] > meta["config"]["eval_epochs"]
        selected = " The checkpoint was chosen by a score on these images." * bool(meta.get("selected_by") and several)
        parts.append(f"While training, on the validation split {in_code(meta['config']['data']['split'])}.{selected}")
        parts.append(_table(meta["scores"]))
    for report in evaluations:
        other = "" if report["same_data_as_training"] else ", not the data set of the training"
        crop = "; its faces are cut in another way" * bool(report.get("other_crop_than_training"))
        flip = ", averaged with mirror images" * report["flip"]
        parts.append(f"Evaluated on split {in_code(report['split'])} of {in_code(report['data'])}{other}{crop}{flip}.")
        parts.append(_table(report))
        parts += [f"**{in_markdown(line[0].upper() + line[1:])}.**" for line in wording.doubts(report)]
        if sure := report.get("interval"):
            parts.append(
                f"{sure['level']:.0%} intervals at temperature {sure['temperature']:.3f} hold {sure['coverage']:.1%} of"
                f" the ages and are {sure['mean_width']:.1f} years wide on average."
            )
    return "\n\n".join(parts) or "None: it was trained without a validation split and not evaluated."


def _leaks(meta: Mapping, evaluations: Sequence[Mapping], data: Mapping) -> str:
    found = {(leak["data"], leak["message"]): None for leak in meta.get("leaks") or []}
    lines = [f"- The model was trained with a leak ({in_code(at)}): {in_markdown(message)}" for at, message in found]
    for report in evaluations:
        lines += [
            f"- In the evaluation on {in_code(report['split'])} ({in_code(leak['data'])}):"
            f" {in_markdown(leak['message'])}"
            for leak in report.get("leaks") or []
            if (leak["data"], leak["message"]) not in found
        ]
    for report in evaluations:
        lines += [
            f"- {in_code(report['data'])} could not be compared in full with {in_code(other['data'])}, which it was"
            f" trained on ({in_markdown(other['why'])}): whether they hold the same pictures is unknown."
            for other in report.get("not_compared") or []
        ]
    if not lines:
        lines.append("- No leak was found (docs/data.md of lae_jax says what the audit finds and what it cannot).")
    if any((report.get("audit") or "read") != "read" for report in evaluations):
        lines.append("- The data of an evaluation was not audited: whether its splits share pictures is unknown.")
    validation = [
        report["same_people_on_both_sides"]
        for report in evaluations
        if report["same_data_as_training"] and report["split"] == meta["config"]["data"]["split"]
    ]
    if data.get("protocol") != "identity" and all(people is None for people in validation):
        told = "is unknown: the data was not split by identity"
        lines.append(f"- Whether people whom it was trained on are in the validation split {told}.")
    for report in evaluations:
        people = report.get("same_people_on_both_sides")
        told = "unknown, because the data has no identities" if people is None else people
        lines.append(f"- People of the evaluation on {in_code(report['split'])} whom it was trained on: {told}.")
    return "\n".join(lines)
