"""Checked exports: write the model of a run, read it back, compare it with the run, describe it."""

import concurrent.futures
import dataclasses
import logging
import os
import pathlib
import shutil
import time

import jax
import numpy as np
import tqdm
from ml_collections import ConfigDict

from lae_jax.data import pipeline, records
from lae_jax.data.sources import synthetic
from lae_jax.export import browser, folder
from lae_jax.export.program import PLATFORMS, Program
from lae_jax.report import model_card
from lae_jax.runs import build, calibration, fields, inputs, lineage, preprocessing
from lae_jax.runtime import console, files, layout, origin
from lae_jax.runtime.errors import ExportDiffers, InputError
from lae_jax.runtime.versions import version

logger = logging.getLogger("lae_jax")

LIMIT = 1e-3  # largest difference allowed: of an age in years, and of a probability
# Sizes of the batches of crops that the comparison uses. TensorFlow compiles the model again for each.
BATCHES = (1, 31)
_RUNTIMES = {"saved_model": "tensorflow", "stablehlo": "jax", "onnx": "onnxruntime"}


@dataclasses.dataclass(frozen=True)
class Crops:
    """Model inputs.

    Attributes:
      images: uint8 (N, S, S, 3).
      told: A few words on where the images come from.
    """

    images: np.ndarray
    told: str


def export(
    run: os.PathLike | str,
    form: str,
    out: os.PathLike | str,
    step: int | None = None,
    flip: bool = False,
    software: os.PathLike | str | None = None,
) -> dict:
    """Exports a run of stage 2 or 3 into a new folder, with the arguments of `lae_jax.export.export`.

    Args:
      run: Folder of the run.
      form: A key of `folder.FORMATS`.
      out: Folder to create, on a local disk.
      step: Step of the checkpoint (default: the best one).
      flip: Average each estimate with that of the mirror image.
      software: Folder of npm's package onnxruntime-web, to write a page with it.

    Returns:
      The content of `out`/export.json.

    Raises:
      InputError: The run cannot be used.
      ExportDiffers: The outputs of the export differ from those of the run. The export is deleted.
    """
    out = pathlib.Path(out)
    with console.progress(total=4, what="export", unit="steps") as line:
        return _export(run, form, out, step, flip, software, line)


def _export(
    run: os.PathLike | str,
    form: str,
    out: pathlib.Path,
    step: int | None,
    flip: bool,
    software: os.PathLike | str | None,
    line: tqdm.tqdm,
) -> dict:
    line.set_postfix_str("reading the run")
    checkpoint, config, stage = build.load_ages(run, step)
    line.update()
    if config.model.dtype != "float32":
        logger.info("the run computes in %s, the export in float32", config.model.dtype)
    build.model(config, stage, checkpoint.meta["num_outputs"])  # checks the names in the config
    program = program_of(checkpoint, config, flip)
    content = {
        "format": form,
        "outputs": {
            "age": "float32 (batch,), years, before the temperature",
            "distribution": f"float32 (batch, {program.num_ages}), of the ages from 0, at the temperature",
        },
        "inside": {"mean": list(program.mean), "std": list(program.std)},
        "platforms": list(PLATFORMS) if form != "onnx" else None,
        **lineage.described(checkpoint, config, stage.name, flip),
        "conformal": calibration.stored_conformal(checkpoint, flip),
    }
    with build.fits(checkpoint.workdir):
        return _write(out, content, program, checkpoint, software, line)


def program_of(checkpoint: origin.Checkpoint, config: ConfigDict, flip: bool = False) -> Program:
    """Returns the model of a checkpoint, in float32."""
    return Program(
        name=config.model.name,
        variables=jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), checkpoint.variables),
        image_size=config.data.image_size,
        mean=tuple(config.data.mean),
        std=tuple(config.data.std),
        num_ages=checkpoint.meta["num_outputs"],
        temperature=calibration.temperature_of(checkpoint),
        flip=flip,
        precision=config.model.precision,
    )


def _write(
    out: pathlib.Path,
    content: dict,
    program: Program,
    checkpoint: origin.Checkpoint,
    software: os.PathLike | str | None,
    line: tqdm.tqdm,
) -> dict:
    form, crops = content["format"], crops_of(checkpoint)
    unfinished = layout.place_of_export(out)
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        content |= write_model(form, unfinished, program, crops, line)
        line.set_postfix_str("describing it")
        card = model_card.write(
            content,
            checkpoint.meta,
            lineage.starts(checkpoint),
            lineage.evaluations_of(checkpoint),
            lineage.data_of(checkpoint),
        )
        files.write_text(unfinished / folder.CARD, card)
        if software is not None:
            content["page"] = browser.write(unfinished, content, card, software)
        folder.close(unfinished, content)
        layout.require_new(out)  # minutes have passed
        shutil.rmtree(out, ignore_errors=True)  # it may hold what a file manager left
        unfinished.replace(out)
        line.set_postfix_str("", refresh=False)
        line.update()
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return files.read_json(out / folder.FILE)


