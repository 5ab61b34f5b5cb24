"""Decoding in other processes: the same pixels, bounded work and memory, and decoders that are ended and replaced."""

import contextlib
import io
import os
import pathlib
import resource
import signal
import subprocess
import sys
import threading
import time

import hostile
import numpy as np
import pytest
from conftest import ROOT
from faces.test_images import DAMAGED, FILES, WHOLE
from PIL import Image

from lae_jax.faces import decoders, images, pixels, sandbox
from lae_jax.runs.preprocessing import Input
from lae_jax.runtime.errors import InputError

SMALL = FILES["progressive"]


@pytest.fixture(scope="module")
def slow():
    """A JPEG that takes a quarter of a second of a core, and may take more."""
    return hostile.slow(1600, 90)


@contextlib.contextmanager
def opened(count=1, **choices):
    made = decoders.Decoders(count, **choices)
    try:
        yield made
    finally:
        made.close()


def in_thread(work):
    """(thread, list that gets the result or the error) of running work."""
    results = []

    def run():
        try:
            results.append(work())
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, results


def busy(made):
    """The process of a decoder that works, as soon as it decodes."""
    while True:
        for process in [*made._all]:
            if process._is_ready and process not in made._idle and cpu_of(process._child.pid) > 0.02:
                return process._child
        time.sleep(0.01)


def cpu_of(pid):
    """Seconds since a process began to decode: its own time, less what it took to start."""
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:  # it was ended
        return 0
    took = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return took - started.setdefault(pid, took)


started = {}


def told(found):
    return str(found) if isinstance(found, images.BadImage) else (np.asarray(found.image).tolist(), *found[1:])


def here(encoded):
    try:
        return pixels.decode(encoded)
    except images.BadImage as reason:
        return reason


def test_every_format_has_the_pixels_and_the_reason_of_its_decoder_in_the_same_order():
    many = [*FILES.values(), *DAMAGED.values(), *WHOLE.values(), b"", b"no picture"]
    assert [told(found) for found in images.decode_all(many)] == [told(here(encoded)) for encoded in many]
    forms = images.store_forms(many, 64, 90)
    for encoded, form in zip(many, forms, strict=True):
        try:
            assert form == pixels.store_form(pixels.opened(encoded), encoded, 64, 90)
        except images.BadImage as reason:
            assert str(form) == str(reason)


@pytest.mark.parametrize("name", hostile.attacks())
def test_attacks_take_little_time_and_memory(name):
    encoded = hostile.attacks()[name]
    before, peak = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ways = [lambda: images.decode(encoded), lambda: images.store_forms([encoded], 64, 90)[0]]
    ways.append(lambda: Input(48).pixels(Image.open(io.BytesIO(encoded))))
    for way in ways:
        with contextlib.suppress(ValueError):  # also Pillow's, of `open`
            way()
    assert time.process_time() - before < 2  # of this process; that of the decoder is bounded
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 100_000  # kilobytes


@pytest.mark.parametrize(("name", "reason"), [
    ("scans", "a JPEG of more than 100 scans"), ("narrow", "1 x 16000000 pixels: a side is longer than 65,500")
])  # fmt: skip
def test_what_is_refused_by_its_header(name, reason):
    encoded = hostile.attacks()[name]
    with pytest.raises(images.BadImage, match=reason):
        images.decode(encoded)
    assert reason in str(images.store_forms([encoded], 64, 90)[0])
    with pytest.raises(InputError, match=reason):
        Input(48).pixels(Image.open(io.BytesIO(encoded)))


def test_a_very_narrow_picture_never_becomes_a_huge_one():
    crop = np.full((1_000_000, 1, 3), 7, np.uint8)
    crop[:500_000] = 200
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pixels = Input(48).pixels(crop)
    assert np.all(pixels[:20] == 200) and np.all(pixels[28:] == 7)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 120_000  # kilobytes; it was 200 MB for 48 px


def test_honest_jpegs_may_hold_what_looks_like_scans():
    encoded = hostile.saved(Image.new("RGB", (64, 64)), "JPEG", exif=b"Exif\0\0" + b"\xff\xda" * 500)
    assert images.load(encoded + b"\xff\xda\0\2" * 500).size == (64, 64)


def test_a_picture_that_takes_too_long_ends_its_decoder_and_no_other(slow):
    with opened(share=0.01) as made, pytest.raises(decoders.Slow):
        made.decode([slow])
    with opened() as made:
        thread, results = in_thread(lambda: made.decode([SMALL, slow, SMALL]))
        os.kill(busy(made).pid, signal.SIGPROF)  # as its timer does
        thread.join()
        first, second, third = results[0]
        assert told(first) == told(third) == told(here(SMALL))
        assert str(second).startswith("takes too long to decode: more than 1 s of a core, 0.1 s a megapixel and 0.5 s")


