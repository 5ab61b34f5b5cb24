"""Source photographs: checked before they are decoded, made ready to be stored."""

import io
import warnings
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from lae_jax.faces import MAX_PIXELS, perceptual_hash

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
_EXIF_ORIENTATION = 0x0112


class BadImage(ValueError):
    """An image that cannot be used; the text is the reason that goes into `rejected.csv`."""


def _open(encoded: bytes) -> Image.Image:
    if not encoded:
        raise BadImage("empty file")
    with warnings.catch_warnings():
        # Pillow warns of a decompression bomb above its own limit; ours is lower and an error.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            image = Image.open(io.BytesIO(encoded), formats=FORMATS)
        except Image.DecompressionBombError as error:
            raise BadImage(f"more than {MAX_PIXELS:,} pixels") from error
        except Exception as error:  # Pillow's parsers raise many kinds on hostile bytes
            raise BadImage("not an image that can be read") from error
    if image.width * image.height > MAX_PIXELS:
        raise BadImage(f"{image.width} x {image.height} pixels are more than {MAX_PIXELS:,}")
    return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I;16", "I;16B", "I;16L", "I"):
        # Pillow clips 16-bit grey at 255 when it converts; the upper byte is the picture.
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def claimed_size(encoded: bytes) -> tuple[int, int]:
    """Width and height by the header alone, before the picture is turned upright. Raises BadImage as `load` does."""
    return _open(encoded).size


def load(encoded: bytes) -> Image.Image:
    """Encoded bytes -> upright RGB picture (first frame). Raises BadImage with the reason."""
    image = _open(encoded)
    try:
        image.load()
        return _rgb(ImageOps.exif_transpose(image))
    except Exception as error:
        raise _undecodable(error) from error


def encode(image: Image.Image, quality: int) -> bytes:
    """RGB picture -> JPEG bytes without chroma subsampling, so that small faces keep their colour."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


class Form(NamedTuple):
    """How a ready crop is stored: JPEG bytes, their perceptual hash, width and height of the upright source."""

    encoded: bytes
    phash: bytes
    width: int
    height: int


def store_form(encoded: bytes, size: int, quality: int) -> Form:
    """The form in which a ready crop is stored: upright RGB JPEG whose shorter side is at most `size`.

    A JPEG that is all this already keeps its bytes. Every image is decoded here, so that a record that does not decode
    later means a damaged shard. Raises BadImage with the reason.
    """
    source = _open(encoded)
    keeps = (
        source.format == "JPEG"
        and source.mode in ("RGB", "L")
        and source.getexif().get(_EXIF_ORIENTATION, 1) == 1
        and min(source.size) <= size
    )
    if keeps:
        width, height = source.size
        try:
            # What is decoded for the hash is all of the data, in half the time of a picture of full size.
            return Form(encoded, perceptual_hash.of_picture(source), width, height)
        except Exception as error:
            raise _undecodable(error) from error
    image = load(encoded)
    width, height = image.size
    if min(image.size) > size:
        scale = size / min(image.size)
        image = image.resize([max(1, round(s * scale)) for s in image.size], Image.Resampling.BICUBIC)
    encoded = encode(image, quality)
    return Form(encoded, perceptual_hash.of(encoded), width, height)


def _undecodable(error: Exception) -> BadImage:
    return BadImage(f"does not decode ({type(error).__name__})")
