"""Looks of drawn faces: from an identity and an age to the parameters of a picture.

An identity keeps its face shape, colours and hair. Age shows in a dozen cues (proportions, wrinkles, grey hair,
hairline, skin, sagging ...). Each cue is early or late by a different amount for each person and each picture, so a
picture shows its age only roughly. Pose, light, expression, camera and occluders differ from picture to picture.
"""

import math

import numpy as np

from lae_jax.faces.drawing.geometry import Colour, Look, mix

_TRAITS = (
    "width jaw chin depth cheek eye_sep eye_size eye_tilt eye_open brow_thick brow_lift brow_arch nose_w nose_len "
    "nose_out nose_bridge mouth_w mouth_v lip ear neck tint blush hairline volume smile folds pace"
).split()
_CUES = (
    "skull face eyes nose fold lines crow bag drop tone spots grey hairline thinning lids lips hollow brow"
).split()
_SKINS = ((0.97, 0.84, 0.76), (0.93, 0.76, 0.64), (0.84, 0.63, 0.49), (0.67, 0.46, 0.33), (0.46, 0.30, 0.22))
_HAIRS = (
    (0.09, 0.08, 0.08),
    (0.20, 0.14, 0.10),
    (0.36, 0.24, 0.16),
    (0.52, 0.38, 0.24),
    (0.80, 0.64, 0.40),
    (0.60, 0.30, 0.15),
)
_IRISES = ((0.24, 0.13, 0.07), (0.38, 0.24, 0.12), (0.36, 0.40, 0.22), (0.33, 0.48, 0.62), (0.42, 0.50, 0.54))


def look_of(identity: int, age: float, seed: int, index: int) -> Look:
    """The look of one picture, from the age and the random draws of the person and of the picture."""
    person = np.random.default_rng([seed, identity, 0])
    picture = np.random.default_rng([seed, identity, index, 1])
    t = dict(zip(_TRAITS, person.normal(size=len(_TRAITS)).clip(-2.2, 2.2).tolist(), strict=True))
    own, here = (rng.normal(size=len(_CUES)).clip(-2.2, 2.2).tolist() for rng in (person, picture))
    shown = _ages_shown(age, t["pace"], own, here)
    male = float(person.random() < 0.5)
    t["complexion"], t["hair_colour"], t["eye_colour"] = person.random(3).tolist()
    mood = picture.normal(size=4).clip(-2, 2).tolist()
    fields = _pose(picture)
    fields |= _shape(shown, t, male)
    fields |= _features(shown, t, male, mood)
    fields |= _skin_of(shown, t, person)
    fields |= _hair_of(shown, t, male, fields["skin"], person, picture)
    fields |= _scene(picture, person)
    return Look(**fields)


def _ages_shown(age: float, pace: float, own: list[float], here: list[float]) -> dict[str, float]:
    """The age that each cue shows: off by about half a year at birth and three years at 70, partly for life."""
    spread = 0.4 + 0.045 * age
    real = age * (1 + 0.05 * pace)
    return {cue: max(0.0, real + spread * (0.75 * a + 0.5 * b)) for cue, a, b in zip(_CUES, own, here, strict=True)}


def _pose(picture: np.random.Generator) -> dict:
    yaw, pitch, roll, scale, x, y = picture.normal(size=6).clip(-2.2, 2.2).tolist()
    return {
        "yaw": math.radians(11) * yaw,
        "pitch": math.radians(6) * pitch,
        "roll": math.radians(5) * roll,
        "scale": 0.84 * (1 + 0.035 * scale),
        "shift": (0.03 * x - 0.10 * math.sin(math.radians(11) * yaw), 0.05 + 0.03 * y),
    }


