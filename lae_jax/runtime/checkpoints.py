"""Checkpoints of a run (orbax): save, verify, restore."""

import contextlib
import dataclasses
import logging
import os
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import preservation_policy

from lae_jax.runtime import checksums, files, layout, parallel
from lae_jax.runtime.errors import InputError, SaveFailed

logger = logging.getLogger("lae_jax")

FOLDER, DAMAGED = layout.CHECKPOINTS, "damaged"


class Checkpoints:
    """The checkpoints of one run. A checkpoint is a state and its `meta`, a dict of JSON:

    step, epoch, stage, model, num_outputs, scores, selected_by, selected (the score that the best checkpoint minimises,
    or null), constants (of the loss, from an earlier run), config, crop, data, data_hash, trained_on (what it and
    the runs before it learnt from: data, data_hash, split), leaks (findings of an audit that it was trained with),
    identities (hashed people of the backbone's pre-training, or null).

    It counts once it is sealed (checksums.py): committed by orbax, its files hashed, "saved" logged. The newest two
    and the best one are kept.
    """

    def __init__(self, workdir: os.PathLike | str, *, read_only: bool = False, asynchronous: bool = True):
        self._directory = epath.Path(workdir) / FOLDER
        self._saving: int | None = None  # the step that other hosts may not have sealed yet
        self._sealed = True
        policies = [
            preservation_policy.LatestN(2),
            preservation_policy.BestN(
                get_metric_fn=lambda metrics: metrics["selected"],
                reverse=True,
                n=1,
                keep_checkpoints_without_metrics=False,
            ),
        ]
        with _without_warnings() if read_only else contextlib.nullcontext():
            self._manager = ocp.CheckpointManager(
                _absolute(self._directory),
                item_handlers={"state": ocp.StandardCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()},
                options=ocp.CheckpointManagerOptions(
                    best_fn=lambda metrics: metrics["selected"],
                    best_mode="min",
                    read_only=read_only,
                    create=not read_only,
                    cleanup_tmp_directories=not read_only,
                    # With several hosts a save that fails on one would leave the others in orbax's barrier for 20
                    # minutes.
                    enable_async_checkpointing=asynchronous and not read_only and jax.process_count() == 1,
                    preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
                ),
            )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, *_) -> None:
        try:
            self._manager.close()
        except Exception:
            # A failed save is raised again here; what already ends the run says it better.
            if kind is None:
                raise

    def steps(self) -> list[int]:
        """Of the sealed checkpoints, rising."""
        return [step for step in sorted(self._manager.all_steps()) if checksums.is_sealed(self._directory / str(step))]

    def latest(self) -> int | None:
        return max(self.steps(), default=None)

    def best(self) -> int | None:
        """The step with the lowest selecting score, the newest of equals; the newest of all if none has one."""
        scored = [(self.meta(step)["selected"], -step) for step in self.steps()]
        scored = [pair for pair in scored if pair[0] is not None]
        return -min(scored)[1] if scored else self.latest()

    def meta(self, step: int) -> dict:
        return self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta

    def save(self, state: Any, meta: Mapping) -> None:
        """Saves a state, or starts to and returns; `poll` and `wait` say when it counts.

        Args: state: a dataclass of trees of arrays. Raises SaveFailed.
        """
        self.wait()
        if jax.process_count() > 1:
            state = jax.tree.map(ocp.utils.fully_replicated_host_local_array_to_global_array, state)
        self._saving = int(meta["step"])
        self._guarded(
            self._begin,
            args=ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(dict(meta))),
            metrics=None if meta["selected"] is None else {"selected": meta["selected"]},
        )
        self._sealed = False
        self.poll()

    def _begin(self, **kwargs) -> None:
        if not self._manager.save(self._saving, **kwargs):
            raise RuntimeError(f"orbax saves nothing after step {self._manager.latest_step()}, which is there already")

    def poll(self) -> None:
        """Seals a checkpoint that was committed meanwhile. Raises SaveFailed if it could not be."""
        if self._saving is not None and not self._sealed and not self._manager.is_saving_in_progress():
            self._seal()

    def wait(self) -> None:
        """Returns once what was saved is sealed, on all hosts at once. Raises SaveFailed if it could not be."""
        if self._saving is None:
            return
        if not self._sealed:
            self._seal()
        parallel.wait_for_hosts(f"sealed {self._saving}")
        self._saving = None

    def _seal(self) -> None:
        self._guarded(self._manager.wait_until_finished)
        if parallel.is_first_host():
            self._guarded(checksums.seal, self._directory / str(self._saving))
            logger.info("saved step %d", self._saving)
        self._sealed = True

    def _guarded(self, call, *args, **kwargs) -> None:
        try:
            call(*args, **kwargs)
        except Exception as error:
            failed, self._saving = self._saving, None
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise SaveFailed(
                f"the checkpoint of step {failed} could not be saved in {self._directory} ({reason[0]}); the newest"
                f" whole one is of step {self.latest()}. Mend it and start the same command again"
            ) from error

    def restore(self, step: int, target: Any) -> Any:
        """The whole state as numpy arrays, for going on. Raises InputError that names the first leaf that differs."""
        saved = self._manager.item_metadata(step)["state"]
        compare(shapes(saved), shapes(dataclasses.asdict(target)), f"{self._directory}/{step}")
        abstract = jax.tree.map(_numpy_target, target)
        return self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))).state

    def arrays(self, step: int, names: tuple[str, ...] = ("params", "batch_stats")) -> dict:
        """Parts of a state (all of the model's variables by default) as numpy arrays, on any number of devices."""
        saved = self._manager.item_metadata(step)["state"]
        wanted = {name: jax.tree.map(_numpy_target, saved[name]) for name in names}
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            return reader.restore(
                _absolute(self._directory / str(step) / "state"),
                args=ocp.args.PyTreeRestore(
                    item=wanted,
                    partial_restore=True,
                    restore_args=jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted),
                ),
            )


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Orbax warns of every folder that is opened read-only that it is."""
    absl = logging.getLogger("absl")
    before = absl.level
    absl.setLevel(logging.ERROR)
    try:
        yield
    finally:
        absl.setLevel(before)


def _absolute(path: epath.Path) -> epath.Path:
    """Orbax takes no relative paths; one in a bucket is absolute."""
    return path if files.is_remote(path) else epath.Path(os.path.abspath(path))


def _numpy_target(leaf) -> np.ndarray:
    return np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)


def shapes(tree) -> dict[str, tuple]:
    """{path of a leaf: its shape}."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}


