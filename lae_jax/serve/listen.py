"""The socket and the server, which stops within a given time."""

import asyncio
import contextlib
import logging
import os
import resource
import select
import signal
import socket
import threading
import time
import types
from typing import TYPE_CHECKING, NoReturn

import uvicorn
from uvicorn.protocols.http.h11_impl import RequestResponseCycle

from lae_jax.runtime.errors import InputError
from lae_jax.serve import STOP_SECONDS, connection
from lae_jax.serve.connection import Connection
from lae_jax.serve.operating import hangup, log_lines

if TYPE_CHECKING:
    from starlette.types import ASGIApp

logger = logging.getLogger("lae_jax")

# Connections that may wait to be accepted.
_BACKLOG = 500
# Share of the seconds of a stop after which connections are cut. The rest is for the program to end.
_CUT = 0.9
_STDERR = 2


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


class Server(uvicorn.Server):
    """Stops within a given time, and knows what became of the requests that were in progress then.

    It stops at a signal, or when the application has failed. A second signal ends the process at once.

    Args:
      app: An application with the methods `stop` and `failure` (`app.create`).
      seconds: Most seconds between a signal, or the failure, and the end of the process.

    Attributes:
      status: Exit status of the process: 0 after a signal, the error's own after a failure.
      timer: Ends the process when the seconds are over; None before the stop.
    """

    def __init__(self, app: "ASGIApp", seconds: float):
        config = uvicorn.Config(
            app,
            # The tests of slow clients hold for this loop.
            loop="asyncio",
            http=Connection,
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=int(connection.HEADER_SECONDS),
        )
        super().__init__(config)
        self.seconds = seconds
        self.status = 0
        self.timer: threading.Timer | None = None
        self._cycles: list[RequestResponseCycle] = []

    def handle_exit(self, sig: int, frame: types.FrameType | None) -> None:
        """Stops the server at the first signal. Ends the process at the second one, or when the time is over."""
        if self.should_exit:
            _end(128 + sig, f"a second signal ({signal.Signals(sig).name}): left at once; {self.outcome()}")
        super().handle_exit(sig, frame)
        self._leave_in_time()

    async def on_tick(self, counter: int) -> bool:
        """Returns whether to stop."""
        failure = self.config.app.failure()
        if failure is not None and not self.should_exit:
            self.should_exit, self.status = True, getattr(failure, "status", 1)
            self._leave_in_time()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Refuses connections, lets requests in progress end, and cuts the connections that are left after a time."""
        self._cycles = [one.cycle for one in self.server_state.connections if one.in_progress]
        self.config.app.stop(self.seconds)
        cut = asyncio.get_running_loop().call_later(_CUT * self.seconds, self._cut_all)
        await super().shutdown(sockets)
        cut.cancel()

    def outcome(self) -> str:
        """Returns what became of the requests that were in progress when the server was stopped."""
        cycles = self._cycles or [one.cycle for one in [*self.server_state.connections] if one.in_progress]
        if not cycles:
            return "no request was in progress"
        complete = [one for one in cycles if one.response_complete]
        refused = sum(one.scope["state"].get("status") == 503 for one in complete)
        answered = len(complete) - refused
        left = sum(
            one.disconnected and not one.response_complete and not one.scope["state"].get("cut") for one in cycles
        )
        told = f"of {len(cycles)} requests in progress {answered} were answered"
        for number, what in (
            (refused, "refused with status 503"),
            (len(cycles) - answered - refused - left, "cut off"),
            (left, "left by their clients"),
        ):
            told += f", {number} {what}" * bool(number)
        return told

    def _cut_all(self) -> None:
        for one in [*self.server_state.connections]:
            one.drop()

    def _leave_in_time(self) -> None:
        # A thread of its own: work that hangs may keep the others from ending.
        self.timer = threading.Timer(self.seconds, self._leave)
        self.timer.daemon = True
        self.timer.start()

    def _leave(self) -> None:
        _end(self.status, f"stopped after {self.seconds:g} seconds with work that did not end; {self.outcome()}")


def _end(status: int, text: str) -> NoReturn:
    """Ends the process. Not through logging, whose lock another thread may hold, and without waiting for a reader."""
    if log_lines.is_used():
        text = log_lines.line("warning", text, time.time())
    if select.select([], [_STDERR], [], 0)[1]:
        os.write(_STDERR, f"{text}\n".encode())
    os._exit(status)


def serve(app: "ASGIApp", listening: socket.socket, seconds: float = STOP_SECONDS) -> NoReturn:
    """Serves an application until SIGTERM, SIGINT or its failure, then ends the process.

    After a signal, the requests in progress are answered and the status is 0. After a failure, it is the status of the
    error. What is not answered in time is cut off, and work that hangs ends with the process.

    Args:
      app: An application with the methods `stop`, `reload` and `failure` (`app.create`); SIGHUP calls
        `reload`.
      listening: The socket.
      seconds: Most seconds between a signal, or the failure, and the end of the process.
    """
    server = Server(app, seconds)
    # After the shutdown uvicorn raises the signal again. These handlers ignore it.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    hangup.handle(app.reload)
    # Each connection needs a file descriptor, and the default limit of many systems is 1,024.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # The answer says what is wrong with a request, so the log does not.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    uvicorn_logger = logging.getLogger("uvicorn")
    uvicorn_logger.setLevel(logging.ERROR)
    uvicorn_logger.handlers, uvicorn_logger.propagate = logger.handlers, False
    server.run(sockets=[listening])
    logger.info("stopped: %s", server.outcome())
    # Python would take seconds more to take JAX and TensorFlow apart.
    os._exit(server.status)