def test_the_time_is_that_of_the_core(slow):
    """A decoder's own timer ends it, within a decoder of C."""
    with opened(share=0.01) as made:
        for _ in range(2):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            with pytest.raises(decoders.Slow):
                made.decode([slow])
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            assert after.ru_utime - before.ru_utime < 2  # with its start
        assert told(made.decode([SMALL])[0]) == told(here(SMALL))


def test_a_decoder_that_is_killed_is_replaced(slow):
    with opened() as made:
        thread, results = in_thread(lambda: made.decode([slow]))
        os.kill(busy(made).pid, signal.SIGKILL)
        thread.join()
        assert told(results[0][0]) == told(here(slow)) and len(told(here(slow))[0]) == 1600
        (idle,) = made._idle
        os.kill(idle._child.pid, signal.SIGTERM)  # which systemd sends to all processes of a server that stops
        assert told(made.decode([SMALL])[0]) == told(here(SMALL)) and made._idle == [idle]
        idle.kill()  # between two pictures
        assert told(made.decode([SMALL])[0]) == told(here(SMALL))


def test_a_picture_that_kills_its_decoder_twice_has_a_reason(slow):
    with opened() as made:
        thread, results = in_thread(lambda: made.decode([slow]))
        for _ in range(2):
            child = busy(made)
            os.kill(child.pid, signal.SIGSEGV)
            child.wait()
        thread.join()
        assert str(results[0][0]) == "ends the process that decodes it (SIGSEGV)"


def test_who_leaves_ends_the_work(slow):
    gone = threading.Event()
    with opened() as made:
        thread, results = in_thread(lambda: made.decode([slow], gone=gone))
        child = busy(made)
        gone.set()
        thread.join(10)
        assert isinstance(results[0], decoders.Stopped) and child.returncode == -signal.SIGKILL
        thread, results = in_thread(lambda: made.decode([slow]))
        child = busy(made)
        made.close()
        thread.join(10)
        assert isinstance(results[0], decoders.Stopped) and child.returncode == -signal.SIGKILL


def test_a_decoder_ends_with_the_process_that_started_it(slow, tmp_path):
    (tmp_path / "slow.jpg").write_bytes(slow)
    (tmp_path / "numpy.py").write_text("raise SystemExit('code in the current folder was run')")
    code = """
import os, signal, sys, threading, time
sys.path = [part for part in sys.path if part]
from lae_jax.faces import decoders
made = decoders.Decoders(1)
threading.Thread(target=made.decode, args=([open("slow.jpg", "rb").read()],), daemon=True).start()
while not made._all or not [*made._all][0]._is_ready:
    time.sleep(0.01)
print([*made._all][0]._child.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    child = int(ended.stdout)
    end = time.monotonic() + 10
    while _runs(child) and time.monotonic() < end:
        time.sleep(0.05)
    assert not _runs(child)


def _runs(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_decoder_has_few_rights():
    with opened() as made:
        made.decode([SMALL])
        pid = made._idle[0]._child.pid
        limits = pathlib.Path(f"/proc/{pid}/limits").read_text()
        most = {line[:25].strip(): line[25:].split()[0] for line in limits.splitlines()[1:]}
        size = int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
        assert size < 500_000_000 and abs(int(most["Max address space"]) - size - sandbox.MEMORY) < 100_000_000
        assert (most["Max file size"], most["Max core file size"], most["Max open files"]) == ("0", "0", "16")
        loaded = pathlib.Path(f"/proc/{pid}/maps").read_text()
        assert "simplejpeg" in loaded and "jaxlib" not in loaded and "tensorflow" not in loaded


@pytest.mark.parametrize("reply", [
    (sandbox.DECODED, (10, 10, 10, 10, 1, 1), 299),  # too few bytes
    (sandbox.DECODED, (60_000, 60_000, 10, 10, 1, 1), 10_800_000_000),
    (sandbox.DECODED, (10, 10, 10, 10, 3, 1), 300),
    (sandbox.DECODED, (10, 10, 10, 10, 1, 9), 300),
    (sandbox.DECODED, (10, 10, 0, 10, 1, 1), 300),
    (sandbox.STORED, (0, 0, 10, 10, 1, 1), 32),  # not what was asked
    (sandbox.BAD, (0, 0, 0, 0, 1, 1), 1 << 40),
    (7, (10, 10, 10, 10, 1, 1), 300),
])  # fmt: skip
def test_an_answer_that_makes_no_sense_is_not_taken(reply):
    assert decoders._is_sound(sandbox.DECODE, sandbox.DECODED, (10, 10, 10, 10, 1, 1), 300)
    assert not decoders._is_sound(sandbox.DECODE, *reply)
