"""The head of a drawn face: the parameters of a picture, a lit height field in numpy, and functions that paint on it.

Head units: the crown is at v = -1 and the chin at v = +1, u points to the picture's right, z towards the camera.
Colours in a `Look` are sRGB in 0..1. Squared, they approximate linear light, in which the picture is computed.
"""

import dataclasses
import functools
import math

import numpy as np
from numpy.typing import ArrayLike

Colour = tuple[float, float, float]
HEIGHTS = (-1.0, -0.9, -0.7, -0.4, 0.0, 0.3, 0.6, 0.8, 0.93, 1.0)
_RANGE, _ROWS = 1.6, 512  # a head's tables cover v in -1.6..1.6


@dataclasses.dataclass(frozen=True)
class Look:
    """All that a picture of a face depends on, in head units, radians and shares of 1 unless stated otherwise."""

    # pose: turned to the picture's right, down, clockwise; scale: a head unit as a share of half the picture's side;
    # shift: the head's middle in -1..1
    yaw: float
    pitch: float
    roll: float
    scale: float
    shift: tuple[float, float]
    # head: half widths at HEIGHTS
    outline: tuple[float, ...]
    depth: float
    neck: float
    ear: float
    # eyes and brows
    eye_v: float
    eye_sep: float  # half the distance between the pupils
    eye_w: float  # half an eye's width
    eye_open: float  # half an eye's height
    eye_tilt: float
    hood: float  # how far the upper lid hangs
    lash: float
    iris: Colour
    gaze: float
    sclera: float
    brow_lift: float  # above the pupils
    brow_thick: float
    brow_arch: float
    brow_alpha: float
    brow_colour: Colour
    # nose and mouth
    nose_v: float
    nose_w: float
    nose_out: float
    nose_bridge: float
    mouth_v: float
    mouth_w: float
    lip: float
    lip_colour: Colour
    smile: float
    gap: float  # distance between the lips
    cheek: float
    # skin
    skin: Colour
    blush: float
    blotch: float
    shine: float
    rings: float  # darkness under the eyes
    hollow: float  # hollow temples and cheeks
    spots: np.ndarray  # (n, 4): u, v, radius, strength
    creases: dict[str, float]  # depth by kind, 0 none, 1 deep
    crease_noise: np.ndarray  # (40,) in -1..1: variation of the creases' place and length
    # hair
    hair: Colour
    grey: float
    hairline: float
    temple: float  # how far the hair has receded at the temples
    volume: float
    density: float
    side: float  # where the hair at the sides ends
    back: float  # where the hair behind the neck ends; below 0: none is visible
    part: float
    curl: float
    fringe: float
    beard: float
    beard_low: float  # 0: cheeks, chin and lip; 1: chin alone
    # light, clothes, occluders
    light: tuple[float, float, float]
    light_colour: Colour
    ambient: float
    backdrop: tuple[Colour, Colour]
    clothes: Colour
    glasses: float  # darkness of the lenses; 0: no glasses
    hat: bool
    occluder: tuple[float, ...]  # () or centre x, y, radii x, y, colour
    # camera
    exposure: float
    blur: float  # pixels at 64 pixels
    noise: float  # grey levels
    quality: int  # of the JPEG; 0: no compression
    texture: int


