"""Crops of faces from photographs, and the crop contract that `prepare` and `predict` share."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple, get_args

import numpy as np
from PIL import Image

from lae_jax.faces import Align, Faces, Undetected, align, search
from lae_jax.faces.images import BadImage
from lae_jax.runtime import console
from lae_jax.runtime.errors import InputError

# The contract of ready-made crops: how they were cut is unknown.
UNKNOWN = {"align": "none", "detector": "unknown"}
NO_FACE = "no face found"  # the reason why a photograph has no crop


class Photograph(NamedTuple):
    """A decoded photograph.

    Attributes:
      image: Upright RGB picture.
      landmarks: (5, 2) of its face in pixels of the upright photograph, if the source has them.
      reduced: The photograph's pixels that a pixel of `image` spans on each side (`images.Decoded`).
      turned: Degrees clockwise by which its EXIF orientation turned it.
    """

    image: Image.Image
    landmarks: np.ndarray | None = None
    reduced: int = 1
    turned: int = 0

    def inside(self, points: np.ndarray) -> np.ndarray:
        """Points (..., 2) of the photograph -> points of `image`."""
        return (np.asarray(points, np.float64) + 0.5) / self.reduced - 0.5

    def outside(self, points: np.ndarray) -> np.ndarray:
        """Points (..., 2) of `image` -> points of the photograph."""
        return (np.asarray(points, np.float64) + 0.5) * self.reduced - 0.5


class Crop(NamedTuple):
    """A crop of a face.

    Attributes:
      image: The crop.
      box: (4,) in pixels of the photograph; None for a centre crop or if the source gave the landmarks.
      landmarks: (5, 2) in pixels of the photograph; None for a centre crop.
      how: Where the landmarks come from: 'source', 'mtcnn' or 'centre'.
      scale: Number of the photograph's pixels that a pixel of the crop spans.
      faces: Number of faces found in the photograph; None without detection.
    """

    image: Image.Image
    box: np.ndarray | None
    landmarks: np.ndarray | None
    how: str
    scale: float
    faces: int | None = None


@dataclasses.dataclass
class Counts:
    """Photographs that were searched for faces, counted by what was found.

    Attributes:
      without_face: No face was found.
      several_faces: Several faces were found.
      turned_faces: A face that was cut is turned by more than 45 degrees in the plane.
    """

    without_face: int = 0
    several_faces: int = 0
    turned_faces: int = 0

    def add(self, crops: Sequence[Crop], reason: str) -> None:
        """Counts a photograph, with its crops or the reason why it has none."""
        self.without_face += reason == NO_FACE or any(crop.how == "centre" for crop in crops)
        self.several_faces += any((crop.faces or 0) > 1 for crop in crops)
        self.turned_faces += any(crop.how == "mtcnn" and align.is_turned(crop.landmarks) for crop in crops)

    def told(self) -> str:
        """Returns a sentence about the numbers that are not 0; '' if all are."""
        kinds = {
            "without a face": self.without_face,
            "with several faces": self.several_faces,
            "with a face turned by more than 45 degrees": self.turned_faces,
        }
        told = [f"{console.counted(count, 'photograph')} {kind}" for kind, count in kinds.items() if count]
        return ", ".join(told)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How faces are cut from photographs.

    Attributes:
      align: 'landmarks' (crops are aligned) or 'none' (the images are ready-made crops).
      size: Side of the crops in pixels; of ready-made crops, the largest shorter side allowed.
      margin: Space around the 112x112 template on each side, a share of the template's side.
      quality: Quality of the JPEG.
      faces: Which of several faces is cut: 'largest', 'centre' or 'all'.
      undetected: What happens to an image without a face: 'reject', or 'centre' (a centre crop).
      smallest_face: Side in pixels of the smallest face that is searched for in a photograph; None: a twentieth of the
        photograph's longer side.
      rotate: Whether a photograph without a sure face is searched again in the three other quarter turns.
    """

    align: str = "none"
    size: int = 256
    margin: float = 0.125
    quality: int = 95
    faces: str = "largest"
    undetected: str = "reject"
    smallest_face: int | None = None
    rotate: bool = False

    def __post_init__(self):
        for name, known in (("align", Align), ("faces", Faces), ("undetected", Undetected)):
            if getattr(self, name) not in get_args(known):
                raise InputError(f"{name} must be {' or '.join(get_args(known))}, got {getattr(self, name)!r}")
        if not 16 <= self.size <= 4096:
            raise InputError(f"--size must be 16 to 4096 pixels, got {self.size}")
        if not 1 <= self.quality <= 100:
            raise InputError(f"--quality must be 1 to 100, got {self.quality}")
        if not 0 <= self.margin <= 1:
            raise InputError(f"--margin must be 0 to 1, a share of the template's side, got {self.margin}")
        search.check(self.align == "landmarks", self.smallest_face, self.rotate)

    def contract(self) -> dict:
        """The crop contract: all that a crop's pixels depend on, except the photograph and the choice of its faces.

        Every data set and checkpoint holds it. `smallest_face` and `rotate` are such a choice: they do not change
        how a face is cut.
        """
        if self.align == "none":
            return dict(UNKNOWN)
        from lae_jax.faces import detect

        return {
            "align": "least-squares similarity of five landmarks",
            "template": f"{align.TEMPLATE_SIDE}x{align.TEMPLATE_SIDE}",
            "size": self.size,
            "margin": self.margin,
            "quality": self.quality,
            "interpolation": align.INTERPOLATION,
            **detect.contract(),
        }

    @classmethod
    def of_contract(cls, contract: dict, allow_other: bool = False, **choices) -> "Recipe":
        """The recipe for photographs of a model.

        Args:
          contract: The model's crop contract.
          allow_other: Accept a contract that this version cannot reproduce.
          **choices: Further fields of the recipe.

        Raises:
          InputError: The contract is unknown, or this version cuts differently and `allow_other` is false.
        """
        if contract == UNKNOWN:
            raise InputError("the model was trained on ready-made crops, and how they were cut is unknown")
        recipe = cls("landmarks", contract["size"], contract["margin"], contract["quality"], **choices)
        if recipe.contract() != contract and not allow_other:
            raise InputError(
                f"this version cuts faces differently from the model's training data"
                f" ({differing(contract, recipe.contract())}): install the versions that the model was trained with, or"
                " add --allow-other-crop (the errors may be large)"
            )
        return recipe


