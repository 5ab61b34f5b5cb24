"""The image files below a folder."""

import collections
import logging
import os
from collections.abc import Iterator

from lae_jax.data.sources.interface import read_inside
from lae_jax.faces import images
from lae_jax.faces.images import BadImage
from lae_jax.runtime import layout
from lae_jax.runtime.console import counted
from lae_jax.runtime.foreign import quoted, shown

logger = logging.getLogger("lae_jax")

# Files in a folder with another ending, or with none, are images if they begin as one.
IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".heic", ".heif", ".avif", ".bmp", ".tif", ".tiff",
    ".gif", ".pgm", ".ppm",
)  # fmt: skip


def image_files(top: str, tell: bool = True) -> Iterator[tuple[str, str | None]]:
    """Finds the image files at any depth of a folder, sorted by the parts of the path.

    Links to folders are not followed, so no file is read twice and no loop is entered. `read_inside` checks whether a
    linked file is outside the folder. Files of systems and editors, and others that are not images, are left out.

    Args:
      top: The folder.
      tell: Log in a line each how much was left out.

    Yields:
      (name below `top`, None) for an image file; (name, reason) for a link to a folder, or a folder that cannot be
      read.
    """
    stack = [iter(entries(top, ""))]
    left_out, some, others = 0, {}, collections.Counter()
    while stack:
        for name, kind in stack[-1]:
            if kind == "system":
                left_out += 1
                if len(some) < 4:
                    some[os.path.basename(name)] = None
                continue
            if kind == "other":
                others[shown(os.path.splitext(name)[1].lower(), 12) or "without an ending"] += 1
                continue
            if kind == "folder":
                stack.append(iter(entries(top, name)))
                break
            yield name, None if kind == "image" else kind
        else:
            stack.pop()
    if others and tell:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in others.most_common(6)) + ", ..." * (len(others) > 6)
        count = counted(others.total(), "file is", "files are")
        logger.info("%s: %s ignored, because the format is not read: %s", top, count, kinds)
    if left_out and tell:
        examples = ", ".join(quoted(text, 60) for text in some)
        logger.info("%s: %d system files or folders are ignored, such as %s", top, left_out, examples)


def entries(top: str, folder: str) -> list[tuple[str, str]]:
    """Returns sorted (name below `top`, 'folder' | 'image' | 'other' | 'system' | reason) of what is in a folder."""
    found = []
    try:
        with os.scandir(os.path.join(top, folder)) as inside:
            for entry in inside:
                name = f"{folder}/{entry.name}" if folder else entry.name
                if layout.is_system(entry.name):
                    found.append((name, "system"))
                elif entry.is_dir(follow_symlinks=False):
                    found.append((name, "folder"))
                elif entry.is_symlink() and entry.is_dir():
                    found.append((name, "a link to a folder: links are not followed"))
                elif entry.name.lower().endswith(IMAGE_SUFFIXES) or _is_image(top, name):
                    found.append((name, "image"))
                else:
                    found.append((name, "other"))
    except OSError as error:
        found.append((folder or top, f"folder cannot be read ({error.strerror})"))
    return sorted(found)


def _is_image(top: str, name: str) -> bool:
    """Whether a file begins as an image. True also if it cannot be read: its reader reports that."""
    try:
        return images.is_picture(read_inside(top, name, most=16))
    except BadImage:
        return True
