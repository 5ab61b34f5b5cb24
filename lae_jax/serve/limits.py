"""Uploads: read them into memory, never onto a disk, within limits that each have a flag."""

import asyncio
import contextlib
import dataclasses
import math
import re
from collections.abc import AsyncIterator

from starlette.requests import ClientDisconnect, Request

from lae_jax.faces import MAX_PIXELS
from lae_jax.runtime import foreign
from lae_jax.serve import multipart

# A client that still sends does not read the answer, so its bytes are read and discarded for this long.
_DISCARD_SECONDS = 5.0
_NAME_LENGTH = 150
# Shares of the seconds of a stop after which uploads, and then all requests, are refused. In the rest the clients read
# their answers.
_UPLOADED, _ANSWERED = 0.5, 0.8


def _now() -> float:
    return asyncio.get_running_loop().time()


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of requests.

    Attributes:
      bytes: Most bytes of a request.
      files: Most files in a request.
      pixels: Most pixels of an image.
      requests: Most requests that are processed at once.
      held: Most bytes of all uploads in memory.
      upload_seconds: Most seconds that a client may take to send a request.
    """

    bytes: int = 32_000_000
    files: int = 32
    pixels: int = MAX_PIXELS
    requests: int = 64
    held: int = 512_000_000
    upload_seconds: float = 60.0


class Refused(Exception):
    """The request is refused, with a status, a sentence and, for some, the seconds until the client may retry."""

    def __init__(self, status: int, sentence: str, retry_after: int | None = None):
        super().__init__(sentence)
        self.status, self.sentence, self.retry_after = status, sentence, retry_after


@dataclasses.dataclass(frozen=True)
class Uploaded:
    """An image of a request."""

    name: str
    content: bytes


class Gate:
    """Counts the bytes in memory and the requests in progress. Only one event loop may use it."""

    def __init__(self, limits: Limits):
        self.limits, self.busy, self.held = limits, 0, 0
        self._stopped: tuple[float, float] | None = None  # when, and how many seconds it may take
        self._limited: dict[asyncio.Timeout, float] = {}

    @property
    def stopping(self) -> bool:
        """Whether the server stops."""
        return self._stopped is not None

    def stop(self, seconds: float) -> None:
        """Limits the time of uploads and of work in progress, because the server stops within `seconds`.

        Only the first call counts.
        """
        if self.stopping:
            return
        self._stopped = _now(), seconds
        for limited, share in self._limited.items():
            if not limited.expired():
                limited.reschedule(self._end(limited.when(), share))

    def _end(self, when: float | None, share: float) -> float | None:
        if self._stopped is None:
            return when
        started, seconds = self._stopped
        return min(math.inf if when is None else when, started + share * seconds)

    @contextlib.asynccontextmanager
    async def _limit(self, seconds: float | None, share: float) -> AsyncIterator[None]:
        """Limits the time to `seconds` (None: no limit), and to a share of the stop; raises TimeoutError."""
        when = None if seconds is None else _now() + seconds
        async with asyncio.timeout_at(self._end(when, share)) as limited:
            self._limited[limited] = share
            try:
                yield
            finally:
                del self._limited[limited]

    @contextlib.asynccontextmanager
    async def uploading(self) -> AsyncIterator[None]:
        """Limits the time in which a request is received.

        Raises:
          Refused: It took too long.
        """
        seconds = self.limits.upload_seconds
        try:
            async with self._limit(seconds, _UPLOADED):
                yield
        except TimeoutError:
            if self.stopping:
                raise Refused(503, "the server was stopped before the upload was complete: send it again", 5) from None
            raise Refused(
                408, f"the upload took longer than {seconds:g} seconds: send fewer or smaller images"
            ) from None

    def discarding(self) -> contextlib.AbstractAsyncContextManager[None]:
        """Limits the time in which the rest of a refused request is received; raises TimeoutError."""
        return self._limit(_DISCARD_SECONDS, _UPLOADED)

    @contextlib.asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Counts a request as in progress, and ends its work when the server stops.

        Raises:
          Refused: Too many requests are in progress, or the server was stopped.
        """
        self.check_busy()
        self.busy += 1
        try:
            async with self._limit(None, _ANSWERED):
                yield
        except TimeoutError:
            if not self.stopping:
                raise
            raise Refused(503, "the server was stopped before the answer was ready: send it again", 5) from None
        finally:
            self.busy -= 1

    def check_busy(self) -> None:
        """Checks whether another request may be processed.

        Raises:
          Refused: Too many requests are in progress.
        """
        if self.busy >= self.limits.requests:
            raise Refused(429, f"the server is busy with {self.busy} requests: try again in a second", 1)

    @contextlib.asynccontextmanager
    async def received(self, request: Request) -> AsyncIterator[list[Uploaded]]:
        """Receives a request and yields its images, whose bytes count as held until the end.

        Raises:
          Refused: The request is beyond a limit or not a form of files.
          ClientDisconnect: The client left.
        """
        upload = _Upload(self, request)
        try:
            try:
                self.check_busy()
                yield await upload.files()
            except Refused as refusal:
                if refusal.status not in (408, 503) and not upload.expected:
                    await upload.discard()
                raise
        finally:
            self.held -= upload.size


class _Upload:
    def __init__(self, gate: Gate, request: Request):
        self.gate, self.request, self.size, self.ended = gate, request, 0, False
        # The client waits for "100 Continue", which the first receive sends.
        self.expected = "expect" in request.headers

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
            raise Refused(400, f"the request is not multipart/form-data of files: {reason}") from None
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
                raise Refused(429, "the server holds too many bytes of uploads: try again in a second", 1)
            files.write(chunk)
        return files.whole()

    async def _next(self) -> bytes:
        self.expected = False
        message = await self.request.receive()
        self.ended = not message.get("more_body", False)
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        return message.get("body", b"")

    def _too_large(self) -> Refused:
        return Refused(413, f"the request has more than {self.gate.limits.bytes:,} bytes: send fewer or smaller images")

    async def discard(self) -> None:
        """Reads and discards the rest, so that the client reads the answer."""
        with contextlib.suppress(TimeoutError, ClientDisconnect):
            async with self.gate.discarding():
                while not self.ended:
                    await self._next()


def _clean(name: str | None, number: int) -> str:
    """Returns the last part of a path without control characters, or "image NUMBER" if nothing is left."""
    last = re.split(r"[/\\]", name or "")[-1]
    return foreign.replaced(last, "")[:_NAME_LENGTH].strip() or f"image {number}"
