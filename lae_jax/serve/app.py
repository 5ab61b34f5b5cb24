"""The application: a page, an API, and the security headers of every answer."""

import asyncio
import contextlib
import dataclasses
import importlib.resources
from collections.abc import AsyncIterator, Callable, Collection
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from lae_jax.report import markdown
from lae_jax.serve import schema
from lae_jax.serve.ages import Ages
from lae_jax.serve.ascii_json import AsciiJSON
from lae_jax.serve.limits import Gate, Refused

STATIC = importlib.resources.files("lae_jax.serve") / "static"
# The script and the style of swagger-ui, which FastAPI loads from another host by default.
SWAGGER = importlib.resources.files("fastapi_offline") / "static"
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
_REFUSALS = {
    400: "the body is not a complete multipart/form-data",
    408: "the upload took too long",
    413: "too many bytes or files",
    415: "the body is not multipart/form-data",
    422: "no image gave an age",
    429: "the server is busy: try again after the seconds in Retry-After",
    503: "too many requests are open, or the server was stopped before the upload was complete",
}
# Most requests open at once, including those still being received. It bounds open files and memory. The health checks
# are always answered.
_MOST_OPEN = 500
_ALWAYS = ("/healthz", "/readyz")
_PORTS = {"http": 80, "https": 443}
_BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["images"],
                "properties": {"images": {"type": "array", "items": {"type": "string", "format": "binary"}}},
            }
        }
    },
}


def create(ages: Ages, about: schema.About, hosts: Collection[str] | None = None) -> "_Guard":
    """Returns the ASGI application.

    Args:
      ages: Estimates the ages.
      about: Answer of /v1/model.
      hosts: Host names that clients may use; None: any. They keep out the page of another site whose host name has the
        address of this machine (DNS rebinding).
    """
    gate = Gate(ages.limits)
    warming: set[asyncio.Task] = set()

    @contextlib.asynccontextmanager
    async def lifespan(_) -> AsyncIterator[None]:
        warming.add(asyncio.create_task(ages.start()))
        yield
        await asyncio.gather(*warming)
        await ages.close()

    app = FastAPI(
        title="lae_jax", version=about.versions["lae-jax"], lifespan=lifespan, docs_url=None, redoc_url=None,
        default_response_class=AsciiJSON,
        description="Ages of the faces in photographs. Nothing is stored, and nothing is sent anywhere.",
    )  # fmt: skip
    _add_pages(app, about)
    _add_api(app, ages, gate, about)
    _add_errors(app)
    return _Guard(app, hosts, gate.stop)


def _add_pages(app: FastAPI, about: schema.About) -> None:
    app.mount("/static", StaticFiles(directory=str(STATIC)))
    app.mount("/swagger", StaticFiles(directory=str(SWAGGER)))

    @app.get("/", include_in_schema=False)
    def page() -> Response:
        return FileResponse(str(STATIC / "index.html"))

    @app.get("/card", include_in_schema=False)
    def card() -> Response:
        return HTMLResponse(markdown.html(about.card, below=2))

    @app.get("/docs", include_in_schema=False)
    def docs() -> Response:
        return FileResponse(str(STATIC / "docs.html"))


