"""The one loop that all stages share."""

import dataclasses
import functools
import json
import logging
import math
import pathlib
import time
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from lae_jax import checkpoints, console, files, metrics, models, parallel, runs, stages, steps
from lae_jax.checkpoints import Checkpoints
from lae_jax.data import pipeline, records, sampling
from lae_jax.errors import InputError
from lae_jax.journal import Journal

logger = logging.getLogger("lae_jax")


_WHAT_TO_DO = "Lower config.optim.base_rate, or set config.optim.clip_norm"


class Diverged(RuntimeError):
    """Too many steps in a row had a loss or gradients that were not finite, or the outputs of an evaluation are not."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """All of a run that is settled before its first step."""

    config: ConfigDict
    stage: stages.Stage
    workdir: pathlib.Path
    par: parallel.Parallel
    dataset: records.Dataset
    training: runs.Examples
    validation: runs.Examples | None
    num_outputs: int
    steps_per_epoch: int
    total_steps: int
    eval_steps: int
    selected_by: str | None  # score that the kept checkpoint minimises; None: the newest is kept
    handed: dict
    init: checkpoints.Handed | None


def make_plan(config: ConfigDict) -> Plan:
    """Checks everything that can be checked before work begins. Raises InputError that says what to do."""
    stage = stages.get(config.stage)
    par = parallel.Parallel()
    if config.batch_size < 1 or config.epochs <= 0 or config.accumulate < 1 or config.eval_epochs <= 0:
        raise InputError("batch_size, accumulate, epochs and eval_epochs must be positive")
    if par.per_device(config.batch_size) % config.accumulate:
        raise InputError(
            f"accumulate {config.accumulate} does not divide the {par.per_device(config.batch_size)} images of a device"
        )
    par.per_device(config.eval_batch_size)
    init = _load_init(config, stage)
    handed = _load_handed(config, stage, init)
    dataset = records.open_dataset(config.data.path)
    training = runs.examples(dataset, runs.split_name(config, config.data.train), stage)
    validation, selected_by = None, None
    if config.data.split:
        validation = runs.examples(dataset, runs.split_name(config, config.data.split), stage)
        selected_by = stage.select(validation.targets)
    if stage.target == "identity":
        classes, codes = np.unique(training.targets.astype(str), return_inverse=True)
        training, num_outputs = runs.Examples(training.rows, codes.astype(np.int32)), len(classes)
    else:
        training, num_outputs = runs.Examples(training.rows, training.targets.astype(np.float32)), runs.NUM_AGES
    steps_per_epoch = math.ceil(len(training.rows) / config.batch_size)
    return Plan(
        config=config,
        stage=stage,
        workdir=pathlib.Path(config.workdir),
        par=par,
        dataset=dataset,
        training=training,
        validation=validation,
        num_outputs=num_outputs,
        steps_per_epoch=steps_per_epoch,
        total_steps=max(1, round(config.epochs * steps_per_epoch)),
        eval_steps=max(1, round(config.eval_epochs * steps_per_epoch)),
        selected_by=selected_by,
        handed={**config.loss, **handed},
        init=init,
    )


def _load_init(config: ConfigDict, stage: stages.Stage) -> checkpoints.Handed | None:
    name = config.init_from
    command = "python -m lae_jax.main --config configs/{}.py"
    if name in ("", "scratch"):
        if "head" in stage.loads:
            raise InputError(
                f"stage {stage.name} starts from a run of stage 2: set --config.init_from (made by"
                f" {command.format('represent')})"
            )
        return None
    init = checkpoints.load_run(name, config.init_step, command.format(stage.follows[-1]))
    if init.meta["stage"] not in stage.follows:
        raise InputError(
            f"{name} is a run of stage {init.meta['stage']}; stage {stage.name} starts from one of"
            f" {' or '.join(stage.follows)}"
        )
    if init.meta["model"] != config.model.name:
        raise InputError(
            f"{name} holds a {init.meta['model']}, the config wants {config.model.name}:"
            f" add --config.model.name={init.meta['model']} or name another init_from"
        )
    return init


def _load_handed(config: ConfigDict, stage: stages.Stage, init: checkpoints.Handed | None) -> dict:
    """The validation scores that the loss is handed: of `mae_from`, else of the run that is started from."""
    if not stage.needs:
        return {}
    source = checkpoints.load_run(config.mae_from) if config.mae_from else init
    if source.meta["stage"] != "represent":
        raise InputError(f"{source.workdir} is a run of stage {source.meta['stage']}; mae comes from stage represent")
    scores = source.meta["scores"] or {}
    missing = [name for name in stage.needs if scores.get(name) is None]
    if missing:
        raise InputError(
            f"{source.workdir} step {source.step} has no validation {', '.join(missing)}, since it was trained without"
            " a validation split: name a run of stage represent that has one with --config.mae_from"
        )
    return {name: scores[name] for name in stage.needs}


def make_order(plan: Plan) -> sampling.Order:
    """The stage's order of the training rows."""
    config, n = plan.config, len(plan.training.rows)
    if plan.stage.order == "shuffled":
        return sampling.shuffled(n, config.batch_size, config.seed)
    classes = metrics.age_class(plan.training.targets)
    absent = sorted({*range(1, 82)} - {*classes.tolist()})
    if absent:
        logger.info("ages without an image, which the class-balanced order leaves out: %s", absent)
    return sampling.class_balanced(classes, config.batch_size, config.seed, config.data.power)


