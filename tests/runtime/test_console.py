"""What a person sees: tables and the progress line, errors of one line, unknown names get the nearest."""

import fcntl
import importlib
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios

import pytest
from conftest import ROOT

import lae_jax
from lae_jax import demo
from lae_jax.runtime import console, start
from lae_jax.runtime.errors import InputError, unknown


def test_a_table_lines_up():
    lines = console.table(["group", "MAE"], [("1-10", 3.14159), ("total", 12.0)]).splitlines()
    assert lines[2:] == ["1-10    3.14", "total  12.00"] and len({len(line) for line in lines}) == 1


def test_a_door_turns_an_input_error_into_one_line_and_status_2(capsys):
    def main():
        raise InputError("faces.csv is empty")

    with pytest.raises(SystemExit) as exit_:
        start.program(main)
    assert exit_.value.code == 2 and capsys.readouterr().err == "error: faces.csv is empty\n"


@pytest.fixture
def interrupts():
    before = signal.getsignal(signal.SIGINT)
    yield lambda handler: signal.signal(signal.SIGINT, handler)
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("-m", signal.default_int_handler, signal.SIG_DFL),
        ("/usr/bin/lae-jax", signal.default_int_handler, signal.SIG_DFL),
        ("-m", signal.SIG_IGN, signal.SIG_IGN),
        ("/usr/bin/pytest", signal.default_int_handler, signal.default_int_handler),
    ],
)
def test_while_a_program_is_imported_ctrl_c_ends_it_without_a_traceback(monkeypatch, interrupts, name, given, expected):
    interrupts(given)
    monkeypatch.setattr(sys, "argv", [name])
    importlib.reload(lae_jax)
    assert signal.getsignal(signal.SIGINT) == expected


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("given", [signal.default_int_handler, signal.SIG_DFL, signal.SIG_IGN])
def test_a_program_sets_what_ctrl_c_does_and_leaves_it_ignored(interrupts, given, at_once):
    interrupts(given)
    heard = []
    start.program(lambda: heard.append(signal.getsignal(signal.SIGINT)), interrupt_at_once=at_once)
    expected = signal.SIG_DFL if at_once else signal.default_int_handler
    assert heard == [signal.SIG_IGN if given == signal.SIG_IGN else expected]


def test_unknown_names_the_nearest():
    assert (
        unknown("split", "tset", ["test", "train"]) == "unknown split 'tset'; did you mean 'test'? (known: test, train)"
    )


def difference(score, value, low, high, verdict):
    numbers = {"difference": str(value), "difference low": str(low), "difference high": str(high)}
    return {"run": "classify", "minus": "represent", "score": score, "verdict": verdict, **numbers}


def test_the_demo_concludes_from_intervals_and_tells_its_numbers():
    validation = {"represent": 4.5, "classify": 6.0}
    lines = [difference(score, -3.0, -4.0, -2.0, "better") for score in demo.EFFECT]
    shown, told = demo.conclusion(lines, validation)
    assert shown and "sigma      -3.00 years (95 %: -4.00 to -2.00), better" in told and "from 4.50 to 6.00" in told
    lines = [
        difference("sigma", 0.5, -0.25, 1.5, "not distinguishable"),
        difference("MAE 1-10", -3.0, "", "", "not distinguishable"),
    ]
    shown, told = demo.conclusion(lines, validation)
    assert not shown and "does not show the paper's effect" in told and "reports are kept" in told
    assert "+0.50 years (95 %: -0.25 to +1.50), not distinguishable" in told and "-3.00 years (no interval)" in told
    assert "MAE 71-81  missing from the comparison" in told
    assert not demo.conclusion([], validation)[0]


def test_the_demo_ends_with_the_status_of_a_program_that_fails(tmp_path, capfd):
    with pytest.raises(SystemExit) as end:
        demo.call(tmp_path, ["report", "--out", "a"], ["report", str(tmp_path / "none"), "--out", "b"])
    assert end.value.code == 2 and "required: RUN" in capfd.readouterr().out


