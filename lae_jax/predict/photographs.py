"""Photographs that a user names -> faces, cut by a contract: read, decoded and cut by threads, in order."""

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

from lae_jax.data.sources import csv_file, interface
from lae_jax.faces import crops, images
from lae_jax.faces.images import BadImage
from lae_jax.runtime import cpu
from lae_jax.runtime.errors import InputError


@dataclasses.dataclass(frozen=True)
class Named:
    """An image: its name as it is reported, and the folder below which it must lie (None: anywhere)."""

    name: str
    root: str | None = None

    def read(self) -> bytes:
        """Raises BadImage with the reason."""
        if self.root is None:
            path = os.path.realpath(self.name)
            return interface.read_inside(os.path.dirname(path) or "/", path)
        return interface.read_inside(self.root, self.name)


@dataclasses.dataclass(frozen=True)
class Found:
    """What was found in one image: its crops as the model's input (S, S, 3) uint8, or why there are none."""

    image: Named
    inputs: list[np.ndarray]
    crops: list[crops.Crop]  # one for each input; of ready crops none
    reason: str = ""


def named(words: Sequence[str], root: str | None = None) -> Iterator[Named]:
    """The images of files, folders (at any depth), globs and CSVs (their `path` column, else their first).

    Args: root: folder of the CSVs' paths (default: the CSV's own). Raises InputError for what names nothing.
    """
    for word in words:
        if os.path.isdir(word):
            yield from _in_folder(word)
        elif word.lower().endswith(".csv"):
            yield from in_csv(word, root)
        elif os.path.exists(word) or not glob.has_magic(word):
            # A file that is missing gets a row that says so, as one that cannot be read does.
            yield Named(word)
        else:
            matches = sorted(glob.glob(word, recursive=True))
            if not matches:
                raise InputError(f"{word}: no file has such a name")
            yield from itertools.chain.from_iterable(
                _in_folder(match) if os.path.isdir(match) else [Named(match)] for match in matches
            )


def _in_folder(folder: str) -> Iterator[Named]:
    for name, reason in interface.image_files(folder):
        if reason is None:
            yield Named(os.path.join(folder, name))


def in_csv(path: str, root: str | None = None) -> Iterator[Named]:
    """The images that a CSV lists, with a header or without. Raises InputError where its first line is neither."""
    root = root or str(pathlib.Path(path).parent)
    rows = csv_file.csv_rows(pathlib.Path(path))
    first = next(rows, None)
    if first is None:
        raise InputError(f"{path} is empty: one line an image is needed")
    header = [cell.strip().lower() for cell in first[1]]
    column = next((header.index(name) for name in csv_file.PATH_NAMES if name in header), None)
    begin = first[1][0].strip()
    if column is None and not (
        begin.lower().endswith(interface.IMAGE_SUFFIXES) or os.path.isfile(os.path.join(root, begin))
    ):
        raise InputError(
            f"{path}: the first line {interface.shown(','.join(first[1]), 80)!r} names no column"
            f" {'|'.join(csv_file.PATH_NAMES)} and does not begin with an image either"
            + " (fields are separated by commas, not semicolons)"
            * (";" in begin)
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
    """What is found in each image, in order; a few more are read ahead than the caller has taken.

    Args: recipe: how faces are cut; None: the images are crops. to_input: crop -> the model's input. threads: that read
    and cut (default: one for each core).
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
    """Finds the faces in each of a few images. Other images in the list change a result within `crops.cut`'s tolerance.

    Args:
      items: `Named`, or any objects with a `name` and a `read` method that returns the bytes.
      recipe, to_input: As in `found`.
    """
    loaded: list[Image.Image | BadImage] = []
    for item in items:
        try:
            loaded.append(images.load(item.read()))
        except BadImage as reason:
            loaded.append(reason)
    pictures = [picture for picture in loaded if not isinstance(picture, BadImage)]
    cut = iter([[None]] * len(pictures) if recipe is None else crops.cut([*map(crops.Photograph, pictures)], recipe))
    results = []
    for item, picture in zip(items, loaded, strict=True):
        result = picture if isinstance(picture, BadImage) else next(cut)
        if isinstance(result, BadImage):
            results.append(Found(item, [], [], str(result)))
            continue
        inputs = [to_input(_stored(picture if crop is None else crop.image, recipe)) for crop in result]
        results.append(Found(item, inputs, [crop for crop in result if crop is not None]))
    return results


def _stored(crop: Image.Image, recipe: crops.Recipe | None) -> Image.Image:
    """A crop as a data set gives it back: through JPEG of the contract's quality."""
    return crop if recipe is None else images.load(images.encode(crop, recipe.quality))
