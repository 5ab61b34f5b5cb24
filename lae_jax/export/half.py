"""Model files: write a run as one file in half precision, read it back, and compare its ages with the run's."""

import json
import os
import time

import jax
import numpy as np
import safetensors.numpy

from lae_jax.export import convert
from lae_jax.runs import build, calibration, fields, lineage
from lae_jax.runtime import console, files, model_file, origin
from lae_jax.runtime.errors import ExportDiffers, InputError
from lae_jax.runtime.typed import declared
from lae_jax.runtime.versions import version

# Largest differences that half precision may cause: of an age in years, and of a probability.
LIMIT, PROBABILITY_LIMIT = 0.05, 0.005
# Smaller kernels stay in float32. They are 2 % of the bytes of Lite0, but the first depthwise ones alone cause nine
# tenths of the difference, because all later layers add to it.
SMALL = 10_000


def export(run: os.PathLike | str, out: os.PathLike | str, step: int | None = None) -> dict:
    """Writes a run of stage 2 or 3 as a model file.

    Args:
      run: Folder of the run, or another model file.
      out: File to create, on a local disk.
      step: Step of the run's checkpoint (default: the best one).

    Returns:
      'format', 'source', 'check', 'seconds' and 'files', as in export.json.

    Raises:
      InputError: The run cannot be used.
      ExportDiffers: The outputs differ by more than `LIMIT` or `PROBABILITY_LIMIT`. No file is written.
    """
    with console.progress(total=3, what="export", unit="steps") as line:
        line.set_postfix_str("reading the run")
        checkpoint, config, stage = build.load_ages(run, step)
        described = lineage.described(checkpoint, config, stage.name, False)
        line.update()
        line.set_postfix_str("writing the file")
        started = time.perf_counter()
        with files.replacing(out) as place:
            # `save_file` would make a file that only its owner can read.
            content = safetensors.numpy.save(halved(checkpoint.variables), {model_file.KEY: header(checkpoint)})
            place.write_bytes(content)
            written = time.perf_counter()
            line.update()
            line.set_postfix_str("reading it back and comparing")
            check = _compared(checkpoint, place)
            line.set_postfix_str("", refresh=False)
            line.update()
    entry = {"bytes": os.path.getsize(out), "sha256": files.sha256_of(out)}
    seconds = {"write": round(written - started, 1), "check": round(time.perf_counter() - written, 1)}
    return {
        "format": "safetensors",
        "source": described["source"],
        "check": check,
        "seconds": seconds,
        "files": {os.path.basename(out): entry},
    }


def halved(variables: dict) -> dict[str, np.ndarray]:
    """Returns the arrays of a model by name ('params/backbone/...'): large kernels in float16, all else in float32.

    A variance can be smaller or larger than float16 can hold, and so can the values of a kernel, which then stays in
    float32.
    """
    leaves = jax.tree_util.tree_flatten_with_path(variables)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): _halved(np.asarray(leaf)) for path, leaf in leaves}


def _halved(array: np.ndarray) -> np.ndarray:
    array = np.ascontiguousarray(array, np.float32)
    if array.ndim < 2 or array.size < SMALL:
        return array
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    return half if np.isfinite(half).all() else array


def header(checkpoint: origin.Checkpoint) -> str:
    """Returns the header of a model file, JSON (`model_file.read_header`).

    Raises:
      InputError: It is too large, because the backbone was trained on too many people.
    """
    meta = {name: value for name, value in checkpoint.meta.items() if name != "sha256"}
    content = {
        "meta": meta,
        "temperature": calibration.temperature_of(checkpoint),
        "conformal": calibration.stored_conformal(checkpoint),
        "starts": lineage.starts(checkpoint),
        "data": lineage.data_of(checkpoint),
        "evaluations": lineage.evaluations_of(checkpoint),
        "made_by": _made_by(checkpoint),
    }
    content = {**model_file.without_folders(content), "version": model_file.VERSION}
    text = json.dumps(content, sort_keys=True, allow_nan=False)
    if len(text) > model_file.HEADER_LIMIT // 2:  # names of tensors and escapes are added
        raise InputError(
            f"{checkpoint.workdir}: the header of its model file would have {len(text):,} bytes, too many to read: the"
            " hashed names of the people of pre-training are in it. Export it as another format"
        )
    return text


def _made_by(checkpoint: origin.Checkpoint) -> dict:
    """Returns the commit and the versions of the training."""
    if checkpoint.file is not None:
        return checkpoint.file["made_by"]
    path = checkpoint.workdir / "provenance.json"
    found = files.read_json(path, declared.PROVENANCE) if path.exists() else {}
    return {"commit": found.get("commit"), "versions": found.get("versions") or {}}


def _compared(checkpoint: origin.Checkpoint, place: os.PathLike) -> dict:
    """Reads a model file and compares it with what it was written from.

    Raises:
      ExportDiffers: The outputs differ by more than `LIMIT` or `PROBABILITY_LIMIT`.
    """
    crops, config = convert.crops_of(checkpoint), fields.from_json(checkpoint.meta["config"])
    program, read = (convert.program_of(one, config) for one in (checkpoint, build.load_file(place)))
    forward = jax.jit(program.function("cpu" if jax.default_backend() == "cpu" else "xla"))
    outputs, halves = (forward(one.variables, crops.images) for one in (program, read))
    ages, distributions = (float(np.abs(a - b).max()) for a, b in zip(outputs, halves, strict=True))
    if not (ages <= LIMIT and distributions <= PROBABILITY_LIMIT):  # also for NaN
        raise ExportDiffers(
            f"half precision changes the ages by up to {ages:.3g} years and the probabilities by up to"
            f" {distributions:.3g} ({crops.told}). At most {LIMIT:g} and {PROBABILITY_LIMIT:g} are allowed, so no file"
            " was written: export the run as another format, which is in float32"
        )
    return {
        "max_age_difference": ages,
        "max_distribution_difference": distributions,
        "limit": LIMIT,
        "images": len(crops.images),
        "batches": [len(crops.images)],
        "from": crops.told,
        "runtime": f"jax {version('jax')}",
    }