def differing(there: dict, here: dict) -> str:
    """The fields in which a model's contract `there` and another contract `here` differ, with both values."""
    if UNKNOWN in (there, here):
        known, ready = here if there == UNKNOWN else there, "ready-made crops, cut in an unknown way"
        cut = ", ".join(f"{name} {known[name]}" for name in ("align", "detector", "size", "margin") if name in known)
        return f"there: {ready}; here: {cut}" if there == UNKNOWN else f"there: {cut}; here: {ready}"
    fields = [name for name in {**there, **here} if there.get(name) != here.get(name)]
    return ", ".join(
        f"{name} {there.get(name, 'not stated')} there and {here.get(name, 'not stated')} here" for name in fields
    )


def how_to_cut_alike(there: dict, here: dict) -> str:
    """How to prepare data with the contract `here` again, so that it has the contract `there` of a model."""
    if there == UNKNOWN:
        return "prepare the data from crops that were cut in the same way, with --align none"
    fields = [name for name in there if there.get(name) != here.get(name)]
    if here != UNKNOWN and {*fields} <= {"size", "margin", "quality"}:
        return f"prepare the data with {' '.join(f'--{name} {there[name]}' for name in fields)}"
    return "prepare the data from photographs, like the model's data, with the same versions of lae_jax and mtcnn"


def cut(photographs: Sequence[Photograph], recipe: Recipe, most: int | None = None) -> list[list[Crop] | BadImage]:
    """Returns the crops of each photograph, or the reason why there are none.

    Landmarks from the source are checked (`align.check`). A crop does not depend on the other photographs, except that
    at most 1 pixel in 1,000 may differ by one grey level. For a photograph without a face, `recipe.undetected` decides
    between one centre crop and the reason.

    Args:
      photographs: The photographs.
      recipe: How faces are cut.
      most: The number of faces of a photograph that are cut, the largest first; None: all.
    """
    from lae_jax.faces import detect

    searched = [i for i, photograph in enumerate(photographs) if photograph.landmarks is None]
    smallest = [recipe.smallest_face and recipe.smallest_face / photographs[i].reduced for i in searched]
    faces = detect.detect([photographs[i].image for i in searched], smallest, recipe.rotate)
    found = dict(zip(searched, faces, strict=True))
    results: list[list[Crop] | BadImage] = []
    for number, photograph in enumerate(photographs):
        try:
            if number not in found:
                width, height = (photograph.reduced * side for side in photograph.image.size)
                align.check(photograph.landmarks, (width, height), photograph.turned)
                landmarks = photograph.inside(photograph.landmarks)
                results.append([_aligned(photograph, None, landmarks, "source", recipe)])
                continue
            faces = _chosen(found[number], photograph.image.size, recipe.faces)[:most]
            crops = [_aligned(photograph, face.box, face.landmarks, "mtcnn", recipe) for face in faces]
            if not crops and recipe.undetected == "reject":
                raise BadImage(NO_FACE)
            crops = crops or [_centre(photograph, recipe)]
            results.append([crop._replace(faces=len(found[number])) for crop in crops])
        except BadImage as reason:
            results.append(reason)
    return results


def _aligned(photograph: Photograph, box, landmarks: np.ndarray, how: str, recipe: Recipe) -> Crop:
    """The crop of a face whose box (4,) and landmarks (5, 2) are in pixels of `photograph.image`."""
    crop, scale = align.align(photograph.image, landmarks, recipe.size, recipe.margin)
    box = None if box is None else photograph.outside(box)
    return Crop(crop, box, photograph.outside(landmarks).reshape(5, 2), how, scale * photograph.reduced)


def _centre(photograph: Photograph, recipe: Recipe) -> Crop:
    image = photograph.image
    side = min(image.size)
    scale = side / recipe.size
    left, top = (image.width - side) / 2, (image.height - side) / 2
    matrix = np.array([[1 / scale, 0, -left / scale], [0, 1 / scale, -top / scale]])
    matrix[:, 2] += (1 / scale - 1) / 2
    return Crop(align.warp(image, matrix, recipe.size), None, None, "centre", scale * photograph.reduced)


def _chosen(faces: list, size: tuple[int, int], which: str) -> list:
    if which == "all" or not faces:
        return faces
    if which == "largest":
        return faces[:1]
    middle = (np.array(size) - 1) / 2
    return [min(faces, key=lambda face: np.linalg.norm(face.box.reshape(2, 2).mean(0) - middle))]
