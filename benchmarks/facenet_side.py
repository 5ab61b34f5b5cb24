"""facenet-pytorch's MTCNN as a side of `benchmarks.face_rates`. Its environment needs torch and facenet-pytorch."""

import io
import pathlib
import time

import numpy as np
import torch
from facenet_pytorch import MTCNN
from facenet_pytorch.models.utils.detect_face import extract_face
from PIL import Image

from benchmarks import sides

torch.set_num_threads(1)
_TOGETHER = 4  # photographs of a batch
_state = {}


def opened(photographs: str, smallest: int, canvas: int, inner: int) -> dict:
    """Reads a folder of JPEGs; they are put on a canvas as in `lae_jax.faces.detect`."""
    _state.update(canvas=canvas, inner=inner)
    _state["encoded"] = [path.read_bytes() for path in sorted(pathlib.Path(photographs).glob("*.jpg"))]
    _state["canvases"] = [_on_canvas(_decoded(one)) for one in _state["encoded"]]
    _state["model"] = MTCNN(min_face_size=smallest, thresholds=[0.6, 0.7, 0.8], factor=0.709, keep_all=True)
    return {}


def turn(steps: int, way: str) -> dict:
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(steps):
        found = _WAYS[way]()
    return {**sides.per_step(steps, wall, cpu), "found": found}


def _decoded(encoded: bytes) -> Image.Image:
    return Image.open(io.BytesIO(encoded)).convert("RGB")


def _on_canvas(picture: Image.Image) -> Image.Image:
    side, inner = _state["canvas"], _state["inner"]
    width, height = (max(1, round(length * inner / max(picture.size))) for length in picture.size)
    canvas = Image.new("RGB", (side, side))
    resized = picture.resize((width, height), Image.Resampling.HAMMING, reducing_gap=3.0)
    canvas.paste(resized, ((side - width) // 2, (side - height) // 2))
    return canvas


def _one_by_one() -> int:
    return sum(_state["model"].detect(canvas, landmarks=True)[2] is not None for canvas in _state["canvases"])


def _in_batches() -> int:
    canvases, found = _state["canvases"], 0
    for begin in range(0, len(canvases), _TOGETHER):
        points = _state["model"].detect(canvases[begin : begin + _TOGETHER], landmarks=True)[2]
        found += sum(one is not None for one in points)
    return found


def _whole() -> int:
    """From a JPEG to the JPEG of a crop: along the box, since the package aligns nothing."""
    found = 0
    for encoded in _state["encoded"]:
        picture = _on_canvas(_decoded(encoded))
        boxes = _state["model"].detect(picture, landmarks=True)[0]
        if boxes is not None:
            crop = extract_face(picture, boxes[0], 256).numpy().astype(np.uint8).transpose(1, 2, 0)
            Image.fromarray(crop).save(io.BytesIO(), "JPEG", quality=95)
            found += 1
    return found


_WAYS = {"one by one": _one_by_one, "in batches": _in_batches, "whole": _whole}

if __name__ == "__main__":
    sides.serve({"open": opened, "turn": turn}, is_full=lambda error: False)
