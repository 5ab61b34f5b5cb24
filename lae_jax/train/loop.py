"""The training loop, which all stages share."""

import functools
import hashlib
import json
import logging
import time
from collections.abc import Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from ml_collections import ConfigDict

from lae_jax import __version__, models, stages
from lae_jax.data import pipeline
from lae_jax.runs import build, fields, inputs, provenance
from lae_jax.runtime import checkpoints, console, cpu, files, layout, lock, parallel, watch
from lae_jax.runtime.checkpoints import Checkpoints
from lae_jax.runtime.errors import Diverged, InputError, Preempted
from lae_jax.train import handover, profiling, steps
from lae_jax.train.journal import Journal
from lae_jax.train.plan import Plan, make_plan, settled

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
    workdir, config = epath.Path(config.workdir), settled(config)
    signals = signals or watch.Signals()
    layout.require_workdir(config.workdir)
    with parallel.on_first_host(lock.hold(workdir)):
        if parallel.on_any_host(signals.asked):
            raise Preempted(f"{workdir} was not started or resumed; start it again")
        # All hosts must decide alike, whatever the first one has written by the time they look.
        begun = parallel.from_first_host((workdir / "config.json").exists())
        done = parallel.from_first_host((workdir / "summary.json").exists())
        if begun:
            fields.claim_folder(workdir, config)
        newest = checkpoints.recover(workdir)
        if done:
            summary = files.read_json(workdir / "summary.json")
            if (workdir / checkpoints.FOLDER / str(summary["step"])).exists():
                logger.info("%s is done; to train again, name another workdir or remove this one", workdir)
                return summary
            logger.warning("%s was done, but its best checkpoint is lost: it resumes from what is left", workdir)
        resumed = None if newest is None else checkpoints.read_meta(workdir, newest)
        plan = make_plan(config, resumed)
        config = plan.config  # now with the statistics of the weights
        module, tx, state = _initial(plan)
        _require_alike_hosts(plan, state)
        if plan.init is None and resumed is None:
            handover.tell_scratch(plan.stage)
        if not begun:
            # Only now: a config that cannot run must not claim a folder.
            fields.claim_folder(workdir, config)
        with Checkpoints(workdir, asynchronous=config.async_save) as saved:
            known = provenance.provenance(config, plan.dataset) | _init_of(plan)
            if resumed is not None:
                provenance.warn_of_another_machine(workdir, known)
                state = saved.restore(newest, state)
                logger.info("%s resumes after step %d", workdir, newest)
            elif parallel.is_first_host():
                files.write_json(workdir / "provenance.json", known)
            logger.info(
                "batches of %d images, %d per device; %s per epoch, %d in total",
                config.batch_size,
                plan.par.per_device(config.batch_size),
                console.counted(plan.durations.epoch, "step"),
                plan.durations.total,
            )
            state = plan.par.place(state)
            trace = profiling.Trace(workdir, profile, int(state.step), plan.durations.total)
            return _Loop(plan, module, tx, saved, signals, trace).run(state)


def _initial(plan: Plan) -> tuple[nn.Module, optax.GradientTransformation, steps.TrainState]:
    """The model, the optimiser and the state of step 0, with what is taken over from another run."""
    config, stage = plan.config, plan.stage
    module = build.model(config, stage, plan.num_outputs)
    variables = models.initialise(module, config.data.image_size, config.seed)
    if plan.init is not None:
        parts = ("backbone",) if config.reinit_head else stage.loads
        variables = handover.take_over(variables, plan.init, parts)
    tx = build.optimiser(config, plan.schedule, variables["params"], stage.trains)
    return module, tx, steps.create_state(variables, tx)


# Fields in which hosts may differ: places on their own disks, and how they read them.
_OF_A_HOST = ("data.path", "data.threads", "data.verify")


def _require_alike_hosts(plan: Plan, state: steps.TrainState) -> None:
    """Raises InputError where a host would train something else: its replicas would drift apart without a word."""
    if jax.process_count() == 1:
        return
    given = {name: value for name, value in fields.flat(fields.as_json(plan.config)).items() if name not in _OF_A_HOST}
    parameters = hashlib.sha256()
    for leaf in jax.tree.leaves(state):
        parameters.update(np.ascontiguousarray(leaf).tobytes())
    digests = {
        "config": hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest(),
        "version of lae_jax": hashlib.sha256(f"{__version__} {provenance.commit()}".encode()).hexdigest(),
        "initial state": parameters.hexdigest(),
    }
    for what, digest in digests.items():
        if others := parallel.hosts_that_differ(digest):
            raise InputError(
                f"host {', '.join(map(str, others))} has another {what} than host 0: give all hosts the same code,"
                " files and flags"
            )


