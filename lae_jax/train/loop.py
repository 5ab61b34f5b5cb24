"""The training loop, which all stages share."""

import logging
import time
from collections.abc import Iterator

import flax.linen as nn
import jax
import numpy as np
import optax
from etils import epath
from ml_collections import ConfigDict

from lae_jax import models, stages
from lae_jax.data import pipeline
from lae_jax.runs import build, fields, inference, inputs, precision, provenance
from lae_jax.runtime import checkpoints, console, files, layout, lock, origin, parallel, watch
from lae_jax.runtime.checkpoints import Checkpoints
from lae_jax.runtime.errors import Diverged, InputError, Preempted, saving
from lae_jax.runtime.typed import declared
from lae_jax.train import costs, handover, hosts, profiling, steps
from lae_jax.train.journal import Journal
from lae_jax.train.plan import Plan, make_plan, require_same_inputs, settled, train_step
from lae_jax.train.wall_time import WallTime

logger = logging.getLogger("lae_jax")


_WHAT_TO_DO = "Lower config.optim.base_learning_rate or set config.optim.clip_norm, with another config.workdir"


def train(config: ConfigDict, signals: watch.Signals | None = None, profile: profiling.Steps | None = None) -> dict:
    """Runs one stage to its end, from where an earlier start stopped, and returns its summary.

    Args:
      config: The config.
      signals: Signals that ask it to stop; None: nothing stops it.
      profile: Steps to trace.

    Raises:
      InputError: The config, the data set or the workdir cannot be used as it is.
      Diverged: `max_skipped_steps` steps in a row were skipped, or the outputs of an evaluation are not finite.
      Preempted: A signal asked it to stop (`watch.ASKING`); if it came after the first step, the run is saved.
      SaveFailed: A checkpoint or a record could not be written.
      FolderInUse: Another process trains in the workdir.
    """
    began = time.perf_counter()
    workdir, config = epath.Path(config.workdir), settled(config)
    signals = signals or watch.Signals()
    layout.require_workdir(config.workdir)
    with saving(workdir), parallel.on_first_host(lock.hold(workdir)):
        if parallel.on_any_host(signals.asked):
            raise Preempted(f"{workdir} was not started or resumed; start it again")
        # All hosts must decide alike, whatever the first one has written by the time they look.
        begun = parallel.from_first_host((workdir / "config.json").exists())
        done = parallel.from_first_host((workdir / "summary.json").exists())
        config = precision.resolved(config, fields.of_run(workdir) if begun else None)
        if begun:
            fields.claim_folder(workdir, config)
        newest = checkpoints.recover(workdir)
        folder = origin.folder_of(workdir, newest)
        if done:
            summary = files.read_json(workdir / "summary.json", declared.SUMMARY)
            if (workdir / checkpoints.FOLDER / str(summary["step"])).exists():
                meta = checkpoints.read_meta(workdir, summary["step"])
                if summary["scores"] != meta["scores"]:
                    raise InputError(
                        f"{workdir}/summary.json is damaged (its scores are not those of the checkpoint of step"
                        f" {summary['step']}): restore it, or remove it and start the same command again"
                    )
                require_same_inputs(config, meta)
                logger.info("%s is done; to train again, name another workdir or remove this one", workdir)
                return summary
            logger.warning("%s was done, but its best checkpoint is lost: it resumes from what is left", workdir)
        resumed = None if newest is None else checkpoints.read_meta(workdir, newest, folder)
        plan = make_plan(config, resumed)
        config = plan.config  # now with the statistics of the weights
        module, tx, state = _initial(plan)
        hosts.require_alike(plan, state)
        if not begun:
            # Only now: a config that cannot run must not claim a folder.
            fields.claim_folder(workdir, config)
        with Checkpoints(workdir, asynchronous=config.async_save) as saved:
            known = provenance.provenance(config, plan.dataset) | _inputs_of(plan)
            if resumed is not None:
                provenance.warn_of_another_machine(workdir, known)
                with Checkpoints(workdir, folder, read_only=True) as found:
                    state = found.restore(newest, plan.par.targets(state))
                logger.info("%s resumes after step %d", workdir, newest)
            else:
                if plan.init is None:
                    logger.info("the backbone starts from scratch (config.init_from)")
                if parallel.is_first_host():
                    files.write_json(workdir / "provenance.json", known)
            logger.info(
                "batches of %d images, %d per device; %s per epoch, %d in total",
                config.batch_size,
                plan.par.per_device(config.batch_size),
                console.counted(plan.durations.epoch, "step"),
                plan.durations.total,
            )
            precision.tell(config)
            plan.tell_ema()
            logger.info("%s", plan.selection)
            state = plan.par.place(state)
            trace = profiling.Trace(workdir, profile, int(state.step), plan.durations.total)
            loop = _Loop(plan, module, tx, saved, signals, trace)
            return loop.run(state, scored=folder == checkpoints.FOLDER, began=began)


