"""What the API answers, as /docs and openapi.json describe it."""

from typing import Any

from pydantic import BaseModel, Field

from lae_jax.predict import answers, photographs


class Interval(BaseModel):
    level: float = Field(description="share of the distribution between lower and upper")
    lower: float
    upper: float


class Face(BaseModel):
    face: int = Field(description="from 1, the largest first")
    age: float = Field(description="years, the mean of the distribution before calibration")
    interval: Interval | None = Field(None, description="years; only of a calibrated run")
    box: list[float] | None = Field(None, description="left, top, right, bottom, pixels of the upright photograph")
    landmarks: list[list[float]] | None = Field(
        None, description="x, y of eye, eye, nose, mouth corner, mouth corner, pixels of the upright photograph"
    )
    cut_by: str | None = Field(None, description="who found the face; absent for an image that is a crop")
    distribution: list[float] = Field(description="probabilities of the ages 0 to 100")


class Image(BaseModel):
    name: str = Field(description="of the file, as it was sent")
    faces: list[Face]
    reason: str | None = Field(None, description="why there is no age")


class Prediction(BaseModel):
    model: str
    images: list[Image] = Field(description="in the order in which they were sent")


class Refusal(BaseModel):
    error: str = Field(description="a sentence: what is wrong, and what to do")
    images: list[Image] | None = Field(None, description="where no image gave an age: each with its reason")


class About(BaseModel):
    model: str
    card: str = Field(description="the model card, Markdown")
    doubts: list[str] = Field([], description="what the model's evaluations warn of")
    crop: dict[str, Any] = Field(description="the crop contract: how the faces of its training were cut")
    aligned: bool = Field(description="whether images must be crops that were cut so; else they are photographs")
    input: dict[str, int] = Field(description="pixels of the model's input, and what a crop is resized to first")
    temperature: float = Field(description="of the distributions; 1: not calibrated")
    interval: float | None = Field(None, description="level of the intervals; absent where there are none")
    versions: dict[str, str]
    limits: dict[str, float]


class Health(BaseModel):
    status: str
    ready: bool = Field(description="whether the model is warm")


def image(one: photographs.Found, rows: list[answers.Row], level: float | None) -> Image:
    """An image's answer. Args: level: of the intervals; None: they are not told."""
    if not one.inputs:
        return Image(name=one.image.name, faces=[], reason=one.reason)
    cut = one.crops or [None] * len(rows)
    return Image(
        name=one.image.name,
        faces=[
            Face(
                face=row.face,
                age=row.age,
                interval=None if level is None else Interval(level=level, lower=row.lower, upper=row.upper),
                box=row.box,
                landmarks=None if crop is None or crop.landmarks is None else crop.landmarks.tolist(),
                cut_by=row.cut_by or None,
                distribution=row.distribution,
            )
            for row, crop in zip(rows, cut, strict=True)
        ],
    )


def nothing(images: list[Image]) -> str:
    """The sentence for images none of which gave an age."""
    told = [f"{image.name}: {image.reason}" for image in images[:3]]
    more = f" and {len(images) - 3} more" * (len(images) > 3)
    return f"no age was estimated ({'; '.join(told)}{more})"
