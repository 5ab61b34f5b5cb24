"""Checkpoints of a run (orbax): save, verify, restore."""

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import preservation_policy

from lae_jax.runtime import checksums, files, layout, origin, parallel
from lae_jax.runtime.errors import InputError, SaveFailed, of_a_bucket, silence_other_writes
from lae_jax.runtime.foreign import arrays, ocdbt
from lae_jax.runtime.origin import Checkpoint
from lae_jax.runtime.typed import declared

logger = logging.getLogger("lae_jax")

FOLDER, UNSCORED, DAMAGED = layout.CHECKPOINTS, layout.UNSCORED, "damaged"


class Checkpoints:
    """The checkpoints of one run.

    A checkpoint holds a state and its `meta`, a JSON object: run (id of the run, see `origin.run_id`), step, epoch,
    stage, model, num_outputs, scores, selected_by, selected (the score that the best checkpoint minimises, or null),
    constants (loss constants from an earlier run), config, crop (crop contract), data, data_hash, age_weights (hash of
    the weights of the order, or null), trained_on (data, data_hash and split of this run, the runs before it and its
    teacher), leaks (findings of an audit that it was trained with), identities (hashed people of the backbone's
    pre-training, or null), teachers (from, step, sha256 of the arrays, weight and temperature of the teachers of the
    runs before it and of its own, which is the last), cures (name and changed settings of the cures of stage 2, of the
    runs before it and of its own, which are the last).

    A checkpoint is complete when orbax has committed it, its checksums are written and "saved" is logged. The newest
    two and the best one are kept.
    """

    def __init__(
        self, workdir: os.PathLike | str, folder: str = FOLDER, *, read_only: bool = False, asynchronous: bool = True
    ):
        self._directory = epath.Path(workdir) / folder
        self._run = None if read_only else origin.run_id(workdir)
        self._saving: int | None = None  # the step that may not be complete on all hosts yet
        self._is_complete = True
        if not read_only:
            silence_other_writes()
        policies = [
            preservation_policy.LatestN(2),
            preservation_policy.BestN(
                get_metric_fn=lambda metrics: metrics["selected"],
                reverse=True,
                n=1,
                keep_checkpoints_without_metrics=False,
            ),
        ]
        with contextlib.ExitStack() as around:
            if read_only:  # others begin with `recover`, and may find a full disk
                around.enter_context(_without_warnings())
                around.enter_context(_reading(self._directory))
            self._manager = ocp.CheckpointManager(
                _absolute(self._directory),
                item_handlers={"state": ocp.StandardCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()},
                options=ocp.CheckpointManagerOptions(
                    best_fn=lambda metrics: metrics["selected"],
                    best_mode="min",
                    read_only=read_only,
                    create=not read_only,
                    cleanup_tmp_directories=not read_only,
                    # If an asynchronous save fails on one host, all others wait 20 minutes in a barrier of orbax.
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
            # close() raises the error of a failed save again; an error that already ends the run is clearer.
            if kind is None:
                raise

    def steps(self) -> list[int]:
        """Returns the steps of the complete checkpoints, in rising order."""
        return [step for step in sorted(self._manager.all_steps()) if checksums.has(self._directory / str(step))]

    def latest(self) -> int | None:
        """Returns the newest step; None if there is none."""
        return max(self.steps(), default=None)

    def best(self) -> int | None:
        """Returns the step with the lowest `selected`, the newest of equals; the newest step if none has a score."""
        scored = [(self.meta(step)["selected"], -step) for step in self.steps()]
        scored = [pair for pair in scored if pair[0] is not None]
        return -min(scored)[1] if scored else self.latest()

    def meta(self, step: int) -> dict:
        """Returns the `meta` of a checkpoint.

        Raises:
          InputError: Its file is damaged.
        """
        return origin.read_meta(self._directory / str(step), declared.META)

    def save(self, state: Any, meta: Mapping) -> None:
        """Saves a state, or starts to save it; `poll` and `wait` complete the checkpoint.

        Args:
          state: A dataclass of trees of arrays; its `step` is that of `meta`.
          meta: See the class; `run` is added here.

        Raises:
          SaveFailed: This checkpoint or the one before could not be saved.
          Unreachable: Neither could they, because the bucket does not answer; `poll` and `wait` raise it, too.
        """
        self.wait()
        state = parallel.one_copy_a_host(state)
        self._saving = int(meta["step"])
        self._guarded(
            self._begin,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave({**meta, "run": self._run})
            ),
            metrics=None if meta["selected"] is None else {"selected": meta["selected"]},
        )
        self._is_complete = False
        self.poll()

    def _begin(self, **kwargs) -> None:
        if not self._manager.save(self._saving, **kwargs):
            raise RuntimeError(f"orbax saves only steps after {self._manager.latest_step()}, the newest checkpoint")

    def poll(self) -> None:
        """Completes a checkpoint if orbax has committed it.

        Raises:
          SaveFailed: The checkpoint could not be saved.
        """
        if self._saving is not None and not self._is_complete and not self._manager.is_saving_in_progress():
            self._complete()

    def wait(self) -> None:
        """Waits until the last checkpoint is complete, and for all hosts.

        Raises:
          SaveFailed: The checkpoint could not be saved.
        """
        if self._saving is None:
            return
        if not self._is_complete:
            self._complete()
        parallel.wait_for_hosts(f"saved {self._saving}")
        self._saving = None

    def _complete(self) -> None:
        self._guarded(self._manager.wait_until_finished)
        if parallel.is_first_host():
            self._guarded(checksums.write, self._directory / str(self._saving))
            logger.info("saved step %d", self._saving)
        self._is_complete = True

    def _guarded(self, call, *args, **kwargs) -> None:
        try:
            call(*args, **kwargs)
        except Exception as error:
            failed, self._saving = self._saving, None
            reason = str(error).strip().splitlines() or [type(error).__name__]
            newest = None
            with contextlib.suppress(Exception):  # a bucket may not answer
                newest = self.latest()
            before = (
                "those saved before are complete" if newest is None else f"the newest complete one is of step {newest}"
            )
            path = self._directory / str(failed)
            raise of_a_bucket(error, path, before) or SaveFailed(
                f"the checkpoint of step {failed} could not be saved in {self._directory} ({reason[0]}); {before}."
                " Remove the cause and start the same command again"
            ) from error

    def restore(self, step: int, target: Any) -> Any:
        """Returns the whole state as numpy arrays, to resume a run.

        Args:
          step: Step of the checkpoint.
          target: A state with the expected shapes; where a leaf is a `jax.ShapeDtypeStruct` with a sharding, it is
            restored as such an array.

        Raises:
          InputError: A shape differs, and the message names the first such leaf; or the state is of another step; or a
            value is not finite.
        """
        saved = self._saved(step)
        arrays.compare(arrays.shapes(saved), arrays.shapes(vars(target)), f"{self._directory}/{step}")
        abstract = jax.tree.map(arrays.target, target)
        with _reading(self._directory / str(step)):
            state = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))).state
        self._require_step(step, state.step)
        arrays.require_finite(self._directory / str(step), vars(state))
        return state

    def arrays(self, step: int, names: tuple[str, ...] = ()) -> dict:
        """Returns parts of a state (by default `origin.variables`) as numpy arrays, on any number of devices.

        The class weights of stage 1 are left out: only a run that resumes needs them, and those of millions of people
        do not fit a host.

        Raises:
          InputError: The files are damaged, a value is not finite, or the state is of another step.
        """
        saved = self._saved(step)
        with _reading(self._directory / str(step)), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            read = names or ("params", "batch_stats", *(["ema"] if "ema" in saved else []))
            parts = {name: arrays.without_classes(saved[name]) for name in (*read, "step")}
            wanted = jax.tree.map(arrays.target, parts)
            found = reader.restore(
                _absolute(self._directory / str(step) / "state"),
                args=ocp.args.PyTreeRestore(
                    item=wanted,
                    partial_restore=True,
                    restore_args=jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted),
                ),
            )
            kept = {name: found[name] for name in names} or origin.variables(found)
        self._require_step(step, found["step"])
        arrays.require_finite(self._directory / str(step), kept)
        return kept

    def _require_step(self, step: int, found: np.ndarray) -> None:
        if found.size != 1 or int(found) != step:
            raise InputError(
                f"{self._directory}/{step} holds the state of step {found}: restore the checkpoint, or move it away"
            )

    def _saved(self, step: int) -> dict:
        """Returns the tree of a saved state, with metadata in place of arrays.

        The manager's `item_metadata` reads every folder in a checkpoint, also those that are not its own.
        """
        with _reading(path := self._directory / str(step)):
            ocdbt.require_small(path)
            tree = ocp.PyTreeCheckpointHandler().metadata(_absolute(path / "state")).tree
            arrays.require_small(path, tree)
        return tree


