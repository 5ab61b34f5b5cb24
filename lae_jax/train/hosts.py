"""Whether all hosts are about to train the same."""

import hashlib
import json

import jax
import numpy as np

from lae_jax import __version__
from lae_jax.runs import fields, provenance
from lae_jax.runtime import parallel
from lae_jax.runtime.errors import InputError
from lae_jax.runtime.parallel import rows
from lae_jax.train import steps
from lae_jax.train.plan import Plan

# Fields in which hosts may differ: places on their own disks, and how they read them. `teacher.load` compares teachers.
_OF_A_HOST = ("data.path", "data.threads", "data.verify", "data.age_weights", "teacher")


def require_alike(plan: Plan, state: steps.TrainState) -> None:
    """Checks that all hosts train the same: replicas of different runs would drift apart silently.

    Args:
      plan: This host's plan.
      state: Its state before the first step.

    Raises:
      InputError: Another host has another config, code, initial state, loss constant or other weights of ages.
    """
    if jax.process_count() == 1:
        return
    given = {name: value for name, value in fields.flat(fields.as_json(plan.config)).items() if name not in _OF_A_HOST}
    parameters = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        # What is split does not fit a host, and begins as the config says.
        is_split = rows.is_split(path, plan.stage.split)
        parameters.update(repr(leaf.shape).encode() if is_split else np.ascontiguousarray(leaf).tobytes())
    digests = {
        "config": hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest(),
        "version of lae_jax": hashlib.sha256(f"{__version__} {provenance.commit()}".encode()).hexdigest(),
        "initial state": parameters.hexdigest(),
        "score of an earlier run": hashlib.sha256(
            repr([plan.constants[n] for n in plan.stage.needs]).encode()
        ).hexdigest(),
        "data.age_weights": plan.age_weights.hash if plan.age_weights else "0" * 64,
    }
    for what, digest in digests.items():
        if others := parallel.hosts_that_differ(digest):
            raise InputError(
                f"host {', '.join(map(str, others))} has another {what} than host 0: give all hosts the same code,"
                " files and flags"
            )
