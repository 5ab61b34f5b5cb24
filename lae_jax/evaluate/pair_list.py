"""Lists of pairs of images to verify people on: LFW's pairs.txt, tables of paths, and the .bin files of insightface."""

import collections
import dataclasses
import hashlib
import logging
import os
import pathlib
import re
from collections.abc import Iterator, Sequence

import numpy as np

from lae_jax.data.sources import csv_file, interface
from lae_jax.faces.images import BadImage
from lae_jax.runtime import console, files, layout
from lae_jax.runtime.errors import InputError
from lae_jax.runtime.foreign import pickles, quoted

logger = logging.getLogger("lae_jax")

FOLDS = 10
MAX_PAIRS = 1_000_000
MAX_BIN_BYTES = 1 << 30  # of a .bin file, which is read at once; LFW's has 60 MB
_SUFFIXES = (".jpg", ".png", ".jpeg")  # of LFW's images, and of aligned copies
_SAME = {"1": True, "true": True, "0": False, "false": False}
_HEADER = re.compile(r"\d{1,9}(\s+\d{1,9})?")
_ONE, _TWO = re.compile(r"(\S+)\s+(\d{1,9})\s+(\d{1,9})"), re.compile(r"(\S+)\s+(\d{1,9})\s+(\S+)\s+(\d{1,9})")
_BIN = ".bin"


@dataclasses.dataclass(frozen=True, eq=False)
class PairList:
    """Pairs of images, and whether they show the same person.

    Attributes:
      path: The file.
      digest: SHA-256 of the file.
      names: (N,) names of the images, each once: paths below the folder of the images, or a number in the .bin file.
      encoded: (N,) image files of a .bin file, which are face crops; None: the images are files.
      pairs: (P, 2) places in `names`.
      same: (P,) whether a pair shows one person.
      folds: (P,) number of the fold of each pair, from 0.
      people: (N,) names of the people, where the list has them.
    """

    path: str
    digest: str
    names: list[str]
    encoded: list[bytes] | None
    pairs: np.ndarray
    same: np.ndarray
    folds: np.ndarray
    people: list[str] | None = None

    def read(self, row: dict) -> interface.Picture:
        """Reads the image of a row of `rows`.

        Raises:
          BadImage: It cannot be read.
        """
        if self.encoded is not None:
            return interface.Picture(self.encoded[row["number"]])
        return interface.FileReader(row["root"])(row)

    def rows(self, root: str | None) -> Iterator[dict]:
        """Yields a row for each image, as `data.stored` takes them."""
        for number, name in enumerate(self.names):
            yield {"name": name, "number": number, "root": root, "landmarks": None}


class _Pairs:
    """Collects pairs, and refuses or leaves out those that would not count."""

    def __init__(self, path: str):
        self.path, self.places, self.known = path, {}, {}
        self.fold: list[int] = []
        self.left_out: collections.Counter[str] = collections.Counter()

    def add(self, first: object, second: object, same: bool, where: str, fold: int = -1) -> None:
        """Adds a pair of keys of images."""
        one, other = (self.places.setdefault(key, len(self.places)) for key in (first, second))
        pair = (one, other) if one < other else (other, one)
        if one == other and not same:
            raise InputError(f"{self.path}: {where} calls an image different from itself: correct the list")
        if one == other:
            self.left_out["pair of an image with itself", "pairs of an image with itself"] += 1
        elif self.known.setdefault(pair, same) != same:
            raise InputError(
                f"{self.path}: {where} calls two images {'one person' if same else 'two people'}, and an earlier pair"
                " says the opposite: correct the list"
            )
        elif len(self.known) == len(self.fold):
            self.left_out["pair that occurs again", "pairs that occur again"] += 1
        else:
            self.fold.append(fold)
        if len(self.fold) > MAX_PAIRS:
            raise InputError(f"{self.path} has more than {MAX_PAIRS:,} pairs: use a part of it")

    def done(self, digest: str, names: Sequence[str], **further) -> PairList:
        """Returns the list."""
        for (one, many), count in self.left_out.items():
            logger.warning("%s: %s left out", self.path, console.counted(count, f"{one} is", f"{many} are"))
        pairs = np.array([*self.known], np.int64).reshape(-1, 2)
        same = np.fromiter(self.known.values(), bool, len(self.known))
        for kind, count in (("the same person", int(same.sum())), ("different people", int((~same).sum()))):
            if count < 2:
                raise InputError(
                    f"{self.path} has {console.counted(count, 'pair')} of {kind}: verification needs two or more pairs"
                    " of the same person, and of different people"
                )
        folds = np.array(self.fold)
        return PairList(self.path, digest, [*names], folds=_dealt(same) if folds.min() < 0 else folds, pairs=pairs,
                        same=same, **({"encoded": None} | further))  # fmt: skip


