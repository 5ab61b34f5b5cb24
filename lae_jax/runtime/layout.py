"""What a folder holds, by the names in it, and whether it can be written: checks before a program loads JAX."""

import difflib
import errno
import itertools
import os
import pathlib
import stat
import tempfile
from collections.abc import Callable, Collection, Iterable

from etils import epath

from lae_jax.runtime import files, foreign
from lae_jax.runtime.errors import InputError, save_failed
from lae_jax.runtime.files import is_remote
from lae_jax.runtime.typed import declared

CHECKPOINTS, CONFIG, RUN = "checkpoints", "config.json", "run.json"
UNSCORED = "unscored"  # the state of a step whose evaluation a signal interrupted
DATASET, RECIPE, REJECTED = "dataset.json", "recipe.json", "rejected.csv"
EXPORT, PAGE = "export.json", ("index.html", "onnxruntime-web")  # PAGE: what an export with a page has besides
MODELS = ("saved_model", "model.stablehlo", "model.onnx")  # one for each format of an export
_PREPARE = "python -m lae_jax.prepare --reader csv --source CSV --out"
# What a preparation leaves that was killed before it wrote its recipe, or that could use no image.
_BEGUN = {"parts", RECIPE + ".incomplete", REJECTED, REJECTED + ".incomplete"}
_LOCKED = {"lock", CONFIG + ".incomplete", RUN, RUN + ".incomplete"}  # of a run that was killed before its config
_COMPARED = 10_000  # names of a folder among which a similar one is looked for
# What Windows, macOS, Synology, QNAP and file systems create that is not hidden, in lower case.
_OF_SYSTEMS = {
    "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information", "icon\r", "__macosx",
    "network trash folder", "temporary items", "@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot",
    "@__thumb", "lost+found",
}  # fmt: skip


def is_system(name: str) -> bool:
    """Whether a file or folder was made by an operating system, a file manager, an editor or a notebook.

    These are hidden ones (.DS_Store, ._x, .nfs1, .x.swp, .ipynb_checkpoints), copies that editors keep (x~, #x#), and
    names such as Thumbs.db and __MACOSX. They are never part of a data set, a run or an export.

    Args:
      name: The name, without the folder.
    """
    return name.startswith(".") or name.endswith("~") or name[:1] + name[1:][-1:] == "##" or name.lower() in _OF_SYSTEMS


def contents(path: os.PathLike | str) -> list[str]:
    """Returns the sorted names in a folder, without those of `is_system`; [] if there is no such folder.

    Raises:
      InputError: It must not be read.
    """
    path = epath.Path(path)
    try:
        return sorted(each.name for each in path.iterdir() if not is_system(each.name)) if path.is_dir() else []
    except PermissionError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): allow it, or name another folder") from error


def is_run(path: os.PathLike | str) -> bool:
    """Whether a folder is a run: it has a folder of checkpoints."""
    return (epath.Path(path) / CHECKPOINTS).is_dir()


def is_dataset(path: os.PathLike | str) -> bool:
    """Whether a folder is a prepared data set."""
    return (epath.Path(path) / DATASET).exists()


def read_recipe(path: os.PathLike | str) -> dict:
    """Returns the recipe of a data set; {} without one.

    Raises:
      InputError: It is damaged.
    """
    recipe = epath.Path(path) / RECIPE
    return files.read_json(recipe, declared.RECIPE) if recipe.exists() else {}


def names(given: str | os.PathLike | Iterable[str | os.PathLike]) -> list[str]:
    """Returns names or paths as a list of strings; a single one is a list of one."""
    return [os.fspath(one) for one in ([given] if isinstance(given, (str, os.PathLike)) else given)]


def is_export(path: os.PathLike | str) -> bool:
    """Whether a folder holds an export, or the remains of one."""
    return any((epath.Path(path) / name).exists() for name in (EXPORT, *MODELS))


