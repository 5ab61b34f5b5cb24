"""The application: a page and an API."""

import asyncio
import contextlib
import importlib.resources
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from typing import Annotated

from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse
from fastapi.security import HTTPBearer
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from lae_jax.report import markdown
from lae_jax.runtime import cpu
from lae_jax.serve import guard, schema, swap
from lae_jax.serve.ages import Ages
from lae_jax.serve.ascii_json import AsciiJSON, encoded
from lae_jax.serve.limits import Gate, Refused
from lae_jax.serve.operating import api_key
from lae_jax.serve.operating.counts import Counts

STATIC = importlib.resources.files("lae_jax.serve") / "static"
SHARED = ("lae_jax.report", "ages_page")  # files that the page shares with that of an export
# Seconds between two returns of freed memory to the system. Pictures and batches of all sizes, freed in any order,
# leave holes that are kept otherwise: the memory would grow for hours.
TIDY_SECONDS = 10.0
# The script and the style of swagger-ui, which FastAPI loads from another host by default.
SWAGGER = importlib.resources.files("fastapi_offline") / "static"
# Nobody gets this status: the counts and the log have it for a client that left, as those of other servers do.
LEFT = 499
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


def create(
    ages: Ages,
    about: schema.About,
    hosts: Collection[str] | None = None,
    *,
    load: Callable[[swap.Model], swap.Model] | None = None,
    keys: Collection[str] = (),
    metrics: bool = False,
) -> guard.Guard:
    """Returns the ASGI application.

    Args:
      ages: Estimates the ages.
      about: Answer of /v1/model.
      hosts: Host names that clients may use; None: any. They keep out the page of another site whose host name has the
        address of this machine (DNS rebinding).
      load: As in `swap.Models`.
      keys: Keys of clients; none: no client needs one.
      metrics: Whether /metrics has numbers for Prometheus.
    """
    gate, counts = Gate(ages.limits), ages.counts
    models = swap.Models(swap.Model(ages, about), load, failed=lambda: gate.stop(0))

    @contextlib.asynccontextmanager
    async def lifespan(_) -> AsyncIterator[None]:
        models.start()
        tidying = asyncio.create_task(_tidy())
        yield
        tidying.cancel()
        await models.close()

    app = FastAPI(
        title="lae_jax", version=about.versions["lae-jax"], lifespan=lifespan, docs_url=None, redoc_url=None,
        redirect_slashes=False, default_response_class=AsciiJSON,
        description="Ages of the faces in photographs. Nothing is stored, and nothing is sent anywhere.",
    )  # fmt: skip
    _add_pages(app, models)
    _add_api(app, models, gate, bool(keys))
    _add_errors(app)
    own = guard.Guard(
        app, hosts, gate.stop, models.reload, lambda: models.failure, api_key.Keys(keys) if keys else None, counts
    )
    if metrics:
        _add_metrics(app, counts)
        gauges = {
            "open_requests": ("Requests whose client has not taken the answer", lambda: own.open),
            "working_requests": ("Requests whose images are processed", lambda: gate.busy),
            "held_bytes": ("Bytes of uploads in memory", lambda: gate.held),
            "ready": ("1 if the model is warm, else 0", lambda: models.current.ages.ready),
        }
        counts.watch(gauges, lambda: models.current.ages.waiting)
    return own


async def _tidy() -> None:
    while True:
        await asyncio.sleep(TIDY_SECONDS)
        await asyncio.to_thread(cpu.return_freed)


def _add_metrics(app: FastAPI, counts: Counts) -> None:
    @app.get("/metrics", include_in_schema=False)
    def metrics(request: Request) -> Response:
        content, kind = counts.shown(request.headers.get("accept", ""))
        return Response(content, headers={"content-type": kind})


def _add_pages(app: FastAPI, models: swap.Models) -> None:
    app.mount("/static", StaticFiles(directory=str(STATIC), packages=[SHARED]))
    app.mount("/swagger", StaticFiles(directory=str(SWAGGER)))

    @app.get("/", include_in_schema=False)
    def page() -> Response:
        return FileResponse(str(STATIC / "index.html"))

    @app.get("/card", include_in_schema=False)
    def card() -> Response:
        return HTMLResponse(markdown.html(models.current.about.card, below=2))

    @app.get("/docs", include_in_schema=False)
    def docs() -> Response:
        return FileResponse(str(STATIC / "docs.html"))


def _add_api(app: FastAPI, models: swap.Models, gate: Gate, needs_key: bool) -> None:
    # The guard asks for the key: this says so in the description.
    bearer = HTTPBearer(auto_error=False, description="the key that the operator of this server gave you")
    secured = {"dependencies": [Depends(bearer)]} if needs_key else {}
    no_key = {401: "the header Authorization has no key, or a wrong one"} if needs_key else {}

    @app.post(
        "/v1/predict",
        response_model=schema.Prediction,
        response_model_exclude_none=True,
        responses=_documented(_REFUSALS | no_key),
        openapi_extra={"requestBody": schema.body(gate.limits.files)},
        summary="Ages of the faces in one or many images",
        **secured,
    )
    async def predict(
        request: Request,
        tolerant: Annotated[
            bool, Query(description="status 200 with each image's reason even if no image gave an age")
        ] = False,
    ):
        async with gate.received(request) as uploads:
            async with gate.working(), models.using() as model:
                started = time.perf_counter()
                results = await _unless_left(request, model.ages(uploads))
        faces = [len(found.inputs) for found, _ in results]
        model.ages.counts.images(faces, time.perf_counter() - started)
        request.state.images, request.state.faces = len(faces), sum(faces)
        # In a thread, which gives way to the event loop after each image.
        return await asyncio.to_thread(_answered, model.about.model, results, model.ages.levels, tolerant)

    @app.get(
        "/v1/model",
        response_model_exclude_none=True,
        responses=_documented(_FULL | no_key),
        summary="Model card, crop contract, limits, versions",
        **secured,
    )
    def model() -> schema.About:
        return models.current.about

    @app.get("/healthz", responses=_documented({}), summary="Whether the server is running")
    def healthz() -> schema.Health:
        return schema.Health(status="ok", ready=models.current.ages.ready)

    @app.get(
        "/readyz",
        summary="Whether the model is warm",
        responses=_documented({}) | {503: {"model": schema.Health, "description": "not warm yet: requests wait"}},
    )
    def readyz(response: Response) -> schema.Health:
        ready = models.current.ages.ready
        response.status_code = 200 if ready else 503
        status = "ok" if ready else "warming up" if models.failure is None else "failed"
        return schema.Health(status=status, ready=ready)


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
        return Response(status_code=LEFT)

    @app.exception_handler(Exception)
    def failed(*_) -> Response:
        return AsciiJSON({"error": "the server failed on this request; its log says why"}, 500)


def _answered(model: str, results: Sequence[tuple], levels: schema.Levels, tolerant: bool) -> Response:
    """Returns the answer to the images of a request (`schema.Prediction`), or the refusal if none gave an age."""
    images = [schema.image(*result, levels) for result in results]
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
