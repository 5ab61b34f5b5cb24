"""Names of splits: one for each of `train`, `validation` and `test`, however a source spells them."""

import os
import re
from collections.abc import Collection, Sequence

from lae_jax.runtime.errors import InputError, unknown

MAX_SPLITS = 1000  # that a source may name: each is a file and an entry of the manifest
_ROLES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "development"),
    "test": ("test", "testing"),
}
_ROLE_OF = {word: role for role, words in _ROLES.items() for word in words}


def role(name: str) -> str | None:
    """Returns 'train', 'validation' or 'test' for a word that means it ('Valid', 'TRAIN '); None for other names."""
    return _ROLE_OF.get(name.strip().casefold())


def require(data: os.PathLike | str, split: str, splits: Collection[str]) -> None:
    """Checks that a data set has a split; every data set has 'all'.

    Args:
      data: Folder of the data set, for the message.
      split: Name of the split.
      splits: Names of the splits that it has.

    Raises:
      InputError: It does not have it.
    """
    if split in (*splits, "all"):
        return
    hint = "; name splits with config.data.train and config.data.split in a run, with --split in evaluate"
    if split.startswith("fold"):
        hint = "; make folds with prepare --folds K"
    elif any(name.startswith("fold") for name in splits):
        hint = "; choose a fold with --config.data.fold=0"
    nearest = role(split) if role(split) in splits else None
    raise InputError(f"{data}: {unknown('split', split, [*splits, 'all'], nearest)}{hint}")


def one_name(names: Sequence[str]) -> dict[str, str]:
    """Maps each name to the name of its split.

    It is the role, or the first of the names that differ in nothing but case and outer spaces. So no two splits have
    files that are one file on a disk that ignores case.

    Args:
      names: Names as the source spells them, in its order.

    Raises:
      InputError: There are too many names, or one is not allowed.
    """
    if len(names) > MAX_SPLITS:
        raise InputError(f"the column `split` has {len(names):,} different values: at most {MAX_SPLITS:,} are allowed")
    first: dict[str, str] = {}
    found = {name: role(name) or first.setdefault(name.strip().casefold(), name.strip()) for name in names}
    for name in first.values():
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", name):
            raise InputError(f"split name {name[:80]!r}: use letters, digits, '_', '-' and '.' (at most 64)")
        if name.casefold() == "all":
            raise InputError("split name 'all': it means every row of a data set; rename the split")
    return found
