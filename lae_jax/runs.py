"""A run: its folder, its config, and what is built from them. Training and evaluating build the same things here."""

import dataclasses
import functools
import importlib.metadata
import json
import logging
import pathlib
import platform
import subprocess
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from etils import epath
from ml_collections import ConfigDict

from lae_jax import cpu, files, models, optim, parallel, stages, steps
from lae_jax.errors import InputError

logger = logging.getLogger("lae_jax")

NUM_AGES = 101
# Fields that may differ when a run is gone on with: they name places, logging, evaluating and saving.
FREE_FIELDS = (
    "workdir",
    "data.path",
    "data.threads",
    "data.verify",
    "data.allow_leak",
    "eval_batch_size",
    "save_steps",
    "async_save",
    "log_steps",
    "max_bad_steps",
    "stall_minutes",
)
_PACKAGES = (
    "lae-jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "tensorflow",
    "tensorflow-datasets",
    "numpy",
)


def model(config: ConfigDict, stage: stages.Stage, num_outputs: int):
    """The linen module of a config. Raises InputError for an unknown name or a bad rate."""
    c = config.model
    if c.dtype not in ("float32", "bfloat16", "float64"):
        raise InputError(f"config.model.dtype {c.dtype!r}: 'float32' or 'bfloat16'")
    try:
        return models.create(
            c.name,
            num_outputs,
            jnp.dtype(c.dtype),
            head=stage.head,
            embedding_size=c.embedding_size,
            hidden=c.hidden,
            dropout=c.dropout,
            stochastic_depth=c.stochastic_depth,
            axis_name=parallel.AXIS if c.sync_batch_norm else None,
            remat=c.remat,
        )
    except ValueError as error:
        raise InputError(f"config.model: {error}") from error


def forward(config: ConfigDict, stage: stages.Stage, module, par: parallel.Parallel, flip: bool = False):
    """The mapped inference step (variables, uint8 images) -> what the stage gathers."""
    step = functools.partial(
        steps.forward_step,
        model=module,
        output=stage.output,
        dtype=jnp.dtype(config.model.dtype),
        mean=tuple(config.data.mean),
        std=tuple(config.data.std),
        flip=flip,
    )
    return par.map_forward(step)


def forward_features(config: ConfigDict, stage: stages.Stage, par: parallel.Parallel):
    """The mapped inference step (variables of the backbone, uint8 images) -> pooled features (B, F)."""
    plain = dataclasses.replace(stage, output=lambda features: features)
    return forward(config, plain, model(config, stage, 0), par)


@dataclasses.dataclass(frozen=True)
class Schedules:
    """Rate and momentum by the number of optimiser steps."""

    rate: optim.Schedule
    momentum: optim.Schedule | float


def schedules(config: ConfigDict, steps_per_epoch: int, total_steps: int) -> Schedules:
    """Rate = base x batch / 256 on the schedule that the config names."""
    c, peak = config.optim, config.optim.base_rate * config.batch_size / 256
    if c.schedule == "one_cycle":
        rate = optim.one_cycle(peak, total_steps, c.pct_start, c.div_factor, c.final_div_factor)
        momentum = optim.one_cycle_momentum(total_steps, c.pct_start) if c.cycle_momentum else c.momentum
        return Schedules(rate, momentum)
    if c.schedule == "multi_step":
        return Schedules(
            optim.multi_step(peak, [round(m * steps_per_epoch) for m in c.milestones], c.gamma), c.momentum
        )
    if c.schedule == "constant":
        return Schedules(optim.multi_step(peak, []), c.momentum)
    raise InputError(f"config.optim.schedule {c.schedule!r}: 'one_cycle', 'multi_step' or 'constant'")


def optimiser(config: ConfigDict, schedule: Schedules, params, trains: tuple[str, ...], factors: bool = False):
    """SGD for the parts of the parameters that train; factors: as `optim.trainable` has it."""
    c = config.optim
    sgd = optim.sgd(schedule.rate, schedule.momentum, c.weight_decay, c.nesterov, c.clip_norm)
    return optim.trainable(sgd, params, trains, factors)


