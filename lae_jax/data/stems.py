"""Names of files that show which rows are of one photograph: `part1/X.jpg`, and its crop `crop/X.jpg.chip.jpg`."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lae_jax.data.splits import codes

MOST = 8  # rows of one photograph: a name that more rows have is a common one
_SUFFIXES = "jpe?g|jpe|jfif|mpo|png|webp|bmp|tiff?|gif|pgm|ppm|heic|heif|avif"
_FOLDERS = r"^.*[/\\]"
# All that follows the first suffix, as in X.jpg.chip.jpg and X.jpg_face.jpg; and X_crop.jpg, X_face.jpg.
_BEHIND = rf"(?i)(?:[_-](?:face|crop|cropped|aligned|chip))?\.(?:{_SUFFIXES})(?:[^a-z0-9].*)?$"


def stems(names: pa.ChunkedArray) -> pa.ChunkedArray:
    """Returns the part of each name that a photograph and its crops share: 'part1/X.jpg' -> 'X'."""
    return pc.replace_substring_regex(pc.replace_substring_regex(names, _FOLDERS, ""), _BEHIND, "")


def of_one_photograph(names: pa.ChunkedArray, ages: pa.ChunkedArray, identities: pa.ChunkedArray) -> pa.ChunkedArray:
    """Finds the rows that are pictures of one photograph, by their names.

    These are 2 to MOST rows with one stem, if no two of them have different ages or different people. Where they have,
    the name is a common one (`0001.jpg` in the folder of each person) and shows nothing.

    Args:
        names: (N,).
        ages: (N,) years, null where unknown.
        identities: (N,), null where unknown.

    Returns:
        (N,) texts that the rows of a photograph share, null for other rows.
    """
    code, values = codes(stems(names))
    count = np.bincount(code[code >= 0], minlength=values)
    rows = np.flatnonzero((code >= 0) & (count[code] >= 2) & (count[code] <= MOST))
    stem, group = np.unique(code[rows], return_inverse=True)
    age = ages.take(pa.array(rows)).to_numpy().astype(np.float64)
    person = codes(identities.take(pa.array(rows)))[0].astype(np.float64)
    person[person < 0] = np.nan
    common = np.zeros(len(stem), bool)
    for known in (age, person):
        lowest, highest = np.full(len(stem), np.inf), np.full(len(stem), -np.inf)
        np.fmin.at(lowest, group, known)
        np.fmax.at(highest, group, known)
        common |= lowest < highest
    shown = np.zeros(len(code), bool)
    shown[rows] = ~common[group]
    return pa.chunked_array([pa.array(code, mask=~shown).cast(pa.string())])
