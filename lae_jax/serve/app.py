"""The application: a page and an API."""

import asyncio
import contextlib
import importlib.resources
from collections.abc import AsyncIterator, Collection, Sequence
from typing import Annotated

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from lae_jax.report import markdown
from lae_jax.runtime import cpu
from lae_jax.serve import guard, schema
from lae_jax.serve.ages import Ages
from lae_jax.serve.ascii_json import AsciiJSON, encoded
from lae_jax.serve.limits import Gate, Refused

STATIC = importlib.resources.files("lae_jax.serve") / "static"
# Seconds between two returns of freed memory to the system. Pictures and batches of all sizes, freed in any order,
# leave holes that are kept otherwise: the memory would grow for hours.
TIDY_SECONDS = 10.0
# The script and the style of swagger-ui, which FastAPI loads from another host by default.
SWAGGER = importlib.resources.files("fastapi_offline") / "static"
# Statuses of every path: of the connection, of the guard, and of errors in this program.
_ANYWHERE = {
    400: "the request is not valid HTTP",
    403: "a host name that is not allowed, or a page of another site",
    431: "the header is too long",
    500: "the server failed on this request",
    501: "a transfer coding other than chunked",
    505: "another version than HTTP/1.0 and HTTP/1.1",
}
_FULL = {503: "too many requests are open: try again after the seconds in Retry-After"}
_REFUSALS = {
    400: "the body is not a complete multipart/form-data of files, a query parameter is wrong, or the request is not"
    " valid HTTP",
    408: "the upload took too long",
    413: "too many bytes or files",
    415: "the body is not multipart/form-data",
    422: "no image gave an age, or the request has no file",
    429: "the server is busy: try again after the seconds in Retry-After",
    503: "too many requests are open, or the server was stopped: try again after the seconds in Retry-After",
}


def _documented(statuses: dict[int, str]) -> dict:
    return {
        code: {"model": schema.Refusal, "description": text} for code, text in sorted((_ANYWHERE | statuses).items())
    }


def create(ages: Ages, about: schema.About, hosts: Collection[str] | None = None) -> guard.Guard:
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
        tidying = asyncio.create_task(_tidy())
        yield
        tidying.cancel()
        await asyncio.gather(*warming)
        await ages.close()

    app = FastAPI(
        title="lae_jax", version=about.versions["lae-jax"], lifespan=lifespan, docs_url=None, redoc_url=None,
        redirect_slashes=False, default_response_class=AsciiJSON,
        description="Ages of the faces in photographs. Nothing is stored, and nothing is sent anywhere.",
    )  # fmt: skip
    _add_pages(app, about)
    _add_api(app, ages, gate, about)
    _add_errors(app)
    return guard.Guard(app, hosts, gate.stop)


async def _tidy() -> None:
    while True:
        await asyncio.sleep(TIDY_SECONDS)
        await asyncio.to_thread(cpu.return_freed)


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

    @app.post(
        "/v1/predict",
        response_model=schema.Prediction,
        response_model_exclude_none=True,
        responses=_documented(_REFUSALS),
        openapi_extra={"requestBody": schema.body(ages.limits.files)},
        summary="Ages of the faces in one or many images",
    )
    async def predict(
        request: Request,
        tolerant: Annotated[
            bool, Query(description="status 200 with each image's reason even if no image gave an age")
        ] = False,
    ):
        async with gate.received(request) as uploads:
            async with gate.working():
                results = await _unless_left(request, ages(uploads))
        # In a thread, which gives way to the event loop after each image.
        return await asyncio.to_thread(_answered, about.model, results, level, tolerant)

    @app.get(
        "/v1/model",
        response_model_exclude_none=True,
        responses=_documented(_FULL),
        summary="Model card, crop contract, limits, versions",
    )
    def model() -> schema.About:
        return about

    @app.get("/healthz", responses=_documented({}), summary="Whether the server is running")
    def healthz() -> schema.Health:
        return schema.Health(status="ok", ready=ages.ready)

    @app.get(
        "/readyz",
        summary="Whether the model is warm",
        responses=_documented({}) | {503: {"model": schema.Health, "description": "not warm yet: requests wait"}},
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
        headers = error.headers
        if error.status_code == 405:
            # Every path but the API's POST is read only; HEAD is answered wherever GET is.
            allowed = (headers or {}).get("Allow", "GET")
            headers = {"Allow": "GET, HEAD" if "GET" in allowed else allowed}
        return AsciiJSON({"error": sentence}, error.status_code, headers)

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


def _answered(model: str, results: Sequence[tuple], level: float | None, tolerant: bool) -> Response:
    """Returns the answer to the images of a request (`schema.Prediction`), or the refusal if none gave an age."""
    images = [schema.image(*result, level) for result in results]
    if not tolerant and not any(image.faces for image in images):
        content = schema.Refusal(error=schema.nothing(images), images=images)
        return AsciiJSON(content.model_dump(exclude_none=True), 422)
    parts = b",".join(encoded(image.model_dump(exclude_none=True)) for image in images)
    return Response(b'{"model":%s,"images":[%s]}' % (encoded(model), parts), media_type=AsciiJSON.media_type)


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
