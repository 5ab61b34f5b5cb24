"""Leaks of a run: between its splits, from its backbone's people, and those that its reports list."""

import json
import logging
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from ml_collections import ConfigDict

from lae_jax.audit import saved
from lae_jax.data import people, records
from lae_jax.runs import fields, inputs
from lae_jax.runtime import parallel
from lae_jax.runtime.errors import InputError
from lae_jax.runtime.files import is_remote

logger = logging.getLogger("lae_jax")


def check(
    config: ConfigDict, dataset: records.Dataset, before: Mapping | None, teacher: Mapping | None = None
) -> list[dict]:
    """Returns the leaks of a run and of the runs before it, in the form that checkpoints store.

    Reads audit.json and the columns, but no image.

    Args:
      config: The run's config.
      dataset: The run's data set.
      before: Meta of the checkpoint that the run resumes or starts from.
      teacher: Meta of the teacher.

    Raises:
      InputError: A host finds a leak between the run's splits, or from the people of its backbone or the images and
        people of its teacher into its validation split, and `data.allow_leak` is not set. It is raised on all hosts.
    """
    found = []
    if config.data.split:
        train, split = (inputs.split_name(config, name) for name in (config.data.train, config.data.split))
        audited = saved.read(dataset)[0]
        found = [*saved.leaks(audited, train, split), *_same_rows(dataset, train, split)]
        found += _pretrained(dataset, train, split, _known(before, teacher))
        for one in _trainings(teacher or {}):
            if one["data_hash"] == dataset.hash and one["split"] != train:
                found += saved.leaks(audited, one["split"], split)
                found += _same_rows(dataset, one["split"], split, "the teacher was trained on them")
    told = "; ".join(leak["message"] for leak in found)
    if parallel.on_any_host(bool(found) and not config.data.allow_leak):
        raise InputError(
            f"{dataset.path}: {told or 'another host found a leak'}. Remove one image of each pair from the source"
            f" ({saved.FILE} lists them) and prepare it into another folder, or train with --allow-leak: every report"
            " of the run then states the leak"
        )
    if found:
        logger.warning("%s: training with a leak, because --allow-leak is set: %s", dataset.path, told)
    known = [leak for meta in (before, teacher) for leak in (meta or {}).get("leaks") or []]
    return merged(known, [{**leak, "data": str(dataset.path)} for leak in found])


def merged(*lists: list[dict]) -> list[dict]:
    """Returns the leaks without duplicates; leaks of the same kind, splits and data sets are duplicates."""
    return list({(f["kind"], *f["splits"], f["data"], _other(f)): f for leaks in lists for f in leaks}.values())


def _other(finding: Mapping) -> str | None:
    """Returns the hash of the other data set if a finding concerns two."""
    return (finding.get("other") or {}).get("hash")


def known_people(
    dataset: records.Dataset,
    rows: np.ndarray,
    before: Mapping | None,
    trains_identities: bool,
    teacher: Mapping | None = None,
) -> dict | None:
    """Returns the hashed people of pre-training for a checkpoint: of the runs before it, its teacher and this run."""
    known = _known(before, teacher)
    return people.hashed(dataset.column("identity")[rows], dataset.hash, known) if trains_identities else known


def _known(before: Mapping | None, teacher: Mapping | None) -> dict | None:
    """Returns the hashed people that a backbone and a teacher were pre-trained on."""
    found = [known for meta in (before, teacher) if (known := (meta or {}).get("identities")) is not None]
    if len(found) < 2:
        return found[0] if found else None
    return {key: sorted({*found[0][key], *found[1][key]}) for key in ("schemes", "hashes")}


def _leak(kind: str, splits: list[str], count: int, message: str, examples: list) -> dict:
    return {
        "kind": kind,
        "severity": "leak",
        "splits": splits,
        "count": count,
        "message": message,
        "examples": examples[:20],
    }


def _same_rows(dataset: records.Dataset, train: str, split: str, so: str = "the model trains on them") -> list[dict]:
    """Finds images in both splits; the split `all` overlaps with every other split."""
    both = np.intersect1d(dataset.rows(train), dataset.rows(split))
    if not len(both):
        return []
    message = f"{len(both)} images of {split} are in {train} too: {so}"
    names = dataset.column("name")[both[:20]]
    return [_leak("same_rows", [train, split], len(both), message, [[name] for name in names])]


def _pretrained(dataset: records.Dataset, train: str, split: str, known: Mapping | None) -> list[dict]:
    """Finds people of the backbone's pre-training in the validation split, except those in the training split."""
    if known is None:
        return []
    names = dataset.column("identity")
    found = people.compare(known, names[dataset.rows(split)], dataset.hash, _names(names[dataset.rows(train)]))
    if not found["compared"]:
        logger.info(
            "it is unknown whether people of %s were in pre-training: none of its %d names could be compared",
            split,
            found["people"],
        )
        return []
    message = (
        f"{len(found['shared'])} people of {split} were in the backbone's pre-training ({found['compared']} of"
        f" {found['people']} names could be compared)"
    )
    logger.info(message)
    if not found["shared"] or dataset.manifest["protocol"] == "image":
        return []
    return [_leak("pretrained_people", [split], len(found["shared"]), message, [[n] for n in found["shared"]])]


