"""Damages every file of a prepared data set, runs, evaluations, an export and a bench, and opens them by every door.

python -m benchmarks.fuzz_folders [--seconds 600] [--seed 0] [--only TEXT]        (made in build/fuzz, kept on failure)

A damage is a file that is cut, emptied, flipped in a bit, replaced by other JSON, noise, UTF-16 or deep nesting, by a
folder, a pipe or a link to a device; or a JSON field that is missing or has another type, sign, size or NaN. Checksums
that cover the file are written anew for half of the damages, as a stranger would do. A door must end with an `Ended`
error that names the damaged file or its folder, or answer: as before, unless the checksums are new. A traceback,
another answer, or more than SLOW seconds is a failure, and its folder is left. tests/bench/test_fuzz_folders.py runs a
sample.
"""

import collections
import hashlib
import json
import pathlib
import random
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Iterable

import numpy as np

from benchmarks import damages, harness
from lae_jax.runtime import console
from lae_jax.runtime.errors import Ended

SOURCE = {"train": "96", "validation": "64", "test": "16"}
SLOW = 60  # seconds of a door; the first call of one may compile


def make(top: pathlib.Path) -> None:
    """Makes what is damaged: data, represent (a run with its evaluation), classify, export, bench."""
    from etils import epath

    from lae_jax import audit, export, longtail, prepare
    from lae_jax.configs import classify, represent
    from lae_jax.evaluate import results
    from lae_jax.train import loop

    prepare.prepare(SOURCE, top / "data", reader="synthetic", size=32, shards=2, workers=1)
    audit.audit([top / "data"])
    for name, module in (("represent", represent), ("classify", classify)):
        c = module.get_config()
        c.workdir = str(top / name)
        c.data.path, c.data.image_size, c.data.threads = str(top / "data"), 24, 2
        c.model.name, c.batch_size, c.eval_batch_size = "efficientnet_v2_pico", 32, 32
        c.epochs, c.log_steps, c.optim.milestones = 1.0, 1, (1,)
        c.init_from = str(top / "represent") if name == "classify" else "scratch"
        loop.train(c)
        results.of_run(epath.Path(c.workdir))
    evaluated(top, calibrate=True)
    export.export(top / "represent", "stablehlo", top / "export")
    longtail.compare([top / "represent"], top / "data", top / "bench", methods=["lae"], passes=0, seeds=1, epochs=1.0)


def evaluated(top: pathlib.Path, **options) -> object:
    from lae_jax import evaluate

    return evaluate.evaluate(top / "represent", top / "data", "validation", **options).report


def _predicted(folder: pathlib.Path) -> object:
    from lae_jax import predict

    estimator = predict.AgeEstimator.from_run(folder)
    image = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    ages, distributions = estimator.predict([image], distribution=True)
    return np.round(ages, 3).tolist(), np.round(distributions, 4).tolist(), estimator.crop


def _opened(top: pathlib.Path) -> object:
    from lae_jax.data import records

    dataset = records.open_dataset(top / "data")
    split = {name: dataset.rows(name).tolist() for name in sorted(dataset.manifest["splits"])}
    columns = {name: repr(dataset.column(name).tolist()) for name in ("name", "age", "identity", "sha256")}
    return split, columns, hashlib.sha256(b"".join(dataset.encoded(np.arange(len(dataset))))).hexdigest()


def _audited(top: pathlib.Path) -> object:
    from lae_jax.audit import saved
    from lae_jax.data import records

    dataset = records.open_dataset(top / "data", "quick")
    return saved.read(dataset), saved.have_compared(dataset, "validation", "0" * 64, "train")


def _audit(top: pathlib.Path) -> object:
    from lae_jax import audit

    (report,) = audit.audit([top / "data"])
    if any(finding["kind"] == "damaged" for finding in report["findings"]):
        raise Ended(report["findings"][0]["message"])
    return report["findings"], report["splits"]


def _resumed(top: pathlib.Path, name: str = "represent", **changes) -> object:
    """A run whose summary is lost is resumed after its last step, so that it checks everything and trains nothing."""
    from lae_jax.runs import fields
    from lae_jax.train import loop

    config = fields.from_json(json.loads((_WHOLE[0] / name / "config.json").read_text()))
    config.workdir, config.data.path = str(top / name), str(top / "data")
    config.update(changes)
    return loop.train(config)["scores"]


_WHOLE: list[pathlib.Path] = []  # the folder without damage


