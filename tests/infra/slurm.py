"""Slurm on this machine: a controller and two nodes n1, n2 with false GPUs, their files in one folder."""

import contextlib
import os
import pathlib
import pwd
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator

NODES, GPUS = 2, 2
# CPUs and memory are not this machine's: slurmd believes them (config_overrides).
CONF = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CryptoType=crypto/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SlurmdParameters=config_overrides
SlurmdTimeout=10
SlurmctldTimeout=10
KillWait=20
GresTypes=gpu
JobRequeue=1
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdPidFile={folder}/%n.pid
SlurmdSpoolDir={folder}/spool-%n
SlurmdLogFile={folder}/%n.log
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=64 RealMemory=4000 Gres=gpu:{gpus}
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=64 RealMemory=4000 Gres=gpu:{gpus}
PartitionName=main Nodes=ALL Default=YES
"""


class Slurm:
    """The daemons. `folder` must have a short path: the socket of munge is in it."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self._daemons: dict[str, subprocess.Popen] = {}
        os.environ["PATH"] = f"{os.environ['PATH']}:/usr/sbin"
        with contextlib.ExitStack() as held:
            sockets = [held.enter_context(socket.socket()) for _ in range(1 + NODES)]
            for one in sockets:
                one.bind(("127.0.0.1", 0))
            ports = [one.getsockname()[1] for one in sockets]
        host = socket.gethostname().partition(".")[0]
        (folder / "state").mkdir()
        (folder / "slurm.conf").write_text(CONF.format(host=host, folder=folder, ports=ports, gpus=GPUS).lstrip())
        (folder / "hosts").write_text(f"127.0.0.1 localhost {host} n1 n2\n")
        lines = ["AutoDetect=off"]
        for node in ("n1", "n2"):
            for number in range(GPUS):
                # A count without device files is refused. These are like /dev/null.
                os.mknod(folder / f"{node}gpu{number}", 0o20666, os.makedev(1, 3))
            lines.append(f"NodeName={node} Name=gpu File={folder}/{node}gpu[0-{GPUS - 1}]")
        (folder / "gres.conf").write_text("\n".join(lines) + "\n")

    def start(self) -> None:
        munge = pwd.getpwnam("munge")
        private = self.folder / "munge"
        private.mkdir(mode=0o755)
        (private / "key").write_bytes(os.urandom(128))
        (private / "key").chmod(0o400)
        self.folder.chmod(0o755)
        for path in (private, private / "key"):
            os.chown(path, munge.pw_uid, munge.pw_gid)
        self._start(
            "munged", "--foreground", "--force", f"--socket={private}/socket", f"--key-file={private}/key",
            f"--log-file={private}/log", f"--pid-file={private}/pid", f"--seed-file={private}/seed",
            user="munge", group="munge", extra_groups=[],
        )  # fmt: skip
        wait_for(lambda: (private / "socket").exists())
        self._start("slurmctld", "-D", "-c")
        for node in ("n1", "n2"):
            self.start_node(node)
        wait_for(lambda: self.ask("sinfo", "--noheader", "--format=%D %t").split() == [str(NODES), "idle"])

    def _start(self, *words: str, name: str = "", **more) -> None:
        with open(self.folder / f"{name or words[0]}.out", "ab") as log:
            # Each in a session of its own, so that nothing that is sent to the tests reaches them.
            process = subprocess.Popen(
                words, env=self.environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, **more,
            )  # fmt: skip
        self._daemons[name or words[0]] = process

    def start_node(self, node: str) -> None:
        # Processes on a node find the others by their names, which only they know.
        hosts = f"mount --bind {self.folder}/hosts /etc/hosts && exec slurmd -D -N {node}"
        self._start("unshare", "--mount", "sh", "-c", hosts, name=node)

    def kill_node(self, node: str) -> None:
        """Kills the daemon of a node and all that runs on it, as a power cut does."""
        daemon = self._daemons.pop(node)
        _kill_all([daemon.pid, *self._steps_of(node)])
        daemon.wait()

    def _steps_of(self, node: str) -> list[int]:
        """The ids of what Slurm runs on a node."""
        found = []
        for path in pathlib.Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if b"slurmstepd" in (path / "cmdline").read_bytes() and self._is_on(path, node):
                    found.append(int(path.name))
        return found

    def _is_on(self, path: pathlib.Path, node: str) -> bool:
        below = [path, *(pathlib.Path("/proc") / str(pid) for pid in _below(int(path.name)))]
        return any(f"SLURMD_NODENAME={node}\0".encode() in (one / "environ").read_bytes() for one in below) and any(
            str(self.folder).encode() in (one / "environ").read_bytes() for one in below
        )

    def stop(self) -> None:
        with contextlib.suppress(subprocess.SubprocessError):
            self.ask("scancel", "--user=root")
        for process in reversed(self._daemons.values()):
            left = _below(process.pid)
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            if process.poll() is None:
                process.kill()
                process.wait()
            _kill_all(left)
        for node in ("n1", "n2"):
            _kill_all(self._steps_of(node))

    def environment(self) -> dict[str, str]:
        return {**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf")}

    def ask(self, *words: str, **more) -> str:
        told = subprocess.run(words, env=self.environment(), capture_output=True, text=True, timeout=30, **more)
        return told.stdout

    def state(self, job: str) -> str:
        """The state of a job, such as RUNNING."""
        return re.search(r"\bJobState=(\S+)", self.ask("scontrol", "show", "job", job))[1]

    def ends(self, job: str, seconds: float, at_once: bool = True) -> str:
        """Waits until a job is not queued again any more and returns its state, such as COMPLETED.

        Slurm starts a job that was queued again two minutes later. With `at_once` it starts at once.
        """
        state = ["PENDING"]

        def is_over() -> bool:
            state[0] = self.state(job)
            if state[0] == "PENDING" and at_once:
                self.ask("scontrol", "update", f"JobId={job}", "StartTime=now")
            return state[0] not in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "REQUEUED")

        wait_for(is_over, seconds)
        return state[0]

    def status(self, job: str) -> int:
        """The exit status of a job that ended."""
        return int(re.search(r"ExitCode=(\d+):", self.ask("scontrol", "show", "job", job))[1])


def _below(pid: int) -> list[int]:
    """The ids of all processes that a process has started, and that these have started."""
    parents = {}
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
    found, level = [], [pid]
    while level:
        level = [child for child, parent in parents.items() if parent in level]
        found += level
    return found


def _kill_all(pids: list[int]) -> None:
    for pid in [each for one in pids for each in (one, *_below(one))]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


@contextlib.contextmanager
def running(folder: pathlib.Path) -> Iterator[Slurm]:
    slurm = Slurm(folder)
    try:
        slurm.start()
        yield slurm
    finally:
        slurm.stop()
        shutil.rmtree(folder, ignore_errors=True)
