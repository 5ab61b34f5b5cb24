"""What a client may send, and how it is read: into memory, never onto a disk, within bounds that have a flag each."""

import asyncio
import contextlib
import dataclasses
import re
from collections.abc import AsyncIterator, Iterator

from starlette.requests import ClientDisconnect, Request

from lae_jax.faces import images
from lae_jax.faces.images import BadImage
from lae_jax.serve import multipart

# A client that still sends would not read the answer: its bytes are taken, and thrown away, for as long as this.
_DISCARD_SECONDS = 5.0
_NAME_LENGTH = 150
# That an upload under way may still take once the server is stopped: those who stop it wait 10 to 30 seconds.
STOPPING_SECONDS = 5.0


def _now() -> float:
    return asyncio.get_running_loop().time()


@dataclasses.dataclass(frozen=True)
class Limits:
    """bytes, files: of a request; pixels: of an image; requests: worked on at once; held: bytes of all uploads;
    upload_seconds: that a client may take to send a request."""

    bytes: int = 32_000_000
    files: int = 32
    pixels: int = images.MAX_PIXELS
    requests: int = 64
    held: int = 512_000_000
    upload_seconds: float = 60.0


class Refused(Exception):
    """A request that is answered with a status and a sentence."""

    def __init__(self, status: int, sentence: str, retry_after: int | None = None):
        super().__init__(sentence)
        self.status, self.sentence, self.retry_after = status, sentence, retry_after


@dataclasses.dataclass(frozen=True)
class Uploaded:
    """An image of a request, as `photographs.of_chunk` takes it."""

    name: str
    content: bytes

    def read(self) -> bytes:
        return self.content


class Gate:
    """Counts what is held and worked on. One event loop alone may call it."""

    def __init__(self, limits: Limits):
        self.limits, self.working, self.held = limits, 0, 0
        self.stopping = False
        self._uploads: set[asyncio.Timeout] = set()

    def stop(self) -> None:
        """Gives uploads that are not whole yet a few seconds more and no longer, since the server is to end."""
        self.stopping = True
        for upload in self._uploads:
            if not upload.expired():
                upload.reschedule(min(upload.when(), self._last()))

    @contextlib.asynccontextmanager
    async def uploading(self) -> AsyncIterator[None]:
        """While a request is received. Raises Refused where it takes too long."""
        seconds = self.limits.upload_seconds
        try:
            async with asyncio.timeout_at(self._last() if self.stopping else _now() + seconds) as upload:
                self._uploads.add(upload)
                try:
                    yield
                finally:
                    self._uploads.discard(upload)
        except TimeoutError:
            if self.stopping:
                raise Refused(503, "the server was stopped before the upload was whole: send it again", 5) from None
            raise Refused(408, f"the upload took longer than {seconds:g} seconds") from None

    @staticmethod
    def _last() -> float:
        return _now() + STOPPING_SECONDS

    @contextlib.contextmanager
    def work(self) -> Iterator[None]:
        """While one request is worked on. Raises Refused where there are too many."""
        self.check_busy()
        self.working += 1
        try:
            yield
        finally:
            self.working -= 1

    def check_busy(self) -> None:
        if self.working >= self.limits.requests:
            raise Refused(429, f"the server works on {self.working} requests already: try again in a second", 1)

    @contextlib.asynccontextmanager
    async def received(self, request: Request) -> AsyncIterator[list[Uploaded]]:
        """The images of a request, whose bytes count as held until the end. Raises Refused, and ClientDisconnect."""
        upload = _Upload(self, request)
        try:
            try:
                self.check_busy()
                yield await upload.files()
            except Refused as refusal:
                if refusal.status not in (408, 503):
                    await upload.discard()
                raise
        finally:
            self.held -= upload.size


class _Upload:
    def __init__(self, gate: Gate, request: Request):
        self.gate, self.request, self.size, self.ended = gate, request, 0, False

    async def files(self) -> list[Uploaded]:
        limits, headers = self.gate.limits, self.request.headers
        kind = headers.get("content-type", "")
        if not kind.lower().startswith("multipart/form-data"):
            raise Refused(415, "send photographs as multipart/form-data, as `curl -F images=@photo.jpg` does")
        if int(headers.get("content-length", 0)) > limits.bytes:
            raise self._too_large()
        try:
            async with self.gate.uploading():
                files = await self._read(multipart.Files(kind, limits.files))
        except multipart.TooManyFiles:
            raise Refused(413, f"more than {limits.files} files: send them in several requests") from None
        except multipart.BadForm as reason:
            raise Refused(400, f"the request is no multipart/form-data of files: {reason}") from None
        if not files:
            raise Refused(422, "the request has no file: send at least one photograph")
        return [Uploaded(_clean(name, number), content) for number, (name, content) in enumerate(files, 1)]

    async def _read(self, files: multipart.Files) -> list[tuple[str, bytes]]:
        while not self.ended:
            chunk = await self._next()
            self.size += len(chunk)
            self.gate.held += len(chunk)
            if self.size > self.gate.limits.bytes:
                raise self._too_large()
            if self.gate.held > self.gate.limits.held:
                raise Refused(429, "the server holds as many bytes of uploads as it may: try again in a second", 1)
            files.write(chunk)
        return files.whole()

    async def _next(self) -> bytes:
        message = await self.request.receive()
        self.ended = not message.get("more_body", False)
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        return message.get("body", b"")

    def _too_large(self) -> Refused:
        return Refused(413, f"the request has more than {self.gate.limits.bytes:,} bytes: send fewer or smaller images")

    async def discard(self) -> None:
        """Reads on without keeping anything, so that the client comes to read the answer."""
        with contextlib.suppress(TimeoutError, ClientDisconnect):
            async with asyncio.timeout(_DISCARD_SECONDS):
                while not self.ended:
                    await self._next()


def _clean(name: str | None, number: int) -> str:
    """The last part of a name, without control characters; a number where nothing is left."""
    last = re.split(r"[/\\]", name or "")[-1]
    return "".join(c for c in last if c.isprintable())[:_NAME_LENGTH].strip() or f"image {number}"


def checked(image: Uploaded, limits: Limits) -> str:
    """Why an image is not worked on, by its header alone; empty where it is."""
    try:
        width, height = images.claimed_size(image.content)
    except BadImage as reason:
        return str(reason)
    if width * height > limits.pixels:
        return f"{width} x {height} pixels are more than {limits.pixels:,}"
    return ""
