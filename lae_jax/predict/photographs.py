"""Photographs: list the named ones, read them and cut their faces by a contract, in threads and in order."""

import collections
import concurrent.futures
import dataclasses
import functools
import glob
import itertools
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from PIL import Image

from lae_jax.data.sources import csv_file, image_files, interface
from lae_jax.faces import crops, images, pixels
from lae_jax.faces.images import BadImage
from lae_jax.runs import preflight
from lae_jax.runtime import cpu, foreign
from lae_jax.runtime.errors import InputError

MAX_FACES = 256  # of a photograph, the largest first: more are not cut


@dataclasses.dataclass(frozen=True)
class Named:
    """An image file.

    Attributes:
      name: Its path, which is also its name in messages and rows.
      root: Folder that the file must be in; None: any.
      refused: Why it is not read; '' if it is.
    """

    name: str
    root: str | None = None
    refused: str = ""

    def read(self) -> bytes:
        """Reads the file.

        Raises:
          BadImage: It cannot be read. The message is the reason.
        """
        if self.refused:
            raise BadImage(self.refused)
        if self.root is None:
            path = os.path.realpath(self.name)
            return interface.read_inside(os.path.dirname(path) or "/", path)
        return interface.read_inside(self.root, self.name)


@dataclasses.dataclass(frozen=True)
class Found:
    """The faces that were found in one image.

    Attributes:
      image: The image.
      inputs: The faces as inputs of the model, uint8 (S, S, 3).
      crops: The crop of each input; empty if the image is itself a crop.
      reason: Why there are no inputs.
      size: Width and height of the upright photograph, in which the crops are measured; None if it cannot be read.
      orientation: EXIF orientation by which it was turned upright, 1 to 8.
      left_out: Number of faces beyond MAX_FACES, which have no input.
    """

    image: Named
    inputs: list[np.ndarray]
    crops: list[crops.Crop]
    reason: str = ""
    size: tuple[int, int] | None = None
    orientation: int = 1
    left_out: int = 0


def named(words: Sequence[str], root: str | None = None, tell: bool = True) -> Iterator[Named]:
    """Yields the images that words name.

    Args:
      words: Files, folders (at any depth), globs and CSVs (their `path` column, or else the first one).
      root: Folder that the paths in a CSV start from (default: the CSV's own).
      tell: Log how many files of the folders are not images.

    Raises:
      InputError: A glob matches nothing, or a CSV cannot be used.
    """
    for word in words:
        if os.path.isdir(word):
            yield from _in_folder(word, tell)
        elif word.lower().endswith(".csv"):
            yield from in_csv(word, root)
        elif os.path.exists(word) or not glob.has_magic(word):
            # A missing file gets a row with the reason, as does a file that cannot be read.
            yield Named(word)
        else:
            matches = sorted(preflight.matching(word))
            if not matches:
                raise InputError(f"{word}: no file matches")
            yield from itertools.chain.from_iterable(
                _in_folder(match, tell) if os.path.isdir(match) else [Named(match)] for match in matches
            )


def _in_folder(folder: str, tell: bool) -> Iterator[Named]:
    for name, reason in image_files.image_files(folder, tell):
        yield Named(os.path.join(folder, name), refused=reason or "")


def in_csv(path: str, root: str | None = None) -> Iterator[Named]:
    """Yields the images that a CSV lists, with or without a header.

    Args:
      path: The CSV.
      root: Folder that its paths start from (default: the CSV's own).

    Raises:
      InputError: The CSV is empty, or its first line neither has a column of paths nor begins with an image.
    """
    root = root or str(pathlib.Path(path).parent)
    rows = csv_file.csv_rows(pathlib.Path(path))
    first = next(rows, None)
    if first is None:
        raise InputError(f"{path} is empty: list one image per line")
    header = [cell.strip().lower() for cell in first[1]]
    column = next((header.index(name) for name in csv_file.PATH_NAMES if name in header), None)
    begin = first[1][0].strip()
    if column is None and not (
        begin.lower().endswith(image_files.IMAGE_SUFFIXES) or os.path.isfile(os.path.join(root, begin))
    ):
        raise InputError(
            f"{path}: the first line {foreign.quoted(','.join(first[1]), 80)} has no column"
            f" {'|'.join(csv_file.PATH_NAMES)} and does not begin with an image: add a header"
            + csv_file.separator(begin)
        )
    for _, row in rows if column is not None else itertools.chain([first], rows):
        yield Named((row[column or 0] if len(row) > (column or 0) else "").strip(), root)