def _shape(shown: dict[str, float], t: dict[str, float], male: float) -> dict:
    """Skull, jaw, neck and ears: a child's head is wide and round above a small jaw; an old lower face sags."""
    child, small = _young(shown["skull"]), _young(shown["face"], 22.0)
    sag = _rise(shown["drop"], 35, 80)
    grown = (0.0, 0.42, 0.61, 0.70, 0.71, 0.67, 0.57, 0.44, 0.28, 0.0)
    baby = (0.0, 0.50, 0.73, 0.86, 0.87, 0.85, 0.73, 0.54, 0.30, 0.0)
    wide = 1 + 0.035 * t["width"]
    jaw = 0.025 * t["jaw"] + 0.03 * (male - 0.5) * (1 - small) + 0.045 * sag
    chin = 0.02 * t["chin"] + 0.05 * (male - 0.5) * (1 - small)
    extra = (0, 0, 0, 0, 0, 0.01 * t["cheek"], jaw, jaw + chin * 0.5 + 0.02 * sag, chin, 0)
    mixes = (child, child, child, child, child, small, small, small, small, small)
    outline = tuple((g + (b - g) * m) * wide + e for g, b, m, e in zip(grown, baby, mixes, extra, strict=True))
    return {
        "outline": outline,
        "depth": 0.86 + 0.03 * t["depth"],
        "neck": 0.40 - 0.10 * child + 0.05 * (male - 0.5) * 2 * (1 - child) + 0.015 * t["neck"],
        "ear": 0.19 + 0.015 * t["ear"] + 0.055 * _rise(shown["nose"], 30, 85),
        "cheek": 0.6 + 0.2 * t["cheek"] + 0.7 * small - 0.35 * _rise(shown["hollow"], 45, 85),
        "hollow": min(1.2, max(0.0, _rise(shown["hollow"], 40, 85, 1.2) + 0.15 * t["cheek"] * (1 - small))),
    }


def _features(shown: dict[str, float], t: dict[str, float], male: float, mood: list[float]) -> dict:
    """Eyes, brows, nose and mouth: their places, sizes and expression."""
    child, small = _young(shown["skull"]), _young(shown["face"], 22.0)
    eyes, nose = _young(shown["eyes"], 24.0), _young(shown["nose"], 22.0)
    old_nose, old_lips = _rise(shown["nose"], 30, 85), _rise(shown["lips"], 25, 80)
    hood = min(0.8, max(0.0, 0.75 * _rise(shown["lids"], 30, 85, 1.1) + 0.08 * t["eye_open"]))
    smile, eye_v = max(-0.5, 0.45 + 0.7 * mood[0]), 0.03 + 0.21 * child
    gap = max(0.0, 0.05 * mood[1] + 0.035 * smile - 0.035)
    brow = 0.05 * (1 + 0.2 * t["brow_thick"]) * (0.85 + 0.3 * male) * (1 - 0.45 * eyes)
    return {
        "eye_v": eye_v,
        "eye_sep": 0.295 + 0.014 * t["eye_sep"] + 0.025 * child,
        "eye_w": 0.155 * (1 + 0.05 * t["eye_size"]) + 0.034 * eyes,
        "eye_open": (0.064 + 0.006 * t["eye_size"] + 0.036 * eyes) * (0.1 if mood[2] < -1.9 else 1 + 0.09 * mood[2]),
        "eye_tilt": 0.05 + 0.05 * t["eye_tilt"],
        "hood": hood,
        "lash": max(0.0, 0.55 - 0.45 * male + 0.1 * t["eye_open"]) * (1 - 0.4 * _rise(shown["lids"], 40, 85)),
        "gaze": 0.4 * mood[3],
        "sclera": 0.80 - 0.13 * _rise(shown["tone"], 20, 85),
        "brow_lift": 0.17 + 0.014 * t["brow_lift"] + 0.012 * mood[3] + 0.03 * eyes - 0.02 * male,
        "brow_thick": brow * (1 - 0.2 * _rise(shown["brow"], 50, 85)),
        "brow_arch": 0.06 + 0.02 * t["brow_arch"] - 0.02 * male,
        "nose_v": 0.40 + 0.018 * t["nose_len"] + 0.075 * nose + 0.05 * old_nose,
        "nose_w": 0.135 * (1 + 0.09 * t["nose_w"]) + 0.01 * male - 0.02 * nose + 0.025 * old_nose,
        "nose_out": 0.165 * (1 + 0.10 * t["nose_out"]) - 0.075 * nose + 0.02 * old_nose,
        "nose_bridge": 0.5 * t["nose_bridge"] - 0.8 * nose,
        "mouth_v": 0.665 + 0.012 * t["mouth_v"] + 0.03 * small + 0.01 * old_nose,
        "mouth_w": (0.235 + 0.016 * t["mouth_w"] - 0.075 * small) * (1 + 0.09 * max(smile, 0)),
        "lip": max(0.02, (0.066 + 0.010 * t["lip"] - 0.008 * male - 0.010 * small) * (1 - 0.55 * old_lips)),
        "smile": smile,
        "gap": min(gap, 0.13),
        "creases": _creases(shown, t, smile),
    }


