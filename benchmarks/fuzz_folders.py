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
import copy
import dataclasses
import hashlib
import json
import os
import pathlib
import random
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from benchmarks import harness
from lae_jax.runtime import console
from lae_jax.runtime.errors import Ended

SLOW = 60  # seconds of a door; the first call of one may compile
_WRONG = {
    "null": None,
    "text": "x",
    "number": 3.5,
    "negative": -1,
    "zero": 0,
    "huge": 10**18,
    "beyond 64 bits": 10**400,
    "NaN": float("nan"),
    "infinite": float("inf"),
    "true": True,
    "list": [],
    "object": {},
    "nested list": [[1]],
}


@dataclasses.dataclass(frozen=True)
class Damage:
    """A damage of one file.

    Attributes:
      file: The file, relative to the folder of all.
      name: What is done to it.
      do: Does it to the path.
      sealed: Whether the checksums that cover the file are written anew.
    """

    file: str
    name: str
    do: Callable[[pathlib.Path], None]
    sealed: bool


def make(top: pathlib.Path) -> None:
    """Makes what is damaged: data, represent (a run with its evaluation), classify, export, bench."""
    from etils import epath

    from lae_jax import audit, export, longtail, prepare
    from lae_jax.configs import classify, represent
    from lae_jax.evaluate import results
    from lae_jax.train import loop

    source = {"train": "96", "validation": "64", "test": "16"}
    prepare.prepare(source, top / "data", reader="synthetic", size=32, shards=2, workers=1)
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


# Door -> (its function, the parts of a path whose damage it can see).
DOORS: dict[str, tuple[Callable[[pathlib.Path], object], tuple[str, ...]]] = {
    "open": (_opened, ("data/",)),
    "audit read": (_audited, ("data/audit.json", "data/dataset.json")),
    "audit": (_audit, ("data/",)),
    "main done": (_resumed, ("represent/config", "represent/summary", "represent/checkpoints")),
    "main resume": (_continued, ("represent/", "data/dataset.json")),
    "main init_from": (_started_from, ("represent/checkpoints", "represent/config", "data/splits", "data/dataset")),
    "evaluate": (evaluated, ("represent/", "data/")),
    "predict run": (lambda top: _predicted(top / "represent"), ("represent/",)),
    "predict export": (lambda top: _predicted(top / "export"), ("export/",)),
    "report": (_reported, ("represent/evaluation", "represent/config", "represent/summary", "represent/metrics")),
    "report bench": (_benched, ("bench/",)),
    "export": (_exported, ("represent/config", "represent/calib", "represent/checkpoints", "represent/provenance")),
    "card": (_carded, ("represent/", "data/recipe.json")),
    "longtail": (_longtail, ("bench/features",)),
}
# Written for people, or read by other programs: no door reads them.
_UNREAD = (".svg", ".png", ".jpg", ".tex", ".md", "report.html", ".tfevents", "/report/", "/lock", "commit_success.txt")


def damages(top: pathlib.Path, rng: random.Random) -> Iterator[Damage]:
    """Yields the damages of every file below a folder, in random order."""
    found = []
    for path in sorted(path for path in top.rglob("*") if path.is_file()):
        file = str(path.relative_to(top))
        if "tensorboard" in file or any(file.endswith(end) or end in f"/{file}" for end in _UNREAD):
            continue
        both = (False, True) if _covers(top, file) else (False,)
        found += [Damage(file, name, do, sealed) for name, do in _of_bytes(rng).items() for sealed in both]
        if path.suffix == ".json" or path.name == "metadata":
            content = json.loads(path.read_text())
            found += [Damage(file, name, do, sealed) for name, do in _of_fields(content) for sealed in both[-1:]]
        if path.suffix in (".jsonl", ".csv"):
            found += [Damage(file, name, do, False) for name, do in _of_cells(path.read_text(), rng)]
    rng.shuffle(found)
    yield from found