def compare(saved: dict[str, tuple], wanted: dict[str, tuple], where: str) -> None:
    """Raises InputError that names the first leaf whose shapes differ."""
    for name in sorted({*saved, *wanted}):
        if saved.get(name) != wanted.get(name):
            raise InputError(
                f"{where} does not fit this run: {name} is {saved.get(name, 'not there')} in the checkpoint and"
                f" {wanted.get(name, 'not there')} in the model of the config"
            )


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a stage starts from: a finished (or running) run's checkpoint, or weights that others trained."""

    workdir: epath.Path | str  # of weights: the source, a file or hf:owner/name@commit
    step: int | None  # None: of weights
    variables: dict
    meta: dict


def recover(workdir: os.PathLike | str) -> int | None:
    """The newest step that can be gone on from, the same on all hosts; None where nothing was saved yet.

    Checkpoints whose files are not as they were sealed, or that a kill kept from being sealed, are reported and set
    aside in `damaged/`, and the newest of the others is taken. Raises InputError if none is left.
    """
    step = _recover(epath.Path(workdir)) if parallel.is_first_host() else 0
    step = parallel.from_first_host(step)
    return None if step == _NOTHING else step


_NOTHING = -1


def _recover(workdir: epath.Path) -> int:
    folder, whole, aside = workdir / FOLDER, [], []
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    steps = sorted((int(name) for name in names if name.isdigit()), reverse=True)
    for step in steps:
        sealed, reason = checksums.is_sealed(folder / str(step)), checksums.damage(folder / str(step))
        if reason is None:
            whole.append(step)
            continue
        place = workdir / DAMAGED / str(step)
        number = 1
        while place.exists():
            number += 1
            place = workdir / DAMAGED / f"{step}-{number}"
        place.parent.mkdir(exist_ok=True)
        (folder / str(step)).rename(place)
        # The newest one may have been ended in its first save: nothing was lost.
        if sealed or step != max(steps):
            aside.append(str(place))
        logger.error("%s: the checkpoint of step %d is damaged (%s): set aside as %s", workdir, step, reason, place)
    if aside and not whole:
        raise InputError(
            f"no checkpoint of {workdir} is whole; the damaged ones are {', '.join(aside)}. Started again, the run"
            " begins from its first step"
        )
    return whole[0] if whole else _NOTHING


def read_meta(workdir: os.PathLike | str, step: int) -> dict:
    """Meta of a run's checkpoint."""
    with Checkpoints(workdir, read_only=True) as saved:
        return saved.meta(step)


def load_run(workdir: os.PathLike | str, step: int | None = None, how_to_make: str = "") -> Checkpoint:
    """The best checkpoint of a run (or that of `step`), verified. Raises InputError if there is none, or damage."""
    workdir = epath.Path(workdir)
    layout.require_run(workdir, how_to_make)
    if not (workdir / "summary.json").exists():
        logger.warning("%s is not finished: its best checkpoint so far is taken", workdir)
    for path in sorted((workdir / FOLDER).iterdir()):
        if checksums.is_sealed(path) and (reason := checksums.damage(path)):
            raise InputError(
                f"{path} is damaged ({reason}): restore it, move it away, or start the run's command again, which"
                " sets it aside and goes on from the one before"
            )
    with Checkpoints(workdir, read_only=True) as saved:
        if step is not None and step not in saved.steps():
            raise InputError(f"{workdir} has no checkpoint of step {step}, only {saved.steps()}")
        step = saved.best() if step is None else step
        # A run that still goes on may have a better one by the time another host looks.
        step = parallel.from_first_host(_NOTHING if step is None else step)
        if step == _NOTHING:
            raise InputError(f"{workdir} has no checkpoint yet{how_to_make and f': finish it with {how_to_make}'}")
        return Checkpoint(workdir, step, saved.arrays(step), saved.meta(step))