def _creases(shown: dict[str, float], t: dict[str, float], smile: float) -> dict[str, float]:
    """Depth of each kind of wrinkle; a smile deepens some of them at any age."""
    more = 1 + 0.2 * t["folds"]
    grin = max(smile, 0.0)
    return {
        "forehead": more * _rise(shown["lines"], 24, 75, 1.1),
        "frown": more * 0.8 * _rise(shown["lines"], 28, 75),
        "crow": more * (0.95 * _rise(shown["crow"], 24, 72) + 0.18 * grin * _rise(shown["crow"], 10, 40)),
        "fold": more * (0.10 + 0.95 * _rise(shown["fold"], 14, 75) + 0.18 * grin),
        "bag": more * (0.06 + 0.95 * _rise(shown["bag"], 22, 78)),
        "drop": more * _rise(shown["drop"], 34, 80),
        "cheek": more * 1.1 * _rise(shown["hollow"], 48, 85),
        "lips": more * 1.1 * _rise(shown["lips"], 48, 85),
    }


def _skin_of(shown: dict[str, float], t: dict[str, float], person: np.random.Generator) -> dict:
    """Skin pales, yellows and grows uneven; spots appear one after the other, at fixed places of a person."""
    base = np.array(_between(_SKINS, t["complexion"] ** 1.4)) * (1 + 0.015 * t["tint"] * np.array([1.0, 0.0, -1.5]))
    tone = _rise(shown["tone"], 12, 85)
    baby = _young(shown["tone"], 14)
    grey = base.mean()
    skin = grey + (base - grey) * (1 - 0.18 * tone + 0.05 * baby)
    skin = skin * (1 - 0.05 * tone * np.array([1.0, 0.9, 1.6])) + 0.01 * baby
    places = person.uniform(-1, 1, (26, 4))
    u, v = 0.66 * places[:, 0], np.where(np.arange(26) < 15, -0.25 + 0.4 * places[:, 1], 0.45 + 0.35 * places[:, 1])
    onset = 44 + 30 * np.abs(places[:, 3])
    strength = np.clip((shown["spots"] - onset) / 22, 0, 1) * 0.75
    lips = np.clip(skin * [0.90, 0.58, 0.60] + [0.02, -0.02, 0.0], 0, 1)
    pale = 0.45 * _rise(shown["lips"], 20, 85)
    return {
        "skin": tuple(np.clip(skin, 0.05, 1).tolist()),
        "lip_colour": tuple((lips + (skin * 0.85 - lips) * pale).tolist()),
        "iris": _IRISES[int(t["eye_colour"] * (5 if t["complexion"] < 0.5 else 2))],
        "blush": max(0.0, 0.20 + 0.12 * t["blush"] + 0.40 * _young(shown["tone"], 18) - 0.12 * tone),
        "blotch": 0.10 + 0.75 * _rise(shown["spots"], 18, 85),
        "shine": 0.05,
        "rings": 0.05 + 0.25 * _rise(shown["bag"], 16, 80),
        "spots": np.stack([u, v, 0.035 + 0.025 * np.abs(places[:, 2]), strength], 1),
        "crease_noise": person.uniform(-1, 1, 40),
        "texture": int(person.integers(1 << 16)),
    }


