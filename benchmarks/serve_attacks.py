"""The server under attack: what good clients feel of bad ones, the memory, and the time of a stop.

    python -m benchmarks.serve_attacks                                 # trains a small run on drawn faces first
    python -m benchmarks.serve_attacks --run runs/classify --seconds 30 --turns 3

16 good clients each send a photograph, wait for its age, and send the next one, alone and beside attackers, in turns on
one server. The attackers: progressive JPEGs of 1,500 scans and of as many as are decoded, PNGs of 1 x 16,000,000
pixels, clients that leave, clients that do not read, slow senders, and requests that are not valid HTTP. It fails if a
good client gets anything but an age, if the 95th percentile of their times more than doubles, if the memory grows, or
if a stop beside attackers takes longer than stated.
Writes build/serve_attacks/results.json.
"""

import contextlib
import io
import json
import pathlib
import random
import signal
import socket
import statistics
import struct
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence

from PIL import Image

from benchmarks import harness, serve_load
from lae_jax.runtime import console

OUT = pathlib.Path("build/serve_attacks")
GOOD = 16
MOST_TIMES = 2.0  # the good clients' p95 beside attackers, over that without
GROWTH = 0.02  # of the memory, from the first turn to the last
STOP_SECONDS = 8
SPARE = 1.0  # seconds for the signal and the end of the process, on a machine with much to do


def repeated_scans(times: int) -> bytes:
    """A progressive JPEG of 1,600 x 1,200 grey pixels, whose last scan, of less than 100 bytes, is repeated."""
    buffer = io.BytesIO()
    Image.new("RGB", (1600, 1200), (128, 128, 128)).save(buffer, "JPEG", progressive=True)
    content = buffer.getvalue()
    scan = content[content.rindex(b"\xff\xda") : -2]
    return content[:-2] + scan * times + content[-2:]


