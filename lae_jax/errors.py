"""The error that a user can mend: it says what is wrong, where, and what to do. Doors print it without a traceback."""

import difflib


class InputError(ValueError):
    """Something that came from outside (a flag, a config, a file, a data set) cannot be used as it is."""


def unknown(kind: str, name: str, known) -> str:
    """One sentence for a name that does not exist: the nearest one and all that do."""
    known = sorted(known)
    nearest = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    return f"unknown {kind} {name!r}{hint} (known: {', '.join(known) or 'none'})"