@contextlib.contextmanager
def _reading(path: epath.Path) -> Iterator[None]:
    """Turns the errors of orbax into InputErrors. Files that match their checksums may be damaged all the same."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:  # orbax raises many types
        if failed := of_a_bucket(error):
            raise failed from error
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(
            f"{path} cannot be read ({reason[0][:200]}): restore it, or move it away and start the run's command again"
        ) from error


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Silences the warning of orbax that a folder is opened read-only."""
    absl = logging.getLogger("absl")
    before = absl.level
    absl.setLevel(logging.ERROR)
    try:
        yield
    finally:
        absl.setLevel(before)


def _absolute(path: epath.Path) -> epath.Path:
    """Orbax needs absolute paths; a path in a bucket is absolute."""
    return path if files.is_remote(path) else epath.Path(os.path.abspath(path))


def recover(workdir: os.PathLike | str) -> int | None:
    """Finds the step to resume from, and moves damaged checkpoints to `damaged/`.

    A checkpoint is damaged if its files differ from its checksums, if the run was killed before these were written, or
    if it is not the one of its step and of this run. Each one is logged.

    Returns:
      The newest step without damage, scored or not, the same on all hosts; None if nothing is saved. `origin.folder_of`
      has its folder.

    Raises:
      InputError: All checkpoints are damaged; or see `origin.run_id`.
    """
    step = _recover(epath.Path(workdir)) if parallel.is_first_host() else 0
    step = parallel.from_first_host(step)
    return None if step == _NOTHING else step


