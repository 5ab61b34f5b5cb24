"""MTCNN's cascade in fixed shapes: canvases -> faces, as one compiled program for CPUs, GPUs and TPUs.

Pyramid, first network, boxes, second network on patches of the boxes, third network on patches of what is left. The
steps between the networks are those of the `mtcnn` package (1.0.0) for one photograph. The number of candidates after
each step varies, so each step has room for a stated number (`Caps`), and the program tells how many there were. The
later networks see the candidates of all canvases in small batches, as many as there are.

Shapes: B = canvases, S = side of a canvas in pixels, n = room for candidates of a canvas.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lae_jax.faces import SMALLEST, networks

_PYRAMID = 0.709  # ratio of two neighbouring scales
_FEW = 4  # pixels that are averaged, up to which adding them one by one is faster on a CPU
_THRESHOLDS = (0.6, 0.7, 0.8)  # confidence that a box needs after each network
_OVERLAP_OF_LEVEL, _OVERLAP = 0.5, 0.7  # most overlap with a better box: in a level of the pyramid, and afterwards


@dataclasses.dataclass(frozen=True)
class Caps:
    """Room for candidates of a canvas.

    Attributes:
      proposed: Boxes of the first network above its threshold.
      refined: Boxes that the second network sees.
      final: Boxes that the third network sees.
    """

    proposed: int
    refined: int
    final: int

    def exceeded(self, counts: np.ndarray) -> np.ndarray:
        """Whether a canvas has more candidates: counts (..., 3) -> (...)."""
        return np.any(counts > dataclasses.astuple(self), axis=-1)


@dataclasses.dataclass(frozen=True)
class Region:
    """The part of a canvas outside of which it is black: from `left` and `top` up to `right` and `bottom`, in pixels.

    A box of the first network that lies in the black part is none, so it is not computed.
    """

    side: int
    left: int
    top: int
    right: int
    bottom: int


class Faces(NamedTuple):
    """Faces on canvases, in pixels of the canvas, most confident first.

    Attributes:
      boxes: (B, n, 4) left, top, right, bottom.
      landmarks: (B, n, 5, 2) x, y.
      confidences: (B, n); 0 where there is no face.
      counts: (B, 3) candidates at each step, also those without room.
    """

    boxes: jax.Array
    landmarks: jax.Array
    confidences: jax.Array
    counts: jax.Array


class _Level(NamedTuple):
    """A level of the pyramid: its scale, its side, and the pixels of each axis that are needed."""

    scale: float
    side: int
    columns: range
    rows: range

    @classmethod
    def of(cls, scale: float, region: Region) -> "_Level":
        side = int(region.side * scale)
        columns, rows = (
            _needed(side, low * side / region.side, high * side / region.side)
            for low, high in ((region.left, region.right), (region.top, region.bottom))
        )
        return cls(scale, side, columns, rows)


def _needed(side: int, low: float, high: float) -> range:
    """The pixels of an axis that the outputs of the first network need which see any pixel from `low` to `high`."""
    window, stride = networks.WINDOW, networks.STRIDE
    first = max(0, math.floor(low) - window) // stride * stride
    last = (math.ceil(high) - 1) // stride * stride
    return range(first, min(side, last + window))


def _levels(region: Region) -> list[_Level]:
    largest = networks.WINDOW / SMALLEST
    count = round(-(math.log(region.side / networks.WINDOW) / math.log(_PYRAMID) + 1))
    return [_Level.of(largest * _PYRAMID**number, region) for number in range(count)]


@functools.partial(jax.jit, static_argnames=("region", "caps", "batches"))
def find(
    canvases: jax.Array, weights: networks.Weights, *, region: Region, caps: Caps, batches: tuple[int, int]
) -> Faces:
    """Finds the faces on canvases.

    Args:
      canvases: (B, S, S, 3) uint8, black outside `region`.
      weights: Result of `networks.load`.
      region: The part that is not black.
      caps: Room for candidates.
      batches: Batch sizes of the second and of the third network.
    """
    boxes, keep, proposed = _proposals(canvases, weights["proposal"], region, caps.proposed)

    boxes, present, refined = _first(_square(boxes), keep, caps.refined)
    offsets, odds = _look(canvases, boxes, present, networks.refined, weights["refined"], batches[0], networks.REFINED)
    boxes, odds, _ = _ordered(_adjusted(boxes, offsets), _passed(odds, present, _THRESHOLDS[1]))
    keep = _best(odds, _overlaps(boxes) > _OVERLAP)

    boxes, present, final = _first(_square(boxes), keep, caps.final)
    offsets, points, odds = _look(
        canvases, boxes, present, networks.final, weights["final"], batches[1], networks.FINAL
    )
    landmarks = _placed(boxes, points)
    boxes, odds, order = _ordered(_adjusted(boxes, offsets), _passed(odds, present, _THRESHOLDS[2]))
    keep = _best(odds, _overlaps(boxes, of_smaller=True) > _OVERLAP)
    landmarks = jnp.take_along_axis(landmarks, order[..., None, None], axis=1)
    return Faces(boxes, landmarks, jnp.where(keep, jax.nn.sigmoid(odds), 0), jnp.stack([proposed, refined, final], 1))


def _proposals(
    canvases: jax.Array, weights: tuple[jax.Array, ...], region: Region, room: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The boxes of the first network, best first (B, room, 4), which to keep (B, room), how many there were (B,)."""
    pixels = _normalised(canvases).reshape(*canvases.shape[:2], -1)
    outputs, cells = [], []
    for number, level in enumerate(_levels(region)):
        output = networks.proposal(_scaled(pixels, level), weights)
        outputs.append(output.reshape(output.shape[0], -1, output.shape[-1]))
        cells.append(_cells(number, level, output.shape[1:3]))
    output, cells = jnp.concatenate(outputs, axis=1), np.concatenate(cells)
    odds = _passed(output[..., 4], True, _THRESHOLDS[0])
    best, order = jax.lax.top_k(odds, min(room, odds.shape[1]))
    cells = jnp.asarray(cells.astype(np.float32))[order]
    offsets = jnp.take_along_axis(output[..., :4], order[..., None], axis=1)
    boxes = cells[..., :4] + offsets * cells[..., 4:5]
    overlaps, number = _overlaps(boxes), cells[..., 5]
    keep = _best(best, (overlaps > _OVERLAP_OF_LEVEL) & (number[:, :, None] == number[:, None]))
    keep = _best(jnp.where(keep, best, -jnp.inf), overlaps > _OVERLAP)
    return boxes, keep, jnp.sum(odds > -jnp.inf, axis=1)


