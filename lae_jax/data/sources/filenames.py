"""Readers of data sets whose file names carry the labels: a folder for each person, UTKFace, FG-NET, AgeDB."""

import dataclasses
import os
import re
from collections.abc import Mapping

from lae_jax.data.sources.interface import (
    IMAGE_SUFFIXES,
    FileReader,
    Options,
    Rows,
    Source,
    folder_of,
    image_files,
    parse_age,
)
from lae_jax.faces.images import BadImage
from lae_jax.runtime.errors import InputError


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

    Returns:
      A source with an identity for each image, sorted by name, without ages.

    Raises:
      InputError: `sources` is not one folder with images, or `options.images` is set.
    """
    top = folder_of(sources, options, "folders", "a folder for each person")
    rows = Rows()
    for name, reason in image_files(top):
        person, below, _ = name.partition("/")
        try:
            if reason:
                raise BadImage(reason)
            if not below:
                raise BadImage("not in the folder of a person")
            rows.add(name, identity=person)
        except BadImage as refused:
            rows.reject(name, refused)
    return _source(rows, top)


def _source(rows: Rows, top: str) -> Source:
    source = rows.source(FileReader(top), {"images": os.path.realpath(top)})
    if not source.table.num_rows and not source.rejected:
        raise InputError(f"{top} holds no images ({', '.join(IMAGE_SUFFIXES)})")
    return source
