"""Names of files that show which rows are of one photograph: `part1/X.jpg`, and its crop `crop/X.jpg.chip.jpg`."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lae_jax.data.splits import codes

_SOME = 1 << 13  # names that are Python objects at a time
MOST = 8  # rows of one photograph: a name that more rows have is a common one
_SUFFIXES = "jpe?g|jpe|jfif|mpo|png|webp|bmp|tiff?|gif|pgm|ppm|heic|heif|avif"
_FOLDERS = r"^.*[/\\]"
# All that follows the first suffix, as in X.jpg.chip.jpg and X.jpg_face.jpg; and X_crop.jpg, X_face.jpg.
_BEHIND = rf"(?i)(?:[_-](?:face|crop|cropped|aligned|chip))?\.(?:{_SUFFIXES})(?:[^a-z0-9].*)?$"


def stems(names: pa.Array) -> pa.Array:
    """Returns the part of each name that a photograph and its crops share: 'part1/X.jpg' -> 'X'."""
    return pc.replace_substring_regex(pc.replace_substring_regex(names, _FOLDERS, ""), _BEHIND, "")


def of_one_photograph(
    names: pa.ChunkedArray, ages: Sequence[pa.ChunkedArray], identities: pa.ChunkedArray
) -> pa.ChunkedArray:
    """Finds the rows that are pictures of one photograph, by their names.

    These are 2 to MOST rows with one stem, if no two of them have different ages or different people. Where they have,
    the name is a common one (`0001.jpg` in the folder of each person) and shows nothing.

    Args:
        names: (N,), N at least 1.
        ages: (N,) years, null where unknown; of ranges, two columns: their first and their last ages.
        identities: (N,), null where unknown.

    Returns:
        (N,) texts that the rows of a photograph share, null for other rows.
    """
    # Of all names only a number is held, and the numbers of equal stems are equal.
    pieces = [chunk.slice(first, _SOME) for chunk in names.chunks for first in range(0, len(chunk), _SOME)]
    number = np.concatenate([np.array([*map(hash, stems(piece).to_pylist())], np.int64) for piece in pieces])
    ordered = np.sort(number)
    repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    rows = np.flatnonzero(np.isin(number, repeated))
    group = np.searchsorted(repeated, number[rows])
    years = [column.take(pa.array(rows)).to_numpy().astype(np.float64) for column in ages]
    person = codes(identities.take(pa.array(rows)))[0].astype(np.float64)
    person[person < 0] = np.nan
    common = np.bincount(group, minlength=len(repeated)) > MOST
    for known in (*years, person):
        lowest, highest = np.full(len(repeated), np.inf), np.full(len(repeated), -np.inf)
        np.fmin.at(lowest, group, known)
        np.fmax.at(highest, group, known)
        common |= lowest < highest
    text = np.full(len(number), -1, np.int32)
    text[rows] = np.where(common[group], -1, group)
    return pa.chunked_array([pa.array(text, mask=text < 0).cast(pa.string())])
