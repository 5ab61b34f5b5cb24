"""Pixels of photographs and crops, decoded in this process: one way for files, uploads and Pillow's pictures.

Pictures of strangers are decoded in a process of their own (`images`), which calls this file.

A picture becomes RGB with 8 bits, upright by its EXIF orientation, its transparent parts on white. Orientations that
only XMP states are ignored, as browsers do (but for TIFFs, which no browser shows and Pillow turns). libjpeg fills in
what a damaged JPEG lacks and only warns of it; its warnings are errors here (simplejpeg tells them, Pillow does not),
and so are wrong checksums in a PNG.
"""

import contextlib
import functools
import io
import re
import warnings
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image, ImageOps, JpegImagePlugin, features

from lae_jax.faces import MAX_BYTES, MAX_KEPT_PIXELS, MAX_PIXELS, MAX_SIDE, perceptual_hash, scans

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
_EXIF_ORIENTATION = 0x0112
_TURNED = {3: 180, 4: 180, 5: 90, 6: 90, 7: 270, 8: 270}  # degrees clockwise of an EXIF orientation
_END = b"\xff\xd9"  # of a JPEG
# Nothing is missing: a byte or two of padding before the end, as some cameras write.
_PADDING = re.compile(r"Corrupt JPEG data: [12] extraneous bytes before marker 0xd9")
_BRANDS = tuple(b"heic heix heim heis hevc hevx hevm hevs mif1 msf1 avif avis".split())  # of HEIC and AVIF
_JPEG_COLOURS = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK"}


class BadImage(ValueError):
    """An image cannot be used; the text is the reason in `rejected.csv`."""


class Decoded(NamedTuple):
    """A decoded photograph.

    Attributes:
      image: Upright RGB picture.
      reduced: 1, 2, 4 or 8: the pixels of the photograph that a pixel of `image` spans on each side.
      size: Width and height of the upright photograph, in its own pixels.
      orientation: Its EXIF orientation, by which it was turned: 1 (stored upright) to 8.
    """

    image: Image.Image
    reduced: int
    size: tuple[int, int]
    orientation: int

    @property
    def turned(self) -> int:
        """Degrees clockwise by which the photograph was turned upright: 0, 90, 180 or 270."""
        return _TURNED.get(self.orientation, 0)


def is_picture(head: bytes) -> bool:
    """Whether a file begins as the formats do that are read here.

    Args:
      head: At least its first 16 bytes.
    """
    return (
        head.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"II*\0", b"MM\0*"))
        or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
        or (head[:2] == b"BM" and head[6:10] == bytes(4))
        or (head[:1] == b"P" and head[1:2] in b"123456" and head[2:3].isspace())
        or _is_heif(head)
    )


def _is_heif(head: bytes) -> bool:
    """Whether a file is a HEIC, HEIF or AVIF by the brand in its first box."""
    return head[4:8] == b"ftyp" and head[8:12] in _BRANDS


TOO_MUCH_MEMORY = "takes too much memory to decode: save it as plain JPEG"


@functools.cache
def heif_formats() -> tuple[str, ...]:
    """Loads the formats that a HEIC or AVIF may have, and returns their names. HEIC needs the extra `heif`."""
    try:
        import pillow_heif
    except ImportError:
        return ("AVIF",)
    pillow_heif.register_heif_opener()
    return ("AVIF", "HEIF")


