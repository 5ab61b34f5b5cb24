"""Pooled features of a run's backbone: computed once for each split, and cached with all that they depend on."""

import dataclasses
import functools
import hashlib
import json
import logging
import os
import pathlib
from collections.abc import Callable

import jax
import numpy as np

from lae_jax import stages
from lae_jax.data import pipeline, records, sampling
from lae_jax.runs import agreement, build, fields, inference, inputs, precision
from lae_jax.runtime import checkpoints, files, origin, parallel, typed
from lae_jax.runtime.errors import InputError, SaveFailed
from lae_jax.runtime.typed import declared

logger = logging.getLogger("lae_jax")

BATCH_SIZE = 256  # of the passes; fixed, so that the augmentation does not depend on the machine

_CACHE = typed.fields({"of": typed.fields({}), "sha256": typed.many(declared.DIGEST)})


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
    """Features of a split's rows.

    Attributes:
      values: (passes, N, F) float32, with one pass if nothing is augmented; in a file, of which parts are in memory.
      ages: (N,) float64 years.
      rows: (N,), rows of the data set.
    """

    values: np.ndarray
    ages: np.ndarray
    rows: np.ndarray


class Extractor:
    """A run's backbone in inference mode, over all devices."""

    def __init__(self, checkpoint: origin.Checkpoint, dataset: records.Dataset, folder: pathlib.Path):
        self.checkpoint, self.dataset, self.folder = checkpoint, dataset, pathlib.Path(folder)
        self.config = precision.for_inference(fields.from_json(checkpoint.meta["config"]))
        self.stage = stages.get(checkpoint.meta["stage"])
        build.model(self.config, self.stage, 0)  # checks the names in the config
        self.digest = origin.hash_of(checkpoint.variables)
        self.par = parallel.Parallel(form=self.config.parallel)
        self._mapped = None

    def features(self, split: str, passes: int = 0) -> Features:
        """Returns the features of a split's rows that have an age.

        They are read from `folder` if they belong to this checkpoint and data set, else computed and written there. A
        pass that is finished is kept.

        Args:
          split: Name of the split.
          passes: Passes over the augmented images, with the run's augmentation and seed; 0: one over the plain images.

        Raises:
          InputError: There is no such split, or something that is not a file stands in the place of the cache.
          SaveFailed: There is no room for the features.
        """
        examples = inputs.examples(self.dataset, split, self.stage)
        wanted = {
            "checkpoint": self.digest,
            "data": self.dataset.hash,
            "split": split,
            "passes": passes,
            "seed": self.config.seed,
            "input": fields.as_json(self.config)["data"]["augment"] if passes else {},
            "image_size": self.config.data.image_size,
            "shape": [max(1, passes), len(examples.rows)],
        }
        # JSON turns tuples into lists.
        wanted = json.loads(json.dumps(wanted))
        name = f"{split}-{passes}-{hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:12]}"
        array, told = self.folder / f"{name}.npy", self.folder / f"{name}.json"
        if array.exists() and not array.is_file():  # opening a pipe would block
            raise InputError(f"{array} is not a file: remove it, and the features are computed again")
        known = files.read_json(told, _CACHE, "remove it: it is computed again") if told.exists() else {}
        digests = _whole_passes(array, known["sha256"]) if known.get("of") == wanted else []
        if digests:
            done = "" if len(digests) == max(1, passes) else f" ({len(digests)} of {passes} passes)"
            logger.info("%s: the features of %s are read from the cache%s", self.checkpoint.workdir, split, done)
        self.folder.mkdir(parents=True, exist_ok=True)
        for number in range(len(digests), max(1, passes)):
            values = self._compute(examples, passes, number, functools.partial(_of_pass, array, passes, number))
            values.flush()
            digests.append(hashlib.sha256(values).hexdigest())
            files.write_json(told, {"of": wanted, "sha256": digests})
        return Features(np.load(array, mmap_mode="r", allow_pickle=False), examples.targets, examples.rows)

    def _compute(self, examples: inputs.Examples, passes: int, number: int, allocate: Callable) -> np.ndarray:
        """Returns the features of pass `number`, (N, F), in the array that `allocate` makes."""
        config, par, count = self.config, self.par, len(examples.rows)
        if self._mapped is None:
            variables = {
                name: tree["backbone"] for name, tree in self.checkpoint.variables.items() if "backbone" in tree
            }
            self._mapped = build.forward_features(config, self.stage, par), par.place(variables)
        forward, variables = self._mapped
        size = -(-BATCH_SIZE // par.device_count) * par.device_count
        if not passes:
            return inputs.outputs_of(
                config, self.dataset, examples.rows, forward, variables, par, size, allocate=allocate
            )
        steps = -(-count // size)
        once = sampling.sequential(count, size)
        first, local = par.local_places(size)
        batches = pipeline.train_batches(
            self.dataset,
            examples.rows,
            examples.targets.astype(np.float32),
            lambda step: once(step % steps),
            inputs.augmentation(config),
            seed=config.seed,
            start=number * steps,
            stop=(number + 1) * steps,
            places=pipeline.Places(size, first, local),
            threads=inputs.threads(config),
        )
        here = first + np.arange(local)

        def placed():
            for step, batch in enumerate(batches):
                yield {"image": batch["image"], "position": step * size + here}

        what = f"features, pass {number + 1} of {passes}"
        return inference.over_batches(
            forward, variables, placed(), count, par=par, total=steps, what=what, allocate=allocate
        )

    def own_head(self) -> dict:
        """Returns the run's head, float32: {'fc': {'kernel', 'bias'}}, and 'hidden' alike if it has a hidden layer."""
        return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), self.checkpoint.variables["params"]["head"])


