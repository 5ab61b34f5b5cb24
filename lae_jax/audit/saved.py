"""audit.json of a data set: written by an audit, read by a run and an evaluation."""

import dataclasses
import logging
import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from lae_jax.audit import checks
from lae_jax.data import records
from lae_jax.faces import perceptual_hash
from lae_jax.report import overviews
from lae_jax.runtime import console, layout, typed
from lae_jax.runtime.errors import InputError, saving
from lae_jax.runtime.files import read_json, write_json
from lae_jax.runtime.typed import declared

logger = logging.getLogger("lae_jax")

FILE, PICTURE = "audit.json", "audit.png"
IMAGE_SIZE = 224
COMMAND = "python -m lae_jax.audit"
_FORMAT = 1


def _finding(value: object, name: str) -> None:
    """The form of a finding: a leak is between two splits, another one is in at most two."""
    typed.fields(_FINDING)(value, name)
    count = len(value["splits"])
    if count > 2 or (value["severity"] == "leak" and count != 2):
        raise typed.Differs(f"{name}.splits", value["splits"], "two splits")


_FINDING = {
    "severity": typed.text(".+"),
    "kind": typed.text(".+"),
    "splits": typed.many(typed.text()),
    "message": typed.text(r"[\s\S]+"),
    "other": declared.OTHER,
}
_FORM = typed.fields(
    {
        "format": typed.one_of((_FORMAT,)),
        "data_hash": typed.optional(declared.DIGEST),
        "findings": typed.many(_finding),
        "compared": typed.many(typed.fields({"hash": declared.DIGEST, "pictures": typed.flag()})),
    }
)
# A start for the command that is shown next: without one it is refused.
_START = "--config.init_from=hf:timm/tf_efficientnetv2_m.in21k_ft_in1k --config.data.normalize=weights"


def run(paths: Sequence[str | os.PathLike], image_size: int | None = None) -> list[dict]:
    """Audits data sets, each alone and each against every other; writes audit.json and audit.png into each.

    Args:
      paths: Folders of the data sets.
      image_size: Side of the model's input in pixels (default: 224, or the size of a smaller prepared data set).

    Returns:
      The content of each audit.json; for a damaged data set the damage is the only finding.

    Raises:
      InputError: A folder holds no data set.
      SaveFailed: A folder could not be written.
    """
    paths = [pathlib.Path(path) for path in paths]
    tables, damages = {}, {}
    for path in paths:
        try:
            tables[path] = _table(records.open_dataset(path, "full"), image_size)
        except InputError as error:
            if not (path / "dataset.json").exists():
                raise
            damages[path] = str(error)
    found = dict(zip(tables, checks.audit(list(tables.values())) if tables else [], strict=True))
    reports = []
    for path in paths:
        table = tables.get(path)
        report = {
            "format": _FORMAT,
            "data": str(path),
            "data_hash": table and table.hash,
            "protocol": table and table.protocol,
            "images": table and len(table.names),
            "splits": table and {name: len(rows) for name, rows in table.splits.items()},
            "image_size": table.image_size if table else image_size,
            "near_bits": perceptual_hash.NEAR,
            "compared": [
                {"path": one.path, "hash": one.hash, "pictures": one.phash is not None and table.phash is not None}
                for other, one in tables.items()
                if table and other != path
            ],
            "findings": found[path] if table else [checks.damaged(damages[path])],
        }
        with saving(path):
            write_json(path / FILE, report)
            if table is not None:
                _draw(path, table)
        reports.append(report)
    return reports


def _table(dataset: records.Dataset, image_size: int | None) -> checks.Table:
    hashes = None
    if dataset.has_column("phash"):
        hashes = np.frombuffer(b"".join(dataset.column("phash").tolist()), np.uint8).reshape(-1, perceptual_hash.BYTES)
    # Pixels of the source in the stored side; enlarged crops have fewer.
    sides = np.minimum(dataset.column("width"), dataset.column("height"))
    if dataset.has_column("scale"):
        scale = dataset.column("scale")
        size = dataset.crop.get("size")
        sides = np.rint(sides / scale if size is None else size * np.minimum(scale, 1)).astype(int)
    return checks.Table(
        path=str(dataset.path),
        hash=dataset.hash,
        protocol=dataset.manifest["protocol"],
        names=dataset.column("name"),
        ranges=dataset.age_ranges(),
        identities=dataset.column("identity"),
        sha256=dataset.column("sha256"),
        phash=hashes,
        sides=sides,
        image_size=image_size or min(IMAGE_SIZE, _prepared_size(dataset)),
        faces=dataset.column("faces").astype(np.float64) if dataset.has_column("faces") else None,
        all_faces=len(np.unique(dataset.column("source_row"))) < len(dataset),
        splits={name: dataset.rows(name) for name in dataset.manifest["splits"]},
        spreads=dataset.spreads() if dataset.has_spreads else None,
    )


def _prepared_size(dataset: records.Dataset) -> int:
    """Returns the side in pixels that a data set was prepared for; IMAGE_SIZE where its recipe is missing."""
    return layout.read_recipe(dataset.path).get("size") or IMAGE_SIZE


