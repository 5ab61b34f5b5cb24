"""A connection: requests that two servers could read differently are refused, and slow clients are dropped."""

import asyncio
import json
import re

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from lae_jax.serve.guard import HEADERS

# Time for the request line and the headers, and between two requests of a connection.
HEADER_SECONDS = 10.0
# Time in which a client takes an answer, or a piece of 64 KB of a file.
ANSWER_SECONDS = 30.0
# Most connections. One more ends the one that has waited for a request for the longest time.
MOST_CONNECTIONS = 2_000
# Time in which a client reads the answer to bytes that are not a request, before the connection is closed.
_LINGER_SECONDS = 2.0
# Most bytes of the request line and the headers.
LONGEST_HEADER = 16_384
# Most bytes of further requests that a client may send before its answer is complete.
_MOST_AHEAD = 65_536
# A body in many small chunks costs more work than the bytes that the limits count.
_FREE_CHUNKS, _SMALLEST_CHUNK = 1_000, 100

_WRONG_LINES = re.compile(rb"(?<!\r)\n|\r(?!\n)|\n[ \t]")
_LENGTHS = re.compile(rb"^content-length:(.*)\r$", re.IGNORECASE | re.MULTILINE)


class _Strict(h11.Connection):
    """Refuses what h11 accepts but another server may read as another request, or as two (request smuggling).

    Attributes:
      refused: Status and sentence for the last error.
      without_body: Whether the answer has no body, because the request is a HEAD.
    """

    def __init__(self):
        super().__init__(h11.SERVER, LONGEST_HEADER)
        self.refused, self.without_body = (400, ""), False
        self._chunks = self._size = 0

    def next_event(self):
        """Returns the next event as h11 does, and raises its error also for what `_check` and `_count` refuse."""
        waiting = self.their_state is h11.IDLE
        before = self.trailing_data[0] if waiting else b""
        try:
            event = super().next_event()
            if type(event) is h11.Request:
                self.without_body, self._chunks, self._size = event.method == b"HEAD", 0, 0
                _check(event, before[: len(before) - len(self.trailing_data[0])])
            elif type(event) is h11.Data and event.chunk_start:
                self._count(event)
        except h11.RemoteProtocolError as error:
            status, sentence = error.error_status_hint, f"the request is not valid HTTP: {str(error)[:200]}"
            if status == 431:
                status = 431 if waiting else 400
                sentence = f"{'the header' if waiting else 'a line of the body'} has more than {LONGEST_HEADER:,} bytes"
            self.refused = status, sentence
            raise
        return event

    def _count(self, event: h11.Data) -> None:
        self._chunks += 1
        self._size += len(event.data)
        if self._chunks > _FREE_CHUNKS and self._size < self._chunks * _SMALLEST_CHUNK:
            raise h11.RemoteProtocolError(f"send chunks of at least {_SMALLEST_CHUNK} bytes")


def _check(request: h11.Request, head: bytes) -> None:
    names, version, lengths = {name for name, _ in request.headers}, request.http_version, _LENGTHS.findall(head)
    status, wrong = 400, ""
    if len(head) > LONGEST_HEADER:  # h11 looks only at one that is not complete
        status, wrong = 431, "too long"
    elif version not in (b"1.0", b"1.1"):
        status, wrong = 505, "the version must be 1.0 or 1.1"
    elif _WRONG_LINES.search(head):
        wrong = "each line of the header must end with CR LF, and none may continue the one before"
    elif len(lengths) > 1 or any(b"," in length for length in lengths):
        wrong = "two headers Content-Length"
    elif b"transfer-encoding" in names and (lengths or version == b"1.0"):
        wrong = "Transfer-Encoding beside Content-Length, or in HTTP/1.0"
    elif not request.target.startswith(b"/") and (request.method, request.target) != (b"OPTIONS", b"*"):
        wrong = "give the path alone, without scheme and host"
    if wrong:
        raise h11.RemoteProtocolError(wrong, error_status_hint=status)


class Connection(H11Protocol):
    """Answers malformed requests with JSON, closes connections of slow clients, and bounds what a client sends ahead.

    uvicorn has limits for none of these.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.conn = _Strict()
        self._timer: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._refused = False

    @property
    def in_progress(self) -> bool:
        """Whether a request has begun whose answer the client has not taken completely."""
        return self.cycle is not None and not self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Starts to wait for a request."""
        if len(self.connections) >= MOST_CONNECTIONS:
            waiting = [one for one in self.connections if not one.in_progress]
            if waiting:
                min(waiting, key=lambda one: one.since).transport.abort()
        super().connection_made(transport)
        # An answer is complete when the system has taken all of it, so that its end means something.
        transport.set_write_buffer_limits(high=0)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the timers: a pending one would keep the connection and its request in memory."""
        self._timer.cancel()
        self._stop_waiting()
        super().connection_lost(exc)

    def drop(self) -> None:
        """Ends the connection at once. Its request, if one is in progress, counts as cut off."""
        if self.in_progress:
            self.cycle.scope["state"]["cut"] = True
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Reads bytes, always: the end of a connection is seen only by reading."""
        if self._refused or self.conn.their_state in (h11.MUST_CLOSE, h11.CLOSED):
            return
        super().data_received(data)
        if self.flow.read_paused and self.conn.their_state in (h11.DONE, h11.MIGHT_SWITCH_PROTOCOL):
            if len(self.conn.trailing_data[0]) > _MOST_AHEAD:
                self.drop()
            else:
                self.flow.resume_reading()

    def send_400_response(self, msg: str) -> None:
        """Answers bytes that are not a request, as every error is answered, and closes the connection."""
        self._refused = True
        self.app.counts.malformed()
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.drop()
            return
        status, sentence = self.conn.refused
        content = json.dumps({"error": sentence}).encode()
        headers = {"content-type": "application/json", "content-length": str(len(content)), "connection": "close"}
        answer = [h11.Response(status_code=status, headers=[*(headers | HEADERS).items()])]
        answer += [] if self.conn.without_body else [h11.Data(data=content)]
        self.transport.write(b"".join(self.conn.send(event) for event in [*answer, h11.EndOfMessage()]))
        if self.in_progress:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        # Closing at once would reset the connection while the client still sends, and could destroy the answer.
        self.transport.write_eof()
        self._timer.cancel()
        self._timer = self.loop.call_later(_LINGER_SECONDS, self.transport.abort)

    def on_response_complete(self) -> None:
        """Waits for the next request."""
        self._watch()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Gives the client time to take what is in memory."""
        super().pause_writing()
        self._unread = self.loop.call_later(ANSWER_SECONDS, self.drop)

    def resume_writing(self) -> None:
        """Goes on: the client has taken all."""
        self._stop_waiting()
        super().resume_writing()

    def shutdown(self) -> None:
        """Closes the connection, or lets it close after its answer."""
        if self.in_progress:
            self.cycle.keep_alive = False
        else:
            self.transport.close()

    def _stop_waiting(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _watch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self.since = self.loop.time()
        self._timer = self.loop.call_later(HEADER_SECONDS, self._close_unless_after, self.cycle)

    def _close_unless_after(self, last) -> None:
        """Closes the connection if no request came after `last`."""
        if self.cycle is last and not self.transport.is_closing():
            self.transport.close()
