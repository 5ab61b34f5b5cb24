"""Training: the plan of a run, its steps, its loop, its records."""

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from etils import epath

from lae_jax.runtime.errors import InputError, unknown

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def train(config: "ConfigDict") -> dict:
    """Trains one stage, or the stages of a recipe one after the other, or resumes where an earlier call stopped.

    Args:
      config: A config, such as `lae_jax.configs.represent.get_config()`.

    Returns:
      The summary that is in `config.workdir`/summary.json: 'stage', 'step', 'scores' and more. Of a recipe, the summary
      of its last stage.

    Raises:
      InputError: The config, the data set or the run that it starts from cannot be used.
      Diverged: Too many steps in a row had a loss or gradients that were not finite.
      SaveFailed: A checkpoint could not be written.
      FolderInUse: Another process trains in the workdir.
    """
    for stage in stages_of(config):
        _require_known_fields(stage)
    summary = {}
    for stage in stages_of(config):
        from lae_jax.train import loop

        summary = loop.train(stage)
    return summary


def _require_known_fields(config: "ConfigDict") -> None:
    """Raises InputError for a field that no config has: on the command line it is an error already."""
    from lae_jax.configs import common
    from lae_jax.runs import fields

    known = fields.flat(fields.as_json(common.get_config()))
    for name in fields.flat(fields.as_json(config)):
        if name not in known and not name.startswith("data.augment."):
            raise InputError(unknown("config field", name, known))


def stages_of(config: "ConfigDict") -> "Iterator[ConfigDict]":
    """Yields the config of each stage: `config` itself, or those of a recipe in the order of `config.order`.

    A stage of a recipe runs in `workdir/<name>` and starts from the stage before, unless its `init_from` is set.

    Raises:
      InputError: `config` is not a config.
    """
    if not hasattr(config, "workdir"):
        raise InputError(f"a config is needed, such as lae_jax.configs.represent.get_config(), not {config!r:.80}")
    if "stages" not in config:
        yield config
        return
    before = ""
    for name in config.order:
        stage = config.stages[name].copy_and_resolve_references()
        stage.workdir = os.fspath(epath.Path(config.workdir) / name)
        stage.init_from = stage.init_from or before
        yield stage
        before = stage.workdir
