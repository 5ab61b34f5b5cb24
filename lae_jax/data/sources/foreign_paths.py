r"""Paths as another program wrote them: `sub\0.png`, letters in another Unicode form than on the disk, or escapes."""

import functools
import os
import re
import unicodedata
from collections.abc import Sequence

from lae_jax.runtime import foreign

_FORMS = ("NFC", "NFD")
_FOLDERS = 8  # whose names are held for hints


def as_on_disk(top: str, name: str) -> str:
    r"""Returns a path as the disk has it.

    This is a path with characters in place of the escapes of `foreign.shown`, as in a CSV that this project wrote. Or
    it has `/` for `\`, and the letters in the Unicode form of its names.

    Args:
      top: Folder that the path starts from.
      name: The path, of which no file exists as it is written.

    Raises:
      FileNotFoundError: There is no such file.
    """
    path = os.path.join(top, foreign.unescaped(name))
    if os.path.lexists(path):
        return path
    path = top
    for part in _relative(top, name).split("/"):
        forms = dict.fromkeys((part, *(unicodedata.normalize(form, part) for form in _FORMS)))
        found = next((form for form in forms if os.path.lexists(os.path.join(path, form))), None)
        if found is None:
            raise FileNotFoundError(name)
        path = os.path.join(path, found)
    return path


def hint(top: str, name: str) -> str:
    """Returns what to look at where no file is found, as the end of a sentence; '' if nothing is known."""
    if re.match(r"[A-Za-z]:[\\/]", name):
        return ": a Windows path. Give paths that start from the folder of --images"
    like = _like(top, _relative(top, name).split("/"))
    return f": there is {like!r}, which differs in upper and lower case" if like else ""


def _like(top: str, parts: Sequence[str]) -> str:
    """Returns the path that differs in case alone, from the first such part on; '' if there is none inside `top`."""
    path, differing = top, []
    for part in parts:
        if not os.path.join(os.path.realpath(path), "").startswith(os.path.join(top, "")):
            return ""
        there = os.path.lexists(os.path.join(path, part)) and part != os.pardir
        found = part if there else _by_case(path).get(_plain(part))
        if found is None:
            return ""
        if differing or not there:
            differing.append(found)
        path = os.path.join(path, found)
    return "/".join(differing)


def _relative(top: str, name: str) -> str:
    return os.path.relpath(os.path.join(top, name.replace("\\", "/")), top)


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


@functools.lru_cache(maxsize=_FOLDERS)
def _by_case(folder: str) -> dict[str, str]:
    try:
        return {_plain(name): name for name in os.listdir(folder)}
    except (OSError, ValueError):
        return {}
