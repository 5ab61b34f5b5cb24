"""How the faces of a data set are cut from photographs: the crop contract, in preparing and predicting alike."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple, get_args

import numpy as np
from PIL import Image

from lae_jax.faces import Align, Faces, Undetected, align
from lae_jax.faces.images import BadImage
from lae_jax.runtime.errors import InputError

# Of ready crops nobody knows how they were cut.
UNKNOWN = {"align": "none", "detector": "unknown"}


class Photograph(NamedTuple):
    """An upright RGB picture, and the landmarks (5, 2) of its face in pixels where the source knows them."""

    image: Image.Image
    landmarks: np.ndarray | None = None


class Crop(NamedTuple):
    """A face. box (4,), landmarks (5, 2): in pixels of the photograph, None where a centre crop was taken (and box
    also where the landmarks were given); how: 'source' | 'mtcnn' | 'centre'; scale: pixels of the photograph that a
    pixel of the crop spans; faces: how many were found in the photograph, None where nobody looked."""

    image: Image.Image
    box: np.ndarray | None
    landmarks: np.ndarray | None
    how: str
    scale: float
    faces: int | None = None


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Args: align: 'landmarks' (the crops are aligned) or 'none' (the images are crops); size: side of the crops in
    pixels (of ready crops the longest allowed shorter side); margin: around the 112x112 template, share of its side;
    quality: of the JPEG; faces: which of several; undetected: what becomes of an image without a face.
    """

    align: str = "none"
    size: int = 256
    margin: float = 0.125
    quality: int = 95
    faces: str = "largest"
    undetected: str = "reject"

    def __post_init__(self):
        for name, known in (("align", Align), ("faces", Faces), ("undetected", Undetected)):
            if getattr(self, name) not in get_args(known):
                raise InputError(f"{name} {getattr(self, name)!r}: {' or '.join(get_args(known))}")
        if not 16 <= self.size <= 4096:
            raise InputError(f"--size {self.size}: 16 to 4096 pixels")
        if not 1 <= self.quality <= 100:
            raise InputError(f"--quality {self.quality}: 1 to 100")
        if not 0 <= self.margin <= 1:
            raise InputError(f"--margin {self.margin}: 0 to 1, a share of the template's side")

    def contract(self) -> dict:
        """What the pixels of a crop depend on, beside the photograph. A part of every data set and checkpoint."""
        if self.align == "none":
            return dict(UNKNOWN)
        from lae_jax.faces import detect

        return {
            "align": "least-squares similarity of five landmarks",
            "template": f"{align.TEMPLATE_SIDE}x{align.TEMPLATE_SIDE}",
            "size": self.size,
            "margin": self.margin,
            "quality": self.quality,
            "interpolation": "bicubic",
            **detect.contract(),
        }

    @classmethod
    def of_contract(cls, contract: dict, allow_other: bool = False, **choices) -> "Recipe":
        """The recipe that a model's photographs are cut by. Raises InputError where the contract is unknown, and where
        this version cuts otherwise unless that is allowed."""
        if contract == UNKNOWN:
            raise InputError("the model was trained on ready crops, and how they were cut is unknown")
        recipe = cls("landmarks", contract["size"], contract["margin"], contract["quality"], **choices)
        if recipe.contract() != contract and not allow_other:
            raise InputError(
                f"this version cuts faces otherwise than those that the model was trained on"
                f" ({differing(contract, recipe.contract())}): install the versions that it was made with, or say"
                " --allow-other-crop (the errors may be large)"
            )
        return recipe


def differing(there: dict, here: dict) -> str:
    """The fields in which the contract of a model and another one differ, with both values."""
    if UNKNOWN in (there, here):
        known, ready = here if there == UNKNOWN else there, "ready crops, and how they were cut is unknown"
        cut = ", ".join(f"{name} {known[name]}" for name in ("align", "detector", "size", "margin") if name in known)
        return f"{ready}, there; {cut}, here" if there == UNKNOWN else f"{cut}, there; {ready}, here"
    fields = [name for name in {**there, **here} if there.get(name) != here.get(name)]
    return ", ".join(
        f"{name} {there.get(name, 'not told')} there and {here.get(name, 'not told')} here" for name in fields
    )


def how_to_cut_alike(there: dict, here: dict) -> str:
    """What to do about a data set's contract `here` so that it becomes the one of a model."""
    if there == UNKNOWN:
        return "prepare the data from crops that were cut alike, with --align none"
    fields = [name for name in there if there.get(name) != here.get(name)]
    if here != UNKNOWN and {*fields} <= {"size", "margin", "quality"}:
        return f"prepare the data with {' '.join(f'--{name} {there[name]}' for name in fields)}"
    return "prepare the data from photographs as the model's was, with the same versions of lae_jax and mtcnn"


def cut(photographs: Sequence[Photograph], recipe: Recipe) -> list[list[Crop] | BadImage]:
    """The crops of each photograph, or why there are none.

    A crop is the same alone and in any list, except that at most 1 pixel in 1,000 may differ by one grey level.
    Without a face it is one centre crop or the reason, by `recipe.undetected`.
    """
    from lae_jax.faces import detect

    searched = [i for i, photograph in enumerate(photographs) if photograph.landmarks is None]
    found = dict(zip(searched, detect.detect([photographs[i].image for i in searched]), strict=True))
    results: list[list[Crop] | BadImage] = []
    for number, photograph in enumerate(photographs):
        try:
            if number not in found:
                results.append([_aligned(photograph.image, None, photograph.landmarks, "source", recipe)])
                continue
            faces = _chosen(found[number], photograph.image.size, recipe.faces)
            crops = [_aligned(photograph.image, face.box, face.landmarks, "mtcnn", recipe) for face in faces]
            if not crops and recipe.undetected == "reject":
                raise BadImage("no face found")
            crops = crops or [_centre(photograph.image, recipe)]
            results.append([crop._replace(faces=len(found[number])) for crop in crops])
        except BadImage as reason:
            results.append(reason)
    return results


def _aligned(image: Image.Image, box, landmarks: np.ndarray, how: str, recipe: Recipe) -> Crop:
    crop, scale = align.align(image, landmarks, recipe.size, recipe.margin)
    return Crop(crop, box, np.asarray(landmarks, np.float64).reshape(5, 2), how, scale)


def _centre(image: Image.Image, recipe: Recipe) -> Crop:
    side = min(image.size)
    scale = side / recipe.size
    left, top = (image.width - side) / 2, (image.height - side) / 2
    matrix = np.array([[1 / scale, 0, -left / scale], [0, 1 / scale, -top / scale]])
    matrix[:, 2] += (1 / scale - 1) / 2
    return Crop(align.warp(image, matrix, recipe.size), None, None, "centre", scale)


def _chosen(faces: list, size: tuple[int, int], which: str) -> list:
    if which == "all" or not faces:
        return faces
    if which == "largest":
        return faces[:1]
    middle = (np.array(size) - 1) / 2
    return [min(faces, key=lambda face: np.linalg.norm(face.box.reshape(2, 2).mean(0) - middle))]