class Head:
    """The head's surface as each pixel of a `side` x `side` picture sees it, and the paint on it."""

    def __init__(self, look: Look, side: int):
        self.look, self.side = look, side
        self.px = 2 / side / look.scale  # side of a pixel in head units
        self.cos, self.sin = math.cos(look.yaw), math.sin(look.yaw)
        self.dip = math.sin(look.pitch)
        self.rcos, self.rsin = math.cos(look.roll), math.sin(look.roll)
        grid = (np.arange(side, dtype=np.float32) + 0.5) * (2 / side) - 1
        gx, gy = (grid[None] - look.shift[0]) / look.scale, (grid[:, None] - look.shift[1]) / look.scale
        self.x = (self.rcos * gx + self.rsin * gy).astype(np.float32)
        self.y = (self.rcos * gy - self.rsin * gx).astype(np.float32)
        self.table = head_table(HEIGHTS, look.outline, look.depth)
        edge, self.u, self.v, self.normal = self.cast(self.table)
        self.inside = soft(edge / self.px)
        self.relief = np.zeros((side, side), np.float32)
        self.dark = np.ones((side, side), np.float32)  # share of the light, which is below 1 in folds
        self.skin = np.empty((3, side, side), np.float32)

    def cast(self, table: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[np.ndarray, ...]]:
        """Where each pixel's ray meets a head with this table: (signed distance to the outline, u, v, unit normal)."""
        cos, sin = self.cos, self.sin
        v = self.y
        for last in (False, True):
            row = ((v + _RANGE) * ((_ROWS - 1) / (2 * _RANGE))).astype(np.int32)
            w2, d2 = table[0].take(row, mode="clip"), table[1].take(row, mode="clip")
            r2 = np.maximum(w2 * (cos * cos) + d2 * (sin * sin), 1e-4)
            r, w, d = np.sqrt(r2), np.sqrt(np.maximum(w2, 1e-4)), np.sqrt(np.maximum(d2, 1e-4))
            t = clip(self.x / r, -1, 1)
            rest = np.sqrt(1 - t * t)
            if not last:  # a nod moves near parts more than far ones
                v = self.y - self.dip * ((t * (d * sin) + rest * (w * cos)) / r * d - 0.5)
        unit_u = (t * (w * cos) - rest * (d * sin)) / r
        unit_z = (t * (d * sin) + rest * (w * cos)) / r
        slope_w, slope_d = table[2].take(row, mode="clip"), table[3].take(row, mode="clip")
        inner = w2 * (cos * cos) + d2 * (sin * sin) - self.x * self.x
        steep = slope_w * (cos * cos) + slope_d * (sin * sin)
        edge = inner / np.sqrt(4 * self.x * self.x + steep * steep + 1e-3)
        nx, nz = unit_u / w, unit_z / d
        ny = -0.5 * (unit_u * unit_u * slope_w / (w * w) + unit_z * unit_z * slope_d / (d * d))
        nx, nz = nx * cos + nz * sin, nz * cos - nx * sin
        ny, nz = ny + nz * self.dip, nz - ny * self.dip
        nx, ny = self.rcos * nx - self.rsin * ny, self.rsin * nx + self.rcos * ny
        scale = 1 / np.sqrt(nx * nx + ny * ny + nz * nz)
        return edge, unit_u * w, v, (nx * scale, ny * scale, nz * scale)

    def project(self, u: float, v: float, out: float = 0.0) -> tuple[float, float]:
        """View coordinates of a point of the face at a distance `out` in front of the surface."""
        row = min(max(int((v + _RANGE) * ((_ROWS - 1) / (2 * _RANGE))), 0), _ROWS - 1)
        w2, d2 = max(float(self.table[0, row]), 1e-4), max(float(self.table[1, row]), 1e-4)
        z = math.sqrt(d2 * max(0.0, 1 - u * u / w2)) + out
        return u * self.cos + z * self.sin, v + self.dip * (z - 0.5)

    def pixel(self, x: float, y: float, side: int) -> tuple[float, float]:
        """Pixel coordinates of view coordinates, in a picture of `side` pixels."""
        look = self.look
        px = look.shift[0] + look.scale * (self.rcos * x - self.rsin * y)
        py = look.shift[1] + look.scale * (self.rsin * x + self.rcos * y)
        return (px + 1) * side / 2, (py + 1) * side / 2

    def window(self, x: float, y: float, radius: float) -> tuple[slice, slice]:
        """The part of the picture within `radius` of a point in view coordinates."""
        px, py = self.pixel(x, y, self.side)
        reach = radius / self.px + 2
        rows = slice(max(0, int(py - reach)), max(0, int(py + reach) + 1))
        return rows, slice(max(0, int(px - reach)), max(0, int(px + reach) + 1))

    def near(self, u: float, v: float, radius: float) -> tuple[tuple[slice, slice], np.ndarray, np.ndarray]:
        """The window around a point of the face, and the pixels' distances from the point along u and v."""
        window = self.window(*self.project(u, v), radius * 1.15)
        return window, self.u[window] - np.float32(u), self.v[window] - np.float32(v)

    def bump(self, u: float, v: float, ru: float, rv: float, height: float, dark: float = 0.0) -> None:
        """Raises (or dents) an ellipse of the face, and darkens it."""
        window, p, q = self.near(u, v, max(ru, rv))
        shape = dome(p * p * (1 / ru**2) + q * q * (1 / rv**2))
        if height:
            self.relief[window] += height * shape
        if dark:
            self.dark[window] *= 1 - dark * shape

    def crease(self, u: float, v: float, angle: float, length: float, bend: float, width: float, depth: float) -> None:
        """Folds the skin along an arc; `angle` from the u axis towards v, `bend`: how far its ends turn to its left."""
        if depth < 0.03:
            return
        thick = max(width, 1.3 * self.px)
        depth *= width / thick
        window, p, q = self.near(u, v, length / 2 + thick + abs(bend))
        cos, sin = math.cos(angle), math.sin(angle)
        p, q = p * cos + q * sin, q * cos - p * sin
        along = p * p * (4 / length**2)
        across = q - bend * along
        shape = np.maximum(1 - along, 0) * dome(across * across * (1 / thick**2))
        self.relief[window] -= 0.55 * depth * thick * shape
        self.dark[window] *= 1 - min(0.42 * depth, 0.75) * shape

    def paint(self, window: tuple[slice, slice], alpha: np.ndarray, colour: Colour) -> None:
        """Blends a colour onto the skin."""
        blend(self.skin[(slice(None), *window)], alpha, linear(colour)[:, None, None])

    def landmarks(self, size: int) -> np.ndarray:
        """Eyes, nose tip and mouth corners: (x, y) in pixels, float32 (5, 2)."""
        look = self.look
        corner = look.mouth_v - look.smile * 0.07
        places = [(-look.eye_sep, look.eye_v, 0.0), (look.eye_sep, look.eye_v, 0.0), (0.0, look.nose_v, look.nose_out)]
        places += [(-look.mouth_w, corner, 0.0), (look.mouth_w, corner, 0.0)]
        return np.array([self.pixel(*self.project(*place), size) for place in places], np.float32)


