"""Raw sources by name. A reader makes a `Source`: a table with one row for each image, and access to the bytes."""

import dataclasses
import pathlib

from PIL import Image

from lae_jax.data.sources import csv_file, fairface, filenames, imdb_wiki, recordio, synthetic
from lae_jax.data.sources.interface import Options, Picture, Rows, Source, refuse_images
from lae_jax.faces import images
from lae_jax.runtime.errors import InputError

__all__ = ["READERS", "Options", "Picture", "Source", "read_synthetic"]


def read_synthetic(sources: list[str], options: Options) -> Source:
    """Makes a table of drawn faces.

    Args:
      sources: `SPLIT=NUMBER`, with the split train, validation or test.
      options: Side and JPEG quality of the pictures, and the seed.

    Returns:
      A source whose pictures are drawn when they are read.

    Raises:
      InputError: A source does not have this form, or `options.images` is set.
    """
    refuse_images(options, "synthetic")
    counts = {"train": 0, "validation": 0, "test": 0}
    for source in sources:
        split, _, number = source.partition("=")
        if split not in counts or not number.isdecimal():
            raise InputError(f"--source {source}: use train=N, validation=N and test=N for drawn faces")
        counts[split] = int(number)
    faces = synthetic.plan(*counts.values(), seed=options.seed)
    rows = Rows()
    for name, age, identity, split in zip(faces.name, faces.age, faces.identity, faces.split, strict=True):
        rows.add(str(name), float(age), f"{identity:05d}", str(split))
    return rows.source(_Drawer(options), {"seed": options.seed, "drawing": synthetic.VERSION})


@dataclasses.dataclass(frozen=True)
class _Drawer:
    options: Options

    def __call__(self, row: dict) -> Picture:
        options, index = self.options, int(pathlib.PurePosixPath(row["name"]).stem)
        image, landmarks = synthetic.draw_face(int(row["identity"]), row["age"], options.seed, options.size, index)
        return Picture(images.encode(Image.fromarray(image), options.quality), landmarks.ravel().tolist())


READERS = {
    "agedb": filenames.read_agedb,
    "appa_real": csv_file.read_appa_real,
    "csv": csv_file.read_csv,
    "fairface": fairface.read_fairface,
    "fgnet": filenames.read_fgnet,
    "folders": filenames.read_folders,
    "imdb_wiki": imdb_wiki.read_imdb_wiki,
    "mivia": csv_file.read_mivia,
    "recordio": recordio.read_recordio,
    "synthetic": read_synthetic,
    "utkface": filenames.read_utkface,
}
