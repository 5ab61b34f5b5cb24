"""Compares the cures of a sweep of stage 2 on validation, with stage 2's own head and heads of the long-tail bench.

    python -m lae_jax.sweep --config configs/represent.py --seeds 0 1 2 --out runs/cures \\
        --set init_from=runs/pretrain --set optim.base_learning_rate=0.1,0.03 --set cure.name=none,lds
    python -m benchmarks.cures --sweep runs/cures --data data/faces --out build/cures

For each head, each cure has the peak learning rate of the sweep with the lowest MAE + sigma. Stage 2 without a cure
(none) is chosen in the same way, and all differences are to it. All age groups count alike. Learning rates and
checkpoints are chosen on the scored images, so the differences may look better than they are. The learning rate of the
heads is that of our recommendation.

'*': not 0 after Holm's correction for MAE and sigma of all cures with all heads.
"""

import collections
import dataclasses
import json
import math
import pathlib

import numpy as np

from benchmarks import harness
from lae_jax import longtail
from lae_jax.longtail import choices, kept_predictions
from lae_jax.report import bootstrap
from lae_jax.runtime import files
from lae_jax.runtime.errors import InputError

NONE = "none"
HEADS = ("stage2", "lae", "two_layers_crt")  # stage2: none is trained
RATE = 0.1  # of the heads
CORRECTED = 2  # of choices.SCORES: MAE and sigma


def runs_of(sweep: pathlib.Path) -> dict[tuple[str, float], dict[tuple[int | None, int], str]]:
    """Returns (cure, peak learning rate) -> (fold, seed) -> the run of stage 2 in a sweep, in the order of both.

    Raises:
      InputError: There is no sweep, a run is not done, the settings differ in something else, or not every cure has
        every rate.
    """
    found, settings = collections.defaultdict(dict), collections.defaultdict(set)
    content = files.read_text(sweep / "sweep.json", "name the folder of a sweep")
    for run in json.loads(content)["runs"]:
        stage, folder = [*run["config"].values()][-1], sweep / run["folder"]
        if not (folder / "report.html").exists():  # written last
            raise InputError(f"{folder} is not done: run the sweep to its end")
        key = stage["cure.name"], stage["optim.base_learning_rate"]
        found[key][run["fold"], run["seed"]] = str(folder)
        settings[key].add(run["setting"])
    cures, rates = (dict.fromkeys(column) for column in zip(*found, strict=True))
    if len(found) < len(cures) * len(rates) or any(len(names) > 1 for names in settings.values()) or NONE not in cures:
        raise InputError(
            f"{sweep}: its settings must be all combinations of cure.name (with {NONE}) and optim.base_learning_rate"
        )
    return {key: dict(sorted(folders.items())) for key, folders in found.items()}


def bench_of(sweep: pathlib.Path, data: str, out: pathlib.Path, seeds: int) -> choices.Bench:
    """Trains the heads on the features of all runs, and returns one bench of all of them.

    A choice's method is that of a cure and a head, its learning rate that of stage 2.
    """
    trials, kept = {}, []
    for (cure, rate), runs in runs_of(sweep).items():
        folder = out / f"{cure}-{rate:g}"
        heads = {"methods": HEADS, "base_learning_rates": [RATE], "passes": 2, "seeds": seeds, "epochs": 8.0}
        by_fold = any(fold is not None for fold, _ in runs)
        longtail.compare([*runs.values()], data, folder, test="", by_fold=by_fold, **heads)
        read = kept_predictions.read(folder)
        kept += read
        for one, trial in choices.Bench.of(data, read).trials.items():
            trials[choices.Choice(f"{cure} {one.method}", 0.0, rate)] = trial
    return dataclasses.replace(choices.Bench.of(data, kept), trials=trials)


def best(bench: choices.Bench, cure: str, head: str) -> choices.Choice:
    """Returns the choice of a cure and a head whose learning rate of stage 2 has the lowest MAE + sigma."""
    among = [one for one in bench.trials if one.method == f"{cure} {head}"]
    return min(among, key=lambda one: bench.scores[one][:2].sum())


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--sweep", required=True, metavar="FOLDER", help="folder of the sweep")
    parser.add_argument("--data", required=True, metavar="FOLDER", help="data set of the sweep")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="folder for the features and heads")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds of each head")
    args = parser.parse_args()
    bench = bench_of(pathlib.Path(args.sweep), args.data, pathlib.Path(args.out), args.seeds)
    cures = list(dict.fromkeys(one.method.split()[0] for one in bench.trials))
    chosen = {(cure, head): best(bench, cure, head) for cure in cures for head in HEADS}
    found = {
        (cure, head): bench.difference(one, chosen[NONE, head]) for (cure, head), one in chosen.items() if cure != NONE
    }
    places = [(key, score) for key in found for score in range(CORRECTED)]
    corrected = bootstrap.holm(np.array([found[key][score].p for key, score in places]))
    sure = {place for place, p in zip(places, corrected, strict=True) if math.isfinite(p) and p < 0.05}
    titles = list(choices.SCORES.values())
    rows = []
    for (cure, head), one in chosen.items():
        told = [
            f"{each.mean:+.2f} ({each.low:.2f} to {each.high:.2f}){'*' * (((cure, head), score) in sure)}"
            for score, each in enumerate(found.get((cure, head), ()))
        ]
        rows.append([cure, head, f"{one.rate:g}", *(f"{value:.2f}" for value in bench.scores[one]), *told])
        rows[-1] += [""] * (3 + 2 * len(titles) - len(rows[-1]))
    # Whether a cure replaces a trained head.
    for cure in cures:
        told = bench.difference(chosen[cure, "stage2"], chosen[NONE, HEADS[-1]])
        words = [f"{each.mean:+.2f} ({each.low:.2f} to {each.high:.2f})" for each in told]
        rows.append([cure, f"stage2, minus {NONE} with {HEADS[-1]}", "", "", "", "", *words])
    header = ["cure", "head", "rate of stage 2", *titles, *(f"{one}, minus {NONE}" for one in titles)]
    harness.show({"over": bench.over, "corrected for": len(places)}, header, rows)


if __name__ == "__main__":
    harness.run(main)
