"""Where a run's numbers come from: versions, commit, machine, data set."""

import functools
import logging
import pathlib
import platform
import subprocess
from collections.abc import Mapping
from typing import TYPE_CHECKING

import jax
from etils import epath
from ml_collections import ConfigDict

from lae_jax.runs import precision
from lae_jax.runtime import cpu, files, parallel
from lae_jax.runtime.typed import declared
from lae_jax.runtime.versions import versions

if TYPE_CHECKING:
    from lae_jax.data import records

logger = logging.getLogger("lae_jax")

_PACKAGES = (
    "lae-jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "tensorflow",
    "tensorflow-datasets",
    "numpy",
)


def warn_of_another_machine(workdir: epath.Path, now: Mapping) -> None:
    """Warns if a resumed run cannot repeat bit for bit, given its provenance now."""
    path = workdir / "provenance.json"
    before = files.read_json(path, declared.PROVENANCE) if path.exists() else {}
    names = ("devices", "hosts", "cpu", "cores", "deterministic", "versions")
    changed = [name for name in names if name in before and before[name] != now[name]]
    if changed:
        logger.warning(
            "%s: the run was started on another machine or in another way (provenance.json differs in %s). The order of"
            " the examples is the same, and the numbers agree up to rounding. To resume bit for bit, use the first"
            " machine",
            workdir,
            ", ".join(changed),
        )


def provenance(config: ConfigDict, dataset: "records.Dataset") -> dict:
    """Returns the provenance of a run on a data set: what shows where a number came from."""
    return {
        "versions": versions(_PACKAGES),
        "python": platform.python_version(),
        "commit": commit(),
        "platform": jax.default_backend(),
        "devices": [device.device_kind for device in jax.devices()],
        "hosts": jax.process_count(),
        "cpu": cpu.name(),
        "cores": cpu.cores(),
        "deterministic": parallel.is_deterministic(),
        "dtype": {"backbone": config.model.dtype, "head and loss": precision.wide(config)},
        "precision": {"backbone": config.model.precision, "head and loss": "highest"},
        "data": str(dataset.path),
        "data_hash": dataset.hash,
        "protocol": dataset.manifest["protocol"],
        "crop": dataset.crop,
        "seed": config.seed,
    }


def commit() -> str | None:
    """Returns the commit of the running source tree, with '+' if files were changed; None outside a checkout."""
    here = pathlib.Path(__file__).resolve().parents[1]
    try:
        run = functools.partial(subprocess.run, cwd=here, capture_output=True, text=True, timeout=10, check=True)
        if pathlib.Path(run(["git", "rev-parse", "--show-toplevel"]).stdout.strip()) != here.parent:
            return None
        changed = run(["git", "status", "--porcelain", "--untracked-files=no", "."]).stdout
        return run(["git", "rev-parse", "HEAD"]).stdout.strip() + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None
