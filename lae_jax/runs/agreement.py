"""Whether a checkpoint and a prepared data set belong together."""

from lae_jax.data import records
from lae_jax.faces import crops
from lae_jax.runtime import checkpoints
from lae_jax.runtime.errors import InputError


def other_crops(checkpoint: checkpoints.Checkpoint, dataset: records.Dataset) -> str:
    """A sentence that tells how the faces of a data set are cut otherwise than a run's own; '' where they are not."""
    there = checkpoint.meta.get("crop", dataset.crop)  # weights that others trained have no contract
    if there == dataset.crop:
        return ""
    differing = crops.differing(there, dataset.crop)
    return f"{checkpoint.workdir} was trained on other crops than {dataset.path} holds ({differing})"


def require_same_crops(checkpoint: checkpoints.Checkpoint, dataset: records.Dataset, otherwise: str = "") -> None:
    """Raises InputError that tells how to cut alike, where the faces are cut otherwise than a run's own.

    Args: otherwise: what else the user can do.
    """
    if told := other_crops(checkpoint, dataset):
        raise InputError(f"{told}: {crops.how_to_cut_alike(checkpoint.meta['crop'], dataset.crop)}{otherwise}")


def was_prepared_again(checkpoint: checkpoints.Checkpoint, dataset: records.Dataset) -> bool:
    """Whether a data set stands where the run's own stood, and is another: its splits may hold what was trained on."""
    return checkpoint.meta.get("data") == str(dataset.path) and checkpoint.meta["data_hash"] != dataset.hash
