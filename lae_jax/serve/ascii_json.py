"""JSON answers in ASCII: exact, and without characters that a terminal obeys or that reorder a line."""

import json

from fastapi.responses import JSONResponse


class AsciiJSON(JSONResponse):
    """A JSON answer with an escape for each character that is not ASCII."""

    def render(self, content: object) -> bytes:
        """Returns the body."""
        return encoded(content)


def encoded(content: object) -> bytes:
    """Returns JSON in ASCII."""
    return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")