def told(path: os.PathLike | str) -> str:
    """Returns what a folder is and which flags take it, as part of a sentence; '' if this project did not write it."""
    path = epath.Path(path)
    if is_run(path):
        return "it is a run, which evaluate, predict and export take with --run and training with --config.init_from"
    if is_dataset(path):
        return "it is a prepared data set, which training takes with --config.data.path and evaluate with --data"
    if (path / RECIPE).exists():
        return "it is an unfinished data set: run the same prepare command again to resume it"
    if (path / REJECTED).exists():
        return f"it holds only {REJECTED}, the images that prepare could not use: run prepare again"
    if (path / EXPORT).exists():
        return "it is an export, which predict takes with --run"
    if (path / CONFIG).exists():
        return "it is a run without a checkpoint: start its command again"
    if path.name == CHECKPOINTS and is_run(path.parent):
        return f"it holds the checkpoints of a run: name that run, {path.parent}"
    if path.name.isdigit() and path.parent.name == CHECKPOINTS:
        return f"it is a checkpoint of a run: name that run, {path.parent.parent}, and this one with --step {path.name}"
    if (path / "report.json").exists():
        return "it holds a report of evaluate or longtail"
    return ""


def require_run(path: os.PathLike | str, how_to_make: str = "") -> None:
    """Checks that a folder is a run.

    Args:
      path: The folder.
      how_to_make: The command that makes the run, for the message.

    Raises:
      InputError: It is not; the message says what it is, or how to make the run.
    """
    files.require_bucket(path := epath.Path(path))
    if is_run(path):
        return
    reason = told(path) or _inside(path, is_run)
    if not reason:
        reason = _or_make(path, how_to_make and f"make it with {how_to_make}")
    raise InputError(f"{path} holds no run: {reason}")


def require_start(source: str, stage: str, field: str = "config.init_from") -> None:
    """Checks that a config says what its stage starts from.

    Args:
      source: The value of `init_from`: a run, weights, or 'scratch'.
      stage: Name of the stage.
      field: Name of the field, for the message.

    Raises:
      InputError: It is empty; the message names both ways. Or stage 3 would start from scratch.
    """
    if stage == "classify" and source in ("", "scratch"):
        raise InputError(
            f"stage {stage} starts from a run of stage 2: set --{field} to one (python -m lae_jax.main --config"
            " configs/represent.py makes it)"
        )
    if not source:
        raise InputError(
            f"{field} is empty: name what the backbone starts from (--{field}=SOURCE: faces-lite0, a run, a file of"
            f" weights or hf:owner/name; docs/training.md lists some), or start without weights: --{field}=scratch"
        )


def require_dataset(path: os.PathLike | str) -> None:
    """Checks that a folder is a prepared data set, on a disk or a mount.

    Raises:
      InputError: It is not; the message says what it is, or how to make the data set, or how to copy it from a bucket.
    """
    if is_remote(path):
        raise InputError(
            f"{path}: prepared data is read from a local disk or a mount. Copy it (gcloud storage cp -r {path} DIR) or"
            " mount the bucket (gcsfuse BUCKET DIR), then name DIR (in a run --config.data.path=DIR)"
        )
    require_utf8(path)
    path = epath.Path(path)
    if is_dataset(path):
        return
    if (path / RECIPE).exists():
        raise InputError(f"{path} is an unfinished data set: run the same prepare command again to resume it")
    reason = told(path) or _inside(path, is_dataset)
    if not reason and (not path.exists() or path.is_dir() and not contents(path)):
        reason = _or_make(path, f"make it with {_PREPARE} {path}")
    raise InputError(f"{path} is not a prepared data set: {reason or _missing(path)}")


def require_utf8(path: os.PathLike | str) -> None:
    """Checks that the path of a data set is UTF-8, as the libraries that read and write it need.

    Raises:
      InputError: It is not.
    """
    whole = os.path.abspath(path)
    shown = foreign.utf8(whole)
    if shown != whole:
        raise InputError(f"{shown}: the name of a folder is not UTF-8, so no data set can be in it: rename it")


