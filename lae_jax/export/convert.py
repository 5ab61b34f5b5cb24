"""From a run to a checked export: what is exported, written, read back, compared, described."""

import dataclasses
import logging
import os
import pathlib
import shutil
import time

import jax
import numpy as np

from lae_jax.data import pipeline, records
from lae_jax.data.sources import synthetic
from lae_jax.export import folder
from lae_jax.export.program import PLATFORMS, Program
from lae_jax.report import model_card
from lae_jax.runs import build, calibration, fields, inputs, lineage, preprocessing
from lae_jax.runtime import checkpoints, console, files, layout
from lae_jax.runtime.errors import ExportDiffers, InputError, unknown
from lae_jax.runtime.versions import version

logger = logging.getLogger("lae_jax")

LIMIT = 1e-3  # years that an age may differ, and what a probability may
BATCHES = (1, 3, 28)  # of the crops that an export is compared on
_RUNTIMES = {"saved_model": "tensorflow", "stablehlo": "jax", "onnx": "onnxruntime"}


@dataclasses.dataclass(frozen=True)
class Crops:
    """Model inputs, uint8 (N, S, S, 3), and a few words on what they are."""

    images: np.ndarray
    told: str


def export(run: os.PathLike | str, form: str, out: os.PathLike | str, step: int | None = None, flip: bool = False):
    """Exports a run of stage 2 or 3 into a new folder and returns the content of its export.json.

    Args: form: a key of `folder.FORMATS`; step: of the checkpoint (default: the best); flip: average with the mirror
    image. Raises InputError, and ExportDiffers where the export computes something else; then nothing is left.
    """
    if form not in folder.FORMATS:
        raise InputError(unknown("format", form, folder.FORMATS))
    if files.is_remote(out):
        raise InputError(f"--out {out}: export to a local disk, where it is read back, and copy the folder")
    out = pathlib.Path(out)
    layout.require_new(out)
    with console.progress(total=4, what="export", unit="steps") as line:
        return _export(run, form, out, step, flip, line)


def _export(run, form: str, out: pathlib.Path, step: int | None, flip: bool, line) -> dict:
    line.set_postfix_str("reading the run")
    checkpoint, config, stage = build.load_ages(run, step)
    line.update()
    if config.model.dtype != "float32":
        logger.info("the run computes in %s, the export in float32", config.model.dtype)
    program = Program(
        name=config.model.name,
        variables=jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), checkpoint.variables),
        image_size=config.data.image_size,
        mean=tuple(config.data.mean),
        std=tuple(config.data.std),
        num_ages=checkpoint.meta["num_outputs"],
        temperature=calibration.read_temperature(checkpoint.workdir, checkpoint.step),
        flip=flip,
    )
    content = {
        "format": form,
        "outputs": {
            "age": "float32 (batch,), years, before the temperature",
            "distribution": f"float32 (batch, {program.num_ages}), of the ages from 0, at the temperature",
        },
        "inside": {"mean": list(program.mean), "std": list(program.std)},
        "platforms": list(PLATFORMS) if form != "onnx" else None,
        **lineage.described(checkpoint, config, stage.name, flip),
    }
    return _write(out, content, program, checkpoint, line)


def _write(out: pathlib.Path, content: dict, program: Program, checkpoint: checkpoints.Checkpoint, line) -> dict:
    form, crops = content["format"], crops_of(checkpoint)
    unfinished = out.with_name(out.name + ".incomplete")
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
        folder.close(unfinished, content)
        unfinished.replace(out)
        line.set_postfix_str("", refresh=False)
        line.update()
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return files.read_json(out / folder.FILE)


def write_model(form: str, path: pathlib.Path, program: Program, crops: Crops, line) -> dict:
    """Writes a model into a folder, reads it back and compares it. Returns 'check' and 'seconds' of export.json.

    Args: line: of `console.progress`, for two steps. Raises ExportDiffers.
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
    """Reads a model back in its own runtime and compares it with the one in JAX. Raises ExportDiffers."""
    readable = folder.read(form, path)
    reference = jax.jit(program.function("cpu" if jax.default_backend() == "cpu" else "xla"))
    ages, distributions = (np.asarray(output) for output in reference(program.variables, crops.images))
    parts = np.split(crops.images, np.cumsum(BATCHES)[:-1])
    outputs = np.concatenate([np.asarray(readable.forward(part)) for part in parts if len(part)])
    differences = {
        "max_age_difference": float(np.abs(outputs[:, 0] - ages).max()),
        "max_distribution_difference": float(np.abs(outputs[:, 1:] - distributions).max()),
    }
    # Written so that what is not a number is too large.
    if not all(difference <= LIMIT for difference in differences.values()):
        raise ExportDiffers(
            f"the {form} gives ages that differ from the model's by up to {differences['max_age_difference']:.3g} years"
            f" and probabilities by {differences['max_distribution_difference']:.3g} ({crops.told}); {LIMIT:g} is"
            " allowed: it was deleted. This is a fault of the exporter or of the runtime: please report it"
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


def crops_of(checkpoint: checkpoints.Checkpoint) -> Crops:
    """Some three dozen crops of the run's data set, of its validation split where there is one; drawn faces where the
    data set is gone."""
    config, count = fields.from_json(checkpoint.meta["config"]), sum(BATCHES)
    split = inputs.split_name(config, config.data.split or config.data.train)
    try:
        dataset = records.open_dataset(config.data.path, config.data.verify)
        rows = dataset.rows(split)
    except InputError as error:
        logger.warning("the data set of the run cannot be read, so drawn faces are compared (%s)", error)
        return drawn(
            preprocessing.Input(config.data.image_size, config.data.resize), "drawn faces, the data set being gone"
        )
    rows = rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(np.int64)]
    places = pipeline.Places(len(rows), 0, len(rows))
    augmentation = inputs.augmentation(config)
    (batch,) = pipeline.eval_batches(dataset, rows, augmentation, places=places, threads=inputs.threads(config))
    return Crops(batch["image"], f"of split {split} of {dataset.path}")


def drawn(taken: preprocessing.Input, told: str = "drawn faces") -> Crops:
    """Of people of all ages."""
    size = max(taken.resize or taken.image_size, 64)
    faces = [synthetic.draw_face(k, 3.0 * k, 0, size)[0] for k in range(sum(BATCHES))]
    return Crops(np.stack([taken.pixels(face) for face in faces]), told)