def in_terminal(columns, *words, interrupt=False):
    """(status, what was written) of `python WORDS` whose standard error alone is a terminal of so many columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    written = b""
    with subprocess.Popen([sys.executable, *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=theirs) as process:
        os.close(theirs)
        while True:
            try:
                written += os.read(ours, 1 << 16)
            except OSError:  # the other side is closed
                break
            if interrupt and re.search(rb"prepare  [1-9]", written):
                process.send_signal(signal.SIGINT)
                interrupt = False
        os.close(ours)
        results = process.stdout.read()
    return process.returncode, written.decode(), results.decode()


PROGRAM = """
import time
from lae_jax.runtime import console, start
def main():
    with console.progress(total=1200, what="prepare", unit="images") as line:
        for number in range(6):
            time.sleep(0.25)
            line.update(200)
            if number == 2:
                console.logger.warning("a.jpg: no face found")
                console.write("a row")
    assert list(console.progress([], total=0, what="nothing", unit="images")) == []
    print("1,200 images in data/faces")
    time.sleep(WAIT)
start.program(main)
"""


@pytest.mark.parametrize("columns", [100, 40])
def test_the_progress_line_in_a_terminal(columns):
    status, drawn, results = in_terminal(columns, "-c", PROGRAM.replace("WAIT", "0"))
    assert status == 0 and results == "a row\n1,200 images in data/faces\n"
    lines = [line for line in re.split("[\r\n]+", drawn) if line.strip()]
    assert "nothing" not in drawn and max(map(len, lines)) <= columns
    speed = r"  \d+ %  [\d,]+/s" if columns == 100 else ""
    assert re.fullmatch(rf"prepare  1,000/1,200 images{speed}  \d+:\d\d left", lines[-3]), lines
    assert re.fullmatch(rf"prepare  1,200/1,200 images{speed}  in \d+:\d\d", lines[-1].strip()), lines
    # The line is cleared before the log line, and drawn again below it.
    told = next(place for place, line in enumerate(lines) if line.endswith("a.jpg: no face found"))
    assert lines[told - 1].startswith("prepare  600/") and lines[told + 1].startswith("prepare  600/")
    assert re.search(r"\r +\r\d\d:\d\d:\d\d a.jpg: no face found\r\n", drawn)


def test_prepare_in_a_terminal_ends_at_ctrl_c_with_the_line_above(tmp_path):
    words = ["--reader", "synthetic", "--source", "train=4000", "--source", "validation=9", "--size", "64"]
    status, drawn, results = in_terminal(
        80, "-m", "lae_jax.prepare", *words, "--workers", "1", "--out", str(tmp_path / "out"), interrupt=True
    )
    assert status == 130 and not results, drawn
    *_, line, kept, end = [line for line in re.split("[\r\n]+", drawn) if line.strip()]
    assert re.fullmatch(r"prepare  [\d,]+/4,009 images.*", line)
    assert re.search("run the same command to (continue|start again)$", kept)
    assert end == "interrupted"


def test_away_from_a_terminal_the_log_has_a_line_every_30_seconds(monkeypatch, caplog, capfd):
    clock = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(console.logger, "handlers", [caplog.handler])
    monkeypatch.setattr(console.logger, "propagate", False)
    with caplog.at_level("INFO", "lae_jax"):
        assert list(console.progress([1, 2], what="predict", unit="images")) == [1, 2]
        with console.progress(total=80, what="prepare", unit="images") as line:
            line._time, line.start_t, line.last_print_t = (lambda: clock[0]), 0.0, 0.0
            for second in range(80):
                clock[0] = float(second)
                line.update()
    told = ["prepare  31/80 images  38 %  1.0/s  0:49 left", "prepare  61/80 images  76 %  1.0/s  0:19 left"]
    assert caplog.messages == told
    assert capfd.readouterr().err == ""


def test_numbers_have_their_plural_and_times_their_digits():
    assert [console.counted(n, "face") for n in (0, 1, 1203)] == ["0 faces", "1 face", "1,203 faces"]
    assert console.counted(2, "person", "people") == "2 people"
    assert [console.clock(s) for s in (0.4, 69.6, 3729)] == ["0:00", "1:10", "1:02:09"]
