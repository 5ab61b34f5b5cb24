"""Texts that leave this machine do not tell where its files are."""

import re

# An absolute path or a place in a bucket: in code marks it may hold spaces, elsewhere it ends with the word.
_IN_CODE = re.compile(r"`(?:(?:gs|s3|file):/)?/[^`\n]*`")
_IN_TEXT = re.compile(r"(?<![\w/:.`])(?:(?:gs|s3|file):/)?/[^\s`'\",;:()|]+")


def without_places(text: str, *known: str) -> str:
    """Returns a text in which the last part stands for each absolute path and each place in a bucket.

    Args:
      text: A text, such as a model card.
      *known: Absolute paths that may be in it, with spaces.
    """
    for path in known:
        text = re.sub(re.escape(path.rstrip("/")) + r"(?![\w.-])", lambda _, path=path: _last(path), text)
    text = _IN_CODE.sub(lambda found: f"`{_last(found[0][1:-1])}`", text)
    return _IN_TEXT.sub(lambda found: _last(found[0]), text)


def _last(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2] or "/"