def train(config: ConfigDict) -> dict:
    """Runs one stage to its end (going on where an earlier start stopped) and returns its summary.

    Raises InputError for what the user can mend, Diverged after `max_bad_steps` bad steps in a row.
    """
    workdir = pathlib.Path(config.workdir)
    if (workdir / "summary.json").exists():
        runs.claim_folder(workdir, config)
        logger.info("%s is done", workdir)
        return json.loads((workdir / "summary.json").read_text())
    plan = make_plan(config)
    runs.claim_folder(workdir, config)
    module = runs.model(config, plan.stage, plan.num_outputs)
    variables = models.initialise(module, config.data.image_size, config.seed)
    if plan.init is not None:
        parts = ("backbone",) if config.reinit_head else plan.stage.loads
        variables = checkpoints.take_over(variables, plan.init, parts)
    schedule = runs.schedules(config, plan.steps_per_epoch, plan.total_steps)
    tx = runs.optimiser(config, schedule, variables["params"], plan.stage.trains)
    state = steps.create_state(variables, tx)
    saved = Checkpoints(workdir)
    try:
        if saved.latest() is not None:
            meta = saved.meta(saved.latest())
            if meta["data_hash"] != plan.dataset.hash:
                raise InputError(f"{plan.dataset.path} is not the data set that {workdir} was begun with")
            state = saved.restore(saved.latest(), state)
            logger.info("%s goes on after step %d", workdir, saved.latest())
        elif plan.init is None and plan.stage.name == "represent":
            logger.info("starts from scratch; the paper starts from stage 1 (--config.init_from=runs/pretrain)")
        if parallel.is_first_host():
            files.write_json(workdir / "provenance.json", runs.provenance(config, plan.dataset))
        return _Loop(plan, module, tx, schedule, saved).run(plan.par.place(state))
    finally:
        saved.close()


