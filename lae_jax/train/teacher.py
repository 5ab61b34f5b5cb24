"""The teacher of a run: a trained model from whose distribution over the ages the run learns too.

Hinton et al., "Distilling the Knowledge in a Neural Network", 2015. The teacher runs inside the step, on the augmented
image that the model sees. It is read again when a run resumes, and its hash is compared: nothing of it is in the state.
"""

import dataclasses
import logging
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from lae_jax.data import records
from lae_jax.runs import agreement, build, fields, precision
from lae_jax.runtime import model_file, origin, parallel
from lae_jax.runtime.errors import InputError
from lae_jax.runtime.model_file import builtin

logger = logging.getLogger("lae_jax")


@dataclasses.dataclass(frozen=True, eq=False)
class Teacher:
    """A model of stage 2 or 3 that teaches.

    Attributes:
      checkpoint: Its variables, and where it comes from.
      logits: (variables, images (B, H, W, 3) uint8 of any size) -> (B, K), in inference mode; of one device.
      record: from, step, sha256 (of its arrays), weight, temperature: for checkpoints and provenance.
    """

    checkpoint: origin.Checkpoint
    logits: Callable[[Mapping, jax.Array], jax.Array]
    record: dict

    def check_data(self, dataset: records.Dataset) -> None:
        """Checks that the teacher knows the crops of a data set, and that its data was not prepared again.

        Raises:
          InputError: The crops differ, or another data set is now at the place of the one that it was trained on.
        """
        agreement.require_same_crops(self.checkpoint, dataset)
        if told := agreement.unknown_crops(self.checkpoint, dataset):
            logger.warning("config.teacher: %s", told)
        if agreement.was_prepared_again(self.checkpoint, dataset):
            raise InputError(
                f"config.teacher: {dataset.path} was prepared again after {self.checkpoint.workdir} was trained, so its"
                " validation split may hold training images of the teacher: train the teacher again, or restore the"
                " data set"
            )


def is_set(config: ConfigDict) -> bool:
    """Whether a config has a teacher; with a weight of 0 it has none."""
    return fields.has_teacher(fields.as_json(config))


def load(
    config: ConfigDict,
    resumed: Mapping | None = None,
    convolutions: str = "auto",
    device: jax.Device | None = None,
) -> Teacher | None:
    """Loads the teacher of a config; None without one. All hosts must call it.

    Args:
      config: The config.
      resumed: Meta of the run's newest checkpoint, if it resumes: the teacher is then the same step of the same model.
      convolutions: Their form, as in `models.create`.
      device: The device that it runs on; None: this process's first one.

    Raises:
      InputError: It cannot be read, is not a model of ages, has another number of ages, is not the one that the run
        was started with, or differs between the hosts.
    """
    before = _of_run(resumed)
    if resumed is not None and (before is None) == is_set(config):
        had = "no teacher" if before is None else f"the teacher {before['from']}"
        raise InputError(
            f"{config.workdir} was started with {had}, and config.teacher is {config.teacher!r}: set it to the"
            " earlier value, or"
            " choose another --config.workdir"
        )
    if not is_set(config):
        _require_one(config, "0" * 64)
        return None
    name = config.teacher
    step = None if before is None or model_file.is_named(name) else before["step"]
    try:
        checkpoint, its_config, stage = build.load_ages(name, step)
    except InputError as error:
        raise InputError(f"config.teacher: {error}") from error
    builtin.tell(name)
    if (outputs := checkpoint.meta["num_outputs"]) != build.NUM_AGES:
        raise InputError(f"config.teacher: {name} has {outputs} ages, and a run has {build.NUM_AGES}: name another one")
    digest = origin.hash_of(checkpoint.variables)
    if before is not None and digest != before["sha256"]:
        raise InputError(
            f"config.teacher: {name} is not the teacher that {config.workdir} was started with (SHA-256 of its"
            f" arrays: {digest[:12]}, not {before['sha256'][:12]}): restore it, or choose another --config.workdir"
        )
    _require_one(config, digest)
    c = config.loss
    record = {"from": str(checkpoint.workdir), "step": checkpoint.step, "sha256": digest}
    record |= {"weight": c.teacher_weight, "temperature": c.teacher_temperature}
    logger.info(
        "the teacher is %s step %d (weight %g, temperature %g)",
        checkpoint.workdir,
        checkpoint.step,
        c.teacher_weight,
        c.teacher_temperature,
    )
    its_config = precision.for_inference(its_config, device)
    module = build.model(its_config, stage, outputs, convolutions)
    plain = build.plain_forward(its_config, dataclasses.replace(stage, output=lambda logits: logits), module)
    side = its_config.data.image_size

    def logits(variables: Mapping, images: jax.Array) -> jax.Array:
        return jax.lax.stop_gradient(plain(variables, resized(images, side)))

    return Teacher(checkpoint, logits, record)


def _require_one(config: ConfigDict, digest: str) -> None:
    """Checks that all hosts have the teacher with this SHA-256; a host without a teacher gives zeros."""
    if not parallel.hosts_agree(digest):
        here = f"{config.teacher} here" if is_set(config) else "none here"
        raise InputError(f"config.teacher ({here}) differs between the hosts: give all of them the same model")


def all_records(before: Mapping | None, teacher: Teacher | None) -> list[dict]:
    """Returns the records of the teachers of a run, of the runs before it and of its teacher; its own is the last.

    Args:
      before: Meta of the checkpoint that the run resumes or starts from.
      teacher: Its own teacher.
    """
    found = [*((before or {}).get("teachers") or [])]
    if teacher is not None:
        found += [*(teacher.checkpoint.meta.get("teachers") or []), teacher.record]
    once = {(one["sha256"], one["weight"], one["temperature"]): one for one in reversed(found)}
    return [*once.values()][::-1]


def _of_run(resumed: Mapping | None) -> dict | None:
    """Returns the record of the teacher that a run was started with."""
    if resumed is None or not fields.has_teacher(resumed["config"]):
        return None
    return (resumed.get("teachers") or [None])[-1]


def resized(images: jax.Array, side: int) -> jax.Array:
    """Returns images of another size: (B, H, W, 3) uint8 -> (B, side, side, 3).

    Bicubic, smoothed where it shrinks, one axis after the other, as Pillow does, from which a value differs by 1 at
    most. Images of that size are returned as they are.
    """
    if images.shape[1:3] == (side, side):
        return images
    count, height, _, colours = images.shape
    values = images.astype(jnp.float32)
    for shape in ((count, height, side, colours), (count, side, side, colours)):
        values = jnp.clip(jnp.round(jax.image.resize(values, shape, "cubic", antialias=True)), 0, 255)
    return values.astype(jnp.uint8)
