"""What a run has to know of leaks: those between its splits, of its backbone's people, and what its reports say."""

import logging
from collections.abc import Mapping, Sequence

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
    """Leaks, each once: one of the same kind, splits and data sets is the same."""
    return list({(f["kind"], *f["splits"], f["data"], _other(f)): f for leaks in lists for f in leaks}.values())


def _other(finding: Mapping) -> str | None:
    """The hash of the other data set, where a finding is of two."""
    return finding.get("other", {}).get("hash")


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
    return [_training(runs.from_json(meta["config"]), meta["data"], meta["data_hash"])]


def _training(config: ConfigDict, data: str, data_hash: str) -> dict:
    return {"data": data, "data_hash": data_hash, "split": inputs.split_name(config, config.data.train)}


def of_evaluation(meta: Mapping, dataset: records.Dataset, split: str) -> dict:
    """What a report says beside the scores: the leaks that the run was trained with and those between the split that is
    scored and what the run, and those before it, were trained on; the data sets that could not be compared, and why;
    and how many people are on both sides, None where that is unknown.

    Args: meta: of the run's checkpoint; dataset, split: what is scored.
    """
    findings, state = audits.read(dataset)
    names, scored = dataset.column("identity"), dataset.rows(split)
    known, found, not_compared = set(), [], []
    for training in _trainings(meta):
        train, data_hash = training["split"], training["data_hash"]
        if data_hash == dataset.hash:
            found += [*audits.leaks(findings, train, split), *_same_rows(dataset, train, split)]
            known |= {people.normalised(name) for name in _names(names[dataset.rows(train)])}
            continue
        shared, why = _shared(training, dataset, split)
        if shared is not None:
            rest = (f for f in findings if _other(f) != data_hash or not audits.is_between(f, train, split))
            findings = [*shared, *rest]
        elif state == "read" and audits.have_compared(dataset, split, data_hash, train):
            why = ""
        if why:
            not_compared.append({"data": training["data"], "why": why})
        found += audits.leaks(findings, train, split, data_hash)
    own = {people.normalised(name) for name in _names(names[scored])}
    pretrained = people.compare(meta.get("identities"), names[scored], dataset.hash)
    return {
        "audit": state,
        "findings": [{name: f[name] for name in ("kind", "severity", "splits", "message")} for f in findings],
        "leaks": merged(meta.get("leaks", []), [{**leak, "data": str(dataset.path)} for leak in found]),
        "not_compared": not_compared,
        "same_people_on_both_sides": len(known & own) if known and own else None,
        "pretrained_people": {
            "compared": pretrained["compared"],
            "shared": len(pretrained["shared"]) if pretrained["compared"] else None,
        },
    }


def of_evaluations(metas: Sequence[Mapping], dataset: records.Dataset, split: str) -> dict:
    """The same of several runs that are scored on one split: that of the first, with the leaks of all."""
    reports = [of_evaluation(meta, dataset, split) for meta in metas]
    not_compared = {one["data"]: one for report in reports for one in report["not_compared"]}
    leaks = merged(*(report["leaks"] for report in reports))
    return {**reports[0], "leaks": leaks, "not_compared": list(not_compared.values())}


def _shared(training: Mapping, dataset: records.Dataset, split: str) -> tuple[list[dict] | None, str]:
    """The findings of another data set, trained on, and the split that is scored, and why they are not all there are;
    None where the data set is not at hand."""
    try:
        other = records.open_dataset(training["data"], "quick")
    except (InputError, OSError) as error:
        logger.info("%s cannot be compared: %s", training["data"], error)
        return None, "it is not at hand"
    if other.hash != training["data_hash"]:
        return None, "it was prepared again since"
    alike = other.has_column("phash") and dataset.has_column("phash")
    why = "" if alike else "only files were, without perceptual hashes"
    return audits.between(other, training["split"], dataset, split), why