def _continued(top: pathlib.Path) -> object:
    (top / "represent" / "summary.json").unlink(missing_ok=True)
    return _resumed(top)


def _started_from(top: pathlib.Path) -> object:
    """Stage 3 takes over the run of stage 2; only its plan is made."""
    from lae_jax.runs import fields
    from lae_jax.train import plan

    config = fields.from_json(json.loads((_WHOLE[0] / "classify" / "config.json").read_text()))
    config.init_from, config.data.path = str(top / "represent"), str(top / "data")
    config.workdir = str(top / "new")
    return plan.make_plan(config).constants["mae"]


def _reported(top: pathlib.Path) -> object:
    from lae_jax import report

    page, table = report.compare([top / "represent", top / "classify"], top / "out")
    return page.verdict, [str(row) for row in table.rows]


def _benched(top: pathlib.Path) -> object:
    from lae_jax import report

    return [str(row) for row in report.compare([top / "bench"], top / "out")[1].rows]


def _exported(top: pathlib.Path) -> object:
    from lae_jax import export

    content = export.export(top / "represent", "stablehlo", top / "again")
    return content["temperature"], content["crop"], content["input"]


def _carded(top: pathlib.Path) -> object:
    from lae_jax.runs import lineage

    return lineage.run_card(top / "represent")[0].partition("## Scores")[2]


def _longtail(top: pathlib.Path) -> object:
    from lae_jax import longtail

    out = top / "bench"
    report = longtail.compare([top / "represent"], top / "data", out, methods=["lae"], passes=0, seeds=1, epochs=1.0)
    return report["sentences"]


def _tabled(top: pathlib.Path) -> object:
    from lae_jax import longtail

    return longtail.again(top / "bench")["sentences"]


def _prepared(top: pathlib.Path) -> object:
    """Shards and parts that are damaged are made again."""
    from lae_jax import prepare

    return prepare.prepare(SOURCE, top / "data", reader="synthetic", size=32, shards=2, workers=1)


_SPLITS = ("data/splits", "data/dataset.json")
_OF_DATA = ("dataset.json", "verified", "audit", "recipe", "columns", "splits", "faces")
_DATA = tuple(f"data/{name}" for name in _OF_DATA)
# Door -> (its function, the parts of a path whose damage it can see).
DOORS: dict[str, tuple[Callable[[pathlib.Path], object], tuple[str, ...]]] = {
    "open": (_opened, _DATA),
    "prepare": (_prepared, ("data/parts", "data/faces", "data/recipe")),
    "audit read": (_audited, ("data/audit.json", "data/dataset.json")),
    "audit": (_audit, _DATA),
    "main done": (_resumed, ("represent/config", "represent/summary", "represent/checkpoints")),
    "main resume": (_continued, ("represent/", "data/dataset.json")),
    "main init_from": (
        _started_from,
        ("represent/checkpoints", "represent/config", *_SPLITS),
    ),
    "evaluate": (evaluated, ("represent/", *_DATA)),
    "predict run": (lambda top: _predicted(top / "represent"), ("represent/",)),
    "predict export": (lambda top: _predicted(top / "export"), ("export/",)),
    "report": (_reported, ("represent/evaluation", "represent/config", "represent/summary", "represent/metrics")),
    "report bench": (_benched, ("bench/",)),
    "export": (_exported, ("represent/config", "represent/calib", "represent/checkpoints", "represent/provenance")),
    "card": (_carded, ("represent/", "data/recipe.json")),
    "longtail": (_longtail, ("bench/features",)),
    "longtail again": (_tabled, ("bench/predictions", "bench/report")),
}
# These have no checksum, so that a wrong value that a run could have written is an answer. The scores of summary.json,
# report.json and predictions.csv are compared with others that say the same.
_WITHOUT_CHECKSUM = (
    *("config.json", "provenance.json", "calibration.json", "summary.json", "metrics.jsonl", "report.json"),
    *("predictions.csv", "recipe.json", "dataset.json", "verified.json", "audit.json", "export.json"),
    *("sha256.json", "table.csv", "trials.csv"),
)


class _Hangs(BaseException):
    pass


def _ring(*_) -> None:
    raise _Hangs


