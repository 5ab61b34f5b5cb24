"""Processes that decode (`sandbox`): started when they are needed, ended when they take too long, and replaced."""

import atexit
import contextlib
import functools
import importlib.util
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

from PIL import Image

from lae_jax.faces import MAX_KEPT_PIXELS, MAX_PIXELS, MAX_SIDE, sandbox
from lae_jax.faces.perceptual_hash import BYTES as HASH_BYTES
from lae_jax.faces.pixels import BadImage, Decoded, Form
from lae_jax.runtime import cpu, foreign
from lae_jax.runtime.errors import InputError

# A decoder that does nothing is ended after so many seconds; it may share its core with many others.
WALL_SECONDS = 120.0
_TRIES = 2  # a decoder that ends for no reason of its picture is replaced once
_STEP = 100_000  # microseconds between two looks at the clock
_TOGETHER = 1 << 20  # bytes of images that are sent together
_BUFFER = 1 << 16  # bytes
_LONGEST_REASON = 1000
_LONGEST_FORM = 1 << 27  # bytes, as large as a file may be
_LIBRARIES = ("lae_jax", "numpy", "PIL", "simplejpeg", "pillow_heif", "_pillow_heif")  # all that a decoder imports
_START = """
import sys
sys.path += sys.argv[3:]
from lae_jax.faces import sandbox
sandbox.main(*map(int, sys.argv[1:3]))
"""
_TOO_LONG = (
    f"takes too long to decode: more than {sandbox.OPENING:g} s of a core, {sandbox.PER_MEGAPIXEL:g} s a megapixel and"
    f" {sandbox.PER_MEGABYTE:g} s a megabyte, or more than {sandbox.MOST:g} s: save it as plain JPEG"
)


class Slow(Exception):
    """Decoding needs more than the share of the time that `Decoders` allow."""


class Stopped(Exception):
    """Nobody waits for the picture any more, or the decoders are closed."""


class Decoders:
    """A number of processes, each of which decodes one picture at a time. All methods may be called from any thread.

    Args:
      count: Most processes.
      share: Share of the time that `sandbox.seconds` allows a picture. With less than 1, `Slow` is raised for a picture
        that needs more.
      nice: Niceness of the processes: with more than 0 they give way to others on the same cores.
    """

    def __init__(self, count: int, *, share: float = 1.0, nice: int = 0):
        self._share, self._nice = share, nice
        self._free = threading.BoundedSemaphore(count)
        self._lock, self._idle, self._all, self._closed = threading.Lock(), [], set(), False
        self._started = 0

    def decode(
        self, many: Sequence[bytes], most_pixels: int = MAX_PIXELS, gone: threading.Event | None = None
    ) -> list[Decoded | BadImage]:
        """Decodes each photograph as `images.decode` does; small ones together take less time.

        Args:
          many: Encoded photographs.
          most_pixels: Most pixels that a header may state.
          gone: Set when nobody waits for the results any more.

        Returns:
          The decoded photographs, with the reason in place of one that cannot be used.

        Raises:
          Slow: One takes more than this share of its time.
          Stopped: `gone` was set, or the decoders were closed.
        """
        return [
            reply if isinstance(reply, BadImage) else _decoded(*reply)
            for reply in self._asked(sandbox.DECODE, (most_pixels, 0), many, gone)
        ]

    def store_forms(self, many: Sequence[bytes], size: int, quality: int) -> list[Form | BadImage]:
        """Converts each crop as `images.store_forms` does; the rest is as in `decode`."""
        return [
            reply if isinstance(reply, BadImage) else _form(*reply, encoded)
            for encoded, reply in zip(many, self._asked(sandbox.STORE, (size, quality), many, None), strict=True)
        ]

    def start(self, count: int = 1) -> None:
        """Starts processes until there are `count`, does not wait for them, and from now on replaces those that end.

        With a few more than can work at once, nothing waits for the start of another.
        """
        with self._lock:
            self._started = max(count, self._started)
            while len(self._all) < count and not self._closed:
                process = _Process(self._nice)
                self._all.add(process)
                self._idle.insert(0, process)  # those that are ready are taken first

    def close(self) -> None:
        """Ends all processes at once; pictures in progress raise `Stopped`."""
        with self._lock:
            self._closed = True
            for process in self._all:
                process.kill()
            for process in self._idle:
                process.close()
            self._all.clear()
            self._idle.clear()

    def _asked(self, what: int, how: tuple[int, int], many: Sequence[bytes], gone: threading.Event | None) -> list:
        """Returns (numbers, payload), or the reason, for each image."""
        with self._free:
            if len(many) > 1 and sum(map(len, many)) <= _TOGETHER:
                # One that ends the process is found below.
                with contextlib.suppress(_Ended, Slow):
                    return self._once(what, how, many, gone)
            return [self._alone(what, how, encoded, gone) for encoded in many]

    def _alone(self, what: int, how: tuple[int, int], encoded: bytes, gone: threading.Event | None):
        told = ""
        for _ in range(_TRIES):
            try:
                return self._once(what, how, [encoded], gone)[0]
            except _Ended as ended:
                if ended.by == signal.SIGPROF:
                    if self._share < 1:
                        raise Slow from None
                    return BadImage(_TOO_LONG)
                told = str(ended)
        return BadImage(f"ends the process that decodes it ({told})")

    def _once(self, what: int, how: tuple[int, int], many: Sequence[bytes], gone: threading.Event | None) -> list:
        process = self._taken()
        try:
            process.send(what, how, self._share, many, gone)
            replies = [process.reply(what) for _ in many]
        except BaseException:
            self._dropped(process)
            if self._closed:
                raise Stopped from None
            raise
        with self._lock:
            self._idle.append(process)
        if any(reply is None for reply in replies):
            raise Slow
        return replies

    def _taken(self) -> "_Process":
        with self._lock:
            if self._closed:
                raise Stopped
            while self._idle:
                process = self._idle.pop()
                if process.is_running():
                    return process
                process.close()
                self._all.discard(process)
            process = _Process(self._nice)
            self._all.add(process)
            return process

    def _dropped(self, process: "_Process") -> None:
        process.kill()
        process.close()
        with self._lock:
            self._all.discard(process)
        self.start(self._started)