def _initial(plan: Plan) -> tuple[nn.Module, optax.GradientTransformation, steps.TrainState]:
    """The model, the optimiser and the state of step 0, with what is taken over from another run."""
    config, stage = plan.config, plan.stage
    module = build.model(config, stage, plan.num_outputs)
    variables = models.initialise(module, config.data.image_size, config.seed, stage.split)
    if plan.init is not None:
        parts = ("backbone",) if config.reinit_head else stage.loads
        variables = handover.take_over(variables, plan.init, parts)
    tx = build.optimiser(config, plan.schedule, variables["params"], stage)
    return module, tx, steps.create_state(variables, tx, stage.trains if config.ema_decay else (), stage.cure)


def _inputs_of(plan: Plan) -> dict:
    """What the provenance says of a fresh run's inputs besides its data set: its start, weights of ages, teacher."""
    init = plan.init
    start = {"from": "scratch"}
    if init is not None:
        start = {"from": str(init.workdir), "step": init.step, "sha256": init.meta.get("sha256")}
    result: dict = {"init": start}
    if plan.age_weights is not None:
        by_age = {str(age): weight for age, weight in plan.age_weights.by_age.items()}
        result["age_weights"] = {"sha256": plan.age_weights.hash, "by_age": by_age}
    if plan.teacher is not None:
        result["teacher"] = plan.teacher.record
    return result


