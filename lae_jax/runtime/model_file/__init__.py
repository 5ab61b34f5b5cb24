"""Model files: a model of stage 2 or 3 in one file, its weights in half precision and all else in a header.

A model file is a safetensors file (https://huggingface.co/docs/safetensors). The field `lae_jax` of its metadata is
JSON: what the checkpoint of a run, its calibration and its evaluations say. `export.half` writes model files,
`runs.build.load` reads them. This module reads headers, without NumPy and JAX.
"""

import os

from etils import epath

from lae_jax.runtime import files, layout, typed
from lae_jax.runtime.errors import InputError
from lae_jax.runtime.foreign import places
from lae_jax.runtime.model_file import builtin
from lae_jax.runtime.typed import declared

SUFFIX, KEY = ".safetensors", "lae_jax"
VERSION = 1  # of the header
HEADER_LIMIT = 16 << 20  # bytes; EfficientNetV2-L has 200,000, and a million tensors take gigabytes
AGAIN = "get it again, or write it again (python -m lae_jax.export --format safetensors ...)"
_OWN = typed.fields({"stage": typed.one_of(("represent", "classify")), "num_outputs": typed.one_of((101,))})


def _meta(value: object, name: str) -> None:
    declared.META(value, name)
    _OWN(value, name)


_FORM = typed.fields(
    {
        "version": typed.one_of((VERSION,)),
        "meta": _meta,
        "temperature": declared.TEMPERATURE,
        "conformal": typed.optional(declared.CONFORMAL),
        "starts": typed.many(
            typed.fields(
                {
                    "from": typed.text(),
                    "kind": typed.one_of(("run", "weights", "model file")),
                    "step": typed.optional(typed.whole(0)),
                    "sha256": typed.optional(typed.text()),
                }
            )
        ),
        "data": typed.fields(
            {
                "path": typed.text(),
                "hash": declared.DIGEST,
                "reader": typed.optional(typed.text()),
                "protocol": typed.optional(typed.text()),
            }
        ),
        "evaluations": typed.many(declared.report_of_ages),
        "made_by": typed.fields(
            {"commit": typed.nullable(typed.text()), "versions": typed.named(typed.nullable(typed.text()))}
        ),
    }
)


def is_named(path: os.PathLike | str) -> bool:
    """Whether a name stands for a model file: a model of the package, or a name that ends in .safetensors."""
    return builtin.is_name(path) or (epath.Path(path).suffix.lower() == SUFFIX and not epath.Path(path).is_dir())


def is_model_file(path: os.PathLike | str) -> bool:
    """Whether there is a model file of lae_jax, as opposed to the weights of another library, which may be damaged.

    Raises:
      InputError: A model of the package is missing or damaged.
    """
    if not is_named(path):
        return False
    try:
        return KEY in _metadata(place_of(path), path)
    except InputError:
        if builtin.is_name(path):
            raise
        return False


def place_of(path: os.PathLike | str) -> epath.Path:
    """Returns the file that a name stands for.

    Raises:
      InputError: It is a model of the package that is missing or damaged.
    """
    return epath.Path(builtin.file_of(path) if builtin.is_name(path) else path)


def read_header(path: os.PathLike | str) -> dict:
    """Returns the header of a model file.

    Args:
      path: The file, or the name of a model of the package.

    Returns:
      'meta' (of the checkpoint, see `checkpoints.Checkpoints`), 'temperature', 'conformal' (may be missing), 'starts',
      'data', 'evaluations' (as in `runs.lineage`) and 'made_by' (commit and versions of the training).

    Raises:
      InputError: The file is missing, damaged, or not a model file of lae_jax.
    """
    place = place_of(path)
    if not place.exists():
        raise InputError(f"{path}: no such file{layout.hint(path)}")
    found = _metadata(place, path)
    if KEY not in found:
        raise InputError(
            f"{path} is not a model file of lae_jax: it has weights, but not the crop contract, the ages and the scores"
            " of a run. Write a model file with python -m lae_jax.export --run RUN --format safetensors; training takes"
            " weights alone with --config.init_from"
        )
    return files.parse_json(found[KEY], f"{path}, header", _FORM, AGAIN)


def _metadata(place: epath.Path, name: os.PathLike | str) -> dict[str, str]:
    """Returns the metadata of a safetensors file: texts by name."""
    with files.open_regular(place) as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(length) if length <= HEADER_LIMIT else b""
    if length > HEADER_LIMIT or len(text) < length or not text:
        told = f"a header of {length:,} bytes; at most {HEADER_LIMIT:,} are read"
        raise InputError(f"{name} is damaged or not a safetensors file ({told}): {AGAIN}")
    try:
        header = files.parse_json(text.decode(), f"{name}, header", again=AGAIN)
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is damaged or not a safetensors file ({error}): {AGAIN}") from error
    found = header.get("__metadata__", {})
    typed.require(found, typed.named(typed.text()), f"{name}, header", AGAIN)
    return found


def without_folders(content: object) -> object:
    """Returns JSON in which the last part stands for each absolute path and each place in a bucket, also in sentences.

    A file that is passed on does not tell where things are on the machine that wrote it. Relative paths stay.
    """
    if isinstance(content, dict):
        return {name: without_folders(value) for name, value in content.items()}
    if isinstance(content, list):
        return [without_folders(value) for value in content]
    if not isinstance(content, str):
        return content
    # A path by itself may hold spaces.
    known = [content] if ": " not in content and (os.path.isabs(content) or files.is_remote(content)) else []
    return places.without_places(content, *known)
