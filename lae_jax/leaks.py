"""What a run has to know of leaks: those between its splits, of its backbone's people, and what its reports say."""

import logging
from collections.abc import Mapping

import numpy as np
from ml_collections import ConfigDict

from lae_jax import inputs, parallel, runs
from lae_jax.data import audits, people, records
from lae_jax.errors import InputError

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
        found = [*audits.leaks(audits.read(dataset)[0], train, split), *_same_rows(dataset, train, split)]
        found += _pretrained(dataset, train, split, (before or {}).get("identities"))
    told = "; ".join(leak["message"] for leak in found)
    if parallel.on_any_host(bool(found) and not config.data.allow_leak):
        raise InputError(
            f"{dataset.path}: {told or 'another host found a leak'}. Leave one of each pair out of the source"
            f" ({audits.FILE} lists them) and prepare it into another folder; or train all the same with --allow-leak,"
            " which every report of the run then says"
        )
    if found:
        logger.warning("%s: trained with a leak, as --allow-leak wants it: %s", dataset.path, told)
    return merged((before or {}).get("leaks", []), [{**leak, "data": str(dataset.path)} for leak in found])


def merged(*lists: list[dict]) -> list[dict]:
    """Leaks, each once: one of the same kind, splits and data set is the same."""
    return list({(f["kind"], *f["splits"], f["data"]): f for leaks in lists for f in leaks}.values())


def known_people(dataset: records.Dataset, rows: np.ndarray, before: Mapping | None, trains_identities: bool):
    """The hashed people of pre-training that a checkpoint carries: those of the runs before, and this one's own."""
    handed = (before or {}).get("identities")
    return people.hashed(dataset.column("identity")[rows], dataset.hash, handed) if trains_identities else handed


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


def of_evaluation(meta: Mapping, dataset: records.Dataset, split: str) -> dict:
    """What a report says beside the scores: the leaks that the run was trained with and those between its training
    split and the one that is scored; whether the two could be compared at all; and how many people are on both sides,
    None where that is unknown.

    Args: meta: of the run's checkpoint; dataset, split: what is scored.
    """
    config = runs.from_json(meta["config"])
    train = inputs.split_name(config, config.data.train)
    findings, state = audits.read(dataset)
    same = compared = meta["data_hash"] == dataset.hash
    names, both = dataset.column("identity"), None
    if same:
        leaks = [*audits.leaks(findings, train, split), *_same_rows(dataset, train, split)]
        known = {people.normalised(name) for name in _names(names[dataset.rows(train)])}
        scored = {people.normalised(name) for name in _names(names[dataset.rows(split)])}
        both = len(known & scored) if known and scored else None
    else:
        own, compared = _with_training(meta, config, train, dataset, split, state)
        known = {(finding["kind"], *finding["splits"]) for finding in own}
        findings = own + [f for f in findings if "other" not in f or (f["kind"], *f["splits"]) not in known]
        leaks = audits.leaks(findings, train, split, meta["data_hash"])
    pretrained = people.compare(meta.get("identities"), names[dataset.rows(split)], dataset.hash)
    return {
        "audit": state,
        "compared_with_training": compared,
        "findings": [{name: f[name] for name in ("kind", "severity", "splits", "message")} for f in findings],
        "leaks": merged(meta.get("leaks", []), [{**leak, "data": str(dataset.path)} for leak in leaks]),
        "same_people_on_both_sides": both,
        "pretrained_people": {
            "compared": pretrained["compared"],
            "shared": len(pretrained["shared"]) if pretrained["compared"] else None,
        },
    }


def _with_training(
    meta: Mapping, config: ConfigDict, train: str, dataset: records.Dataset, split: str, audit: str
) -> tuple[list[dict], bool]:
    """What another data set shares with the training's, where that is at hand; and whether the two were compared, here
    or by an audit of both."""
    try:
        training = records.open_dataset(config.data.path, "quick")
    except InputError:
        training = None
    if training is not None and training.hash == meta["data_hash"]:
        return audits.between(training, train, dataset, split), True
    return [], audit == "read" and audits.compared_with(dataset, meta["data_hash"])
