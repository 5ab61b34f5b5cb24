"""Pixels: the same by every way, whole or refused, large ones in bounded memory."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import AvifImagePlugin, EpsImagePlugin, Image

from lae_jax import faces
from lae_jax.faces import images, perceptual_hash, pixels
from lae_jax.runs.preprocessing import Input
from lae_jax.runtime.errors import InputError
from tests.pictures import photograph

PICTURE = Image.fromarray(photograph(90, 120, 0))


def saved(picture, kind="PNG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def stored(encoded, size):
    (form,) = images.store_forms([encoded], size, 95)
    if isinstance(form, images.BadImage):
        raise form
    return form


def turned_by(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def cut_out(mode, hidden):
    """A picture whose left half is transparent, with a colour below it."""
    half = Image.new("L", PICTURE.size, 255)
    half.paste(0, (0, 0, 60, 90))
    picture = PICTURE.copy()
    picture.paste(hidden, (0, 0, 60, 90))
    picture = picture.convert("L" if mode == "LA" else "RGB")
    picture.putalpha(half)
    return picture


GREY = np.linspace(0, 65535, 90 * 120).reshape(90, 120).astype(np.uint16)
FILES = {
    "EXIF 6": saved(PICTURE, "JPEG", exif=turned_by(6)),
    "EXIF 5 in a PNG": saved(PICTURE, exif=turned_by(5)),
    "TIFF, EXIF 8": saved(PICTURE, "TIFF", exif=turned_by(8)),
    "CMYK": saved(PICTURE.convert("CMYK"), "JPEG"),
    "progressive": saved(PICTURE, "JPEG", progressive=True),
    "MPO": saved(PICTURE, "MPO", save_all=True, append_images=[PICTURE.rotate(180)]),
    "rare subsampling": saved(PICTURE.convert("CMYK"), "JPEG", subsampling=2),
    "palette": saved(PICTURE.quantize(64)),
    "palette, transparent": saved(cut_out("RGBA", "magenta").quantize(64, method=2)),
    "RGBA": saved(cut_out("RGBA", "magenta")),
    "LA": saved(cut_out("LA", "black")),
    "WebP, transparent": saved(cut_out("RGBA", "magenta"), "WEBP", lossless=True),
    "colour key": saved(PICTURE, transparency=PICTURE.getpixel((3, 3))),
    "16 bits": saved(Image.fromarray(GREY)),
    "16 bits, level key": saved(Image.fromarray(GREY), transparency=int(GREY[0, 0])),
    "16 bits, PGM": saved(Image.fromarray(GREY), "PPM"),
    "1 bit": saved(PICTURE.convert("1")),
    "GIF": saved(PICTURE.quantize(64), "GIF", save_all=True, append_images=[PICTURE.quantize(64).rotate(180)]),
    "AVIF": saved(PICTURE, "AVIF"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_and_its_pillow_picture_have_the_same_pixels(name):
    expected = np.asarray(images.load(FILES[name]))
    fresh = Image.open(io.BytesIO(FILES[name]))
    assert np.array_equal(images.of_picture(fresh), expected)
    fresh.load()  # decoded by Pillow
    assert np.array_equal(images.of_picture(fresh), expected)
    # So the model sees the same crop in `predict --aligned` and `AgeEstimator.predict`; the picture is as it was.
    to_input = Input(48).pixels
    size, mode = fresh.size, fresh.mode
    assert np.array_equal(to_input(fresh), to_input(images.load(FILES[name]))) and (fresh.size, fresh.mode) == (
        size,
        mode,
    )


@pytest.mark.parametrize("kind", ["EPS", "PCX", "JPEG2000", "TGA"])
def test_pillow_decodes_no_picture_of_another_format_here(kind, monkeypatch):
    picture = Image.open(io.BytesIO(saved(PICTURE, kind)))  # a file of any name
    ran = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: ran.append(1))
    with pytest.raises(images.BadImage, match=f"the format {kind} is not read: if you trust the file, call load"):
        images.of_picture(picture)
    assert not ran and picture._im is None
    if kind != "EPS":
        picture.load()
        assert images.of_picture(picture).mode == "RGB"


@pytest.mark.parametrize(("name", "expected"), [
    ("EXIF 5 in a PNG", np.asarray(PICTURE).transpose(1, 0, 2)),
    ("TIFF, EXIF 8", np.rot90(np.asarray(PICTURE))),
    ("16 bits", np.repeat((GREY >> 8)[..., None], 3, axis=2)),
    ("16 bits, PGM", np.repeat((GREY >> 8)[..., None], 3, axis=2)),
    ("1 bit", np.repeat(np.asarray(PICTURE.convert("1"))[..., None] * 255, 3, axis=2)),
])  # fmt: skip
def test_levels_and_orientation_are_those_of_the_picture(name, expected):
    assert np.array_equal(images.load(FILES[name]), expected)


@pytest.mark.parametrize("name", ["RGBA", "LA", "WebP, transparent", "palette, transparent"])
def test_what_is_transparent_is_white(name):
    pixels = np.asarray(images.load(FILES[name]))
    assert np.all(pixels[:, :60] == 255)
    if name != "palette, transparent":
        assert np.array_equal(
            pixels[:, 60:], np.asarray(PICTURE.convert(PICTURE.mode if name != "LA" else "L").convert("RGB"))[:, 60:]
        )


def test_a_transparent_colour_or_level_is_white():
    clear = (np.asarray(PICTURE) == PICTURE.getpixel((3, 3))).all(axis=-1)
    pixels = np.asarray(images.load(FILES["colour key"]))
    assert np.all(pixels[clear] == 255) and np.array_equal(pixels[~clear], np.asarray(PICTURE)[~clear])
    pixels = np.asarray(images.load(FILES["16 bits, level key"]))
    assert np.all(pixels[GREY == 0] == 255) and np.all(pixels[GREY != 0] == (GREY >> 8)[GREY != 0][:, None])


def test_half_transparent_is_mixed_with_white():
    picture = Image.new("RGBA", (8, 8), (200, 0, 100, 51))
    assert np.all(np.abs(np.asarray(images.load(saved(picture)), int) - [244, 204, 224]) <= 1)


@pytest.mark.parametrize("picture", [
    Image.fromarray(np.full((9, 9), 0.5, np.float32)), Image.fromarray(np.full((9, 9), 70000, np.int32))
])  # fmt: skip
def test_levels_of_an_unknown_range_are_refused(picture):
    for read in (lambda: images.load(saved(picture, "TIFF")), lambda: images.of_picture(picture)):
        with pytest.raises(images.BadImage, match="of an unknown range: save the image with 8 or 16 bits"):
            read()


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6"/></x:xmpmeta>'


@pytest.mark.parametrize("encoded", [
    saved(PICTURE, "JPEG", xmp=XMP),
    saved(PICTURE, "JPEG", xmp=XMP, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"),
    saved(PICTURE, "WEBP", xmp=XMP),
    saved(PICTURE, "AVIF", xmp=XMP),
    saved(PICTURE, "JPEG", exif=b"Exif\0\0damaged"),
])  # fmt: skip
def test_an_orientation_that_browsers_do_not_read_turns_nothing(encoded):
    assert images.load(encoded).size == images.of_picture(Image.open(io.BytesIO(encoded))).size == (120, 90)
    assert stored(encoded, 64)[2:] == (120, 90)


JPEG = saved(PICTURE, "JPEG", quality=90)
SCAN = JPEG.index(b"\xff\xda") + 14  # its data begin
MIDDLE = (SCAN + len(JPEG)) // 2
DAMAGED = {
    "20 bytes overwritten": JPEG[:MIDDLE] + b"\x00\xff" * 10 + JPEG[MIDDLE + 20 :],
    "ends early": JPEG[:MIDDLE] + b"\xff\xd9",
    "ends early, the rest behind it": JPEG[:MIDDLE] + b"\xff\xd9" + JPEG[MIDDLE + 2 :],
    "truncated": JPEG[:MIDDLE],
    "its last four bytes are missing": JPEG[:-4],
    "progressive, truncated": FILES["progressive"][:-40],
    "CMYK, ends early": FILES["CMYK"][: len(FILES["CMYK"]) * 3 // 4] + b"\xff\xd9",
    "PNG, a byte changed": FILES["RGBA"][:500] + bytes([FILES["RGBA"][500] ^ 1]) + FILES["RGBA"][501:],
}
WHOLE = {
    "no end marker": JPEG[:-2],
    "half an end marker": JPEG[:-1],
    "bytes behind the end": JPEG + bytes(100) + b"\xff\xd8 trailer",
    "a byte of padding before the end": JPEG[:-2] + b"\0" + JPEG[-2:],
    "wrong limits of the scan": JPEG[: SCAN - 3] + b"\0\0\0" + JPEG[SCAN:],
    "wrong limits and no end marker": JPEG[: SCAN - 3] + b"\0\0\0" + JPEG[SCAN:-2],
}


@pytest.mark.parametrize("name", DAMAGED)
def test_half_a_picture_is_refused_by_every_way(name):
    for read in (images.load, lambda encoded: stored(encoded, 128)):
        with pytest.raises(images.BadImage, match="^does not decode, so it is damaged or incomplete"):
            read(DAMAGED[name])
    with pytest.raises(InputError, match="a picture cannot be used: does not decode"):
        Input(48).pixels(Image.open(io.BytesIO(DAMAGED[name])))


@pytest.mark.parametrize("name", WHOLE)
def test_what_every_viewer_shows_whole_is_read(name):
    expected = np.asarray(images.load(JPEG))
    assert np.array_equal(images.load(WHOLE[name]), expected)
    assert np.array_equal(images.of_picture(Image.open(io.BytesIO(WHOLE[name]))), expected)
    form = stored(WHOLE[name], 128)
    # What is stored is whole, for readers that are stricter.
    assert form.encoded.endswith(b"\xff\xd9") or name == "bytes behind the end"
    assert Image.open(io.BytesIO(form.encoded)).convert("RGB").size == PICTURE.size


def png_claiming(width, height):
    header = struct.pack(">4sIIBBBBB", b"IHDR", width, height, 8, 2, 0, 0, 0)
    return FILES["palette"][:12] + header + struct.pack(">I", zlib.crc32(header)) + FILES["palette"][33:]


def jpeg_claiming(width, height, encoded=JPEG):
    at = encoded.index(b"\xff\xc2" if b"\xff\xc2" in encoded[:700] else b"\xff\xc0") + 5
    return encoded[:at] + struct.pack(">HH", height, width) + encoded[at + 4 :]


@pytest.mark.parametrize(
    "size", [(4624, 3468), (6000, 4000), (5712, 4284), (8064, 6048), (12000, 9000), (16320, 12240)]
)
def test_photographs_of_phones_are_opened(size):
    assert pixels.opened(jpeg_claiming(*size)).size == size
    if size[0] < 9000:  # as HEIC, which is decoded whole
        assert pixels.opened(png_claiming(*size)).size == size


@pytest.mark.parametrize(("encoded", "reason"), [
    (jpeg_claiming(20000, 20000), "20000 x 20000 pixels are more than 256,000,000"),
    (png_claiming(12000, 9000), "12000 x 9000 pixels as PNG take 540 MB to decode, more than 500: save it as plain"),
    (png_claiming(60000, 60000), "more than 100,000,000 pixels; only a JPEG may have more: save it as plain JPEG"),
    (jpeg_claiming(16320, 12240, FILES["progressive"]), "as progressive JPEG take 699 MB to decode"),
])  # fmt: skip
def test_memory_is_bounded_before_anything_is_decoded(encoded, reason):
    with pytest.raises(images.BadImage, match=reason):
        images.decode(encoded)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize(("kept", "reduced"), [(10_800, 1), (10_799, 2), (600, 8)])
def test_a_very_large_photograph_is_used_smaller_and_keeps_its_own_size(monkeypatch, kind, kept, reduced):
    monkeypatch.setattr(pixels, "MAX_KEPT_PIXELS", kept)
    decoded = pixels.decode(saved(PICTURE, kind, exif=turned_by(6)))
    assert decoded.image.size == (-(-90 // reduced), -(-120 // reduced))
    assert (decoded.size, decoded.reduced, decoded.turned) == ((90, 120), reduced, 90)
    small = PICTURE.reduce(reduced).rotate(-90, expand=True)
    # libjpeg averages blocks before it rounds.
    assert np.abs(np.asarray(decoded.image, float) - np.asarray(small, float)).mean() < 6


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_how_a_photograph_was_turned_is_known(kind):
    turned = {2: 0, 3: 180, 4: 180, 5: 90, 6: 90, 7: 270, 8: 270}
    for orientation in range(11):
        known = orientation if orientation in turned else 1
        decoded = images.decode(saved(PICTURE, kind, exif=turned_by(orientation)))
        assert (decoded.orientation, decoded.turned) == (known, turned.get(known, 0))
        assert decoded.size == decoded.image.size == (PICTURE.size[::-1] if known > 4 else PICTURE.size)


def test_the_hash_of_a_jpeg_is_that_of_pillows_small_picture():
    for size in ((7, 7), (63, 90), (127, 129), (301, 257), (640, 1025)):
        encoded = saved(PICTURE.resize(size), "JPEG", quality=85)
        small = Image.open(io.BytesIO(encoded))
        small.draft("L", (64, 64))
        grey = saved(Image.fromarray(np.repeat(np.asarray(small)[..., None], 3, axis=2)), "JPEG", quality=100)
        near = perceptual_hash.distance(perceptual_hash.of(encoded), perceptual_hash.of(grey))
        assert near <= 12 or min(size) < 32


def test_pictures_are_known_by_how_they_begin():
    assert all(images.is_picture(encoded[:16]) for encoded in [*FILES.values(), saved(PICTURE, "BMP")])
    assert not any(
        images.is_picture(head)
        for head in (b"", b"path,age\n0.jpg,3", b"%PDF-1.7", b"RIFF\0\0\0\0AVI LIST", b"PK", b"BMI")
    )


def test_heic_and_avif_are_read_and_what_is_missing_for_them_is_named(monkeypatch):
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    encoded = saved(PICTURE, "HEIF", quality=95)
    assert images.is_picture(encoded[:16])
    assert np.abs(np.asarray(images.load(encoded), float) - np.asarray(PICTURE)).mean() < 8
    monkeypatch.setattr(pixels, "heif_formats", lambda: ("AVIF",))
    with pytest.raises(images.BadImage, match=r"a HEIC: to read it, pip install 'lae-jax\[heif\]'"):
        pixels.opened(encoded)
    # The package of the extra has no AVIF; Pillow's wheels do.
    assert pixels.opened(FILES["AVIF"]).format == "AVIF"
    monkeypatch.setattr(AvifImagePlugin, "SUPPORTED", False)
    monkeypatch.setattr(pixels.features, "check", lambda name: name != "avif")
    with pytest.raises(images.BadImage, match="an AVIF, and this Pillow has no AVIF: pip install .* pillow"):
        pixels.opened(FILES["AVIF"])


def test_limits_say_what_they_hold():
    assert faces.MAX_KEPT_PIXELS * 4 == 100_000_000 and faces.MAX_PIXELS / 64 < faces.MAX_KEPT_PIXELS


def test_a_picture_whose_file_was_closed_is_refused_in_words():
    for name in ("JPEG", "PNG"):
        file = io.BytesIO(saved(PICTURE, name))
        picture = Image.open(file)
        file.close()
        with pytest.raises(images.BadImage, match="does not decode"):
            images.of_picture(picture)
