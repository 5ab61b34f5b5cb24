"""Trained heads of the bench in files, so that a bench that was stopped does not train them again."""

import hashlib
import json
import logging
import pathlib
import zipfile
from collections.abc import Callable, Mapping

import flax.traverse_util
import jax
import numpy as np

from lae_jax.runtime import files
from lae_jax.runtime.foreign import zips

logger = logging.getLogger("lae_jax")

_SKIPPED, _OF = "skipped", "of"
_LIMIT = 1 << 31  # bytes of an array


def trained(
    folder: pathlib.Path, name: str, of: Mapping, train: Callable[[], tuple[dict, np.ndarray]]
) -> tuple[dict, np.ndarray]:
    """Returns trained heads: those in the folder if they were trained in the same way, else new ones, which are kept.

    Args:
      folder: The folder.
      name: Begin of the file's name.
      of: All that determines the heads, as JSON.
      train: Trains them, as `Bench.train`.

    Returns:
      The heads, a tree of arrays (M, S, ...), and the numbers of skipped steps (M, S).
    """
    described = json.dumps(of, sort_keys=True)
    path = folder / f"{name}-{hashlib.sha256(described.encode()).hexdigest()[:12]}.npz"
    if path.exists():
        try:
            with files.open_regular(path) as raw, zipfile.ZipFile(raw) as archive:
                members = archive.namelist()
                arrays = {one.removesuffix(".npy"): zips.array(archive, one, _LIMIT) for one in members}
            skipped = arrays.pop(_SKIPPED)
            if str(arrays.pop(_OF)) == described:
                logger.info("the heads of %s are read from %s", name, folder)
                return flax.traverse_util.unflatten_dict(arrays, sep="/"), skipped
        except zips.ERRORS:  # the members of the file have checksums
            logger.warning("%s is damaged: the heads are trained again", path)
    heads, skipped = jax.tree.map(np.asarray, train())
    arrays = {**flax.traverse_util.flatten_dict(heads, sep="/"), _SKIPPED: skipped, _OF: np.array(described)}
    folder.mkdir(parents=True, exist_ok=True)
    with files.replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)
    return heads, skipped