class _Ended(Exception):
    """A decoder ended; `by` is the number of the signal, or 0."""

    def __init__(self, by: int, told: str):
        super().__init__(told)
        self.by = by


class _Process:
    def __init__(self, nice: int):
        self._socket, theirs = socket.socketpair()
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):  # Python's own timeout costs a call of the system each
            self._socket.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", 0, _STEP))
        with theirs:
            descriptor = theirs.fileno()
            # Isolated: neither the current folder nor the environment says what is imported.
            command = [sys.executable, "-I", "-S", "-c", _START, str(descriptor), str(nice), *_path()]
            # Standard input is a pipe whose closing ends the decoder, so it ends with this process, however that ends.
            self._child = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, pass_fds=[descriptor], env=_environment()
            )
        self._is_ready, self._gone, self._deadline = False, None, 0.0
        self._pending, self._buffer = bytearray(), bytearray(_BUFFER)

    def is_running(self) -> bool:
        return self._child.poll() is None

    def kill(self) -> None:
        """Ends the process; the thread that waits for its answer notices."""
        self._child.kill()
        self._child.wait()

    def close(self) -> None:
        """Closes what leads to the process. Only for a process that no thread waits for."""
        self._socket.close()
        self._child.stdin.close()
        self._child.wait()

    def send(
        self, what: int, how: tuple[int, int], share: float, many: Sequence[bytes], gone: threading.Event | None
    ) -> None:
        """Sends encoded images, whose replies are then received one by one.

        Raises:
          _Ended: The process ended.
          Stopped: `gone` was set.
          InputError: The process does not start.
        """
        self._gone, self._deadline = gone, time.monotonic() + WALL_SECONDS
        if not self._is_ready:
            self._wait_until_ready()
        head = sandbox.REQUEST.pack(what, *how, share, len(many))
        head += b"".join(sandbox.LENGTH.pack(len(encoded)) for encoded in many)
        if sum(map(len, many)) <= _TOGETHER:
            self._send(b"".join((head, *many)))
        else:
            for part in (head, *many):
                self._send(part)

    def reply(self, what: int) -> tuple[tuple[int, ...], bytearray] | BadImage | None:
        """Returns (numbers, payload) for the next image, the reason why it cannot be used, or None if it is slow.

        Raises:
          _Ended: The process ended, or its answer makes no sense or does not come.
          Stopped: `gone` was set.
        """
        kind, *numbers, length = sandbox.REPLY.unpack(self._received(sandbox.REPLY.size))
        if not _is_sound(what, kind, numbers, length):
            raise _Ended(0, "an answer that makes no sense")
        payload = self._received(length)
        self._deadline = time.monotonic() + WALL_SECONDS
        if kind == sandbox.BAD:
            return BadImage(foreign.replaced(payload.decode("utf-8", "replace"), " "))
        return None if kind == sandbox.SLOW else (tuple(numbers), payload)

    def _wait_until_ready(self) -> None:
        try:
            self._is_ready = self._received(1) == sandbox.READY
        except _Ended as ended:
            if not ended.by:
                raise InputError(
                    "the process that decodes images does not start; its own message is above: install lae_jax and its"
                    " requirements again"
                ) from None
            raise

    def _check(self) -> None:
        if self._gone is not None and self._gone.is_set():
            raise Stopped
        if time.monotonic() > self._deadline:
            raise _Ended(signal.SIGPROF, f"no answer for {WALL_SECONDS:g} s")

    def _send(self, content: bytes) -> None:
        view = memoryview(content)
        while view:
            try:
                view = view[self._socket.send(view) :]
            except BlockingIOError:
                self._check()
            except OSError:
                raise self._ended() from None

    def _received(self, length: int) -> bytearray:
        """Receives so many bytes; more that came with them are kept for the next call."""
        content, self._pending = self._pending[:length], self._pending[length:]
        if len(content) == length:
            return content
        count = len(content)
        content += bytes(length - count)
        view = memoryview(content)
        while count < length:
            try:
                if length - count < len(self._buffer):
                    new = self._socket.recv_into(self._buffer)
                    used = min(new, length - count)
                    view[count : count + used] = memoryview(self._buffer)[:used]
                    self._pending = self._buffer[used:new]
                else:
                    new = used = self._socket.recv_into(view[count:])
            except BlockingIOError:
                self._check()
                continue
            except OSError:
                raise self._ended() from None
            if not new:
                raise self._ended()
            count += used
        return content

    def _ended(self) -> _Ended:
        try:
            status = self._child.wait(1.0)  # its socket is closed a little before
        except subprocess.TimeoutExpired:
            return _Ended(0, "its end of the connection was closed")
        by = -status if status < 0 else 0
        return _Ended(by, signal.Signals(by).name if by else f"status {status}")


