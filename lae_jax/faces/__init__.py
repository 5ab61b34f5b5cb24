"""Aligned crops from photographs: landmarks (`detect`), the crop (`align`), and both as one recipe (`crops`)."""

from typing import Literal

Align = Literal["landmarks", "none"]
Faces = Literal["largest", "centre", "all"]
Undetected = Literal["reject", "centre"]
MAX_PIXELS = 16_000_000  # of a photograph
