"""Signals and the watchdog, in processes of their own."""

import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT

from lae_jax.runtime import watch
from lae_jax.runtime.errors import STALLED

WAITING = """
import time
from lae_jax.runtime import watch
with watch.Signals().caught() as signals:
    print("ready", flush=True)
    while not signals.asked:
        time.sleep(0.01)
    print("asked", flush=True)
    {then}
"""


def start(code):
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("number", watch.ASKING)
def test_a_first_signal_asks(number):
    process = start(WAITING.format(then="pass"))
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (0, "asked\n") and f"{number.name}: finishing the step" in err


def test_a_closed_terminal_may_say_so_twice_and_under_nohup_it_is_not_heard():
    process = start(WAITING.format(then="time.sleep(0.5)"))
    assert process.stdout.readline() == "ready\n"
    for _ in range(2):
        process.send_signal(signal.SIGHUP)
        time.sleep(0.1)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (0, "asked\n") and err.count("SIGHUP") == 1
    ignoring = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + WAITING.format(then="pass")
    process = start(ignoring)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGUSR1)
    out, err = process.communicate(timeout=120)
    assert out == "asked\n" and "SIGUSR1" in err and "SIGHUP" not in err


def test_a_run_whose_terminal_is_closed_still_saves(tmp_path):
    """Its output then goes nowhere: writing to the closed terminal would be an error."""
    saving = "print('saving', flush=True); import sys; open(sys.argv[1], 'w').write('saved')"
    code = f"""
import os, pty, sys
child, terminal = pty.fork()
if not child:
    os.execv(sys.executable, [sys.executable, "-c", {WAITING.format(then=saving)!r}, sys.argv[1]])
line = b""
while not line.endswith(b"ready\\r\\n"):  # closed earlier, the child's own print would fail
    line += os.read(terminal, 1000)
os.close(terminal)
print(os.waitpid(child, 0)[1], open(sys.argv[1]).read())
"""
    command = [sys.executable, "-c", code, str(tmp_path / "state")]
    ended = subprocess.run(command, cwd=ROOT, timeout=120, capture_output=True, text=True)
    assert ended.stdout == "0 saved\n", ended.stderr


def test_a_second_signal_leaves_at_once_even_where_python_does_not_come_back():
    # A lock that nobody releases: Python's own handlers would never run.
    process = start(WAITING.format(then="import _thread; l = _thread.allocate_lock(); l.acquire(); l.acquire()"))
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "asked\n"
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=120)[1]
    assert process.returncode == 128 + signal.SIGINT and "left at once" in err


def test_what_was_there_before_is_there_again():
    code = """
import signal
from lae_jax.runtime import watch
before = [signal.getsignal(number) for number in watch.ASKING]
with watch.Signals().caught():
    assert [signal.getsignal(number) for number in watch.ASKING] != before
assert [signal.getsignal(number) for number in watch.ASKING] == before and signal.set_wakeup_fd(-1) == -1
"""
    process = start(code)
    assert process.communicate(timeout=120)[1] == "" and process.returncode == 0


WATCHED = """
import time
from lae_jax.runtime import watch
def stuck():
    {body}
with watch.Watchdog({minutes}) as dog:
    stuck()
"""


def test_the_watchdog_ends_what_hangs_with_its_stacks():
    process = start(WATCHED.format(minutes=0.01, body="dog.beat(); time.sleep(1000)"))
    err = process.communicate(timeout=120)[1]
    assert process.returncode == STALLED and "in stuck" in err and "stall_minutes" in err


def test_the_watchdog_leaves_alone_what_goes_on_or_compiles():
    # Beats come every 0.1 s and the watchdog waits 3 s, which allows for a slow machine.
    going_on = "[(dog.beat(), time.sleep(0.1)) for _ in range(35)]"
    process = start(WATCHED.format(minutes=0.05, body=f"time.sleep(3.5); {going_on}; dog.rest(); time.sleep(3.5)"))
    assert process.communicate(timeout=120)[1] == "" and process.returncode == 0


def test_a_process_that_slept_is_not_ended_when_it_wakes_up():
    process = start(WATCHED.format(minutes=0.02, body="dog.beat(); print('ready', flush=True); time.sleep(0.2)"))
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(2.5)
    process.send_signal(signal.SIGCONT)
    assert process.communicate(timeout=120)[1] == "" and process.returncode == 0
