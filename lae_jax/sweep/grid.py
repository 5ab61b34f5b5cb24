"""The runs of a sweep: settings x folds x seeds, each as a command line of `lae_jax.main`."""

import dataclasses
import itertools
import os
import re
import tomllib
from collections.abc import Mapping, Sequence

from etils import epath
from ml_collections import ConfigDict

from lae_jax import train
from lae_jax.data import split_names
from lae_jax.runs import fields, preflight
from lae_jax.runtime import files, layout, typed
from lae_jax.runtime.errors import InputError, unknown
from lae_jax.sweep.claims import CLAIMS, CONFIG, RUNS, Run
from lae_jax.train import config_flag, early

_LONGEST = 200  # characters of a folder's name
# Fields that the sweep itself sets -> how to choose them.
_OWN = {"seed": "--seeds", "data.fold": "--fold", "workdir": "--out"}
# The runs of a sweep are compared, so they share teacher and weights of ages by name.
_FREE = {*fields.FREE_FIELDS} - {"teacher", "data.age_weights"}
_STARTED = typed.named(typed.fields({}))
_KEYS = ("config", "seeds", "folds", "set", "settings")


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What a sweep trains.

    Attributes:
      config: Config file, or the name of a config that the package ships, with `:argument` where it takes one.
      seeds: Seeds of the runs.
      folds: Numbers of the folds; 'all': those of the data set; empty: no folds.
      fields: Field -> values; the settings are all their combinations.
      settings: Name -> field -> value; each is combined with those of `fields`. The field `config` names another
        config.
    """

    config: str = ""
    seeds: Sequence[int] = (0,)
    folds: Sequence[int] | str = ()
    fields: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    settings: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)


def read(path: str | os.PathLike) -> Sweep:
    """Reads a sweep from a file, TOML or JSON.

    Raises:
      InputError: It is damaged, or has an unknown key or a value of another type.
    """
    text = files.read_text(path, "correct it")
    if epath.Path(path).suffix == ".toml":
        try:
            content = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise InputError(f"{path} is not TOML ({error}): correct it") from error
    else:
        content = files.parse_json(text, path, again="correct it, or name a .toml file")
    for name in content:
        if name not in _KEYS:
            raise InputError(f"{path}: {unknown('key', name, _KEYS)}")
    config, seeds, folds = content.get("config", ""), content.get("seeds", [0]), content.get("folds", [])
    if not isinstance(config, str):
        raise InputError(f"{path}: config is {config!r}: it must be the name of a config")
    for name, values in (("seeds", seeds), ("folds", folds)):
        is_list = isinstance(values, list) and all(type(value) is int for value in values)
        if not is_list and not (name == "folds" and values == "all"):
            raise InputError(f"{path}: {name} is {values!r}: it must be a list of whole numbers")
    for name in ("set", "settings"):
        if not isinstance(content.get(name, {}), dict):
            raise InputError(f"{path}: {name} is {content[name]!r}: it must be a table")
    for name, setting in content.get("settings", {}).items():
        if not isinstance(setting, dict):
            raise InputError(f"{path}: settings.{name} is {setting!r}: it must be a table of fields")
    return of_values(config, seeds, folds, content.get("set", {}), content.get("settings", {}))


def of_values(
    config: str, seeds: Sequence[int], folds: Sequence[int] | str, varied: Mapping, settings: Mapping[str, Mapping]
) -> Sweep:
    """Returns a sweep from values as a file has them; a list in `varied` has the values to compare."""
    lists = {name: value if isinstance(value, list) else [value] for name, value in fields.flat(varied).items()}
    return Sweep(
        config,
        seeds,
        folds,
        {name: [_text(value) for value in values] for name, values in lists.items()},
        {name: {field: _text(value) for field, value in fields.flat(one).items()} for name, one in settings.items()},
    )


def _text(value: object) -> str:
    """Returns a value as a word of a command line."""
    return value if isinstance(value, str) else repr(tuple(value) if isinstance(value, list) else value)


def values_of(word: str) -> tuple[str, list[str]]:
    """Returns field and values of `FIELD=VALUE,VALUE`; a comma in brackets or quotes is part of a value.

    Raises:
      InputError: It has another form.
    """
    field, equals, text = word.partition("=")
    if not (field and equals):
        raise InputError(f"--set {word}: write FIELD=VALUE, or FIELD=VALUE,VALUE to compare values")
    values, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        else:
            depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth and not quote:
            values.append("")
        else:
            values[-1] += letter
    return field, values


def runs_of(sweep: Sweep, out: str | os.PathLike) -> list[Run]:
    """Returns the runs of a sweep, whose configs are checked as far as that is possible without loading JAX.

    The settings of a seed and a fold stand together, so that a sweep that is stopped has comparable runs.

    Raises:
      InputError: A field, a value, a path, a split or a fold does not exist; something is there twice; or the settings
        cannot be compared.
    """
    if not (sweep.config or sweep.settings and all("config" in setting for setting in sweep.settings.values())):
        raise InputError("name a config: python -m lae_jax.sweep --config configs/represent.py --seeds 0 1 2 --out OUT")
    _require_different("seed", sweep.seeds)
    settings = _settings(sweep)
    checked = {name: _checked(name, words) for name, words in settings.items()}
    scored = {name: [*train.stages_of(config)][-1].data for name, config in checked.items()}
    first, *others = scored
    data, split = scored[first].path, scored[first].split
    for name in others:
        there = scored[name].path, scored[name].split
        if there != (data, split):
            raise InputError(
                f"setting {first} is scored on split {split} of {data}, and {name} on split {there[1]} of {there[0]}:"
                " the runs of a sweep are compared on the same images. Use a sweep for each data set"
            )
    folds = _folds(sweep.folds, data, split)
    runs, seen = [], {}
    for seed, fold in itertools.product(sweep.seeds, folds):
        for setting, words in settings.items():
            run = _run(out, setting, checked[setting], words, seed, fold)
            for other, before in seen.items():
                if before == run.config:
                    raise InputError(f"settings {other} and {setting} are the same: omit one of them")
            seen[setting] = run.config
            runs.append(run)
        seen.clear()
    names = [run.name for run in runs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        both = [run.setting for run in runs if run.name == twice]
        raise InputError(
            f"settings {' and '.join(both)} would be in one folder, {twice}: give them names in a file (--file)"
        )
    return runs


def _require_different(what: str, values: Sequence) -> None:
    if not values:
        raise InputError(f"name at least one {what}")
    if twice := [value for value in values if list(values).count(value) > 1]:
        raise InputError(f"{what} {twice[0]} is there twice: name each one once")


def _settings(sweep: Sweep) -> dict[str, list[str]]:
    """Returns the command line of each setting, without seed and fold."""
    varied = {_field(field): list(values) for field, values in sweep.fields.items()}
    if len(varied) < len(sweep.fields):
        raise InputError("--set names a field twice: write all its values behind one =, with commas")
    for field, values in varied.items():
        _require_different(f"value of {field}", values)
    named = {
        name: {_field(field): value for field, value in setting.items() if field != "config"}
        for name, setting in sweep.settings.items()
    }
    for name, setting in named.items():
        if both := sorted({*setting} & {*varied}):
            raise InputError(f"{both[0]} is set by setting {name} and for all settings: omit one of them")
    several = [field for field, values in varied.items() if len(values) > 1]
    found = {}
    for name, setting in (named or {"": {}}).items():
        config = sweep.settings[name].get("config", sweep.config) if name else sweep.config
        if not config:
            raise InputError(f"setting {name} has no config: name one for all settings, or one for each")
        for values in itertools.product(*varied.values()):
            chosen = dict(zip(varied, values, strict=True))
            told = [name] * bool(name) + [f"{_short(field, several)}={chosen[field]}" for field in several]
            words = [f"--config.{field}={value}" for field, value in {**setting, **chosen}.items()]
            found[",".join(told) or _stem(config)] = [f"--config={config}", *words]
    return found


def _field(name: str) -> str:
    field = name.removeprefix("--").removeprefix("config.")
    if flag := _OWN.get(re.sub(r"^stages\.[^.]+\.", "", field)):
        raise InputError(f"{name} is set by the sweep: choose it with {flag}")
    return field


def _short(field: str, others: Sequence[str]) -> str:
    """Returns the shortest end of a field's name that no other field has."""
    parts = field.split(".")
    ends = [".".join(parts[start:]) for start in reversed(range(len(parts)))]
    return next(end for end in ends if sum(f".{other}".endswith(f".{end}") for other in others) == 1)


