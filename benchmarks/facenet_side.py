"""facenet-pytorch's MTCNN as a side of `benchmarks.face_detection`. Its environment needs torch and facenet-pytorch."""

import time

import numpy as np
import torch
from facenet_pytorch import MTCNN
from PIL import Image

from benchmarks import sides

torch.set_num_threads(1)
_state = {}


def opened(path: str, smallest: int) -> dict:
    _state["canvases"] = [Image.fromarray(canvas) for canvas in np.load(path)]
    _state["model"] = MTCNN(min_face_size=smallest, thresholds=[0.6, 0.7, 0.8], factor=0.709, keep_all=True)
    return {}


def turn(steps: int) -> dict:
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(steps):
        found = [_state["model"].detect(canvas, landmarks=True)[2] for canvas in _state["canvases"]]
    return {**sides.per_step(steps, wall, cpu), "found": sum(points is not None for points in found)}


if __name__ == "__main__":
    sides.serve({"open": opened, "turn": turn}, is_full=lambda error: False)