def _cells(number: int, level: _Level, shape: tuple[int, int]) -> np.ndarray:
    """(outputs of a level, 6): the box that an output sees, in pixels of the canvas; its side; the level's number."""
    corners = np.stack(
        np.meshgrid(
            level.columns.start + networks.STRIDE * np.arange(shape[0]),
            level.rows.start + networks.STRIDE * np.arange(shape[1]),
            indexing="ij",
        ),
        axis=-1,
    ).reshape(-1, 2)
    boxes = np.concatenate([corners + 1, corners + networks.WINDOW], axis=1) / level.scale
    side = np.full((len(boxes), 1), (networks.WINDOW - 1) / level.scale)
    return np.concatenate([boxes, side, np.full_like(side, number)], axis=1)


def _normalised(pixels: jax.Array) -> jax.Array:
    return (pixels.astype(jnp.float32) - 127.5) / 128


def _scaled(pixels: jax.Array, level: _Level) -> jax.Array:
    """The needed part of a level, its axes exchanged: (B, S, 3 S) -> (B, columns, rows, 3)."""
    batch, side = pixels.shape[:2]
    x = _averaged(pixels, level.side, level.rows).reshape(batch, len(level.rows), side, 3)
    x = x.transpose(0, 2, 1, 3).reshape(batch, side, -1)
    return _averaged(x, level.side, level.columns).reshape(batch, len(level.columns), len(level.rows), 3)


