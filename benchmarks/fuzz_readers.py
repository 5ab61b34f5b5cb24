"""Feeds the readers of raw sources with damaged bytes, guided by coverage (atheris), for as long as one likes.

python -m benchmarks.fuzz_readers --seconds 60 TARGET|all        (needs: pip install atheris)

A target reads or refuses with InputError or BadImage; anything else, more than 10 seconds or more than 2 GB end it with
an error and leave the input in the working folder. tests/bench/test_fuzz_readers.py gives the targets to hypothesis.
"""

import argparse
import importlib.util
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable

from benchmarks import harness, raw_sources
from lae_jax.data.sources import filenames, interface
from lae_jax.data.sources.readers import READERS, Options
from lae_jax.faces.images import BadImage
from lae_jax.runtime import console
from lae_jax.runtime.errors import InputError

_LIMITS = ["-rss_limit_mb=2048", "-timeout=10", "-max_len=65536"]
_CHILD = """
import sys, atheris
with atheris.instrument_imports(include=["lae_jax.data"]):
    from benchmarks import fuzz_readers
atheris.Setup(sys.argv[:1] + sys.argv[2:], fuzz_readers.TARGETS[sys.argv[1]])
atheris.Fuzz()
"""


def _read(reader: str, path: pathlib.Path) -> None:
    """Reads a source and the first pictures of it."""
    try:
        read = READERS[reader]([str(path)], Options())
    except InputError:
        return
    for row in read.table.slice(0, 8).to_pylist():
        try:
            read.read(row)
        except BadImage:
            pass


def _file(reader: str, name: str) -> Callable[[bytes], None]:
    def target(data: bytes) -> None:
        with tempfile.TemporaryDirectory(dir=_fast_folder()) as folder:
            path = pathlib.Path(folder) / name
            path.write_bytes(data)
            _read(reader, path.parent if reader == "appa_real" else path)

    return target


def _recordio(data: bytes) -> None:
    """`data`: the index, two zero bytes, the records."""
    index, _, records = data.partition(b"\0\0")
    with tempfile.TemporaryDirectory(dir=_fast_folder()) as folder:
        path = pathlib.Path(folder) / "train.rec"
        path.write_bytes(records)
        path.with_suffix(".idx").write_bytes(index)
        _read("recordio", path)


def _names(data: bytes) -> None:
    """`data`: a path, as a file system or a CSV may give it."""
    name = os.fsdecode(data)
    for layout in (filenames.UTKFACE, filenames.FGNET, filenames.AGEDB):
        rows = interface.Rows(list(layout.words))
        try:
            age, identity, further = layout.labels(name)
            rows.add(name, age, identity, further=further)
        except BadImage as reason:
            rows.reject(name, reason)
        rows.source(interface.FileReader("."), {})
    with tempfile.TemporaryDirectory(dir=_fast_folder()) as folder:
        try:
            interface.read_inside(folder, name)
        except BadImage:
            return
    raise AssertionError(f"{name!r} was read from an empty folder")


def _fast_folder() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


TARGETS: dict[str, Callable[[bytes], None]] = {
    "appa_real": _file("appa_real", "gt_avg_train.csv"),
    "csv": _file("csv", "faces.csv"),
    "mat": _file("imdb_wiki", "imdb.mat"),
    "mivia": _file("mivia", "labels.csv"),
    "names": _names,
    "recordio": _recordio,
}


def seeds(target: str) -> list[bytes]:
    """True inputs of a target, to start from."""
    if target == "recordio":
        made = [raw_sources.recordio([2, 1]), raw_sources.recordio([1, 1], extra=raw_sources.MAGIC * 3)]
        return [index + b"\0\0" + records for records, index in made]
    return {
        "appa_real": [
            b"file_name,num_ratings,apparent_age_avg,apparent_age_std,real_age\n000000.jpg,36,5.2,1.07,4\n",
        ],
        "csv": [
            b"path,age,identity,split,landmarks,camera\na.jpg,3.5,p,train,1 2 3 4 5 6 7 8 9 10,x\nb.jpg,4,,,,\n",
            b'a.jpg,3\n"b,""c"".jpg",4\n',
        ],
        "mat": [raw_sources.imdb_mat(compressed=False), raw_sources.imdb_mat("wiki")],
        "mivia": [b"n000123/0001_01.jpg,27\n0.jpg,31.5\n"],
        "names": [
            b"part1/26_0_1_20170116184024662.jpg.chip.jpg",
            b"001A02a.JPG",
            b"0_MariaCallas_35_f.jpg",
            b"../x.jpg",
        ],
    }[target]


def _fuzz(target: str, seconds: int) -> int:
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(seeds(target)):
            (pathlib.Path(corpus) / str(number)).write_bytes(seed)
        limits = [*_LIMITS, f"-max_total_time={seconds}", corpus]
        return subprocess.run([sys.executable, "-c", _CHILD, target, *limits], check=False).returncode


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz_readers", description=__doc__)
    parser.add_argument("target", choices=[*TARGETS, "all"])
    parser.add_argument("--seconds", type=int, default=60, help="for each target (default 60)")
    args = parser.parse_args(argv)
    if importlib.util.find_spec("atheris") is None:
        raise InputError("atheris is not installed here: pip install atheris (it has wheels for Linux)")
    names = list(TARGETS) if args.target == "all" else [args.target]
    ended = {name: _fuzz(name, args.seconds) for name in names}
    print(console.table(["target", "ended"], [(name, "clean" if not code else code) for name, code in ended.items()]))
    if any(ended.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    harness.run(main)