def tall_png(height: int = 16_000_000) -> bytes:
    """A PNG of 1 pixel times 16,000,000."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 1, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(bytes(2 * height), 9))
        + chunk(b"IEND", b"")
    )


class Attackers:
    """Clients that go on until `end`.

    Args:
      host: Host of the server.
      port: Its port.
      only: Kinds of attackers (default: all).
    """

    def __init__(self, host: str, port: int, only: Sequence[str] = ()):
        self.place, self.ended = (host, port), threading.Event()
        self.rounds: dict[str, int] = {}
        photographs = repeated_scans(1500), repeated_scans(85), tall_png(), serve_load.photographs()[0]
        scans, slow, tall, photo = map(self.post, photographs)
        large = self.get("/swagger/swagger-ui-bundle.js") * 10
        two = photo.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n", 1)
        small = self.get("/").replace(b"GET", b"POST").replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n")
        kinds: list[tuple[str, int, Callable]] = [
            ("scans", 4, lambda: self.asks(scans)),
            ("slow scans", 2, lambda: self.asks(slow)),
            ("tall", 2, lambda: self.asks(tall)),
            ("leaves", 4, lambda: self.leaves(slow)),
            ("does not read", 8, lambda: self.stays(large)),
            ("does not read ages", 4, lambda: self.stays(photo * 20)),
            ("sends slowly", 8, lambda: self.drips(photo)),
            ("sends a slow header", 8, lambda: self.drips(self.get("/"))),
            ("two framings", 2, lambda: self.asks(two)),
            ("small chunks", 2, lambda: self.asks(small + b"1\r\nx\r\n" * 50_000)),
            ("noise", 2, lambda: self.asks(random.randbytes(2_000))),
        ]
        self.threads = [
            threading.Thread(target=self.repeat, args=(name, attack), daemon=True)
            for name, number, attack in kinds
            for _ in range(number)
            if not only or name in only
        ]

    def post(self, content: bytes) -> bytes:
        body, kind = serve_load.form(content)
        head = f"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}"
        return f"{head}\r\n\r\n".encode() + body

    def get(self, path: str) -> bytes:
        return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()

    def repeat(self, name: str, attack: Callable[[], None]) -> None:
        while not self.ended.is_set():
            with contextlib.suppress(OSError):
                attack()
            self.rounds[name] = self.rounds.get(name, 0) + 1
            self.ended.wait(0.05)

    @contextlib.contextmanager
    def connected(self) -> Iterator[socket.socket]:
        with socket.create_connection(self.place, timeout=60) as connection:
            yield connection

    def asks(self, sent: bytes) -> None:
        """Sends a request and waits for an answer, or the end of the connection."""
        with self.connected() as connection:
            connection.sendall(sent)
            connection.recv(1 << 16)

    def leaves(self, sent: bytes) -> None:
        with self.connected() as connection:
            connection.sendall(sent)
            self.ended.wait(0.2)

    def stays(self, sent: bytes) -> None:
        """Sends requests and never reads an answer."""
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(self.place)
            connection.sendall(sent)
            self.ended.wait()

    def drips(self, sent: bytes) -> None:
        """Sends a byte at a time."""
        with self.connected() as connection:
            for place in range(len(sent)):
                connection.sendall(sent[place : place + 1])
                if self.ended.wait(0.5):
                    return

    def __enter__(self) -> "Attackers":
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.ended.set()


def memory(process) -> float:
    """Megabytes of a process and its children."""
    return sum(one.memory_info().rss for one in [process, *process.children(recursive=True)]) / 1e6


def stop(process) -> float:
    """Seconds until a server has stopped; it must end with 0."""
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    status = process.wait(STOP_SECONDS + 60)
    assert status == 0, f"the server ended with {status}"
    return time.monotonic() - started


def main(argv: list[str] | None = None) -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--run", type=pathlib.Path, help="default: a ResNet-18 at 64 px on drawn faces")
    parser.add_argument("--seconds", type=float, default=30, help="of a turn")
    parser.add_argument("--only", default="", help="kinds of attackers, with commas; default: all")
    parser.add_argument("--turns", type=int, default=3, help="of each side")
    args = parser.parse_args(argv)
    OUT.mkdir(parents=True, exist_ok=True)
    only = [name for name in args.only.split(",") if name]
    run = args.run or serve_load.small_run(serve_load.OUT / "small")
    sides: dict[str, list[dict]] = {"alone": [], "attacked": []}
    held, rounds, problems = [], {}, []
    with serve_load.started(run, "--stop-seconds", str(STOP_SECONDS)) as (host, port, process, log):
        serve_load.loaded(host, port, GOOD, 5)  # warms up
        for _ in range(args.turns):
            for name in sides:
                with Attackers(host, port, only) if name == "attacked" else contextlib.nullcontext() as bad:
                    if bad:
                        time.sleep(1)
                    sides[name].append(serve_load.loaded(host, port, GOOD, args.seconds))
                print(name, sides[name][-1], flush=True)
                time.sleep(2)
                if bad:
                    rounds = {kind: rounds.get(kind, 0) + number for kind, number in bad.rounds.items()}
            held.append(memory(process))
        with Attackers(host, port, only):
            time.sleep(5)
            took = stop(process)
        last = log()
    content = {"load": sides, "megabytes": held, "rounds": rounds, "stop": took, "log": last, "args": str(vars(args))}
    (OUT / "results.json").write_text(json.dumps(content, indent=1) + "\n")
    rows = [
        [name, sum(one["images"] for one in turns)]
        + [f"{statistics.median(one[key] for one in turns):.2f}" for key in ("per_second", "p50", "p95")]
        for name, turns in sides.items()
    ]
    print(console.table(["side", "images", "images/s", "p50 (s)", "p95 (s)"], rows))
    problems = [error for turns in sides.values() for one in turns for error in one["errors"]]
    ratio = statistics.median(
        bad["p95"] / good["p95"] for good, bad in zip(sides["alone"], sides["attacked"], strict=True)
    )
    growth = held[-1] / held[0] - 1
    print(f"p95 beside attackers: {ratio:.2f} times; memory {held} MB; stopped after {took:.1f} s: {last}; {rounds}")
    if ratio > MOST_TIMES:
        problems.append(f"the p95 of good clients is {ratio:.2f} times as long beside attackers")
    if growth > GROWTH:
        problems.append(f"the memory grew by {growth:.1%}")
    if took > STOP_SECONDS + SPARE or "stopped" not in last:
        problems.append(f"the stop took {took:.1f} s: {last}")
    if problems:
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    harness.run(main)
