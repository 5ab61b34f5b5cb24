"""What a folder is, told by the names in it: nothing is opened, so that a door can ask before it loads JAX."""

import os
from collections.abc import Callable, Iterable

from etils import epath

from lae_jax.runtime.errors import InputError

CHECKPOINTS, CONFIG = "checkpoints", "config.json"
DATASET, RECIPE = "dataset.json", "recipe.json"
EXPORT = "export.json"
MODELS = ("saved_model", "model.stablehlo", "model.onnx")  # of the formats of an export
_PREPARE = "python -m lae_jax.prepare --reader csv --source CSV --out"
# Of a preparation that was killed before its recipe was written.
_BEGUN = {"parts", RECIPE + ".incomplete"}


def is_run(path: os.PathLike | str) -> bool:
    return (epath.Path(path) / CHECKPOINTS).is_dir()


def is_dataset(path: os.PathLike | str) -> bool:
    return (epath.Path(path) / DATASET).exists()


def is_export(path: os.PathLike | str) -> bool:
    """Whether a folder holds an export, or what is left of one."""
    return any((epath.Path(path) / name).exists() for name in (EXPORT, *MODELS))


def told(path: os.PathLike | str) -> str:
    """What a folder is and who takes it, as a part of a sentence; '' where it is nothing of this project's."""
    path = epath.Path(path)
    if is_run(path):
        return "it is a run, which evaluate, predict and export take with --run and training with --config.init_from"
    if is_dataset(path):
        return "it is a prepared data set, which training takes with --config.data.path and evaluate with --data"
    if (path / RECIPE).exists():
        return "it is a data set that was not finished: run the same prepare command again, it goes on where it stopped"
    if (path / EXPORT).exists():
        return "it is an export, which predict takes with --run"
    if (path / CONFIG).exists():
        return "it is a run that has saved nothing yet: start its command again"
    if path.name == CHECKPOINTS and is_run(path.parent):
        return f"it holds the checkpoints of a run: name that run, {path.parent}"
    if path.name.isdigit() and path.parent.name == CHECKPOINTS:
        return f"it is a checkpoint of a run: name that run, {path.parent.parent}, and this one with --step {path.name}"
    if (path / "report.json").exists():
        return "it holds a report, of evaluate or longtail"
    return ""


def require_run(path: os.PathLike | str, how_to_make: str = "") -> None:
    """Raises InputError that says what else a folder is, or how to make it, if it holds no run."""
    path = epath.Path(path)
    if is_run(path):
        return
    reason = told(path) or _inside(path, is_run)
    if not reason:
        make = how_to_make and f"make it with {how_to_make}"
        reason = make if make and not path.exists() else "; ".join(filter(None, [_missing(path), make]))
    raise InputError(f"{path} holds no run: {reason}")


def require_dataset(path: os.PathLike | str) -> None:
    """Raises InputError that says what else a folder is, or how to make it, if it holds no prepared data set."""
    path = epath.Path(path)
    if is_dataset(path):
        return
    if (path / RECIPE).exists():
        raise InputError(f"{path} was not finished: run the same prepare command again, it goes on where it stopped")
    reason = told(path) or _inside(path, is_dataset)
    if not reason and (not path.exists() or path.is_dir() and not _names(path)):
        reason = f"make it with {_PREPARE} {path}"
    raise InputError(f"{path} is no prepared data set: {reason or _missing(path)}")


def require_place(out: os.PathLike | str, names: Iterable[str] | None = None) -> None:
    """Raises InputError where a data set cannot be prepared into a folder: it holds something else.

    Args: names: of what stands in it, where it cannot be listed from here.
    """
    names = {*(_names(epath.Path(out)) if names is None else names)}
    if not names or RECIPE in names or names <= _BEGUN:
        return
    other = "a run" if CONFIG in names else f"other files ({', '.join(sorted(names)[:3])}{', ...' * (len(names) > 3)})"
    raise InputError(f"--out {out} holds {other}: name a new or an empty folder")


def require_new(out: os.PathLike | str) -> None:
    """Raises InputError unless an --out is not there yet, or an empty folder."""
    out = epath.Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"--out {out} is there already: name a new folder, or delete it")


def _names(path: epath.Path) -> list[str]:
    """Of what stands in a folder, without what systems and mounts leave there; [] where there is none."""
    if not path.is_dir():
        return []
    return sorted(each.name for each in path.iterdir() if not each.name.startswith(".") and each.name != "lost+found")


def _inside(path: epath.Path, wanted: Callable[[epath.Path], bool]) -> str:
    found = [name for name in _names(path) if wanted(path / name)]
    return f"name one of those in it ({', '.join(found)})" if found else ""


def _missing(path: epath.Path) -> str:
    if not path.exists():
        return "there is no such folder"
    if not path.is_dir():
        return "it is a file"
    return "it holds other files" if _names(path) else "it is empty"
