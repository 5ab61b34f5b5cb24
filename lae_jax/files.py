"""Files that are written whole or not at all."""

import json
import os
import pathlib
from collections.abc import Mapping


def write_json(path: pathlib.Path, content: Mapping) -> None:
    """Writes strict JSON (no NaN), sorted by key, under a temporary name first."""
    temporary = path.with_name(path.name + ".incomplete")
    temporary.write_text(json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n")
    os.replace(temporary, path)