def _of_pass(array: pathlib.Path, passes: int, number: int, shape: tuple[int, ...], dtype: np.dtype) -> np.memmap:
    """Returns the place of a pass in the file of all passes, which the first one makes."""
    if number == 0:
        if array.is_symlink():  # numpy would overwrite what it leads to
            array.unlink()
        np.lib.format.open_memmap(array, "w+", np.float32, (max(1, passes), *shape))
        _reserve(array)
    return np.lib.format.open_memmap(array, "r+")[number]


def _reserve(path: pathlib.Path) -> None:
    """Allocates the disk space of a file: a mapped file without space ends the process later, without a message."""
    if not hasattr(os, "posix_fallocate"):  # as on macOS
        return
    size = path.stat().st_size
    try:
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        path.unlink()
        raise SaveFailed(
            f"{path} needs {size / 1e9:.1f} GB ({error.strerror}): make room, or name another --out"
        ) from error


def _whole_passes(array: pathlib.Path, digests: list[str]) -> list[str]:
    """Returns the digests of the first passes in a file, as far as it has them."""
    whole = []
    try:
        values = np.load(array, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError):  # missing, or cut
        values = []
    for known, of_pass in zip(digests, values, strict=False):
        if hashlib.sha256(of_pass).hexdigest() != known:
            break
        whole.append(known)
    if len(whole) < len(digests):
        logger.warning(
            "%s has changed since it was written: it is computed again from pass %d on", array, len(whole) + 1
        )
    return whole


def open_run(path: str, data: str, folder: pathlib.Path) -> Extractor:
    """Opens a run of stage 2 and a data set, whose features are cached in `folder`.

    Raises:
      InputError: The run is of another stage, or the data set has other crops or was prepared again.
    """
    checkpoint = checkpoints.load_run(path, None, "python -m lae_jax.main --config configs/represent.py")
    if checkpoint.meta["stage"] != "represent":
        raise InputError(f"{path} is a run of stage {checkpoint.meta['stage']}: name one of stage represent with --run")
    dataset = records.open_dataset(data, checkpoint.meta["config"]["data"]["verify"])
    agreement.require_same_crops(checkpoint, dataset)
    if checkpoint.meta["data_hash"] != dataset.hash:
        own = checkpoint.meta["config"]["data"]["path"]
        raise InputError(
            f"{data} is not the data set that {path} was trained on (hash {dataset.hash[:12]}, not"
            f" {checkpoint.meta['data_hash'][:12]}), so its validation split may hold training images of that run: name"
            f" the data set of the run with --data ({own} when it was trained), or train stage 2 on this one"
        )
    return Extractor(checkpoint, dataset, folder)
