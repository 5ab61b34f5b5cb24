"""Checks that a checkpoint and a prepared data set belong together."""

from lae_jax.data import records
from lae_jax.faces import crops
from lae_jax.runtime import origin
from lae_jax.runtime.errors import InputError


def other_crops(checkpoint: origin.Checkpoint, dataset: records.Dataset) -> str:
    """Returns how the crops of a data set differ from those of the run, as a sentence; '' if they do not differ."""
    there = checkpoint.meta.get("crop", dataset.crop)  # published weights have no crop contract
    if there == dataset.crop:
        return ""
    differing = crops.differing(there, dataset.crop)
    return f"{checkpoint.workdir} was trained on other crops than {dataset.path} holds ({differing})"


def require_same_crops(checkpoint: origin.Checkpoint, dataset: records.Dataset, otherwise: str = "") -> None:
    """Checks that a data set has the crops that the run was trained on.

    Args:
      checkpoint: A checkpoint of the run.
      dataset: The data set.
      otherwise: Text at the end of the message: what else the user can do.

    Raises:
      InputError: The crops differ. The message says how to prepare the same crops.
    """
    if told := other_crops(checkpoint, dataset):
        raise InputError(f"{told}: {crops.how_to_cut_alike(checkpoint.meta['crop'], dataset.crop)}{otherwise}")


def unknown_crops(checkpoint: origin.Checkpoint, dataset: records.Dataset) -> str:
    """Returns a sentence if both have ready-made crops, of two data sets, so that nobody can know whether they agree.

    '' if it is known, or the data set is that of the run.
    """
    unknown = checkpoint.meta.get("crop") == dataset.crop == crops.UNKNOWN
    if not unknown or checkpoint.meta["data_hash"] == dataset.hash:
        return ""
    return (
        f"{checkpoint.workdir} was trained on ready-made crops of another data set than {dataset.path}, and it is"
        " unknown whether both were cut in the same way: compare crops.jpg of both. If they differ, errors are large"
    )


def was_prepared_again(checkpoint: origin.Checkpoint, dataset: records.Dataset) -> bool:
    """Whether another data set is now at the path of the run's data set; its splits may hold training images."""
    return checkpoint.meta.get("data") == str(dataset.path) and checkpoint.meta["data_hash"] != dataset.hash