def opened(encoded: bytes, most_pixels: int = MAX_PIXELS) -> Image.Image:
    """Opens an image without decoding it, and checks how much work and memory the decoder may take.

    Raises:
      BadImage: The header cannot be read, or states too many pixels.
    """
    if not encoded:
        raise BadImage("empty file")
    file, formats = io.BytesIO(encoded), heif_formats() if _is_heif(encoded) else FORMATS
    with warnings.catch_warnings():
        # Pillow warns of a decompression bomb above its own limit; our limits are lower or take less memory.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            if encoded.startswith(b"\xff\xd8\xff"):
                # `Image.open` refuses what a phone of 200 megapixels makes, and reads further pictures of the file.
                image = JpegImagePlugin.JpegImageFile(file)
            else:
                image = Image.open(file, formats=formats)
            needed = _bytes_to_decode(image, encoded)
        except Image.DecompressionBombError as error:
            raise BadImage(
                f"more than {MAX_BYTES // 5:,} pixels; only a JPEG may have more: save it as plain JPEG"
            ) from error
        except Exception as error:  # Pillow's parsers raise many kinds on hostile bytes
            raise BadImage(_unreadable(encoded)) from error
    pixels = image.width * image.height
    if pixels > most_pixels:
        raise BadImage(f"{image.width} x {image.height} pixels are more than {most_pixels:,}")
    if max(image.size) > MAX_SIDE:
        raise BadImage(f"{image.width} x {image.height} pixels: a side is longer than {MAX_SIDE:,}")
    if image.format == "JPEG" and scans.number(encoded) > scans.MAX_SCANS:
        raise BadImage(f"{scans.TOO_MANY}: save it again")
    if needed > MAX_BYTES:
        kind = "progressive JPEG" if image.format == "JPEG" else image.format
        raise BadImage(
            f"{image.width} x {image.height} pixels as {kind} take {needed / 1e6:.0f} MB to decode, more than"
            f" {MAX_BYTES / 1e6:.0f}: save it as plain JPEG"
        )
    return image


def _unreadable(encoded: bytes) -> str:
    """The reason for an image that does not open."""
    if _is_heif(encoded) and encoded[8:12].startswith(b"avi"):
        if not features.check("avif"):
            return "an AVIF, and this Pillow has no AVIF: pip install --force-reinstall --only-binary :all: pillow"
    elif _is_heif(encoded) and "HEIF" not in heif_formats():
        return "a HEIC: to read it, pip install 'lae-jax[heif]'"
    return "not an image that can be read"


def is_slow(image: Image.Image, encoded: bytes) -> bool:
    """Whether an image is expected to take longer than a JPEG of MAX_KEPT_PIXELS in a single scan, a quarter second."""
    effort = 4 * image.width * image.height  # as measured, for a pixel of the other formats
    if image.format == "JPEG":
        stated = scans.header(encoded)
        effort = effort * scans.number(encoded) // (4 if stated is not None and stated.is_single else 16)
    return effort > MAX_KEPT_PIXELS


def _scan_header(image: JpegImagePlugin.JpegImageFile, encoded: bytes) -> int:
    """Place of the first scan's header, if the scan has all components; otherwise -1."""
    length = 6 + 2 * image.layers
    begin = image.fp.tell() - length
    return begin if encoded[begin : begin + 3] == bytes((0, length, image.layers)) else -1


def _bytes_to_decode(image: Image.Image, encoded: bytes) -> int:
    """Bytes that the decoder takes and the pictures in between, as measured."""
    pixels = image.width * image.height
    if image.format == "JPEG":
        return _coefficient_bytes(image, encoded) + 8 * pixels // _reduction(image) ** 2
    if image.format == "WEBP" or image.has_transparency_data:
        return 16 * pixels
    return (9 if image.format in ("AVIF", "HEIF") else 5) * pixels


def _coefficient_bytes(image: JpegImagePlugin.JpegImageFile, encoded: bytes) -> int:
    """Bytes of the whole picture's coefficients, which libjpeg keeps if the picture comes in several scans."""
    if not image.info.get("progressive") and _scan_header(image, encoded) >= 0:
        return 0
    widest, highest = (max(layer[i] for layer in image.layer) for i in (1, 2))
    share = sum(layer[1] * layer[2] for layer in image.layer) / (widest * highest)
    return int(2 * image.width * image.height * share)


def _reduction(image: Image.Image) -> int:
    """How many times smaller on each side a picture is kept: 1, 2, 4 or 8."""
    return next(by for by in (1, 2, 4, 8) if image.width * image.height <= MAX_KEPT_PIXELS * by**2 or by == 8)