def _add_api(app: FastAPI, ages: Ages, gate: Gate, about: schema.About) -> None:
    level = ages.fields.interval if ages.calibrated else None
    refusals = {code: {"model": schema.Refusal, "description": text} for code, text in _REFUSALS.items()}

    @app.post(
        "/v1/predict",
        response_model=schema.Prediction,
        response_model_exclude_none=True,
        responses=refusals,
        openapi_extra={"requestBody": _BODY},
        summary="Ages of the faces in one or many images",
    )
    async def predict(
        request: Request,
        tolerant: Annotated[
            bool, Query(description="status 200 with each image's reason even if no image gave an age")
        ] = False,
    ):
        async with gate.received(request) as uploads:
            with gate.work():
                results = await _unless_left(request, ages(uploads))
        images = [schema.image(*result, level) for result in results]
        if not tolerant and not any(image.faces for image in images):
            content = schema.Refusal(error=schema.nothing(images), images=images)
            return AsciiJSON(content.model_dump(exclude_none=True), 422)
        return schema.Prediction(model=about.model, images=images)

    @app.get("/v1/model", response_model_exclude_none=True, summary="Model card, crop contract, limits, versions")
    def model() -> schema.About:
        return about

    @app.get("/healthz", summary="Whether the server is running")
    def healthz() -> schema.Health:
        return schema.Health(status="ok", ready=ages.ready)

    @app.get(
        "/readyz",
        summary="Whether the model is warm",
        responses={503: {"model": schema.Health, "description": "not warm yet: requests wait"}},
    )
    def readyz(response: Response) -> schema.Health:
        response.status_code = 200 if ages.ready else 503
        return schema.Health(status="ok" if ages.ready else "warming up", ready=ages.ready)


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(Refused)
    def refused(_, refusal: Refused) -> Response:
        headers = {} if refusal.retry_after is None else {"retry-after": str(refusal.retry_after)}
        return AsciiJSON({"error": refusal.sentence}, refusal.status, headers)

    @app.exception_handler(HTTPException)
    def known(request: Request, error: HTTPException) -> Response:
        sentence = f"{request.method} {request.url.path}: {str(error.detail).lower()}; see /docs for the API"
        return AsciiJSON({"error": sentence}, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    def invalid(_, error: RequestValidationError) -> Response:
        told = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        return AsciiJSON({"error": told}, 400)

    @app.exception_handler(ClientDisconnect)
    def left(*_) -> Response:
        return Response(status_code=400)

    @app.exception_handler(Exception)
    def failed(*_) -> Response:
        return AsciiJSON({"error": "the server failed on this request; its log says why"}, 500)


async def _unless_left(request: Request, work):
    """Returns the result of a request's work. Cancels it and raises ClientDisconnect when the client disconnects."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        task.cancel()
        gone.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


@dataclasses.dataclass
class _Guard:
    """Adds headers to every answer and refuses requests of other sites and requests beyond `_MOST_OPEN`.

    Attributes:
      app: The application behind the guard.
      hosts: As in `create`.
      stop: Called when the server is stopped.
      open: Number of open requests.
    """

    app: FastAPI
    hosts: Collection[str] | None
    stop: Callable[[], None]
    open: int = 0

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def with_headers(message) -> None:
            if message["type"] == "http.response.start":
                added = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        app = self.app
        if sentence := self._foreign(scope):
            app = AsciiJSON({"error": sentence}, 403)
        elif self.open >= _MOST_OPEN and scope["path"] not in _ALWAYS:
            told = f"{self.open} requests are open already: try again in a second"
            app = AsciiJSON({"error": told}, 503, {"retry-after": "1"})
        self.open += 1
        try:
            await app(scope, receive, with_headers)
        finally:
            self.open -= 1

    def _foreign(self, scope) -> str:
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        if self.hosts is not None and _place(f"//{host}")[0] not in self.hosts:
            return f"this server is not called {host!r}: add the name with --allow-host"
        origin = headers.get(b"origin", b"").decode("latin-1")
        scheme = origin.partition("://")[0]
        if origin and (scheme not in _PORTS or _place(origin) != _place(f"{scheme}://{host}")):
            return (
                f"a page of {origin} may not use this server, because the request is for the host {host!r}: a proxy"
                " must pass on the header Host that the browser sent"
            )
        return ""


def _place(url: str) -> tuple[str, int | None]:
    """Returns the host and the port of a URL; a final dot and the scheme's own port are what their absence means."""
    try:
        parts = urlsplit(url)
        return (parts.hostname or "").removesuffix("."), parts.port or _PORTS.get(parts.scheme)
    except ValueError:
        return "", None
