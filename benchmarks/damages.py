"""Damages of files: of their bytes, of a JSON field, of a cell of a table, with or without new checksums."""

import copy
import dataclasses
import hashlib
import json
import os
import pathlib
import random
from collections.abc import Callable, Iterator, Mapping

from lae_jax.runtime import checksums

_WRONG = {
    "null": None,
    "text": "x",
    "number": 3.5,
    "negative": -1,
    "zero": 0,
    "huge": 10**18,
    "beyond 64 bits": 10**400,
    "NaN": float("nan"),
    "infinite": float("inf"),
    "true": True,
    "list": [],
    "object": {},
    "nested list": [[1]],
}


@dataclasses.dataclass(frozen=True)
class Damage:
    """A damage of one file.

    Attributes:
      file: The file, relative to the folder of all.
      name: What is done to it.
      do: Does it to the path.
      sealed: Whether the checksums that cover the file are written anew.
    """

    file: str
    name: str
    do: Callable[[pathlib.Path], None]
    sealed: bool


# Written for people, or read by other programs: no door reads them.
_UNREAD = (".svg", ".png", ".jpg", ".tex", ".md", "report.html", ".tfevents", "/report/", "/lock", "commit_success.txt")


def damages(top: pathlib.Path, rng: random.Random) -> Iterator[Damage]:
    """Yields the damages of every file below a folder, in random order."""
    found = []
    for path in sorted(path for path in top.rglob("*") if path.is_file()):
        file = str(path.relative_to(top))
        if "tensorboard" in file or any(file.endswith(end) or end in f"/{file}" for end in _UNREAD):
            continue
        both = (False, True) if _covers(file) else (False,)
        found += [Damage(file, name, do, sealed) for name, do in _of_bytes(rng).items() for sealed in both]
        if path.suffix == ".json" or path.name == "metadata":
            content = json.loads(path.read_text())
            found += [Damage(file, name, do, sealed) for name, do in _of_fields(content) for sealed in both[-1:]]
        if path.suffix in (".jsonl", ".csv"):
            found += [Damage(file, name, do, False) for name, do in _of_cells(path.read_text(), rng)]
    rng.shuffle(found)
    yield from found


def _of_bytes(rng: random.Random) -> Mapping[str, Callable[[pathlib.Path], None]]:
    def written(make: Callable[[bytes], bytes]) -> Callable[[pathlib.Path], None]:
        return lambda path: path.write_bytes(make(path.read_bytes())) and None

    def replaced(place: Callable[[pathlib.Path], None]) -> Callable[[pathlib.Path], None]:
        def do(path: pathlib.Path) -> None:
            path.unlink()
            place(path)

        return do

    def flipped(seed: float) -> Callable[[bytes], bytes]:
        def flip(content: bytes) -> bytes:
            changed = bytearray(content)
            if changed:
                changed[int(seed * len(changed))] ^= 1 << int(seed * 1e6) % 8
            return bytes(changed)

        return flip

    made = {
        "emptied": written(lambda content: b""),
        "cut": written(lambda content: content[: len(content) // 2]),
        "[]": written(lambda content: b"[]"),
        "{}": written(lambda content: b"{}"),
        "null": written(lambda content: b"null"),
        "noise": written(lambda content: random.Random(len(content)).randbytes(300)),
        "UTF-16": written(lambda content: content.decode("latin-1").encode("utf-16")),
        "nested": written(lambda content: b"[" * 100_000),
        "nested objects": written(lambda content: b'{"a":' * 500 + b"1" + b"}" * 500),
        "twice": written(lambda content: content + content),
        "removed": replaced(lambda path: None),
        "a folder": replaced(lambda path: path.mkdir()),
        "a pipe": replaced(lambda path: os.mkfifo(path)),
        "a device": replaced(lambda path: path.symlink_to("/dev/zero")),
        "a loop": replaced(lambda path: path.symlink_to(path)),
    }
    return made | {f"flipped {number}": written(flipped(rng.random())) for number in range(3)}


def _of_fields(content: object) -> Iterator[tuple[str, Callable[[pathlib.Path], None]]]:
    """Damages of each JSON field: of a list the first value alone."""

    def rewrite(place: tuple, value: object, missing: bool) -> Callable[[pathlib.Path], None]:
        def do(path: pathlib.Path) -> None:
            changed = copy.deepcopy(content)
            parent = changed
            for step in place[:-1]:
                parent = parent[step]
            if missing:
                del parent[place[-1]]
            else:
                parent[place[-1]] = value
            path.write_text(json.dumps(changed))

        return do

    def walk(value: object, place: tuple) -> Iterator[tuple]:
        if place:
            yield place
        if isinstance(value, dict):
            for key in value:
                yield from walk(value[key], (*place, key))
        elif isinstance(value, list) and value:
            yield from walk(value[0], (*place, 0))

    for place in walk(content, ()):
        told = ".".join(map(str, place))
        yield f"{told} is missing", rewrite(place, None, True)
        for name, wrong in _WRONG.items():
            yield f"{told} is {name}", rewrite(place, wrong, False)


def _of_cells(text: str, rng: random.Random) -> Iterator[tuple[str, Callable[[pathlib.Path], None]]]:
    """Damages of words of a table or of lines: in a random line a word becomes another one."""
    for wrong in ("", "nan", "-5", "1e999", "x", '"', '{"step": "x"}', "\0"):
        lines = text.splitlines()
        number = rng.randrange(len(lines))
        cells = lines[number].split(",")
        cells[rng.randrange(len(cells))] = wrong
        lines[number] = ",".join(cells)
        changed = "\n".join(lines) + "\n"
        yield f"a cell of line {number + 1} is {wrong!r}", lambda path, new=changed: path.write_text(new) and None


def _covers(file: str) -> bool:
    """Whether checksums cover a file, directly or not."""
    parts = pathlib.PurePath(file).parts
    if parts[0] == "data":
        return "array_record" in file or "columns" in parts[-1] or "splits" in parts
    if parts[0] == "export":
        return parts[-1] != "export.json"
    return "checkpoints" in parts and parts[-1] != "sha256.json"


def seal(top: pathlib.Path, file: str) -> None:
    """Writes the checksums that cover a file anew."""
    path = top / file
    if not path.is_file() or path.is_symlink():
        return
    entry = {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    parts = path.relative_to(top).parts
    if parts[0] == "data":
        manifest = json.loads((top / "data/dataset.json").read_text())
        name = "/".join(parts[1:])
        for shard in manifest["shards"]:
            shard.update(entry if shard["file"] == name else {})
        if name in manifest["files"]:
            manifest["files"][name] = entry
        (top / "data/dataset.json").write_text(json.dumps(manifest))
    elif parts[0] == "export":
        content = json.loads((top / "export/export.json").read_text())
        content["files"]["/".join(parts[1:])] = entry
        (top / "export/export.json").write_text(json.dumps(content))
    else:
        place = parts.index("checkpoints") + 2
        folder = top.joinpath(*parts[:place])
        content = json.loads((folder / checksums.NAME).read_text())
        content["/".join(parts[place:])] = entry
        (folder / checksums.NAME).write_text(json.dumps(content))