def _draw(path: pathlib.Path, table: checks.Table) -> None:
    named = sorted(table.splits, key=checks.place)
    ages = {name: table.ranges[table.splits[name]] for name in named if not name.startswith("fold")}
    ages = {name: a[~np.isnan(a).any(axis=1)] for name, a in (ages or {"all": table.ranges}).items()}
    if any(len(a) for a in ages.values()):
        overviews.age_histogram(path / PICTURE, ages, f"{path.resolve().name}: images by age")


def read(dataset: records.Dataset) -> tuple[list[dict], str]:
    """Reads audit.json of a data set; logs a warning where it cannot be used.

    Returns:
      (findings, 'read'), or ([], 'missing' | 'stale' | 'damaged').
    """
    path, state, why = dataset.path / FILE, "missing", ""
    if path.exists():
        try:
            report = read_json(path, _FORM)
            if report.get("data_hash") == dataset.hash:
                return report["findings"], "read"
            state = "stale"
        except InputError as error:
            state, why = "damaged", f" ({error})"
    told = "%s is %s%s, so leaks between its splits are unknown: run %s %s"
    logger.warning(told, path, state, why, COMMAND, dataset.path)
    return [], state


def leaks(findings: Sequence[dict], train: str, split: str, train_hash: str | None = None) -> list[dict]:
    """Selects the leaks between the split that is trained on and another split.

    Args:
      findings: Findings of the data set that holds `split`.
      train: The split that is trained on; 'all': any.
      split: The other split; 'all': any.
      train_hash: Hash of the data set that holds `train`, if it is another one.
    """
    return [
        finding
        for finding in findings
        if finding["severity"] == "leak"
        and (finding.get("other") or {}).get("hash") == train_hash
        and is_between(finding, train, split)
    ]


def is_between(finding: Mapping, train: str, split: str) -> bool:
    """Whether a finding concerns these two splits ('all': any). Between two data sets the order says which is whose."""
    first, *second = finding["splits"]
    ways = [(first, one) for one in second] + [(one, first) for one in second if not finding.get("other")]
    return any(train in ("all", one) and split in ("all", other) for one, other in ways)


def have_compared(dataset: records.Dataset, split: str, other_hash: str, train: str) -> bool:
    """Whether the audit of a data set compared the pictures of a split with those of another data set.

    An audit of both data sets does so where the roles of the splits differ. `read` must accept the audit.json.

    Args:
      dataset: The data set with the audit.json.
      split: A split of this data set.
      other_hash: Hash of the other data set.
      train: A split of the other data set.
    """
    audited = read_json(dataset.path / FILE, _FORM)["compared"]
    known = other_hash in [other["hash"] for other in audited if other["pictures"]]
    return known and "all" not in (train, split) and checks.disjoint(train, split)


def between(training: records.Dataset, train: str, scored: records.Dataset, split: str) -> list[dict]:
    """Returns the findings between the split that a run was trained on and a scored split of another data set."""
    return checks.between(_of_split(training, train), train, _of_split(scored, split), split)


def _of_split(dataset: records.Dataset, split: str) -> checks.Table:
    """Returns the rows of one split, so that the rest of a large data set is not searched."""
    table, rows = _table(dataset, IMAGE_SIZE), dataset.rows(split)
    columns = ("names", "ranges", "spreads", "identities", "sha256", "phash", "sides", "faces")
    kept = {name: None if getattr(table, name) is None else getattr(table, name)[rows] for name in columns}
    return dataclasses.replace(table, **kept, splits={split: np.arange(len(rows))})


def tell(report: dict) -> list[str]:
    """Describes an audit.json, as lines for a terminal: a table, and an example of each finding."""
    place = f"{report['data']}/{FILE}"
    if not report["findings"]:
        return [f"{place}: clean"]
    rows = [(f["kind"], f["severity"], f["count"], "-".join(f["splits"]) or "all") for f in report["findings"]]
    lines = console.table(["finding", "severity", "count", "splits"], rows).splitlines()
    more = False
    for finding in report["findings"]:
        # The groups without images are named in the message already.
        examples = finding["examples"] if finding["kind"] != "group_without_images" else []
        example = f" ({', '.join(examples[0])})" if examples else ""
        lines.append(f"{finding['severity']}: {finding['message']}{example}")
        more |= len(examples) > 1
    return [*lines, f"{place} lists more examples" if more else place]


def next_commands(dataset: records.Dataset, place: str) -> list[str]:
    """Returns lines with the commands that use a data set.

    Args:
      dataset: The data set.
      place: Its folder, as the user names it.
    """
    main, splits = "python -m lae_jax.main --config configs", dataset.manifest["splits"]
    folds, has_ages = any(name.startswith("fold") for name in splits), bool(np.isfinite(dataset.age_ranges()).any())
    if has_ages and not any(name.endswith("train") for name in splits):
        return [f"next: python -m lae_jax.evaluate --run RUN --data {place} --split {min(splits)}"]
    config = "represent.py" if has_ages else "pretrain.py"
    lines = [f"next: {main}/{config} --config.data.path={place}{' --config.data.fold=0' * folds} {_START}"]
    if has_ages and not folds:
        lines.append(f"  or, with few images or on a CPU: {main}/finetune.py --config.faces={place}")
    return lines
