"""Photographs with a box and an age at each face."""

import pathlib
import re
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from lae_jax.data import images
from lae_jax.faces.photographs import Named

_COLOUR = (33, 102, 172)


def draw(photograph: Image.Image, boxes: Sequence[Sequence[float] | None], texts: Sequence[str]) -> Image.Image:
    """A copy with boxes (left, top, right, bottom; None: the whole picture) and a text at each."""
    picture = photograph.copy()
    canvas = ImageDraw.Draw(picture)
    size = max(picture.size)
    font, width = ImageFont.load_default(max(11, size // 40)), max(2, size // 300)
    for box, text in zip(boxes, texts, strict=True):
        box = box or (0, 0, picture.width - 1, picture.height - 1)
        canvas.rectangle(list(box), outline=_COLOUR, width=width)
        left, top, right, bottom = canvas.textbbox((0, 0), text, font=font)
        wide, high = right - left + 8, bottom - top + 8
        # Above the box where there is room; never outside the picture.
        x = min(max(0, box[0]), max(0, picture.width - wide))
        y = box[1] - high if box[1] >= high else min(max(0, box[1]), max(0, picture.height - high))
        canvas.rectangle([x, y, x + wide, y + high], fill=_COLOUR)
        canvas.text((x + 4 - left, y + 4 - top), text, font=font, fill="white")
    return picture


def save(folder: pathlib.Path, image: Named, rows: Sequence) -> pathlib.Path:
    """Writes the photograph of rows (predictions.Row) with their ages as a JPEG; returns its path."""
    texts = [f"{row.age:.0f} ({row.lower:.0f}-{row.upper:.0f})" for row in rows]
    picture = draw(images.load(image.read()), [row.box for row in rows], texts)
    # One flat folder: a/b.png and c/b.png stay apart.
    path = folder / (re.sub(r"[^A-Za-z0-9._-]+", "_", image.name).strip("_.")[-150:] + ".jpg")
    picture.save(path, quality=92)
    return path
