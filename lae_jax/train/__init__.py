"""Training: the plan of a run, its steps, its loop, its records."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def train(config: "ConfigDict") -> dict:
    """Trains one stage to its end, from where an earlier call or program stopped.

    Args:
      config: A config of one stage, for example `lae_jax.configs.represent.get_config()`.

    Returns:
      The content of `config.workdir`/summary.json: 'stage', 'step', 'scores' and more.

    Raises:
      InputError: The config, the data set or the run that it starts from cannot be used.
      Diverged: Too many steps in a row had a loss or gradients that were not finite.
      SaveFailed: A checkpoint could not be written.
      FolderInUse: Another process trains in `config.workdir`.
    """
    from lae_jax.train import loop

    return loop.train(config)
