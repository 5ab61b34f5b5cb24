"""Trains the stage of a config, or its stages in order.

python -m lae_jax.main --config configs/classify.py
python -m lae_jax.main --config configs/represent.py --config.init_from=runs/pretrain --config.batch_size=128
python -m lae_jax.main --config configs/small.py --devices 2         (2 simulated devices on a CPU)
"""

import logging
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING

from absl import flags
from etils import epath
from ml_collections import ConfigDict

from lae_jax import __version__, train
from lae_jax.runtime import console, start, watch
from lae_jax.runtime.errors import InputError, Preempted, saving, unknown
from lae_jax.train import config_flag, early

if TYPE_CHECKING:
    from lae_jax.train import profiling

logger = logging.getLogger("lae_jax")

# A process that ends with an error waits this long for the other processes to end as well.
LEAVE_SECONDS = 20

# absl lists flags under the name of the module that defines them, which differs under `python -m`.
MODULE = sys.argv[0] if __name__ == "__main__" else __name__
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

    known = {"", "scratch"}  # and the runs of the stages before
    for name in config.order:
        if name not in config.stages:
            raise InputError("config.order: " + unknown("stage", name, config.stages))
        for source in {config.stages[name].init_from, config.stages[name].mae_from} - known:
            pretrained.require(source)
        known.add(os.fspath(epath.Path(config.workdir) / name))


def check_paths(config: ConfigDict) -> None:
    """Checks, before JAX is loaded, that every path and split in a config exists.

    Raises:
      InputError: A path does not exist, or holds something else, or there is no such split.
    """
    recipe = config.stages if "stages" in config else {"": config}
    before: list[str] = []
    for name in config.order if "stages" in config else recipe:
        workdir = os.fspath(epath.Path(config.workdir) / name) if name else config.workdir
        if name in recipe:  # else `_check_recipe` reports it
            with early.naming(name, config):
                early.check_stage(recipe[name], workdir, before)
        before.append(workdir)


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
    config = config_flag.CONFIG.value
    if config is None:
        raise InputError("name a config: python -m lae_jax.main --config configs/small.py:tuned")
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


def cli() -> None:
    """Runs the program without absl's app, which turns on the log of every library.

    Raises:
      InputError: A flag is wrong; the message is one line.
    """
    if {"--help", "-h", "-help"} & {*sys.argv}:
        console.write(*__doc__.splitlines(), *flags.FLAGS.module_help(config_flag.__name__).splitlines())
        console.write(*flags.FLAGS.module_help(MODULE).splitlines())
        return
    if "--version" in sys.argv:
        console.write(f"lae_jax {__version__}")
        return
    words = config_flag.parse()
    with watch.Signals().caught() as signals:
        main(words, signals)


if __name__ == "__main__":
    start.program(cli, leave)
