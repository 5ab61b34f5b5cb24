"""Paints a face onto its head: relief, nose, wrinkles, skin, brows, eyes, mouth and beard, in head units."""

import math

import numpy as np

from lae_jax.faces.drawing.geometry import Head, Look, blend, clip, dome, linear, mix, ramp, sample, soft


def paint_face(head: Head) -> None:
    """Shapes and paints the face of a look onto its head."""
    _relief(head)
    _wrinkles(head)
    _skin(head)
    _brows(head)
    for flank in (-1.0, 1.0):
        _eye(head, flank)
    _mouth(head)
    _beard(head)


def _relief(head: Head) -> None:
    """Shapes sockets, brows, cheeks, nose, lips and chin."""
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


def _nose(head: Head) -> None:
    """Shapes ridge, tip, wings and nostrils. They project, so a turn moves them further than the face behind them."""
    look = head.look
    out, wide, tip = look.nose_out, look.nose_w, look.nose_v + head.dip * look.nose_out
    lean = out * head.sin / head.cos
    top = look.eye_v - 0.05
    window, u, v = head.near(lean / 2, (top + tip) / 2, (tip - top) / 2 + 0.2)
    u, v = u + lean / 2, v + (top + tip) / 2
    t = clip((v - top) * (1 / (tip - top)), 0, 1)
    p = u - lean * t
    ridge = 0.05 + 0.02 * look.nose_bridge + wide * 0.5 * t * t
    cut = clip((tip + 0.06 - v) * (1 / 0.07), 0, 1) * clip((v - top) * (1 / 0.12), 0, 1)
    shape = dome(p * p / (ridge * ridge)) * cut
    head.relief[window] += (0.35 + 0.65 * t) * (out * 0.55 * (0.8 + 0.2 * look.nose_bridge)) * shape
    far = p * math.copysign(1.0, look.light[0] or 1.0)  # the side away from the light lies in shadow
    shadow = dome(np.square((far + ridge * 0.9) / (ridge * 0.9))) * cut
    head.dark[window] *= 1 - (0.10 + 0.25 * abs(look.light[0])) * shadow
    head.bump(lean, tip - 0.005, wide * 0.55, 0.075, out * 0.28)
    head.bump(lean * 0.8, tip + 0.085, wide * 1.0, 0.05, 0.0, dark=0.34)
    for flank in (-1.0, 1.0):
        head.bump(lean * 0.75 + flank * wide * 0.72, tip + 0.02, wide * 0.42, 0.06, out * 0.30)
        head.crease(lean * 0.75 + flank * wide * 1.05, tip + 0.01, 1.57 - 0.25 * flank, 0.13, flank * 0.03, 0.02, 0.55)
        head.bump(lean * 0.9 + flank * wide * 0.42, tip + 0.055, wide * 0.3, 0.026, -0.01, dark=0.72)


def _wrinkles(head: Head) -> None:
    """Folds the lines of each kind as deep as the look says, in places that differ from person to person."""
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


def _skin(head: Head) -> None:
    """Paints tone, redness, unevenness, spots and rings under the eyes."""
    look, u, v = head.look, head.u, head.v
    head.skin[:] = linear(look.skin)[:, None, None]
    tint = sample("blotch", u, v, 60, look.texture) * look.blotch
    fine = sample("fine", u, v, 90, look.texture + 77) * (0.03 + 0.10 * look.blotch)
    for channel, share in enumerate((0.14, 0.26, 0.24)):
        head.skin[channel] *= 1 + tint * share + fine
    flush = linear(look.skin) * np.array([1.06, 0.72, 0.72], np.float32)
    places = [(-0.42, look.eye_v + 0.36, 0.25), (0.42, look.eye_v + 0.36, 0.25), (0.0, look.nose_v, 0.14)]
    for place_u, place_v, radius in places:
        window, p, q = head.near(place_u, place_v, radius)
        head.paint(window, look.blush * dome((p * p + q * q) * (1 / radius**2)), tuple(np.sqrt(flush)))
    for flank in (-1.0, 1.0):
        below = look.eye_v + look.eye_open + 0.035
        head.bump(flank * look.eye_sep * 0.93, below, look.eye_w * 1.1, 0.07, 0.0, dark=look.rings)
    brown = mix(look.skin, (0.35, 0.2, 0.12), 0.6)
    for spot_u, spot_v, radius, strength in look.spots.tolist():
        if strength > 0.02:
            window, p, q = head.near(spot_u, spot_v, radius)
            head.paint(window, strength * dome((p * p + q * q) * (1 / radius**2)), brown)
    edge = look.hairline + 0.02  # the hair shades the skin beside it
    head.dark *= 1 - 0.3 * look.density * ramp(-v, -edge - 0.14, -edge)


