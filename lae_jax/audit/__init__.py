"""Audits of prepared data sets: leaks between splits, pictures that occur twice, implausible labels."""

import os
from collections.abc import Sequence

from lae_jax.runtime import layout
from lae_jax.runtime.errors import InputError, require_whole_numbers


def audit(data: str | os.PathLike | Sequence[str | os.PathLike], *, image_size: int | None = None) -> list[dict]:
    """Audits prepared data sets, each alone and each against every other; writes audit.json and audit.png into each.

    Args:
      data: Folders of prepared data sets.
      image_size: Side of the model's input in pixels (default: 224, or the size of a smaller prepared data set).

    Returns:
      The content of each audit.json. A finding is {'kind', 'severity': 'leak' | 'warning' | 'note', 'splits', 'count',
      'message', ...}; for a damaged data set the damage is the only finding.

    Raises:
      InputError: A folder holds no data set, is named twice, or cannot be written to.
      SaveFailed: A folder could not be written after all, as on a full disk.
    """
    require_whole_numbers(image_size=image_size)
    if image_size is not None and image_size < 1:
        raise InputError(f"image_size is {image_size}: it must be at least 1 pixel")
    data = layout.names(data)
    if not data:
        raise InputError("name at least one prepared data set")
    if len({*data}) < len(data):
        raise InputError("a folder is named twice")
    for path in data:
        layout.require_dataset(path)
        layout.require_writable(path, path)
    from lae_jax.audit import saved

    return saved.run(data, image_size)