def _hair_of(shown, t, male: float, skin, person: np.random.Generator, picture: np.random.Generator) -> dict:
    """A baby's down, then full hair, then grey, receding or thin hair by the person's draws; brows and beard."""
    style, lot, bearded, curly, part, fringe, loss = person.random(7).tolist()
    today, stubble = picture.random(2).tolist()
    dark = sum(skin) / 3 < 0.6
    hair = _HAIRS[0] if dark else _HAIRS[min(int(t["hair_colour"] * 6), 5)]
    down, crown = _young(shown["thinning"], 6), _young(shown["thinning"], 3.5)
    hair = mix(hair, (0.62, 0.50, 0.36), 0.0 if dark else 0.45 * _young(shown["grey"], 14))
    grey = min(1.0, _rise(shown["grey"], 28 + 14 * lot, 82 + 8 * lot, 1.2))
    bald = (1.0 if male and loss < 0.6 else 0.25) * _rise(shown["hairline"], 20 + 10 * lot, 78)
    thin = (0.65 if male else 0.5) * _rise(shown["thinning"], 38, 90)
    volume = 0.09 + 0.02 * t["volume"] + 0.05 * (1 - male) + (0.07 if curly > 0.8 else 0)
    short = style < 0.25 + 0.5 * _rise(shown["grey"], 45, 80)  # more women wear short hair with age
    length = 0.0 if male or short else 1 - _young(shown["thinning"], 8)
    beard = 0.0
    if male:
        grown = _rise(shown["brow"], 14, 24)
        beard = min(grown, 1.0) * (0.42 + 0.43 * today if bearded > 0.72 else 0.22 * stubble)
    brow = mix(hair, (0.10, 0.08, 0.07), 0.35)
    return {
        "hair": hair,
        "grey": grey,
        "hairline": -0.57 + 0.02 * t["hairline"] - 0.10 * down - 0.42 * bald,
        "temple": 0.03 + 0.20 * min(bald * 1.6, 1.0),
        "volume": max(0.02, volume * (1 - 0.75 * down) * (1 - 0.6 * min(bald, 1)) * (1 - 0.3 * thin)),
        "density": min(1.0, max(0.0, 1 - 0.6 * down - 0.28 * crown - thin - 0.35 * bald)),
        "side": 1.5 if length > 0.5 else 0.05 + 0.18 * male - 0.25 * down,
        "back": 0.9 + 0.6 * length if length > 0.5 else -1.0,
        "part": 2 * part - 1,
        "curl": curly if curly > 0.8 else 0.25 * curly,
        "fringe": 0.26 * fringe * (fringe > 0.6) * (1 - down) * (1 - min(bald * 2, 1)),
        "beard": beard,
        "beard_low": float(part > 0.75),
        "brow_alpha": (0.9 - 0.55 * _young(shown["brow"], 12)) * (1 - 0.35 * _rise(shown["brow"], 45, 90)),
        "brow_colour": mix(brow, (0.72, 0.71, 0.70), 0.75 * max(0.0, grey - 0.25)),
    }


def _scene(picture: np.random.Generator, person: np.random.Generator) -> dict:
    """Light, backdrop, clothes, glasses, hat, occluder and camera."""
    wearer = person.random() < 0.3
    lx, ly, warm, level, softness = picture.normal(size=5).clip(-2.2, 2.2).tolist()
    chance = picture.random(6).tolist()
    colours = picture.random((4, 3)) * 0.8 + 0.1
    colours += np.array([[0.6], [0.6], [0.7], [0.35]]) * (colours.mean(1, keepdims=True) - colours)
    direction = np.array([0.45 * lx, -0.35 - 0.25 * ly, 0.85])
    direction /= np.sqrt(np.square(direction).sum())
    glasses = 0.0
    if chance[0] < (0.7 if wearer else 0.04):
        glasses = 0.9 if chance[1] < 0.05 else 0.02
    occluder = ()
    if chance[2] < 0.05:
        angle, reach = 2 * math.pi * chance[3], picture.uniform(0.75, 1.0)
        size = picture.uniform(0.22, 0.42, 2).tolist()
        occluder = (reach * math.cos(angle), reach * math.sin(angle), *size, *colours[2].tolist())
    return {
        "light": tuple(direction.tolist()),
        "light_colour": (0.90 + 0.03 * warm, 0.88, 0.85 - 0.05 * warm),
        "ambient": 0.34 + 0.05 * softness,
        "backdrop": (tuple(colours[0].tolist()), tuple((0.5 * colours[0] + 0.5 * colours[1]).tolist())),
        "clothes": tuple(colours[3].tolist()),
        "glasses": glasses,
        "hat": chance[4] < 0.03,
        "occluder": occluder,
        "exposure": 2 ** (0.22 * level),
        "blur": max(0.0, float(picture.normal(0.1, 0.35))),
        "noise": float(picture.uniform(0, 5)),
        "quality": int(picture.integers(45, 96)) if chance[5] < 0.6 else 0,
    }


def _rise(age: float, start: float, end: float, power: float = 1.0) -> float:
    """0 up to `start`, 1 at `end`, linear beyond it and capped at 1.5, before the power."""
    return min(max((age - start) / (end - start), 0.0), 1.5) ** power


def _young(age: float, until: float = 20.0, power: float = 1.15) -> float:
    """1 at birth, falling to 0 at `until`."""
    return max(0.0, 1 - age / until) ** power


def _between(anchors, place: float) -> Colour:
    """The colour at `place`, 0..1, between neighbours of a list."""
    place = min(max(place, 0.0), 1.0) * (len(anchors) - 1)
    low = min(int(place), len(anchors) - 2)
    return tuple(a + (b - a) * (place - low) for a, b in zip(anchors[low], anchors[low + 1], strict=True))
