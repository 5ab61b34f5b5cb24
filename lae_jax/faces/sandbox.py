"""The process that decodes: encoded images come in, pixels go out, and its memory and time are bounded.

It loads only numpy, Pillow and simplejpeg. `decoders` starts it, ends it and reads its replies, which are numbers and
raw bytes. A hostile image that takes over a decoder can change these replies, and nothing else in the program.
"""

import fcntl
import os
import resource
import signal
import socket
import struct
import sys

from PIL import AvifImagePlugin, Image

from lae_jax.faces import pixels

# What to do, its two numbers, the share of the allowed time, the number of encoded images. Their lengths follow
# (`LENGTH` each), then the images.
REQUEST, LENGTH = struct.Struct("<BIIdI"), struct.Struct("<Q")
# For each image: the kind of reply; width and height of the pixels; width and height of the photograph; the side's
# reduction; the orientation; the length of the payload that follows.
REPLY = struct.Struct("<BIIIIIIQ")
READY = b"R"
DECODE, STORE = range(2)
DECODED, STORED, BAD, SLOW = range(4)

MEMORY = 1_000_000_000  # bytes of address space that a picture may take
OPENING = 1.0  # seconds of a core that every picture has
PER_MEGAPIXEL, PER_MEGABYTE = 0.1, 0.5  # further seconds; photographs of all formats need a fifth to a tenth of the sum
MOST = 20.0  # seconds of a core
_FILES = 16  # open files
_TOGETHER = 1 << 18  # bytes that are received at once
_COPIED = 1 << 15  # bytes of replies that are sent together


def seconds(size: tuple[int, int], length: int) -> float:
    """Seconds of a core that decoding may take, of `length` bytes that state this size."""
    return min(MOST, OPENING + PER_MEGAPIXEL * size[0] * size[1] / 1e6 + PER_MEGABYTE * length / 1e6)


def main(descriptor: int, nice: int) -> None:
    """Answers the requests that come through a socket, until it is closed.

    Args:
      descriptor: Of the socket.
      nice: Niceness of the process.
    """
    _give_up_rights(nice)
    connection = socket.socket(fileno=descriptor)
    # Nothing is ever written into standard input, a pipe: its signal says that the other end is closed, and ends this
    # process also within a decoder. Where the signal does nothing (macOS), the allowed time ends it.
    fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(0, fcntl.F_SETFL, fcntl.fcntl(0, fcntl.F_GETFL) | os.O_ASYNC)
    connection.sendall(READY)
    with connection.makefile("rb", _TOGETHER) as received:
        while head := received.read(REQUEST.size):
            what, first, second, share, count = REQUEST.unpack(head)
            lengths = [LENGTH.unpack(received.read(LENGTH.size))[0] for _ in range(count)]
            many = [received.read(length) for length in lengths]
            pending = bytearray()
            for encoded in many:
                head, payload = _reply(what, first, second, share, encoded)
                pending += head
                if len(pending) + len(payload) <= _COPIED:
                    pending += payload
                    continue
                connection.sendall(pending)
                pending.clear()
                connection.sendall(payload)
            connection.sendall(pending)


def _give_up_rights(nice: int) -> None:
    os.nice(nice)
    for number in (signal.SIGINT, signal.SIGTERM):  # they reach all processes; closing the socket ends this one
        signal.signal(number, signal.SIG_IGN)
    Image.init()  # loads all formats, before no file can be opened
    pixels.heif_formats()
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # one process for each core
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decoders write warnings
    _limit(resource.RLIMIT_AS, _taken() + MEMORY)
    _limit(resource.RLIMIT_NOFILE, _FILES)
    _limit(resource.RLIMIT_FSIZE, 0)
    _limit(resource.RLIMIT_CORE, 0)


def _limit(which: int, most: int) -> None:
    try:
        resource.setrlimit(which, (most, most))
    except (ValueError, OSError):  # macOS has no limit of the address space
        if sys.platform == "linux":
            raise


def _taken() -> int:
    """Bytes of address space that the process takes without a picture."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 0


def _reply(what: int, first: int, second: int, share: float, encoded: bytes) -> tuple[bytes, bytes | memoryview]:
    try:
        # The default action of the signal ends the process, also within a decoder.
        signal.setitimer(signal.ITIMER_PROF, share * seconds((0, 0), len(encoded)))
        return _worked(what, first, second, share, encoded)
    except pixels.BadImage as reason:
        return _told(BAD, str(reason).encode())
    except MemoryError:
        return _told(BAD, pixels.TOO_MUCH_MEMORY.encode())
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _worked(what: int, first: int, second: int, share: float, encoded: bytes) -> tuple[bytes, bytes | memoryview]:
    source = pixels.opened(encoded, first if what == DECODE else pixels.MAX_PIXELS)
    if share < 1 and pixels.is_slow(source, encoded):
        return _told(SLOW)
    signal.setitimer(signal.ITIMER_PROF, share * seconds(source.size, len(encoded)))
    if what == DECODE:
        array = pixels.plain(source, encoded)
        if array is not None:
            return _told(DECODED, array.data.cast("B"), source.size, source.size)
        image, reduced, size, orientation = pixels.decode_opened(source, encoded)
        return _told(DECODED, image.tobytes(), image.size, size, reduced, orientation)
    form = pixels.store_form(source, encoded, first, second)
    is_kept = form.encoded is encoded
    return _told(STORED, form.phash + (b"" if is_kept else form.encoded), size=(form.width, form.height))


def _told(
    kind: int, payload: bytes | memoryview = b"", shape=(0, 0), size=(0, 0), reduced=1, orientation=1
) -> tuple[bytes, bytes | memoryview]:
    return REPLY.pack(kind, *shape, *size, reduced, orientation, len(payload)), payload