def require_writable(path: os.PathLike | str, words: str = "") -> None:
    """Checks that a folder can be created, or written if it exists. A bucket is not checked.

    Args:
      path: The folder.
      words: Begin of the message (default: --out PATH).

    Raises:
      InputError: A file is in the way, or the nearest folder above it cannot be written.
      SaveFailed: The disk is full.
    """
    if is_remote(path):
        return
    words, whole = words or f"--out {path}", pathlib.Path(os.path.abspath(path))
    there = next(one for one in (whole, *whole.parents) if os.path.lexists(one))
    if not there.is_dir():
        kind = _kind(there) or "a file"
        what = f"is {kind}" if there == whole else f"lies in {there}, which is {kind}"
        raise InputError(f"{words} {what}: name a folder")
    try:
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        if error.errno != errno.EROFS and (failed := save_failed(error)):
            raise failed from error
        raise InputError(f"{words}: {there} cannot be written ({error.strerror}): name another folder") from error


_KINDS = {
    stat.S_ISLNK: "a link to a place that does not exist",
    stat.S_ISFIFO: "a pipe",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
}


def _kind(path: os.PathLike | str) -> str | None:
    """Returns what stands at a path if it is neither a file nor a folder; None if it is, or nothing is there."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        mode = os.lstat(path).st_mode if os.path.lexists(path) else 0
    return next((name for holds, name in _KINDS.items() if holds(mode)), None)


def require_regular(path: os.PathLike | str, words: str) -> None:
    """Checks that a path is not a pipe, a socket or a device, which a program could read or wait for without end.

    Args:
      path: The path of an input, which may be missing or a folder.
      words: Begin of the message.

    Raises:
      InputError: It is one.
    """
    if not is_remote(path) and os.path.exists(path) and (kind := _kind(path)):
        raise InputError(f"{words} is {kind}: name a file (write its content into one first)")


def require_file_place(path: os.PathLike | str, flag: str = "--out") -> None:
    """Checks that a file can be written: its folder exists and can be written, and it is not itself a folder.

    Args:
      path: The file.
      flag: Name of the flag, for messages.

    Raises:
      InputError: It cannot be written.
    """
    if is_remote(path):
        raise InputError(f"{flag} {path}: write the file to a local disk, then copy it")
    parent = pathlib.Path(path).absolute().parent
    if pathlib.Path(path).is_dir():
        raise InputError(f"{flag} {path} is a folder: name a file")
    if kind := _kind(path):
        raise InputError(f"{flag} {path} is {kind}: name a file")
    if not parent.exists():
        raise InputError(f"{flag} {path}: there is no folder {pathlib.Path(path).parent}: create it first")
    if not parent.is_dir():
        raise InputError(f"{flag} {path} lies in {parent}, which is a file: name a folder")
    require_writable(parent, f"{flag} {path}")
    if os.path.exists(path) and not os.access(path, os.W_OK):
        raise InputError(f"{flag} {path} exists and cannot be written: name another file")


def require_place(out: os.PathLike | str, names: Iterable[str] | None = None) -> None:
    """Checks that a data set can be prepared into a folder.

    Args:
      out: The folder.
      names: Names of its files, if it cannot be listed from here.

    Raises:
      InputError: The folder holds something else, cannot be written, or its name is not UTF-8.
    """
    require_utf8(out)
    if names is None:
        require_writable(out)
    names = {*contents(out)} if names is None else {name for name in names if not is_system(name)}
    if not names or RECIPE in names or names <= _BEGUN:
        return
    other = "a run" if CONFIG in names else _some(names)
    raise InputError(f"--out {out} holds {other}: name a new or an empty folder")


def require_workdir(workdir: os.PathLike | str) -> None:
    """Checks that a run can be in a folder: it does not exist, is empty, or holds this run.

    Raises:
      InputError: It holds something else, or cannot be written.
    """
    files.require_bucket(path := epath.Path(workdir))
    if not os.fspath(workdir) or is_dataset(path) or (path.exists() and not path.is_dir()):
        raise InputError(f"config.workdir is {os.fspath(workdir)!r}: name a folder that is only for the run")
    names = {*contents(path)} - _LOCKED
    if names and not names & {CONFIG, CHECKPOINTS}:
        raise InputError(f"config.workdir: {path} holds {_some(names)}: name a new or an empty folder")
    require_writable(workdir, f"config.workdir {workdir}")


def require_place_for_results(out: str | os.PathLike, own: Collection[str], marks: Collection[str]) -> None:
    """Checks that results can be written into a folder: it is new, empty, or holds earlier results of the same program.

    Args:
      out: The folder.
      own: Names that the program writes there.
      marks: The names of `own` that finished results have; other files may lie beside them.

    Raises:
      InputError: It is a run, a data set or an export, holds other files, or cannot be written.
    """
    path = epath.Path(out)
    for what, found in (("a run", is_run(path)), ("a data set", is_dataset(path)), ("an export", is_export(path))):
        if found:
            raise InputError(f"--out {out} is {what}: name another folder")
    names = {name.removesuffix(".incomplete") for name in contents(path)}
    if (others := names.difference(own)) and not names.issuperset(marks):
        raise InputError(f"--out {out} holds {_some(others)}: name a new or an empty folder")
    require_writable(out)


def require_new(out: os.PathLike | str) -> None:
    """Checks that an --out does not exist yet, or is an empty folder, and can be written.

    Raises:
      InputError: It exists, or cannot be written.
    """
    out = epath.Path(out)
    if (out.exists() or os.path.islink(out)) and (not out.is_dir() or contents(out)):
        raise InputError(f"--out {out} exists already: name a new folder, or delete this one")
    require_writable(out)


def place_of_export(out: os.PathLike | str) -> pathlib.Path:
    """Returns `out`.incomplete, the folder in which an export is written until it is whole.

    Raises:
      InputError: Something else is there than what an export leaves that was killed.
    """
    path = pathlib.Path(f"{pathlib.Path(out)}.incomplete")
    own = {*MODELS, EXPORT, f"{EXPORT}.incomplete", "model_card.md", "model_card.md.incomplete", *PAGE}
    if os.path.lexists(path) and (path.is_symlink() or not path.is_dir() or {*os.listdir(path)} - own):
        raise InputError(f"--out {out}: {path} is in the way and is not an unfinished export: move it away")
    return path


def _some(names: Iterable[str]) -> str:
    names = sorted(names)
    return f"other files ({', '.join(names[:3])}{', ...' * (len(names) > 3)})"


def _inside(path: epath.Path, wanted: Callable[[epath.Path], bool]) -> str:
    found = [name for name in contents(path) if wanted(path / name)]
    return f"name one of those in it ({', '.join(found)})" if found else ""


def hint(path: os.PathLike | str) -> str:
    """Returns '. Did you mean OTHER?' for a path that does not exist; '' where nothing has a similar name."""
    path = epath.Path(path)
    whole = [path, *path.parents]
    for place, folder in itertools.pairwise(whole):
        if "://" in str(path) or place.exists():
            break
        if not folder.is_dir():
            continue
        try:
            there = [each.name for each in itertools.islice(folder.iterdir(), _COMPARED)]
        except PermissionError:
            break
        for name in difflib.get_close_matches(place.name, there, n=1):
            other = folder / name / path.relative_to(place)
            return f". Did you mean {other}?" if other.exists() else ""
    return ""


def _or_make(path: epath.Path, make: str) -> str:
    """Returns why a path cannot be used, and how to make it."""
    if hint(path) and make:
        return f"{_missing(path)} If not, {make}"
    return make if make and not path.exists() else "; ".join(filter(None, [_missing(path), make]))


def _missing(path: epath.Path) -> str:
    if not path.exists():
        return f"no such folder{hint(path)}"
    if not path.is_dir():
        return "it is a file"
    return "it holds other files" if contents(path) else "it is empty"