def _averaged(x: jax.Array, side: int, needed: range) -> jax.Array:
    """Resizes axis 1 to `side` pixels, each the mean of the area that it covers, and returns the needed ones.

    A product with the matrix of all shares, most of them 0, would take two to five times as long on a CPU.
    """
    step = x.shape[1] / side
    low = np.array(needed) * step
    first = np.floor(low + 1e-9).astype(int)
    rows = first[:, None] + np.arange(int(np.max(np.ceil(low + step - 1e-9) - first)))
    shares = np.clip(np.minimum(rows + 1, low[:, None] + step) - np.maximum(rows, low[:, None]), 0, 1) / step
    rows, shares = np.minimum(rows, x.shape[1] - 1), shares.astype(np.float32)
    if rows.shape[1] <= _FEW:
        return functools.reduce(jnp.add, (x[:, rows[:, i]] * shares[:, i, None] for i in range(rows.shape[1])))
    return jnp.einsum("botc,ot->boc", x[:, rows], shares, precision=jax.lax.Precision.HIGHEST)


def _passed(odds: jax.Array, present: jax.Array | bool, threshold: float) -> jax.Array:
    """Logarithms of odds; -inf for candidates that are absent or whose confidence is not above the threshold."""
    return jnp.where(present & (odds > math.log(threshold / (1 - threshold))), odds, -jnp.inf)


