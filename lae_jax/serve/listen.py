"""The socket and the server: it drops slow clients and, when stopped, answers the requests that it accepted."""

import asyncio
import contextlib
import logging
import resource
import signal
import socket
from typing import TYPE_CHECKING

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from lae_jax.runtime.errors import InputError

if TYPE_CHECKING:
    from starlette.types import ASGIApp

logger = logging.getLogger("lae_jax")

# Time for the request line and the headers, and between two requests of a connection.
HEADER_SECONDS = 10.0
# Connections that may wait to be accepted.
_BACKLOG = 500
# Time for accepted requests after the server was told to stop.
_DRAIN_SECONDS = 120


class _Impatient(H11Protocol):
    """Closes connections whose client does not send complete headers in time; uvicorn has no limit for that."""

    def connection_made(self, transport) -> None:
        super().connection_made(transport)
        self._timer: asyncio.TimerHandle | None = None
        self._watch()

    def connection_lost(self, exc) -> None:
        # A pending timer would keep the connection and its request in memory.
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
        """Closes the connection if no request came after `last`."""
        if self.cycle is last and not self.transport.is_closing():
            self.transport.close()


def bind(host: str, port: int) -> socket.socket:
    """Returns a listening socket.

    Args:
      host: Address or name.
      port: Port; 0: any free port.

    Raises:
      InputError: The address cannot be used, or the port is taken.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except (OSError, OverflowError) as error:
        raise InputError(f"--host {host} --port {port}: {error}; choose another") from error


def address(listening: socket.socket) -> str:
    """Returns the URL of a listening socket, for a browser."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


class _Server(uvicorn.Server):
    """Calls `stop` of the application at shutdown, which limits the time of uploads in progress."""

    async def shutdown(self, sockets=None) -> None:
        self.config.app.stop()
        await super().shutdown(sockets)


def server(app: "ASGIApp") -> uvicorn.Server:
    """Returns a server of an application with a method `stop` (`app.create`)."""
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


def serve(app: "ASGIApp", listening: socket.socket) -> None:
    """Serves an application until SIGTERM or SIGINT, then refuses connections, answers accepted requests and returns.

    Args:
      app: An application with a method `stop` (`app.create`).
      listening: The socket.
    """
    # After the shutdown uvicorn raises the signal again. These handlers ignore it, so that the process exits with 0.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    # Each connection needs a file descriptor, and the default limit of many systems is 1,024.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # The answer says what is wrong with a request, so the log does not.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    uvicorn_logger = logging.getLogger("uvicorn")
    uvicorn_logger.setLevel(logging.ERROR)
    uvicorn_logger.handlers, uvicorn_logger.propagate = logger.handlers, False
    server(app).run(sockets=[listening])
    logger.info("stopped: every request that was accepted has been answered")