def _stem(config: str) -> str:
    file, _, argument = config.partition(":")
    return argument or epath.Path(file).name.removesuffix(".py")


def _checked(setting: str, words: Sequence[str]) -> ConfigDict:
    """Returns the config of a setting.

    Raises:
      InputError: A word is wrong, or the last stage does not end in ages of a validation split.
    """
    try:
        config = config_flag.read(words)
    except InputError as error:
        raise InputError(f"setting {setting}: {error}") from error
    *_, last = train.stages_of(config)
    if last.stage == "pretrain":
        raise InputError(
            f"setting {setting} ends with stage 1, which predicts no ages: a sweep compares stages 2 and 3"
        )
    if not last.data.split:
        raise InputError(f"setting {setting} has no validation split to be scored on: set config.data.split")
    return config


def _folds(wanted: Sequence[int] | str, data: str, split: str) -> list[int | None]:
    """Returns the folds of the runs, [None] without any."""
    if not wanted:
        return [None]
    if wanted != "all":
        _require_different("fold", wanted)
        return list(wanted)
    layout.require_dataset(data)
    splits = files.read_json(epath.Path(data) / layout.DATASET).get("splits") or {}
    found = [int(match[1]) for name in splits if (match := re.fullmatch(rf"fold(\d+)-{re.escape(split)}", name))]
    if not found:
        split_names.require(data, f"fold0-{split}", splits)
    return sorted(found)


