"""Trains: runs a config's stage, or its stages one after the other.

python -m lae_jax.main --config configs/classify.py
python -m lae_jax.main --config configs/represent.py --config.data.path=data/mine --config.batch_size=128
python -m lae_jax.main --config configs/small.py --devices 2         (2 simulated devices on a CPU)
"""

import logging
import os
import pathlib
import signal
import sys
import threading

from absl import flags
from etils import epath
from ml_collections import ConfigDict, config_flags

from lae_jax import __version__
from lae_jax.runtime import layout, start, watch
from lae_jax.runtime.errors import InputError, unknown
from lae_jax.runtime.files import is_remote

logger = logging.getLogger("lae_jax")

# stage -> the shipped config of the stage that it starts from
_FOLLOWS = {"represent": "pretrain", "classify": "represent"}
# How long a process that ends with an error waits for the others to end as well.
LEAVE_SECONDS = 20

# absl files flags under the module that defines them, and that has another name under `python -m`.
CONFIG_MODULE = sys.argv[0] if __name__ == "__main__" else __name__
CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The config's file, or the name of one that the package ships."
)
DEVICES = flags.DEFINE_integer("devices", 0, "Simulated devices on a CPU (0: what the platform has).", lower_bound=0)
COORDINATOR = flags.DEFINE_string("coordinator", "", "host:port of process 0, for several processes without a cluster.")
PROCESSES = flags.DEFINE_integer("processes", 1, "Number of processes, with --coordinator.", lower_bound=1)
PROCESS = flags.DEFINE_integer("process", 0, "Number of this process, with --coordinator.", lower_bound=0)
CLUSTER = flags.DEFINE_bool("cluster", False, "Several processes, found from the cluster (Slurm, GKE, TPU pods).")
HEARTBEAT = flags.DEFINE_integer(
    "heartbeat_seconds", 100, "Time after which the others end when a process died.", lower_bound=1
)
EXPECT_HOSTS = flags.DEFINE_integer("expect_hosts", 0, "Stop unless there are so many (0: any).", lower_bound=0)
EXPECT_DEVICES = flags.DEFINE_integer(
    "expect_devices", 0, "Stop unless there are so many in all (0: any).", lower_bound=0
)
ALLOW_LEAK = flags.DEFINE_bool("allow_leak", False, "Train although an audit found a leak; every report says so.")
DETERMINISTIC = flags.DEFINE_bool("deterministic", False, "Repeat bit for bit on GPUs too, which costs speed there.")
PROFILE = flags.DEFINE_string("profile", "", "Trace so many steps, or those of FIRST:LAST, into the run's profile/.")


