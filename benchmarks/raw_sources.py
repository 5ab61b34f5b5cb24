"""Small sources in the layouts in which data sets are published: what tests read and fuzzers start from."""

import io
import pathlib
import struct

import numpy as np
import scipy.io
from PIL import Image

MAGIC = struct.pack("<I", 0xCED7230A)


def jpeg(seed: int = 0, size: int = 16) -> bytes:
    """A small picture of noise, another one for each seed."""
    pixels = np.random.default_rng(seed).integers(0, 255, (size, size, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write_images(folder: pathlib.Path, names) -> None:
    for seed, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(seed))


def packed(labels, image: bytes, key: int = 0) -> bytes:
    """A record's content as mxnet's recordio.pack makes it: one number is the header's label, several stand behind."""
    if isinstance(labels, (list, tuple)):
        return struct.pack("<IfQQ", len(labels), 0.0, key, 0) + np.array(labels, "<f4").tobytes() + image
    return struct.pack("<IfQQ", 0, labels, key, 0) + image


def framed(content: bytes) -> bytes:
    """A record as dmlc's RecordIOWriter writes it: cut where the magic stands at a multiple of 4."""
    parts, start = [], 0
    for at in range(0, len(content) - 3, 4):
        if content[at : at + 4] == MAGIC:
            parts.append(content[start:at])
            start = at + 4
    parts.append(content[start:])
    framed = b""
    for number, part in enumerate(parts):
        place = 0 if len(parts) == 1 else 1 if number == 0 else 3 if number == len(parts) - 1 else 2
        framed += MAGIC + struct.pack("<I", place << 29 | len(part)) + part + bytes(-len(part) % 4)
    return framed


def recordio(people, extra: bytes = b"") -> tuple[bytes, bytes]:
    """(`.rec`, `.idx`) as insightface's face2rec2.py writes them: `people` is the number of pictures of each person.

    `extra` is appended to every picture.
    """
    total, key = sum(people), 1
    contents = [packed([total + 1, total + 1 + len(people)], b"")]
    ranges = []
    for label, count in enumerate(people):
        ranges.append((key, key + count))
        for _ in range(count):
            contents.append(packed(float(label), jpeg(key) + extra, key))
            key += 1
    contents += [packed(list(borders), b"", total + 1 + label) for label, borders in enumerate(ranges)]
    records, lines = b"", []
    for key, content in enumerate(contents):
        lines.append(f"{key}\t{len(records)}\n")
        records += framed(content)
    return records, "".join(lines).encode()


def write_recordio(folder: pathlib.Path, people, extra: bytes = b"") -> pathlib.Path:
    folder.mkdir(parents=True, exist_ok=True)
    records, index = recordio(people, extra)
    (folder / "train.rec").write_bytes(records)
    (folder / "train.idx").write_bytes(index)
    (folder / "property").write_text(f"{len(people)},112,112")
    return folder


def cells(values) -> np.ndarray:
    """A 1xN Matlab cell."""
    made = np.empty((1, len(values)), object)
    made[0, :] = values
    return made


def imdb_mat(variable: str = "imdb", compressed: bool = True, **changed) -> bytes:
    """A Matlab file with IMDB-WIKI's fields: five entries, of which the first two can be used."""
    born = 736330.0 - 40 * 365.2425  # Matlab's number of 1 January 2016, 40 years before
    entries = {
        "dob": np.array([[born, born, born, born, 4e5]]),
        "photo_taken": np.array([[2010, 2011, 2011, 2011, 2011]], np.uint16),
        "full_path": cells([f"{i:02d}/nm{i:07d}_rm{i}_1976-1-1_2011.jpg" for i in range(5)]),
        "gender": np.array([[1.0, 0.0, np.nan, 1.0, 1.0]]),
        "name": cells(["Fred Astaire", "Zoë Ünal", "", "Humphrey Bogart", "Old Man"]),
        "face_location": cells([np.array([[1.0, 1.0, 9.0, 9.0]])] * 5),
        "face_score": np.array([[1.5, 3.25, -np.inf, 2.0, 2.0]]),
        "second_face_score": np.array([[np.nan, np.nan, np.nan, 1.25, np.nan]]),
        "celeb_names": cells(["Fred Astaire", "Humphrey Bogart"]),
        "celeb_id": np.array([[1.0, 2.0, 1.0, 2.0, 1.0]]),
        **changed,
    }
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, {variable: entries}, do_compression=compressed)
    return buffer.getvalue()
