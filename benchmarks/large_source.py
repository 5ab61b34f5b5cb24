"""Memory and time of everything in `lae_jax.prepare` but the images: a CSV of ten million made-up rows is read and
planned, gets the parts that its shards would have had, is joined and split.

python -m benchmarks.large_source [--rows 10000000] [--by identity|image|column|folds] [--out DIR] [--at-most GB]

Every line has the seconds of a phase and the peak of the process's memory so far (ru_maxrss). With --at-most the status
is 1 where that was more.
"""

import hashlib
import pathlib
import resource
import sys
import tempfile
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import harness
from lae_jax.data import joining, shards, stored
from lae_jax.data.sources import readers
from lae_jax.faces import crops
from lae_jax.prepare import assembly
from lae_jax.runtime.files import write_json

PEOPLE_OF = 100  # images a person


def peak() -> float:
    """GB that this process has had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


class Clock:
    def __init__(self):
        self._begun = time.perf_counter()

    def told(self, phase: str) -> None:
        now = time.perf_counter()
        print(f"{phase:24} {now - self._begun:8.1f} s   peak {peak():5.2f} GB", flush=True)
        self._begun = now


def write_csv(path: pathlib.Path, rows: int, splits: bool) -> None:
    """Every hundredth row has an age that a reader refuses."""
    rng = np.random.default_rng(0)
    names = ("train", "train", "train", "validation", "test")
    with open(path, "w") as file:
        file.write("path,age,identity,split\n" if splits else "path,age,identity\n")
        for first in range(0, rows, 100_000):
            person = rng.integers(0, max(1, rows // PEOPLE_OF), 100_000)
            for i in range(min(100_000, rows - first)):
                age = "x" if i % 100 == 7 else i % 101
                end = f",{names[i % 5]}\n" if splits else "\n"
                file.write(f"n{person[i]:06d}/{first + i:08d}_01.jpg,{age},n{person[i]:06d}{end}")


def write_part(task: shards.ShardTask) -> None:
    """What `write_shard` would leave beside the shard; every hundredth image is refused, a few occur twice."""
    with open(task.source, "rb") as file, pa.ipc.open_file(file) as reader:
        table = pa.Table.from_batches([reader.get_batch(task.index)])
    kept = np.flatnonzero(np.arange(table.num_rows) % 100 != 3)
    names = table["name"].to_pylist()
    columns = table.take(pa.array(kept))
    number = task.first_row + kept
    content = [hashlib.sha256(str(i - i % 5 if i % 50_000 == 1 else i).encode()).hexdigest() for i in number.tolist()]
    made = {
        "name": columns["name"],
        "source_row": number,
        "sha256": content,
        "width": [300] * len(kept),
        "height": [400] * len(kept),
        "landmarks": np.random.default_rng(task.index).uniform(0, 300, (len(kept), 10)).astype(np.float32).tolist(),
        "box": [[1.0, 2.0, 3.0, 4.0]] * len(kept),
        "cut_by": ["mtcnn"] * len(kept),
        "scale": [1.5] * len(kept),
    }
    for name, kind in stored.COLUMNS.items():
        values = pa.array(made.get(name, [None] * len(kept)), kind) if name != "name" else made[name]
        if name in columns.column_names:
            columns = columns.set_column(columns.column_names.index(name), name, values)
        else:
            columns = columns.append_column(name, values)
    pq.write_table(columns, task.columns_path)
    refused = [[names[i], "not an image that can be read"] for i in range(3, table.num_rows, 100)]
    write_json(task.part_path, {"rejected": refused, "bytes": 1, "sha256": "0" * 64})


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--by", choices=("identity", "image", "column", "folds"), default="identity")
    parser.add_argument("--out", help="folder for some gigabytes (default: a temporary one)")
    parser.add_argument("--at-most", type=float, default=float("inf"), help="GB")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=flags.out) as folder:
        out, table, clock = pathlib.Path(folder) / "out", pathlib.Path(folder) / "faces.csv", Clock()
        write_csv(table, flags.rows, flags.by == "column")
        how = assembly.Splitting(
            ratio=None if flags.by == "folds" else (8, 1, 1),
            folds=10 if flags.by == "folds" else None,
            by="image" if flags.by == "image" else None,
            seed=0,
        )
        clock.told("(the CSV is written)")
        source = readers.READERS["csv"]([str(table)], readers.Options())
        clock.told("read")
        tasks = shards.plan(source, out, "csv", crops.Recipe("none"))
        rejected = source.rejected
        del source
        clock.told("plan")
        for task in tasks:
            write_part(task)
        clock.told("(parts are made up)")
        manifest = joining.finish(tasks, rejected, lambda column: assembly.splitter(how, column))
        clock.told("join and split")
        print({key: manifest[key] for key in ("count", "rejected", "left_out_of_split", "splits", "protocol")})
    if peak() > flags.at_most:
        sys.exit(f"{peak():.2f} GB of memory, more than {flags.at_most:g}")


if __name__ == "__main__":
    main()
