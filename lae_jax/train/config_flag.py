"""The flag --config and the fields of the config, `--config.<field>=<value>`, on a command line."""

import itertools
import os
import pathlib
import sys
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

import lae_jax
from lae_jax.runtime.errors import InputError, unknown
from lae_jax.train import early

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, or the name of a config that the package ships.")


def parse() -> list[str]:
    """Parses absl's flags and those of the config in sys.argv, whose spelling it makes uniform.

    Returns:
      The words that are not flags, the program's name first.

    Raises:
      InputError: A flag is wrong; the message is one line.
    """
    # ml_collections reads the fields of the config from sys.argv itself.
    argv = sys.argv[:] = find_shipped_config(with_underscores(sys.argv))
    _require_config_flag(argv)
    return _parsed(flags.FLAGS, argv)


def read(words: Sequence[str]) -> ConfigDict:
    """Returns the config that `--config` and the fields of a command line give, and leaves absl's flags as they are.

    Args:
      words: `--config=FILE` and then `--config.<field>=<value>`.

    Raises:
      InputError: A word is wrong; the message is one line.
    """
    values = flags.FlagValues()
    argv = find_shipped_config(["", *words])
    found = config_flags.DEFINE_config_file("config", None, "", values, sys_argv=argv)
    _parsed(values, argv)
    return found.value


def _parsed(values: flags.FlagValues, argv: list[str]) -> list[str]:
    try:
        return values(argv)
    except ModuleNotFoundError as error:
        raise InputError(
            f"--config: the config imports {error.name}, which is not installed. Modules of the current folder are not"
            " found: if it lies there, start the command with PYTHONPATH=."
        ) from error
    except (AttributeError, KeyError, TypeError, ValueError, flags.Error) as error:
        raise InputError(flag_error(error)) from error


def with_underscores(words: list[str]) -> list[str]:
    """Returns a command line with underscores, as absl expects them, in place of the hyphens in flags."""
    result = []
    for word in words:
        flag, equals, value = word.partition("=")
        result.append(f"--{flag[2:].replace('-', '_')}{equals}{value}" if flag.startswith("--") else word)
    return result


def find_shipped_config(argv: list[str]) -> list[str]:
    """Makes `--config represent` and `--config configs/represent.py` name a file of the package outside a checkout.

    Raises:
      InputError: Neither the file nor a config of the package with that name exists.
    """
    argv, shipped = list(argv), pathlib.Path(lae_jax.__file__).parent / "configs"
    for i, word in enumerate(argv):
        flag, _, value = word.partition("=")
        if flag not in ("--config", "-config"):
            continue
        place = i if value else i + 1
        value = value or (argv[place] if place < len(argv) else "")
        file, colon, row = value.partition(":")
        if value and not os.path.isfile(file):
            found = shipped / (pathlib.Path(file).name.removesuffix(".py") + ".py")
            if not found.exists():
                known = sorted(p.stem for p in shipped.glob("*.py") if p.stem not in ("common", "__init__"))
                told = unknown("config of the package", found.stem, known)
                raise InputError(f"--config {file}: no such file, and {told}")
            argv[place] = f"{flag}={found}{colon}{row}" if place == i else f"{found}{colon}{row}"
    return argv


def _require_config_flag(argv: list[str]) -> None:
    """Raises InputError where a config is named without --config: its fields would then be unknown flags."""
    given = any(word.partition("=")[0] in ("--config", "-config") for word in argv)
    for previous, word in itertools.pairwise(argv):
        if word.startswith("-") or (previous.startswith("-") and "=" not in previous):
            continue  # a flag, or its value
        hint = f"to name a config, use --config {word} (did you forget --config?)"
        if given:
            hint = "flags begin with --, and fields of the config with --config."
        raise InputError(f"unexpected word on the command line: {word}; {hint}")


def _field_like(flag: str) -> str:
    """Returns a hint at the config field that a flag without --config. may mean."""
    matches = [field for field in early.all_fields() if flag in (field, field.rpartition(".")[2])]
    if not matches:
        return " (a field of the config is set with --config.<field>=...; see python -m lae_jax.main --help)"
    is_recipe = CONFIG.present and CONFIG.value is not None and "stages" in CONFIG.value
    return f"; did you mean --config.{'stages.<stage>.' * is_recipe}{matches[0]}?"


def flag_error(error: Exception) -> str:
    """Returns the reason that absl or ml_collections gives for a wrong flag, as one sentence."""
    reason = error.args[0] if error.args and isinstance(error.args[0], KeyError) else error
    if isinstance(reason, KeyError) and "does not support indexing" not in str(reason):
        # A field that the config lacks. The text is its name, with or without quotes, a newline, and a hint.
        name, *hint = str(reason.args[0]).splitlines()
        told = "; ".join([repr(name.strip("'\"")), *hint])
        return (
            f"unknown config field {told} (in a recipe, fields are set by stage, --config.stages.<name>.<field>=...,"
            " and the data set of all stages with --config.faces)"
        )
    lines = str(error).strip().splitlines()
    if "get_config() takes" in str(error):
        return "--config: this config takes no argument: omit the colon and what follows it"
    if "Traceback" in str(error):  # from the config file; its last line is the reason
        return lines[-1].partition(": ")[2]
    if isinstance(error, flags.UnrecognizedFlagError):
        return f"{lines[0].split('. Did you mean')[0].rstrip('.')}{_field_like(error.flagname)}"
    if isinstance(error, flags.Error):
        return lines[0]
    return f"an override --config.... names a field inside a value ({lines[0]})"
