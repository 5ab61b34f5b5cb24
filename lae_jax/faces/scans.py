"""The markers of a JPEG: its size and the number of its scans, without decoding it."""

import re
from typing import NamedTuple

from lae_jax.faces import MAX_KEPT_PIXELS

MAX_SCANS = 100  # of a JPEG; each takes as long as a whole picture, and encoders write 1 to 20
_MAX_MARKERS = 10_000  # of a JPEG; more are not looked at
TOO_MANY = f"a JPEG of more than {MAX_SCANS} scans"
_START_OF_SCAN, _END = 0xDA, 0xD9
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_SEQUENTIAL = (0xC0, 0xC1)
# In the data of a scan, 0xFF is followed by zero, by the number of a restart or by padding.
_NEXT = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")


class Header(NamedTuple):
    """What a JPEG states before its first scan: width and height in pixels, and whether that scan is the only one."""

    width: int
    height: int
    is_single: bool


def header(encoded: bytes) -> Header | None:
    """Returns what a JPEG states before its first scan; None if it states no size or is not a JPEG."""
    if not encoded.startswith(b"\xff\xd8\xff"):
        return None
    place, frame, components = 2, None, 0
    try:
        for _ in range(_MAX_MARKERS):
            marker = encoded[place + 1]
            if encoded[place] != 0xFF or marker in (0x00, 0xFF):  # filled up, or damaged in the way that decoders skip
                found = _NEXT.search(encoded, place)
                if found is None:
                    return None
                place, marker = found.start(), encoded[found.start() + 1]
            if marker in _FRAMES:
                frame, components = place, encoded[place + 9]
            elif marker == _START_OF_SCAN:
                break
            place += 2 + (encoded[place + 2] << 8 | encoded[place + 3])
        if frame is None:
            return None
        height, width = (int.from_bytes(encoded[frame + at : frame + at + 2], "big") for at in (5, 7))
        is_single = encoded[frame + 1] in _SEQUENTIAL and encoded[place + 4] == components
        return Header(width, height, is_single)
    except IndexError:
        return None


def number(encoded: bytes) -> int:
    """Returns the number of scans of a JPEG; MAX_SCANS + 1 if it has more, or too many markers."""
    stated = header(encoded)
    if stated is not None and stated.is_single:
        return 1
    place, scans = 2, 0
    for _ in range(_MAX_MARKERS):
        found = _NEXT.search(encoded, place)
        if found is None or encoded[found.end() - 1] == _END:
            return scans
        scans += encoded[found.end() - 1] == _START_OF_SCAN
        if scans > MAX_SCANS:
            break
        place = found.end() + int.from_bytes(encoded[found.end() : found.end() + 2], "big")
    return MAX_SCANS + 1


def reason_against_stored(encoded: bytes) -> str:
    """Why a stored crop is not decoded, by its markers alone; '' if it may be."""
    stated = header(encoded)
    if stated is None:
        return "not a JPEG"
    if stated.width * stated.height > MAX_KEPT_PIXELS:
        return f"{stated.width} x {stated.height} pixels are more than {MAX_KEPT_PIXELS:,}"
    return "" if stated.is_single or number(encoded) <= MAX_SCANS else TOO_MANY
