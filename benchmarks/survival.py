"""What a run survives: real kills, signals, full disks, damaged files, numbers that are not finite, other devices.

    python -m benchmarks.survival                       # all rounds of the table in docs/results.md, about half an hour
    python -m benchmarks.survival --rounds 2 --only killed,stopped

Prints a line a fault and ends with status 1 if one did not hold. Faults that end a process are done to real processes
of `python -m lae_jax.main`, the others in this one; the smallest model on drawn faces, stochastic depth on.
"""

import contextlib
import json
import logging
import os
import pathlib
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np

from benchmarks import harness, rig
from benchmarks.rig import (
    PAIR,
    SAVE_STEPS,
    Bench,
    Broken,
    Skipped,
    damage_file,
    distance,
    hold,
    hold_equal,
    leaves,
    logged_steps,
    newest_whole,
    saving,
    told,
)
from lae_jax.data import pipeline, records, sampling
from lae_jax.runtime import checkpoints, cpu
from lae_jax.runtime.errors import STALLED, Diverged, InputError, Preempted, SaveFailed
from lae_jax.train import loop

SHORT_HEARTBEAT = ["--heartbeat_seconds=10"]  # where a dead process is to be missed; 100 s otherwise

# One function a fault: (bench, rounds, generator) -> a remark; Broken if it does not hold.


def killed(bench: Bench, rounds: int, rng: np.random.Generator) -> str:
    """SIGKILL at random moments, a third of them during a save."""
    number, done, during = 0, 0, 0
    while done < rounds:
        workdir, acknowledged = bench.folder / f"killed{number}", 0
        number += 1
        while not (workdir / "summary.json").exists():
            with bench.start(workdir) as (one,):
                until, in_save = logged_steps(workdir) + rng.integers(0, 13), rng.random() < 1 / 3
                if done < rounds and one.reaches(until):
                    if in_save:
                        one.begins_to_save()
                    time.sleep(rng.uniform(0, 0.03))
                    one.process.kill()
                    done += 1
                    during += saving(workdir)
                status = one.ends()
                hold(status in (0, -signal.SIGKILL), f"status {status}: {one.text()[-2000:]}")
                acknowledged = max(acknowledged, one.acknowledged())
            if status:
                found = newest_whole(workdir)
                hold(found >= acknowledged, f"step {acknowledged} was acknowledged, {found} is there")
        bench.hold_like_whole(workdir, 1, 8)
        left = [path.name for path in (workdir / checkpoints.FOLDER).iterdir() if not path.name.isdigit()]
        hold(not left and not list((workdir / checkpoints.FOLDER).rglob("*tmp*")), f"left behind: {left}")
    return f"{number} runs ended bitwise equal; {during} kills during a save"


def stopped(bench: Bench, rounds: int, rng: np.random.Generator) -> str:
    """SIGTERM to one of two processes."""
    at = []
    for number in range(rounds):
        workdir = bench.folder / f"stopped{number}"
        with bench.start(workdir, **PAIR) as pair:
            until = int(rng.integers(1, bench.steps - 6))
            hold(pair[0].reaches(until), pair[0].text()[-2000:])
            pair[rng.integers(2)].process.send_signal(signal.SIGTERM)
            statuses = [one.ends() for one in pair]
            saved = [re.findall(r"is saved at step (\d+)", one.text()) for one in pair]
        hold(statuses == [Preempted.status] * 2, f"statuses {statuses}: {pair[0].text()[-2000:]}")
        hold(saved[0] == saved[1] and len(saved[0]) == 1, f"saved at {saved}")
        hold(newest_whole(workdir) == int(saved[0][0]), "the step that was told is not the newest")
        bench.run(workdir, **PAIR)
        bench.hold_like_whole(workdir, **PAIR)
        at.append(saved[0][0])
    return f"saved at steps {', '.join(at)}"


