"""Records of a data set, made from rows of a source: read, decode, cut, encode."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from lae_jax.data.sources.readers import Picture
from lae_jax.faces import crops, images, perceptual_hash

# The columns that are made here and added to the source's.
COLUMNS = {
    "name": pa.string(),
    "source_row": pa.int64(),
    "sha256": pa.string(),  # of the source file
    "width": pa.int32(),  # of the source image, pixels
    "height": pa.int32(),
    "landmarks": pa.list_(pa.float32()),  # x, y, x, y ... in pixels of the upright source image; null: unknown
    "box": pa.list_(pa.float32()),  # left, top, right, bottom of the detected face, likewise
    "cut_by": pa.string(),  # 'source' (its landmarks) | 'mtcnn' | 'centre'; null: a ready crop
    "phash": pa.binary(perceptual_hash.BYTES),  # perceptual hash of the stored image
    "scale": pa.float32(),  # pixels of the source image per pixel of the stored one
    "faces": pa.int32(),  # detected in the source image; null: not searched
}
# Decoded photographs in memory at a time; one takes at most 100 MB (`MAX_KEPT_PIXELS`).
_PHOTOGRAPHS = 4
# Small crops are decoded together, which saves a tenth of the time.
_CROPS, _CROP_BYTES = 32, 1_000_000


class Stored(NamedTuple):
    """A record: the encoded image, and its values of `COLUMNS`."""

    encoded: bytes
    columns: dict


def stored(
    rows: Iterable[dict], first_row: int, read: Callable[[dict], Picture], recipe: crops.Recipe
) -> Iterator[tuple[int, str, Stored | images.BadImage]]:
    """Yields for each face the number of its row, its name, and its record or the reason why there is none.

    A row of several faces (`recipe.faces` 'all') gives several records; the second is called NAME#2.

    Args:
        rows: Rows of the source.
        first_row: Number of the first row.
        read: Reads the image of a row.
        recipe: How faces are cut.
    """
    make, most = (_ready, _CROPS) if recipe.align == "none" else (_cut, _PHOTOGRAPHS)
    numbered = enumerate(rows, first_row)
    while some := _some(numbered, read, most):
        _, known, pictures = zip(*some, strict=True)
        for (number, row, _), results in zip(some, make(known, [*pictures], recipe), strict=True):
            for count, result in enumerate(results, 1):
                name = row["name"] if count == 1 else f"{row['name']}#{count}"
                if isinstance(result, Stored):
                    result.columns.update(name=name, source_row=number)
                yield number, name, result


def _some(
    numbered: Iterator[tuple[int, dict]], read: Callable[[dict], Picture], most: int
) -> list[tuple[int, dict, Picture | images.BadImage]]:
    """Reads the next few images: at most `most`, and none after the first `_CROP_BYTES`, but always `_PHOTOGRAPHS`."""
    some, size = [], 0
    for number, row in numbered:
        picture = _read(row, read)
        some.append((number, row, picture))
        size += 0 if isinstance(picture, images.BadImage) else len(picture.encoded)
        if len(some) == most or (len(some) >= _PHOTOGRAPHS and size > _CROP_BYTES):
            break
    return some


def _read(row: dict, read: Callable[[dict], Picture]) -> Picture | images.BadImage:
    try:
        return read(row)
    except images.BadImage as reason:
        return reason


def _ready(rows: Sequence[dict], pictures: list, recipe: crops.Recipe) -> Iterator[list]:
    """Yields the records of images that are crops already."""
    readable = [picture.encoded for picture in pictures if not isinstance(picture, images.BadImage)]
    forms = iter(images.store_forms(readable, recipe.size, recipe.quality))
    for row, picture in zip(rows, pictures, strict=True):
        form = picture if isinstance(picture, images.BadImage) else next(forms)
        if isinstance(form, images.BadImage):
            yield [form]
            continue
        columns = {
            **_of_file(picture, form.width, form.height),
            "phash": form.phash,
            "scale": max(1.0, min(form.width, form.height) / recipe.size),
            "landmarks": picture.landmarks or row["landmarks"],
            "box": None,
            "cut_by": None,
            "faces": None,
        }
        yield [Stored(form.encoded, columns)]


def _cut(rows: Sequence[dict], pictures: list, recipe: crops.Recipe) -> Iterator[list]:
    """Yields the records of photographs: aligned crops."""
    loaded: dict[int, crops.Photograph] = {}
    sizes: dict[int, tuple[int, int]] = {}
    readable = [number for number, picture in enumerate(pictures) if not isinstance(picture, images.BadImage)]
    for number, decoded in zip(readable, images.decode_all([pictures[n].encoded for n in readable]), strict=True):
        if isinstance(decoded, images.BadImage):
            pictures[number] = decoded
            continue
        known = pictures[number].landmarks or rows[number]["landmarks"]
        sizes[number], landmarks = decoded.size, None if known is None else np.reshape(known, (5, 2))
        loaded[number] = crops.Photograph(decoded.image, landmarks, decoded.reduced, decoded.turned)
    found = dict(zip(loaded, crops.cut([*loaded.values()], recipe), strict=True))
    for number, picture in enumerate(pictures):
        result = found.get(number, picture)
        if isinstance(result, images.BadImage):
            yield [result]
            continue
        columns = _of_file(picture, *sizes[number])
        encoded = [images.encode(crop.image, recipe.quality) for crop in result]
        yield [
            Stored(
                jpeg,
                {
                    **columns,
                    "phash": perceptual_hash.of(jpeg),
                    "landmarks": None if crop.landmarks is None else crop.landmarks.ravel().tolist(),
                    "box": None if crop.box is None else crop.box.tolist(),
                    "cut_by": crop.how,
                    "scale": crop.scale,
                    "faces": crop.faces,
                },
            )
            for jpeg, crop in zip(encoded, result, strict=True)
        ]


def _of_file(picture: Picture, width: int, height: int) -> dict:
    return {"sha256": hashlib.sha256(picture.encoded).hexdigest(), "width": width, "height": height}
