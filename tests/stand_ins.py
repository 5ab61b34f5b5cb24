"""What the tests of the launch scripts share: stand-ins for programs, and the statuses that users read."""

import pathlib
import re
import subprocess
import time

from conftest import ROOT

LAUNCH = ROOT / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])


def documented() -> dict[int, str]:
    """status -> 'stop', 'again' or 'again, TRIES', from the table that users read."""
    rows = re.findall(
        r"^\| ([\d, ]+) \|.*\| (stop|again|again, TRIES) \|$", (ROOT / "docs/scaling.md").read_text(), re.M
    )
    return {int(status): what for numbers, what in rows for status in numbers.split(",")}


FINAL = sorted(status for status, what in documented().items() if what == "stop" and status)
COUNTED = sorted(status for status, what in documented().items() if what == "again, TRIES")


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
