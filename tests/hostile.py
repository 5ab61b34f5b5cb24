"""Files that attack a decoder, each small and made here."""

import functools
import io
import struct
import zlib

import numpy as np
from PIL import Image


def saved(picture: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def many_scans(side: int, count: int) -> bytes:
    """A progressive JPEG whose last scan comes `count` times more: each takes as long as the picture."""
    noise = np.random.default_rng(0).integers(0, 256, (side // 16, side // 16, 3), np.uint8)
    encoded = saved(Image.fromarray(noise).resize((side, side)), "JPEG", quality=60, progressive=True)
    last = encoded.rindex(b"\xff\xda")
    return encoded[:-2] + encoded[last:-2] * count + encoded[-2:]


def slow(side: int, count: int) -> bytes:
    """A JPEG without any fault, in `count` scans: each has a whole component, and replaces what came before."""
    noise = np.random.default_rng(0).integers(0, 256, (side // 16, side // 16), np.uint8)
    grey = saved(Image.fromarray(noise).resize((side, side)), "JPEG", quality=60)
    frame, scan = grey.index(b"\xff\xc0"), grey.index(b"\xff\xda")
    components = b"".join(bytes((number, 0x11, 0)) for number in (1, 2, 3))
    colour = b"\xff\xc0\0\x11\x08" + grey[frame + 5 : frame + 9] + b"\x03" + components
    scans = [b"\xff\xda\0\x08\x01" + bytes((1 + k % 3, 0, 0, 63, 0)) + grey[scan + 10 : -2] for k in range(count)]
    return grey[:frame] + colour + grey[frame + 13 : scan] + b"".join(scans) + b"\xff\xd9"


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    """A black PNG with further chunks before its pixels."""
    compress, packed = zlib.compressobj(9), []
    rows = bytes(1 + width)
    for _ in range(height // 10_000):
        packed.append(compress.compress(rows * 10_000))
    packed += [compress.compress(rows * (height % 10_000)), compress.flush()]
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    pixels = chunk(b"IDAT", b"".join(packed))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + pixels + chunk(b"IEND", b"")


BOMB = zlib.compress(bytes(300_000_000), 9)  # 290 KB


@functools.cache
def attacks() -> dict[str, bytes]:
    """Files that any decoder must refuse or read with little work, by name."""
    dot = Image.new("P", (8, 8))
    tiff = saved(Image.new("L", (64, 60_000)), "TIFF", compression="tiff_adobe_deflate", strip_size=64)
    return {
        "scans": many_scans(64, 1500),
        "narrow": png(1, 16_000_000),
        "profile": png(8, 8, chunk(b"iCCP", b"x\0\0" + BOMB)),
        "text": png(8, 8, *[chunk(b"zTXt", b"x\0\0" + BOMB)] * 20),
        "empty chunks": png(8, 8, *[chunk(b"abCD", b"")] * 30_000),
        "segments": b"\xff\xd8" + b"\xff\xfe\0\x02" * 100_000 + many_scans(64, 0)[2:],
        "frames": saved(dot, "GIF", save_all=True, append_images=[dot.copy() for _ in range(2000)], loop=0),
        "strips": tiff,
        "pages": saved(dot, "TIFF", save_all=True, append_images=[dot] * 300),
        "animation": saved(
            dot.convert("RGB"),
            "WEBP",
            save_all=True,
            append_images=[Image.new("RGB", (8, 8), (k, 0, 0)) for k in range(200)],
        ),
    }
