"""Models that are part of the package: files beside this one, whose SHA-256 stand here, each with its model card."""

import dataclasses
import logging
import os
import pathlib

from lae_jax.runtime import files
from lae_jax.runtime.errors import InputError

logger = logging.getLogger("lae_jax")

DEFAULT = "faces-lite0"
_FOLDER = pathlib.Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Builtin:
    """A model of the package.

    Attributes:
      path: Its model file. The model card has the same name and ends in .md.
      sha256: SHA-256 of the file.
      data: What it was trained on, with the licence.
      error: The errors to expect, in a few words.
    """

    path: pathlib.Path
    sha256: str
    data: str
    error: str

    @property
    def card(self) -> pathlib.Path:
        """The model card, Markdown."""
        return self.path.with_suffix(".md")

    @property
    def told(self) -> str:
        """What a user must know before the first age, as part of a sentence."""
        return f"trained on {self.data}; expected error: {self.error}"


MODELS = {
    DEFAULT: Builtin(
        _FOLDER / "faces_lite0.safetensors",
        sha256="4ed169cf331bbca52b927ebf21ea09ae39fd65436972642cb6accb81eda87db5",
        data="FairFace (CC BY 4.0)",
        error="7 years on average on UTKFace, 1 up to age 10, 12 above 70",
    )
}


def is_name(name: os.PathLike | str) -> bool:
    """Whether a text is the name of a model of the package. `./faces-lite0` and every `pathlib.Path` are paths."""
    return isinstance(name, str) and name in MODELS


def file_of(name: str) -> pathlib.Path:
    """Returns the file of a model of the package, after a check of its SHA-256.

    Raises:
      InputError: It is missing or damaged.
    """
    model = MODELS[name]
    if not model.path.exists():
        raise InputError(
            f"{name}, the model of the package, is not in this installation ({model.path} is missing): name a run, an"
            " export or a model file of your own with --run (in training with --config.init_from)"
        )
    if files.sha256_of(model.path) != model.sha256:
        raise InputError(
            f"{name}, the model of the package, is damaged ({model.path}: its SHA-256 differs): install lae_jax again"
        )
    return model.path


def tell(name: os.PathLike | str) -> None:
    """Logs what a model of the package is and where its card is; nothing for other models."""
    if is_name(name):
        model = MODELS[name]
        logger.info("model %s of this package, %s; card: %s", name, model.told, model.card)
