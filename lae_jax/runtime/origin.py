"""Checkpoints that were read: which run and which step one is of, and where it lies.

Checksums do not say where a checkpoint belongs: one that was renamed, or that comes from another run, matches its own.
So a run has an id, and each checkpoint carries it and its step.
"""

import contextlib
import dataclasses
import hashlib
import os
import uuid
from collections.abc import Mapping

import jax
import numpy as np
from etils import epath

from lae_jax.runtime import checksums, files, layout, parallel, typed
from lae_jax.runtime.errors import InputError

_FORM = typed.fields({"id": typed.text(".+")})  # of run.json


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A model that was read, of a finished or running run, of a model file, or weights from elsewhere.

    Attributes:
      workdir: The run; for a model file or weights their name, as it was given or with the commit.
      step: The step; None for weights.
      variables: The model's variables.
      meta: As `checkpoints.Checkpoints` describes it.
      file: Content of the header of a model file; None for a run or weights.
    """

    workdir: epath.Path | str
    step: int | None
    variables: dict
    meta: dict
    file: dict | None = None


def variables(state: Mapping) -> dict:
    """Returns the variables of the model in a state: of the parts that have an EMA, those of the EMA."""
    return {name: {**state[name], **state.get("ema", {}).get(name, {})} for name in ("params", "batch_stats")}


def hash_of(variables: Mapping) -> str:
    """Returns the SHA-256 of names, shapes, dtypes and bytes of a tree of arrays."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(variables)[0]:
        leaf = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}".encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def give_id(workdir: os.PathLike | str) -> None:
    """Writes the id of a new run, a random one, into its folder. A run that has checkpoints keeps what it has."""
    path = epath.Path(workdir) / layout.RUN
    if not path.exists() and not layout.is_run(workdir):
        files.write_json(path, {"id": uuid.uuid4().hex})


def run_id(workdir: os.PathLike | str) -> str | None:
    """Returns the id of a run.

    If run.json is missing, the id is the one that all checkpoints carry; None if they carry none, because the run was
    made before runs had ids.

    Raises:
      InputError: The folder has no id, and the ids of its checkpoints differ.
    """
    workdir = epath.Path(workdir)
    if (path := workdir / layout.RUN).exists():
        return files.read_json(path, _FORM)["id"]
    found = {}
    for path in filter(checksums.has, folders(workdir)):
        with contextlib.suppress(InputError):  # it is damaged, which `fault` says
            found[str(read_meta(path).get("run") or "")] = path
    if len(found) > 1:
        raise InputError(
            f"{' and '.join(map(str, found.values()))} are of different runs, and {layout.RUN}, which says which run"
            f" {workdir} is, is missing: restore it, or move the checkpoints of the other run away"
        )
    return next(iter(found), None) or None


def folders(workdir: os.PathLike | str) -> list[epath.Path]:
    """Returns the folders of all checkpoints of a run, complete or not, those of later steps first."""
    places = [epath.Path(workdir) / name for name in (layout.CHECKPOINTS, layout.UNSCORED)]
    found = [place / name for place in places for name in layout.contents(place) if name.isdecimal()]
    return sorted(found, key=lambda path: int(path.name), reverse=True)


def read_meta(path: epath.Path, form: typed.Form | None = None) -> dict:
    """Returns the `meta` of the checkpoint in a folder, as `checkpoints.Checkpoints` describes it.

    Args:
      path: The folder.
      form: The form of the meta; None: only that it is JSON is checked.

    Raises:
      InputError: Its file is damaged.
    """
    return files.read_json(path / "meta" / "metadata", form)


def fault(path: epath.Path, run: str | None) -> str | None:
    """Returns why a checkpoint cannot be used; None if it can.

    Args:
      path: Its folder.
      run: The `run_id` of the run that it lies in.

    Returns:
      The reason: it has no checksums, its files differ from them, or it is of another step or run.
    """
    if reason := checksums.damage(path):
        return reason
    try:
        meta = read_meta(path)
    except InputError as error:
        return str(error)
    if str(meta.get("step")) != path.name:
        return f"it is the checkpoint of step {meta.get('step')}"
    return None if meta.get("run") == run else f"it is of another run: its id is {meta.get('run')}, not {run}"


def folder_of(workdir: os.PathLike | str, step: int | None) -> str:
    """Returns the folder that `checkpoints.recover` found a step in, scored or not, the same on all hosts."""
    scored, unscored = (epath.Path(workdir) / name / str(step) for name in (layout.CHECKPOINTS, layout.UNSCORED))
    is_unscored = parallel.from_first_host(not scored.exists() and unscored.exists())
    return layout.UNSCORED if is_unscored else layout.CHECKPOINTS


def discard_unscored(workdir: os.PathLike | str) -> None:
    """Removes the state of a step that has been scored."""
    if parallel.is_first_host() and (folder := epath.Path(workdir) / layout.UNSCORED).exists():
        folder.rmtree()
