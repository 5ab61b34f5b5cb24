"""The answers of the API, as /docs and openapi.json describe them."""

from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, Field

from lae_jax.predict import answers, photographs


class Interval(BaseModel):
    """An interval of ages, in years."""

    level: float = Field(description="share of the distribution between lower and upper")
    lower: float
    upper: float


class Conformal(BaseModel):
    """An interval of ages, in years, that was fitted for each age group."""

    level: float = Field(
        description="share of each age group that the intervals were fitted to hold; not a probability for this face"
    )
    lower: float
    upper: float


class Levels(NamedTuple):
    """Levels of the intervals of the answers.

    Attributes:
      interval: Level of the intervals of the distributions; None: the model is not calibrated, so there are none.
      conformal: Level of the conformal intervals; None: the model has none.
    """

    interval: float | None
    conformal: float | None


class Face(BaseModel):
    """A face and its age."""

    face: int = Field(description="number of the face, from 1, the largest first")
    age: float = Field(description="years, the mean of the distribution before calibration")
    interval: Interval | None = Field(None, description="years; only if the run is calibrated")
    conformal: Conformal | None = Field(None, description="years; only if the run has conformal intervals")
    box: list[float] | None = Field(
        None, min_length=4, max_length=4, description="left, top, right, bottom, pixels of the upright photograph"
    )
    landmarks: list[Annotated[list[float], Field(min_length=2, max_length=2)]] | None = Field(
        None,
        min_length=5,
        max_length=5,
        description="x, y of eye, eye, nose, mouth corner, mouth corner, pixels of the upright photograph",
    )
    cut_by: str | None = Field(None, description="how the face was found; absent for an image that is a crop")
    distribution: list[float] = Field(min_length=101, max_length=101, description="probabilities of the ages 0 to 100")


class Image(BaseModel):
    """An image and its faces."""

    name: str = Field(description="name of the file, as it was sent")
    faces: list[Face]
    reason: str | None = Field(None, description="why there is no age")
    left_out: int | None = Field(
        None,
        ge=1,
        description=f"number of further faces, which have no age: the {photographs.MAX_FACES} largest have one",
    )
    size: list[int] | None = Field(
        None, min_length=2, max_length=2, description="width and height of the upright photograph, in pixels"
    )
    orientation: int | None = Field(
        None, ge=2, le=8, description="EXIF orientation by which it was turned, if not stored upright"
    )


class Prediction(BaseModel):
    """The ages of the faces in the images of a request."""

    model: str
    images: list[Image] = Field(min_length=1, description="in the order in which they were sent")


class Refusal(BaseModel):
    """Why a request was refused."""

    error: str = Field(description="a sentence: what is wrong, and what to do")
    images: list[Image] | None = Field(
        None, min_length=1, description="each image with its reason, if no image gave an age"
    )


class About(BaseModel):
    """The model and the limits of the server."""

    model: str
    note: str | None = Field(None, description="data and expected error of the package's own model; absent for others")
    card: str = Field(description="the model card, Markdown")
    doubts: list[str] = Field([], description="warnings of the model's evaluations")
    crop: dict[str, Any] = Field(description="the crop contract: how the faces of the training data were cut")
    aligned: bool = Field(description="true: images must be crops cut by the contract; false: images are photographs")
    input: dict[str, int] = Field(description="sides in pixels of the model's input, and of a crop before it (resize)")
    temperature: float = Field(description="temperature of the distributions; 1: not calibrated")
    interval: float | None = Field(None, description="level of the intervals; absent if there are none")
    conformal: float | None = Field(None, description="level of the conformal intervals; absent if there are none")
    versions: dict[str, str]
    limits: dict[str, float]


class Health(BaseModel):
    """Whether the server is running and ready."""

    status: str
    ready: bool = Field(description="whether the model is warm")


def body(files: int) -> dict[str, Any]:
    """Returns the description of the body of /v1/predict.

    Args:
      files: Most images in a request.
    """
    images = {
        "type": "array",
        "items": {"type": "string", "format": "binary"},
        "minItems": 1,
        "maxItems": files,
        "description": "one file per image; any other name than images does too; a field that is not a file is refused",
    }
    form = {
        "type": "object",
        "required": ["images"],
        "properties": {"images": images},
        "additionalProperties": False,
    }
    return {"required": True, "content": {"multipart/form-data": {"schema": form}}}


def image(one: photographs.Found, rows: list[answers.Row], levels: Levels) -> Image:
    """Returns the answer for an image.

    Args:
      one: The image and its faces.
      rows: Its rows.
      levels: Levels of the intervals.
    """
    shape = {"size": one.size, "orientation": None if one.orientation == 1 else one.orientation}
    if not one.inputs:
        return Image(name=one.image.name, faces=[], reason=one.reason, **shape)
    cut, (level, sure) = one.crops or [None] * len(one.inputs), levels
    return Image(
        name=one.image.name,
        left_out=one.left_out or None,
        **shape,
        faces=[
            Face(
                face=row.face,
                age=row.age,
                interval=None if level is None else Interval(level=level, lower=row.lower, upper=row.upper),
                conformal=None
                if sure is None
                else Conformal(level=sure, lower=row.conformal_lower, upper=row.conformal_upper),
                box=row.box,
                landmarks=None if crop is None or crop.landmarks is None else crop.landmarks.tolist(),
                cut_by=row.cut_by or None,
                distribution=row.distribution,
            )
            for row, crop in zip((row for row in rows if row.age is not None), cut, strict=True)
        ],
    )


def nothing(images: list[Image]) -> str:
    """Returns the error for a request none of whose images gave an age: the reasons of the first three."""
    told = [f"{image.name}: {image.reason}" for image in images[:3]]
    more = f" and {len(images) - 3} more" * (len(images) > 3)
    return f"no age was estimated ({'; '.join(told)}{more})"
