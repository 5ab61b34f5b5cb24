"""Reader of insightface's RecordIO without mxnet: MS1M (emore, arcface), Glint360K, CASIA-WebFace and the like.

`train.rec` is a sequence of records of dmlc-core's recordio.h, little-endian: magic 0xced7230a; a word of 3 bits (0:
whole, 1: first part, 2: middle part, 3: last part) and 29 bits of length; the bytes; zeros up to a multiple of 4. A
record is cut into parts where the magic occurs in its bytes, and the magic is omitted there. `train.idx` has the lines
`key TAB place in bytes`. A record begins with mxnet's IRHeader (flag uint32, label float32, id and id2 uint64), then
`flag` labels of float32 where flag is not 0, then the encoded image. insightface's record 0 has no image but two
labels: 1 + the number of images, whose keys are 1, 2, ..., and the end of the keys that follow. Those keys belong to
people, and their records have no image either. `property` is `people,height,width`.
"""

import array
import dataclasses
import math
import os
import pathlib
import struct

import numpy as np

from lae_jax.data.sources.interface import MAX_FILE_BYTES, Options, Picture, Rows, Source, refuse_images
from lae_jax.faces.images import BadImage
from lae_jax.runtime.errors import InputError

MAGIC = 0xCED7230A
MAX_PARTS = 1000  # of a record; in real files a second part is rare
_WORDS = struct.Struct("<II")
_HEADER = struct.Struct("<IfQQ")
_LABEL = struct.Struct("<f")
_EXACT = 1 << 24  # whole numbers below it are exact as float32
_HEAD_BYTES = _WORDS.size + _HEADER.size + _LABEL.size


def _part(descriptor: int, offset: int, size: int) -> tuple[int, int, bytes]:
    """Returns (place in the record 0..3, length, first bytes) of the part at `offset`, which must end in the file."""
    head = os.pread(descriptor, _HEAD_BYTES, offset)
    if len(head) < _WORDS.size:
        raise BadImage(f"the file ends at byte {size:,}, where a record should begin")
    magic, word = _WORDS.unpack_from(head)
    if magic != MAGIC:
        raise BadImage(f"no record begins at byte {offset:,}")
    length = word & ((1 << 29) - 1)
    if offset + _WORDS.size + length > size:
        raise BadImage(f"the record at byte {offset:,} runs past the end of the file")
    return word >> 29, length, head[_WORDS.size : _WORDS.size + length]