def _brows(head: Head) -> None:
    look = head.look
    length = look.eye_w * 1.3
    for flank in (-1.0, 1.0):
        u0, v0 = flank * (look.eye_sep + 0.01), look.eye_v - look.brow_lift
        window, p, q = head.near(u0, v0, length + 0.06)
        p = p * flank
        across = q - look.brow_arch * (np.square(p * (1 / length)) - 0.35) + 0.12 * look.brow_arch + 0.03 * p
        thick = np.maximum(look.brow_thick * (1 - 0.45 * ramp(p, -0.3 * length, length)), 0.6 * head.px)
        hairs = 0.75 + 0.35 * sample("strand", p + q * 0.7, q - p, 70, look.texture)
        alpha = dome(np.square(across / thick)) * soft((length - np.abs(p)) * (0.3 / head.px)) * hairs
        head.paint(window, clip(alpha * look.brow_alpha * 1.3, 0, 1), look.brow_colour)
        head.relief[window] += 0.01 * alpha


def _eye(head: Head, flank: float) -> None:
    """Paints white, iris, pupil, a glint of light, lids and lashes."""
    look, px = head.look, head.px
    window, p, q = head.near(flank * look.eye_sep, look.eye_v, look.eye_w * 1.5)
    p = p * flank
    q = q + look.eye_tilt * p
    half = p * (1 / look.eye_w)
    arc = np.maximum(1 - half * half, 0)
    upper = -look.eye_open * (1 - 0.75 * look.hood) * arc * (1.05 - 0.12 * half)
    upper = upper + look.hood * 0.25 * look.eye_open * np.maximum(half, 0)
    lower = look.eye_open * 0.72 * arc * (1 + 0.15 * half)
    opening = soft(np.minimum(q - upper, lower - q) / px) * (np.abs(half) < 1)
    white = look.sclera * (0.75 + 0.25 * arc)
    blend(head.skin[(slice(None), *window)], opening, np.stack([white, white * 0.96, white * 0.93]))
    radius = 0.078
    r2 = np.square(p - flank * look.gaze * 0.05) + np.square(q + 0.006)
    r = np.sqrt(r2)
    disc = soft((radius - r) / px) * opening
    ring = 0.55 + 0.45 * dome(r2 * (1 / (radius * 1.25) ** 2))
    blend(head.skin[(slice(None), *window)], disc, linear(look.iris)[:, None, None] * ring)
    head.paint(window, soft((0.034 - r) / px) * opening, (0.03, 0.03, 0.03))
    head.dark[window] *= 1 - 0.4 * opening * dome(np.square((q - upper) * (1 / 0.07)))
    side = look.light[0] * 0.03
    glint = np.square(p * flank - side) + np.square(q + 0.03)
    head.paint(window, dome(glint * (1 / max(0.022, px) ** 2)) * opening * 0.9, (1.0, 1.0, 1.0))
    present = soft((1.06 - np.abs(half)) * (look.eye_w / px))
    lash = max(0.012 + 0.016 * look.lash, 0.7 * px)
    line = dome(np.square((q - upper + 0.3 * lash) * (1 / (1.7 * lash)))) * present
    head.paint(window, line * (0.6 + 0.35 * look.lash), (0.08, 0.05, 0.04))
    under = dome(np.square((q - lower - 0.008) * (1 / max(0.022, 1.2 * px)))) * present
    head.dark[window] *= 1 - 0.22 * under
    fold = q - upper + 0.035 + 0.012 * arc
    head.dark[window] *= 1 - (0.25 + 0.3 * look.hood) * dome(np.square(fold * (1 / max(0.022, 1.2 * px)))) * arc


