"""Drawings: photographs with a box and an age at each face."""

import itertools
import pathlib
import re
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from lae_jax.faces import crops, images
from lae_jax.predict.photographs import Named
from lae_jax.runtime import files, foreign
from lae_jax.runtime.errors import InputError

if TYPE_CHECKING:
    from lae_jax.predict.answers import Row

_COLOUR = (33, 102, 172)
_JPEG = ("jpg", "jpeg")
_UNFIT = re.compile(r"""[ <>:"/\\|?*]+""")  # of names of files, on some system
_MARK = b"drawn by lae_jax.predict"  # the comment in a drawing
_COMMENT = b"\xff\xfe" + (len(_MARK) + 2).to_bytes(2, "big") + _MARK  # as it stands in the file
_STEM_BYTES = 120  # of a drawing's name; file systems allow 143 to 255 for all of it

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


class Drawings:
    """A folder of drawings, one for each photograph, whatever the names of the photographs.

    The folder is flat: `a/b.jpg` becomes `a_b.jpg`. Where names would be one file, also on a disk that ignores case,
    the later ones get a number. Earlier drawings are replaced, other files are not.

    Args:
      folder: The folder, which exists.
    """

    def __init__(self, folder: pathlib.Path):
        self.folder, self._taken = folder, set()

    def save(self, image: Named, rows: "Sequence[Row]") -> pathlib.Path:
        """Writes a photograph with the boxes and ages of its rows as a JPEG and returns the path."""
        texts = [f"{row.age:.0f} ({row.lower:.0f}-{row.upper:.0f})" for row in rows]
        decoded = images.decode(image.read())
        photograph = crops.Photograph(decoded.image, reduced=decoded.reduced)
        boxes = [None if row.box is None else photograph.inside(row.box).tolist() for row in rows]
        path = self.folder / self._name(image.name)
        with files.replacing(path) as temporary:
            draw(photograph.image, boxes, texts).save(temporary, "JPEG", quality=92, comment=_MARK)
        return path

    def _name(self, photograph: str) -> str:
        flat = _UNFIT.sub("_", foreign.replaced(photograph, "_"))
        stem, _, ending = flat.rpartition(".")
        if ending.lower() not in _JPEG:
            stem, ending = flat, "jpg"
        stem = stem.encode()[-_STEM_BYTES:].decode(errors="ignore").strip("_.") or "photograph"
        numbered = (f"{stem}{f'-{number}' * (number > 1)}.{ending}" for number in itertools.count(1))
        name = next(name for name in numbered if _key(name) not in self._taken and _is_free(self.folder / name))
        self._taken.add(_key(name))
        return name


def _is_free(path: pathlib.Path) -> bool:
    """Whether a drawing may be written to `path`: nothing is there, or an earlier drawing."""
    if not path.exists():
        return True
    try:
        with files.open_regular(path) as file:
            return _COMMENT in file.read(1000)
    except InputError:  # not a file, or one that cannot be read
        return False


def _key(name: str) -> str:
    """The same text for names that may be one file on some disk: those that differ in case or in Unicode form."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
