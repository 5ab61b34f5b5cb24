"""Readers of data sets whose file names carry the labels: a folder for each person, UTKFace, FG-NET, AgeDB."""

import dataclasses
import logging
import os
import re
from collections.abc import Mapping
from typing import NamedTuple

from lae_jax.data import people, split_names
from lae_jax.data.sources.age_text import parse_age
from lae_jax.data.sources.image_files import IMAGE_SUFFIXES, entries, image_files
from lae_jax.data.sources.interface import (
    FileReader,
    Options,
    Rows,
    Source,
    folder_of,
)
from lae_jax.faces.images import BadImage
from lae_jax.runtime.errors import InputError

logger = logging.getLogger("lae_jax")


@dataclasses.dataclass(frozen=True)
class Layout:
    """The labels in a file name.

    Attributes:
      pattern: Expression with the group `age`, and the group `identity` where people are known.
      example: A file name of this form, for messages.
      words: For each further group, its texts and the words of the column.
    """

    pattern: re.Pattern
    example: str
    words: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)

    def labels(self, path: str) -> tuple[float, str | None, list[str]]:
        """Reads the labels from a file name.

        Returns:
          (age in years, identity or None, further columns).

        Raises:
          BadImage: The file name does not have this form, or the age is outside 0 to 100.
        """
        found = self.pattern.fullmatch(path.rpartition("/")[2])
        if not found:
            raise BadImage(f"the file name does not have the form {self.example}")
        groups = found.groupdict()
        return (
            parse_age(groups["age"]),
            groups.get("identity"),
            [words[groups[column].lower()] for column, words in self.words.items()],
        )


UTKFACE = Layout(
    re.compile(r"(?P<age>[0-9]{1,3})_(?P<gender>[01])_(?P<race>[0-4])_[0-9]{8,17}\.jpg(\.chip\.jpg)?", re.IGNORECASE),
    "26_0_1_20170116184024662.jpg (age, gender, race, time)",
    {
        "gender": {"0": "male", "1": "female"},
        "race": {"0": "white", "1": "black", "2": "asian", "3": "indian", "4": "other"},
    },
)
FGNET = Layout(
    re.compile(r"(?P<identity>[0-9]{3})A(?P<age>[0-9]{2})[a-z]?\.jpe?g", re.IGNORECASE),
    "001A02.JPG or 001A02a.JPG (person, age)",
)
AGEDB = Layout(
    re.compile(r"[0-9]+_(?P<identity>.+)_(?P<age>[0-9]{1,3})_(?P<gender>[mf])\.jpe?g", re.IGNORECASE),
    "0_MariaCallas_35_f.jpg (number, name, age, gender)",
    {"gender": {"m": "male", "f": "female"}},
)


def read_utkface(sources: list[str], options: Options) -> Source:
    """Reads UTKFace: `[age]_[gender]_[race]_[date].jpg`, or `.jpg.chip.jpg` of aligned faces, at any depth of a folder.

    Raises:
      InputError: `sources` is not one folder with images, or `options.images` is set.
    """
    return _read("utkface", UTKFACE, sources, options)


def read_fgnet(sources: list[str], options: Options) -> Source:
    """Reads FG-NET: `001A02.JPG`; a letter after the age tells several pictures of a person at that age apart.

    Raises:
      InputError: `sources` is not one folder with images, or `options.images` is set.
    """
    return _read("fgnet", FGNET, sources, options)


def read_agedb(sources: list[str], options: Options) -> Source:
    """Reads AgeDB: `0_MariaCallas_35_f.jpg`; the person's name is the identity.

    Raises:
      InputError: `sources` is not one folder with images, or `options.images` is set.
    """
    return _read("agedb", AGEDB, sources, options)


def _read(reader: str, layout: Layout, sources: list[str], options: Options) -> Source:
    top = folder_of(sources, options, reader, f"images named like {layout.example}")
    rows = Rows(list(layout.words))
    for name, reason in image_files(top):
        try:
            if reason:
                raise BadImage(reason)
            age, identity, further = layout.labels(name)
            rows.add(name, age, identity, further=further)
        except BadImage as refused:
            rows.reject(name, refused)
    return _source(rows, top)


def read_folders(sources: list[str], options: Options) -> Source:
    """Reads a folder for each person: `FOLDER/<identity>/*.jpg` (or .png, ...), at any depth below the person.

    If all folders in FOLDER have the names of splits (`train`, `val`, ...), the people are the folders in them.

    Returns:
      A source with an identity for each image, sorted by name, without ages.

    Raises:
      InputError: `sources` is not one folder with images, the people are in a folder of it, or `options.images` is set.
    """
    top = folder_of(sources, options, "folders", "a folder for each person")
    splits = _splits_in(top)
    if splits:
        logger.info("%s: %s are splits, and the people are the folders in them", top, ", ".join(splits))
    rows = Rows()
    for name, reason in image_files(top):
        split, below = "", name
        if splits:
            split, _, below = name.partition("/")
        person, _, file = below.partition("/")
        try:
            if reason:
                raise BadImage(reason)
            if not file:
                raise BadImage("not in the folder of a person")
            if person.isprintable() and not people.normalised(person):
                raise BadImage(f"the name of the folder {person!r} means an unknown person")
            rows.add(name, identity=person, split=split)
        except BadImage as refused:
            rows.reject(name, refused)
    return _source(rows, top)


def _splits_in(top: str) -> list[str]:
    """Returns the folders that are splits and hold the folders of the people; [] if `top` itself holds those.

    Raises:
      InputError: The people are in a folder below `top`, or in some of its folders only.
    """
    inside = {name: found for name in _inside(top, "").folders if any(found := _inside(top, name))}
    named = [name for name in inside if split_names.role(name)]
    nested = [name for name in named if inside[name].folders]
    if nested and len(named) == len(inside):
        return named
    if len(nested) > 1:
        raise InputError(
            f"{top} holds splits ({', '.join(nested)}) and others ({min({*inside} - {*named})}, ...): name"
            " a folder that holds either splits or people"
        )
    if len(named) == len(inside) > 1:
        raise InputError(f"{top} holds {', '.join(named)}, without a folder for each person in them")
    if len(inside) == 1:
        below = next(iter(inside))
        while (found := _inside(top, below)).folders and not found.images:
            if len(found.folders) > 1:
                raise InputError(
                    f"everything in {top} is in one folder, which would be one person: name the folder that holds the"
                    f" people, with --source {os.path.join(top, below)}"
                )
            below = found.folders[0]
    elif inside and not any(found.images for found in inside.values()):
        logger.info("%s: each folder in it, such as %s, is one person, with all its subfolders", top, min(inside))
    return []


class _Inside(NamedTuple):
    folders: list[str]
    images: bool


def _inside(top: str, folder: str) -> _Inside:
    """Returns the folders in a folder, as names below `top`, and whether it also holds images."""
    kinds = entries(top, folder)
    return _Inside([name for name, kind in kinds if kind == "folder"], any(kind == "image" for _, kind in kinds))


def _source(rows: Rows, top: str) -> Source:
    source = rows.source(FileReader(top), {"images": os.path.realpath(top)})
    if not source.table.num_rows and not source.rejected:
        raise InputError(f"{top} holds no images ({', '.join(IMAGE_SUFFIXES)})")
    return source