def head_table(heights: ArrayLike, widths: ArrayLike, depth: float) -> np.ndarray:
    """Squared half width and half depth by v, and their derivatives by v: (4, rows).

    The squares continue below 0 outside the head.
    """
    v = np.linspace(-_RANGE, _RANGE, _ROWS)
    squares = np.square(np.maximum(widths, 0.0))
    w2 = np.interp(v, heights, squares)
    w2 += np.where(v < heights[0], (v - heights[0]) * squares[1] / (heights[1] - heights[0]), 0)
    w2 -= np.where(v > heights[-1], (v - heights[-1]) * squares[-2] / (heights[-1] - heights[-2]), 0)
    middle, half = (heights[0] + heights[-1]) / 2, (heights[-1] - heights[0]) / 2
    t = (v - middle) / half
    d2 = depth**2 * np.maximum(1 - np.square(np.square(t)), -1)
    kernel = 1 - np.square(np.linspace(-1, 1, 37))
    w2 = np.convolve(np.concatenate([w2[:1].repeat(18), w2, w2[-1:].repeat(18)]), kernel / kernel.sum(), mode="valid")
    table = np.empty((4, _ROWS), np.float32)
    table[0], table[1] = w2, d2
    table[2:, 1:-1] = (table[:2, 2:] - table[:2, :-2]) * np.float32((_ROWS - 1) / (4 * _RANGE))
    table[2:, 0], table[2:, -1] = table[2:, 1], table[2:, -2]
    return table


@functools.cache
def _grain(kind: str) -> np.ndarray:
    """A periodic 256 x 256 tile of noise in -1..1: 'fine', 'blotch' or 'strand' (long in v)."""
    rounds = {"fine": ((1, 1),), "blotch": ((6, 6), (9, 9), (14, 14)), "strand": ((14, 1), (20, 1))}[kind]
    tile = np.random.default_rng(sum(map(ord, kind))).uniform(-1, 1, (256, 256)).astype(np.float32)
    for reach in rounds:
        for axis in (0, 1):
            tile = sum(np.roll(tile, k, axis) for k in range(-reach[axis], reach[axis] + 1)) / (2 * reach[axis] + 1)
    return clip(tile / (2 * tile.std()), -1, 1).astype(np.float32)