class _Loop:
    """Steps, evaluations and checkpoints of one run, from the state's step to the last."""

    def __init__(
        self,
        plan: Plan,
        module,
        tx,
        saved: Checkpoints,
        signals: watch.Signals,
        trace: profiling.Trace,
    ):
        self.plan, self.saved, self.signals, self.trace = plan, saved, signals, trace
        self.watchdog = watch.Watchdog(plan.config.stall_minutes)
        config, par = plan.config, plan.par
        self.cost = costs.StepCost(par.device_count, par.devices[0].device_kind)
        step = self.cost.counted(train_step(config, plan.stage, plan.constants, module, tx, plan.teacher))
        held = () if plan.teacher is None else (par.place(plan.teacher.checkpoint.variables),)
        self.step = par.map_train(step, held)
        self.forward = build.forward(config, plan.stage, module, par)
        self.any_host = par.map_any()
        self.has_evaluated = False
        self.wall: WallTime  # of `run`

    def batches(self, start: int) -> Iterator[dict[str, np.ndarray]]:
        """Returns this host's part of the batches after step `start`."""
        plan, config = self.plan, self.plan.config
        return pipeline.train_batches(
            plan.dataset,
            plan.training.rows,
            plan.training.targets,
            plan.order,
            inputs.augmentation(config),
            seed=config.seed,
            start=start,
            stop=plan.durations.total,
            threads=inputs.threads(config),
            places=pipeline.Places(config.batch_size, *plan.par.local_places(config.batch_size)),
            further={} if plan.training.label_sigma is None else {"label_sigma": plan.training.label_sigma},
        )

    def run(self, state: steps.TrainState, *, scored: bool, began: float) -> dict:
        """Trains to the last step and returns the summary.

        Args:
          state: The state to start from.
          scored: No evaluation of the state was interrupted.
          began: When this start of the run began, of `time.perf_counter`.
        """
        plan, config = self.plan, self.plan.config
        start = int(state.step)
        active = parallel.is_first_host()
        journal = Journal(
            plan.workdir, start, plan.schedule, config, active=active, scored=scored, began=began, cost=self.cost
        )
        wall = self.wall = journal.wall
        line = console.progress(
            total=plan.durations.total, initial=start, what=plan.stage.name, unit="steps", active=active
        )
        pending, stop = None, False
        with journal, line, self.watchdog, self.trace:
            batches = self.batches(start)
            self.watchdog.beat()
            wall.count("start")
            if not scored:
                self._score_and_save(journal, state, start, is_saved=True)
                self.saved.wait()
            origin.discard_unscored(plan.workdir)
            for number in range(start + 1, plan.durations.total + 1):
                self.trace.begin(number)
                wall.count("other")
                batch = next(batches)
                journal.waited(wall.count("data"))
                if number == start + 1:
                    self.watchdog.rest()  # the first step compiles
                # The metrics of the step before are fetched after this step is dispatched: the device never waits.
                with jax.profiler.StepTraceAnnotation("train", step_num=number):
                    fed = {name: values for name, values in batch.items() if name != "row"}
                    state, dispatched = self.step(state, fed)
                if number == start + 1:
                    wall.count("compile")
                dispatched["stop"] = self.any_host(self.signals.asked)
                if pending is not None:
                    stop = self._account(journal, line, number - 1, pending)
                pending = dispatched
                self.saved.poll()
                ends = number == plan.durations.total or number % plan.durations.between_evaluations == 0
                if ends or stop or number % config.save_steps == 0:
                    stop = self._account(journal, line, number, pending) or stop
                    pending = None
                    if ends:
                        self._score_and_save(journal, state, number, stop=stop)
                    else:
                        journal.publish()
                        self.save(state, number, None)
                        wall.count("saving")
                if stop and number < plan.durations.total:
                    self.saved.wait()
                    parallel.wait_for_hosts("stopped")
                    raise Preempted(
                        f"{plan.workdir} is saved at step {number} of {plan.durations.total}; to resume, start it again"
                    )
            self.saved.wait()
            wall.count("saving")
            return self._summary(journal)

    def _account(self, journal: Journal, line, number: int, dispatched) -> bool:
        """Fetches and records the metrics of a step; returns whether a host was asked to stop."""
        metrics = jax.device_get(dispatched)  # one transfer for all
        self.wall.count("skipped" if metrics["skipped"] else "goodput")
        self.watchdog.beat()
        self.trace.end(number)
        if metrics["skipped"]:
            rows = self.plan.training.rows[self.plan.order(number - 1).numpy()]
            journal.skipped_step(number, metrics, self.plan.dataset.column("name")[rows])
        text = journal.stepped(number, metrics)
        line.update(number - line.n)
        if text:
            line.set_postfix_str(text, refresh=False)
        if metrics["skipped_steps"] >= self.plan.config.max_skipped_steps:
            self.saved.wait()
            raise Diverged(
                f"step {number}: the loss or the gradients were not finite in {metrics['skipped_steps']} steps in a"
                f" row (see divergence.jsonl); the last checkpoint of {self.plan.workdir} is step"
                f" {self.saved.latest()}. {_WHAT_TO_DO}"
            )
        return bool(metrics["stop"])

    def _score_and_save(
        self, journal: Journal, state: steps.TrainState, number: int, *, stop: bool = False, is_saved: bool = False
    ) -> None:
        """Evaluates and saves step `number`; `stop`: a signal has come already; `is_saved`: saved as unscored before.

        Raises:
          Preempted: A signal came before the scores were known. The state is then saved as unscored, and a resumed run
            begins with its evaluation.
        """
        plan = self.plan
        try:
            scores = self.evaluate(state, stop)
        except inference.Interrupted:
            journal.publish()
            self.saved.wait()
            if not is_saved:
                with Checkpoints(plan.workdir, checkpoints.UNSCORED, asynchronous=False) as unscored:
                    self.save(state, number, None, unscored)
                    unscored.wait()
            parallel.wait_for_hosts("stopped")
            raise Preempted(
                f"{plan.workdir} is saved at step {number} of {plan.durations.total}, before its evaluation ended;"
                " to resume, start the same command again"
            ) from None
        journal.evaluated(number, scores, plan.durations.epoch)
        journal.publish()
        self.save(state, number, scores)
        self.wall.count("saving")

    def evaluate(self, state: steps.TrainState, stop: bool = False) -> stages.Scores | None:
        """Returns the scores of the validation split, None without one.

        Raises:
          Interrupted: A signal came before they were known; `stop` says that one has come already.
        """
        plan, config = self.plan, self.plan.config
        if plan.validation is None:
            return None
        if stop:
            raise inference.Interrupted
        interrupt = inference.until_asked(self.any_host, self.signals)

        def count() -> None:
            self.wall.count("evaluation" if self.has_evaluated else "compile")  # the first batch compiles
            self.has_evaluated = True

        def beat() -> None:
            self.watchdog.beat()
            count()
            interrupt()

        self.wall.count("other")
        if not self.has_evaluated:
            self.watchdog.rest()
        variables = origin.variables(vars(state))
        outputs = inputs.outputs_of(
            config, plan.dataset, plan.scored_rows, self.forward, variables, plan.par, config.eval_batch_size, beat
        )
        self.watchdog.beat()
        if not np.isfinite(outputs).all():
            self.saved.wait()
            raise Diverged(
                f"step {int(state.step)}: the model's outputs on the validation split are not finite; the last"
                f" checkpoint of {plan.workdir} is step {self.saved.latest()}. {_WHAT_TO_DO}"
            )
        scores = plan.stage.score({plan.stage.target: plan.validation.targets}, outputs)
        count()
        return scores

    def save(
        self,
        state: steps.TrainState,
        number: int,
        scores: stages.Scores | None,
        place: Checkpoints | None = None,
    ) -> None:
        """Saves a checkpoint of step `number`, in `place` or among those of the run."""
        plan = self.plan
        (place or self.saved).save(
            state,
            {
                "step": number,
                "epoch": number / plan.durations.epoch,
                "stage": plan.stage.name,
                "model": plan.config.model.name,
                "num_outputs": plan.num_outputs,
                "scores": scores,
                "selected_by": plan.selection.score,
                "selected": plan.selection.value(scores) if scores else None,
                "constants": {name: plan.constants[name] for name in plan.stage.needs},
                "config": fields.as_json(plan.config),
                "crop": plan.dataset.crop,
                "data": str(plan.dataset.path),
                "data_hash": plan.dataset.hash,
                "age_weights": plan.age_weights and plan.age_weights.hash,
                "trained_on": plan.history.trained_on,
                "leaks": plan.history.leaks,
                "identities": plan.history.identities,
                "teachers": plan.history.teachers,
                "cures": plan.history.cures,
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
            "selected_by": self.plan.selection.score,
            "selected_because": self.plan.selection.because,
            "constants": meta["constants"],
            "skipped_steps": journal.skipped_steps,
            "seconds": round(journal.wall.seconds, 1),
        }
        if parallel.is_first_host():
            files.write_json(self.plan.workdir / "summary.json", summary)
        parallel.wait_for_hosts("summary")
        return summary
