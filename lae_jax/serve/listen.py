"""The socket, and a server on it that slow clients cannot fill and that finishes what it accepted when stopped."""

import asyncio
import contextlib
import logging
import resource
import signal
import socket

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from lae_jax.runtime.errors import InputError

logger = logging.getLogger("lae_jax")

# Of a connection without a whole request line and headers; also between two requests.
HEADER_SECONDS = 10.0
# Waiting to be accepted.
_BACKLOG = 500
# That accepted requests may take once the server is stopped.
_DRAIN_SECONDS = 120


class _Impatient(H11Protocol):
    """Closes connections whose client sends no whole header in time: uvicorn's own has no limit for that."""

    def connection_made(self, transport) -> None:
        super().connection_made(transport)
        self._timer: asyncio.TimerHandle | None = None
        self._watch()

    def connection_lost(self, exc) -> None:
        # It would keep the connection and its request in memory until it comes.
        self._timer.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        self._watch()
        super().on_response_complete()

    def _watch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(HEADER_SECONDS, self._close_unless_after, self.cycle)

    def _close_unless_after(self, last) -> None:
        """Closes the connection where no request has come after `last`."""
        if self.cycle is last and not self.transport.is_closing():
            self.transport.close()


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises InputError."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except (OSError, OverflowError) as error:
        raise InputError(f"--host {host} --port {port}: {error}; name another") from error


def address(listening: socket.socket) -> str:
    """What a browser opens."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


class _Server(uvicorn.Server):
    """Tells its application when it is to stop, which then need not wait for uploads that take their time."""

    async def shutdown(self, sockets=None) -> None:
        self.config.app.stop()
        await super().shutdown(sockets)


def server(app) -> uvicorn.Server:
    config = uvicorn.Config(
        app,
        http=_Impatient,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=int(HEADER_SECONDS),
        timeout_graceful_shutdown=_DRAIN_SECONDS,
    )
    return _Server(config)


def serve(app, listening: socket.socket) -> None:
    """Until SIGTERM or SIGINT: then new connections are refused, accepted requests answered, and it returns."""
    # uvicorn raises the signal again when it has drained; a handler of ours lets the process end by itself, with 0.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    # Each connection takes a file; many systems give a process 1,024 unless it asks for more.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # What is wrong with a request is told to its client.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    uvicorn_logger = logging.getLogger("uvicorn")
    uvicorn_logger.setLevel(logging.ERROR)
    uvicorn_logger.handlers, uvicorn_logger.propagate = logger.handlers, False
    server(app).run(sockets=[listening])
    logger.info("stopped: every request that was accepted has been answered")
