"""Checkpoints of a run (orbax), and what is handed from one stage to the next."""

import dataclasses
import logging
import pathlib
from collections.abc import Mapping

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from lae_jax.errors import InputError
from lae_jax.steps import TrainState

logger = logging.getLogger("lae_jax")


class Checkpoints:
    """The checkpoints of one run. A checkpoint is a state and its `meta`, a dict of JSON:

    step, epoch, stage, model, num_outputs, scores, selected_by, selected (the score that the best checkpoint minimises,
    or null), handed (what the loss was given of an earlier run), config, crop, data, data_hash.
    """

    def __init__(self, workdir: pathlib.Path, *, read_only: bool = False):
        self._directory = workdir / "checkpoints"
        policies = [
            preservation_policy.LatestN(2),
            preservation_policy.BestN(
                get_metric_fn=lambda metrics: metrics["selected"],
                reverse=True,
                n=1,
                keep_checkpoints_without_metrics=False,
            ),
        ]
        self._manager = ocp.CheckpointManager(
            self._directory.absolute(),
            item_handlers={"state": ocp.StandardCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()},
            options=ocp.CheckpointManagerOptions(
                best_fn=lambda metrics: metrics["selected"],
                best_mode="min",
                read_only=read_only,
                create=not read_only,
                preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
            ),
        )

    def steps(self) -> list[int]:
        return sorted(self._manager.all_steps())

    def latest(self) -> int | None:
        return self._manager.latest_step()

    def best(self) -> int | None:
        """The step with the lowest selecting score, the newest of equals; the newest of all if none has one."""
        scored = [(self.meta(step)["selected"], -step) for step in self.steps()]
        scored = [pair for pair in scored if pair[0] is not None]
        return -min(scored)[1] if scored else self.latest()

    def meta(self, step: int) -> dict:
        return self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta

    def save(self, state: TrainState, meta: Mapping) -> None:
        """Starts to save; `wait` returns once it is committed."""
        if jax.process_count() > 1:
            state = jax.tree.map(ocp.utils.fully_replicated_host_local_array_to_global_array, state)
        self._manager.save(
            int(meta["step"]),
            args=ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(dict(meta))),
            metrics=None if meta["selected"] is None else {"selected": meta["selected"]},
        )

    def wait(self) -> None:
        self._manager.wait_until_finished()

    def restore(self, step: int, target: TrainState) -> TrainState:
        """The whole state as numpy arrays, for going on. Raises InputError that names the first leaf that differs."""
        saved = self._manager.item_metadata(step)["state"]
        _compare(_shapes(saved), _shapes(dataclasses.asdict(target)), f"{self._directory}/{step}")
        abstract = jax.tree.map(_numpy_target, target)
        return self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))).state

    def arrays(self, step: int, names: tuple[str, ...] = ("params", "batch_stats")) -> dict:
        """Parts of a state (all of the model's variables by default) as numpy arrays, on any number of devices."""
        saved = self._manager.item_metadata(step)["state"]
        wanted = {name: jax.tree.map(_numpy_target, saved[name]) for name in names}
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            return reader.restore(
                (self._directory / str(step) / "state").absolute(),
                args=ocp.args.PyTreeRestore(
                    item=wanted,
                    partial_restore=True,
                    restore_args=jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted),
                ),
            )

    def close(self) -> None:
        self._manager.close()


def _numpy_target(leaf) -> np.ndarray:
    return np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)


def _shapes(tree) -> dict[str, tuple]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}


def _compare(saved: dict[str, tuple], wanted: dict[str, tuple], where: str) -> None:
    for name in sorted({*saved, *wanted}):
        if saved.get(name) != wanted.get(name):
            raise InputError(
                f"{where} does not fit this run: {name} is {saved.get(name, 'not there')} in the checkpoint and"
                f" {wanted.get(name, 'not there')} in the model of the config"
            )


@dataclasses.dataclass(frozen=True)
class Handed:
    """A finished (or running) run's checkpoint as another stage takes it."""

    workdir: pathlib.Path
    step: int
    variables: dict
    meta: dict


def newest_meta(workdir: pathlib.Path) -> dict | None:
    """Meta of a run's newest checkpoint; None if it has none."""
    if not (workdir / "checkpoints").is_dir():
        return None
    saved = Checkpoints(workdir, read_only=True)
    try:
        return None if saved.latest() is None else saved.meta(saved.latest())
    finally:
        saved.close()


def require_run(workdir: str | pathlib.Path, how_to_make: str = "") -> None:
    """Raises InputError, with the command that makes it, if a folder holds no run."""
    if not (pathlib.Path(workdir) / "checkpoints").is_dir():
        raise InputError(f"{workdir} holds no run{how_to_make and f': make it with {how_to_make}'}")


def load_run(workdir: str | pathlib.Path, step: int | None = None, how_to_make: str = "") -> Handed:
    """The best checkpoint of a run (or that of `step`). Raises InputError if there is none."""
    workdir = pathlib.Path(workdir)
    require_run(workdir, how_to_make)
    if not (workdir / "summary.json").exists():
        logger.warning("%s is not finished: its best checkpoint so far is taken", workdir)
    checkpoints = Checkpoints(workdir, read_only=True)
    try:
        if step is not None and step not in checkpoints.steps():
            raise InputError(f"{workdir} has no checkpoint of step {step}, only {checkpoints.steps()}")
        step = checkpoints.best() if step is None else step
        if step is None:
            raise InputError(f"{workdir} has no checkpoint yet{how_to_make and f': finish it with {how_to_make}'}")
        return Handed(workdir, step, checkpoints.arrays(step), checkpoints.meta(step))
    finally:
        checkpoints.close()


def take_over(fresh: dict, handed: Handed, parts: tuple[str, ...]) -> dict:
    """`fresh` variables with the `parts` ('backbone', 'head') of a checkpoint; logs what was loaded and what made new.

    Lenient about heads: one of another shape is made new. Raises InputError if a backbone leaf does not fit.
    """
    result = {name: dict(tree) for name, tree in fresh.items()}
    loaded, new = [], []
    for part in ("backbone", "head"):
        source = {name: tree.get(part, {}) for name, tree in handed.variables.items()}
        target = {name: tree.get(part, {}) for name, tree in fresh.items()}
        fits = _shapes(source) == _shapes(target)
        if part == "backbone" and part in parts and not fits:
            model = handed.meta.get("model")
            _compare(_shapes(source), _shapes(target), f"{handed.workdir} (model {model}), backbone")
        if part in parts and fits:
            for name, tree in source.items():
                if tree:
                    result[name][part] = tree
            loaded.append(part)
        else:
            new.append(part)
    logger.info(
        "from %s step %d: loaded %s; made new %s",
        handed.workdir,
        handed.step,
        ", ".join(loaded) or "nothing",
        ", ".join(new) or "nothing",
    )
    return result
