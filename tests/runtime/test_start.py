"""How programs end: pipes without a reader, closed and full outputs, errors while another one is handled."""

import subprocess
import sys

import pytest
from conftest import ROOT

from lae_jax.runtime import start
from lae_jax.runtime.errors import InputError

# Much output, more than a pipe holds; then what DO says.
PROGRAM = """
import os, sys
from lae_jax.runtime import console, start
from lae_jax.runtime.errors import InputError, saving
def main():
    for number in range(20_000):
        print("row", number)
        if number % 1000 == 0:
            console.logger.warning("log %d", number)
            console.write("line")
    DO
start.program(main)
"""


def run(how, do="pass", program=PROGRAM):
    """(status, standard error) of a program under a redirection of bash."""
    command = f'"$0" -c "$1" {how}; exit "${{PIPESTATUS[0]}}"'
    words = ["bash", "-c", command, sys.executable, program.replace("DO", do)]
    ended = subprocess.run(words, cwd=ROOT, timeout=60, capture_output=True, text=True)
    assert "Traceback" not in ended.stderr and "Exception ignored" not in ended.stderr, ended.stderr
    return ended.returncode, "\n".join(line for line in ended.stderr.splitlines() if "log " not in line)


@pytest.mark.parametrize(("how", "status", "told"), [
    ("| head -n 1", 141, ""),
    ("2>&1 | head -n 1", 141, ""),
    (">&-", 0, ""),
    ("2>&-", 0, ""),
    (">&- 2>&-", 0, ""),
    (">/dev/full", 5, "error: the standard output could not be written (No space left on device)"),
    (">/dev/full 2>&1", 5, ""),
    ("2>/dev/full", 0, ""),
])  # fmt: skip
def test_an_output_that_nobody_reads_ends_a_program_without_a_traceback(how, status, told):
    found = run(how)
    assert found[0] == status and found[1].startswith(told) and found[1].count("\n") == 0


def test_an_error_keeps_its_status_where_it_cannot_be_told():
    code = PROGRAM.replace("20_000", "0")
    for how in ("2>&-", "2>/dev/full", "2>&1 | true", ">/dev/full 2>&1"):
        assert run(how, "raise InputError('a')", code)[0] == 2, how


def test_a_closed_output_is_not_the_next_file_that_is_opened(tmp_path):
    code = PROGRAM.replace("20_000", "0")
    do = f"file = open({str(tmp_path / 'a')!r}, 'wb'); os.write(1, b'printed'); os.write(2, b'printed'); file.close()"
    assert run(">&- 2>&- <&-", do, code)[0] == 0
    assert (tmp_path / "a").read_bytes() == b""


SECOND = """
import contextlib, os
from lae_jax.runtime import start
from lae_jax.runtime.errors import InputError, saving
class Second:
    def __enter__(self): pass
    def __exit__(self, *_): raise OSError(28, os.strerror(28), "run/second")
def main():
    with Second():
        DO
start.program(main)
"""


@pytest.mark.parametrize(("do", "status", "told"), [
    ("raise InputError('the first')", 2, "error: the first"),
    ("raise KeyboardInterrupt", 130, "interrupted"),
    ("pass", 5, "error: run/second could not be written (No space left on device): make room, then start the same"),
])  # fmt: skip
def test_an_error_while_another_one_is_handled_does_not_replace_it(do, status, told):
    found = run("", do, SECOND)
    assert found[0] == status and found[1].splitlines()[-1].startswith(told)
    assert ("failed as well: OSError" in found[1]) == (do != "pass")


def test_a_message_is_not_as_long_as_the_name_of_a_stranger(capfd):
    assert start._told(InputError(f"{'x' * 1_000_000} is unknown")) == 2
    assert capfd.readouterr().err == f"error: {'x' * 9_993}...\n"
