"""Names of people: which can be compared between data sets, and hashes that a checkpoint holds in their place.

The hashes keep names from being read in passing. They do not stop someone who tries names one by one.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterable

import numpy as np
import pyarrow as pa

_SALT = "lae_jax people 1"
# Identifiers that mean the same person in every data set. Any other text with a digit ('17', 's3', 'person 12') is a
# label: another data set gives it to somebody else.
_SCHEMES = {"vggface2": r"n\d{6}", "freebase": r"m\.[0-9a-z_]+", "imdb": r"nm\d{7,8}"}


def normalised(name: str) -> str:
    """Returns the form in which names are compared: 'Ada_Lovelace ' and 'ada lovelace' are one person."""
    return " ".join(unicodedata.normalize("NFKC", name).casefold().replace("_", " ").split())


def codes(names: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Numbers people by their normalised names.

    Args:
        names: (N,), None or '' where unknown.

    Returns:
        The code of each name, (N,) int64, -1 where unknown; and the normalised name of each code.
    """
    encoded = pa.array(names, pa.string()).dictionary_encode()
    place: dict[str, int] = {}
    of_value = [-1 if not (name := normalised(v)) else place.setdefault(name, len(place)) for v in
                encoded.dictionary.to_pylist()]  # fmt: skip
    indices = encoded.indices.fill_null(len(of_value)).to_numpy(zero_copy_only=False)
    return np.array([*of_value, -1], np.int64)[indices], list(place)


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
        names: (N,), None or '' where unknown.
        data_hash: Hash of their data set.
        before: An earlier result, which is included.

    Returns:
        JSON: {'schemes': [...], 'hashes': [...]}.
    """
    schemes, hashes = (set((before or {}).get(key, ())) for key in ("schemes", "hashes"))
    for name in codes(names)[1]:
        kind = scheme(name, data_hash)
        schemes.add(kind)
        hashes.add(_digest(name, kind))
    return {"schemes": sorted(schemes), "hashes": sorted(hashes)}


def compare(known: dict | None, names: np.ndarray, data_hash: str, without: Iterable[str] = ()) -> dict:
    """Finds the people of `names` whose hashes are in `known`.

    Args:
        known: Result of `hashed`, or None.
        names: (N,), None or '' where unknown.
        data_hash: Hash of their data set.
        without: Names that do not count as shared.

    Returns:
        people, the number of people in `names`; compared, the number of those that could be compared because `known`
        holds names of their kind (0 means unknown, not clean); shared, normalised names.
    """
    people = codes(names)[1]
    schemes, hashes = (set((known or {}).get(key, ())) for key in ("schemes", "hashes"))
    kinds = [(name, kind) for name in people if (kind := scheme(name, data_hash)) in schemes]
    leave = {normalised(name) for name in without}
    shared = [name for name, kind in kinds if _digest(name, kind) in hashes and name not in leave]
    return {"people": len(people), "compared": len(kinds), "shared": shared}
