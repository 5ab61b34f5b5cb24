"""The fields of a config: convert them to JSON, compare them, write them to the workdir."""

import json
from collections.abc import Collection, Mapping

from etils import epath
from ml_collections import ConfigDict

from lae_jax.runtime import files, origin, parallel
from lae_jax.runtime.errors import InputError
from lae_jax.runtime.typed import declared

# Fields that may change when a run resumes: paths, logging, evaluation, saving, how a step is mapped over the devices.
FREE_FIELDS = (
    "workdir",
    "data.path",
    "data.threads",
    "data.verify",
    "data.allow_leak",
    "data.age_weights",  # the weights themselves are compared
    "teacher",  # its arrays are compared; `differences` compares whether there is one
    "parallel",
    "eval_batch_size",
    "save_steps",
    "async_save",
    "log_steps",
    "max_skipped_steps",
    "stall_minutes",
)
# Fields that were added, with the value that they had before: not today's default, which may change.
ADDED = {
    "model.hidden": 0,
    "model.class_weights": "auto",
    "model.class_sampling": 1.0,
    "loss.in_range": "uniform",
    "loss.label_spread": True,
    "teacher": "",
    "loss.teacher_weight": 0.5,
    "loss.teacher_temperature": 1.0,
    "loss.margin_form": "am_softmax",
    "parallel": "auto",
    "ema_decay": 0.0,
    "optim.name": "sgd",
    "optim.warmup_epochs": 1.0,
    "optim.beta1": 0.9,
    "optim.beta2": 0.999,
    "optim.epsilon": 1e-8,
    "optim.decay_all": True,
    "optim.head_factor": 1.0,
    "optim.layer_decay": 1.0,
    "cure.name": "none",
    "cure.lds_power": 0.5,
    "cure.fds_momentum": 0.9,
    "cure.fds_start_update": 0,
    "cure.fds_start_smooth": 1,
    "cure.rank_sim_weight": 100.0,
    "cure.rank_sim_strength": 2.0,
    "cure.balanced_mse_noise": 10.0,
    "cure.dist_loss_weight": 1.0,
    "cure.dist_loss_bandwidth": 0.5,
    "cure.conr_weight": 4.0,
    "cure.conr_window": 1.0,
    "cure.conr_temperature": 0.07,
    "cure.conr_eta": 0.01,
}


def as_json(config: ConfigDict) -> dict:
    """Returns the config as nested dicts of JSON values."""
    return json.loads(config.to_json_best_effort())


def from_json(content: dict) -> ConfigDict:
    """Returns the config of a checkpoint or of `config.json`; fields of `ADDED` have that value in an older one."""
    config = ConfigDict(content)
    for name, value in ADDED.items():
        room, _, field = name.rpartition(".")
        if room and room not in config:
            if "stage" not in config:  # the config of weights has few fields
                continue
            config[room] = ConfigDict()
        place = config[room] if room else config
        place[field] = place.get(field, value)
    return config


def of_run(workdir: epath.Path) -> dict:
    """Returns the config of a run's first start, as JSON.

    Raises:
      InputError: It is damaged.
    """
    return files.read_json(workdir / "config.json", declared.config)


def flat(config: Mapping, prefix: str = "") -> dict:
    """Returns a nested dict as {'data.path': ...}."""
    result = {}
    for key, value in config.items():
        result.update(flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value})
    return result


def has_teacher(config: Mapping) -> bool:
    """Whether a config (nested dict of JSON) has a teacher; with a weight of 0 it has none."""
    values = {**ADDED, **flat(config)}
    return bool(values["teacher"]) and values["loss.teacher_weight"] > 0


def differences(before: Mapping, now: Mapping, free: Collection[str] = FREE_FIELDS) -> list[str]:
    """Returns where two configs (nested dicts of JSON) differ, with both values.

    Args:
      before: One config.
      now: The other one.
      free: Fields that may differ; `teacher` only if both have one, or neither.
    """
    before, now = ({**ADDED, **flat(config)} for config in (before, now))
    compared = {*before, *now} - {*free}
    if has_teacher(before) != has_teacher(now):
        compared.add("teacher")
    return [
        f"{key}: {before.get(key)!r} there, {now.get(key)!r} now"
        for key in sorted(compared)
        if before.get(key) != now.get(key)
    ]


def claim_folder(workdir: epath.Path, config: ConfigDict) -> None:
    """Makes the workdir with the run's id and `config.json`, or compares the config with that of an earlier start.

    Raises:
      InputError: The workdir holds a run with another config, or is not the same folder on all hosts.
    """
    path = workdir / "config.json"
    now = as_json(config)
    if path.exists():
        before = of_run(workdir)
        if now["data"]["normalize"] == "weights" == before["data"].get("normalize"):
            # The first start of the run has set them.
            now["data"] |= {name: before["data"][name] for name in ("mean", "std")}
        if differing := differences(before, now):
            raise InputError(
                f"{workdir} holds a run with another config ({'; '.join(differing)}):"
                f" use that config, or choose another --config.workdir"
            )
    elif parallel.is_first_host():
        workdir.mkdir(parents=True, exist_ok=True)
        origin.give_id(workdir)
        files.write_json(path, now)
    parallel.wait_for_hosts("config")
    if missing := parallel.hosts_that_differ("0" * 8 if path.exists() else "f" * 8):
        raise InputError(
            f"{workdir} is not the same folder on all hosts: host {', '.join(map(str, missing))} does not see what host"
            " 0 wrote there. Choose a --config.workdir that all hosts share"
        )
