"""Numbers for Prometheus. No label holds anything that a client sent: each has a few known values."""

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector, exposition

_PATHS = ("/", "/card", "/docs", "/healthz", "/metrics", "/openapi.json", "/readyz", "/v1/model", "/v1/predict")
_FOLDERS = ("/static", "/swagger")
_METHODS = ("GET", "HEAD", "POST")
OTHER = "other"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


def route_of(path: str) -> str:
    """Returns the path if the server has it, the folder for its files, and 'other' for all else."""
    if path in _PATHS:
        return path
    folder = "/" + path[1:].partition("/")[0]
    return folder if folder in _FOLDERS else OTHER


def method_of(name: str) -> str:
    """Returns the method of a request if the server answers it on some path, and 'other' for all else."""
    return name if name in _METHODS else OTHER


class Counts:
    """The numbers of a server, in a registry of its own."""

    def __init__(self):
        self.registry = own = CollectorRegistry()
        self._requests = Counter(
            "lae_jax_requests", "Requests that were answered", ["route", "method", "status"], registry=own
        )
        self._seconds = Histogram(
            "lae_jax_request_seconds",
            "Seconds from the header of a request until its client has taken the answer",
            ["route"],
            buckets=_SECONDS,
            registry=own,
        )
        self._work = Histogram(
            "lae_jax_estimate_seconds",
            "Seconds from a complete upload to the ages of its faces",
            buckets=_SECONDS,
            registry=own,
        )
        self._malformed = Counter(
            "lae_jax_malformed_requests", "Connections closed because of a request that is not valid HTTP", registry=own
        )
        self._images = Counter("lae_jax_images", "Images of answered requests", ["outcome"], registry=own)
        self._faces = Counter("lae_jax_faces", "Faces that got an age", registry=own)
        self._sizes = Histogram(
            "lae_jax_batch_size",
            "Photographs in a batch of the detector, faces in a batch of the model",
            ["of"],
            buckets=_SIZES,
            registry=own,
        )
        self._batches = Histogram(
            "lae_jax_batch_seconds", "Seconds that a batch takes", ["of"], buckets=_SECONDS, registry=own
        )
        self._failures = Counter("lae_jax_batch_failures", "Batches that failed", ["of"], registry=own)
        self._reloads = Counter("lae_jax_reloads", "Loads of another model", ["outcome"], registry=own)
        self._model = Info("lae_jax_model", "The model", registry=own)
        ProcessCollector(registry=own)
        for outcome in ("age", "no age"):
            self._images.labels(outcome)
        for outcome in ("done", "failed"):
            self._reloads.labels(outcome)

    def request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Counts a request that was answered; with what `route_of` and `method_of` return."""
        self._requests.labels(route, method, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def malformed(self) -> None:
        """Counts a request that is not valid HTTP."""
        self._malformed.inc()

    def images(self, faces: list[int], seconds: float) -> None:
        """Counts the images of a request.

        Args:
          faces: Number of faces with an age in each image.
          seconds: Time from the upload to the ages.
        """
        found = sum(count > 0 for count in faces)
        self._images.labels("age").inc(found)
        self._images.labels("no age").inc(len(faces) - found)
        self._faces.inc(sum(faces))
        self._work.observe(seconds)

    def batch(self, of: str, size: int, seconds: float, failed: bool) -> None:
        """Counts a batch of 'photographs' or 'faces'."""
        self._sizes.labels(of).observe(size)
        self._batches.labels(of).observe(seconds)
        if failed:
            self._failures.labels(of).inc()

    def reloaded(self, outcome: str) -> None:
        """Counts a load of another model, with the outcome 'done' or 'failed'."""
        self._reloads.labels(outcome).inc()

    def model(self, name: str, version: str) -> None:
        """Says which model answers, and the version of this package."""
        self._model.info({"model": name, "version": version})

    def watch(self, gauges: Mapping[str, tuple[str, Callable[[], float]]], waiting: Callable[[], dict]) -> None:
        """Adds numbers that are asked for when Prometheus reads.

        Args:
          gauges: {name: (what it is, function that returns it)}.
          waiting: Returns the number of 'photographs' and 'faces' that wait for a batch.
        """
        for name, (what, ask) in gauges.items():
            Gauge(f"lae_jax_{name}", what, registry=self.registry).set_function(ask)
        queue = Gauge("lae_jax_waiting", "Items that wait for a batch", ["of"], registry=self.registry)
        for of in waiting():
            queue.labels(of).set_function(lambda of=of: waiting()[of])

    def shown(self, accept: str) -> tuple[bytes, str]:
        """Returns all numbers and their content type, in the format that a client accepts."""
        encode, kind = exposition.choose_encoder(accept)
        return encode(self.registry), kind