def unscored(bench: Bench, rounds: int, rng: np.random.Generator) -> str:
    """SIGTERM during an evaluation, half of the rounds to one of two processes."""
    seconds = []
    for number in range(rounds):
        workdir, places = bench.folder / f"unscored{number}", PAIR if number % 2 else {}
        # A batch of 8 for 64 images: the first evaluation, after step 12, has several.
        whole = bench.folder / f"unscored_whole{number % 2}"
        if not whole.exists():
            bench.run(whole, **places, eval_batch_size=8)
        with bench.start(workdir, **places, eval_batch_size=8) as started:
            hold(started[0].reaches(12), started[0].text()[-2000:])
            begun = time.monotonic()
            started[rng.integers(len(started))].process.send_signal(signal.SIGTERM)
            statuses = [one.ends() for one in started]
            seconds.append(time.monotonic() - begun)
            text = started[0].text()
        hold({*statuses} == {Preempted.status}, f"statuses {statuses}: {text[-2000:]}")
        hold("is saved at step 12 of" in text and "before its evaluation ended" in text, text[-2000:])
        hold(newest_whole(workdir) == 12 and (workdir / checkpoints.UNSCORED / "12").is_dir(), "step 12 is not there")
        bench.run(workdir, **places, eval_batch_size=8)
        hold_equal(whole, workdir, bench.steps)
        hold(not (workdir / checkpoints.UNSCORED).exists(), "the unscored state was left behind")
    return f"ended after at most {max(seconds):.0f} s, the first evaluation's compilation included"


def bereft(bench: Bench, rounds: int, rng: np.random.Generator) -> str:
    """SIGKILL of one of two processes."""
    waited = []
    for number in range(rounds):
        workdir = bench.folder / f"bereft{number}"
        with bench.start(workdir, **PAIR, flags=SHORT_HEARTBEAT) as pair:
            until, victim = int(rng.integers(4, bench.steps - 6)), int(rng.integers(2))
            hold(pair[0].reaches(until), pair[0].text()[-2000:])
            pair[victim].process.kill()
            begun = time.monotonic()
            status = pair[1 - victim].ends()
            waited.append(time.monotonic() - begun)
        hold(status not in (0, Preempted.status) and waited[-1] < 60, f"status {status} after {waited[-1]:.0f} s")
        bench.run(workdir, **PAIR)
        bench.hold_like_whole(workdir, **PAIR)
    return f"the other one ended after at most {max(waited):.0f} s (heartbeat 10 s)"


def frozen(bench: Bench, rounds: int, rng: np.random.Generator) -> str:
    """SIGSTOP of one of two processes, in stage 3, with pmap; all other pairs use shard_map, their default."""
    alone = bench.folder / "frozen_alone"
    stage = {"stage": "classify", "init_from": str(bench.whole(1, 8)), "optim.schedule": "constant", "parallel": "pmap"}
    loop.train(bench.config(alone, epochs=4.0, **stage))
    for number in range(rounds):
        workdir = bench.folder / f"frozen{number}"
        # The heartbeat's 100 s are longer; the watchdog rests until the first evaluation (step 12) is compiled.
        with bench.start(workdir, **PAIR, stall_minutes=0.1, epochs=1000.0, **stage) as pair:
            until = int(rng.integers(13, 30))
            hold(pair[0].reaches(until), pair[0].text()[-2000:])
            pair[1].process.send_signal(signal.SIGSTOP)
            status = pair[0].ends()
        text = pair[0].text()
        hold(status == STALLED, f"status {status}: {text[-2000:]}")
        hold("no step ended" in text and "loop.py" in text, f"no stacks: {text[-2000:]}")
        for kind, score in (("train", "loss"), ("validation", "mae")):
            one, two = ([row[score] for row in told(folder, kind)] for folder in (alone, workdir))
            hold(one and np.allclose(one, two[: len(one)], rtol=1e-3), f"{kind}: {one}, in two processes {two}")
    return "the watchdog of the other one ended it; until then it trained like one process"