def write_model(form: str, path: pathlib.Path, program: Program, crops: Crops, line: tqdm.tqdm) -> dict:
    """Writes a model into a folder, reads it back and compares it.

    Args:
      form: A key of `folder.FORMATS`.
      path: An existing folder.
      program: The model in JAX.
      crops: Inputs of the comparison.
      line: Progress line (`console.progress`); it advances by two.

    Returns:
      The fields 'check' and 'seconds' of export.json.

    Raises:
      ExportDiffers: The outputs differ by more than `LIMIT`.
    """
    started = time.perf_counter()
    line.set_postfix_str(f"writing the {form}")
    folder.FORMATS[form].write(path, program)
    line.update()
    written = time.perf_counter()
    line.set_postfix_str("reading it back and comparing")
    check = compared(form, path, program, crops)
    line.update()
    seconds = {"write": round(written - started, 1), "check": round(time.perf_counter() - written, 1)}
    return {"check": check, "seconds": seconds}


def compared(form: str, path: pathlib.Path, program: Program, crops: Crops) -> dict:
    """Reads a model back in its own runtime and compares it with the model in JAX.

    Args:
      form: A key of `folder.FORMATS`.
      path: Folder of the written model.
      program: The model in JAX.
      crops: Inputs of the comparison.

    Returns:
      The field 'check' of export.json.

    Raises:
      ExportDiffers: The outputs differ by more than `LIMIT`.
    """
    readable = folder.read(form, path)
    reference = jax.jit(program.function("cpu" if jax.default_backend() == "cpu" else "xla"))
    ages, distributions = (np.asarray(output) for output in reference(program.variables, crops.images))
    parts = np.split(crops.images, np.cumsum(BATCHES)[:-1])
    with concurrent.futures.ThreadPoolExecutor() as pool:  # what takes long is that a runtime compiles for each size
        outputs = np.concatenate([*pool.map(readable.forward, [part for part in parts if len(part)])])
    differences = {
        "max_age_difference": float(np.abs(outputs[:, 0] - ages).max()),
        "max_distribution_difference": float(np.abs(outputs[:, 1:] - distributions).max()),
    }
    # Written so that a NaN fails the check.
    if not all(difference <= LIMIT for difference in differences.values()):
        raise ExportDiffers(
            f"the {form} gives ages that differ from the model's by up to {differences['max_age_difference']:.3g} years"
            f" and probabilities by up to {differences['max_distribution_difference']:.3g} ({crops.told}). At most"
            f" {LIMIT:g} is allowed, so it was deleted. The exporter or the runtime has a fault: please report it"
        )
    name = _RUNTIMES[form]
    return {
        **differences,
        "limit": LIMIT,
        "images": len(crops.images),
        "batches": [len(part) for part in parts if len(part)],
        "from": crops.told,
        "runtime": f"{name} {version(name)}",
    }


def crops_of(checkpoint: origin.Checkpoint) -> Crops:
    """Returns at most sum(BATCHES) crops of the run's validation split, or of its training split if it has none.

    Returns drawn faces if the data set cannot be read.
    """
    config, count = fields.from_json(checkpoint.meta["config"]), sum(BATCHES)
    split = inputs.split_name(config, config.data.split or config.data.train)
    try:
        dataset = records.open_dataset(config.data.path, config.data.verify)
        rows = dataset.rows(split)
    except InputError as error:
        logger.warning("the data set of the run cannot be read, so the comparison uses drawn faces (%s)", error)
        taken = preprocessing.Input(config.data.image_size, config.data.resize)
        return drawn(taken, "drawn faces, because the data set cannot be read")
    rows = rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(np.int64)]
    places = pipeline.Places(len(rows), 0, len(rows))
    augmentation = inputs.augmentation(config)
    (batch,) = pipeline.eval_batches(dataset, rows, augmentation, places=places, threads=inputs.threads(config))
    return Crops(batch["image"], f"of split {split} of {dataset.path}")


def drawn(taken: preprocessing.Input, told: str = "drawn faces") -> Crops:
    """Returns sum(BATCHES) drawn faces, of people of all ages."""
    size = max(taken.resize or taken.image_size, 64)
    faces = [synthetic.draw_face(k, 3.0 * k, 0, size)[0] for k in range(sum(BATCHES))]
    return Crops(np.stack([taken.pixels(face) for face in faces]), told)