def _run(
    out: str | os.PathLike, setting: str, config: ConfigDict, words: Sequence[str], seed: int, fold: int | None
) -> Run:
    """Returns a run.

    Raises:
      InputError: A path or a split of its stages does not exist, or its folder holds another run.
    """
    place = {"{seed}": str(seed), "{fold}": str(fold)}
    words = [re.sub(r"\{(seed|fold)\}", lambda match: place[match[0]], word) for word in words]
    stages, is_recipe = list(train.stages_of(config)), "stages" in config
    order = config.order if is_recipe else [""]
    prefix = {name: f"--config.stages.{name}." if name else "--config." for name in order}
    if is_recipe and "seed" not in config:
        words += [f"{prefix[name]}seed={seed}" for name in order]
    else:
        words.append(f"--config.seed={seed}")
    if fold is not None:
        # Another data set, such as the people of stage 1, has no folds of these images.
        same = [name for name, stage in zip(order, stages, strict=True) if stage.data.path == stages[-1].data.path]
        words += [f"{prefix[name]}data.fold={fold}" for name in same]
    name = re.sub(r"[^\w.,=+-]+", "_", setting) + f"-fold{fold}" * (fold is not None) + f"-seed{seed}"
    if len(name) > _LONGEST:
        raise InputError(
            f"the name of setting {setting[:40]}... is too long for a folder: give it one in a file (--file)"
        )
    workdir = os.path.join(out, RUNS, name)
    config = config_flag.read([*words, f"--config.workdir={workdir}"])
    stages = list(train.stages_of(config))
    workdirs = [os.fspath(stage.workdir) for stage in stages]
    for number, (part, stage) in enumerate(zip(order, stages, strict=True)):
        try:
            with early.naming(part, config):
                early.check_stage(stage, workdirs[number], workdirs[:number])
        except InputError as error:
            told = re.sub(r"(--)?config\.workdir", "--out", str(error))
            raise InputError(f"run {name}: {told}") from error
    last, split = stages[-1], preflight.split_of(stages[-1], stages[-1].data.split)
    folder = os.path.join(RUNS, name, order[-1]) if is_recipe else os.path.join(RUNS, name)
    content = {part: _without_folder(stage, workdir) for part, stage in zip(order, stages, strict=True)}
    _require_unchanged(epath.Path(out) / CLAIMS / name / CONFIG, name, content)
    return Run(name, setting, seed, fold, tuple(words), folder, last.data.path, split, content)


def _without_folder(stage: ConfigDict, workdir: str) -> dict:
    """Returns the fields of a stage without the folder of its run, which tells no settings apart and may be moved."""
    content = fields.flat(fields.as_json(stage))
    content |= {name: content[name].replace(workdir, "") for name in ("init_from", "mae_from", "teacher")}
    return {name: value for name, value in content.items() if name != "workdir"}


def _require_unchanged(path: epath.Path, name: str, config: Mapping[str, Mapping]) -> None:
    """Checks that a run which an earlier start began has the same config now.

    Raises:
      InputError: It does not.
    """
    if not path.exists():
        return
    before = files.read_json(path, _STARTED, "train the sweep into a new folder")
    told = [] if {*before} == {*config} else [f"stages {', '.join(before)} there, {', '.join(config)} now"]
    for part in config if not told else ():
        told += fields.differences(before[part], config[part], _FREE)
    if told:
        raise InputError(
            f"run {name} was begun with another config ({'; '.join(told)}): use that config, or choose another --out"
        )