def sample(kind: str, u: np.ndarray, v: np.ndarray, density: float, offset: int) -> np.ndarray:
    """Noise at coordinates of the head, `density` texels per head unit (for strands a quarter of that along v)."""
    stretch = density / 4 if kind == "strand" else density
    column = (u * density + (offset % 241 + 2048)).astype(np.int32) & 255
    row = (v * stretch + (offset % 233 + 2048)).astype(np.int32) & 255
    return _grain(kind).ravel().take(row * 256 + column)


def dome(t2: np.ndarray) -> np.ndarray:
    """A smooth function of a squared distance: 1 at 0, falling to 0 at 1 and beyond."""
    rest = np.maximum(1 - t2, 0)
    return rest * rest


def clip(value: ArrayLike, low: ArrayLike, high: ArrayLike) -> np.ndarray | np.number:
    """`np.clip`, which takes three times as long on small arrays."""
    return np.minimum(np.maximum(value, low), high)


def soft(distance: np.ndarray) -> np.ndarray:
    """An anti-aliased edge from a signed distance in pixels."""
    return clip(distance + 0.5, 0, 1)


def ramp(value: ArrayLike, low: float, high: float) -> np.ndarray | np.number:
    """A smooth step: 0 up to `low`, 1 from `high` on."""
    t = clip((value - low) * (1 / (high - low)), 0, 1)
    return t * t * (3 - 2 * t)


def linear(colour: Colour) -> np.ndarray:
    """The colour in approximately linear light."""
    return np.square(np.asarray(colour, np.float32))


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """The colour between a and b, with `share` of b."""
    return tuple(p + (q - p) * share for p, q in zip(a, b, strict=True))


def blend(picture: np.ndarray, alpha: np.ndarray, colour: np.ndarray) -> None:
    """Blends a colour onto the picture (3, H, W), in place."""
    picture += alpha * (colour - picture)


def illuminate(
    head: Head, normal: tuple[np.ndarray, ...], shine: float = 0.0, wrap: float = 0.12
) -> tuple[np.ndarray, np.ndarray]:
    """(light in three colours, highlight) on a surface; red light reaches a little around edges, as in skin."""
    look = head.look
    nx, ny, nz = normal
    lx, ly, lz = look.light
    facing = nx * lx + ny * ly + nz * lz
    sky = look.ambient * (0.8 - 0.2 * ny)
    colour = np.square(np.asarray(look.light_colour, np.float32))
    red = clip((facing + 2 * wrap) * (1 / (1 + 2 * wrap)), 0, 1)
    rest = clip((facing + wrap) * (1 / (1 + wrap)), 0, 1)
    light = np.stack([sky + red * colour[0], sky + rest * colour[1], sky + rest * colour[2]])
    if not shine:
        return light, np.float32(0)
    length = math.sqrt(lx * lx + ly * ly + (lz + 1) ** 2)
    half = nx * (lx / length) + ny * (ly / length) + nz * ((lz + 1) / length)
    gloss = np.maximum(1 - 7 * (1 - half), 0)
    return light, shine * gloss * gloss * gloss


def lit(head: Head) -> np.ndarray:
    """The painted head under its light."""
    relief, nx, ny, nz = head.relief, *head.normal
    slope = 1 / (2 * head.px)
    gx, gy = np.zeros_like(relief), np.zeros_like(relief)
    gx[:, 1:-1] = (relief[:, 2:] - relief[:, :-2]) * slope
    gy[1:-1] = (relief[2:] - relief[:-2]) * slope
    nx, ny = nx - clip(gx, -1.5, 1.5), ny - clip(gy, -1.5, 1.5)
    scale = 1 / np.sqrt(nx * nx + ny * ny + nz * nz)
    light, gloss = illuminate(head, (nx * scale, ny * scale, nz * scale), head.look.shine)
    return head.skin * (light * head.dark) + gloss * head.dark