def _names(identities: np.ndarray) -> set[str]:
    return set(identities.tolist()) - {None}


def trained_on(
    config: ConfigDict, dataset: records.Dataset, before: Mapping | None, teacher: Mapping | None = None
) -> list[dict]:
    """Returns the training data of a run, the runs before it and its teacher, [{'data', 'data_hash', 'split'}]."""
    found = [*_trainings(before or {}), *_trainings(teacher or {}), _training(config, str(dataset.path), dataset.hash)]
    return list({(one["data_hash"], one["split"]): one for one in found}.values())


def _trainings(meta: Mapping) -> list[dict]:
    """Returns the same from a checkpoint's meta, or what an older checkpoint or weights record of it."""
    if meta.get("trained_on") is not None:
        return meta["trained_on"]
    if "data_hash" not in meta:
        return []
    return [_training(fields.from_json(meta["config"]), meta["data"], meta["data_hash"])]


def _training(config: ConfigDict, data: str, data_hash: str) -> dict:
    return {"data": data, "data_hash": data_hash, "split": inputs.split_name(config, config.data.train)}


def of_evaluation(meta: Mapping, dataset: records.Dataset, split: str) -> dict:
    """Returns the part of a report that concerns leaks.

    Args:
      meta: Meta of the run's checkpoint.
      dataset: The data set that is scored.
      split: The split that is scored.

    Returns:
      'leaks': the leaks that the run was trained with, and those between the scored split and the training data of the
      run and of the runs before it. 'not_compared': the data sets that could not be compared, and why.
      'same_people_on_both_sides': the number of people, None if unknown. Also 'audit', 'findings' and
      'pretrained_people'.
    """
    findings, state = saved.read(dataset)
    names, found, known, not_compared = dataset.column("identity"), [], None, []
    for training in _trainings(meta):
        train, data_hash = training["split"], training["data_hash"]
        own = data_hash == dataset.hash
        other, why = (dataset, "") if own else _at_hand(training)
        if own:
            found += [*saved.leaks(findings, train, split), *_same_rows(dataset, train, split)]
        else:
            if other is not None:
                shared = saved.between(other, train, dataset, split)
                rest = (f for f in findings if _other(f) != data_hash or not saved.is_between(f, train, split))
                findings = [*shared, *rest]
                if not (other.has_column("phash") and dataset.has_column("phash")):
                    why = "there are no perceptual hashes, so only files were compared"
            elif state == "read" and saved.have_compared(dataset, split, data_hash, train):
                why = ""
            found += saved.leaks(findings, train, split, data_hash)
        if other is not None:
            known = people.hashed(other.column("identity")[other.rows(train)], data_hash, known)
        if why:
            not_compared.append({"data": training["data"], "why": why})
    both, pretrained = (
        people.compare(hashes, names[dataset.rows(split)], dataset.hash) for hashes in (known, meta.get("identities"))
    )
    return {
        "audit": state,
        "findings": [{name: f[name] for name in ("kind", "severity", "splits", "message")} for f in findings],
        "leaks": merged(meta.get("leaks") or [], [{**leak, "data": str(dataset.path)} for leak in found]),
        "not_compared": not_compared,
        "same_people_on_both_sides": len(both["shared"]) if both["compared"] else None,
        "pretrained_people": {
            "compared": pretrained["compared"],
            "shared": len(pretrained["shared"]) if pretrained["compared"] else None,
        },
    }


def of_evaluations(metas: Sequence[Mapping], dataset: records.Dataset, split: str) -> dict:
    """Returns the same for several runs on one split: findings and leaks of all, the highest number of people."""
    reports = [of_evaluation(meta, dataset, split) for meta in metas]
    people_of_each = [n for report in reports if (n := report["same_people_on_both_sides"]) is not None]

    def once(name: str) -> list[dict]:
        return list({json.dumps(one, sort_keys=True): one for report in reports for one in report[name]}.values())

    return {
        **reports[0],
        "findings": once("findings"),
        "leaks": merged(*(report["leaks"] for report in reports)),
        "not_compared": once("not_compared"),
        "same_people_on_both_sides": max(people_of_each, default=None),
    }


def _at_hand(training: Mapping) -> tuple[records.Dataset | None, str]:
    """Opens another data set that was trained on; returns None and the reason if that fails."""
    if is_remote(training["data"]) or not pathlib.Path(training["data"]).exists():
        return None, "it is not available"
    try:
        other = records.open_dataset(training["data"], "quick")
    except (InputError, OSError) as error:
        return None, f"it cannot be read: {error}"
    if other.hash != training["data_hash"]:
        return None, "another data set is at its path now"
    return other, ""
