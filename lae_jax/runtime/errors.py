"""Errors that end a program with a specific exit status. Programs print them in one line, without a traceback.

The table in docs/scaling.md lists the statuses, and launch scripts act on them. Python itself uses 1, for an unexpected
error.
"""

import contextlib
import difflib
import errno
import functools
import logging
import numbers
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator

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
    """A file could not be written. What was finished before, such as an earlier checkpoint, is complete."""

    status = 5


class Unreachable(Ended):
    """A bucket did not answer, also after repetitions, or a Beam runner broke off. What was finished is complete."""

    status = 1


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


_ROOM, _WRITABLE = "make room", "make it writable"
# What to do about errors that only writing causes, and about those that reading can cause as well.
_OF_WRITING = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: "raise the limit on the size of a file (ulimit -f)",
    errno.EROFS: _WRITABLE,
}
_OF_A_PLACE = {errno.EACCES: _WRITABLE, errno.EPERM: _WRITABLE, errno.EIO: "check the disk"}


@contextlib.contextmanager
def saving(place: os.PathLike | str, kept: str = "") -> Iterator[None]:
    """Turns an error of a disk inside the block into `SaveFailed`, with a sentence that names the place.

    Libraries that write in C++ raise other types than OSError; their text has the words of the system.

    Args:
      place: Folder or file that the block writes.
      kept: What is complete although it failed, as a sentence.

    Raises:
      SaveFailed: `place` is full, over a quota, read-only, not permitted or broken.
      Unreachable: It is in a bucket that does not answer.
    """
    try:
        yield
    except Ended:
        raise
    except Exception as error:
        if failed := save_failed(error, place, kept):
            raise failed from error
        raise


_FOREIGN = ("google", "requests", "tensorflow", "urllib3")  # packages whose errors about a bucket are their own
_URL = re.compile(r"gs://[^\s'\"\]]+|https://(?:storage|www)\.googleapis\.com")
_STATUS = re.compile(r"[A-Z]{2}[A-Z_]+: ")  # begin of an error of tensorstore
_REFUSED = re.compile(r"\b40[13]\b|PERMISSION_DENIED|UNAUTHENTICATED|[Cc]redentials")


def of_a_bucket(
    error: BaseException, place: os.PathLike | str = "", kept: str = "", refused: type[Ended] | None = None
) -> Ended | None:
    """Returns what an error says about a bucket.

    TensorFlow, tensorstore and google-cloud-storage raise types of their own, and their texts are long.

    Args:
      error: Any error.
      place: Folder or file in the bucket that was being written, if it is known.
      kept: What is complete although it failed, as a sentence.
      refused: Type of the error where access was refused (default: SaveFailed with a place, else InputError).

    Returns:
      The error to raise in its place: access was refused, or the bucket did not answer. None if it is another error.
    """
    text, package = str(error), type(error).__module__.partition(".")[0]
    is_foreign = package in _FOREIGN or isinstance(error, OSError) or bool(_STATUS.match(text))
    found = _URL.search(text)
    of_cloud_storage = found or package == "google" or "Error executing an HTTP request" in text
    if isinstance(error, Ended) or not is_foreign or not of_cloud_storage:
        return None
    reason = re.split(r" with body| \[|\n", text.strip(), maxsplit=1)[0].rstrip(".")[:200]
    shown = os.fspath(place) or (found[0] if found else "the bucket")
    if _REFUSED.search(text):
        return (refused or (SaveFailed if place else InputError))(
            f"{shown}: the bucket refused access ({reason}){kept and f'; {kept}'}: give the account of this machine the"
            " right to read and write the bucket's objects and to get the bucket (storage.buckets.get), then start the"
            " same command again"
        )
    return Unreachable(
        f"{shown}: the bucket did not answer ({reason}){kept and f'; {kept}'}: check the network, then start the same"
        " command again"
    )


def save_failed(
    error: BaseException, place: os.PathLike | str = "", kept: str = ""
) -> SaveFailed | InputError | Unreachable | None:
    """Returns what an error says about writing.

    Args:
      error: Any error.
      place: Folder or file that was being written, if it is known.
      kept: What is complete although it failed, as a sentence.

    Returns:
      The error to raise in its place; None if the error is not about writing, or another file could not be read. About
      a bucket it may also be one of reading.
    """
    if failed := of_a_bucket(error, place, kept):
        return failed
    place = os.fspath(place)
    name = getattr(error, "filename", None)
    name = os.fsdecode(name) if isinstance(name, (str, bytes, os.PathLike)) else ""
    number = error.errno if isinstance(error, OSError) else None
    if number is None:
        number = next((one for one in _OF_WRITING if os.strerror(one) in str(error)), None)
    inside = os.path.join(os.path.abspath(name), "").startswith(os.path.join(os.path.abspath(place), ""))
    inside = bool(name and place and inside)
    what_to_do = _OF_WRITING.get(number) or (inside and _OF_A_PLACE.get(number))
    if not what_to_do:
        return None
    shown = place if inside or not name else name
    told = f"{shown or 'a file'} could not be written ({os.strerror(number)}){kept and f'; {kept}'}"
    return SaveFailed(f"{told}: {what_to_do}, then start the same command again")


def end_all(kind: type[BaseException] | None, *ends: Callable[[], object]) -> None:
    """Calls every function in `ends`, also after one has failed.

    Args:
      kind: Type of the error that ends the block, as `__exit__` gets it. No later error replaces that one.
      *ends: Functions that close files and end threads.

    Raises:
      Exception: The first error of `ends`, if `kind` is None.
    """
    first = None
    for end in ends:
        try:
            end()
        except Exception as error:
            first = first or error
    if first is not None and kind is None:
        raise first


@functools.cache
def silence_other_writes() -> None:
    """Keeps the writes of a checkpoint that fail after the first one from printing a traceback each.

    Orbax raises the error of the first one and ends its event loop. asyncio logs the errors of the other ones, and
    tensorstore cannot hand over their results any more.
    """
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    before = sys.unraisablehook

    def hook(unraisable) -> None:
        error = unraisable.exc_value
        if not (unraisable.object is None and isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
            before(unraisable)

    sys.unraisablehook = hook
