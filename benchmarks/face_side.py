"""A side of `benchmarks.face_rates`: from JPEGs to the JPEGs of aligned faces, on one thread.

Its lae_jax may be that of another checkout, whose crops need TensorFlow or JAX; the mtcnn package's cascade is a way,
too. Imports lae_jax when it is told which.
"""

import functools
import os
import pathlib
import sys
import time

from benchmarks import sides

# TensorFlow counts the cores of the machine; it reads these when it is imported.
os.environ |= {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}
_TOGETHER = 4  # photographs, as in `prepare`
_state = {}


def opened(checkout: str, photographs: str) -> dict:
    """Reads a folder of JPEGs, and takes lae_jax from a checkout."""
    sys.path.insert(0, checkout)
    from lae_jax.runtime import cpu, start

    if hasattr(cpu, "one_thread"):  # JAX finds the faces
        cpu.one_thread()
        start.devices()
    _state["encoded"] = [path.read_bytes() for path in sorted(pathlib.Path(photographs).glob("*.jpg"))]
    return {}


def turn(steps: int, way: str) -> dict:
    """Seconds of wall time and of CPU time, also of the processes that decode, for all photographs."""
    wall, taken, found = time.perf_counter(), sides.cpu_seconds(), 0
    for _ in range(steps):
        found = _WAYS[way]()
    return {
        "seconds": (time.perf_counter() - wall) / steps,
        "cpu_seconds": (sides.cpu_seconds() - taken) / steps,
        "found": found,
    }


def _whole() -> int:
    from lae_jax.faces import crops, images

    recipe, found = crops.Recipe("landmarks"), 0
    for begin in range(0, len(_state["encoded"]), _TOGETHER):
        some = _state["encoded"][begin : begin + _TOGETHER]
        if hasattr(images, "decode_all"):
            decoded = [crops.Photograph(one.image) for one in images.decode_all(some)]
        else:
            decoded = [crops.Photograph(images.load(one)) for one in some]
        for result in crops.cut(decoded, recipe):
            if isinstance(result, list):
                images.encode(result[0].image, recipe.quality)
                found += 1
    return found


@functools.cache
def _pictures() -> list:
    from lae_jax.faces import images

    return [images.load(one) for one in _state["encoded"]]


def _faces() -> int:
    from lae_jax.faces import detect

    return sum(bool(faces) for faces in detect.detect(_pictures()))


@functools.cache
def _package():
    from mtcnn import MTCNN

    return MTCNN()


def _by_package() -> int:
    """The whole way with the package's cascade; every fourth photograph, since it takes long."""
    import numpy as np

    from lae_jax.faces import align, canvases, images

    found = 0
    for one in _state["encoded"][::4]:
        picture = images.load(one)
        canvas = canvases.Canvas.of(picture)
        rows = _package().detect_faces([canvas.pixels], output_type="numpy", box_format="xyxy", fit_to_image=False)
        rows = [row for row in rows if len(row) == 16]
        if rows:
            row = max(rows, key=lambda row: (row[3] - row[1]) * (row[4] - row[2]))
            points = canvas.back(np.stack([row[6:11], row[11:16]], axis=1))
            images.encode(align.align(picture, points, 256, 0.125)[0], 95)
            found += 1
    return found


_WAYS = {"whole": _whole, "faces": _faces, "package": _by_package}

if __name__ == "__main__":
    sides.serve({"open": opened, "turn": turn}, is_full=lambda error: False)
