"""Five landmarks of each face in a photograph, by MTCNN on canvases of one size.

A photograph has its own canvas, and on a CPU its own run of the compiled program (`cascade`), so other photographs do
not change what is found in it. On accelerators the photographs of a batch share a run.
"""

import dataclasses
import functools
import itertools
import logging
from collections.abc import Sequence

import jax
import numpy as np
from PIL import Image

from lae_jax.faces import SMALLEST, canvases, cascade, networks

logger = logging.getLogger("lae_jax")

# Room for candidates: of nearly all photographs, and of the few with more. Time and memory of a step grow with its
# square.
CAPS = (cascade.Caps(512, 128, 64), cascade.Caps(2048, 512, 256), cascade.Caps(8192, 2048, 512))
# Photographs of a run, and batch sizes of the second and of the third network.
_ON_CPU, _ON_ACCELERATOR = (1, (16, 1)), (4, (64, 16))
# Confidence of a face that is not turned. In 180 photographs of UTKFace's faces that lay on their side, 38 showed one
# where they were not turned, 36 of them with less; 58 of the 60 upright ones have more.
_SURE = 0.98
_TOGETHER = 16  # canvases in memory; each takes a megabyte
_SAME = 0.5  # of the area of the smaller of two boxes: with a larger overlap they are one face, found twice


@dataclasses.dataclass(frozen=True)
class Face:
    """A face in pixels of its photograph; the centre of the first pixel is (0, 0)."""

    box: np.ndarray  # (4,) left, top, right, bottom
    landmarks: (
        np.ndarray
    )  # (5, 2) x, y: eye, eye, nose, mouth corner, corner; pairs from left to right in the upright face
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
        "canvas": canvases.CANVAS,
        "inner": canvases.INNER,
        "smallest": SMALLEST,
        "caps": list(dataclasses.astuple(CAPS[-1])),
    }


def detect(
    photographs: Sequence[Image.Image], smallest: Sequence[float | None] | None = None, rotate: bool = False
) -> list[list[Face]]:
    """Finds the faces in each upright RGB photograph, largest first.

    Other photographs in the list move the landmarks by less than 0.01 pixels, on a CPU not at all. The faces that are
    found without `smallest` are the same with it.

    Args:
      photographs: The photographs.
      smallest: For each, the side in its pixels of the smallest face to search for; None: a twentieth of its longer
        side.
      rotate: Search a photograph in which no face is found, or none with a confidence of 0.98, again in the three other
        quarter turns. The faces of the turn with the most confident one are taken.
    """
    sides = smallest or [None] * len(photographs)
    found = _search(photographs, sides)
    for number in [number for number, faces in enumerate(found) if rotate and _most_confident(faces) < _SURE]:
        turned = _search([photographs[number]] * 3, [sides[number]] * 3, (1, 2, 3))
        found[number] = max(found[number], *turned, key=_most_confident)
    return found


def _most_confident(faces: list[Face]) -> float:
    return max((face.confidence for face in faces), default=0.0)


def _search(
    photographs: Sequence[Image.Image], smallest: Sequence[float | None], quarters: Sequence[int] | None = None
) -> list[list[Face]]:
    """The faces in photographs that are turned by so many quarters counterclockwise, in pixels of the upright ones."""
    wanted = zip(photographs, smallest, quarters or [0] * len(photographs), strict=True)
    views = (
        (number, view.turned(turns))
        for number, (photograph, side, turns) in enumerate(wanted)
        for view in canvases.views(photograph, side)
    )
    found: list[list[tuple[int, Face]]] = [[] for _ in photographs]
    exceeding = set()
    while some := list(itertools.islice(views, _TOGETHER)):
        for (number, view), (faces, exceeds) in zip(some, _examined([view for _, view in some]), strict=True):
            found[number] += [(view.level, face) for face in faces if view.shows_whole(face.box)]
            exceeding |= {number} if exceeds else set()
    for number in exceeding:
        logger.warning(
            "a photograph of %d x %d pixels has more places that look like a face than there is room for"
            " (%d, %d and %d in the three steps of MTCNN): the least likely were not examined",
            *photographs[number].size,
            *dataclasses.astuple(CAPS[-1]),
        )
    return [_merged(faces) for faces in found]


def _merged(found: list[tuple[int, Face]]) -> list[Face]:
    """The faces of all canvases of a photograph, each once, largest first: those of the smallest scale it was found at.

    Args:
      found: (level, face) of each face. Those of level 0 are of one canvas, and all are kept.
    """
    faces = [face for _, face in sorted(found, key=lambda one: (one[0], -one[1].confidence))]
    whole = sum(level == 0 for level, _ in found)
    boxes, kept = np.array([face.box for face in faces]).reshape(-1, 4), [*range(whole)]
    for number in range(whole, len(faces)):
        if np.all(_overlaps(boxes[number], boxes[kept]) <= _SAME):
            kept.append(number)
    return sorted((faces[number] for number in kept), key=lambda face: -face.area)


def _overlaps(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The areas that a box (4,) shares with others (n, 4), as shares of the smaller one of the two."""
    shared = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    areas = [np.prod(some[..., 2:] - some[..., :2], axis=-1) for some in (box, others)]
    return np.prod(np.maximum(shared, 0), axis=-1) / np.minimum(*areas)


def _examined(some: list[canvases.Canvas]) -> list[tuple[list[Face], bool]]:
    """The faces on each canvas, and whether it has more candidates than there is room for in the largest program."""
    found = _find(some, CAPS[0])
    for caps in CAPS[1:]:
        for number, (_, exceeds) in enumerate(found):
            if exceeds:  # one at a time, since the largest program takes 2 GB
                (found[number],) = _find([some[number]], caps)
    return found


def _faces(canvas: canvases.Canvas, boxes: np.ndarray, landmarks: np.ndarray, confidences: np.ndarray) -> list[Face]:
    """The faces, largest first, of boxes (n, 4), landmarks (n, 5, 2) and confidences (n,), 0 for none."""
    found = [
        Face(canvas.box_back(box.astype(np.float64)), canvas.back(points.astype(np.float64)), float(p))
        for box, points, p in zip(boxes, landmarks, confidences, strict=True)
        if p
    ]
    return sorted(found, key=lambda face: -face.area)


def _find(some: list[canvases.Canvas], caps: cascade.Caps) -> list[tuple[list[Face], bool]]:
    """The faces on each canvas, and whether it has more candidates than there is room for."""
    size, batches = _ON_CPU if jax.default_backend() == "cpu" else _ON_ACCELERATOR
    pending = []
    for region in {canvas.region for canvas in some}:
        numbers = [number for number, canvas in enumerate(some) if canvas.region == region]
        for begin in range(0, len(numbers), size):
            chosen = numbers[begin : begin + size]
            pixels = np.zeros((size, canvases.CANVAS, canvases.CANVAS, 3), np.uint8)
            for place, number in enumerate(chosen):
                pixels[place] = some[number].pixels
            pending.append((chosen, cascade.find(pixels, _weights(), region=region, caps=caps, batches=batches)))
    found: list = [None] * len(some)
    for chosen, result in pending:
        boxes, landmarks, confidences, counts = (np.asarray(part) for part in result)
        for place, number in enumerate(chosen):
            faces = _faces(some[number], boxes[place], landmarks[place], confidences[place])
            found[number] = faces, bool(caps.exceeded(counts[place]))
    return found


@functools.cache
def _weights() -> networks.Weights:
    return jax.device_put(networks.load())
