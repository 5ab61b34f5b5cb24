"""The command line of every program: one way to read flags, one meaning for each that several programs have."""

import argparse
import difflib
import sys
from collections.abc import Callable, Collection, Sequence
from typing import NoReturn

from lae_jax import __version__
from lae_jax.runtime.errors import InputError, unknown

# Flags that mean the same in every program that has them.
COMMON = {
    "run": {"required": True, "metavar": "RUN", "help": "folder of a run of stage 2 or 3"},
    "step": {"type": int, "metavar": "STEP", "help": "step of the checkpoint to take (default: the best one)"},
    "data": {"metavar": "DIR", "help": "folder of a prepared data set"},
    "split": {"metavar": "NAME", "help": "name of a split of the data set"},
    "out": {"required": True, "metavar": "DIR", "help": "folder to write"},
    "images": {"metavar": "DIR", "help": "folder that the paths in a CSV start from (default: the CSV's own)"},
    "seed": {"type": int, "default": 0, "metavar": "SEED", "help": "seed of everything random"},
    "flip": {"action": "store_true", "help": "average each estimate with that of the mirror image"},
    "interval": {
        "type": float,
        "default": 0.9,
        "metavar": "SHARE",
        "help": "share of a predicted distribution that its interval holds",
    },
    "threshold": {"type": float, "metavar": "AGE", "help": "age in years: tell P(age >= AGE) too"},
    "aligned": {"action": "store_true", "help": "the images are face crops, cut as the run's own were"},
    "allow_other_crop": {"action": "store_true", "help": "go on although faces are cut otherwise than the run's own"},
    "allow_leak": {"action": "store_true", "help": "go on although splits share pictures or people; reports say so"},
    "devices": {
        "type": int,
        "default": 0,
        "metavar": "N",
        "help": "number of simulated devices on a CPU; 0: the devices of this machine",
    },
}


class _Help(argparse.RawDescriptionHelpFormatter):
    """Help with the default of each flag that has one."""

    def _get_help_string(self, action: argparse.Action) -> str:
        told = action.help or ""
        if action.default in (None, False, "", 0, [], ()) or "default" in told or action.default is argparse.SUPPRESS:
            return told
        return f"{told} (default: %(default)s)"


class Parser(argparse.ArgumentParser):
    """Flags of a program. Hyphens and underscores are the same, and errors are `InputError`s that help."""

    def __init__(self, program: str, description: str):
        super().__init__(
            prog=f"python -m lae_jax.{program}", description=description, formatter_class=_Help, allow_abbrev=False
        )
        self.add_argument("--version", action="version", version=f"lae_jax {__version__}")

    def add_common(self, name: str, **changed) -> None:
        """Adds a flag of `COMMON`; changed: what this program says of it instead."""
        self.add_argument(f"--{hyphenated(name)}", **COMMON[name] | changed)

    def parse_args(self, args: Sequence[str] | None = None, namespace=None) -> argparse.Namespace:
        words = with_hyphens(sys.argv[1:] if args is None else args)
        known = [flag for flag in self._option_string_actions if flag.startswith("--")]
        for word in words[: words.index("--")] if "--" in words else words:
            flag = word.partition("=")[0]
            if flag.startswith("--") and flag not in known:
                nearest = [f"; did you mean {name}?" for name in difflib.get_close_matches(flag, known, n=1)]
                self.error(f"unknown flag {flag}{''.join(nearest)}")
        return super().parse_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        """Raises InputError: one line that names the help."""
        raise InputError(f"{message.removeprefix('argument ')} (see {self.prog} --help)")


def hyphenated(name: str) -> str:
    return name.replace("_", "-")


def with_hyphens(words: Sequence[str]) -> list[str]:
    """A command line whose flags have hyphens where they had underscores; values stay as they are."""
    result = []
    for number, word in enumerate(words):
        if word == "--":
            return [*result, *words[number:]]
        flag, equals, value = word.partition("=")
        result.append(f"{hyphenated(flag)}{equals}{value}" if flag.startswith("--") else word)
    return result


def one_of(kind: str, known: Collection[str]) -> Callable[[str], str]:
    """A type for `add_argument`: one of the known words, else an error that names the nearest."""

    def read(word: str) -> str:
        if word not in known:
            raise argparse.ArgumentTypeError(unknown(kind, word, known))
        return word

    return read
