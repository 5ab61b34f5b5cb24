"""slurm.sbatch and tpu_pod.sh, run with stand-ins for srun and gcloud: what is started again, and what is not."""

import re
import signal
import subprocess
import threading

import pytest
from conftest import ROOT
from stand_ins import COUNTED, FINAL, LAUNCH, lines, run, stand_in, start, wait_for

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