def _ordered(boxes: jax.Array, odds: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sorts boxes (B, n, 4) and odds (B, n), best first; also returns the order."""
    order = jnp.argsort(-odds, axis=1, stable=True)
    return jnp.take_along_axis(boxes, order[..., None], axis=1), jnp.take_along_axis(odds, order, axis=1), order


def _overlaps(boxes: jax.Array, of_smaller: bool = False) -> jax.Array:
    """(B, n, 4) -> (B, n, n): the area that two boxes share, as a share of their union or of the smaller one."""
    left, top, right, bottom = (boxes[..., i] for i in range(4))
    width = jnp.minimum(right[:, :, None], right[:, None]) - jnp.maximum(left[:, :, None], left[:, None])
    height = jnp.minimum(bottom[:, :, None], bottom[:, None]) - jnp.maximum(top[:, :, None], top[:, None])
    shared = jnp.maximum(width, 0) * jnp.maximum(height, 0)
    area = (right - left) * (bottom - top)
    one, other = area[:, :, None], area[:, None]
    return shared / (jnp.minimum(one, other) if of_smaller else one + other - shared)


def _best(odds: jax.Array, overlapping: jax.Array) -> jax.Array:
    """The candidates that overlap with no better one: odds (B, n), best first and -inf for none, (B, n, n) -> (B, n).

    Also one that is itself not kept suppresses worse ones, as in the package.
    """
    present = odds > -jnp.inf
    better = np.triu(np.ones((odds.shape[1],) * 2, bool), k=1)
    return present & ~jnp.any(overlapping & better & present[:, :, None], axis=1)


def _first(boxes: jax.Array, keep: jax.Array, room: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Moves the kept boxes to the front: boxes (B, room, 4), whether there is one (B, room), how many there were."""
    room, count = min(room, keep.shape[1]), jnp.sum(keep, axis=1)
    order = jnp.argsort(~keep, axis=1, stable=True)[:, :room]
    return jnp.take_along_axis(boxes, order[..., None], axis=1), np.arange(room) < count[:, None], count


def _square(boxes: jax.Array) -> jax.Array:
    """Boxes whose shorter side grows to the longer one, in place."""
    corner, sides = boxes[..., :2], boxes[..., 2:] - boxes[..., :2]
    longer = jnp.max(sides, axis=-1, keepdims=True)
    corner = corner + sides * 0.5 - longer * 0.5
    return jnp.concatenate([corner, corner + longer], axis=-1)


def _adjusted(boxes: jax.Array, offsets: jax.Array) -> jax.Array:
    """Boxes moved by a network's offsets, which are shares of their sides."""
    sides = boxes[..., 2:] - boxes[..., :2] + 1
    return boxes + offsets * jnp.concatenate([sides, sides], axis=-1)


def _placed(boxes: jax.Array, points: jax.Array) -> jax.Array:
    """Landmarks (B, n, 10) in shares of boxes (B, n, 4) -> (B, n, 5, 2) on the canvas."""
    points = jnp.stack([points[..., :5], points[..., 5:]], axis=-1)
    sides = boxes[..., 2:] - boxes[..., :2] + 1
    return points * sides[..., None, :] + boxes[..., None, :2] - 1


def _look(
    canvases: jax.Array, boxes: jax.Array, present: jax.Array, network: Callable, weights, batch: int, side: int
) -> tuple[jax.Array, ...]:
    """The outputs (B, n, ...) of a network for the boxes that are present, which it sees in batches."""
    rows, flat = present.size, boxes.reshape(-1, 4)
    places = jnp.flatnonzero(present, size=rows + batch, fill_value=rows)  # `rows`: nowhere

    def outputs(chosen: jax.Array) -> tuple[jax.Array, ...]:
        return network(_patches(canvases, chosen // boxes.shape[1], flat[chosen], side), weights)

    def step(state):
        begin, found = state
        chosen = jax.lax.dynamic_slice_in_dim(places, begin, batch)
        new = outputs(jnp.minimum(chosen, rows - 1))
        return begin + batch, tuple(a.at[chosen].set(b, mode="drop") for a, b in zip(found, new, strict=True))

    shapes = jax.eval_shape(outputs, jax.ShapeDtypeStruct((batch,), places.dtype))
    empty = tuple(jnp.zeros((rows, *shape.shape[1:]), shape.dtype) for shape in shapes)
    count = jnp.sum(present)
    _, found = jax.lax.while_loop(lambda state: state[0] < count, step, (jnp.zeros((), places.dtype), empty))
    return tuple(a.reshape(*present.shape, *a.shape[1:]) for a in found)


def _patches(canvases: jax.Array, numbers: jax.Array, boxes: jax.Array, side: int) -> jax.Array:
    """Cuts boxes (N, 4) out of the canvases `numbers` (N,): (N, side, side, 3), bilinear, 0 outside of the canvas.

    As `tf.image.crop_and_resize` of boxes that are divided by the canvas's side.
    """
    last = canvases.shape[1] - 1
    corner = boxes * (last / canvases.shape[1])
    steps = (corner[:, 2:] - corner[:, :2]) / (side - 1)
    x, y = (corner[:, i, None] + steps[:, i, None] * np.arange(side, dtype=np.float32) for i in range(2))
    inside = ((y >= 0) & (y <= last))[:, :, None, None] & ((x >= 0) & (x <= last))[:, None, :, None]
    (left, right, x), (top, bottom, y) = ((jnp.floor(v), jnp.ceil(v), v - jnp.floor(v)) for v in (x, y))
    x, y = x[:, None, :, None], y[:, :, None, None]

    def pixels(rows, columns):
        rows, columns = (jnp.clip(v, 0, last).astype(jnp.int32) for v in (rows, columns))
        return canvases[numbers[:, None, None], rows[:, :, None], columns[:, None]].astype(jnp.float32)

    upper = pixels(top, left) * (1 - x) + pixels(top, right) * x
    lower = pixels(bottom, left) * (1 - x) + pixels(bottom, right) * x
    return jnp.where(inside, _normalised(upper * (1 - y) + lower * y), 0)
