"""What a run has to know of leaks: those between its splits, of its backbone's people, and what its reports say."""

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


def check(config: ConfigDict, dataset: records.Dataset, before: Mapping | None) -> list[dict]:
    """The leaks that a run is trained with, those of the runs before it included, as its checkpoints carry them.

    Reads audit.json and the columns; no image. Args: before: meta of the checkpoint that is gone on with or started
    from. Raises InputError, on all hosts, where a host sees a leak between the run's splits or of the people of its
    backbone into its validation split, unless `data.allow_leak` is set.
    """
    found = []
    if config.data.split:
        train, split = (inputs.split_name(config, name) for name in (config.data.train, config.data.split))
        found = [*saved.leaks(saved.read(dataset)[0], train, split), *_same_rows(dataset, train, split)]
        found += _pretrained(dataset, train, split, (before or {}).get("identities"))
    told = "; ".join(leak["message"] for leak in found)
    if parallel.on_any_host(bool(found) and not config.data.allow_leak):
        raise InputError(
            f"{dataset.path}: {told or 'another host found a leak'}. Leave one of each pair out of the source"
            f" ({saved.FILE} lists them) and prepare it into another folder; or train all the same with --allow-leak,"
            " which every report of the run then says"
        )
    if found:
        logger.warning("%s: trained with a leak, as --allow-leak wants it: %s", dataset.path, told)
    return merged((before or {}).get("leaks", []), [{**leak, "data": str(dataset.path)} for leak in found])


def merged(*lists: list[dict]) -> list[dict]:
    """Leaks, each once: one of the same kind, splits and data sets is the same."""
    return list({(f["kind"], *f["splits"], f["data"], _other(f)): f for leaks in lists for f in leaks}.values())


def _other(finding: Mapping) -> str | None:
    """The hash of the other data set, where a finding is of two."""
    return finding.get("other", {}).get("hash")


def known_people(dataset: records.Dataset, rows: np.ndarray, before: Mapping | None, trains_identities: bool):
    """The hashed people of pre-training that a checkpoint carries: those of the runs before, and this one's own."""
    known = (before or {}).get("identities")
    return people.hashed(dataset.column("identity")[rows], dataset.hash, known) if trains_identities else known


def _leak(kind: str, splits: list[str], count: int, message: str, examples: list) -> dict:
    return {
        "kind": kind,
        "severity": "leak",
        "splits": splits,
        "count": count,
        "message": message,
        "examples": examples[:20],
    }


def _same_rows(dataset: records.Dataset, train: str, split: str) -> list[dict]:
    """Images that are trained on and scored since the splits overlap, as `all` does with every other."""
    both = np.intersect1d(dataset.rows(train), dataset.rows(split))
    if not len(both):
        return []
    message = f"{len(both)} images of {split} are in {train}: they are trained on"
    names = dataset.column("name")[both[:20]]
    return [_leak("same_rows", [train, split], len(both), message, [[name] for name in names])]


def _pretrained(dataset: records.Dataset, train: str, split: str, known: Mapping | None) -> list[dict]:
    """People of the backbone's pre-training in the validation split who are not in the training split anyway."""
    if known is None:
        return []
    names = dataset.column("identity")
    found = people.compare(known, names[dataset.rows(split)], dataset.hash, _names(names[dataset.rows(train)]))
    if not found["compared"]:
        logger.info(
            "unknown whether people of %s were in pre-training: none of its %d names could be compared",
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


def trained_on(config: ConfigDict, dataset: records.Dataset, before: Mapping | None) -> list[dict]:
    """What a run and those before it were trained on, [{'data', 'data_hash', 'split'}], as its checkpoints carry it."""
    found = [*_trainings(before or {}), _training(config, str(dataset.path), dataset.hash)]
    return list({(one["data_hash"], one["split"]): one for one in found}.values())


def _trainings(meta: Mapping) -> list[dict]:
    """The same of a checkpoint's meta; of one that does not carry it, and of weights, as much as they tell."""
    if "trained_on" in meta:
        return meta["trained_on"]
    if "data_hash" not in meta:
        return []
    return [_training(fields.from_json(meta["config"]), meta["data"], meta["data_hash"])]


def _training(config: ConfigDict, data: str, data_hash: str) -> dict:
    return {"data": data, "data_hash": data_hash, "split": inputs.split_name(config, config.data.train)}


def of_evaluation(meta: Mapping, dataset: records.Dataset, split: str) -> dict:
    """What a report says beside the scores: the leaks that the run was trained with and those between the split that is
    scored and what the run, and those before it, were trained on; the data sets that could not be compared, and why;
    and how many people are on both sides, None where that is unknown.

    Args: meta: of the run's checkpoint; dataset, split: what is scored.
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
                    why = "there are no perceptual hashes, so only files were"
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
        "leaks": merged(meta.get("leaks", []), [{**leak, "data": str(dataset.path)} for leak in found]),
        "not_compared": not_compared,
        "same_people_on_both_sides": len(both["shared"]) if both["compared"] else None,
        "pretrained_people": {
            "compared": pretrained["compared"],
            "shared": len(pretrained["shared"]) if pretrained["compared"] else None,
        },
    }


def of_evaluations(metas: Sequence[Mapping], dataset: records.Dataset, split: str) -> dict:
    """The same of several runs that are scored on one split: findings and leaks of all, and the most people of one."""
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
    """Another data set that was trained on; or None, and why."""
    if is_remote(training["data"]) or not pathlib.Path(training["data"]).exists():
        return None, "it is not at hand"
    try:
        other = records.open_dataset(training["data"], "quick")
    except (InputError, OSError) as error:
        return None, f"it cannot be read: {error}"
    if other.hash != training["data_hash"]:
        return None, "something else lies there now"
    return other, ""