def _dealt(same: np.ndarray) -> np.ndarray:
    """Folds for a list without: both kinds are cut into as many equal parts in a row as there are folds.

    LFW's own folds come out of its pairs. A list with fewer than ten pairs of a kind has so many folds.
    """
    counts = int(same.sum()), int((~same).sum())
    number = min(FOLDS, *counts)
    folds = np.empty(len(same), np.int64)
    for kind, count in ((same, counts[0]), (~same, counts[1])):
        folds[kind] = np.arange(count) * number // count
    return folds


def read(path: str | os.PathLike) -> PairList:
    """Reads a list of pairs; its content says of which form it is.

    - LFW: a line `10 300` (folds, pairs of a kind in each) or `1100` (one set), then for each fold the pairs of one
      person, `name 1 4`, and those of two, `name 1 other 2`. Images are `name/name_0001.jpg` (or .png).
    - Table: lines of two paths and 1 or 0 (or true, false) at the end or at the beginning, separated
      by commas or by spaces; the first line may name the columns.
    - .bin: a pickle of insightface, (image files, bools).

    Raises:
      InputError: The file cannot be used. The message says in which line.
    """
    path = os.fspath(path)
    layout.require_regular(path, f"--pairs {path}")
    if not os.path.isfile(path):
        raise InputError(f"--pairs {path}: no such file{layout.hint(path)}")
    if path.endswith(_BIN):
        return _bin(path)
    text = files.read_text(path, "write the list again")
    lines = [(number, line.strip("\ufeff \t\r")) for number, line in enumerate(text.split("\n"), 1)]
    lines = [(number, line) for number, line in lines if line]
    if not lines:
        raise InputError(
            f"{path} is empty: write one pair a line: `path1,path2,1` for one person, `path1,path2,0` for two"
        )
    digest = hashlib.sha256(text.encode()).hexdigest()
    return (_lfw if _HEADER.fullmatch(lines[0][1]) else _table)(path, lines, digest)


def require_images(found: PairList, root: str) -> PairList:
    """Returns the list with the suffixes that the images of LFW have in a folder.

    Raises:
      InputError: Some images are not in the folder.
    """
    if found.encoded is not None:
        return found
    names = found.names
    if found.people is not None:
        names = [
            next((stem + suffix for suffix in _SUFFIXES if os.path.exists(os.path.join(root, stem + suffix))), None)
            or stem + _SUFFIXES[0]
            for stem in names
        ]
    missing = [(name, reason) for name in names if (reason := _fault(root, name))]
    if missing:
        name, reason = missing[0]
        raise InputError(
            f"{len(missing):,} of the {len(names):,} images of {found.path} cannot be read in {root}, such as"
            f" {quoted(name, 120)}: {reason}. Name their folder with --images"
        )
    return dataclasses.replace(found, names=names)


def _fault(root: str, name: str) -> str:
    """Why a file below a folder cannot be opened; '' if it can."""
    try:
        interface.read_inside(root, name, most=0)
    except BadImage as reason:
        return str(reason)
    return ""


