"""What the tests of the server share: one on a free port of this machine, and clients that behave badly."""

import contextlib
import io
import socket
import threading
import time

import numpy as np
from PIL import Image

from lae_jax.predict.estimator import AgeEstimator, Input
from lae_jax.runs.conformal import Conformal, fit
from lae_jax.serve import ages, app, limits, listen, schema

ABOUT = schema.About(
    model="stand-in", card="# Model card", crop={}, aligned=True, input={"image_size": 24, "resize": 0},
    temperature=1.0, versions={"lae-jax": "0"}, limits={"bytes": 1, "files": 1, "pixels": 1},
)  # fmt: skip


def fitted() -> Conformal:
    """Conformal intervals of people whose estimated ages are wrong by 60 years."""
    ages = np.linspace(0, 100, 200)
    return fit((ages + 60) % 100, np.full((200, 101), 1 / 101), ages)


def stand_in(seen: list[int], temperature: float = 1.0, conformal: Conformal | None = None) -> AgeEstimator:
    """An estimator that needs no device: its ages depend on the pixels, and on nothing beside them."""
    mixing = np.random.default_rng(0).normal(size=(3, 101)) / 20

    def forward(batch: np.ndarray) -> np.ndarray:
        seen.append(len(batch))
        logits = np.einsum("bhwc,ck->bk", batch.astype(np.float64) / 255, mixing)
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        distribution = weights / weights.sum(axis=1, keepdims=True)
        return np.column_stack([distribution @ np.arange(101), distribution]).astype(np.float32)

    return AgeEstimator(forward, (1, 8, 32), Input(24), {}, temperature, conformal)


@contextlib.contextmanager
def serving(
    given: ages.Ages,
    hosts=("127.0.0.1", "localhost"),
    seconds=8.0,
    told: list | None = None,
    buffer=None,
    applications: list | None = None,
    **choices,
):
    """The address of a server of `given`, in a thread of this process.

    `told` gets what became of its requests, `applications` the application, which `app.create` makes with `choices`.
    `buffer`: bytes of answers that the system buffers for a client.
    """
    listening = listen.bind("127.0.0.1", 0)
    if buffer is not None:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
    application = app.create(given, ABOUT, hosts, **choices)
    if applications is not None:
        applications.append(application)
    server = listen.Server(application, seconds)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield listen.address(listening).rstrip("/")
    finally:
        server.should_exit = True
        thread.join()
        if server.timer is not None:
            server.timer.cancel()
        if told is not None:
            told.append(server.outcome())


def until(wanted, seconds: float = 30):
    """What `wanted` returns, as soon as it is true."""
    end = time.monotonic() + seconds
    while not (found := wanted()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return found


def aligned(estimator: AgeEstimator, **choices) -> ages.Ages:
    return ages.Ages(estimator, None, limits=limits.Limits(**choices))


def encoded(picture: Image.Image, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form)
    return buffer.getvalue()


def crop(seed: int, side: int = 24) -> bytes:
    return encoded(Image.fromarray(np.random.default_rng(seed).integers(0, 255, (side, side, 3)).astype(np.uint8)))


def multipart(contents: dict[str, bytes]) -> tuple[bytes, str]:
    """(body, content type) of files."""
    parts = [
        b'--edge\r\nContent-Disposition: form-data; name="images"; filename="%s"\r\n\r\n%s\r\n'
        % (name.encode(), content)
        for name, content in contents.items()
    ]
    return b"".join(parts) + b"--edge--\r\n", "multipart/form-data; boundary=edge"


def begun(address: str, sent: bytes) -> socket.socket:
    """A connection on which a client has sent something, and then nothing more."""
    host, port = address.removeprefix("http://").rstrip("/").split(":")
    connection = socket.create_connection((host, int(port)), timeout=30)
    connection.sendall(sent)
    return connection


def post(body: bytes, kind: str, length: int | None = None) -> bytes:
    """The bytes of a request, of which the body may be less than it says."""
    head = f"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n"
    return f"{head}Content-Length: {length or len(body)}\r\n\r\n".encode() + body


def reply(connection: socket.socket) -> bytes:
    """All that the server sends until it closes the connection."""
    with connection:
        return b"".join(iter(lambda: connection.recv(1 << 16), b""))


def refuses(address: str) -> bool:
    """Whether nothing listens there any more."""
    try:
        begun(address, b"").close()
    except ConnectionError:
        return True
    return False