def found(
    items: Iterator[Named],
    recipe: crops.Recipe | None,
    to_input: Callable[[Image.Image], np.ndarray],
    *,
    threads: int | None = None,
) -> Iterator[Found]:
    """Yields the faces of each image, in order. Threads read a few images ahead of the caller.

    Args:
      items: The images.
      recipe: How faces are cut; None: the images are crops.
      to_input: Turns a crop into an input of the model.
      threads: Number of threads that read and cut (default: one per core).
    """
    threads = threads or cpu.cores()
    chunks = iter(lambda: list(itertools.islice(items, 4)), [])
    work = functools.partial(of_chunk, recipe=recipe, to_input=to_input)
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        ahead = collections.deque(pool.submit(work, chunk) for chunk in itertools.islice(chunks, 2 * threads))
        while ahead:
            results = ahead.popleft().result()
            ahead.extend(pool.submit(work, chunk) for chunk in itertools.islice(chunks, 1))
            yield from results


def of_chunk(items: Sequence, recipe: crops.Recipe | None, to_input: Callable) -> list[Found]:
    """Finds the faces in each of a few images.

    The other images in the list change a result by no more than the tolerance of `crops.cut`.

    Args:
      items: `Named`, or other objects with a `name` and a method `read` that returns the bytes.
      recipe: As in `found`.
      to_input: As in `found`.
    """
    contents: list[bytes | BadImage] = []
    for item in items:
        try:
            contents.append(item.read())
        except BadImage as reason:
            contents.append(reason)
    decoded = iter(images.decode_all([content for content in contents if isinstance(content, bytes)]))
    loaded = [next(decoded) if isinstance(content, bytes) else content for content in contents]
    return of_decoded([*zip(items, loaded, strict=True)], recipe, to_input)


def of_decoded(
    items: Sequence[tuple[Named, images.Decoded | BadImage]], recipe: crops.Recipe | None, to_input: Callable
) -> list[Found]:
    """Finds the faces in each of a few decoded images, as `of_chunk` does.

    Args:
      items: Each image, and its pixels or the reason why there are none.
      recipe: As in `found`.
      to_input: As in `found`.
    """
    loaded = [picture for _, picture in items]
    pictures = [crops.Photograph(one.image, reduced=one.reduced) for one in loaded if not isinstance(one, BadImage)]
    cut = iter([[None]] * len(pictures) if recipe is None else crops.cut(pictures, recipe, MAX_FACES))
    results = []
    for item, picture in items:
        if isinstance(picture, BadImage):
            results.append(Found(item, [], [], str(picture)))
            continue
        result, inputs, kept, left_out = next(cut), [], [], 0
        reason = str(result) if isinstance(result, BadImage) else ""
        if not reason:
            inputs = [to_input(_stored(picture.image if crop is None else crop.image, recipe)) for crop in result]
            kept = [crop for crop in result if crop is not None]
            if recipe is not None and recipe.faces == "all":
                left_out = max(0, (kept[0].faces or 0) - len(kept))
        results.append(Found(item, inputs, kept, reason, picture.size, picture.orientation, left_out))
    return results


def _stored(crop: Image.Image, recipe: crops.Recipe | None) -> Image.Image:
    """Returns a crop as it comes out of a data set: stored as a JPEG of the contract's quality and read again."""
    return crop if recipe is None else pixels.decode(images.encode(crop, recipe.quality)).image
