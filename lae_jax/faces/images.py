"""Pictures of strangers: photographs and crops from files, uploads and Pillow, and encoding for storage.

They are decoded in processes whose time and memory are bounded (`decoders`, `sandbox`). What a picture becomes is in
`pixels`.
"""

from collections.abc import Sequence

from PIL import Image, ImageFile

from lae_jax.faces import MAX_PIXELS, decoders, pixels
from lae_jax.faces.pixels import FORMATS, BadImage, Decoded, Form, encode, is_picture

__all__ = [
    "MAX_PIXELS",
    "BadImage",
    "Decoded",
    "Form",
    "decode",
    "decode_all",
    "encode",
    "is_picture",
    "load",
    "of_picture",
    "store_forms",
]


def decode(encoded: bytes) -> Decoded:
    """Decodes the first frame of a photograph, at a half, a quarter or an eighth of its size if it is very large.

    Raises:
      BadImage: The image is too large, damaged, of an unknown kind, or takes too much time or memory.
    """
    (decoded,) = decode_all([encoded])
    if isinstance(decoded, BadImage):
        raise decoded
    return decoded


def decode_all(many: Sequence[bytes]) -> list[Decoded | BadImage]:
    """Decodes each photograph as `decode` does, with the reason in place of one that cannot be used."""
    return decoders.shared().decode(many)


def load(encoded: bytes) -> Image.Image:
    """Decodes the first frame of an image to an upright RGB picture, as `decode` does."""
    return decode(encoded).image


def store_forms(many: Sequence[bytes], size: int, quality: int) -> list[Form | BadImage]:
    """Converts ready crops for storage: upright RGB JPEGs whose shorter side is at most `size` pixels.

    A JPEG that already has this form keeps its bytes. Every image is decoded here, so a record that does not decode
    later means a damaged shard.

    Returns:
      The forms, with the reason in place of a crop that cannot be used (`decode`).
    """
    return decoders.shared().store_forms(many, size, quality)


def of_picture(picture: Image.Image) -> Image.Image:
    """Returns what `load` gives for the file of a Pillow picture, or for a picture that has none.

    A picture in one of the formats that are read here and that Pillow has not decoded yet is decoded as its file would
    be; Pillow would report no damage, and nothing would bound its work.

    Raises:
      BadImage: As `decode`; or Pillow has not decoded it, and it is in another format. To decode an EPS, for instance,
        Pillow runs Ghostscript, whatever the file is called.
    """
    if not _is_waiting(picture):
        return pixels.of_decoded(picture)
    if picture.format not in (*FORMATS, "MPO", "AVIF", "HEIF"):
        raise BadImage(f"the format {picture.format} is not read: if you trust the file, call load() of the picture")
    try:
        place = picture.fp.tell()
        picture.fp.seek(0)
        encoded = picture.fp.read()
        picture.fp.seek(place)
    except (OSError, ValueError) as error:  # of a file that was closed
        raise BadImage("does not decode, because its file is closed or cannot be read") from error
    return load(encoded)


def _is_waiting(picture: Image.Image) -> bool:
    """Whether Pillow would decode the first frame of a picture's file now."""
    is_open = isinstance(picture, ImageFile.ImageFile) and picture.fp is not None
    return is_open and picture.tell() == 0 and picture._im is None
