"""Five landmarks of each face in a photograph, by MTCNN on canvases of one size.

A photograph has its own canvas, and on a CPU its own run of the compiled program (`cascade`), so other photographs do
not change what is found in it. On accelerators the photographs of a batch share a run.
"""

import dataclasses
import functools
import logging
from collections.abc import Sequence

import jax
import numpy as np
from PIL import Image

from lae_jax.faces import cascade, networks

logger = logging.getLogger("lae_jax")

CANVAS = 512  # side in pixels of the square that the networks see
INNER = 416  # longer side of the photograph on it; the border lets MTCNN find faces that fill the photograph
_SHORTER = INNER * 3 // 4  # of a photograph of 4:3; most photographs are that wide, or wider
# Room for candidates, of nearly all photographs and of the few with more. The time of a step grows with its square.
CAPS = (cascade.Caps(512, 128, 64), cascade.Caps(8192, 2048, 512))
# Photographs of a run, and batch sizes of the second and of the third network. Most photographs have one or two boxes
# for the third; on a CPU it takes as long for one box at a time as for four together.
_ON_CPU, _ON_ACCELERATOR = (1, (16, 1)), (4, (64, 16))


@dataclasses.dataclass(frozen=True)
class Face:
    """A face in pixels of its photograph; the centre of the first pixel is (0, 0)."""

    box: np.ndarray  # (4,) left, top, right, bottom
    landmarks: np.ndarray  # (5, 2) x, y: eye and eye, nose, mouth corner and corner, each pair from left to right
    confidence: float

    @property
    def area(self) -> float:
        """Area of the box in square pixels."""
        left, top, right, bottom = self.box
        return float((right - left) * (bottom - top))


def contract() -> dict:
    """The part of the crop contract that the landmarks depend on."""
    return {
        **networks.contract(),
        "canvas": CANVAS,
        "inner": INNER,
        "smallest": cascade.SMALLEST,
        "caps": list(dataclasses.astuple(CAPS[-1])),
    }


def detect(photographs: Sequence[Image.Image]) -> list[list[Face]]:
    """Finds the faces in each upright RGB photograph, largest first.

    Other photographs in the list move the landmarks by less than 0.01 pixels, on a CPU not at all.
    """
    canvases = [_Canvas.of(photograph) for photograph in photographs]
    found = _find(canvases, CAPS[0])
    more = [number for number, (_, exceeds) in enumerate(found) if exceeds]
    for number, one in zip(more, _find([canvases[number] for number in more], CAPS[1]), strict=True):
        found[number] = one
        if one[1]:
            logger.warning(
                "a photograph of %d x %d pixels has more places that look like a face than there is room for"
                " (%d, %d and %d in the three steps of MTCNN): the least likely were not examined",
                *photographs[number].size,
                *dataclasses.astuple(CAPS[1]),
            )
    return [faces for faces, _ in found]


@dataclasses.dataclass(frozen=True)
class _Canvas:
    """A photograph in the middle of a black square, and the way back to the photograph's coordinates."""

    pixels: np.ndarray  # (CANVAS, CANVAS, 3) uint8
    offset: np.ndarray  # (2,) x, y of the photograph's corner on the canvas
    scale: np.ndarray  # (2,) canvas pixels per pixel of the photograph
    region: cascade.Region

    @classmethod
    def of(cls, photograph: Image.Image) -> "_Canvas":
        size = np.array(photograph.size)
        scaled = np.maximum(1, np.rint(size * (INNER / size.max())).astype(int))
        left, top = (CANVAS - scaled) // 2
        pixels = np.zeros((CANVAS, CANVAS, 3), np.uint8)
        # To shrink, Hamming is as sharp and takes two thirds of the time; to enlarge, landmarks need bicubic.
        method = Image.Resampling.HAMMING if size.max() > INNER else Image.Resampling.BICUBIC
        resized = photograph.resize(tuple(scaled.tolist()), method, reducing_gap=3.0)
        pixels[top : top + scaled[1], left : left + scaled[0]] = np.asarray(resized)
        return cls(pixels, np.array([left, top]), scaled / size, _region(*scaled.tolist()))

    def back(self, points: np.ndarray) -> np.ndarray:
        """Points (..., 2) on the canvas -> points in the photograph."""
        return (points + 0.5 - self.offset) / self.scale - 0.5

    def faces(self, boxes: np.ndarray, landmarks: np.ndarray, confidences: np.ndarray) -> list[Face]:
        """The faces, largest first, of boxes (n, 4), landmarks (n, 5, 2) and confidences (n,), 0 for none."""
        found = [
            Face(
                self.back(box.reshape(2, 2).astype(np.float64)).ravel(), self.back(points.astype(np.float64)), float(p)
            )
            for box, points, p in zip(boxes, landmarks, confidences, strict=True)
            if p
        ]
        return sorted(found, key=lambda face: -face.area)


def _region(width: int, height: int) -> cascade.Region:
    """The part of the canvas that may not be black, of a few forms, since each is a program of its own."""
    width, height = (_SHORTER if side <= _SHORTER else INNER for side in (width, height))
    if width == height:  # also of two short sides, which no photograph has
        width = height = INNER
    left, top = (CANVAS - width) // 2, (CANVAS - height) // 2
    return cascade.Region(CANVAS, left, top, left + width, top + height)


def _find(canvases: list[_Canvas], caps: cascade.Caps) -> list[tuple[list[Face], bool]]:
    """The faces on each canvas, and whether it has more candidates than there is room for."""
    size, batches = _ON_CPU if jax.default_backend() == "cpu" else _ON_ACCELERATOR
    pending = []
    for region in {canvas.region for canvas in canvases}:
        numbers = [number for number, canvas in enumerate(canvases) if canvas.region == region]
        for begin in range(0, len(numbers), size):
            some = numbers[begin : begin + size]
            pixels = np.zeros((size, CANVAS, CANVAS, 3), np.uint8)
            for place, number in enumerate(some):
                pixels[place] = canvases[number].pixels
            pending.append((some, cascade.find(pixels, _weights(), region=region, caps=caps, batches=batches)))
    found: list = [None] * len(canvases)
    for some, result in pending:
        boxes, landmarks, confidences, counts = (np.asarray(part) for part in result)
        for place, number in enumerate(some):
            faces = canvases[number].faces(boxes[place], landmarks[place], confidences[place])
            found[number] = faces, bool(caps.exceeded(counts[place]))
    return found


@functools.cache
def _weights() -> networks.Weights:
    return jax.device_put(networks.load())
