"""Audits data sets before training: pictures and people on both sides of a split, implausible ages, small faces.

    python -m lae_jax.audit data/faces
    python -m lae_jax.audit data/faces data/people --image-size 64

Reads columns and splits, and the shards only for their checksums. Writes audit.json and audit.png into each folder.
Several data sets are also compared with each other. Exit status: 0 without leaks, 7 with a leak, 2 if a data set is
damaged.
"""

import argparse

from lae_jax import audit
from lae_jax.runtime import console, flags, start
from lae_jax.runtime.errors import InputError, LeakFound


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = flags.Parser("audit", __doc__)
    parser.add_argument("data", nargs="+", metavar="DIR", help="folder of a prepared data set")
    parser.add_argument(
        "--image-size",
        type=int,
        metavar="PIXELS",
        help="side of the model's input (default: 224, or the --size of a data set that was prepared smaller)",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Audits data sets and prints the findings.

    Raises:
      InputError: A data set is damaged.
      LeakFound: A data set has a leak.
    """
    args = parse_args(argv)
    reports = audit.audit(args.data, image_size=args.image_size)
    from lae_jax.audit import saved
    from lae_jax.data import records

    for number, report in enumerate(reports):
        console.write(*[""] * (number > 0), *saved.tell(report))
    if broken := [report["data"] for report in reports if report["data_hash"] is None]:
        raise InputError(f"{', '.join(broken)} cannot be used: see the findings above")
    leaking = [r["data"] for r in reports if any(f["severity"] == "leak" for f in r["findings"])]
    if leaking:
        raise LeakFound(f"{', '.join(leaking)}: a run that uses these splits stops, unless you add --allow-leak")
    console.write(f"look at {' and '.join(f'{place}/{saved.PICTURE}' for place in args.data)}")
    console.write(*saved.next_commands(records.open_dataset(args.data[0], "quick"), args.data[0]))


if __name__ == "__main__":
    start.program(main)
