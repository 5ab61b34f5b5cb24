"""lae_jax as a side of `benchmarks.peers_ages`, on one thread."""

import functools
import importlib.util
import os
import pathlib
import time

from benchmarks import installed, sides

# TensorFlow counts the cores of the machine; it reads these when it is imported.
os.environ |= {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}
_state = {}


def opened(run: str) -> dict:
    from lae_jax.runtime import cpu, start

    cpu.one_thread()
    start.devices()
    import lae_jax
    from lae_jax import predict
    from lae_jax.predict import answers

    estimator = predict.AgeEstimator.from_run(run)
    recipe = answers.recipe_of(run, estimator, False, faces="largest")
    _state.update(estimator=estimator, recipe=recipe)
    package = pathlib.Path(lae_jax.__file__).parent
    (detector,) = importlib.util.find_spec("mtcnn").submodule_search_locations
    return {
        "version": estimator.source,
        "model_bytes": _weights(run, estimator.source, package)
        + installed.bytes_below(pathlib.Path(detector) / "assets" / "weights"),
        "installed_bytes": installed.bytes_with_requirements("lae-jax") + installed.bytes_below(package),
    }


def _weights(run: str, source: str, package: pathlib.Path) -> int:
    """Bytes of the age model on disk: of a run's checkpoint, of an export, or of a model inside the package."""
    if not pathlib.Path(run).exists():
        return sum(path.stat().st_size for path in package.rglob(run.replace("-", "_") + ".safetensors"))
    checkpoint = pathlib.Path(run) / "checkpoints" / source.rpartition(" ")[2]
    return installed.bytes_below(checkpoint if checkpoint.exists() else pathlib.Path(run))


def ages(paths: list[str]) -> dict:
    """The ages of the largest faces, as `lae_jax.predict` gives them; null without a face."""
    from lae_jax.predict import answers, photographs

    items = iter([photographs.Named(path) for path in paths])
    found = photographs.found(items, _state["recipe"], _state["estimator"].input.pixels, threads=1)
    return {"ages": [row.age for _, (row, *_) in answers.predicted(_state["estimator"], found, answers.Fields())]}


def turn(steps: int, paths: list[str], way: str) -> dict:
    """Seconds of wall time and of CPU time for all images, also of the processes that decode."""
    crops = _decoded(tuple(paths)) if way == "crops" else None
    wall, taken = time.perf_counter(), sides.cpu_seconds()
    for _ in range(steps):
        if crops is None:
            ages(paths)
        else:
            _state["estimator"].predict(crops)
    return {"seconds": (time.perf_counter() - wall) / steps, "cpu_seconds": (sides.cpu_seconds() - taken) / steps}


@functools.cache
def _decoded(paths: tuple[str, ...]) -> list:
    from lae_jax.faces import images

    return [images.load(pathlib.Path(path).read_bytes()) for path in paths]


if __name__ == "__main__":
    sides.serve({"open": opened, "ages": ages, "turn": turn}, is_full=lambda error: False)
