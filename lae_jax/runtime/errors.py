"""Errors that end a program with a specific exit status. Programs print them in one line, without a traceback.

The table in docs/scaling.md lists the statuses, and launch scripts act on them. Python itself uses 1, for an unexpected
error.
"""

import difflib
import numbers
from collections.abc import Iterable

STALLED = 4  # the watchdog ends the process itself; nothing is raised


class Ended(Exception):
    """Ends the program with `status`; the message states the reason."""

    status: int
    label = "error"


class InputError(Ended, ValueError):
    """An input (a flag, a config, a file, a data set) cannot be used as it is.

    The message says what is wrong, where, and what to do.
    """

    status = 2


class Diverged(Ended):
    """The loss or the gradients of too many steps in a row are not finite, or the outputs of an evaluation are not."""

    status = 3
    label = "diverged"


class SaveFailed(Ended):
    """A checkpoint could not be saved; earlier checkpoints are complete."""

    status = 5


class FolderInUse(Ended):
    """Another running process writes to the folder."""

    status = 6


class LeakFound(Ended):
    """An audit found the same images or people in two splits. A run that would train on them raises InputError."""

    status = 7
    label = "leak"


class NothingPredicted(Ended):
    """No image gave an age; the output states the reason for each image."""

    status = 1


class ExportDiffers(Ended):
    """The outputs of an export differ from those of the model; the export was deleted."""

    status = 1


class Preempted(Ended):
    """A signal asked the run to stop: its state is saved, and the same command resumes it."""

    status = 75
    label = "stopped"


def unknown(kind: str, name: str, known: Iterable[str], nearest: str | None = None) -> str:
    """Returns a sentence about a name that does not exist, with all known names.

    Args:
      kind: Kind of the name.
      name: The name.
      known: The known names.
      nearest: The one that was probably meant (default: the one that is spelt most like it).
    """
    known = sorted(known)
    nearest = nearest or next(iter(difflib.get_close_matches(name, known, n=1)), None)
    hint = f"; did you mean {nearest!r}?" if nearest else ""
    return f"unknown {kind} {name!r}{hint} (known: {', '.join(known) or 'none'})"


def missing_extra(extra: str, package: str, what: str) -> str:
    """Returns a sentence about a missing package of an extra, with the command that installs it."""
    return f"{what} needs the package {package}: install the extra with pip install 'lae-jax[{extra}]'"


def require_numbers(**values: object) -> None:
    """Checks that arguments are numbers, so that a string is named here and not by an error from deep inside.

    Args:
      **values: Arguments by name; None is a default.

    Raises:
      InputError: One is not a number.
    """
    for name, value in values.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, numbers.Real)):
            raise InputError(f"{name} is {value!r}: it must be a number, not of type {type(value).__name__}")


def require_whole_numbers(**values: object) -> None:
    """Like `require_numbers`, for numbers without a fraction."""
    require_numbers(**values)
    for name, value in values.items():
        if value is not None and not isinstance(value, numbers.Integral):
            raise InputError(f"{name} is {value!r}: it must be a whole number")