def _lfw(path: str, lines: list[tuple[int, str]], digest: str) -> PairList:
    numbers = [int(word) for word in lines[0][1].split()]
    folds, size = numbers if len(numbers) == 2 else (1, numbers[0])
    if not folds or not size or len(lines) - 1 != 2 * folds * size:
        raise InputError(
            f"{path}: the first line, {lines[0][1]!r}, promises {2 * folds * size:,} pairs, and there are"
            f" {len(lines) - 1:,} lines below it: complete the list"
        )
    pairs, people = _Pairs(path), {}
    for at, (number, line) in enumerate(lines[1:]):
        same = at // size % 2 == 0
        found = (_ONE if same else _TWO).fullmatch(line)
        if not found:
            raise InputError(
                f"{path} line {number}: {quoted(line, 80)} is not"
                f" {'`name 1 4`, a pair of one person' if same else '`name 1 other 2`, a pair of two people'}:"
                " correct the line"
            )
        name, first, *other, second = found.groups()
        names = (name, other[0] if other else name)
        if not same and names[0] == names[1]:
            raise InputError(
                f"{path} line {number}: {quoted(line, 80)} names one person twice, where two people are"
                " expected: correct the line"
            )
        stems = [f"{one}/{one}_{int(image):04d}" for one, image in zip(names, (first, second), strict=True)]
        people |= zip(stems, names, strict=True)
        pairs.add(*stems, same, f"line {number}", at // (2 * size) if folds > 1 else -1)
    return pairs.done(digest, [*pairs.places], people=[people[stem] for stem in pairs.places])


def _table(path: str, lines: list[tuple[int, str]], digest: str) -> PairList:
    is_csv = "," in lines[0][1]
    rows = csv_file.csv_rows(pathlib.Path(path)) if is_csv else ((number, line.split()) for number, line in lines)
    pairs, label_at = _Pairs(path), None
    for place, (number, row) in enumerate(rows):
        row = [cell.strip() for cell in row]
        if label_at is None and len(row) == 3:
            label_at = next((at for at in (2, 0) if row[at].lower() in _SAME), None)
            if label_at is None and not place:
                continue  # the names of the columns
        if len(row) != 3 or label_at is None or row[label_at].lower() not in _SAME or not all(row):
            raise InputError(
                f"{path} line {number}: {quoted(','.join(row), 80)} is not two paths and 1 (one person) or 0 (two"
                " people): correct the line" + csv_file.separator(row[0] if row else "")
            )
        first, second = row[:2] if label_at == 2 else row[1:]
        pairs.add(first, second, _SAME[row[label_at].lower()], f"line {number}")
    return pairs.done(digest, [*pairs.places])


def _bin(path: str) -> PairList:
    if os.path.getsize(path) > MAX_BIN_BYTES:
        raise InputError(f"{path} has more than {MAX_BIN_BYTES:,} bytes: use a list of paths")
    with files.open_regular(path) as file:
        content = file.read(MAX_BIN_BYTES)
    wanted = "a .bin file is a pickle of two lists, image files and bools: get it again, or use a list of paths"
    try:
        encoded, same = pickles.plain(content)
        is_right = all(type(one) is bytes for one in encoded) and len(encoded) == 2 * len(same)
        is_right = is_right and all(type(one) in (bool, int) and one in (0, 1) for one in same)
    except pickles.BadPickle as reason:
        raise InputError(f"{path} is not read: {reason}. {wanted.capitalize()}") from reason
    except (TypeError, ValueError):
        is_right = False
    if not is_right:
        raise InputError(f"{path} does not hold two images for each bool: {wanted}")
    pairs = _Pairs(path)
    # A pickle may name one picture millions of times: it is hashed once. Equal ones that are stored twice are two here.
    digest_of = {key: hashlib.sha256(one).digest() for key, one in {id(one): one for one in encoded}.items()}
    digests = [digest_of[id(one)] for one in encoded]
    for number, one in enumerate(same):
        pairs.add(digests[2 * number], digests[2 * number + 1], bool(one), f"pair {number}")
    first = {digest: number for number, digest in reversed([*enumerate(digests)])}
    numbers = [first[digest] for digest in pairs.places]
    digest = hashlib.sha256(content).hexdigest()
    return pairs.done(digest, [f"image {n}" for n in numbers], encoded=[encoded[n] for n in numbers])