def full_disk(bench: Bench, rounds: int, rng: np.random.Generator) -> str:
    """No room for a checkpoint (RLIMIT_FSIZE), synchronous and not, and on one of two hosts."""
    for number in range(rounds):
        workdir = bench.folder / f"full{number}"
        places = PAIR if number % 3 == 2 else {}
        more = {"async_save": number % 2 == 0, "log_steps": 1000, "epochs": 200.0}
        with bench.start(workdir, **places, flags=SHORT_HEARTBEAT, **more) as started:
            one, victim = started[0], started[rng.integers(len(started))]
            until = SAVE_STEPS * int(rng.integers(1, 10))
            hold(one.acknowledges(until), one.text()[-2000:])
            resource.prlimit(victim.process.pid, resource.RLIMIT_FSIZE, (8000, 8000))
            statuses = [each.ends() for each in started]
            status = victim.process.returncode
        hold(0 not in statuses, f"statuses {statuses}")
        hold(status == SaveFailed.status, f"status {status}: {victim.text()[-2000:]}")
        hold("could not be saved" in victim.text(), victim.text()[-2000:])
        found = newest_whole(workdir)
        hold(found == one.acknowledged(), f"step {one.acknowledged()} was acknowledged, {found} is there")
        hold(len(leaves(workdir, found)) > 10, "the last checkpoint does not restore")
    return "half of the rounds asynchronous, a third on two hosts; status 5"


def small_disk(bench: Bench, rounds: int, rng: np.random.Generator) -> str:
    """A file system that fills up under everything that a run writes, synchronous and not; room is made, it resumes."""
    for number in range(rounds):
        with rig.small_disk(bench.folder / f"disk{number}", 32) as leave:
            workdir, more = bench.folder / f"disk{number}" / "run", {"async_save": number % 2 == 0}
            with bench.start(workdir, **more) as (one,):
                hold(one.acknowledges(SAVE_STEPS * int(rng.integers(1, 3))), one.text()[-2000:])
                leave(int(rng.integers(0, 200_000)))
                status = one.ends()
            hold(status == SaveFailed.status, f"status {status}: {one.text()[-2000:]}")
            hold("Traceback" not in one.text(), one.text()[-2000:])
            found = newest_whole(workdir)
            hold(found == one.acknowledged(), f"step {one.acknowledged()} was acknowledged, {found} is there")
            (workdir.parent / "rest").unlink()
            bench.run(workdir, **more)
            bench.hold_like_whole(workdir, 1, 8)
    return "half of the rounds asynchronous; status 5 without a traceback, and resumed bitwise equal"


def damaged(bench: Bench, rounds: int, rng: np.random.Generator) -> str:
    """One bit flipped, a file cut, emptied, deleted in the newest checkpoint."""
    whole, workdir = bench.folder / "damaged_whole", bench.folder / "damaged"
    loop.train(bench.config(whole, epochs=3.0, eval_epochs=3.0))
    older, newest = sorted(int(path.name) for path in (whole / checkpoints.FOLDER).iterdir())[-2:]
    for number in range(rounds):
        shutil.rmtree(workdir, ignore_errors=True)
        shutil.copytree(whole / checkpoints.FOLDER, workdir / checkpoints.FOLDER)
        files = sorted(
            p for p in (workdir / checkpoints.FOLDER / str(newest)).rglob("*") if p.is_file() and p.stat().st_size
        )
        target, kind = files[rng.integers(len(files))], ("flipped", "cut", "emptied", "deleted")[number % 4]
        damage_file(target, kind, rng)
        found = checkpoints.recover(workdir)
        hold(found == older, f"{target} {kind}: step {found} was taken")
        hold((workdir / checkpoints.DAMAGED / str(newest)).is_dir(), f"{target} {kind}: not set aside")
    return "every one detected, the one before taken"


