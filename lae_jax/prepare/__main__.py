"""Makes a prepared data set from photographs.

python -m lae_jax.prepare --reader csv --source faces.csv --out data/faces                   (photographs)
python -m lae_jax.prepare --reader csv --source crops.csv --align none --out data/faces      (face crops)
python -m lae_jax.prepare --reader csv --source train=train.csv --source test=test.csv --images photos --out data/faces
python -m lae_jax.prepare --reader folders --source people/ --out data/people
python -m lae_jax.prepare --reader synthetic --source train=4000 --source validation=1000 --out data/drawn
"""

import dataclasses
import logging
from typing import get_args

from lae_jax import prepare
from lae_jax.faces import Align, Faces, Undetected
from lae_jax.runtime import console, flags, layout, start
from lae_jax.runtime.errors import saving
from lae_jax.runtime.files import is_remote

logger = logging.getLogger("lae_jax")


def parse_args(argv: list[str] | None = None) -> dict:
    """Reads the command line.

    Returns:
      The arguments of `lae_jax.prepare.prepare`.
    """
    parser = flags.Parser("prepare", __doc__, meant={"--split": "--ratio"})
    add = parser.add_argument
    readers = get_args(prepare.Reader)
    add("--reader", required=True, metavar="READER", type=flags.one_of("reader", readers),
        help=f"kind of the source: {', '.join(readers)}")  # fmt: skip
    add("--source", action="append", required=True, help="CSV or folder, or SPLIT=CSV; repeat the flag for each split")
    parser.add_common("images")
    add("--label-spread", metavar="COLUMN", help="column of the source with the standard deviation of each age in"
        " years, such as APPA-REAL's apparent_age_std: the width of its label distribution in training")  # fmt: skip
    parser.add_common("out", help="folder of the prepared data set")
    add("--ratio", metavar="A:B[:C]", help="relative sizes of train, validation and test, where the source names no"
        " splits (default: 8:1:1); with --folds: of all folds together and of a test split")  # fmt: skip
    add("--folds", type=int, metavar="K", help="number of folds: fold0-train, fold0-validation, ...")
    add("--by", choices=("identity", "image"), help="identity: all images of a person go to the same split;"
        " image: a person may be in several (default: identity where it is known)")  # fmt: skip
    parser.add_common("seed", help="seed of the split and of drawn faces (default: 0)")
    add("--align", choices=get_args(Align), help="landmarks: find faces and align them by their landmarks; none: the"
        " images are face crops (default: none for the readers synthetic and recordio, else landmarks)")  # fmt: skip
    add("--size", type=int, default=256, metavar="PIXELS", help="side of the crops; with --align none the upper"
        " limit of the shorter side")  # fmt: skip
    add("--margin", type=float, default=0.125, metavar="SHARE", help="margin around the 112x112 template, as a share of"
        " its side")  # fmt: skip
    add("--faces", choices=get_args(Faces), default="largest", help="which of several faces in a photograph to take")
    add("--undetected", choices=get_args(Undetected), default="reject", help="what to do with a photograph without a"
        " face: reject it (rejected.csv) or crop its centre")  # fmt: skip
    parser.add_common("smallest_face")
    parser.add_common("rotate")
    add("--quality", type=int, default=95, metavar="1-100", help="JPEG quality of encoded images")
    add("--shards", type=int, default=0, metavar="N", help="number of shards; 0: chosen by the number of images")
    add("--workers", type=int, metavar="N", help="number of processes, or of threads where an"
        " accelerator finds the faces (default: one for each core)")  # fmt: skip
    add("--beam-runner", metavar="RUNNER", help="make the shards with Apache Beam: DirectRunner, DataflowRunner, ...;"
        " --out may then be a bucket (docs/data.md)")  # fmt: skip
    add(
        "--beam-option",
        action="append",
        default=[],
        dest="beam_options",
        metavar="NAME=VALUE",
        help="an option of Beam; repeat the flag for several",
    )
    return vars(parser.parse_args(argv))


def tell(manifest: dict, out: str, faces: str) -> list[str]:
    """Describes a prepared data set, as lines for a terminal.

    Args:
      manifest: The result of `lae_jax.prepare.prepare`.
      out: Folder of the data set.
      faces: The argument of `prepare`.
    """
    from lae_jax.faces import crops

    left_out = manifest["left_out_of_split"]
    told = f"{manifest['rejected']:,} rejected"
    if left_out:
        told += f", {left_out:,} omitted from the splits because another split holds the same file"
    if manifest["rejected"] or left_out:
        told += f" (see {out}/{layout.REJECTED})"
    lines = [f"{console.counted(manifest['count'], 'image')} in {out}, split by {manifest['protocol']}; {told}"]
    lines += [f"rejected: {count:,} x {reason}" for reason, count in _reasons(manifest)]
    counts = crops.Counts(*(manifest[field.name] for field in dataclasses.fields(crops.Counts)))
    if found := counts.told():
        taken = {"all": "each has the photograph's age", "centre": "the one in the middle was taken"}
        several = f"; of several faces, {taken.get(faces, 'the largest was taken')} (--faces {faces})"
        lines.append(f"found: {found}{several * bool(counts.several_faces)}")
    return lines


def _reasons(manifest: dict) -> list[tuple[str, int]]:
    return sorted(manifest["reasons"].items(), key=lambda one: -one[1])


def warning(manifest: dict, out: str, align: str) -> str:
    """Returns a warning if a fifth of the images or more were rejected, with the likely cause; otherwise ''."""
    from lae_jax.data import rejected

    whole = manifest["count"] + manifest["rejected"]
    if manifest["rejected"] < rejected.LOUD * whole:
        return ""
    (reason, count), *_ = _reasons(manifest)
    return (
        f"WARNING: {manifest['rejected']:,} of {console.counted(whole, 'image')} ({manifest['rejected'] / whole:.0%})"
        f" were rejected, {count:,} x {reason}. {rejected.cause(manifest['reasons'], align)}; then prepare into another"
        f" --out. {out}/{layout.REJECTED} lists them"
    )


def main(argv: list[str] | None = None) -> None:
    """Prepares a data set, audits it and draws contact sheets."""
    args = parse_args(argv)
    out = args["out"]
    manifest = prepare.prepare(**args)
    if is_remote(out):
        console.write(
            *console.table(["split", "images"], list(manifest["splits"].items())).splitlines(),
            *tell(manifest, out, args["faces"]),
            "no audit and no contact sheets were made, because both need a disk or a mount: run python -m"
            " lae_jax.audit on the copy that you train on",
        )
    else:
        with saving(out, "the data set is complete, its audit and contact sheets are not"):
            told = _on_disk(manifest, out, args["faces"])
        console.write(*told)
    if not any(name.endswith("train") for name in manifest["splits"]):
        logger.warning("no split is called train: name the split to train on with --config.data.train")
    if loud := warning(manifest, out, "none" if manifest["crop"]["align"] == "none" else "landmarks"):
        logger.warning("%s", loud)


def _on_disk(manifest: dict, out: str, faces: str) -> list[str]:
    """Audits a data set and draws its contact sheets; describes all, as lines for a terminal."""
    from lae_jax.audit import saved
    from lae_jax.data import records
    from lae_jax.prepare import sheets

    dataset = records.open_dataset(out, "quick")
    (report,) = saved.run([out])
    look = " and ".join(f"{out}/{name}" for name in sheets.write(dataset))
    lines = [*sheets.table(dataset), *tell(manifest, out, faces), *saved.tell(report), f"look at {look}"]
    return [*lines, *saved.next_commands(dataset, out)]


if __name__ == "__main__":
    start.program(main)