def _decoded(numbers: tuple[int, ...], payload: bytearray) -> Decoded:
    width, height, *size, reduced, orientation = numbers
    return Decoded(Image.frombytes("RGB", (width, height), payload), reduced, tuple(size), orientation)


def _form(numbers: tuple[int, ...], payload: bytearray, encoded: bytes) -> Form:
    _, _, width, height, *_ = numbers
    return Form(bytes(payload[HASH_BYTES:]) or encoded, bytes(payload[:HASH_BYTES]), width, height)


def _is_sound(what: int, kind: int, numbers: Sequence[int], length: int) -> bool:
    """Whether a reply makes sense: a hostile image that took over a decoder may answer anything."""
    width, height, *size, reduced, orientation = numbers
    if kind == sandbox.BAD:
        return length <= _LONGEST_REASON
    if kind == sandbox.SLOW:
        return length == 0
    if max(size) > MAX_SIDE or min(size) < 1:
        return False
    if kind == sandbox.STORED:
        return what == sandbox.STORE and HASH_BYTES <= length <= _LONGEST_FORM
    kept = 0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE and width * height <= MAX_KEPT_PIXELS + 2 * MAX_SIDE
    known = kind == sandbox.DECODED and reduced in (1, 2, 4, 8) and orientation in range(1, 9)
    return what == sandbox.DECODE and known and kept and length == 3 * width * height


@functools.cache
def _path() -> list[str]:
    """Returns the folders that the libraries of a decoder are in."""
    folders = {}
    for name in _LIBRARIES:
        spec = importlib.util.find_spec(name)
        if spec is not None:
            up = os.path.dirname(spec.origin)
            folders[os.path.dirname(up) if spec.submodule_search_locations else up] = None
    return [*folders]


def _environment() -> dict[str, str]:
    # One process for each core; memory that many threads would reserve counts against the limit.
    return {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}


_of_process: dict[int, Decoders] = {}
_making = threading.Lock()


def shared() -> Decoders:
    """Returns the decoders of this process, at most one for each core. A forked process gets its own."""
    with _making:
        own = os.getpid()
        if own not in _of_process:
            made = _of_process[own] = Decoders(cpu.cores())
            atexit.register(lambda: made.close() if os.getpid() == own else None)
        return _of_process[own]
