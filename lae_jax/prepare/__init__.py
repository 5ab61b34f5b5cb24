"""Prepared data sets: from photographs to aligned, checked, sharded faces."""

import importlib.util
import os
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from lae_jax.faces import Align, Faces, Undetected
from lae_jax.runs import preflight
from lae_jax.runtime import cpu, files, layout
from lae_jax.runtime.errors import InputError, require_numbers, require_whole_numbers, saving, unknown

Reader = Literal[
    "agedb",
    "appa_real",
    "csv",
    "fairface",
    "fgnet",
    "folders",
    "imdb_wiki",
    "mivia",
    "recordio",
    "synthetic",
    "utkface",
]


def prepare(
    source: str | os.PathLike | Sequence[str | os.PathLike] | Mapping[str, str | os.PathLike],
    out: str | os.PathLike,
    *,
    reader: Reader = "csv",
    images: str | os.PathLike | None = None,
    label_spread: str | None = None,
    ratio: str | None = None,
    folds: int | None = None,
    by: Literal["identity", "image"] | None = None,
    seed: int = 0,
    align: Align | None = None,
    size: int = 256,
    margin: float = 0.125,
    faces: Faces = "largest",
    undetected: Undetected = "reject",
    smallest_face: int | None = None,
    rotate: bool = False,
    quality: int = 95,
    shards: int = 0,
    workers: int | None = None,
    beam_runner: str | None = None,
    beam_options: Sequence[str] = (),
) -> dict:
    """Makes a prepared data set from photographs, or continues one that was stopped.

    Args:
      source: A CSV or a folder, several of them, or one for each split ({'train': 'a.csv'}).
      out: Folder of the prepared data set; with `beam_runner` it may be in a bucket.
      reader: Kind of the source (docs/data.md).
      images: Folder that the paths in a CSV start from (default: the CSV's own).
      label_spread: Column of the source with the standard deviation of each age in years (docs/data.md).
      ratio: Relative sizes of train, validation and, if there are three, test, where the source names no splits
        (default: '8:1:1'). With `folds`: relative sizes of all folds together and of a test split.
      folds: Number of folds: splits fold0-train, fold0-validation, and so on; a test split only with `ratio`.
      by: 'identity': all images of a person go to the same split; 'image': a person may be in several. Default:
        'identity' where the source has identities.
      seed: Seed of the split and of drawn faces.
      align: 'landmarks': find the faces and align them; 'none': the images are face crops. Default: 'none' for the
        readers synthetic and recordio, else 'landmarks'.
      size: Side of the crops in pixels; with `align` 'none' the upper limit of the shorter side.
      margin: Margin around the template of 112 pixels, as a share of its side.
      faces: Which of several faces in a photograph to take.
      undetected: What to do with a photograph without a face: 'reject' it, or crop its 'centre'.
      smallest_face: Side in pixels of the smallest face to find in a photograph, at least 20 (default: a twentieth
        of its longer side). Small faces in large photographs take time (docs/data.md).
      rotate: Search a photograph in which no face is found for sure again, turned by each of the three other quarter
        turns (docs/data.md).
      quality: JPEG quality of encoded images, 1 to 100.
      shards: Number of shards; 0: chosen by the number of images.
      workers: Number of processes (default: one for each core); 1: this process does the work. Where JAX has an
        accelerator and faces are searched for: number of threads of this process.
      beam_runner: Apache Beam runner that makes the shards, such as DirectRunner.
      beam_options: NAME=VALUE options of Beam.

    Returns:
      The content of `out`/dataset.json: 'count', 'rejected', 'splits' and more.

    Raises:
      InputError: An argument, or the source, cannot be used.
      SaveFailed: `out` could not be written. The finished shards are kept.
    """
    workers = cpu.cores() if workers is None else workers
    require_whole_numbers(folds=folds, seed=seed, size=size, quality=quality, shards=shards, workers=workers)
    require_numbers(margin=margin)
    preflight.require_images(images)
    if seed < 0:
        raise InputError(f"seed is {seed}: it must be at least 0")
    if folds is not None and folds < 2:
        raise InputError(f"folds is {folds}: it must be at least 2")
    if by not in (None, "identity", "image"):
        raise InputError("by: " + unknown("group", str(by), ("identity", "image")))
    if workers < 1 or shards < 0:
        raise InputError("workers must be at least 1 and shards at least 0")
    options_of_beam = layout.names(beam_options)
    _check_place(os.fspath(out), beam_runner, options_of_beam)
    if reader not in get_args(Reader):
        raise InputError(unknown("reader", reader, get_args(Reader)))
    # Imported here, so that --help loads none of these. The recipe checks its numbers before the rest is loaded.
    from lae_jax.faces import crops

    align = align or ("none" if reader in ("synthetic", "recordio") else "landmarks")
    recipe = crops.Recipe(align, size, margin, quality, faces, undetected, smallest_face, rotate)
    from lae_jax.data import splits
    from lae_jax.data.sources import readers, spreads
    from lae_jax.prepare import assembly

    shares = None if folds is not None and ratio is None else splits.parse_ratio(ratio or "8:1:1")
    if folds is not None and shares is not None and len(shares) != 2:
        raise InputError(f"--folds {folds} with --ratio {ratio}: write 9:1, all folds : test, or omit --ratio")
    how = assembly.Splitting(shares, folds, by, seed)
    options = readers.Options(None if images is None else os.fspath(images), size, quality, seed)

    def read() -> readers.Source:
        found = readers.READERS[reader](_named(source), options)
        return found if label_spread is None else spreads.with_spreads(found, label_spread)

    if beam_runner is None:
        way = assembly.Processes(os.fspath(out), workers)
    else:
        from lae_jax.data import beam

        way = beam.Beam(os.fspath(out), beam_runner, options_of_beam)
    with saving(out, "the finished shards are kept"):
        return assembly.prepare(
            read,
            os.fspath(out),
            way,
            reader=reader,
            recipe=recipe,
            shards_wanted=shards,
            how=how,
        )


def _named(source) -> list[str]:
    """Returns the source as on the command line: PATH or SPLIT=PATH."""
    if isinstance(source, Mapping):
        return [f"{split}={os.fspath(path)}" for split, path in source.items()]
    return layout.names(source)


def _check_place(out: str, beam_runner: str | None, beam_options: Sequence[str]) -> None:
    if not files.is_remote(out):  # data/beam.py checks buckets
        layout.require_place(out)
        for path in (os.path.join(out, name) for name in ("parts", "splits")):
            if os.path.islink(path):
                raise InputError(f"--out {out}: {path} is a link, and prepare deletes files there: remove it")
    if beam_runner is None:
        if beam_options:
            raise InputError(f"--beam-option {beam_options[0]}: allowed only with --beam-runner")
        if files.is_remote(out):
            raise InputError(
                f"--out {out}: a bucket needs --beam-runner (docs/data.md); or prepare in a folder and copy it"
            )
    elif importlib.util.find_spec("apache_beam") is None:
        raise InputError(
            f"--beam-runner {beam_runner}: Apache Beam is not installed here. It needs other versions of libraries,"
            " so it has a separate environment: run make setup-beam, then .venv-beam/bin/python -m lae_jax.prepare"
        )