def answer(door: str, top: pathlib.Path) -> tuple[str, object]:
    """Returns ('answer', it), ('ended', the message), or ('failed', the traceback) of a door."""
    before = signal.signal(signal.SIGALRM, _ring)
    signal.alarm(SLOW)
    try:
        return "answer", json.loads(json.dumps(DOORS[door][0](top)).replace(str(top), "TOP"))
    except Ended as end:
        return "ended", str(end)
    except (Exception, _Hangs):
        return "failed", traceback.format_exc()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def try_one(whole: pathlib.Path, damage: damages.Damage, door: str, before: object, place: pathlib.Path) -> str:
    """Opens a damaged copy of the folder by a door; returns what failed, or ''.

    Args:
      whole: The folder without damage.
      damage: The damage.
      door: The door.
      before: Its answer without damage.
      place: Where the copy is made.
    """
    _copy(whole, place)
    damage.do(place / damage.file)
    if damage.sealed:
        damages.seal(place, damage.file)
    kind, found = answer(door, place)
    what = f"{door}: {damage.file}: {damage.name}{' (sealed)' * damage.sealed}"
    if kind == "failed":
        return f"{what}\n{found}"
    # Nobody can tell new checksums from true ones. Reports say that the audit is damaged, which is a right answer.
    told = damage.sealed or damage.file.endswith(_WITHOUT_CHECKSUM) or _without_audit(found)
    if kind == "answer" and found != before and not told:
        return f"{what}\nanother answer: {_difference(found, before)}"
    named = (str(place), str(whole), "config.")  # a config names the folder that it was written in
    if kind == "ended" and not any(name in str(found) for name in named):
        return f"{what}\nthe message names no file: {found}"
    return ""


def _without_audit(found: object) -> bool:
    return any(f"'{word}'" in str(found) for word in ("damaged", "stale", "missing"))


def _difference(found: object, before: object) -> str:
    one, other = (json.dumps(each, indent=0).splitlines() for each in (found, before))
    return "; ".join(f"{a} (before: {b})" for a, b in zip(one, other, strict=False) if a != b)[:400]


def readers(damage: damages.Damage) -> list[str]:
    """Returns the doors that read the damaged file."""
    return [door for door, (_, parts) in DOORS.items() if damage.file.startswith(parts)]


def _copy(whole: pathlib.Path, place: pathlib.Path) -> None:
    """Copies the folder; the data set of the copy is that of the copied runs where config.json names it."""
    _WHOLE[:] = [whole]
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(whole, place, ignore=shutil.ignore_patterns("tensorboard", "*.svg", "*.png"))
    for name in ("represent", "classify"):
        path = place / name / "config.json"
        path.write_text(path.read_text().replace(str(whole), str(place)))


def answers(whole: pathlib.Path, place: pathlib.Path, doors: Iterable[str] = DOORS) -> dict[str, object]:
    """Returns the answer of each door without damage."""
    found = {}
    for door in doors:
        _copy(whole, place)
        kind, found[door] = answer(door, place)
        if kind != "answer":
            raise RuntimeError(f"{door} fails without damage: {found[door]}")
    return found


def main(argv: list[str] | None = None) -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--out", default="build/fuzz", help="folder of what is damaged (default build/fuzz)")
    parser.add_argument("--seconds", type=int, default=600, help="stop after so many (default 600)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="only damages whose file and name hold this text")
    parser.add_argument("--failures", type=int, default=20, help="stop after so many (default 20)")
    args = parser.parse_args(argv)
    console.logger.setLevel("CRITICAL")
    top = pathlib.Path(args.out).resolve()
    if not (top / "whole" / "bench" / "report.json").exists():
        shutil.rmtree(top, ignore_errors=True)
        make(top / "whole")
    before = answers(top / "whole", top / "copy")
    started, rng, count, failures = time.monotonic(), random.Random(args.seed), collections.Counter(), []
    for damage in damages.damages(top / "whole", rng):
        if args.only not in f"{damage.file} {damage.name}":
            continue
        if time.monotonic() - started > args.seconds or len(failures) >= args.failures:
            break
        door = rng.choice(readers(damage) or [""])
        if not door:
            continue
        count[door] += 1
        if found := try_one(top / "whole", damage, door, before[door], top / "copy"):
            place = top / f"failed{len(failures)}"
            shutil.rmtree(place, ignore_errors=True)
            shutil.move(top / "copy", place)
            print(f"FAILED ({place}) {found}", flush=True)
            failures.append(found)
    print(console.table(["door", "damages"], sorted(count.items())))
    print(f"{count.total()} damages, {len(failures)} failures")
    if failures:
        raise SystemExit(1)


if __name__ == "__main__":
    harness.run(main)
