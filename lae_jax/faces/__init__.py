"""Aligned crops from photographs: landmarks (`detect`), the crop (`align`), and both as one recipe (`crops`)."""

from typing import Literal

Align = Literal["landmarks", "none"]
Faces = Literal["largest", "centre", "all"]
Undetected = Literal["reject", "centre"]
SMALLEST = 20  # side in pixels of the smallest face that can be found, on a canvas and in a photograph
MAX_PIXELS = 256_000_000  # of a photograph, as its header states them
MAX_BYTES = 500_000_000  # that decoding a photograph may take; only a JPEG can be decoded at a smaller size
MAX_KEPT_PIXELS = 25_000_000  # of a decoded photograph, 100 MB; a larger one is used at 1/2, 1/4 or 1/8 of its size
MAX_SIDE = 65_500  # pixels of the longer side, the most that libjpeg takes
