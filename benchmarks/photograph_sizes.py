"""Memory and time of decoding large photographs: each format at 12, 48 and 200 megapixels.

    python -m benchmarks.photograph_sizes
    python -m benchmarks.photograph_sizes --megapixels 12 48 --formats JPEG HEIC

Each photograph is decoded as `prepare`, `predict` and `serve` do it, by a program of its own. Its line has the peak of
the memory of the process that decodes and of the program itself, the seconds, and the size that the photograph is used
at, or the reason why it is refused. A photograph that its header refuses is a small one whose header states the size.
"""

import io
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np
from PIL import Image

from benchmarks import harness
from lae_jax.faces import decoders, images, pixels
from lae_jax.predict import photographs

Image.MAX_IMAGE_PIXELS = None
_SIDES = {12: (4000, 3000), 48: (8000, 6000), 200: (16320, 12240)}  # as cameras have them
_FORMATS = {
    "JPEG": ("JPEG", {"quality": 90}),
    "progressive JPEG": ("JPEG", {"quality": 90, "progressive": True}),
    "PNG": ("PNG", {"compress_level": 1}),
    "TIFF": ("TIFF", {"compression": "tiff_lzw"}),
    "WebP": ("WEBP", {"quality": 80, "method": 0}),
    "AVIF": ("AVIF", {"speed": 10}),
    "HEIC": ("HEIF", {"quality": 60}),
    "BMP": ("BMP", {}),
}
# Where the header of a format that encodes slowly or not at all at 200 megapixels states the size: what comes before,
# the bytes of a side, and their order.
_STATED = {
    "AVIF": (b"ispe\0\0\0\0", 4, "big"),
    "HEIC": (b"ispe\0\0\0\0", 4, "big"),
    "WebP": (b"\x9d\x01\x2a", 2, "little"),
}


def made(name: str, megapixels: int) -> bytes:
    """A photograph of soft colours with the noise of a sensor."""
    size = _SIDES[megapixels]
    kind, options = _FORMATS[name]
    if name in _STATED and megapixels > 48:
        encoded = made(name, 12)
        before, count, order = _STATED[name]
        at = encoded.index(before) + len(before)
        return encoded[:at] + b"".join(side.to_bytes(count, order) for side in size) + encoded[at + 2 * count :]
    random = np.random.default_rng(0)
    picture = Image.fromarray(random.integers(0, 256, (9, 12, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
    noise = Image.fromarray(random.integers(0, 8, (1000, 1000), np.uint8)).convert("RGB")
    for x in range(0, size[0], 3000):  # a ninth of it: a scene has flat and busy parts
        for y in range(0, size[1], 3000):
            part = picture.crop((x, y, x + 1000, y + 1000))
            picture.paste(Image.fromarray(np.asarray(part) // 2 + np.asarray(noise) * 8), (x, y))
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(path: str) -> dict:
    """What it takes to decode a file, by this process and its decoder."""
    images.load(images.encode(Image.new("RGB", (8, 8)), 90))  # starts the decoder
    begun = time.perf_counter()
    try:
        found = images.decode(photographs.Named(path).read())
        told = "{} x {}".format(*found.image.size) + f" (1/{found.reduced})" * (found.reduced > 1)
    except images.BadImage as reason:
        told = str(reason)
    seconds = time.perf_counter() - begun
    (process,) = decoders.shared()._all
    return {
        "decoder_mb": peak(process._child.pid),
        "program_mb": peak("self"),
        "seconds": seconds,
        "result": told,
    }


def peak(process: int | str) -> float:
    """The most megabytes that a process has had in memory (Linux)."""
    lines = pathlib.Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--megapixels", type=int, nargs="+", choices=_SIDES, default=[*_SIDES])
    parser.add_argument("--formats", nargs="+", choices=_FORMATS, default=[*_FORMATS])
    parser.add_argument("--decode", metavar="FILE", help="decode this file alone, and print what it took as JSON")
    args = parser.parse_args()
    if args.decode:
        print(json.dumps(decoded(args.decode)))
        return
    pixels.heif_formats()
    rows, content = [], {}
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "photograph"
        for name in args.formats:
            for megapixels in args.megapixels:
                path.write_bytes(made(name, megapixels))
                command = [sys.executable, "-m", "benchmarks.photograph_sizes", "--decode", str(path)]
                took = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                content[f"{name} {megapixels}"] = took
                numbers = (f"{took[key]:.{digits}f}" for key, digits in zip(took, (0, 0, 2), strict=False))
                rows.append((name, f"{megapixels}", f"{path.stat().st_size / 1e6:.1f}", *numbers, took["result"]))
                print(*rows[-1], flush=True)
    header = ("format", "megapixels", "file, MB", "decoder, MB", "program, MB", "seconds", "used at, or refused")
    harness.show(content, header, rows)


if __name__ == "__main__":
    harness.run(main)
