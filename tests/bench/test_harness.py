"""A benchmark that is asked to end leaves no process behind."""

import os
import signal
import subprocess
import sys

import pytest
from conftest import ROOT
from stand_ins import alive, wait_for

CODE = """
import subprocess
from benchmarks import harness

def main():
    child = subprocess.Popen(["sleep", "600"])
    try:
        print(child.pid, flush=True)
        child.wait()
    finally:
        child.kill()
        child.wait()

harness.run(main)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_benchmark_that_is_asked_to_end_ends_what_it_started(number):
    with subprocess.Popen([sys.executable, "-c", CODE], cwd=ROOT, stdout=subprocess.PIPE, text=True) as bench:
        child = int(bench.stdout.readline())
        try:
            bench.send_signal(number)
            assert bench.wait(30) == 128 + number
            wait_for(lambda: not alive(child))
        finally:
            bench.kill()
            if alive(child):
                os.kill(child, signal.SIGKILL)
