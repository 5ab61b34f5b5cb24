"""Names of people: which can be compared between data sets, and hashes that a checkpoint holds in their place.

The hashes keep names from being read in passing. They do not stop someone who tries names one by one.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_SALT = "lae_jax people 1"
# Identifiers that mean the same person in every data set. Any other text with a digit ('17', 's3', 'person 12') is a
# label: another data set gives it to somebody else.
_SCHEMES = {"vggface2": r"n\d{6}", "freebase": r"m\.[0-9a-z_]+", "imdb": r"nm\d{7,8}"}


# Texts in place of a name, in their normal form. A text without any letter or digit ('-', '?') is one too.
_UNKNOWN = {"unknown", "unk", "unidentified", "unnamed", "anonymous", "none", "null", "nil", "nan", "na", "n/a", "n.a."}
_UNKNOWN |= {"<na>", "#n/a", "-1", "-1.0"}
_SOME = 1 << 13  # names that are Python objects at a time


def normalised(name: str) -> str:
    """Returns the one form in which names of people are compared; '' for a text that means an unknown person.

    Case, Unicode forms and `_` make no difference, nor do spaces in a name without digits: 'Maria_Callas ' is
    'MariaCallas'. Numbers are compared by their value: '007' and '7.0' are '7'.
    """
    plain = name.isascii()
    if not plain:
        # Without invisible characters, such as marks of the direction of writing.
        composed = unicodedata.normalize("NFKC", name)
        name = "".join(c for c in composed if unicodedata.category(c) != "Cf")
    name = " ".join(name.casefold().replace("_", " ").split())
    if not plain:
        name = unicodedata.normalize("NFKC", name)
    whole, _, fraction = name.removeprefix("+").partition(".")
    if whole.isascii() and whole.isdecimal() and not fraction.strip("0"):
        return whole.lstrip("0") or "0"
    if not any(c.isdigit() for c in name):
        name = name.replace(" ", "")
    return name if name not in _UNKNOWN and any(c.isalnum() for c in name) else ""


class Spelling(NamedTuple):
    """Names with one spelling for each person.

    Attributes:
        names: The names: of each person the first spelling, null where unknown.
        several: Number of people with several spellings.
        example: The spellings of one of them, or [].
        unknown: Texts that mean an unknown person.
    """

    names: pa.ChunkedArray
    several: int
    example: list[str]
    unknown: list[str]


def spelled(names: pa.ChunkedArray) -> Spelling:
    """Gives each person one spelling: the first one of those with the same normal form.

    The normal forms are Arrow text, so that as many people as rows fit into memory.
    """
    values = pc.unique(names.cast(pa.large_string())).drop_null()
    pieces = [values.slice(first, _SOME).to_pylist() for first in range(0, len(values), _SOME)]
    forms = pa.chunked_array(
        [pa.array([normalised(value) or None for value in piece], pa.large_string()) for piece in pieces],
        pa.large_string(),
    )
    code = forms.dictionary_encode().combine_chunks().indices.fill_null(-1).to_numpy()
    people, first, count = np.unique(code, return_index=True, return_counts=True)
    if len(people) == len(values) and not forms.null_count:
        return Spelling(names, 0, [], [])
    several = people[(count > 1) & (people >= 0)]
    first = np.concatenate([first[people >= 0], [-1]])[code]  # people are numbered in the order of their first values
    one = values.take(pa.array(first, mask=first < 0))
    taken = one.take(pc.index_in(names.cast(pa.large_string()), values))
    example = values.filter(pa.array(code == several[0])).to_pylist() if len(several) else []
    unknown = values.filter(pa.array(code < 0)).slice(0, _SOME).to_pylist()
    return Spelling(taken.cast(pa.string()), len(several), example, unknown)


def codes(names: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Numbers people by their normalised names.

    Args:
        names: (N,), None or a word that means unknown where they are unknown.

    Returns:
        The code of each name, (N,) int64, -1 where unknown; and the first spelling of each code.
    """
    encoded = pa.array(names, pa.string()).dictionary_encode()
    place: dict[str, int] = {}
    spelling: list[str] = []
    of_value = []
    for value in encoded.dictionary.to_pylist():
        name = normalised(value)
        if name and name not in place:
            place[name] = len(place)
            spelling.append(value)
        of_value.append(place.get(name, -1))
    indices = encoded.indices.fill_null(len(of_value)).to_numpy(zero_copy_only=False)
    return np.array([*of_value, -1], np.int64)[indices], spelling


def scheme(name: str, data_hash: str) -> str:
    """Returns the kind of a normalised name: 'name', an id that many data sets share, or a label of this data set."""
    for known, pattern in _SCHEMES.items():
        if re.fullmatch(pattern, name.replace(" ", "_")):
            return known
    letters = sum(c.isalpha() for c in name)
    return "name" if letters >= 3 and not any(c.isdigit() for c in name) else f"label of {data_hash[:12]}"


def _digest(name: str, of_scheme: str) -> str:
    return hashlib.sha256(f"{_SALT}\0{of_scheme}\0{name}".encode()).hexdigest()[:16]


def hashed(names: np.ndarray, data_hash: str, before: dict | None = None) -> dict:
    """Hashes names for the meta of a checkpoint.

    Args:
        names: (N,), None where unknown.
        data_hash: Hash of their data set.
        before: An earlier result, which is included.

    Returns:
        JSON: {'schemes': [...], 'hashes': [...]}.
    """
    schemes, hashes = (set((before or {}).get(key, ())) for key in ("schemes", "hashes"))
    for name in map(normalised, codes(names)[1]):
        kind = scheme(name, data_hash)
        schemes.add(kind)
        hashes.add(_digest(name, kind))
    return {"schemes": sorted(schemes), "hashes": sorted(hashes)}


def compare(known: dict | None, names: np.ndarray, data_hash: str, without: Iterable[str] = ()) -> dict:
    """Finds the people of `names` whose hashes are in `known`.

    Args:
        known: Result of `hashed`, or None.
        names: (N,), None where unknown.
        data_hash: Hash of their data set.
        without: Names that do not count as shared.

    Returns:
        people, the number of people in `names`; compared, the number of those that could be compared because `known`
        holds names of their kind (0 means unknown, not clean); shared, names as `names` spells them.
    """
    people = {normalised(name): name for name in codes(names)[1]}
    schemes, hashes = (set((known or {}).get(key, ())) for key in ("schemes", "hashes"))
    kinds = [(name, kind) for name in people if (kind := scheme(name, data_hash)) in schemes]
    leave = {normalised(name) for name in without}
    shared = [people[name] for name, kind in kinds if _digest(name, kind) in hashes and name not in leave]
    return {"people": len(people), "compared": len(kinds), "shared": shared}