def _of_bytes(rng: random.Random) -> Mapping[str, Callable[[pathlib.Path], None]]:
    def written(make: Callable[[bytes], bytes]) -> Callable[[pathlib.Path], None]:
        return lambda path: path.write_bytes(make(path.read_bytes())) and None

    def replaced(place: Callable[[pathlib.Path], None]) -> Callable[[pathlib.Path], None]:
        def do(path: pathlib.Path) -> None:
            path.unlink()
            place(path)

        return do

    def flipped(seed: float) -> Callable[[bytes], bytes]:
        def flip(content: bytes) -> bytes:
            changed = bytearray(content)
            if changed:
                changed[int(seed * len(changed))] ^= 1 << int(seed * 1e6) % 8
            return bytes(changed)

        return flip

    made = {
        "emptied": written(lambda content: b""),
        "cut": written(lambda content: content[: len(content) // 2]),
        "[]": written(lambda content: b"[]"),
        "{}": written(lambda content: b"{}"),
        "null": written(lambda content: b"null"),
        "noise": written(lambda content: random.Random(len(content)).randbytes(300)),
        "UTF-16": written(lambda content: content.decode("latin-1").encode("utf-16")),
        "nested": written(lambda content: b"[" * 100_000),
        "nested objects": written(lambda content: b'{"a":' * 500 + b"1" + b"}" * 500),
        "twice": written(lambda content: content + content),
        "removed": replaced(lambda path: None),
        "a folder": replaced(lambda path: path.mkdir()),
        "a pipe": replaced(lambda path: os.mkfifo(path)),
        "a device": replaced(lambda path: path.symlink_to("/dev/zero")),
        "a loop": replaced(lambda path: path.symlink_to(path)),
    }
    return made | {f"flipped {number}": written(flipped(rng.random())) for number in range(3)}


def _of_fields(content: object) -> Iterator[tuple[str, Callable[[pathlib.Path], None]]]:
    """Damages of each JSON field: of a list the first value alone."""

    def rewrite(place: tuple, value: object, missing: bool) -> Callable[[pathlib.Path], None]:
        def do(path: pathlib.Path) -> None:
            changed = copy.deepcopy(content)
            parent = changed
            for step in place[:-1]:
                parent = parent[step]
            if missing:
                del parent[place[-1]]
            else:
                parent[place[-1]] = value
            path.write_text(json.dumps(changed))

        return do

    def walk(value: object, place: tuple) -> Iterator[tuple]:
        if place:
            yield place
        if isinstance(value, dict):
            for key in value:
                yield from walk(value[key], (*place, key))
        elif isinstance(value, list) and value:
            yield from walk(value[0], (*place, 0))

    for place in walk(content, ()):
        told = ".".join(map(str, place))
        yield f"{told} is missing", rewrite(place, None, True)
        for name, wrong in _WRONG.items():
            yield f"{told} is {name}", rewrite(place, wrong, False)


def _of_cells(text: str, rng: random.Random) -> Iterator[tuple[str, Callable[[pathlib.Path], None]]]:
    """Damages of words of a table or of lines: in a random line a word becomes another one."""
    for wrong in ("", "nan", "-5", "1e999", "x", '"', '{"step": "x"}', "\0"):
        lines = text.splitlines()
        number = rng.randrange(len(lines))
        cells = lines[number].split(",")
        cells[rng.randrange(len(cells))] = wrong
        lines[number] = ",".join(cells)
        changed = "\n".join(lines) + "\n"
        yield f"a cell of line {number + 1} is {wrong!r}", lambda path, new=changed: path.write_text(new) and None


def _covers(top: pathlib.Path, file: str) -> bool:
    """Whether checksums cover a file, directly or not."""
    parts = pathlib.PurePath(file).parts
    if parts[0] == "data":
        return "array_record" in file or "columns" in parts[-1] or "splits" in parts
    if parts[0] == "export":
        return parts[-1] != "export.json"
    return "checkpoints" in parts and parts[-1] != "sha256.json"


def _seal(top: pathlib.Path, file: str) -> None:
    """Writes the checksums that cover a file anew."""
    from lae_jax.runtime import checksums

    path = top / file
    if not path.is_file() or path.is_symlink():
        return
    entry = {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    parts = path.relative_to(top).parts
    if parts[0] == "data":
        manifest = json.loads((top / "data/dataset.json").read_text())
        name = "/".join(parts[1:])
        for shard in manifest["shards"]:
            shard.update(entry if shard["file"] == name else {})
        if name in manifest["files"]:
            manifest["files"][name] = entry
        (top / "data/dataset.json").write_text(json.dumps(manifest))
    elif parts[0] == "export":
        content = json.loads((top / "export/export.json").read_text())
        content["files"]["/".join(parts[1:])] = entry
        (top / "export/export.json").write_text(json.dumps(content))
    else:
        place = parts.index("checkpoints") + 2
        folder = top.joinpath(*parts[:place])
        content = json.loads((folder / checksums.NAME).read_text())
        content["/".join(parts[place:])] = entry
        (folder / checksums.NAME).write_text(json.dumps(content))


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


def try_one(whole: pathlib.Path, damage: Damage, door: str, before: object, place: pathlib.Path) -> str:
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
        _seal(place, damage.file)
    kind, found = answer(door, place)
    what = f"{door}: {damage.file}: {damage.name}{' (sealed)' * damage.sealed}"
    if kind == "failed":
        return f"{what}\n{found}"
    # Nobody can tell new checksums from true ones. Reports say that the audit is damaged, which is a right answer.
    told = damage.sealed or damage.file.endswith("audit.json") and _without_audit(found)
    if kind == "answer" and found != before and not told:
        return f"{what}\nanother answer: {_difference(found, before)}"
    if kind == "ended" and str(place) not in str(found):
        return f"{what}\nthe message names no file: {found}"
    return ""


def _without_audit(found: object) -> bool:
    return any(f"'{word}'" in str(found) for word in ("damaged", "stale", "missing"))


def _difference(found: object, before: object) -> str:
    one, other = (json.dumps(each, indent=0).splitlines() for each in (found, before))
    return "; ".join(f"{a} (before: {b})" for a, b in zip(one, other, strict=False) if a != b)[:400]


def readers(damage: Damage) -> list[str]:
    """Returns the doors that read the damaged file."""
    return [door for door, (_, parts) in DOORS.items() if damage.file.startswith(parts)]


def _copy(whole: pathlib.Path, place: pathlib.Path) -> None:
    """Copies the folder; the data set of the copy is that of the copied runs where config.json names it."""
    _WHOLE[:] = [whole]
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(whole, place, ignore=shutil.ignore_patterns("tensorboard", "parts", "*.svg", "*.png"))
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
    for damage in damages(top / "whole", rng):
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