def _mouth(head: Head) -> None:
    """Paints the lips, the line between them, and the teeth if they part."""
    look, px = head.look, head.px
    wide, lip, gap = look.mouth_w, look.lip, look.gap
    window, p, q = head.near(0.0, look.mouth_v, wide * 1.25)
    half = p * (1 / wide)
    h2 = half * half
    q = q + look.smile * 0.07 * h2
    arc = np.maximum(1 - h2, 0)
    present = arc > 0
    bow = arc * (1 - 0.28 * dome(h2 * (1 / 0.05)))
    top, bottom = -lip * 0.85 * bow, gap * arc + lip * 1.25 * arc * (0.6 + 0.4 * arc)
    lips = soft(np.minimum(q - top, bottom - q) / max(px, 0.015)) * present
    tint = np.where(q < gap * 0.5, np.float32(0.82), np.float32(1))
    tint = tint * (1 + 0.12 * sample("fine", p, q * 0.3, 90, look.texture))
    blend(head.skin[(slice(None), *window)], lips * 0.85, linear(look.lip_colour)[:, None, None] * tint)
    if gap > 0.01:
        opening = soft(np.minimum(q, gap * arc - q) / px) * present
        head.paint(window, opening, (0.22, 0.08, 0.08))
        teeth = opening * soft((gap * 0.7 * arc - q) / px) * (h2 < 0.6)
        head.paint(window, teeth * 0.9, (0.86, 0.83, 0.77))
    else:
        line = dome(np.square((q - 0.008 * arc) * (1 / max(0.016, px))))
        head.dark[window] *= 1 - 0.6 * line * soft((1 - np.abs(half)) * (wide / px))
    for flank in (-1.0, 1.0):
        head.bump(flank * wide * 1.03, look.mouth_v - look.smile * 0.07, 0.035, 0.035, -0.008, dark=0.4)


def _beard(head: Head) -> None:
    """Paints beard and moustache as hair on the lower face."""
    look = head.look
    if look.beard < 0.03:
        return
    u, v, chin = np.abs(head.u), head.v, look.beard_low
    low = ramp(v + (0.35 - 1.1 * chin) * u, 0.76, 0.92)
    low = np.maximum(low, ramp(u, 0.42, 0.58) * ramp(v, 0.1, 0.5) * (1 - chin))
    lip = ramp(v, look.nose_v + 0.09, look.nose_v + 0.15) * ramp(-v, -look.mouth_v, 0.02 - look.mouth_v)
    low = np.maximum(low, lip * ramp(-u, -look.mouth_w - 0.08, -look.mouth_w + 0.02))
    across, down = u * (1 / (look.mouth_w * 0.95)), v - look.mouth_v - look.lip * 0.3
    mouth = across * across + np.square(down * (1 / (look.lip * 1.5 + look.gap)))
    low = low * ramp(mouth, 0.8, 1.3)
    hairs = sample("strand", head.u, v * 1.5, 170, look.texture + 31)
    alpha = clip(low * look.beard * (1.1 + 0.35 * hairs), 0, 0.95)
    colour, grain = hair_colour(look, hairs, look.grey * 1.1)
    blend(head.skin, alpha, colour)
    head.relief += (0.03 * alpha) * (1 + 0.5 * grain)


def hair_colour(look: Look, strands: np.ndarray, grey: float) -> tuple[np.ndarray, np.ndarray]:
    """Colour (3, H, W) of hair that greys strand by strand, and the strands."""
    grey = min(max(grey, 0.0), 1.0)
    share = clip(grey + 1.1 * grey * (1 - grey) * strands, 0, 1)
    own, white = linear(look.hair)[:, None, None], linear((0.82, 0.81, 0.80))[:, None, None]
    return (own + (white - own) * share) * (1 + 0.25 * strands), strands
