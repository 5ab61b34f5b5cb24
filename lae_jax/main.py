"""Trains the stage of a config, or its stages in order.

python -m lae_jax.main --config configs/classify.py
python -m lae_jax.main --config configs/represent.py --config.init_from=runs/pretrain --config.batch_size=128
python -m lae_jax.main --config configs/small.py --devices 2         (2 simulated devices on a CPU)
"""

import itertools
import logging
import os
import pathlib
import signal
import sys
import threading
from typing import TYPE_CHECKING

from absl import flags
from etils import epath
from ml_collections import ConfigDict, config_flags

from lae_jax import __version__, train
from lae_jax.runtime import console, start, watch
from lae_jax.runtime.errors import InputError, Preempted, saving, unknown
from lae_jax.train import early

if TYPE_CHECKING:
    from lae_jax.train import profiling

logger = logging.getLogger("lae_jax")

# A process that ends with an error waits this long for the other processes to end as well.
LEAVE_SECONDS = 20

# absl lists flags under the name of the module that defines them, which differs under `python -m`.
CONFIG_MODULE = sys.argv[0] if __name__ == "__main__" else __name__
CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, or the name of a config that the package ships.")
DEVICES = flags.DEFINE_integer(
    "devices", 0, "Number of simulated devices on a CPU (0: the devices of the platform).", lower_bound=0
)
COORDINATOR = flags.DEFINE_string("coordinator", "", "host:port of process 0, for several processes without a cluster.")
PROCESSES = flags.DEFINE_integer("processes", 1, "Number of processes, with --coordinator.", lower_bound=1)
PROCESS = flags.DEFINE_integer("process", 0, "Number of this process, with --coordinator.", lower_bound=0)
CLUSTER = flags.DEFINE_bool("cluster", False, "Join the processes that the cluster starts (Slurm, GKE, TPU pods).")
HEARTBEAT = flags.DEFINE_integer(
    "heartbeat_seconds", 100, "Seconds after which all other processes end when one dies.", lower_bound=1
)
EXPECT_HOSTS = flags.DEFINE_integer(
    "expect_hosts", 0, "Stop unless there are this many hosts (0: any number).", lower_bound=0
)
EXPECT_DEVICES = flags.DEFINE_integer(
    "expect_devices", 0, "Stop unless all hosts together have this many devices (0: any number).", lower_bound=0
)
ALLOW_LEAK = flags.DEFINE_bool("allow_leak", False, "Train although an audit found a leak; every report states it.")
DETERMINISTIC = flags.DEFINE_bool(
    "deterministic", False, "Make runs on GPUs repeat bit for bit, which makes them slower."
)
PROFILE = flags.DEFINE_string("profile", "", "Trace this many steps, or steps FIRST:LAST, into profile/ of the run.")


def set_up_devices() -> None:
    """Sets up devices and connects the processes. Call it before anything asks JAX for its devices.

    Raises:
      InputError: Flags exclude each other, or the number of hosts or devices is not the expected one.
    """
    import jax

    if (PROCESSES.value > 1 or PROCESS.value) and not COORDINATOR.value:
        raise InputError("--processes and --process need --coordinator host:port; on a cluster, use only --cluster")
    if COORDINATOR.value and CLUSTER.value:
        raise InputError("--coordinator and --cluster exclude each other: omit one of them")
    start.devices(DEVICES.value, DETERMINISTIC.value)
    from lae_jax.runtime import cpu, parallel

    # Otherwise JAX would handle SIGTERM, which watch.Signals handles.
    jax.config.update("jax_enable_preemption_service", False)
    if COORDINATOR.value:
        jax.distributed.initialize(
            COORDINATOR.value, PROCESSES.value, PROCESS.value, heartbeat_timeout_seconds=HEARTBEAT.value
        )
    elif CLUSTER.value:
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT.value)
    found = {"hosts": jax.process_count(), "devices": jax.device_count()}
    if jax.default_backend() == "cpu" and not cpu.only_cpus():
        cpu.warn_of_unused_accelerator(has_plugin=True)
    by_host = parallel.devices_by_host()
    if len({*by_host}) > 1:
        raise InputError(
            f"the hosts have {', '.join(map(str, by_host))} devices: each needs the same number. See that every process"
            " sees all devices of its host"
        )
    for what, expected in (("hosts", EXPECT_HOSTS.value), ("devices", EXPECT_DEVICES.value)):
        if expected and found[what] != expected:
            raise InputError(
                f"{found[what]} {what} found ({jax.devices()[0].device_kind}), --expect_{what}={expected}: check that"
                " all processes started and find all their devices"
            )
    logger.info(
        "%d host%s, %d device%s (%s)",
        found["hosts"],
        "s" * (found["hosts"] > 1),
        found["devices"],
        "s" * (found["devices"] > 1),
        jax.devices()[0].device_kind,
    )


