"""The history of a checkpoint: its starts, its data, its evaluations; and its model card."""

import logging
import os
from collections.abc import Mapping, Sequence

import jax
from etils import epath
from ml_collections import ConfigDict

from lae_jax.report import loading, model_card
from lae_jax.runs import build, calibration, fields
from lae_jax.runtime import files, layout, model_file, origin
from lae_jax.runtime.errors import InputError
from lae_jax.runtime.typed import declared
from lae_jax.runtime.versions import versions

logger = logging.getLogger("lae_jax")

_PACKAGES = ("lae-jax", "jax", "jaxlib", "flax", "tensorflow", "onnx", "onnxruntime", "numpy")


def run_card(run: os.PathLike | str, step: int | None = None, flip: bool = False) -> tuple[str, list[dict]]:
    """Returns the model card of a run of stage 2 or 3, Markdown, and the reports of its evaluations.

    Args:
      run: The run, which is used without an export.
      step: Step of the checkpoint; None: the best one.
      flip: Whether outputs are averaged with those of the mirror images.

    Raises:
      InputError: The run cannot be read, or does not estimate ages.
    """
    checkpoint = build.load_ages(run, step)[0]
    evaluations = evaluations_of(checkpoint)
    return card_of(checkpoint, evaluations, flip), evaluations


def card_of(checkpoint: origin.Checkpoint, evaluations: Sequence[Mapping], flip: bool = False) -> str:
    """Returns the model card of a checkpoint with the given evaluations."""
    content = described(checkpoint, fields.from_json(checkpoint.meta["config"]), checkpoint.meta["stage"], flip)
    return model_card.write(content, checkpoint.meta, starts(checkpoint), evaluations, data_of(checkpoint))


def described(checkpoint: origin.Checkpoint, config: ConfigDict, stage: str, flip: bool) -> dict:
    """Returns the content of export.json that describes the run."""
    return {
        "source": {
            "run": str(checkpoint.workdir),
            "step": checkpoint.step,
            "stage": stage,
            "model": config.model.name,
            "dtype": config.model.dtype,
            "precision": config.model.precision,
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(checkpoint.variables["params"])),
            "data": checkpoint.meta["data"],
            "data_hash": checkpoint.meta["data_hash"],
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
        "crop": checkpoint.meta["crop"],
        "temperature": calibration.temperature_of(checkpoint),
        "flip": flip,
        "versions": versions(_PACKAGES),
    }


def starts(checkpoint: origin.Checkpoint) -> list[dict]:
    """Returns the runs and weights that a model was started from, the latest first, as far as the workdirs exist.

    A run may be a stranger's: where it lies on a disk, no bucket that it names is asked.
    """
    if checkpoint.file is not None:
        return checkpoint.file["starts"]
    found, workdir, config = [], checkpoint.workdir, checkpoint.meta["config"]
    while (name := config.get("init_from") or "scratch") != "scratch" and len(found) < 9:
        path = workdir / "provenance.json"
        recorded: Mapping = (files.read_json(path, declared.PROVENANCE) if path.exists() else {}).get("init") or {}
        before, is_foreign = epath.Path(name), files.is_foreign_bucket(name, checkpoint.workdir)
        if model_file.is_named(name) and recorded.get("step") is not None:
            found.append({"from": name, **recorded, "kind": "model file"})
            return found + _starts_of_file(name, recorded.get("sha256")) * (not is_foreign)
        is_there = not is_foreign and (before / "config.json").exists()
        # A recorded step distinguishes a run from weights even if its workdir is gone.
        is_run = recorded.get("step") is not None or is_there
        start = {"step": config.get("init_step"), "from": name, **recorded, "kind": "run" if is_run else "weights"}
        found.append(start)
        if not is_there:
            break
        workdir, config = before, files.read_json(before / "config.json", declared.CONFIG_HEAD)
    return found


def _starts_of_file(name: str, sha256: str | None) -> list[dict]:
    """Returns what a model file was started from; [] if it is gone or another file is in its place."""
    try:
        is_same = files.sha256_of(model_file.place_of(name)) == sha256
        return model_file.read_header(name)["starts"] if is_same else []
    except InputError:
        return []


def evaluations_of(checkpoint: origin.Checkpoint) -> list[dict]:
    """Returns the reports on this checkpoint in its workdir or its model file.

    A damaged one is left out, and a warning names it.
    """
    if checkpoint.file is not None:
        return checkpoint.file["evaluations"]
    found = []
    for folder in loading.evaluations(checkpoint.workdir):
        try:
            report = loading.read_report(folder, declared.report_of_ages)
        except InputError as error:
            logger.warning("%s. The model card does not have this evaluation", error)
            continue
        if report["step"] == checkpoint.step:
            found.append(report)
    return found


def data_of(checkpoint: origin.Checkpoint) -> dict:
    """Returns the data set of a checkpoint: path, hash, reader and protocol."""
    if checkpoint.file is not None:
        return checkpoint.file["data"]
    path, data = checkpoint.workdir / "provenance.json", checkpoint.meta["data"]
    return {
        "path": data,
        "hash": checkpoint.meta["data_hash"],
        "reader": None if files.is_remote(data) else layout.read_recipe(data).get("reader"),
        "protocol": files.read_json(path, declared.PROVENANCE).get("protocol") if path.exists() else None,
    }
