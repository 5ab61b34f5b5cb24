"""Draw a face from numbers: a lit height field of a head in numpy, nothing learned and nothing loaded.

Head units: the crown is at v = -1 and the chin at v = +1, u runs to the picture's right, z towards the camera.
Colours are sRGB in 0..1 in a `Look`; inside they are squared, which is near enough to linear light.
"""

import dataclasses
import functools
import io
import math

import numpy as np
from PIL import Image, ImageFilter

Colour = tuple[float, float, float]
HEIGHTS = (-1.0, -0.9, -0.7, -0.4, 0.0, 0.3, 0.6, 0.8, 0.93, 1.0)
_RANGE, _ROWS = 1.6, 512  # a head's tables cover v in -1.6..1.6


@dataclasses.dataclass(frozen=True)
class Look:
    """All that a picture of a face depends on, in head units, radians and shares of 1 where nothing else is said."""

    # pose: to the picture's right, down, clockwise; half the picture's side a head unit; the head's middle in -1..1
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
    gap: float  # how far the lips stand apart
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
    crease_noise: np.ndarray  # (40,) in -1..1: where and how long
    # hair
    hair: Colour
    grey: float
    hairline: float
    temple: float  # how far the hair has gone back at the temples
    volume: float
    density: float
    side: float  # where the hair at the sides ends
    back: float  # where the hair behind the neck ends; under 0: none seen
    part: float
    curl: float
    fringe: float
    beard: float
    beard_low: float  # 0: cheeks, chin and lip; 1: chin alone
    # light, clothes, things in the way
    light: tuple[float, float, float]
    light_colour: Colour
    ambient: float
    backdrop: tuple[Colour, Colour]
    clothes: Colour
    glasses: float  # 0 none, else the darkness of the lenses
    hat: bool
    occluder: tuple[float, ...]  # () or centre x, y, radii x, y, colour
    # camera
    exposure: float
    blur: float  # pixels at 64 pixels
    noise: float  # grey levels
    quality: int  # of JPEG; 0: not compressed
    texture: int