def leave(status: int) -> None:
    """Ends this process with its own status. One of several processes first waits for the others to end as well.

    JAX lets a process that ends alone wait for minutes and then aborts it. This process therefore waits only
    LEAVE_SECONDS; JAX then aborts the others.
    """
    jax = sys.modules.get("jax")  # a wrong flag ends the process before JAX is loaded
    if jax is None or not jax.distributed.is_initialized():
        sys.exit(status)
    # The status is settled: another signal must not change it.
    for number in watch.ASKING:
        signal.signal(number, signal.SIG_IGN)
    together = threading.Thread(target=jax.distributed.shutdown, daemon=True)
    together.start()
    together.join(LEAVE_SECONDS)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def run(config: ConfigDict, signals: watch.Signals, profile: "profiling.Steps | None" = None) -> None:
    """Trains one stage, or the stages of a recipe in the order of `config.order`.

    A stage of a recipe runs in `workdir/<name>` and starts from the stage before, unless its `init_from` is set.

    Args:
      config: A stage, or a recipe with `stages` and `order`.
      signals: Signals that ask the run to stop.
      profile: Steps of each stage to trace.

    Raises:
      Preempted: A signal came before the end; the same command resumes it.
    """
    if "stages" in config:
        _check_recipe(config)
    stages = list(train.stages_of(config))
    names = config.order if "stages" in config else [""]
    for name, stage in zip(names, stages, strict=True):
        with early.naming(name, config):
            early.check_names(stage)
    has_report = True
    for name, stage in zip(names, stages, strict=True):
        if name:
            logger.info("stage %s -> %s", name, stage.workdir)
        with early.naming(name, config):
            has_report = _train(stage, signals, profile)
    if not has_report:
        raise Preempted(
            f"{stage.workdir} is trained, but has no report yet; to write the report, start the same command again"
        )
    for stage in stages[-1:]:
        logger.info("look at %s/report.html", stage.workdir)
        for command in early.next_commands(stage):
            logger.info("next: %s", command)


def _train(config: ConfigDict, signals: watch.Signals, profile: "profiling.Steps | None") -> bool:
    """Trains a stage, logs its scores and writes its report; False if a signal came before the report."""
    from lae_jax.evaluate import results
    from lae_jax.runs import inference
    from lae_jax.runtime import parallel
    from lae_jax.train import loop

    _tell(loop.train(config, signals, profile), config.workdir)
    if parallel.on_any_host(signals.asked):
        return False
    try:
        with saving(config.workdir, "the run is finished, its report is not"):
            results.of_run(epath.Path(config.workdir), signals)
    except inference.Interrupted:
        return False
    except (InputError, OSError) as error:
        logger.warning("%s is finished, but its report could not be written: %s", config.workdir, error)
    return True


def _check_recipe(config: ConfigDict) -> None:
    """Checks at the start that the runs which a recipe takes from elsewhere exist."""
    from lae_jax.models import pretrained

    made = {""} | {os.fspath(epath.Path(config.workdir) / name) for name in config.order}
    for name in config.order:
        if name not in config.stages:
            raise InputError("config.order: " + unknown("stage", name, config.stages))
        for source in {config.stages[name].init_from, config.stages[name].mae_from} - made - {"scratch"}:
            pretrained.require(source)


def check_paths(config: ConfigDict) -> None:
    """Checks, before JAX is loaded, that every path and split in a config exists.

    Raises:
      InputError: A path does not exist, or holds something else, or there is no such split.
    """
    recipe = config.stages if "stages" in config else {"": config}
    made = {os.fspath(epath.Path(config.workdir) / name) for name in recipe}
    for name in config.order if "stages" in config else recipe:
        if name not in recipe:
            continue  # `_check_recipe` reports it
        workdir = os.fspath(epath.Path(config.workdir) / name) if name else config.workdir
        is_first = "stages" not in config or name == config.order[0]
        with early.naming(name, config):
            early.check_stage(recipe[name], workdir, made, is_first)


def _tell(summary: dict, workdir: str) -> None:
    from lae_jax.train import journal

    told = journal.told(summary["scores"]) if summary["scores"] else "no validation split"
    kept = f"lowest {summary['selected_by']}" if summary["selected_by"] else "the newest"
    logger.info(
        "%s: kept the checkpoint of step %d of %d (%s): %s", workdir, summary["step"], summary["last_step"], kept, told
    )


def main(argv: list[str], signals: watch.Signals) -> None:
    """Trains what the flags ask for.

    Args:
      argv: The words that absl left of the command line; more than the program's name is an error.
      signals: Signals that ask the run to stop.

    Raises:
      InputError: There is no config, or a flag or a path cannot be used.
    """
    if len(argv) > 1:
        raise InputError(f"unexpected words on the command line: {' '.join(argv[1:])}")
    if CONFIG.value is None:
        raise InputError("name a config: python -m lae_jax.main --config configs/small.py:tuned")
    config = CONFIG.value
    # One of several processes must not end before it is connected to the others.
    if PROCESSES.value == 1 and not any(flag.value for flag in (COORDINATOR, CLUSTER, EXPECT_HOSTS, EXPECT_DEVICES)):
        check_paths(config)
    from lae_jax.train import profiling

    profile = profiling.parse(PROFILE.value) if PROFILE.value else None
    set_up_devices()
    if ALLOW_LEAK.value:
        for stage in config.stages.values() if "stages" in config else [config]:
            stage.data.allow_leak = True
    run(config, signals, profile)