class _Loop:
    """Steps, scores and checkpoints of one run, from the state's step to the last."""

    def __init__(self, plan: Plan, module, tx, schedule: runs.Schedules, saved: Checkpoints):
        self.plan, self.schedule, self.saved = plan, schedule, saved
        config = plan.config
        self.step = plan.par.map_train(
            functools.partial(
                steps.train_step,
                model=module,
                loss=plan.stage.loss,
                handed=plan.handed,
                tx=tx,
                trains=plan.stage.trains,
                seed=config.seed,
                dtype=jnp.dtype(config.model.dtype),
                mean=tuple(config.data.mean),
                std=tuple(config.data.std),
                accumulate=config.accumulate,
            )
        )
        self.forward = runs.forward(config, plan.stage, module, plan.par)

    def batches(self, start: int) -> Iterator[dict[str, np.ndarray]]:
        plan, config = self.plan, self.plan.config
        return pipeline.train_batches(
            plan.dataset,
            plan.training.rows,
            plan.training.targets,
            make_order(plan),
            runs.augmentation(config),
            seed=config.seed,
            start=start,
            stop=plan.total_steps,
            threads=runs.threads(config),
            places=pipeline.Places(config.batch_size, *plan.par.local_places(config.batch_size)),
        )

    def run(self, state: steps.TrainState) -> dict:
        plan, config = self.plan, self.plan.config
        start = int(state.step)
        journal = Journal(plan.workdir, start, self.schedule, config, active=parallel.is_first_host())
        line = console.progress(total=plan.total_steps, initial=start, what=plan.stage.name, unit="step")
        pending, scores = None, None
        with journal, line:
            batches = self.batches(start)
            for number in range(start + 1, plan.total_steps + 1):
                waiting = time.perf_counter()
                batch = next(batches)
                journal.waited(time.perf_counter() - waiting)
                # The scores of the step before are fetched after this one was dispatched: the device never waits.
                state, dispatched = self.step(state, {"image": batch["image"], "target": batch["target"]})
                if pending is not None:
                    self._account(journal, line, number - 1, pending)
                pending = dispatched
                ends = number == plan.total_steps or number % plan.eval_steps == 0
                if ends or number % config.save_steps == 0:
                    self._account(journal, line, number, pending)
                    pending = None
                    if ends:
                        scores = self.evaluate(state)
                        journal.evaluated(number, scores, plan.steps_per_epoch)
                    self.save(state, number, scores if ends else None)
        self.saved.wait()
        return self._summary(journal)

    def _account(self, journal: Journal, line, number: int, metrics_) -> None:
        text = journal.stepped(number, metrics_)
        line.update(number - line.n)
        if text:
            line.set_postfix_str(text, refresh=False)
        if int(metrics_["bad_steps"]) >= self.plan.config.max_bad_steps:
            raise Diverged(
                f"step {number}: the loss or the gradients were not finite in {int(metrics_['bad_steps'])} steps in a"
                f" row; the last checkpoint of {self.plan.workdir} is step {self.saved.latest()}. {_WHAT_TO_DO}"
            )

    def evaluate(self, state: steps.TrainState) -> stages.Scores | None:
        """Scores of the validation split; None without one."""
        plan = self.plan
        if plan.validation is None:
            return None
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        outputs = runs.outputs_of(
            plan.config,
            plan.dataset,
            plan.validation.rows,
            self.forward,
            variables,
            plan.par,
            plan.config.eval_batch_size,
        )
        if not np.isfinite(outputs).all():
            raise Diverged(
                f"step {int(state.step)}: the model's outputs on the validation split are not finite; the last"
                f" checkpoint of {plan.workdir} is step {self.saved.latest()}. {_WHAT_TO_DO}"
            )
        return plan.stage.score({plan.stage.target: plan.validation.targets}, outputs)

    def save(self, state: steps.TrainState, number: int, scores: stages.Scores | None) -> None:
        plan = self.plan
        self.saved.save(
            state,
            {
                "step": number,
                "epoch": number / plan.steps_per_epoch,
                "stage": plan.stage.name,
                "model": plan.config.model.name,
                "num_outputs": plan.num_outputs,
                "scores": scores,
                "selected_by": plan.selected_by,
                "selected": scores[plan.selected_by] if scores and plan.selected_by else None,
                "handed": {name: plan.handed[name] for name in plan.stage.needs},
                "config": runs.as_json(plan.config),
                "crop": plan.dataset.crop,
                "data_hash": plan.dataset.hash,
            },
        )

    def _summary(self, journal: Journal) -> dict:
        best = self.saved.best()
        meta = self.saved.meta(best)
        summary = {
            "stage": self.plan.stage.name,
            "step": best,
            "last_step": self.saved.latest(),
            "scores": meta["scores"],
            "selected_by": self.plan.selected_by,
            "handed": meta["handed"],
            "bad_steps": journal.bad_steps,
            "seconds": round(journal.seconds, 1),
        }
        if parallel.is_first_host():
            files.write_json(self.plan.workdir / "summary.json", summary)
        parallel.wait_for_hosts("summary")
        return summary
