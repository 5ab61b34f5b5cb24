"""Drawings: photographs with a box and an age at each face."""

import pathlib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from lae_jax.faces import images
from lae_jax.predict.photographs import Named

if TYPE_CHECKING:
    from lae_jax.predict.answers import Row

_COLOUR = (33, 102, 172)
_JPEG = (".jpg", ".jpeg")

Box = Sequence[float]  # left, top, right, bottom


def draw(photograph: Image.Image, boxes: Sequence[Box | None], texts: Sequence[str]) -> Image.Image:
    """Returns a copy of a photograph with boxes and a text at each box, beside the faces if there is room.

    Args:
      photograph: RGB picture.
      boxes: Left, top, right, bottom in pixels; None: the whole photograph.
      texts: One for each box.
    """
    picture = photograph.copy()
    canvas = ImageDraw.Draw(picture)
    size = max(picture.size)
    boxes = [box or (0, 0, picture.width - 1, picture.height - 1) for box in boxes]
    for box in boxes:
        canvas.rectangle(list(box), outline=_COLOUR, width=max(2, size // 300))
    taken = list(boxes)
    for box, text in zip(boxes, texts, strict=True):
        # Small faces get small labels that can still be read.
        font = ImageFont.load_default(max(11, size // 90, min(size // 40, int(box[3] - box[1]) // 3)))
        left, top, right, bottom = canvas.textbbox((0, 0), text, font=font)
        x, y, *_ = place = _place(box, right - left + 8, bottom - top + 8, picture.size, taken)
        taken.append(place)
        canvas.rectangle(place, fill=_COLOUR)
        canvas.text((x + 4 - left, y + 4 - top), text, font=font, fill="white")
    return picture


def _place(box: Box, wide: float, high: float, size: tuple[int, int], taken: Sequence[Box]) -> Box:
    """Returns the place of a box's label: above, below, right or left of it, inside the picture, covering least."""
    left, top, right, bottom = box
    corners = ((left, top - high), (left, bottom), (right, top), (left - wide, top), (right - wide, top - high))
    places = []
    for x, y in corners:
        x, y = min(max(0, x), max(0, size[0] - wide)), min(max(0, y), max(0, size[1] - high))
        places.append((x, y, x + wide, y + high))
    return min(places, key=lambda place: sum(_common(place, other) for other in taken))


def _common(a: Box, b: Box) -> float:
    """Returns the area that two boxes share, in pixels."""
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))


def save(folder: pathlib.Path, image: Named, rows: "Sequence[Row]") -> pathlib.Path:
    """Writes a photograph with the boxes and ages of its rows as a JPEG and returns the path."""
    texts = [f"{row.age:.0f} ({row.lower:.0f}-{row.upper:.0f})" for row in rows]
    picture = draw(images.load(image.read()), [row.box for row in rows], texts)
    # The folder is flat: a/b.png, c/b.png and a/b.jpg get different names.
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", image.name).strip("_.")[-150:]
    path = folder / (name if name.lower().endswith(_JPEG) else name + ".jpg")
    picture.save(path, "JPEG", quality=92)
    return path
