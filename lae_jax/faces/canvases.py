"""Canvases: a photograph, or tiles of it at several scales, each in the middle of a black square of one size."""

import dataclasses
import functools
import math
from collections.abc import Iterator

import numpy as np
from PIL import Image

from lae_jax.faces import SMALLEST, cascade

CANVAS = 512  # side in pixels of the square that the networks see
INNER = 416  # longer side of the photograph on it; the border lets MTCNN find faces that fill the photograph
_SHORTER = INNER * 3 // 4  # of a photograph of 4:3; most photographs are that wide, or wider
_OCTAVE = 2  # ratio of two neighbouring scales of tiles
# Space in pixels of the canvas that two neighbouring tiles share, and the distance, as a share of a face, from the
# edge of a tile within which another tile shows more of the face. A face of the size that a scale is there for, 20 to
# 40 pixels, is far enough from the edges of one tile at least, wherever it is: 40 x (1 + 2 / 4) is less than 80.
_SHARED, _NEAR_EDGE = 80, 0.25


@dataclasses.dataclass(frozen=True)
class Canvas:
    """A part of a photograph on a canvas, and the way back to the photograph's coordinates.

    Attributes:
      pixels: (CANVAS, CANVAS, 3) uint8.
      offset: (2,) x, y of the part's corner on the canvas before it is turned.
      scale: (2,) canvas pixels per pixel of the photograph.
      region: The part of the canvas that may not be black.
      box: (4,) left, top, right, bottom of the part in the photograph; the corner of its first pixel is (0, 0).
      size: (2,) width and height of the photograph.
      level: 0: the part is the whole photograph; tiles from 1 on, the larger the number the larger the scale.
      quarters: Quarter turns counterclockwise by which the canvas is turned.
    """

    pixels: np.ndarray
    offset: np.ndarray
    scale: np.ndarray
    region: cascade.Region
    box: np.ndarray
    size: np.ndarray
    level: int = 0
    quarters: int = 0

    @classmethod
    def of(cls, photograph: Image.Image, box: tuple[float, ...] | None = None, level: int = 0) -> "Canvas":
        """The canvas of a photograph, or of a part of it, with a longer side of INNER pixels."""
        box = box or (0, 0, *photograph.size)
        size = np.array([box[2] - box[0], box[3] - box[1]])
        scaled = np.maximum(1, np.rint(size * (INNER / size.max())).astype(int))
        left, top = (CANVAS - scaled) // 2
        pixels = np.zeros((CANVAS, CANVAS, 3), np.uint8)
        # To shrink, Hamming is as sharp and takes two thirds of the time; to enlarge, landmarks need bicubic.
        method = Image.Resampling.HAMMING if size.max() > INNER else Image.Resampling.BICUBIC
        resized = photograph.resize(tuple(scaled.tolist()), method, box, reducing_gap=3.0)
        pixels[top : top + scaled[1], left : left + scaled[0]] = np.asarray(resized)
        placed = np.array([left, top]), scaled / size, _region(*scaled.tolist())
        return cls(pixels, *placed, np.array(box), np.array(photograph.size), level)

    def turned(self, quarters: int) -> "Canvas":
        """The canvas turned by so many quarter turns counterclockwise, of a canvas that is not turned."""
        region = self.region
        sides = region.right - region.left, region.bottom - region.top
        region = _region(*sides[::-1]) if quarters % 2 else region
        return dataclasses.replace(self, pixels=np.rot90(self.pixels, quarters), region=region, quarters=quarters)

    def back(self, points: np.ndarray) -> np.ndarray:
        """Points (..., 2) on the canvas -> points in the photograph."""
        centre = (CANVAS - 1) / 2
        for _ in range(self.quarters):
            points = np.stack([centre - (points[..., 1] - centre), points[..., 0]], axis=-1)
        return (points + 0.5 - self.offset) / self.scale - 0.5 + self.box[:2]

    def box_back(self, box: np.ndarray) -> np.ndarray:
        """A box (4,) on the canvas -> the box in the photograph."""
        corners = self.back(box.reshape(2, 2))
        return np.concatenate([corners.min(0), corners.max(0)])

    def shows_whole(self, box: np.ndarray) -> bool:
        """Whether a box (4,) in the photograph is not near an edge of the tile behind which the photograph goes on."""
        edges = np.concatenate([box[:2] - self.box[:2], self.box[2:] - box[2:]])
        goes_on = np.concatenate([self.box[:2] > 0, self.box[2:] < self.size])
        return bool(np.all(~goes_on | (edges >= _NEAR_EDGE * np.max(box[2:] - box[:2]))))


def views(photograph: Image.Image, smallest: float | None = None) -> Iterator[Canvas]:
    """Yields the canvases on which the faces of a photograph are searched for: the whole, then tiles at rising scales.

    A photograph is never magnified for tiles. Neighbouring scales differ by a factor of 2, and a tile shows the largest
    face that its scale is there for whole, with space around it.

    Args:
      photograph: RGB picture.
      smallest: Side in its pixels of the smallest face to search for; None: no tiles.
    """
    yield Canvas.of(photograph)
    if smallest is None:
        return
    scale, longer = min(1.0, SMALLEST / smallest), max(photograph.size)
    count = max(0, math.ceil(math.log(scale * longer / INNER, _OCTAVE)))
    for level in range(1, count + 1):
        at = scale / _OCTAVE ** (count - level)
        columns, rows = (_along(side, at) for side in photograph.size)
        for top, bottom in rows:
            for left, right in columns:
                yield Canvas.of(photograph, (left, top, right, bottom), level)


def _along(side: int, scale: float) -> list[tuple[float, float]]:
    """Where the tiles begin and end along an axis of a photograph, in its pixels."""
    length = min(float(side), INNER / scale)
    shared = _SHARED / scale
    count = 1 if length == side else math.ceil((side - shared) / (length - shared))
    # The last one ends exactly where the photograph does, or Pillow refuses it.
    return [(end - length, end) for end in np.linspace(length, side, count).tolist()]


@functools.cache
def _region(width: int, height: int) -> cascade.Region:
    """The part of the canvas that may not be black, of a few forms, since each is a program of its own."""
    width, height = (_SHORTER if side <= _SHORTER else INNER for side in (width, height))
    if width == height:  # also of two short sides, which no photograph has
        width = height = INNER
    left, top = (CANVAS - width) // 2, (CANVAS - height) // 2
    return cascade.Region(CANVAS, left, top, left + width, top + height)
