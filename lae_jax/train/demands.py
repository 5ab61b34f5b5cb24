"""What methods and cures demand of a run: whole batches, exact ages."""

from ml_collections import ConfigDict

from lae_jax import stages
from lae_jax.data import records
from lae_jax.runtime.errors import InputError
from lae_jax.stages import methods


def require_whole_batches(config: ConfigDict, stage: stages.Stage) -> None:
    """Checks that a batch is not computed in parts where the method or a cure needs the whole batch.

    Args:
      config: The config.
      stage: The stage with its method and its cures.

    Raises:
      InputError: It is.
    """
    if config.accumulate == 1:
        return
    if stage.mix is not None:
        raise InputError(
            f"config.classify.method {config.classify.method!r} mixes the examples of a whole batch, and"
            f" config.accumulate is {config.accumulate}: set it to 1 (only the head trains, so parts would save no"
            " memory)"
        )
    if stage.cure is not None and stage.cure.of_whole_batches:
        raise InputError(
            f"config.cure.name: {', '.join(stage.cure.of_whole_batches)} compares the images of a whole batch, and"
            f" config.accumulate is {config.accumulate}: set it to 1, and config.model.remat to True to save memory"
        )


def require_ranges(config: ConfigDict, stage: stages.Stage, dataset: records.Dataset) -> None:
    """Checks that the cures and the method can be used where ages are ranges.

    Args:
      config: The config.
      stage: The stage with its cures.
      dataset: The data set, whose ages are ranges.

    Raises:
      InputError: They cannot.
    """
    if stage.cure is not None and stage.cure.for_exact_ages:
        able = ", ".join(name for name, one in stages.cures.CURES.items() if one.takes_ranges)
        raise InputError(
            f"config.cure.name: {', '.join(stage.cure.for_exact_ages)} needs exact ages, and in {dataset.path} some are"
            f" ranges: use {able}"
        )
    method = config.classify.method
    if not methods.get(method).takes_ranges:
        able = ", ".join(name for name, one in methods.METHODS.items() if one.on_images and one.takes_ranges)
        raise InputError(
            f"config.classify.method {method!r} needs exact ages, and in {dataset.path} some are ranges: use one of"
            f" {able}"
        )
