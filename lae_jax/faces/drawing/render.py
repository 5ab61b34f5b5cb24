"""Pictures of faces from numbers alone: head, hair and surroundings as a camera sees them."""

import io

import numpy as np
from PIL import Image, ImageFilter

from lae_jax.faces.drawing.geometry import (
    HEIGHTS,
    Head,
    Look,
    blend,
    clip,
    dome,
    head_table,
    illuminate,
    linear,
    lit,
    ramp,
    sample,
    soft,
)
from lae_jax.faces.drawing.paint import hair_colour, paint_face


def render(look: Look, size: int, noise: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draws a look.

    Args:
      look: All that the picture depends on, except the noise.
      size: Side of the picture in pixels.
      noise: Generator of the camera's noise.

    Returns:
      The picture, uint8 (size, size, 3), and its landmarks (x, y) in pixels, float32 (5, 2).
    """
    side = -(-size * 3 // 2) if size <= 96 else -(-size * 4 // 3)
    head = Head(look, side)
    paint_face(head)
    picture = _backdrop(head)
    _neck(head, picture)
    _ears(head, picture)
    blend(picture, head.inside, lit(head))
    _hair(head, picture)
    _extras(head, picture)
    return _camera(head, picture, size, noise), head.landmarks(size)


def _backdrop(head: Head) -> np.ndarray:
    look, side = head.look, head.side
    high, low = (linear(c)[:, None, None] for c in look.backdrop)
    down = (np.arange(side, dtype=np.float32) / side)[:, None]
    blur = sample("blotch", head.x, head.y, 25, look.texture + 5) * 0.35
    share = clip(down + blur, 0, 1)
    picture = high + (low - high) * share
    if look.back > 0:  # long hair, behind neck and shoulders
        wide = look.outline[4] + look.volume + 0.04
        reach = np.minimum(wide + 0.05 * head.y - np.abs(head.x + 0.25 * head.sin), look.back - head.y)
        reach = np.minimum(reach, head.y + 0.6)
        strands = sample("strand", head.x, head.y, 150, look.texture)
        alpha = soft((reach + 0.05 * strands * (1 + look.curl)) / head.px)
        blend(picture, alpha, hair_colour(look, strands, look.grey)[0] * (0.30 + 0.35 * look.ambient))
    return picture


def _neck(head: Head, picture: np.ndarray) -> None:
    """Draws the neck, and clothes from the collar down."""
    look, x, y = head.look, head.x, head.y
    neck = np.abs(x + 0.15 * head.sin) - 0.05 * np.maximum(y - 1, 0)
    t = clip(neck * (1 / look.neck), 0, 1)
    alpha = soft((look.neck - neck) / head.px) * (y > 0.2)
    lx, _, lz = look.light
    light = look.ambient * 0.8 + clip(0.5 * lz * np.sqrt(1 - t * t) + lx * 0.4 * x / look.neck, 0, 1)
    light = light * (0.45 + 0.5 * ramp(y, 0.95, 1.5))
    blend(picture, alpha, linear(look.skin)[:, None, None] * light)
    collar = y - 1.16 + 0.12 * ramp(np.abs(x), look.neck * 0.6, look.neck * 1.3)
    collar = collar - 0.15 * np.maximum(np.abs(x) - look.neck, 0)
    cloth = look.ambient * 0.8 + 0.5 * lz - 0.15 * np.abs(x) + 0.2 * lx * x
    blend(picture, soft(collar / head.px), linear(look.clothes)[:, None, None] * clip(cloth, 0.1, 1.2))


def _ears(head: Head, picture: np.ndarray) -> None:
    look = head.look
    for flank in (-1.0, 1.0):
        row = look.eye_v + 0.16
        x = flank * (look.outline[4] + 0.01) * head.cos - 0.05 * head.sin
        y = row - 0.5 * head.dip
        window = head.window(x, y, look.ear * 1.6)
        p, q = head.x[window] - np.float32(x), head.y[window] - np.float32(y)
        p = p * flank - 0.18 * -q
        t2 = np.square(p * (1 / (look.ear * 0.5))) + np.square(q * (1 / look.ear))
        light = look.ambient * 0.8 + clip(0.55 * look.light[2] + 0.35 * flank * look.light[0], 0.05, 1)
        shade = float(light) * (0.62 + 0.38 * ramp(t2, 0.25, 0.7)) * 0.9
        colour = linear(look.skin) * np.array([1.0, 0.82, 0.8], np.float32)
        patch = picture[(slice(None), *window)]
        blend(patch, soft((1 - t2) * (0.25 * look.ear / head.px)), colour[:, None, None] * shade)


def _shell(head: Head, volume: float, lower: float):
    """The head enlarged by `volume`, for hair and hats; `lower` is the share of the volume beside the jaw."""
    share = (1, 1, 1, 0.85, 0.4 + 0.5 * lower, lower, lower, lower, lower, 0)
    widths = [w + volume * s for w, s in zip(head.look.outline, share, strict=True)]
    heights = (-1 - volume * 1.2, *(h - volume * 0.5 for h in HEIGHTS[1:3]), *HEIGHTS[3:])
    if lower > 0.5:  # long hair hangs straight down from the widest place
        heights = (*heights[:7], 1.0, 1.4, 1.55)
        widths[5:9] = [max(w, widths[4] * f) for w, f in zip(widths[5:9], (1.0, 1.0, 0.98, 0.9), strict=True)]
    return head.cast(head_table(heights, widths, head.look.depth + volume))


def _hair(head: Head, picture: np.ndarray) -> None:
    """Draws the hair on top and at the sides, with its own light."""
    look, px = head.look, head.px
    if look.density < 0.03:
        return
    edge, u, v, normal = _shell(head, look.volume, 1.0 if look.side > 0.6 else 0.2)
    across = u * (1 / (look.outline[4] + look.volume))
    strands = sample(
        "strand", head.x + 0.2 * head.sin + 0.12 * look.curl * v, v + 0.5 * np.abs(across), 150, look.texture
    )
    if look.curl > 0.5:
        strands = 0.4 * strands + 0.9 * sample("blotch", u, v, 420, look.texture) * look.curl
    wide = np.abs(across)
    line = look.hairline + look.fringe * dome(np.square((across - 0.3 * look.part) * (1 / 0.8)))
    line = line - look.temple * dome(np.square((wide - 0.46) * (1 / 0.32))) + 0.16 * look.part * across
    line = line + (look.side - line) * ramp(wide, 0.70, 0.90)
    reach = np.minimum(line - v + 0.035 * strands * (1 + look.fringe * 3), edge + 0.015 * strands * (1 + 3 * look.curl))
    thin = clip(look.density * 1.25 + (0.32 * strands) * min(1.0, 2.2 * (1 - look.density)) - 0.08, 0, 1)
    alpha = soft(reach / max(px, 0.035 * (1.2 - look.density))) * thin
    colour, _ = hair_colour(look, strands, look.grey)
    light, gloss = illuminate(head, normal, 0.10 * (1 - look.curl))
    blend(picture, alpha, colour * (0.15 + light) + gloss * (0.6 + strands))


def _extras(head: Head, picture: np.ndarray) -> None:
    """Draws glasses, a hat and an occluder."""
    look, px = head.look, head.px
    if look.glasses:
        for flank in (-1.0, 1.0):
            x, y = head.project(flank * look.eye_sep, look.eye_v + 0.02, 0.08)
            window = head.window(x, y, 0.75)
            p, q = (head.x[window] - np.float32(x)) * (flank / head.cos), head.y[window] - np.float32(y)
            square = np.square(np.square(p * (1 / 0.235))) + np.square(np.square(q * (1 / 0.175)))
            patch = picture[(slice(None), *window)]
            blend(patch, (square < 1).astype(np.float32) * (look.glasses * 0.8), np.float32(0.02))
            frame = dome(np.square((np.sqrt(np.sqrt(square)) - 1) * (1 / max(0.13, 1.2 * px / 0.2))))
            arm = dome(np.square((q + 0.06) * (1 / max(0.03, 1.2 * px)))) * (p > 0.2) * head.inside[window]
            bridge = dome(np.square((q + 0.04) * (1 / max(0.03, px)))) * (p < -0.2) * (p > -look.eye_sep * 1.02)
            blend(patch, clip(frame + arm + bridge, 0, 1) * 0.9, np.float32(0.015))
    if look.hat:
        edge, u, v, normal = _shell(head, look.volume + 0.06, 0.0)
        reach = np.minimum(edge, -0.42 - v)
        light, _ = illuminate(head, normal)
        band = 1 - 0.35 * (v > -0.56)
        blend(picture, soft(reach / px), linear(look.clothes)[::-1, None, None] * (light * band))
    if look.occluder:
        x, y, rx, ry, *colour = look.occluder
        t2 = np.square((head.x - np.float32(x)) * (1 / rx)) + np.square((head.y - np.float32(y)) * (1 / ry))
        shade = 0.5 + 0.4 * np.maximum(1 - t2, 0)
        blend(picture, soft((1 - t2) * (0.4 * min(rx, ry) / px)), linear(colour)[:, None, None] * shade)


def _camera(head: Head, picture: np.ndarray, size: int, noise: np.random.Generator) -> np.ndarray:
    """Applies exposure, softness, noise and compression."""
    look = head.look
    levels = np.sqrt(clip(picture * look.exposure, 0, 1)) * 255
    image = Image.fromarray((levels + 0.5).astype(np.uint8).transpose(1, 2, 0).copy())
    image = image.resize((size, size), Image.Resampling.BOX)
    if look.blur > 0.15:
        image = image.filter(ImageFilter.GaussianBlur(look.blur * size / 64))
    if look.noise > 0:
        grain = noise.standard_normal((size, size, 3), np.float32)
        pixels = np.asarray(image, np.float32) + look.noise * (0.6 * grain + 0.6 * grain[..., :1])
        image = Image.fromarray(clip(pixels + 0.5, 0, 255).astype(np.uint8))
    if look.quality:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=look.quality)
        image = Image.open(buffer)
    return np.array(image.convert("RGB"))
