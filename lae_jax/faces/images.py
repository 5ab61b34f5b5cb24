"""Source photographs: check before decoding, decode, encode for storage."""

import io
import warnings
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from lae_jax.faces import MAX_PIXELS, perceptual_hash

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
_EXIF_ORIENTATION = 0x0112


class BadImage(ValueError):
    """An image cannot be used; the text is the reason in `rejected.csv`."""


def _open(encoded: bytes) -> Image.Image:
    if not encoded:
        raise BadImage("empty file")
    with warnings.catch_warnings():
        # Pillow warns of a decompression bomb above its own limit; our limit is lower, and exceeding it is an error.
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
    """Width and height from the header alone, before the picture is turned upright.

    Raises:
      BadImage: The header cannot be read, or states more than MAX_PIXELS.
    """
    return _open(encoded).size


def load(encoded: bytes) -> Image.Image:
    """Decodes the first frame of an image to an upright RGB picture.

    Raises:
      BadImage: The image is larger than MAX_PIXELS or does not decode.
    """
    image = _open(encoded)
    try:
        image.load()
        return _rgb(ImageOps.exif_transpose(image))
    except Exception as error:
        raise _undecodable(error) from error


def encode(image: Image.Image, quality: int) -> bytes:
    """Encodes an RGB picture as JPEG without chroma subsampling, so that small faces keep their colour."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


class Form(NamedTuple):
    """A ready crop as stored: JPEG bytes, their perceptual hash, width and height of the upright source."""

    encoded: bytes
    phash: bytes
    width: int
    height: int


def store_form(encoded: bytes, size: int, quality: int) -> Form:
    """Converts a ready crop for storage: an upright RGB JPEG whose shorter side is at most `size` pixels.

    A JPEG that already has this form keeps its bytes. Every image is decoded here, so a record that does not decode
    later means a damaged shard.

    Raises:
      BadImage: The image is larger than MAX_PIXELS or does not decode.
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
            # The hash decodes all of the data, in half the time of a picture of full size.
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