def _jpeg(encoded: bytes, source: JpegImagePlugin.JpegImageFile, reduced: int) -> Image.Image:
    """The pixels of a JPEG, as Pillow decodes them.

    What every viewer shows whole is read: without its end marker, with padding before it, and with the wrong limits of
    its only scan that some cameras write.

    Raises:
      ValueError: libjpeg fails, or warns of damage.
    """
    for _ in range(2):  # both mistakes may be there
        try:
            return _jpeg_pixels(encoded, source, reduced)
        except KeyError:  # simplejpeg has no name for the subsampling
            return _by_pillow(source, reduced)
        except ValueError as error:
            told, header = str(error), _scan_header(source, encoded)
            if told == "Premature end of JPEG file":
                encoded += _END
            elif told == "Invalid SOS parameters for sequential JPEG" and header >= 0:
                end = header + 6 + 2 * source.layers
                encoded = encoded[: end - 3] + b"\0\x3f\0" + encoded[end:]
            elif _PADDING.fullmatch(told):
                return _jpeg_pixels(encoded, source, reduced, strict=False)
            elif "subsampling" in told:
                return _by_pillow(source, reduced)
            else:
                raise
    return _jpeg_pixels(encoded, source, reduced)


def _by_pillow(source: JpegImagePlugin.JpegImageFile, reduced: int) -> Image.Image:
    """The pixels of a JPEG whose subsampling is so rare that simplejpeg does not know it; only its end is checked."""
    source.draft(None, tuple(-(-side // reduced) for side in source.size))
    source.load()
    return source


def _jpeg_pixels(
    encoded: bytes, source: JpegImagePlugin.JpegImageFile, reduced: int, strict: bool = True
) -> Image.Image:
    colour = _JPEG_COLOURS[source.mode]
    # The decoder takes the smallest of its sizes that is at least as large.
    width, height = (0, 0) if reduced == 1 else (-(-side // reduced) for side in source.size)
    pixels = simplejpeg.decode_jpeg(encoded, colour, min_height=height, min_width=width, strict=strict)
    size = pixels.shape[1::-1]
    if colour == "CMYK":  # inverted, as Adobe writes it and Pillow assumes
        return Image.frombuffer("CMYK", size, pixels, "raw", "CMYK;I", 0, 1)
    return Image.fromarray(pixels.squeeze(2) if colour == "GRAY" else pixels)


def _check_png(encoded: bytes) -> None:
    """Checks the checksums of a PNG's pixels, which Pillow skips when it decodes.

    Raises:
      SyntaxError: One is wrong.
    """
    with contextlib.suppress(OSError):  # a missing end is not damage
        Image.open(io.BytesIO(encoded), formats=("PNG",)).verify()


def _rgb(image: Image.Image) -> Image.Image:
    """An RGB picture with 8 bits of any other; transparent parts show white.

    Raises:
      BadImage: The range of its levels is unknown.
    """
    if image.mode.startswith("I"):
        image = _eight_bits(image)
    if image.mode == "F":
        raise BadImage("grey levels are floating-point numbers of an unknown range: save the image with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """The upper bytes of 16-bit grey levels, which Pillow's `convert` would clip at 255."""
    levels = np.asarray(image)
    if levels.min(initial=0) < 0 or levels.max(initial=0) > 0xFFFF:
        raise BadImage("grey levels are 32-bit numbers of an unknown range: save the image with 8 or 16 bits")
    grey = Image.fromarray((levels >> 8).astype(np.uint8))
    clear = image.info.get("transparency")  # the level that is transparent
    if clear is not None:
        grey = Image.merge("LA", (grey, Image.fromarray(np.where(levels == clear, 0, 255).astype(np.uint8))))
    return grey


def _orientation(info: dict) -> int:
    """The EXIF orientation in a picture's `info`, 1 to 8; 1 (upright) if there is none that can be read."""
    # Pillow's own `getexif` also reads XMP.
    bare = Image.Image()
    bare.info = {name: info[name] for name in ("exif", "Raw profile type exif") if name in info}
    try:
        return _known(bare.getexif().get(_EXIF_ORIENTATION))
    except Exception:  # damaged EXIF; viewers show such pictures as they are stored
        return 1


def _known(orientation: object) -> int:
    return orientation if orientation in range(1, 9) else 1


def _upright(picture: Image.Image, orientation: int) -> Image.Image:
    """Turns a picture, in place."""
    picture.info = {}
    picture.getexif()[_EXIF_ORIENTATION] = orientation
    ImageOps.exif_transpose(picture, in_place=True)
    return picture


def decode(encoded: bytes) -> Decoded:
    """Decodes as `images.decode` does, in this process."""
    return decode_opened(opened(encoded), encoded)


def decode_opened(source: Image.Image, encoded: bytes) -> Decoded:
    """Decodes an image that `opened` returned.

    Raises:
      BadImage: The image is damaged or of an unknown kind.
    """
    size, reduced = source.size, _reduction(source)
    # Pillow turns a TIFF, and states its upright size.
    by_pillow = _known(source.tag_v2.get(_EXIF_ORIENTATION)) if source.format == "TIFF" else 1
    try:
        if source.format == "JPEG":
            picture = _rgb(_jpeg(encoded, source, reduced))
        else:
            if source.format == "PNG":
                _check_png(encoded)
            source.load()
            picture = _rgb(source)
            picture = picture if reduced == 1 else picture.reduce(reduced)
        orientation = _orientation(source.info)
        picture = _upright(picture, orientation)
    except BadImage:
        raise
    except Exception as error:
        raise _undecodable(error) from error
    size = size[::-1] if orientation in (5, 6, 7, 8) else size
    return Decoded(picture, reduced, size, orientation if by_pillow == 1 else by_pillow)


def plain(source: Image.Image, encoded: bytes) -> np.ndarray | None:
    """Returns the pixels (H, W, 3) of an image that `opened` returned, as `decode_opened` does, or None.

    Only those of an upright RGB JPEG without any fault, which need no picture of Pillow.
    """
    if source.format != "JPEG" or source.mode != "RGB" or _reduction(source) > 1 or _orientation(source.info) != 1:
        return None
    with contextlib.suppress(ValueError, KeyError):
        return simplejpeg.decode_jpeg(encoded, "RGB")
    return None


def of_decoded(picture: Image.Image) -> Image.Image:
    """Returns what `decode` gives for the file of a picture that Pillow has decoded, or for a picture without a file.

    Raises:
      BadImage: It is damaged or of an unknown kind.
    """
    try:
        return _upright(_rgb(picture.copy()), _orientation(picture.info))
    except BadImage:
        raise
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


def store_form(source: Image.Image, encoded: bytes, size: int, quality: int) -> Form:
    """Converts a ready crop that `opened` returned (`images.store_form`).

    Raises:
      BadImage: The image is damaged or of an unknown kind.
    """
    if (
        source.format == "JPEG"
        and source.mode in ("RGB", "L")
        and _orientation(source.info) == 1
        and min(source.size) <= size
        and _reduction(source) == 1
    ):
        try:
            # The hash decodes all of the data, in half the time of a picture of full size.
            return Form(encoded, perceptual_hash.of(encoded), *source.size)
        except (ValueError, KeyError):
            pass  # `decode` says why, or reads it all the same
    image, _, (width, height), _ = decode_opened(source, encoded)
    if min(image.size) > size:
        scale = size / min(image.size)
        image = image.resize([max(1, round(s * scale)) for s in image.size], Image.Resampling.BICUBIC)
    encoded = encode(image, quality)
    return Form(encoded, perceptual_hash.of(encoded), width, height)


def _undecodable(error: Exception) -> BadImage:
    if isinstance(error, MemoryError):
        return BadImage(TOO_MUCH_MEMORY)
    told = str(error) if "JPEG" in str(error) else type(error).__name__
    return BadImage(f"does not decode, so it is damaged or incomplete ({told})")
