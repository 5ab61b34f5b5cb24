"""Whether the audit is silent on clean data and finds what was planted, on a folder of face crops.

    python -m benchmarks.planted_leaks --faces ../shared/data/utkface_lt

The folder holds train.csv, val.csv and test.csv (path,age) and their images. What the audit finds in it as it is gets
told and taken out; the rest must be clean; then four kinds of leak are planted, each must be found, and no other. A
file that is the same on both sides never gets that far: `prepare` leaves its copy out. --clean FILE keeps the rows that
are clean as a table for `prepare`, paths relative to --faces.
"""

import argparse
import csv
import pathlib
import shutil
import sys
import tempfile

from PIL import Image

from benchmarks import harness
from lae_jax import audit, prepare

_FILES = {"train": "train.csv", "validation": "val.csv", "test": "test.csv"}
_LEAKS = {"near_picture", "near_picture_ages", "same_identity", "same_file_ages"}


def audited(folder: pathlib.Path, rows: list[dict], name: str) -> tuple[list[dict], int]:
    """Findings about rows of path, age, split, identity; and how many copies `prepare` left out."""
    table = folder / f"{name}.csv"
    _write(table, ["path", "age", "split", "identity"], rows)
    out = folder / name
    manifest = prepare.prepare(table, out, images=folder / "images", align="none", shards=4)
    (report,) = audit.audit([out], image_size=64)
    shutil.rmtree(out)
    return [finding for finding in report["findings"] if finding["kind"] in _LEAKS], manifest["left_out_of_split"]


def _write(table: pathlib.Path, columns: list[str], rows: list[dict]) -> None:
    with open(table, "w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def planted(folder: pathlib.Path, rows: list[dict]) -> list[dict]:
    """A picture stored again in validation, one with two ages, a file with two ages, a person on both sides; and a
    train file again in validation."""
    train = [dict(row) for row in rows if row["split"] == "train"]
    for row, name in ((train[1], "again.jpg"), (train[4], "younger.jpg")):
        image = Image.open(folder / "images" / row["path"]).convert("RGB")
        smaller = image.resize([side * 3 // 4 for side in image.size], Image.Resampling.BICUBIC)
        smaller.save(folder / "images" / name, quality=70)
    shutil.copy(folder / "images" / train[2]["path"], folder / "images" / "older.jpg")
    shutil.copy(folder / "images" / train[0]["path"], folder / "images" / "copy.jpg")
    more = [
        {**train[0], "path": "copy.jpg", "split": "validation", "identity": "a"},
        {**train[1], "path": "again.jpg", "split": "validation", "identity": "b"},
        {**train[4], "path": "younger.jpg", "age": abs(float(train[4]["age"]) - 5), "identity": "d"},
        {**train[2], "path": "older.jpg", "age": float(train[2]["age"]) + 20, "identity": "c"},
    ]
    rows = [dict(row) for row in rows]
    next(row for row in rows if row["split"] == "test")["identity"] = train[3]["identity"]
    return rows + more


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planted_leaks", description=__doc__)
    parser.add_argument("--faces", required=True, type=pathlib.Path, help="folder with train.csv, val.csv, test.csv")
    parser.add_argument("--clean", type=pathlib.Path, help="CSV to write: path, age, split of the clean rows")
    args = parser.parse_args()
    rows = []
    for split, name in _FILES.items():
        with open(args.faces / name, newline="") as file:
            rows += [
                {"path": row["path"], "age": row["age"], "split": split, "identity": f"person-{len(rows) + i}"}
                for i, row in enumerate(csv.DictReader(file))
            ]
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        shutil.copytree(args.faces, folder / "images")
        before, _ = audited(folder, rows, "as_it_is")
        print("as it is:", *(f"{finding['kind']} {finding['count']}" for finding in before))
        rounds = 0
        while found := audited(folder, rows, f"clean{rounds}")[0]:
            # The first of each pair goes; a finding names at most 20 of its pairs.
            gone = {example[0].rsplit(" (", 1)[0] for finding in found for example in finding["examples"]}
            rows = [row for row in rows if row["path"] not in gone]
            rounds += 1
        print(f"clean with {len(rows)} images")
        if args.clean:
            _write(args.clean, ["path", "age", "split"], rows)
        found, left_out = audited(folder, planted(folder, rows), "planted")
        for finding in found:
            print(f"{finding['kind']} ({finding['severity']}): {finding['message']}: {finding['examples'][0]}")
        if {finding["kind"] for finding in found} != _LEAKS or left_out != 1:
            sys.exit(f"planted {sorted(_LEAKS)} and one copy, of which {left_out} were left out")


if __name__ == "__main__":
    harness.run(main)