def with_underscores(words: list[str]) -> list[str]:
    """Returns a command line with underscores, as absl expects them, in place of the hyphens in flags."""
    result = []
    for word in words:
        flag, equals, value = word.partition("=")
        result.append(f"--{flag[2:].replace('-', '_')}{equals}{value}" if flag.startswith("--") else word)
    return result


def find_shipped_config(argv: list[str]) -> list[str]:
    """Makes `--config represent` and `--config configs/represent.py` name a file of the package outside a checkout.

    Raises:
      InputError: Neither the file nor a config of the package with that name exists.
    """
    argv, shipped = list(argv), pathlib.Path(__file__).parent / "configs"
    for i, word in enumerate(argv):
        flag, _, value = word.partition("=")
        if flag not in ("--config", "-config"):
            continue
        place = i if value else i + 1
        value = value or (argv[place] if place < len(argv) else "")
        file, colon, row = value.partition(":")
        if value and not os.path.isfile(file):
            found = shipped / (pathlib.Path(file).name.removesuffix(".py") + ".py")
            if not found.exists():
                known = sorted(p.stem for p in shipped.glob("*.py") if p.stem not in ("common", "__init__"))
                told = unknown("config of the package", found.stem, known)
                raise InputError(f"--config {file}: no such file, and {told}")
            argv[place] = f"{flag}={found}{colon}{row}" if place == i else f"{found}{colon}{row}"
    return argv


def _require_config_flag(argv: list[str]) -> None:
    """Raises InputError where a config is named without --config: its fields would then be unknown flags."""
    given = any(word.partition("=")[0] in ("--config", "-config") for word in argv)
    for previous, word in itertools.pairwise(argv):
        if word.startswith("-") or (previous.startswith("-") and "=" not in previous):
            continue  # a flag, or its value
        hint = f"to name a config, use --config {word} (did you forget --config?)"
        if given:
            hint = "flags begin with --, and fields of the config with --config."
        raise InputError(f"unexpected word on the command line: {word}; {hint}")


def _field_like(flag: str) -> str:
    """Returns a hint at the config field that a flag without --config. may mean."""
    matches = [field for field in early.all_fields() if flag in (field, field.rpartition(".")[2])]
    if not matches:
        return " (a field of the config is set with --config.<field>=...; see python -m lae_jax.main --help)"
    is_recipe = CONFIG.present and CONFIG.value is not None and "stages" in CONFIG.value
    return f"; did you mean --config.{'stages.<stage>.' * is_recipe}{matches[0]}?"


def flag_error(error: Exception) -> str:
    """Returns the reason that absl or ml_collections gives for a wrong flag, as one sentence."""
    reason = error.args[0] if error.args and isinstance(error.args[0], KeyError) else error
    if isinstance(reason, KeyError) and "does not support indexing" not in str(reason):
        # A field that the config lacks. The text is its name, with or without quotes, a newline, and a hint.
        name, *hint = str(reason.args[0]).splitlines()
        told = "; ".join([repr(name.strip("'\"")), *hint])
        return (
            f"unknown config field {told} (in a recipe, fields are set by stage, --config.stages.<name>.<field>=...,"
            " and the data set of all stages with --config.faces)"
        )
    lines = str(error).strip().splitlines()
    if "get_config() takes" in str(error):
        return "--config: this config takes no argument: omit the colon and what follows it"
    if "Traceback" in str(error):  # from the config file; its last line is the reason
        return lines[-1].partition(": ")[2]
    if isinstance(error, flags.UnrecognizedFlagError):
        return f"{lines[0].split('. Did you mean')[0].rstrip('.')}{_field_like(error.flagname)}"
    if isinstance(error, flags.Error):
        return lines[0]
    return f"an override --config.... names a field inside a value ({lines[0]})"


def cli() -> None:
    """Runs the program without absl's app, which turns on the log of every library.

    Raises:
      InputError: A flag is wrong; the message is one line.
    """
    # ml_collections reads the fields of the config from sys.argv itself.
    argv = sys.argv[:] = find_shipped_config(with_underscores(sys.argv))
    if {"--help", "-h", "-help"} & {*argv}:
        console.write(*__doc__.splitlines(), *flags.FLAGS.module_help(CONFIG_MODULE).splitlines())
        return
    if "--version" in argv:
        console.write(f"lae_jax {__version__}")
        return
    _require_config_flag(argv)
    try:
        words = flags.FLAGS(argv)
    except ModuleNotFoundError as error:
        raise InputError(
            f"--config: the config imports {error.name}, which is not installed. Modules of the current folder are not"
            " found: if it lies there, start the command with PYTHONPATH=."
        ) from error
    except (AttributeError, KeyError, TypeError, ValueError, flags.Error) as error:
        raise InputError(flag_error(error)) from error
    with watch.Signals().caught() as signals:
        main(words, signals)


if __name__ == "__main__":
    start.program(cli, leave)