def damaged_shard(bench: Bench, rounds: int, rng: np.random.Generator) -> str:
    """One bit flipped, cut at a boundary, cut in a header, emptied, count wrong."""
    for number in range(rounds):
        copy = bench.folder / "damaged_data"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(bench.data, copy)
        (copy / "verified.json").unlink(missing_ok=True)
        shards = sorted(copy.glob("*array_record*"))
        shard = shards[rng.integers(len(shards))]
        kind = ("flipped", "cut at a boundary", "cut in a header", "emptied", "count wrong")[number % 5]
        if kind in ("flipped", "emptied"):
            damage_file(shard, kind, rng)
        elif kind == "count wrong":
            manifest = json.loads((copy / "dataset.json").read_text())
            # The sum stays: only the shards themselves can tell.
            moved = int(rng.integers(1, 9))
            manifest["shards"][0]["count"] += moved
            manifest["shards"][1]["count"] -= moved
            (copy / "dataset.json").write_text(json.dumps(manifest))
        else:
            block = 65536  # riegeli's blocks, each with a header
            size = shard.stat().st_size
            blocks = range(block, size, block)
            end = int(rng.choice(blocks)) + (7 if kind == "cut in a header" else 0)
            os.truncate(shard, min(end, size - 1))
        try:
            records.open_dataset(copy, "full")
        except InputError as error:
            named = shard.name if kind != "count wrong" else "dataset.json"
            hold(named in str(error), f"{kind}: {error}")
        else:
            raise Broken(f"{shard} {kind}: opened")
    return "every one detected when opened"


@contextlib.contextmanager
def poisoned(poison: Callable[[int], bool]) -> Iterator[None]:
    """Runs of this process get a NaN as a target in each batch whose step (from 1) is poisoned."""
    original = pipeline.train_batches

    def train_batches(*args, start: int, **kwargs):
        for number, batch in enumerate(original(*args, start=start, **kwargs), start + 1):
            if poison(number):
                batch = {**batch, "target": batch["target"].copy()}
                batch["target"][3] = np.nan
            yield batch

    pipeline.train_batches = train_batches
    try:
        yield
    finally:
        pipeline.train_batches = original


def one_nan(bench: Bench, rounds: int, rng: np.random.Generator) -> str:
    """NaN in one batch."""
    for number in range(rounds):
        workdir, bad = bench.folder / f"nan{number}", int(rng.integers(2, 9))
        config = bench.config(workdir, epochs=3.0, save_steps=1, seed=number)
        with poisoned(lambda step, bad=bad: step == bad):
            summary = loop.train(config)
        hold(summary["skipped_steps"] == 1 and summary["last_step"] == 9, f"{summary}")
        (row,) = [json.loads(line) for line in (workdir / "divergence.jsonl").read_text().splitlines()]
        dataset = records.open_dataset(bench.data)
        rows = dataset.rows("train")
        order = sampling.shuffled(len(rows), 32, number)
        names = dataset.column("name")[rows[order(bad - 1).numpy()]].tolist()
        hold(row["step"] == bad and row["rows"] == names, f"{row}, not {names}")
        hold(row["learning_rate"] > 0 and row["loss"] is None, f"{row}")
    return "named, nothing changed, the run went on"


def all_nan(bench: Bench, rounds: int, rng: np.random.Generator) -> str:
    """NaN in all batches from some step on, also after a restart."""
    for number in range(rounds):
        workdir, first = bench.folder / f"nans{number}", int(rng.integers(2, min(12, bench.steps - 10)))
        config = bench.config(workdir, save_steps=2, seed=number)
        for _ in range(2):
            try:
                with poisoned(lambda step, first=first: step >= first):
                    loop.train(config)
            except Diverged as error:
                hold("10 steps in a row" in str(error), str(error))
            else:
                raise Broken(f"{workdir} did not end")
            newest = checkpoints.recover(workdir)
            values = leaves(workdir, newest)
            hold(all(np.isfinite(leaf).all() for leaf in values.values()), "the last checkpoint is not finite")
    return "status 3, again after a restart; the last checkpoint finite"