def render(look: Look, size: int, noise: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw a look: uint8 (size, size, 3) and float32 (5, 2), landmarks in pixels (x, y); `noise` is the camera's."""
    side = -(-size * 3 // 2) if size <= 96 else -(-size * 4 // 3)
    head = _Head(look, side)
    _relief(head)
    _wrinkles(head)
    _skin(head)
    _brows(head)
    for flank in (-1.0, 1.0):
        _eye(head, flank)
    _mouth(head)
    _beard(head)
    picture = _backdrop(head)
    _neck(head, picture)
    _ears(head, picture)
    _blend(picture, head.inside, _lit(head))
    _hair(head, picture)
    _extras(head, picture)
    return _camera(head, picture, size, noise), head.landmarks(size)


class _Head:
    """The head's surface as each pixel of a `side` x `side` picture sees it, and what is being painted onto it."""

    def __init__(self, look: Look, side: int):
        self.look, self.side = look, side
        self.px = 2 / side / look.scale  # a pixel, in head units
        self.cos, self.sin = math.cos(look.yaw), math.sin(look.yaw)
        self.dip = math.sin(look.pitch)
        self.rcos, self.rsin = math.cos(look.roll), math.sin(look.roll)
        grid = (np.arange(side, dtype=np.float32) + 0.5) * (2 / side) - 1
        gx, gy = (grid[None] - look.shift[0]) / look.scale, (grid[:, None] - look.shift[1]) / look.scale
        self.x = (self.rcos * gx + self.rsin * gy).astype(np.float32)
        self.y = (self.rcos * gy - self.rsin * gx).astype(np.float32)
        self.table = _table(HEIGHTS, look.outline, look.depth)
        edge, self.u, self.v, self.normal = self.cast(self.table)
        self.inside = _soft(edge / self.px)
        self.relief = np.zeros((side, side), np.float32)
        self.dark = np.ones((side, side), np.float32)  # light that does not get into folds
        self.skin = np.empty((3, side, side), np.float32)

    def cast(self, table: np.ndarray):
        """Where each pixel's ray meets a head with that table: (signed distance to the outline, u, v, unit normal)."""
        cos, sin = self.cos, self.sin
        v = self.y
        for last in (False, True):
            row = ((v + _RANGE) * ((_ROWS - 1) / (2 * _RANGE))).astype(np.int32)
            w2, d2 = table[0].take(row, mode="clip"), table[1].take(row, mode="clip")
            r2 = np.maximum(w2 * (cos * cos) + d2 * (sin * sin), 1e-4)
            r, w, d = np.sqrt(r2), np.sqrt(np.maximum(w2, 1e-4)), np.sqrt(np.maximum(d2, 1e-4))
            t = _clip(self.x / r, -1, 1)
            rest = np.sqrt(1 - t * t)
            if not last:  # a nod moves what is near more than what is far
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
        """View coordinates of a point of the face that stands `out` before the surface."""
        row = min(max(int((v + _RANGE) * ((_ROWS - 1) / (2 * _RANGE))), 0), _ROWS - 1)
        w2, d2 = max(float(self.table[0, row]), 1e-4), max(float(self.table[1, row]), 1e-4)
        z = math.sqrt(d2 * max(0.0, 1 - u * u / w2)) + out
        return u * self.cos + z * self.sin, v + self.dip * (z - 0.5)

    def pixel(self, x: float, y: float, side: int) -> tuple[float, float]:
        """Pixel coordinates, in a picture of `side`, of view coordinates."""
        look = self.look
        px = look.shift[0] + look.scale * (self.rcos * x - self.rsin * y)
        py = look.shift[1] + look.scale * (self.rsin * x + self.rcos * y)
        return (px + 1) * side / 2, (py + 1) * side / 2

    def window(self, x: float, y: float, radius: float) -> tuple[slice, slice]:
        """The part of the picture within `radius` of a place in view coordinates."""
        px, py = self.pixel(x, y, self.side)
        reach = radius / self.px + 2
        rows = slice(max(0, int(py - reach)), max(0, int(py + reach) + 1))
        return rows, slice(max(0, int(px - reach)), max(0, int(px + reach) + 1))

    def near(self, u: float, v: float, radius: float):
        """(window, u - u0, v - v0) about a place on the face."""
        window = self.window(*self.project(u, v), radius * 1.15)
        return window, self.u[window] - np.float32(u), self.v[window] - np.float32(v)

    def bump(self, u: float, v: float, ru: float, rv: float, height: float, dark: float = 0.0) -> None:
        """Raise (or dent) an ellipse of the face, and darken it."""
        window, p, q = self.near(u, v, max(ru, rv))
        shape = _dome(p * p * (1 / ru**2) + q * q * (1 / rv**2))
        if height:
            self.relief[window] += height * shape
        if dark:
            self.dark[window] *= 1 - dark * shape

    def crease(self, u: float, v: float, angle: float, length: float, bend: float, width: float, depth: float) -> None:
        """Fold the skin along an arc; `angle` from the u axis towards v, `bend` how far its ends turn to its left."""
        if depth < 0.03:
            return
        thick = max(width, 1.3 * self.px)
        depth *= width / thick
        window, p, q = self.near(u, v, length / 2 + thick + abs(bend))
        cos, sin = math.cos(angle), math.sin(angle)
        p, q = p * cos + q * sin, q * cos - p * sin
        along = p * p * (4 / length**2)
        across = q - bend * along
        shape = np.maximum(1 - along, 0) * _dome(across * across * (1 / thick**2))
        self.relief[window] -= 0.55 * depth * thick * shape
        self.dark[window] *= 1 - min(0.42 * depth, 0.75) * shape

    def paint(self, window, alpha: np.ndarray, colour: Colour) -> None:
        """Lay a colour onto the skin."""
        _blend(self.skin[(slice(None), *window)], alpha, _linear(colour)[:, None, None])

    def landmarks(self, size: int) -> np.ndarray:
        """Eyes, nose tip, mouth corners: float32 (5, 2) pixels (x, y)."""
        look = self.look
        corner = look.mouth_v - look.smile * 0.07
        places = [(-look.eye_sep, look.eye_v, 0.0), (look.eye_sep, look.eye_v, 0.0), (0.0, look.nose_v, look.nose_out)]
        places += [(-look.mouth_w, corner, 0.0), (look.mouth_w, corner, 0.0)]
        return np.array([self.pixel(*self.project(*place), size) for place in places], np.float32)


def _table(heights, widths, depth: float) -> np.ndarray:
    """(4, rows): squared half width and half depth by v, and how they change with v; both go on below 0 outside."""
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
    """A 256 x 256 tile in about -1..1 that wraps: 'fine', 'blotch' or 'strand' (long in v)."""
    rounds = {"fine": ((1, 1),), "blotch": ((6, 6), (9, 9), (14, 14)), "strand": ((14, 1), (20, 1))}[kind]
    tile = np.random.default_rng(sum(map(ord, kind))).uniform(-1, 1, (256, 256)).astype(np.float32)
    for reach in rounds:
        for axis in (0, 1):
            tile = sum(np.roll(tile, k, axis) for k in range(-reach[axis], reach[axis] + 1)) / (2 * reach[axis] + 1)
    return _clip(tile / (2 * tile.std()), -1, 1).astype(np.float32)


def _sample(kind: str, u, v, density: float, offset: int) -> np.ndarray:
    """The tile at coordinates of the head, `density` texels a head unit (along u; a quarter along v for strands)."""
    stretch = density / 4 if kind == "strand" else density
    column = (u * density + (offset % 241 + 2048)).astype(np.int32) & 255
    row = (v * stretch + (offset % 233 + 2048)).astype(np.int32) & 255
    return _grain(kind).ravel().take(row * 256 + column)


def _dome(t2: np.ndarray) -> np.ndarray:
    """1 at 0, smoothly to 0 at 1 and beyond; of a squared distance."""
    rest = np.maximum(1 - t2, 0)
    return rest * rest


def _clip(value, low, high):
    return np.minimum(np.maximum(value, low), high)  # np.clip costs three times as much on small arrays


def _soft(distance: np.ndarray) -> np.ndarray:
    """An anti-aliased edge from a signed distance in pixels."""
    return _clip(distance + 0.5, 0, 1)


def _ramp(value, low: float, high: float):
    """Smoothly 0 to 1 from low to high."""
    t = _clip((value - low) * (1 / (high - low)), 0, 1)
    return t * t * (3 - 2 * t)


def _linear(colour: Colour) -> np.ndarray:
    return np.square(np.asarray(colour, np.float32))


def mix(a: Colour, b: Colour, share: float) -> Colour:
    return tuple(p + (q - p) * share for p, q in zip(a, b, strict=True))


def _blend(picture: np.ndarray, alpha: np.ndarray, colour: np.ndarray) -> None:
    """In place, (3, H, W)."""
    picture += alpha * (colour - picture)


def _shade(head: _Head, normal, shine: float = 0.0, wrap: float = 0.12) -> tuple[np.ndarray, np.ndarray]:
    """(light in three colours, highlight) of a surface; red light goes a little round corners, as in skin."""
    look = head.look
    nx, ny, nz = normal
    lx, ly, lz = look.light
    facing = nx * lx + ny * ly + nz * lz
    sky = look.ambient * (0.8 - 0.2 * ny)
    colour = np.square(np.asarray(look.light_colour, np.float32))
    red = _clip((facing + 2 * wrap) * (1 / (1 + 2 * wrap)), 0, 1)
    rest = _clip((facing + wrap) * (1 / (1 + wrap)), 0, 1)
    light = np.stack([sky + red * colour[0], sky + rest * colour[1], sky + rest * colour[2]])
    if not shine:
        return light, np.float32(0)
    length = math.sqrt(lx * lx + ly * ly + (lz + 1) ** 2)
    half = nx * (lx / length) + ny * (ly / length) + nz * ((lz + 1) / length)
    gloss = np.maximum(1 - 7 * (1 - half), 0)
    return light, shine * gloss * gloss * gloss


def _lit(head: _Head) -> np.ndarray:
    """The painted head under its light."""
    relief, nx, ny, nz = head.relief, *head.normal
    slope = 1 / (2 * head.px)
    gx, gy = np.zeros_like(relief), np.zeros_like(relief)
    gx[:, 1:-1] = (relief[:, 2:] - relief[:, :-2]) * slope
    gy[1:-1] = (relief[2:] - relief[:-2]) * slope
    nx, ny = nx - _clip(gx, -1.5, 1.5), ny - _clip(gy, -1.5, 1.5)
    scale = 1 / np.sqrt(nx * nx + ny * ny + nz * nz)
    light, gloss = _shade(head, (nx * scale, ny * scale, nz * scale), head.look.shine)
    return head.skin * (light * head.dark) + gloss * head.dark


def _relief(head: _Head) -> None:
    """The height field of sockets, brows, cheeks, nose, lips and chin."""
    look = head.look
    for flank in (-1.0, 1.0):
        sep = flank * look.eye_sep
        head.bump(sep * 0.95, look.eye_v - 0.01, 0.26, 0.19, -0.055, dark=0.16)
        head.bump(sep, look.eye_v, look.eye_w * 0.95, look.eye_open * 2.1, 0.035)
        head.bump(sep, look.eye_v - look.brow_lift, 0.26, 0.11, 0.018)
        head.bump(flank * 0.40, look.eye_v + 0.33 - 0.05 * look.smile, 0.30, 0.25, 0.05 * look.cheek)
        head.bump(flank * 0.50, 0.56, 0.22, 0.26, -0.06 * look.hollow, dark=0.10 * look.hollow)
        head.bump(flank * 0.66, look.eye_v - 0.26, 0.2, 0.3, -0.05 * look.hollow, dark=0.12 * look.hollow)
    head.bump(0.0, 0.88, 0.2, 0.14, 0.035)
    _nose(head)
    low = look.mouth_v
    head.bump(0.0, (look.nose_v + low) / 2 + 0.05, 0.05, 0.09, -0.018, dark=0.06)
    head.bump(0.0, low - look.lip * 0.6, look.mouth_w, 0.10, 0.02)
    head.bump(0.0, low + look.lip * 1.1 + look.gap, look.mouth_w * 0.7, 0.07, 0.03)
    head.bump(0.0, low + look.lip * 2.3 + look.gap + 0.035, look.mouth_w * 0.62, 0.06, -0.022, dark=0.16)


def _nose(head: _Head) -> None:
    """Ridge, tip, wings and nostrils; they stand out, so turning moves them further than the face behind them."""
    look = head.look
    out, wide, tip = look.nose_out, look.nose_w, look.nose_v + head.dip * look.nose_out
    lean = out * head.sin / head.cos
    top = look.eye_v - 0.05
    window, u, v = head.near(lean / 2, (top + tip) / 2, (tip - top) / 2 + 0.2)
    u, v = u + lean / 2, v + (top + tip) / 2
    t = _clip((v - top) * (1 / (tip - top)), 0, 1)
    p = u - lean * t
    ridge = 0.05 + 0.02 * look.nose_bridge + wide * 0.5 * t * t
    cut = _clip((tip + 0.06 - v) * (1 / 0.07), 0, 1) * _clip((v - top) * (1 / 0.12), 0, 1)
    shape = _dome(p * p / (ridge * ridge)) * cut
    head.relief[window] += (0.35 + 0.65 * t) * (out * 0.55 * (0.8 + 0.2 * look.nose_bridge)) * shape
    far = p * math.copysign(1.0, look.light[0] or 1.0)  # the side away from the light lies in shadow
    shadow = _dome(np.square((far + ridge * 0.9) / (ridge * 0.9))) * cut
    head.dark[window] *= 1 - (0.10 + 0.25 * abs(look.light[0])) * shadow
    head.bump(lean, tip - 0.005, wide * 0.55, 0.075, out * 0.28)
    head.bump(lean * 0.8, tip + 0.085, wide * 1.0, 0.05, 0.0, dark=0.34)
    for flank in (-1.0, 1.0):
        head.bump(lean * 0.75 + flank * wide * 0.72, tip + 0.02, wide * 0.42, 0.06, out * 0.30)
        head.crease(lean * 0.75 + flank * wide * 1.05, tip + 0.01, 1.57 - 0.25 * flank, 0.13, flank * 0.03, 0.02, 0.55)
        head.bump(lean * 0.9 + flank * wide * 0.42, tip + 0.055, wide * 0.3, 0.026, -0.01, dark=0.72)


def _wrinkles(head: _Head) -> None:
    """Lines and folds, each kind as deep as the look says, in places that differ from person to person."""
    look, noise = head.look, head.look.crease_noise.tolist()
    deep = look.creases
    room = look.eye_v - look.brow_lift - 0.10 - (look.hairline + 0.06)
    for k in range(5 if deep["forehead"] > 0.04 else 0):
        v = look.eye_v - look.brow_lift - 0.10 - max(room, 0.2) * (k + 0.5 + 0.2 * noise[k]) / 5
        share = min(deep["forehead"] * 1.5 - 0.12 * abs(k - 1.5) + 0.2 * noise[k + 5], 1.2) * 0.85
        head.crease(0.1 * noise[k + 10], v, 0.06 * noise[k + 15], 0.72 + 0.2 * noise[k], 0.03, 0.022, share)
    for flank in (-1.0, 1.0):
        jitter = noise[20:] if flank < 0 else noise[24:]
        outer = flank * (look.eye_sep + look.eye_w)
        for k in range(3):
            lift = (k - 1) * 0.5 + 0.15 * jitter[k]
            v = look.eye_v + 0.01 + 0.055 * (k - 1)
            head.crease(outer + flank * 0.075, v, flank * lift, 0.13, 0.0, 0.015, deep["crow"])
        fold = flank * (look.nose_w + look.mouth_w) / 2 + flank * 0.055
        middle = (look.nose_v + look.mouth_v) / 2 + 0.01
        steep = 1.57 - flank * math.atan2(look.mouth_w + 0.06 - look.nose_w, look.mouth_v - look.nose_v)
        head.crease(fold, middle, steep, look.mouth_v - look.nose_v + 0.2, flank * 0.02, 0.034, deep["fold"])
        below = look.eye_v + look.eye_open + 0.045
        head.crease(flank * look.eye_sep, below + 0.02, 0.0, look.eye_w * 2.1, -0.05, 0.028, deep["bag"])
        head.bump(flank * look.eye_sep, below - 0.01, look.eye_w, 0.05, 0.03 * deep["bag"])
        second = deep["bag"] - 0.45
        head.crease(flank * look.eye_sep * 0.95, below + 0.085, flank * 0.25, look.eye_w * 1.8, -0.05, 0.02, second)
        drop = look.mouth_v + 0.11
        head.crease(flank * (look.mouth_w + 0.05), drop, 1.57 - 0.2 * flank, 0.22, flank * 0.02, 0.028, deep["drop"])
        head.crease(flank * 0.05, look.eye_v - 0.15, 1.57, 0.14, 0.0, 0.016, deep["frown"] * (1 + 0.4 * jitter[3]))
        for k in range(3):
            share = 0.7 * deep["cheek"] - 0.1 * k
            v = 0.5 + 0.05 * jitter[k]
            head.crease(flank * (0.42 + 0.07 * k), v, 1.57 - flank * 0.35, 0.3, flank * 0.03, 0.022, share)
        head.bump(flank * (look.mouth_w + 0.16), 0.80, 0.17, 0.14, 0.03 * deep["drop"])
    for k in range(6):
        u = (k - 2.5) * 0.055 + 0.01 * noise[k]
        head.crease(u, look.mouth_v - look.lip - 0.05, 1.57, 0.08, 0.0, 0.011, 0.6 * deep["lips"])


def _skin(head: _Head) -> None:
    """Tone, redness, unevenness, spots, rings under the eyes."""
    look, u, v = head.look, head.u, head.v
    head.skin[:] = _linear(look.skin)[:, None, None]
    tint = _sample("blotch", u, v, 60, look.texture) * look.blotch
    fine = _sample("fine", u, v, 90, look.texture + 77) * (0.03 + 0.10 * look.blotch)
    for channel, share in enumerate((0.14, 0.26, 0.24)):
        head.skin[channel] *= 1 + tint * share + fine
    flush = _linear(look.skin) * np.array([1.06, 0.72, 0.72], np.float32)
    places = [(-0.42, look.eye_v + 0.36, 0.25), (0.42, look.eye_v + 0.36, 0.25), (0.0, look.nose_v, 0.14)]
    for place_u, place_v, radius in places:
        window, p, q = head.near(place_u, place_v, radius)
        head.paint(window, look.blush * _dome((p * p + q * q) * (1 / radius**2)), tuple(np.sqrt(flush)))
    for flank in (-1.0, 1.0):
        below = look.eye_v + look.eye_open + 0.035
        head.bump(flank * look.eye_sep * 0.93, below, look.eye_w * 1.1, 0.07, 0.0, dark=look.rings)
    brown = mix(look.skin, (0.35, 0.2, 0.12), 0.6)
    for spot_u, spot_v, radius, strength in look.spots.tolist():
        if strength > 0.02:
            window, p, q = head.near(spot_u, spot_v, radius)
            head.paint(window, strength * _dome((p * p + q * q) * (1 / radius**2)), brown)
    edge = look.hairline + 0.02  # the hair shades the skin beside it
    head.dark *= 1 - 0.3 * look.density * _ramp(-v, -edge - 0.14, -edge)


def _brows(head: _Head) -> None:
    look = head.look
    length = look.eye_w * 1.3
    for flank in (-1.0, 1.0):
        u0, v0 = flank * (look.eye_sep + 0.01), look.eye_v - look.brow_lift
        window, p, q = head.near(u0, v0, length + 0.06)
        p = p * flank
        across = q - look.brow_arch * (np.square(p * (1 / length)) - 0.35) + 0.12 * look.brow_arch + 0.03 * p
        thick = np.maximum(look.brow_thick * (1 - 0.45 * _ramp(p, -0.3 * length, length)), 0.6 * head.px)
        hairs = 0.75 + 0.35 * _sample("strand", p + q * 0.7, q - p, 70, look.texture)
        alpha = _dome(np.square(across / thick)) * _soft((length - np.abs(p)) * (0.3 / head.px)) * hairs
        head.paint(window, _clip(alpha * look.brow_alpha * 1.3, 0, 1), look.brow_colour)
        head.relief[window] += 0.01 * alpha


def _eye(head: _Head, flank: float) -> None:
    """White, iris, pupil, a catch of light, lids and lashes."""
    look, px = head.look, head.px
    window, p, q = head.near(flank * look.eye_sep, look.eye_v, look.eye_w * 1.5)
    p = p * flank
    q = q + look.eye_tilt * p
    half = p * (1 / look.eye_w)
    arc = np.maximum(1 - half * half, 0)
    upper = -look.eye_open * (1 - 0.75 * look.hood) * arc * (1.05 - 0.12 * half)
    upper = upper + look.hood * 0.25 * look.eye_open * np.maximum(half, 0)
    lower = look.eye_open * 0.72 * arc * (1 + 0.15 * half)
    opening = _soft(np.minimum(q - upper, lower - q) / px) * (np.abs(half) < 1)
    white = look.sclera * (0.75 + 0.25 * arc)
    _blend(head.skin[(slice(None), *window)], opening, np.stack([white, white * 0.96, white * 0.93]))
    radius = 0.078
    r2 = np.square(p - flank * look.gaze * 0.05) + np.square(q + 0.006)
    r = np.sqrt(r2)
    disc = _soft((radius - r) / px) * opening
    ring = 0.55 + 0.45 * _dome(r2 * (1 / (radius * 1.25) ** 2))
    _blend(head.skin[(slice(None), *window)], disc, _linear(look.iris)[:, None, None] * ring)
    head.paint(window, _soft((0.034 - r) / px) * opening, (0.03, 0.03, 0.03))
    head.dark[window] *= 1 - 0.4 * opening * _dome(np.square((q - upper) * (1 / 0.07)))
    side = look.light[0] * 0.03
    glint = np.square(p * flank - side) + np.square(q + 0.03)
    head.paint(window, _dome(glint * (1 / max(0.022, px) ** 2)) * opening * 0.9, (1.0, 1.0, 1.0))
    present = _soft((1.06 - np.abs(half)) * (look.eye_w / px))
    lash = max(0.012 + 0.016 * look.lash, 0.7 * px)
    line = _dome(np.square((q - upper + 0.3 * lash) * (1 / (1.7 * lash)))) * present
    head.paint(window, line * (0.6 + 0.35 * look.lash), (0.08, 0.05, 0.04))
    under = _dome(np.square((q - lower - 0.008) * (1 / max(0.022, 1.2 * px)))) * present
    head.dark[window] *= 1 - 0.22 * under
    fold = q - upper + 0.035 + 0.012 * arc
    head.dark[window] *= 1 - (0.25 + 0.3 * look.hood) * _dome(np.square(fold * (1 / max(0.022, 1.2 * px)))) * arc


def _mouth(head: _Head) -> None:
    """Lips, the line between them, and teeth when they part."""
    look, px = head.look, head.px
    wide, lip, gap = look.mouth_w, look.lip, look.gap
    window, p, q = head.near(0.0, look.mouth_v, wide * 1.25)
    half = p * (1 / wide)
    h2 = half * half
    q = q + look.smile * 0.07 * h2
    arc = np.maximum(1 - h2, 0)
    present = arc > 0
    bow = arc * (1 - 0.28 * _dome(h2 * (1 / 0.05)))
    top, bottom = -lip * 0.85 * bow, gap * arc + lip * 1.25 * arc * (0.6 + 0.4 * arc)
    lips = _soft(np.minimum(q - top, bottom - q) / max(px, 0.015)) * present
    tint = np.where(q < gap * 0.5, np.float32(0.82), np.float32(1))
    tint = tint * (1 + 0.12 * _sample("fine", p, q * 0.3, 90, look.texture))
    _blend(head.skin[(slice(None), *window)], lips * 0.85, _linear(look.lip_colour)[:, None, None] * tint)
    if gap > 0.01:
        opening = _soft(np.minimum(q, gap * arc - q) / px) * present
        head.paint(window, opening, (0.22, 0.08, 0.08))
        teeth = opening * _soft((gap * 0.7 * arc - q) / px) * (h2 < 0.6)
        head.paint(window, teeth * 0.9, (0.86, 0.83, 0.77))
    else:
        line = _dome(np.square((q - 0.008 * arc) * (1 / max(0.016, px))))
        head.dark[window] *= 1 - 0.6 * line * _soft((1 - np.abs(half)) * (wide / px))
    for flank in (-1.0, 1.0):
        head.bump(flank * wide * 1.03, look.mouth_v - look.smile * 0.07, 0.035, 0.035, -0.008, dark=0.4)


def _beard(head: _Head) -> None:
    """Beard and moustache as hair strewn over the lower face."""
    look = head.look
    if look.beard < 0.03:
        return
    u, v, chin = np.abs(head.u), head.v, look.beard_low
    low = _ramp(v + (0.35 - 1.1 * chin) * u, 0.76, 0.92)
    low = np.maximum(low, _ramp(u, 0.42, 0.58) * _ramp(v, 0.1, 0.5) * (1 - chin))
    lip = _ramp(v, look.nose_v + 0.09, look.nose_v + 0.15) * _ramp(-v, -look.mouth_v, 0.02 - look.mouth_v)
    low = np.maximum(low, lip * _ramp(-u, -look.mouth_w - 0.08, -look.mouth_w + 0.02))
    across, down = u * (1 / (look.mouth_w * 0.95)), v - look.mouth_v - look.lip * 0.3
    mouth = across * across + np.square(down * (1 / (look.lip * 1.5 + look.gap)))
    low = low * _ramp(mouth, 0.8, 1.3)
    hairs = _sample("strand", head.u, v * 1.5, 170, look.texture + 31)
    alpha = _clip(low * look.beard * (1.1 + 0.35 * hairs), 0, 0.95)
    colour, grain = _hair_colour(look, hairs, look.grey * 1.1)
    _blend(head.skin, alpha, colour)
    head.relief += (0.03 * alpha) * (1 + 0.5 * grain)


def _hair_colour(look: Look, strands: np.ndarray, grey: float) -> tuple[np.ndarray, np.ndarray]:
    """(3, H, W) colour of hair that greys strand by strand, and the strands."""
    grey = min(max(grey, 0.0), 1.0)
    share = _clip(grey + 1.1 * grey * (1 - grey) * strands, 0, 1)
    own, white = _linear(look.hair)[:, None, None], _linear((0.82, 0.81, 0.80))[:, None, None]
    return (own + (white - own) * share) * (1 + 0.25 * strands), strands


def _backdrop(head: _Head) -> np.ndarray:
    look, side = head.look, head.side
    high, low = (_linear(c)[:, None, None] for c in look.backdrop)
    down = (np.arange(side, dtype=np.float32) / side)[:, None]
    blur = _sample("blotch", head.x, head.y, 25, look.texture + 5) * 0.35
    share = _clip(down + blur, 0, 1)
    picture = high + (low - high) * share
    if look.back > 0:  # long hair, behind neck and shoulders
        wide = look.outline[4] + look.volume + 0.04
        reach = np.minimum(wide + 0.05 * head.y - np.abs(head.x + 0.25 * head.sin), look.back - head.y)
        reach = np.minimum(reach, head.y + 0.6)
        strands = _sample("strand", head.x, head.y, 150, look.texture)
        alpha = _soft((reach + 0.05 * strands * (1 + look.curl)) / head.px)
        _blend(picture, alpha, _hair_colour(look, strands, look.grey)[0] * (0.30 + 0.35 * look.ambient))
    return picture


def _neck(head: _Head, picture: np.ndarray) -> None:
    """Neck, and clothes from the collar down."""
    look, x, y = head.look, head.x, head.y
    neck = np.abs(x + 0.15 * head.sin) - 0.05 * np.maximum(y - 1, 0)
    t = _clip(neck * (1 / look.neck), 0, 1)
    alpha = _soft((look.neck - neck) / head.px) * (y > 0.2)
    lx, _, lz = look.light
    light = look.ambient * 0.8 + _clip(0.5 * lz * np.sqrt(1 - t * t) + lx * 0.4 * x / look.neck, 0, 1)
    light = light * (0.45 + 0.5 * _ramp(y, 0.95, 1.5))
    _blend(picture, alpha, _linear(look.skin)[:, None, None] * light)
    collar = y - 1.16 + 0.12 * _ramp(np.abs(x), look.neck * 0.6, look.neck * 1.3)
    collar = collar - 0.15 * np.maximum(np.abs(x) - look.neck, 0)
    cloth = look.ambient * 0.8 + 0.5 * lz - 0.15 * np.abs(x) + 0.2 * lx * x
    _blend(picture, _soft(collar / head.px), _linear(look.clothes)[:, None, None] * _clip(cloth, 0.1, 1.2))


def _ears(head: _Head, picture: np.ndarray) -> None:
    look = head.look
    for flank in (-1.0, 1.0):
        row = look.eye_v + 0.16
        x = flank * (look.outline[4] + 0.01) * head.cos - 0.05 * head.sin
        y = row - 0.5 * head.dip
        window = head.window(x, y, look.ear * 1.6)
        p, q = head.x[window] - np.float32(x), head.y[window] - np.float32(y)
        p = p * flank - 0.18 * -q
        t2 = np.square(p * (1 / (look.ear * 0.5))) + np.square(q * (1 / look.ear))
        light = look.ambient * 0.8 + _clip(0.55 * look.light[2] + 0.35 * flank * look.light[0], 0.05, 1)
        shade = float(light) * (0.62 + 0.38 * _ramp(t2, 0.25, 0.7)) * 0.9
        colour = _linear(look.skin) * np.array([1.0, 0.82, 0.8], np.float32)
        patch = picture[(slice(None), *window)]
        _blend(patch, _soft((1 - t2) * (0.25 * look.ear / head.px)), colour[:, None, None] * shade)


def _shell(head: _Head, volume: float, lower: float):
    """The head grown by `volume`: what hair and hats lie on; `lower` how much of it stays beside the jaw."""
    share = (1, 1, 1, 0.85, 0.4 + 0.5 * lower, lower, lower, lower, lower, 0)
    widths = [w + volume * s for w, s in zip(head.look.outline, share, strict=True)]
    heights = (-1 - volume * 1.2, *(h - volume * 0.5 for h in HEIGHTS[1:3]), *HEIGHTS[3:])
    if lower > 0.5:  # long hair hangs straight down from the widest place
        heights = (*heights[:7], 1.0, 1.4, 1.55)
        widths[5:9] = [max(w, widths[4] * f) for w, f in zip(widths[5:9], (1.0, 1.0, 0.98, 0.9), strict=True)]
    return head.cast(_table(heights, widths, head.look.depth + volume))


def _hair(head: _Head, picture: np.ndarray) -> None:
    """The hair on top and at the sides, with its own light."""
    look, px = head.look, head.px
    if look.density < 0.03:
        return
    edge, u, v, normal = _shell(head, look.volume, 1.0 if look.side > 0.6 else 0.2)
    across = u * (1 / (look.outline[4] + look.volume))
    strands = _sample(
        "strand", head.x + 0.2 * head.sin + 0.12 * look.curl * v, v + 0.5 * np.abs(across), 150, look.texture
    )
    if look.curl > 0.5:
        strands = 0.4 * strands + 0.9 * _sample("blotch", u, v, 420, look.texture) * look.curl
    wide = np.abs(across)
    line = look.hairline + look.fringe * _dome(np.square((across - 0.3 * look.part) * (1 / 0.8)))
    line = line - look.temple * _dome(np.square((wide - 0.46) * (1 / 0.32))) + 0.16 * look.part * across
    line = line + (look.side - line) * _ramp(wide, 0.70, 0.90)
    reach = np.minimum(line - v + 0.035 * strands * (1 + look.fringe * 3), edge + 0.015 * strands * (1 + 3 * look.curl))
    thin = _clip(look.density * 1.25 + (0.32 * strands) * min(1.0, 2.2 * (1 - look.density)) - 0.08, 0, 1)
    alpha = _soft(reach / max(px, 0.035 * (1.2 - look.density))) * thin
    colour, _ = _hair_colour(look, strands, look.grey)
    light, gloss = _shade(head, normal, 0.10 * (1 - look.curl))
    _blend(picture, alpha, colour * (0.15 + light) + gloss * (0.6 + strands))


def _extras(head: _Head, picture: np.ndarray) -> None:
    """Glasses, a hat, something in the way."""
    look, px = head.look, head.px
    if look.glasses:
        for flank in (-1.0, 1.0):
            x, y = head.project(flank * look.eye_sep, look.eye_v + 0.02, 0.08)
            window = head.window(x, y, 0.75)
            p, q = (head.x[window] - np.float32(x)) * (flank / head.cos), head.y[window] - np.float32(y)
            square = np.square(np.square(p * (1 / 0.235))) + np.square(np.square(q * (1 / 0.175)))
            patch = picture[(slice(None), *window)]
            _blend(patch, (square < 1).astype(np.float32) * (look.glasses * 0.8), np.float32(0.02))
            frame = _dome(np.square((np.sqrt(np.sqrt(square)) - 1) * (1 / max(0.13, 1.2 * px / 0.2))))
            arm = _dome(np.square((q + 0.06) * (1 / max(0.03, 1.2 * px)))) * (p > 0.2) * head.inside[window]
            bridge = _dome(np.square((q + 0.04) * (1 / max(0.03, px)))) * (p < -0.2) * (p > -look.eye_sep * 1.02)
            _blend(patch, _clip(frame + arm + bridge, 0, 1) * 0.9, np.float32(0.015))
    if look.hat:
        edge, u, v, normal = _shell(head, look.volume + 0.06, 0.0)
        reach = np.minimum(edge, -0.42 - v)
        light, _ = _shade(head, normal)
        band = 1 - 0.35 * (v > -0.56)
        _blend(picture, _soft(reach / px), _linear(look.clothes)[::-1, None, None] * (light * band))
    if look.occluder:
        x, y, rx, ry, *colour = look.occluder
        t2 = np.square((head.x - np.float32(x)) * (1 / rx)) + np.square((head.y - np.float32(y)) * (1 / ry))
        shade = 0.5 + 0.4 * np.maximum(1 - t2, 0)
        _blend(picture, _soft((1 - t2) * (0.4 * min(rx, ry) / px)), _linear(colour)[:, None, None] * shade)


def _camera(head: _Head, picture: np.ndarray, size: int, noise: np.random.Generator) -> np.ndarray:
    """Exposure, softness, noise and compression."""
    look = head.look
    levels = np.sqrt(_clip(picture * look.exposure, 0, 1)) * 255
    image = Image.fromarray((levels + 0.5).astype(np.uint8).transpose(1, 2, 0).copy())
    image = image.resize((size, size), Image.Resampling.BOX)
    if look.blur > 0.15:
        image = image.filter(ImageFilter.GaussianBlur(look.blur * size / 64))
    if look.noise > 0:
        grain = noise.standard_normal((size, size, 3), np.float32)
        pixels = np.asarray(image, np.float32) + look.noise * (0.6 * grain + 0.6 * grain[..., :1])
        image = Image.fromarray(_clip(pixels + 0.5, 0, 255).astype(np.uint8))
    if look.quality:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=look.quality)
        image = Image.open(buffer)
    return np.array(image.convert("RGB"))