def _init_of(plan: Plan) -> dict:
    """What the provenance says of the start of a fresh run."""
    if plan.init is None:
        return {}
    start = {"from": str(plan.init.workdir), "step": plan.init.step, "sha256": plan.init.meta.get("sha256")}
    return {"init": start}


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
        config = plan.config
        self.step = plan.par.map_train(
            functools.partial(
                steps.train_step,
                stage=plan.stage,
                constants=plan.constants,
                model=module,
                tx=tx,
                settings=steps.Settings(
                    seed=config.seed,
                    dtype=jnp.dtype(config.model.dtype),
                    mean=tuple(config.data.mean),
                    std=tuple(config.data.std),
                    accumulate=config.accumulate,
                ),
            ),
            cpu.train_options(plan.stage.trains),
        )
        self.forward = build.forward(config, plan.stage, module, plan.par)
        self.any_host = plan.par.map_any()
        self.has_evaluated = False

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
        )

    def run(self, state: steps.TrainState) -> dict:
        """Trains to the last step and returns the summary."""
        plan, config = self.plan, self.plan.config
        start = int(state.step)
        journal = Journal(plan.workdir, start, plan.schedule, config, active=parallel.is_first_host())
        line = console.progress(
            total=plan.durations.total,
            initial=start,
            what=plan.stage.name,
            unit="steps",
            active=parallel.is_first_host(),
        )
        pending, stop = None, False
        with journal, line, self.watchdog, self.trace:
            batches = self.batches(start)
            self.watchdog.beat()
            for number in range(start + 1, plan.durations.total + 1):
                self.trace.begin(number)
                waiting = time.perf_counter()
                batch = next(batches)
                journal.waited(time.perf_counter() - waiting)
                if number == start + 1:
                    self.watchdog.rest()  # the first step compiles
                # The metrics of the step before are fetched after this step is dispatched: the device never waits.
                with jax.profiler.StepTraceAnnotation("train", step_num=number):
                    state, dispatched = self.step(state, {"image": batch["image"], "target": batch["target"]})
                dispatched["stop"] = self.any_host(self.signals.asked)
                if pending is not None:
                    stop = self._account(journal, line, number - 1, pending)
                pending = dispatched
                self.saved.poll()
                ends = number == plan.durations.total or number % plan.durations.between_evaluations == 0
                if ends or stop or number % config.save_steps == 0:
                    stop = self._account(journal, line, number, pending) or stop
                    pending = None
                    scores = None
                    if ends:
                        scores = self.evaluate(state)
                        journal.evaluated(number, scores, plan.durations.epoch)
                    journal.publish()
                    self.save(state, number, scores)
                if stop and number < plan.durations.total:
                    self.saved.wait()
                    parallel.wait_for_hosts("stopped")
                    raise Preempted(
                        f"{plan.workdir} is saved at step {number} of {plan.durations.total}; to resume, start it again"
                    )
            self.saved.wait()
            return self._summary(journal)

    def _account(self, journal: Journal, line, number: int, dispatched) -> bool:
        """Fetches and records the metrics of a step; returns whether a host was asked to stop."""
        metrics = jax.device_get(dispatched)  # one transfer for all
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

    def evaluate(self, state: steps.TrainState) -> stages.Scores | None:
        """Returns the scores of the validation split, None without one."""
        plan = self.plan
        if plan.validation is None:
            return None
        if not self.has_evaluated:
            self.watchdog.rest()  # the first batch compiles
            self.has_evaluated = True
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        outputs = inputs.outputs_of(
            plan.config,
            plan.dataset,
            plan.validation.rows,
            self.forward,
            variables,
            plan.par,
            plan.config.eval_batch_size,
            self.watchdog.beat,
        )
        self.watchdog.beat()
        if not np.isfinite(outputs).all():
            self.saved.wait()
            raise Diverged(
                f"step {int(state.step)}: the model's outputs on the validation split are not finite; the last"
                f" checkpoint of {plan.workdir} is step {self.saved.latest()}. {_WHAT_TO_DO}"
            )
        return plan.stage.score({plan.stage.target: plan.validation.targets}, outputs)

    def save(self, state: steps.TrainState, number: int, scores: stages.Scores | None) -> None:
        """Saves a checkpoint of step `number`."""
        plan = self.plan
        self.saved.save(
            state,
            {
                "step": number,
                "epoch": number / plan.durations.epoch,
                "stage": plan.stage.name,
                "model": plan.config.model.name,
                "num_outputs": plan.num_outputs,
                "scores": scores,
                "selected_by": plan.selected_by,
                "selected": scores[plan.selected_by] if scores and plan.selected_by else None,
                "constants": {name: plan.constants[name] for name in plan.stage.needs},
                "config": fields.as_json(plan.config),
                "crop": plan.dataset.crop,
                "data": str(plan.dataset.path),
                "data_hash": plan.dataset.hash,
                "trained_on": plan.history.trained_on,
                "leaks": plan.history.leaks,
                "identities": plan.history.identities,
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
            "constants": meta["constants"],
            "skipped_steps": journal.skipped_steps,
            "seconds": round(journal.seconds, 1),
        }
        if parallel.is_first_host():
            files.write_json(self.plan.workdir / "summary.json", summary)
        parallel.wait_for_hosts("summary")
        return summary
