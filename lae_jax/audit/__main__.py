"""Looks for what ruins an age estimator before training: pictures and people on both sides of a split, and worse ages.

    python -m lae_jax.audit data/faces
    python -m lae_jax.audit data/faces data/people --image-size 64

Reads columns and splits, and the shards only for their checksums. Writes audit.json and audit.png into each folder.
With several, each is also compared with the others. Exit status: 0 without leaks, 7 with a leak, 2 if a data set is
damaged.
"""

import argparse

from lae_jax.runtime import console, layout
from lae_jax.runtime.errors import InputError, LeakFound


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m lae_jax.audit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", nargs="+", metavar="DIR", help="folder of a prepared data set")
    parser.add_argument(
        "--image-size",
        type=int,
        help="of the input, pixels (default 224, or less where prepared with a smaller --size)",
    )
    args = parser.parse_args(argv)
    if args.image_size is not None and args.image_size < 1:
        raise InputError(f"--image-size {args.image_size}: at least 1 pixel")
    if len({*args.data}) < len(args.data):
        raise InputError("a folder is named twice")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    for path in args.data:
        layout.require_dataset(path)
    from lae_jax.audit import saved

    reports = saved.run(args.data, args.image_size)
    print("\n\n".join(saved.tell(report) for report in reports))
    if broken := [report["data"] for report in reports if report["data_hash"] is None]:
        raise InputError(f"{', '.join(broken)} cannot be used, see above")
    leaking = [r["data"] for r in reports if any(f["severity"] == "leak" for f in r["findings"])]
    if leaking:
        raise LeakFound(f"{', '.join(leaking)}: a run that uses these splits stops, unless --allow-leak")


if __name__ == "__main__":
    console.door(main)
