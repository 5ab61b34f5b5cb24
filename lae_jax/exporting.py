"""From a run to a checked export: what is exported, written, read back, compared, described."""

import dataclasses
import importlib.metadata
import logging
import os
import pathlib
import shutil
import time
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from etils import epath

from lae_jax import checkpoints, console, estimator, files, folders, inputs, runs
from lae_jax.data import pipeline, records, synthetic
from lae_jax.errors import ExportDiffers, InputError, unknown
from lae_jax.exports import folder, model_card
from lae_jax.exports.program import PLATFORMS, Program

logger = logging.getLogger("lae_jax")

LIMIT = 1e-3  # years that an age may differ, and what a probability may
BATCHES = (1, 3, 28)  # of the crops that an export is compared on
_RUNTIMES = {"saved_model": "tensorflow", "stablehlo": "jax", "onnx": "onnxruntime"}
_PACKAGES = ("lae-jax", "jax", "jaxlib", "flax", "tensorflow", "onnx", "onnxruntime", "numpy")


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
    folders.require_new(out)
    with console.progress(total=4, what="export", unit="steps") as line:
        return _export(run, form, out, step, flip, line)


def _export(run, form: str, out: pathlib.Path, step: int | None, flip: bool, line) -> dict:
    line.set_postfix_str("reading the run")
    handed, config, stage = estimator.load_ages(run, step)
    line.update()
    if config.model.dtype != "float32":
        logger.info("the run computes in %s, the export in float32", config.model.dtype)
    program = Program(
        name=config.model.name,
        variables=jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), handed.variables),
        image_size=config.data.image_size,
        mean=tuple(config.data.mean),
        std=tuple(config.data.std),
        num_ages=handed.meta["num_outputs"],
        temperature=estimator.read_temperature(handed.workdir, handed.step),
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
        **_described(handed, config, stage.name, flip),
    }
    return _write(out, content, program, handed, line)


def run_card(run: os.PathLike | str, step: int | None = None, flip: bool = False) -> tuple[str, list[dict]]:
    """The model card of a run of stage 2 or 3 that is used as it is, Markdown, and the reports of its evaluations.

    Raises InputError.
    """
    handed = estimator.load_ages(run, step)[0]
    evaluations = _evaluations(handed)
    return card_of(handed, evaluations, flip), evaluations


def card_of(handed: checkpoints.Handed, evaluations: Sequence[Mapping], flip: bool = False) -> str:
    """The model card of a checkpoint with the evaluations that are given."""
    content = _described(handed, runs.from_json(handed.meta["config"]), handed.meta["stage"], flip)
    return model_card.write(content, handed.meta, starts(handed), evaluations, _data(handed))


def _described(handed: checkpoints.Handed, config, stage: str, flip: bool) -> dict:
    """What export.json says of a run."""
    return {
        "source": {
            "run": str(handed.workdir),
            "step": handed.step,
            "stage": stage,
            "model": config.model.name,
            "dtype": config.model.dtype,
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(handed.variables["params"])),
            "data": handed.meta["data"],
            "data_hash": handed.meta["data_hash"],
        },
        "input": {
            "name": "image",
            "dtype": "uint8",
            "layout": "NHWC, RGB",
            "image_size": config.data.image_size,
            "resize": config.data.resize,
            "before": "cut the face as crop says; Pillow's bicubic to resize (0: image_size) squared; the centre of"
            " image_size squared; no normalisation",
        },
        "crop": handed.meta["crop"],
        "temperature": estimator.read_temperature(handed.workdir, handed.step),
        "flip": flip,
        "versions": _versions(),
    }


def _write(out: pathlib.Path, content: dict, program: Program, handed: checkpoints.Handed, line) -> dict:
    form, crops = content["format"], crops_of(handed)
    unfinished = out.with_name(out.name + ".incomplete")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        content |= write_model(form, unfinished, program, crops, line)
        line.set_postfix_str("describing it")
        card = model_card.write(content, handed.meta, starts(handed), _evaluations(handed), _data(handed))
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
        "runtime": f"{name} {_version(name)}",
    }


def crops_of(handed: checkpoints.Handed) -> Crops:
    """Some three dozen crops of the run's data set, of its validation split where there is one; drawn faces where the
    data set is gone."""
    config, count = runs.from_json(handed.meta["config"]), sum(BATCHES)
    split = inputs.split_name(config, config.data.split or config.data.train)
    try:
        dataset = records.open_dataset(config.data.path, config.data.verify)
        rows = dataset.rows(split)
    except InputError as error:
        logger.warning("the data set of the run cannot be read, so drawn faces are compared (%s)", error)
        return drawn(
            estimator.Input(config.data.image_size, config.data.resize), "drawn faces, the data set being gone"
        )
    rows = rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(np.int64)]
    places = pipeline.Places(len(rows), 0, len(rows))
    augmentation = inputs.augmentation(config)
    (batch,) = pipeline.eval_batches(dataset, rows, augmentation, places=places, threads=inputs.threads(config))
    return Crops(batch["image"], f"of split {split} of {dataset.path}")


def drawn(taken: estimator.Input, told: str = "drawn faces") -> Crops:
    """Of people of all ages."""
    size = max(taken.resize or taken.image_size, 64)
    faces = [synthetic.draw_face(k, 3.0 * k, 0, size)[0] for k in range(sum(BATCHES))]
    return Crops(np.stack([taken.pixels(face) for face in faces]), told)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _versions() -> dict[str, str | None]:
    return {package: _version(package) for package in _PACKAGES}


def starts(handed: checkpoints.Handed) -> list[dict]:
    """What a model was started from, the latest first, as far as the runs' folders are still there."""
    found, workdir, config = [], handed.workdir, handed.meta["config"]
    while (name := config.get("init_from") or "scratch") != "scratch" and len(found) < 9:
        path = workdir / "provenance.json"
        recorded: Mapping = (files.read_json(path) if path.exists() else {}).get("init") or {}
        before = epath.Path(name)
        # A recorded step tells a run from weights also when the run's folder is gone.
        is_run = recorded.get("step") is not None or (before / "config.json").exists()
        start = {"step": config.get("init_step"), "from": name, **recorded, "kind": "run" if is_run else "weights"}
        found.append(start)
        if not is_run or not (before / "config.json").exists():
            break
        workdir, config = before, files.read_json(before / "config.json")
    return found


def _evaluations(handed: checkpoints.Handed) -> list[dict]:
    """The reports of this checkpoint that stand in its run."""
    reports = [files.read_json(path) for path in sorted((handed.workdir / "evaluation").glob("*/report.json"))]
    return [report for report in reports if report.get("step") == handed.step and "group_mae" in report]


def _data(handed: checkpoints.Handed) -> dict:
    path, recipe = handed.workdir / "provenance.json", epath.Path(handed.meta["data"]) / "recipe.json"
    return {
        "path": handed.meta["data"],
        "hash": handed.meta["data_hash"],
        "reader": files.read_json(recipe).get("reader") if recipe.exists() else None,
        "protocol": files.read_json(path).get("protocol") if path.exists() else None,
    }