def set_up_devices() -> None:
    """Simulated devices, and the other processes; before anything asks JAX for its devices."""
    import jax

    if (PROCESSES.value > 1 or PROCESS.value) and not COORDINATOR.value:
        raise InputError("--processes and --process need --coordinator host:port, or use --cluster alone")
    if COORDINATOR.value and CLUSTER.value:
        raise InputError("--coordinator and --cluster exclude each other")
    start.devices(DEVICES.value, DETERMINISTIC.value)
    # JAX would take SIGTERM for itself; watch.Signals has it.
    jax.config.update("jax_enable_preemption_service", False)
    if COORDINATOR.value:
        jax.distributed.initialize(
            COORDINATOR.value, PROCESSES.value, PROCESS.value, heartbeat_timeout_seconds=HEARTBEAT.value
        )
    elif CLUSTER.value:
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT.value)
    found = {"hosts": jax.process_count(), "devices": jax.device_count()}
    for what, expected in (("hosts", EXPECT_HOSTS.value), ("devices", EXPECT_DEVICES.value)):
        if expected and found[what] != expected:
            raise InputError(
                f"{found[what]} {what} found ({jax.devices()[0].device_kind}), --expect_{what}={expected}: see that all"
                " processes started and see all their devices"
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
    """Ends this process with its own status. Of several processes, together with the others if they end as well.

    JAX would have one that ends alone wait for minutes and then abort; so it leaves after a while, and JAX aborts the
    others.
    """
    jax = sys.modules.get("jax")  # a wrong flag ends it before JAX is loaded
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


def run(config: ConfigDict, signals: watch.Signals, profile=None) -> None:
    """One stage; or `config.stages` in the order of `config.order`, each in `workdir/<name>` and started from the one
    before, unless its `init_from` says otherwise. profile: the steps of each to trace (profiling.Steps)."""
    if "stages" not in config:
        _train(config, signals, profile)
        return
    _check_recipe(config)
    before = ""
    for name in config.order:
        stage = config.stages[name].copy_and_resolve_references()
        stage.workdir = os.fspath(epath.Path(config.workdir) / name)
        stage.init_from = stage.init_from or before
        logger.info("stage %s -> %s", name, stage.workdir)
        _train(stage, signals, profile)
        before = stage.workdir


def _train(config: ConfigDict, signals: watch.Signals, profile) -> None:
    """Trains a stage, tells its scores and writes its report."""
    from lae_jax.evaluate import results
    from lae_jax.runtime import parallel
    from lae_jax.train import loop

    _tell(loop.train(config, signals, profile), config.workdir)
    if parallel.on_any_host(signals.asked):
        return  # the same command, given again, writes it
    try:
        results.of_run(epath.Path(config.workdir))
    except (InputError, OSError) as error:
        logger.warning("%s is done, but its report could not be written: %s", config.workdir, error)


def _check_recipe(config: ConfigDict) -> None:
    """Runs that a recipe takes from elsewhere are missed now, not after hours."""
    from lae_jax.models import pretrained

    made = {""} | {os.fspath(epath.Path(config.workdir) / name) for name in config.order}
    for name in config.order:
        if name not in config.stages:
            raise InputError("config.order: " + unknown("stage", name, config.stages))
        for source in {config.stages[name].init_from, config.stages[name].mae_from} - made - {"scratch"}:
            pretrained.require(source)


def check_paths(config: ConfigDict) -> None:
    """What a config names and is not there is missed now, before JAX is loaded. Raises InputError."""
    recipe = config.stages if "stages" in config else {"": config}
    made = {""} | {os.fspath(epath.Path(config.workdir) / name) for name in recipe}
    for name in config.order if "stages" in config else recipe:
        if name not in recipe:
            continue  # an error of its own
        stage = recipe[name]
        if (epath.Path(config.workdir) / name / layout.CONFIG).exists():
            continue  # begun: it goes on without what it was started from, and tells itself what else it needs
        for field in ("init_from", "mae_from"):
            source = stage[field]
            if source in made | {"scratch"} or source.startswith("hf:") or epath.Path(source).exists():
                continue
            follows = _FOLLOWS.get(stage.stage)
            if epath.Path(source).suffix or not follows:
                raise InputError(f"config.{field}: there is no file or folder {source}")
            layout.require_run(source, f"python -m lae_jax.main --config configs/{follows}.py")
        if not is_remote(stage.data.path):
            layout.require_dataset(stage.data.path)


def _tell(summary: dict, workdir: str) -> None:
    from lae_jax.train import journal

    told = journal.told(summary["scores"]) if summary["scores"] else "no validation split"
    logger.info("%s: kept step %d of %d: %s", workdir, summary["step"], summary["last_step"], told)


def main(argv: list[str], signals: watch.Signals) -> None:
    if len(argv) > 1:
        words = " ".join(argv[1:])
        raise InputError(f"unexpected words on the command line: {words}; a config is named by --config {argv[1]}")
    if CONFIG.value is None:
        raise InputError("name a config: python -m lae_jax.main --config configs/represent.py")
    from lae_jax.train import profiling

    profile = profiling.parse(PROFILE.value) if PROFILE.value else None
    config = CONFIG.value
    # One of several processes must not end before the others can know of it.
    if PROCESSES.value == 1 and not any(flag.value for flag in (COORDINATOR, CLUSTER, EXPECT_HOSTS, EXPECT_DEVICES)):
        check_paths(config)
    set_up_devices()
    if ALLOW_LEAK.value:
        for stage in config.stages.values() if "stages" in config else [config]:
            stage.data.allow_leak = True
    run(config, signals, profile)


def with_underscores(words: list[str]) -> list[str]:
    """A command line whose flags have underscores, as absl has them, where they had hyphens."""
    result = []
    for word in words:
        flag, equals, value = word.partition("=")
        result.append(f"--{flag[2:].replace('-', '_')}{equals}{value}" if flag.startswith("--") else word)
    return result


def find_shipped_config(argv: list[str]) -> list[str]:
    """`--config represent` and `--config configs/represent.py`, away from a checkout, mean the package's own file."""
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


def flag_error(error: Exception) -> str:
    """The reason that absl or ml_collections gives for a wrong flag, as one sentence."""
    reason = error.args[0] if error.args and isinstance(error.args[0], KeyError) else error
    if isinstance(reason, KeyError) and "does not support indexing" not in str(reason):
        # A field that the config lacks; its text is the name, in quotes or not, a line's end, and a hint.
        name, *hint = str(reason.args[0]).splitlines()
        told = "; ".join([repr(name.strip("'\"")), *hint])
        return f"unknown config field {told} (in a recipe, fields are set by stage: --config.stages.<name>.<field>=...)"
    lines = str(error).strip().splitlines()
    if "Traceback" in str(error):  # of the config's file; it ends with the reason
        return lines[-1].partition(": ")[2]
    if isinstance(error, flags.Error):
        return lines[0]
    return f"an override --config.... names a field inside a value ({lines[0]})"


def cli() -> None:
    """The program, with errors in the flags as one line. Without absl's app, which turns every library's log on."""
    argv = find_shipped_config(with_underscores(sys.argv))
    if {"--help", "-h", "-help"} & {*argv}:
        print(__doc__, flags.FLAGS.module_help(CONFIG_MODULE), sep="\n")
        return
    if "--version" in argv:
        print(f"lae_jax {__version__}")
        return
    try:
        words = flags.FLAGS(argv)
    except (AttributeError, KeyError, TypeError, ValueError, flags.Error) as error:
        raise InputError(flag_error(error)) from error
    with watch.Signals().caught() as signals:
        main(words, signals)


if __name__ == "__main__":
    start.program(cli, leave)
