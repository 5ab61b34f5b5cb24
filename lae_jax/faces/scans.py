"""The markers of a JPEG: its size and the number of its scans, without decoding it."""

import re
from collections.abc import Iterator

from lae_jax.faces import MAX_KEPT_PIXELS

MAX_SCANS = 100  # of a JPEG; each takes as long as a whole picture, and encoders write 1 to 20
_MAX_MARKERS = 10_000  # of a JPEG; more are not looked at
_START_OF_SCAN, _END = 0xDA, 0xD9
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
# In the data of a scan, 0xFF is followed by zero, by the number of a restart or by padding.
_NEXT = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")


def _markers(encoded: bytes) -> Iterator[tuple[int, int]]:
    """Yields the markers of a JPEG up to its end, each with the place of what follows it."""
    place = 2
    for _ in range(_MAX_MARKERS):
        found = _NEXT.search(encoded, place)
        if found is None or encoded[found.end() - 1] == _END:
            return
        marker, place = encoded[found.end() - 1], found.end()
        yield marker, place
        place += int.from_bytes(encoded[place : place + 2], "big")
    yield _START_OF_SCAN, place  # nobody knows how many follow


def has_many_scans(encoded: bytes) -> bool:
    """Whether a JPEG has more than MAX_SCANS scans."""
    if encoded.count(b"\xff\xda") <= MAX_SCANS:
        return False
    markers = [marker for marker, _ in _markers(encoded)]
    return len(markers) > _MAX_MARKERS or markers.count(_START_OF_SCAN) > MAX_SCANS


def reason_against(encoded: bytes) -> str:
    """Why a stored crop is not decoded, by its markers alone; '' if it may be."""
    size = frame_size(encoded)
    if size is None:
        return "not a JPEG"
    if size[0] * size[1] > MAX_KEPT_PIXELS:
        return f"{size[0]} x {size[1]} pixels are more than {MAX_KEPT_PIXELS:,}"
    return f"a JPEG of more than {MAX_SCANS} scans" if has_many_scans(encoded) else ""


def frame_size(encoded: bytes) -> tuple[int, int] | None:
    """Width and height that a JPEG states before its first scan; None if it states none or is not a JPEG."""
    if not encoded.startswith(b"\xff\xd8\xff"):
        return None
    for marker, place in _markers(encoded):
        if marker in _FRAMES:
            height, width = (int.from_bytes(encoded[place + at : place + at + 2], "big") for at in (3, 5))
            return width, height
        if marker == _START_OF_SCAN:
            return None
    return None