_NOTHING = -1


def _recover(workdir: epath.Path) -> int:
    whole, aside, found, run = [], [], origin.folders(workdir), origin.run_id(workdir)
    for path in found:
        step, complete, reason = int(path.name), checksums.has(path), origin.fault(path, run)
        if reason is None:
            whole.append(step)
            continue
        place = workdir / DAMAGED / str(step)
        number = 1
        while place.exists():
            number += 1
            place = workdir / DAMAGED / f"{step}-{number}"
        place.parent.mkdir(exist_ok=True)
        _move(path, place)
        # A run that was killed during its first save has lost nothing.
        if complete or path != found[0]:
            aside.append(str(place))
        logger.error("%s: the checkpoint of step %d is damaged (%s): moved to %s", workdir, step, reason, place)
    if aside and not whole:
        raise InputError(
            f"all checkpoints of {workdir} are damaged; they were moved to {', '.join(aside)}. If you start the same"
            " command again, the run begins from its first step"
        )
    return whole[0] if whole else _NOTHING


def _move(path: epath.Path, place: epath.Path) -> None:
    """Renames a folder. In a bucket its files are copied first, so that a kill leaves a whole one in one place."""
    if not files.is_remote(path):
        path.rename(place)
        return
    for name in checksums.contents(path):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).copy(place / name, overwrite=True)
    path.rmtree()


def read_meta(workdir: os.PathLike | str, step: int, folder: str = FOLDER) -> dict:
    """Returns the `meta` of a checkpoint of a run, as `Checkpoints.meta` does."""
    return origin.read_meta(epath.Path(workdir) / folder / str(step), declared.META)


def load_run(workdir: os.PathLike | str, step: int | None = None, how_to_make: str = "") -> Checkpoint:
    """Verifies the checkpoints of a run and returns one.

    Args:
      workdir: The run.
      step: Step of the checkpoint; None: the best one.
      how_to_make: The command that makes the run, for messages.

    Raises:
      InputError: There is no such checkpoint, or one is damaged, as `recover` defines it.
    """
    workdir = epath.Path(workdir)
    layout.require_run(workdir, how_to_make)
    if not (workdir / "summary.json").exists():
        logger.warning("%s is not finished: using its best checkpoint so far", workdir)
    run = origin.run_id(workdir)
    for path in (workdir / FOLDER / name for name in layout.contents(workdir / FOLDER)):
        if checksums.has(path) and (reason := origin.fault(path, run)):
            raise InputError(
                f"{path} is damaged ({reason}): restore it, move it away, or start the run's command again, which"
                " moves it away and resumes from the checkpoint before"
            )
    with Checkpoints(workdir, read_only=True) as saved:
        if step is not None and step not in saved.steps():
            raise InputError(f"{workdir} has no checkpoint of step {step}, only {saved.steps()}")
        step = saved.best() if step is None else step
        # A run that is training may have a better checkpoint by the time another host reads it.
        step = parallel.from_first_host(_NOTHING if step is None else step)
        if step == _NOTHING:
            raise InputError(f"{workdir} has no checkpoint yet{how_to_make and f': finish it with {how_to_make}'}")
        return Checkpoint(workdir, step, saved.arrays(step), saved.meta(step))