def as_json(config: ConfigDict) -> dict:
    return json.loads(config.to_json_best_effort())


def from_json(content: dict) -> ConfigDict:
    """The config of a checkpoint or of `config.json`; one that is older than model.hidden means 0."""
    config = ConfigDict(content)
    config.model.hidden = config.model.get("hidden", 0)
    return config


def flat(config: Mapping, prefix: str = "") -> dict:
    """Nested dict -> {'data.path': ...}."""
    result = {}
    for key, value in config.items():
        result.update(flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value})
    return result


def differences(before: Mapping, now: Mapping) -> list[str]:
    """The fields, free ones apart, in which two configs (nested dicts of JSON) differ, with both values."""
    before, now = ({"model.hidden": 0, **flat(config)} for config in (before, now))
    return [
        f"{key}: {before.get(key)!r} there, {now.get(key)!r} now"
        for key in sorted({*before, *now})
        if key not in FREE_FIELDS and before.get(key) != now.get(key)
    ]


def claim_folder(workdir: epath.Path, config: ConfigDict) -> None:
    """Makes the folder and writes `config.json`; in a folder of an earlier start, refuses a config that differs."""
    path = workdir / "config.json"
    now = as_json(config)
    if path.exists():
        before = files.read_json(path)
        if now["data"]["normalize"] == "weights" == before["data"].get("normalize"):
            # Settled when the run was begun.
            now["data"] |= {name: before["data"][name] for name in ("mean", "std")}
        if differing := differences(before, now):
            raise InputError(
                f"{workdir} holds a run with another config ({'; '.join(differing)}):"
                f" go on with that one, or choose another --config.workdir"
            )
    elif parallel.is_first_host():
        workdir.mkdir(parents=True, exist_ok=True)
        files.write_json(path, now)
    parallel.wait_for_hosts("config")


def warn_of_another_machine(workdir: epath.Path, now: Mapping) -> None:
    """Says where a run that goes on is no longer the same bit for bit, given its provenance now."""
    path = workdir / "provenance.json"
    before = files.read_json(path) if path.exists() else {}
    names = ("devices", "hosts", "cpu", "cores", "deterministic", "versions")
    changed = [name for name in names if name in before and before[name] != now[name]]
    if changed:
        logger.warning(
            "%s: the run was begun on another machine or in another way (provenance.json differs in %s). The examples"
            " come in the same order, and the numbers agree up to rounding. To resume bit for bit, use the first"
            " machine",
            workdir,
            ", ".join(changed),
        )


def provenance(config: ConfigDict, dataset) -> dict:
    """Of a run on a data set (records.Dataset): what is needed to say where a number came from."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "versions": versions,
        "python": platform.python_version(),
        "commit": _commit(),
        "platform": jax.default_backend(),
        "devices": [device.device_kind for device in jax.devices()],
        "hosts": jax.process_count(),
        "cpu": cpu.name(),
        "cores": cpu.cores(),
        "deterministic": parallel.is_deterministic(),
        "data": str(dataset.path),
        "data_hash": dataset.hash,
        "protocol": dataset.manifest["protocol"],
        "crop": dataset.crop,
        "seed": config.seed,
    }


def _commit() -> str | None:
    """The commit of the source tree that runs, with '+' if files were changed; None outside a checkout of it."""
    here = pathlib.Path(__file__).resolve().parent
    try:
        run = functools.partial(subprocess.run, cwd=here, capture_output=True, text=True, timeout=10, check=True)
        if pathlib.Path(run(["git", "rev-parse", "--show-toplevel"]).stdout.strip()) != here.parent:
            return None
        changed = run(["git", "status", "--porcelain", "--untracked-files=no", "."]).stdout
        return run(["git", "rev-parse", "HEAD"]).stdout.strip() + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None
