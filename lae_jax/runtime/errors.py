"""Ends of a program that have an exit status of their own. Doors print them in one line, without a traceback.

The statuses are a table in docs/scaling.md, which launch scripts act on; 1 is Python's own, for what nobody foresaw.
"""

import difflib

STALLED = 4  # the watchdog ends the process itself; nothing is raised


class Ended(Exception):
    """The program ends with `status`, for a reason that its message tells."""

    status: int
    label = "error"


class InputError(Ended, ValueError):
    """Something that came from outside (a flag, a config, a file, a data set) cannot be used as it is.

    The message says what is wrong, where, and what to do.
    """

    status = 2


class Diverged(Ended):
    """Too many steps in a row had a loss or gradients that were not finite, or the outputs of an evaluation are not."""

    status = 3
    label = "diverged"


class SaveFailed(Ended):
    """A checkpoint could not be written; the ones before it are whole."""

    status = 5


class FolderInUse(Ended):
    """Another live process writes to the folder."""

    status = 6


class LeakFound(Ended):
    """An audit found the same pictures or people on both sides of a split; a run that meets them has bad input."""

    status = 7
    label = "leak"


class NothingPredicted(Ended):
    """No image gave an age; each has its reason in the output."""

    status = 1


class ExportDiffers(Ended):
    """An export does not compute what the model does; it was deleted."""

    status = 1


class Preempted(Ended):
    """A signal asked the run to stop: what it had done is saved, and it can be started again."""

    status = 75
    label = "stopped"


def unknown(kind: str, name: str, known) -> str:
    """One sentence for a name that does not exist: the nearest one and all that do."""
    known = sorted(known)
    nearest = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    return f"unknown {kind} {name!r}{hint} (known: {', '.join(known) or 'none'})"