def read_record(descriptor: int, offset: int, size: int) -> bytes:
    """Reads the record at `offset` of an open file of `size` bytes and joins its parts.

    Raises:
      BadImage: No record begins there, its parts are in the wrong order, or it is too large.
    """
    joined = bytearray()
    for number in range(MAX_PARTS):
        place, length, _ = _part(descriptor, offset, size)
        if place not in ((2, 3) if number else (0, 1)):
            raise BadImage(f"the record at byte {offset:,} has its parts in the wrong order")
        if len(joined) + length > MAX_FILE_BYTES:
            raise BadImage(f"record larger than {MAX_FILE_BYTES:,} bytes")
        if number:
            joined += MAGIC.to_bytes(4, "little")
        joined += os.pread(descriptor, length, offset + _WORDS.size)
        if place in (0, 3):
            return bytes(joined)
        offset += _WORDS.size + -(-length // 4) * 4
    raise BadImage(f"the record has more than {MAX_PARTS} parts")


def unpack(record: bytes) -> tuple[list[float], bytes]:
    """Splits a record into its content.

    Returns:
      (labels, encoded image, empty in records that insightface adds).

    Raises:
      BadImage: The record is too short for its header or its labels.
    """
    if len(record) < _HEADER.size:
        raise BadImage("the record is shorter than its header")
    flag, label, _, _ = _HEADER.unpack_from(record)
    start = _HEADER.size + 4 * flag
    if start > len(record):
        raise BadImage(f"the record claims {flag} labels, more than it holds")
    labels = np.frombuffer(record, "<f4", flag, _HEADER.size).tolist() if flag else [label]
    return labels, record[start:]


def _label_of(descriptor: int, offset: int, size: int) -> tuple[float, bool]:
    """Returns (first label, whether an image follows) of a record, usually from one short read."""
    place, length, head = _part(descriptor, offset, size)
    if place or length < _HEADER.size + _LABEL.size:
        labels, image = unpack(read_record(descriptor, offset, size))
        return labels[0], bool(image)
    flag, label, _, _ = _HEADER.unpack_from(head)
    end = _HEADER.size + 4 * flag
    if end > length:
        raise BadImage(f"the record claims {flag} labels, more than it holds")
    return _LABEL.unpack_from(head, _HEADER.size)[0] if flag else label, length > end


def read_index(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads a `.idx` file.

    Returns:
      (keys, places in bytes), each int64 (N,), in the order of the keys.

    Raises:
      InputError: A line is not `key TAB place in bytes`, or a key occurs twice.
    """
    keys, offsets = array.array("q"), array.array("q")
    with open(path, "rb") as file:
        while line := file.readline(64):
            words = line.split()
            if len(words) != 2 or not all(word.isdigit() and len(word) <= 18 for word in words):
                raise InputError(f"{path}, line {len(keys) + 1}: {line!r} is not `key TAB place in bytes`")
            keys.append(int(words[0]))
            offsets.append(int(words[1]))
    keys, offsets = np.array(keys, np.int64), np.array(offsets, np.int64)
    order = np.argsort(keys, kind="stable")
    keys, offsets = keys[order], offsets[order]
    doubled = keys[1:][keys[1:] == keys[:-1]]
    if len(doubled):
        raise InputError(f"{path}: the key {doubled[0]} occurs twice")
    return keys, offsets


def _people(path: pathlib.Path) -> float:
    """Returns the number of people in `property`; infinity where this file does not exist."""
    if not path.is_file():
        return math.inf
    with open(path, "rb") as file:
        words = file.read(100).split(b",")
    if len(words) != 3 or not all(word.strip().isdigit() for word in words):
        raise InputError(f"{path} is not `people,height,width`: restore or remove it")
    return int(words[0])


def _announced(descriptor: int, offset: int, size: int) -> int | None:
    """Returns the number of images that insightface's record 0 announces; None where that record is an image."""
    labels, image = unpack(read_record(descriptor, offset, size))
    if image or len(labels) < 2:
        return None
    if not 1 <= labels[0] < math.inf:
        raise BadImage(f"it announces {labels[0]} images")
    return int(labels[0]) - 1


@dataclasses.dataclass(frozen=True)
class RecordReader:
    """Reads the images in the record file `path`."""

    path: str

    def __call__(self, row: dict) -> Picture:
        """Reads the image at the `record_offset` of a row; raises BadImage."""
        try:
            with open(self.path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                return Picture(unpack(read_record(file.fileno(), int(row["record_offset"]), size))[1])
        except OSError as error:
            raise BadImage(f"{self.path} cannot be read ({error.strerror})") from error


def read_recordio(sources: list[str], options: Options) -> Source:
    """Reads a folder with `train.rec` and `train.idx` (and `property`), or a `.rec` with its `.idx` in one folder.

    The name is the key of the record, the identity its first label; there are no ages. The head of every record is read
    once.

    Raises:
      InputError: A file is missing or cannot be read, record 0 cannot be used, or `options.images` is set.
    """
    refuse_images(options, "recordio")
    if len(sources) != 1:
        raise InputError("--reader recordio needs one --source FOLDER that holds train.rec and train.idx")
    path = pathlib.Path(sources[0])
    path = path / "train.rec" if path.is_dir() else path
    for needed in (path, path.with_suffix(".idx")):
        if not needed.is_file() or needed.suffix not in (".rec", ".idx"):
            raise InputError(f"--source {sources[0]}: {needed} is missing; NAME.rec and NAME.idx are needed")
    rows = Rows(["record_offset"])
    try:
        people = _people(path.parent / "property")
        keys, offsets = read_index(path.with_suffix(".idx"))
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            _read_labels(file.fileno(), size, keys, offsets, people, rows, path)
    except OSError as error:
        raise InputError(f"{path} or its .idx cannot be read: {error.strerror}") from error
    return rows.source(RecordReader(str(path)), {"records": os.path.realpath(path), "bytes": size})


def _read_labels(
    descriptor: int,
    size: int,
    keys: np.ndarray,
    offsets: np.ndarray,
    people: float,
    rows: Rows,
    path: pathlib.Path,
) -> None:
    announced = None
    if len(keys) and keys[0] == 0:
        try:
            announced = _announced(descriptor, int(offsets[0]), size)
        except BadImage as reason:
            raise InputError(f"{path}: record 0 cannot be used: {reason}") from reason
    # Above the whole numbers of float32 the announced end of the images is off by one or more.
    exact = announced is not None and announced + 1 < _EXACT
    for key, offset in zip(keys, offsets, strict=True):
        if announced is not None and key == 0:
            continue
        name = f"{key:08d}"
        try:
            label, image = _label_of(descriptor, int(offset), size)
            if announced is not None and not image and (key > announced or not exact):
                continue  # belongs to a person
            if not image:
                raise BadImage("the record holds no image")
            if not (label >= 0 and label == math.floor(label) and label < people):
                among = f" (`property` names {people} people)" if people < math.inf else ""
                raise BadImage(f"label {label} is not the number of a person{among}")
            rows.add(name, identity=str(int(label)), further=[str(offset)])
        except BadImage as reason:
            rows.reject(name, reason)
    named = int(((keys >= 1) & (keys <= (announced or 0))).sum())
    if exact and named != announced:
        rows.reject(path.with_suffix(".idx").name, f"names {named} images, record 0 announces {announced}")
