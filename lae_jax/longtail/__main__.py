"""Compares cures for a long tail on the features of one backbone: every method that touches the head alone.

    python -m lae_jax.longtail --run runs/represent --data data/faces --out runs/longtail
    python -m lae_jax.longtail --run runs/represent --like runs/classify --data data/faces --out runs/longtail

Writes OUT: features/ (used again while run and data are the same), table.csv, table.md and table.tex (each method with
the setting that validation chose, on test), tries.csv (every setting and rate), head_tail.png, report.json.
"""

import argparse
import signal
import time

from etils import epath

from lae_jax.runtime import console, files, layout
from lae_jax.runtime.errors import InputError


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m lae_jax.longtail", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--run", action="append", required=True, help="run of stage represent; may be given again")
    add("--data", required=True, help="prepared data set, the one that the runs were trained on")
    add("--out", required=True, help="folder of the features and of what is found")
    add("--test", default="test", help="split that is reported on and chooses nothing (default test)")
    add("--passes", type=int, default=4, help="over the augmented training images (default 4); 0: plain images")
    add("--seeds", type=int, default=5, help="of order, dropout and new heads (default 5: 0 to 4)")
    add("--methods", default="", help="names, with commas between (default: all)")
    add("--like", action="append", default=[], help="run of stage classify, whose batch size, epochs and optimiser the"
        " heads take; it is scored beside them; may be given again")  # fmt: skip
    add("--epochs", type=float, help="of the heads (default: of --like, else 8)")
    add("--batch-size", type=int, help="of the heads (default: of --like, else the run's)")
    add("--base-rate", type=float, action="append", help="peak rate at batch 256 (default: of --like, else 0.001); more"
        " than one are swept, and validation chooses")  # fmt: skip
    add("--folds", action="store_true", help="the runs are of the folds of the data set, one for each")
    add("--allow-leak", action="store_true", help="go on although splits share images or people; the report says so")
    add("--devices", type=int, default=0, help="simulated devices on a CPU (default: what the platform has)")
    return parser.parse_args(argv)


def bench(args: argparse.Namespace) -> dict:
    """Features, heads, scores, files; returns the report."""
    from lae_jax.longtail import extraction, trials
    from lae_jax.runs import leaks
    from lae_jax.runtime import checkpoints
    from lae_jax.stages import methods as known

    out = epath.Path(args.out)
    names = [name for name in args.methods.split(",") if name] or list(known.METHODS)
    methods = [known.get(name) for name in dict.fromkeys(names)]
    started = time.perf_counter()
    extractors = [extraction.open_run(run, args.data, out / "features") for run in dict.fromkeys(args.run)]
    trials.check_folds(extractors, args.folds)
    changed = {"epochs": args.epochs, "batch_size": args.batch_size}
    changed = {name: value for name, value in changed.items() if value is not None}
    prepared = []
    for extractor in extractors:
        config = trials.recipe(extractor, args.like, changed)
        prepared.append(trials.prepare(extractor, config, args.passes, args.test, args.allow_leak))
    config = prepared[0].bench.config
    rates = sorted({*(args.base_rate or [config.optim.base_rate])})
    with_features = time.perf_counter()
    tries = trials.run(prepared, methods, range(args.seeds), rates)
    if reference := trials.stage3(prepared, args.like):
        tries.append(reference)
    done = time.perf_counter()
    report = {
        "runs": [str(extractor.handed.workdir) for extractor in extractors],
        "steps": [extractor.handed.step for extractor in extractors],
        "checkpoints": [extractor.checkpoint for extractor in extractors],
        "data": str(extractors[0].dataset.path),
        "data_hash": extractors[0].dataset.hash,
        "protocol": extractors[0].dataset.manifest["protocol"],
        "test": args.test,
        "passes": args.passes,
        "seeds": args.seeds,
        "epochs": config.epochs,
        "batch_size": config.batch_size,
        "base_rates": rates,
        "optim": config.optim.to_dict(),
        "seconds": {"features": round(with_features - started, 1), "heads": round(done - with_features, 1)},
        **leaks.of_evaluations(
            [one.handed.meta for one in extractors] + [checkpoints.load_run(run).meta for run in args.like],
            extractors[0].dataset,
            args.test,
        ),
    }
    report["sentences"] = _write(out, tries, prepared[0].bench.ages, report)
    return report


def _write(out: epath.Path, tries: list, training_ages, report: dict) -> dict[str, str]:
    from lae_jax.longtail import summaries, trials
    from lae_jax.report import overviews

    best = summaries.best_of_each(tries)
    sentences = {aim: summaries.sentence(tries, aim) for aim in summaries.AIMS}
    sentences["improvement"] = summaries.improvement(tries)
    files.write_text(out / "table.csv", summaries.csv_of(best))
    files.write_text(out / "tries.csv", summaries.csv_of(tries))
    files.write_text(out / "table.md", summaries.markdown(best, trials.TEST))
    files.write_text(out / "table.tex", summaries.latex(best, trials.TEST))
    head, tail = summaries.head_and_tail(training_ages)
    points: dict[str, list] = {}
    for one in tries:
        point = summaries.curve_point(one, trials.TEST, head, tail)
        points.setdefault(one.method.name, []).append(point)
    overviews.head_tail(out / "head_tail.png", points, (head, tail), f"{', '.join(report['runs'])} on {report['test']}")
    report["head_groups"], report["tail_groups"] = head.tolist(), tail.tolist()
    files.write_json(out / "report.json", {**report, "sentences": sentences})
    return sentences


def tell(args: argparse.Namespace, report: dict) -> str:
    """What was found, as text for a terminal."""
    from lae_jax.report import wording

    seconds = report["seconds"]
    return "\n".join(
        [
            (epath.Path(args.out) / "table.md").read_text("utf-8"),
            *report["sentences"].values(),
            f"features {seconds['features']:.0f} s, heads {seconds['heads']:.0f} s",
            *wording.leaks(report),
        ]
    )


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.seeds < 1 or args.passes < 0 or args.devices < 0:
        raise InputError("--seeds must be at least 1, --passes and --devices at least 0")
    if any(not rate > 0 for rate in args.base_rate or []):
        raise InputError("--base-rate must be above 0")
    layout.require_dataset(args.data)
    for run in args.run:
        layout.require_run(run, "python -m lae_jax.main --config configs/represent.py")
    for run in args.like:
        layout.require_run(run)
    from lae_jax.runtime import compile_cache, cpu, parallel

    if args.devices:
        parallel.simulate_devices(args.devices)
    compile_cache.keep()
    cpu.prepare()
    report = bench(args)
    print(tell(args, report))
    print(f"{args.out}/: table.csv, table.md, table.tex, tries.csv, head_tail.png, report.json")


if __name__ == "__main__":
    # A Ctrl-C ends it at once, also where the exception would come up inside a callback of JAX and be lost.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    console.door(main)
