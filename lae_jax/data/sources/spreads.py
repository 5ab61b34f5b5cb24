"""The spreads of labels: the standard deviation of each age in years, from a column of the source."""

import dataclasses
import math

import pyarrow as pa
import pyarrow.compute as pc

from lae_jax.data import parquet, people
from lae_jax.data.sources.age_text import OLDEST, parse_number
from lae_jax.data.sources.interface import KNOWN, RANGE, Source
from lae_jax.faces.images import BadImage
from lae_jax.runtime.errors import InputError, unknown
from lae_jax.runtime.foreign import shown


def parse_spread(text: str) -> float | None:
    """Reads the standard deviation of an age in years; None where it is missing (an empty text, `nan`, `unknown`).

    Raises:
      BadImage: The text is not a number from 0 to 100.
    """
    try:
        spread = parse_number(text)
    except ValueError:
        if not people.normalised(text[:40]):
            return None
        raise BadImage(f"spread {text[:40]!r} is not a number of years") from None
    if math.isnan(spread):
        return None
    if not 0 <= spread <= OLDEST:
        raise BadImage(f"spread {text[:40]!r} is outside 0 to {OLDEST} years")
    return spread


def with_spreads(source: Source, name: str) -> Source:
    """Returns a source with the spreads of its labels in the column `parquet.SPREAD`, null where they are missing.

    Rows whose spread cannot be read are rejected. The column that it is read from stays as it is.

    Args:
      source: The source.
      name: Name of a further column, as the user writes it.

    Raises:
      InputError: The source has no such column, or no number is in it.
    """
    column = _column(source.table, name)
    read, reasons = {}, {}
    texts = source.table[column]
    for text in pc.unique(texts).drop_null().to_pylist():
        try:
            read[text] = parse_spread(text)
        except BadImage as reason:
            reasons[text] = str(reason)
    if all(spread is None for spread in read.values()):
        raise InputError(f"--label-spread {name}: no row has a number of years in this column: name another one")
    is_bad = pc.is_in(texts, pa.array([*reasons], pa.string()))
    bad = source.table.filter(is_bad)
    for image, text in zip(bad["name"].to_pylist(), bad[column].to_pylist(), strict=True):
        source.rejected.append((shown(image, 300), shown(reasons[text])))
    table = source.table.filter(pc.invert(is_bad))
    values = pa.array(read.values(), pa.float64()).take(pc.index_in(table[column], pa.array([*read], pa.string())))
    return dataclasses.replace(
        source,
        table=table.append_column(parquet.SPREAD, values),
        recipe={**source.recipe, "label_spread": column},
    )


def _column(table: pa.Table, name: str) -> str:
    """Returns the further column that a user means; readers write names in lower case and mark those that they use."""
    further = [one for one in table.column_names if one not in {"name", *KNOWN, *RANGE}]
    if not further:
        raise InputError(f"--label-spread {name}: the source has no further columns: omit --label-spread")
    plain = name.strip().lower()
    found = next((one for one in (name, plain, f"source_{plain}") if one in further), None)
    if found is None:
        raise InputError("--label-spread: " + unknown("column", name, further))
    return found
