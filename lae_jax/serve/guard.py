"""The outer layer of the application: headers of every answer, refusals before the body is read, HEAD, counts."""

import dataclasses
import re
import time
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from lae_jax.serve.ascii_json import AsciiJSON
from lae_jax.serve.operating import api_key, log_lines
from lae_jax.serve.operating.counts import Counts, method_of, route_of

if TYPE_CHECKING:
    from starlette.types import ASGIApp

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# The security headers of every answer.
HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
# Most requests open at once, including those still being received and those whose answer is not yet read. It bounds
# open files and memory. The health checks and the numbers for Prometheus are always answered.
MOST_OPEN = 500
_ALWAYS = ("/healthz", "/metrics", "/readyz")
_PORTS = {"http": 80, "https": 443}
# A name, an IPv4 address or an IPv6 address, and a port.
_AUTHORITY = re.compile(r"(?:[\w.-]+|\[[0-9a-fA-F:.]+\])(?::\d*)?", re.ASCII)


@dataclasses.dataclass
class Guard:
    """Adds headers to every answer, and refuses requests of other sites, without a key, and beyond `MOST_OPEN`.

    HEAD is answered as GET; the server leaves out the body. Each answer is counted and, except those to probes, logged
    for programs.

    Attributes:
      app: The application behind the guard.
      hosts: As in `app.create`.
      stop: Called when the server is stopped, with the seconds that it may take.
      reload: Called when the server should use the model that its run has now.
      failure: Returns the error after which no request gets an age; None: the model has not failed.
      keys: Keys of clients; None: no client needs one.
      counts: Counts the requests.
      open: Number of open requests.
    """

    app: "ASGIApp"
    hosts: Collection[str] | None
    stop: Callable[[float], None]
    reload: Callable[[], None] = lambda: None
    failure: Callable[[], Exception | None] = lambda: None
    keys: api_key.Keys | None = None
    counts: Counts = dataclasses.field(default_factory=Counts)
    open: int = 0

    async def __call__(self, scope, receive, send) -> None:
        """Answers a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        state, started = scope.setdefault("state", {}), time.perf_counter()
        # A client that expects "100 Continue" and gets an answer instead may or may not send the body. What comes next
        # could be the body or another request, so the connection is closed.
        undecided = any(name == b"expect" for name, _ in scope["headers"])

        async def asked():
            nonlocal undecided
            undecided = False
            return await receive()

        async def answered(message) -> None:
            if message["type"] == "http.response.start":
                state["status"] = message["status"]
                added = HEADERS | ({"connection": "close"} if undecided else {})
                added = [(name.encode(), value.encode()) for name, value in added.items()]
                await send({**message, "headers": [*message["headers"], *added]})
            elif message.get("more_body", False):
                await send(message)
            else:
                # The server waits with the second message until the client has taken the first one. So a request is
                # open as long as its answer is in memory.
                await send({**message, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})

        app = self.app
        if sentence := self._foreign(scope):
            app = AsciiJSON({"error": sentence}, 403)
        elif self.keys is not None and not api_key.is_open(scope["path"]) and not self.keys.fit(scope["headers"]):
            told = "this server needs a key: send it as the header Authorization: Bearer KEY"
            app = AsciiJSON({"error": told}, 401, {"www-authenticate": "Bearer"})
        elif self.open >= MOST_OPEN and scope["path"] not in _ALWAYS:
            told = f"{self.open} requests are open already: try again in a second"
            app = AsciiJSON({"error": told}, 503, {"retry-after": "1"})
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        # Parts of files are not offered: the errors about ranges would be plain text.
        headers = [(name, value) for name, value in scope["headers"] if name != b"range"]
        self.open += 1
        try:
            await app({**scope, "method": method, "headers": headers}, asked, answered)
        finally:
            self.open -= 1
            self._tell(scope, state, time.perf_counter() - started)

    def _tell(self, scope, state: dict, seconds: float) -> None:
        """Counts and logs an answer, with nothing that the client chose: path and method are among known ones."""
        route, method = route_of(scope["path"]), method_of(scope["method"])
        status = state.get("status", 500)
        self.counts.request(route, method, status, seconds)
        if log_lines.is_used() and route not in _ALWAYS:  # those come every few seconds
            told = {name: state[name] for name in ("images", "faces") if name in state}
            log_lines.request(route=route, method=method, status=status, seconds=round(seconds, 4), **told)

    def _foreign(self, scope) -> str:
        hosts, origins = (
            [value.decode("latin-1") for name, value in scope["headers"] if name == wanted]
            for wanted in (b"host", b"origin")
        )
        if len(hosts) > 1 or len(origins) > 1:
            return f"the request has two headers {'Host' if len(hosts) > 1 else 'Origin'}: send one"
        host, origin = "".join(hosts), "".join(origins)
        if self.hosts is not None and _place(f"//{host}")[0] not in self.hosts:
            return f"this server is not called {host!r}: add the name with --allow-host"
        scheme = origin.partition("://")[0]
        if origins and (scheme not in _PORTS or _place(origin) != _place(f"{scheme}://{host}")):
            return (
                f"a page of {origin} may not use this server, because the request is for the host {host!r}: a proxy"
                " must pass on the header Host that the browser sent"
            )
        return ""


def _place(url: str) -> tuple[str, int | None]:
    """Returns the host and the port of a URL; a final dot and the scheme's own port are what their absence means."""
    if not _AUTHORITY.fullmatch(url.partition("//")[2]):
        return "", None
    try:
        parts = urlsplit(url)
        return (parts.hostname or "").removesuffix("."), parts.port or _PORTS.get(parts.scheme)
    except ValueError:
        return "", None