def other_devices(bench: Bench, rounds: int, rng: np.random.Generator) -> str:
    """8 -> 4 -> 8 devices, and 1 x 8 -> 2 x 4, after 20 steps, in float32 and float64."""
    worst, allowed = {"float32": 0.0, "float64": 0.0}, {"float32": 1e-4, "float64": 1e-9}
    for number in range(rounds):
        dtype = ("float32", "float64")[number // 2 % 2]
        fields = {
            "epochs": 20 / 3,
            "eval_epochs": 20 / 3,
            "seed": number,
            "optim.base_learning_rate": 0.08,
            "save_steps": 1000,
        }
        fields |= {"optim.schedule": "constant", "model.dtype": dtype}  # the rate is 0.01
        whole = bench.folder / f"devices_whole{number}"
        bench.run(whole, **fields)
        places = [(8, 1), (4, 1), (8, 1)] if number % 2 == 0 else [(8, 1), (8, 2)]
        workdir = bench.folder / f"devices{number}"
        for part, (devices, processes) in enumerate(places):
            with bench.start(workdir, processes=processes, devices=devices, **fields) as started:
                if part < len(places) - 1:
                    hold(started[0].reaches(6 * (part + 1)), started[0].text())
                    started[0].process.send_signal(signal.SIGTERM)
                statuses = [one.ends() for one in started]
            expected = 0 if part == len(places) - 1 else Preempted.status
            hold({*statuses} == {expected}, f"statuses {statuses}: {started[0].text()[-2000:]}")
        one, two = leaves(whole, 20), leaves(workdir, 20)
        for part in ("params", "batch_stats"):
            worst[dtype] = max(worst[dtype], distance(one, two, part))
        hold(worst[dtype] < allowed[dtype], f"relative distance {worst}")
    return ", ".join(f"relative distance {worst[name]:.0e} in {name}" for name in worst if worst[name])


# With the rounds of the table.
FAULTS: dict[str, tuple[Callable, int]] = {
    "killed": (killed, 50),
    "stopped": (stopped, 10),
    "unscored": (unscored, 6),
    "bereft": (bereft, 5),
    "frozen": (frozen, 3),
    "full_disk": (full_disk, 10),
    "small_disk": (small_disk, 6),
    "damaged": (damaged, 100),
    "damaged_shard": (damaged_shard, 50),
    "one_nan": (one_nan, 5),
    "all_nan": (all_nan, 5),
    "other_devices": (other_devices, 5),
}


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--rounds", type=int, help="of every fault (default: those of the table)")
    parser.add_argument("--only", default=",".join(FAULTS), help="names with commas between (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    os.environ["XLA_FLAGS"] = cpu.quick_compilation()  # tiny models: the time goes into compiling
    logging.getLogger("lae_jax").setLevel(logging.CRITICAL)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    broken = False
    with tempfile.TemporaryDirectory(prefix="survival") as folder:
        bench = Bench(pathlib.Path(folder))
        jax.config.update("jax_compilation_cache_dir", str(bench.folder / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        bench.prepare()
        print("| fault | rounds | held | seconds | |\n|---|---|---|---|---|", flush=True)
        for name in args.only.split(","):
            fault, rounds = FAULTS[name]
            rounds, begun = args.rounds or rounds, time.monotonic()
            try:
                remark, held = fault(bench, rounds, np.random.default_rng(args.seed)), "yes"
            except Skipped as reason:
                remark, held = f"{name}: {reason}", "SKIPPED"
            except (Broken, subprocess.TimeoutExpired) as error:
                remark, held, broken = f"{name}: {error}", "NO", True
            seconds = time.monotonic() - begun
            print(f"| {fault.__doc__.rstrip('.')} | {rounds} | {held} | {seconds:.0f} | {remark} |", flush=True)
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
